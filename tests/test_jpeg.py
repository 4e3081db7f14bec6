"""JPEG files with our tables, decoded by libjpeg (Pillow)."""

import io

import numpy as np
import pytest
from PIL import Image

from fd_keras import FeatureDistillation, QuantizationTable, jpeg, preset_table
from fd_keras.jpeg import encode_jpeg, read_jpeg_table, rounded_table, write_jpeg

WHOLE_STEPS = np.random.default_rng(5).integers(8, 90, (3, 8, 8))
TABLES = {
    "jpeg:50": preset_table("jpeg:50"),
    "jpeg:75": preset_table("jpeg:75"),
    "flat 40": QuantizationTable(np.full((8, 8), 40), "ycbcr"),
    "random": QuantizationTable(WHOLE_STEPS, "ycbcr"),
}


def decode(content, mode=None):
    picture = Image.open(io.BytesIO(content))
    if mode:
        picture.draft(mode, None)
        assert picture.mode == mode
    return np.asarray(picture)


@pytest.fixture
def crops(photos):
    """Whole blocks, with saturated sky and without."""
    return [photos[0, :424, :640], photos[1, :424, :640]]


@pytest.mark.parametrize("name", TABLES)
def test_decodes_to_what_the_layer_computes(name, crops):
    """Within 2 levels, but where libjpeg limits Y, Cb or Cr to 0..255 and the layer does not.

    The decoder rounds Y, Cb and Cr before it makes RGB of them, which alone costs up to 0.3
    levels on average; without that, on the luma, almost nothing is left.
    """
    table = TABLES[name]
    for image in crops:
        content = encode_jpeg(image, table)
        expected = np.round(FeatureDistillation(table)(image).numpy())
        difference = np.abs(decode(content) - expected)
        ycbcr = decode(content, "YCbCr")
        limited = ((ycbcr == 0) | (ycbcr == 255)).any(-1)
        assert limited.mean() < 0.1
        assert (difference[~limited] > 2).mean() < 5e-5
        assert difference[~limited].mean() < 0.4
        assert (difference > 2).mean() < 2e-3


@pytest.mark.parametrize("name", TABLES)
def test_grey_decodes_to_what_the_layer_computes(name, crops):
    table = TABLES[name]
    for image in crops:
        grey = image[..., 1:2]
        expected = np.round(FeatureDistillation(table)(grey).numpy()[..., 0])
        difference = np.abs(decode(encode_jpeg(grey, table)) - expected)
        assert (difference > 2).mean() < 5e-4
        assert difference.mean() < 0.05


def test_a_plain_encoder_would_not(crops):
    """What the nudging of blocks is for: without it, one pixel in thirty is off."""
    table = TABLES["jpeg:50"]
    buffer = io.BytesIO()
    Image.fromarray(crops[0]).save(buffer, "JPEG", quality=50, subsampling=0)
    expected = FeatureDistillation(table)(crops[0]).numpy()
    assert (np.abs(decode(buffer.getvalue()) - expected) > 2).mean() > 0.03


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (427, 100), (8, 17)])
def test_any_size(size, photos):
    image = photos[1, : size[0], : size[1]]
    table = TABLES["flat 40"]
    expected = np.round(FeatureDistillation(table)(image).numpy())
    difference = np.abs(decode(encode_jpeg(image, table)) - expected)
    assert difference.shape == image.shape
    assert (difference > 2).mean() < 0.02


@pytest.mark.parametrize("name", TABLES)
def test_table_is_read_back(name, crops):
    table = TABLES[name]
    read = read_jpeg_table(encode_jpeg(crops[0], table))
    np.testing.assert_array_equal(read.steps, table.steps_for(3))
    assert read.color_space == "ycbcr"


def test_table_of_a_foreign_file(crops, tmp_path):
    Image.fromarray(crops[0]).save(tmp_path / "photo.jpg", quality=85)
    assert read_jpeg_table(tmp_path / "photo.jpg") == preset_table("jpeg:85")


def test_rgb_table_gives_an_rgb_file(crops):
    """The same steps; DC differs by the level shift, at most half a step of 25 in 8."""
    table = preset_table("liu2019")
    content = encode_jpeg(crops[1], table)
    read = read_jpeg_table(content)
    assert read.color_space == "rgb"
    np.testing.assert_array_equal(read.steps, table.steps_for(3))
    difference = np.abs(decode(content) - FeatureDistillation(table)(crops[1]).numpy())
    assert difference.mean() < 2


def test_subsampled_chroma(crops):
    table = preset_table("jpeg:50")
    content = encode_jpeg(crops[0], table, subsampling="4:2:0")
    assert len(content) < len(encode_jpeg(crops[0], table))
    assert Image.open(io.BytesIO(content)).layer[0][1:3] == (2, 2)
    assert read_jpeg_table(content) == table


def test_coarser_steps_give_smaller_files(crops, tmp_path):
    sizes = [
        write_jpeg(tmp_path / "a.jpg", crops[0], preset_table(f"jpeg:{quality}"))
        for quality in (95, 75, 50, 25)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert (tmp_path / "a.jpg").stat().st_size == sizes[-1]


def test_rounding_is_deliberate(crops):
    table = QuantizationTable(np.full((8, 8), 300.4), "ycbcr", 4, {"name": "mine"})
    with pytest.raises(ValueError, match="whole steps from 1 to 255.*rounded_table"):
        encode_jpeg(crops[0], table)
    rounded = rounded_table(table)
    assert (rounded.steps == 255).all()
    assert rounded.cycle_spins == 1
    assert rounded.provenance["rounded_for_jpeg"]["cycle_spins"] == 4
    assert rounded_table(rounded) is rounded
    encode_jpeg(crops[0], rounded)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((8, 8, 3)), {}, "Received: float64"),
        (np.zeros((8, 8, 4), np.uint8), {}, r"Received: uint8 of shape \(8, 8, 4\)"),
        (np.zeros((8, 8, 3), np.uint8), {"subsampling": "4:1:1"}, "subsampling='4:1:1'"),
        (np.zeros((8, 8), np.uint8), {"subsampling": "4:2:0"}, "needs a colour image"),
        (np.zeros((0, 8), np.uint8), {}, r"sides of 1 to 65500 pixels.*shape \(0, 8, 1\)"),
        (np.zeros((8, 65501, 1), np.uint8), {}, "sides of 1 to 65500"),
    ],
)
def test_bad_arguments(image, options, message):
    with pytest.raises(ValueError, match=message):
        encode_jpeg(image, preset_table("jpeg"), **options)


def test_other_files_are_refused(tmp_path, crops):
    Image.fromarray(crops[0]).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    Image.fromarray(crops[0]).convert("CMYK").save(tmp_path / "c.jpg")
    for name in ("a.png", "b.jpg", "c.jpg"):
        with pytest.raises(ValueError, match=name):
            read_jpeg_table(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_jpeg_table(tmp_path / "none.jpg")


@pytest.mark.parametrize("factor", [1.5, 3])  # Pillow warns of the one and refuses the other
def test_decompression_bomb_is_refused(crops, monkeypatch, factor):
    content = encode_jpeg(crops[0], preset_table("jpeg"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(424 * 640 / factor))
    with pytest.raises(ValueError, match="`source` holds more than .* takes for an attack"):
        read_jpeg_table(content)


def test_photo_with_previews(crops, tmp_path):
    """MPO, as phones write it."""
    first, second = (Image.fromarray(crop) for crop in crops)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=60)
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.format == "MPO"
    assert read_jpeg_table(tmp_path / "a.jpg") == preset_table("jpeg:60")


def test_takes_what_the_layer_takes_as_table(crops):
    content = encode_jpeg(crops[0], preset_table("jpeg:50"))
    assert encode_jpeg(crops[0], "jpeg:50") == content
    assert rounded_table("jpeg:50") == preset_table("jpeg:50")
    assert encode_jpeg(crops[0], preset_table("jpeg:50").to_dict()) == content


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_in_strips(photos, monkeypatch, channels):
    image = photos[0, :203, :101, :channels]
    whole = encode_jpeg(image, "jpeg:50")
    strips = []
    strip = jpeg._reproducing_strip
    monkeypatch.setattr(jpeg, "_PIXELS_AT_ONCE", 2600)
    monkeypatch.setattr(
        jpeg, "_reproducing_strip", lambda *args: strips.append(len(args[0])) or strip(*args)
    )
    assert encode_jpeg(image, "jpeg:50") == whole
    assert strips == [24] * 8 + [11]
