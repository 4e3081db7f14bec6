"""JPEG files with our tables, decoded by libjpeg (Pillow)."""

import contextlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from fd_keras import FeatureDistillation, QuantizationTable, encode, jpeg, preset_table
from fd_keras.certification import certified_table, certify, nominal_radius
from fd_keras.jpeg import (
    encode_jpeg,
    read_jpeg_table,
    rounded_table,
    with_software,
    write_jpeg,
)

WHOLE_STEPS = np.random.default_rng(5).integers(8, 90, (3, 8, 8))
TABLES = {
    "jpeg:50": preset_table("jpeg:50"),
    "jpeg:75": preset_table("jpeg:75"),
    "flat 40": QuantizationTable(np.full((8, 8), 40), "ycbcr"),
    "random": QuantizationTable(WHOLE_STEPS, "ycbcr"),
}
# Tables whose steps are too small to certify anything.
PLAIN = [name for name, table in TABLES.items() if nominal_radius(table, 3) == 0]
CERTIFYING = [name for name in TABLES if name not in PLAIN]


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


@pytest.mark.parametrize("name", PLAIN)
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


@pytest.mark.parametrize("table", ["jpeg:100", np.ones((8, 8)), np.full((8, 8), 8.0)])
def test_noise_at_fine_steps_fills_no_buffer(table, rng, capfd):
    noise = rng.integers(0, 256, (200, 240, 3), np.uint8)
    content = encode_jpeg(noise, table)
    assert len(content) > 2 * 200 * 240  # what Pillow's buffer for optimised codes holds
    difference = np.abs(decode(content) - FeatureDistillation(table)(noise).numpy())
    assert np.quantile(difference, 0.9) < 4
    assert not capfd.readouterr().err


@pytest.mark.parametrize("name", PLAIN)
def test_grey_decodes_to_what_the_layer_computes(name, crops):
    table = TABLES[name]
    for image in crops:
        grey = image[..., 1:2]
        expected = np.round(FeatureDistillation(table)(grey).numpy()[..., 0])
        difference = np.abs(decode(encode_jpeg(grey, table)) - expected)
        assert (difference > 2).mean() < 5e-4
        assert difference.mean() < 0.05


@pytest.mark.parametrize("name", CERTIFYING)
@pytest.mark.parametrize("channels", [1, 3])
def test_certifying_tables_give_an_encoded_image(name, channels, crops):
    """What libjpeg decodes reaches the table's radius, at no more distance than `encode` has."""
    table = TABLES[name]
    for image in crops:
        source = image[..., :channels]
        decoded = decode(encode_jpeg(source, table)).reshape(source.shape)
        reached = certify(decoded, table).linf_radius[0]
        assert reached >= nominal_radius(table, channels) - 1e-3
        ours, best = (
            np.abs(x - np.float64(source)).mean() for x in (decoded, encode(source, table))
        )
        assert ours < 1.05 * best


@pytest.mark.parametrize("space", ["rgb", "ycbcr"])
@pytest.mark.parametrize("epsilon", [1, 4])
def test_hard_images_certify_after_libjpeg(space, epsilon, rng):
    """Saturated blocks, flat ones whose rounding is one-sided, ramps, and incomplete blocks."""
    table = certified_table(epsilon, color_space=space)
    ramp = np.broadcast_to(np.arange(72)[:, np.newaxis] * 3.5, (72, 70))
    hard = [
        rng.choice([0, 255], (40, 51, 3)),
        np.repeat(np.repeat(rng.integers(0, 256, (12, 9, 3)), 8, 0), 8, 1),
        np.stack([ramp, 255 - ramp, ramp / 2 + 128], -1),
        rng.integers(240, 256, (33, 16, 3)),
        rng.integers(0, 256, (1, 1, 3)),
    ]
    for image in hard:
        for source in (np.uint8(image), np.uint8(image)[..., :1]):
            decoded = decode(encode_jpeg(source, table)).reshape(source.shape)
            assert certify(decoded, table).holds(epsilon).all()


def test_a_file_that_falls_short_says_so(crops, monkeypatch):
    """Without another choice of blocks, the rounding of decoders costs part of the radius."""
    table = certified_table(2, color_space="ycbcr")
    monkeypatch.setattr("fd_keras.lattice._ROUNDED_AGAIN", ((1.0, 0),))
    reached = certify(decode(encode_jpeg(crops[0], table)), table).linf_radius[0]
    assert 0 < reached < 2


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
    decoded = decode(encode_jpeg(image, table))
    assert decoded.shape == image.shape
    assert certify(decoded, table).linf_radius[0] >= nominal_radius(table, 3) - 1e-3
    # Half a step of DC, by which incomplete blocks may be off, is two and a half levels.
    assert np.abs(decoded - np.float64(encode(image, table))).mean() < 3


@pytest.mark.parametrize("name", TABLES)
def test_table_is_read_back(name, crops):
    table = TABLES[name]
    read = read_jpeg_table(encode_jpeg(crops[0], table))
    np.testing.assert_array_equal(read.steps, table.steps_for(3))
    assert read.color_space == "ycbcr"


def test_table_of_a_foreign_file(crops, tmp_path):
    Image.fromarray(crops[0]).save(tmp_path / "photo.jpg", quality=85)
    assert read_jpeg_table(tmp_path / "photo.jpg") == preset_table("jpeg:85")


@pytest.mark.parametrize(("step", "shared_step"), [(25, 1), (24, 8), (64, 64)])
def test_rgb_table_gives_an_rgb_file(crops, step, shared_step):
    """The same steps, but of DC: the largest whose multiples, shifted by 1024, are the layer's."""
    table = QuantizationTable(np.full((8, 8), step))
    content = encode_jpeg(crops[1], table)
    read = read_jpeg_table(content)
    assert read.color_space == "rgb"
    assert (read.steps[:, 0, 0] == shared_step).all()
    assert (read.steps == step).sum() == 3 * (63 + (shared_step == step))
    expected = np.round(FeatureDistillation(table)(crops[1]).numpy())
    assert np.abs(decode(content) - expected).mean() < 1


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


def test_large_image_has_a_table(crops, monkeypatch):
    """Its pixels are not decoded: the table of a 98-megapixel photo was refused as an attack."""
    content = encode_jpeg(crops[0], preset_table("jpeg"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 424 * 640 // 3)
    assert read_jpeg_table(content) == preset_table("jpeg")


def segments(content):
    """Marker and bytes of the segments up to the first scan, which is the last with all after."""
    position = 2
    while True:
        marker = content[position + 1]
        size = int.from_bytes(content[position + 2 : position + 4], "big")
        if marker == 0xDA:
            yield marker, content[position:]
            return
        yield marker, content[position : position + 2 + size]
        position += 2 + size


def edited(content, drop, add):
    """A file without segments of some kinds, and with others at its beginning."""
    return START + add + b"".join(data for marker, data in segments(content) if marker not in drop)


SOF, DQT, APP0, APP14 = 0xC0, 0xDB, 0xE0, 0xEE
START, END = b"\xff\xd8", b"\xff\xd9"
JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
ADOBE = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0"


@pytest.mark.parametrize("identifiers", ["RGB", "123", "other"])
@pytest.mark.parametrize("adobe", [None, 0, 1, 2])
@pytest.mark.parametrize("jfif", [True, False])
def test_colour_space_is_libjpegs(identifiers, adobe, jfif):
    """By what libjpeg decodes: a JFIF marker counts more than Adobe's, and that than names."""
    pixels = np.full((8, 8, 3), (200, 30, 90), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", keep_rgb=True, quality=100, subsampling=0)
    content = buffer.getvalue()
    add = JFIF if jfif else b""
    add += b"" if adobe is None else ADOBE + bytes([adobe])
    content = edited(content, drop=(APP0, APP14), add=add)
    names = {"RGB": b"RGB", "123": b"\x01\x02\x03", "other": b"abc"}[identifiers]
    for old, new in zip(b"RGB", names):  # in frame and scan
        content = content.replace(bytes([old, 0x11]), bytes([new, 0x11]), 1)
        content = content.replace(bytes([old, 0x00]), bytes([new, 0x00]), 1)
    decoded = np.abs(decode(content).astype(int) - pixels).max() <= 2
    assert (read_jpeg_table(content).color_space == "rgb") == decoded


def scan(*identifiers):
    parameters = b"".join(bytes([identifier, 0]) for identifier in identifiers)
    size = 6 + len(parameters)
    head = b"\xff\xda" + bytes([0, size, len(identifiers)]) + parameters + b"\0\x3f\0"
    return head + b"\x12\xff\x00\xff\xd0\x34"  # data with a stuffed zero and a restart


def frame(marker=SOF, precision=8, tables=(0, 1, 1)):
    components = b"".join(bytes([i + 1, 0x11, table]) for i, table in enumerate(tables))
    size = 8 + len(components)
    return bytes([0xFF, marker, 0, size, precision, 0, 8, 0, 8, len(tables)]) + components


def quantisation(number, steps):
    return bytes([0xFF, DQT, 0, 67, number]) + bytes(steps)


def test_tables_may_come_between_scans():
    """And a table that is defined again does not change components that have begun."""
    content = START + quantisation(0, [7] * 64) + frame() + scan(1)
    content += quantisation(1, [9] * 64) + quantisation(0, [8] * 64) + scan(2) + scan(3) + END
    steps = read_jpeg_table(content).steps
    assert (steps[0] == 7).all()
    assert (steps[1:] == 9).all()


def test_steps_of_16_bits():
    steps = np.arange(300, 364, dtype=">u2").tobytes()
    table = bytes([0xFF, DQT, 0, 131, 0x10]) + steps
    content = START + table + frame(tables=(0,)) + scan(1) + END
    assert read_jpeg_table(content).steps[0, 0, :2].tolist() == [300, 301]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([frame(), scan(1, 2, 3), END], "does not hold quantisation table 0, which component 1"),
        (
            [quantisation(0, [1] * 64), frame(), scan(1, 2, 3), END],
            "does not hold quantisation table 1, which component 2 of its image needs",
        ),
        (
            [quantisation(0, [5] * 63 + [0]), frame(tables=(0,)), scan(1), END],
            "a step of 0 in table 0",
        ),
        ([quantisation(0, [1] * 64), frame(precision=12)], "12 bits per sample, not 8"),
        ([frame(marker=0xC3)], "lossless JPEG image, which has no quantisation table"),
        ([frame(marker=0xDE)], "hierarchical"),
        ([frame(tables=(0, 0))], "has 2 components instead"),
        ([frame(tables=(0, 0, 0, 0))], "has 4 components, such as CMYK, instead"),
        ([quantisation(0, [1] * 64)[:40]], "ends within its header"),
        ([quantisation(0, [1] * 64), END], "without a scan"),
        ([scan(1)], "a scan before its frame"),
        ([b"\xff\xdb\x00\x04\x00\x01"], "incomplete table"),
        ([b"\xff\xdb\x00\x04\x10\x01"], "incomplete table"),
        ([b"\xff\xc0\x00\x05\x08\x00\x08"], "broken frame header"),
        ([frame(), frame()], "broken frame header"),
    ],
)
def test_files_without_a_table_are_named(parts, message, tmp_path):
    """Of real files, some lack their tables, as frames of films do."""
    (tmp_path / "x.jpg").write_bytes(START + b"".join(parts))
    with pytest.raises(ValueError, match=rf"`source` .*{message}.*x\.jpg"):
        read_jpeg_table(tmp_path / "x.jpg")


def test_damaged_headers_raise_nothing_but_value_errors(crops, rng):
    content = encode_jpeg(crops[0][:64, :64], preset_table("jpeg"))
    head = content.index(b"\xff\xda") + 20
    for _ in range(300):
        damaged = bytearray(content)
        for position in rng.integers(2, head, 3):
            damaged[position] = rng.integers(256)
        with contextlib.suppress(ValueError):
            read_jpeg_table(bytes(damaged[: rng.integers(2, len(content))]))


def test_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=r"`source` must be a regular file.*x\.jpg"):
        read_jpeg_table(tmp_path / "x.jpg")


@pytest.mark.parametrize("channels", [1, 3])
def test_profile_is_embedded(crops, channels):
    content = encode_jpeg(crops[0][..., :channels], "jpeg", icc_profile=b"a profile")
    assert Image.open(io.BytesIO(content)).info["icc_profile"] == b"a profile"


@pytest.mark.parametrize("table", ["jpeg", "liu2019"])
def test_software_is_named(crops, table):
    content = encode_jpeg(crops[0], table)
    named = with_software(content, "fd-keras")
    assert Image.open(io.BytesIO(named)).getexif()[0x0131] == "fd-keras"
    np.testing.assert_array_equal(decode(named), decode(content))


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
    fitted = encode_jpeg(image, "jpeg:50")
    whole = encode_jpeg(image, "jpeg:75")
    strips = []
    strip = jpeg._reproducing_strip
    monkeypatch.setattr(jpeg, "_PIXELS_AT_ONCE", 2600)
    monkeypatch.setattr(
        jpeg, "_reproducing_strip", lambda *args: strips.append(len(args[0])) or strip(*args)
    )
    assert encode_jpeg(image, "jpeg:75") == whole
    assert strips == [24] * 8 + [11]
    assert encode_jpeg(image, "jpeg:50") == fitted
