"""Image files of all supported kinds, written by Pillow and compared with numpy."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from fd_keras.data.files import DecodedImage, read_image, write_image

RNG = np.random.default_rng(11)
GREY = RNG.integers(0, 256, (13, 21), np.uint8)
RGB = RNG.integers(0, 256, (13, 21, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (13, 21), np.uint8)
RGBA = np.dstack([RGB, ALPHA])
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


def encoded(picture, file_format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("alpha", [None, ALPHA], ids=["opaque", "alpha"])
def test_colour_survives_writing_and_reading(tmp_path, suffix, alpha):
    path = tmp_path / f"image{suffix}"
    write_image(path, DecodedImage(RGB, alpha, PROFILE))
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, RGB)
    if alpha is None:
        assert image.alpha is None
    else:  # with the colours under fully transparent pixels
        np.testing.assert_array_equal(image.alpha, alpha)
    assert image.icc_profile == PROFILE


@pytest.mark.parametrize("alpha", [None, ALPHA], ids=["opaque", "alpha"])
def test_grey_png_stays_grey(tmp_path, alpha):
    path = tmp_path / "grey.png"
    write_image(path, DecodedImage(GREY[..., np.newaxis], alpha))
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, GREY[..., np.newaxis])
    assert (image.alpha is None) == (alpha is None)
    assert image.icc_profile is None
    with Image.open(path) as picture:
        assert picture.mode == ("L" if alpha is None else "LA")


def test_rgba_is_split(tmp_path):
    image = read_image(saved(tmp_path / "x.png", Image.fromarray(RGBA)))
    np.testing.assert_array_equal(image.pixels, RGB)
    np.testing.assert_array_equal(image.alpha, ALPHA)


def test_grey_jpeg_has_one_channel(tmp_path):
    path = saved(tmp_path / "x.jpg", Image.fromarray(GREY), quality=100)
    pixels = read_image(path).pixels
    assert pixels.shape == (13, 21, 1)
    assert np.abs(pixels[..., 0].astype(int) - GREY).max() <= 2


def test_one_bit_becomes_black_and_white(tmp_path):
    path = saved(tmp_path / "x.png", Image.fromarray(GREY > 99))
    np.testing.assert_array_equal(read_image(path).pixels[..., 0], np.where(GREY > 99, 255, 0))


def test_16_bit_grey_is_scaled_and_rounded(tmp_path):
    wide = RNG.integers(0, 65536, (13, 21), np.uint16)
    wide[0, :4] = 0, 65535, 128, 129
    path = saved(tmp_path / "x.png", Image.fromarray(wide))
    pixels = read_image(path).pixels
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[..., 0], np.rint(wide / 65535 * 255))


@pytest.mark.parametrize("transparency", [None, 2, bytes([255, 0, 77])])
def test_palette_becomes_colour(tmp_path, transparency):
    colors = np.array([[255, 0, 0], [0, 200, 0], [10, 20, 30]], np.uint8)
    index = RNG.integers(0, 3, (13, 21), np.uint8)
    picture = Image.fromarray(index)
    picture.putpalette(colors.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    image = read_image(saved(tmp_path / "x.png", picture, **options))
    np.testing.assert_array_equal(image.pixels, colors[index])
    if transparency is None:
        assert image.alpha is None
    else:
        opacity = [255, 255, 0] if transparency == 2 else list(transparency)
        np.testing.assert_array_equal(image.alpha, np.array(opacity, np.uint8)[index])


@pytest.mark.parametrize(("samples", "key"), [(GREY, 77), (RGB, (1, 2, 3))])
def test_colour_key_becomes_alpha(tmp_path, samples, key):
    samples = samples.copy()
    samples[4, 5] = key
    path = saved(tmp_path / "x.png", Image.fromarray(samples), transparency=key)
    image = read_image(path)
    samples = samples.reshape(13, 21, -1)
    np.testing.assert_array_equal(image.pixels, samples)
    expected = np.where((samples == key).all(-1), 0, 255)
    np.testing.assert_array_equal(image.alpha, expected)


def test_cmyk_becomes_rgb_without_its_profile(tmp_path):
    picture = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    path = saved(tmp_path / "x.jpg", picture, icc_profile=PROFILE, quality=95)
    image = read_image(path)
    assert np.abs(image.pixels.astype(int) - (0, 255, 255)).max() <= 2
    assert image.icc_profile is None


ORIENTED = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "x.png", Image.fromarray(RGBA), exif=exif)
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, ORIENTED[orientation](RGB))
    np.testing.assert_array_equal(image.alpha, ORIENTED[orientation](ALPHA))


def test_phone_photo_with_a_preview_is_its_first_frame(tmp_path):
    """Pillow calls a JPEG with further frames an animated "MPO"."""
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    path = saved(tmp_path / "x.jpg", first, format="MPO", save_all=True, append_images=[second])
    plain = saved(tmp_path / "plain.jpg", first)
    np.testing.assert_array_equal(read_image(path).pixels, read_image(plain).pixels)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_animation_is_refused(tmp_path, suffix):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    path = saved(tmp_path / f"x{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=rf"animation.*x\{suffix}"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(99)])
def test_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"holds no PNG, JPEG or WebP image.*notes\.png"):
        read_image(path)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_truncated_image_is_named(tmp_path, file_format):
    path = tmp_path / "half"
    content = encoded(Image.fromarray(RGB), file_format)
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match=r"`path` holds .*half"):
        read_image(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    file_format=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    position=st.floats(0, 1, exclude_max=True),
    replacement=st.binary(min_size=1, max_size=8),
)
def test_damaged_files_raise_nothing_but_value_errors(tmp_path, file_format, position, replacement):
    content = bytearray(encoded(Image.fromarray(RGB), file_format))
    start = int(position * len(content))
    content[start : start + len(replacement)] = replacement
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        assert read_image(path).pixels.dtype == np.uint8


@pytest.mark.parametrize("limit", [13 * 21 - 1, 20])
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, limit):
    """Pillow warns above its limit and raises above twice as much."""
    path = saved(tmp_path / "bomb.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=rf"more than {limit} pixels.*bomb\.png"):
        read_image(path)


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        read_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("name", ["x.jpg", "x.jpeg", "x.bmp", "x"])
def test_only_lossless_formats_are_written(tmp_path, name):
    with pytest.raises(ValueError, match="must end in one of"):
        write_image(tmp_path / name, DecodedImage(RGB))
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.webp"
    path.write_bytes(b"old")
    too_wide_for_webp = np.zeros((1, 16384, 3), np.uint8)
    with pytest.raises(ValueError, match="encoding error"):
        write_image(path, DecodedImage(too_wide_for_webp))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
