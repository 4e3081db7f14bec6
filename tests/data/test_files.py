"""Image files of all supported kinds, written by Pillow and compared with numpy."""

import contextlib
import errno
import io
import os
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from fd_keras.data.files import DecodedImage, Tally, read_image, write_image

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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, depth, color_type, before=b"", after=b""):
    """A PNG file of samples, with further chunks before and after its pixels."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., np.newaxis], axis=-1)[..., 8 - depth :]
        lines = [np.packbits(row.ravel()).tobytes() for row in bits]
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line for line in lines))
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def remarks_of(content):
    """The image in a file, and what is remarked on it."""
    remarks = []
    image = read_image(content, name="x", remark=lambda text, name: remarks.append((text, name)))
    return image, remarks


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


GREY_DEPTHS = [(1, 1), (2, 3), (4, 9), (8, 200), (16, 1000)]


@pytest.mark.parametrize(("depth", "key"), GREY_DEPTHS)
def test_transparent_grey_of_every_depth(depth, key):
    """As libpng expands it; Pillow compares the key with scaled samples."""
    samples = RNG.integers(0, 1 << depth, (13, 21, 1))
    samples[3:5] = key
    samples[5, :9] = key ^ 1  # of 16 bits, this is the same in 8
    beyond = (1 << depth) % 0x10000  # a bit of the chunk that is to be ignored
    content = png(samples, depth, 0, chunk(b"tRNS", struct.pack(">H", key | beyond)))
    image = read_image(content)
    wide = tf.uint16 if depth == 16 else tf.uint8
    expected = tf.io.decode_png(content, channels=4, dtype=wide).numpy()
    np.testing.assert_array_equal(image.alpha > 0, expected[..., 3] > 0)
    np.testing.assert_array_equal(image.alpha, np.where(samples[..., 0] == key, 0, 255))
    full = (1 << depth) - 1
    np.testing.assert_array_equal(image.pixels, np.rint(samples / full * 255))


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_of_every_depth(depth):
    samples = RNG.integers(0, 1 << depth, (13, 21, 3))
    samples[3:5] = key = (3, 2, 1)
    samples[5, :9] = (3, 2, 0)
    content = png(samples, depth, 2, chunk(b"tRNS", struct.pack(">3H", *key)))
    image = read_image(content)
    np.testing.assert_array_equal(image.alpha, np.where((samples == key).all(-1), 0, 255))
    np.testing.assert_array_equal(image.pixels, samples >> depth - 8)


def test_16_bit_grey_with_alpha_stays_grey():
    samples = RNG.integers(0, 65536, (13, 21, 2))
    image = read_image(png(samples, 16, 4))
    np.testing.assert_array_equal(image.pixels, samples[..., :1] >> 8)
    np.testing.assert_array_equal(image.alpha, samples[..., 1] >> 8)


def test_transparency_turns_with_the_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    before = chunk(b"tRNS", struct.pack(">H", 7)) + chunk(b"eXIf", exif.tobytes()[6:])
    samples = RNG.integers(0, 16, (13, 21, 1))
    image = read_image(png(samples, 4, 0, before))
    np.testing.assert_array_equal(image.alpha, np.rot90(np.where(samples[..., 0] == 7, 0, 255), -1))


def test_cmyk_becomes_rgb_without_its_profile():
    picture = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    image, remarks = remarks_of(encoded(picture, "JPEG", icc_profile=PROFILE, quality=95))
    assert np.abs(image.pixels.astype(int) - (0, 255, 255)).max() <= 2
    assert image.icc_profile is None
    assert remarks == [("its ICC profile is of CMYK, and was not applied to its RGB pixels", "x")]


def without_second_profile_part(content):
    """A JPEG file whose profile has two parts, and the second is missing."""
    start = content.index(b"ICC_PROFILE\0\x02\x02") - 4
    size = int.from_bytes(content[start + 2 : start + 4], "big") + 2
    return content[:start] + content[start + size :]


def bitmap_with_profile():
    """A bitmap of version 5 whose header names an embedded profile."""
    header = struct.pack("<IiiHHIIiiII", 124, 2, 1, 1, 24, 0, 8, 0, 0, 0, 0)
    header += bytes(16) + b"DEBM" + bytes(124 - len(header) - 20)
    return b"BM" + struct.pack("<IHHI", 14 + 124 + 8, 0, 0, 14 + 124) + header + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        without_second_profile_part(
            encoded(Image.fromarray(RGB), "JPEG", icc_profile=RNG.bytes(70_000))
        ),
        png(GREY[..., np.newaxis], 8, 0, chunk(b"iCCP", b"name\0\0no zlib stream")),
        bitmap_with_profile(),
    ],
    ids=["JPEG", "PNG", "BMP"],
)
def test_profile_that_is_not_read_is_named(content):
    image, remarks = remarks_of(content)
    assert image.icc_profile is None
    assert remarks == [("its ICC profile was not read", "x")]


GAMMA = (b"gAMA", struct.pack(">I", 100_000))
SRGB_GAMMA = (b"gAMA", struct.pack(">I", 45_455))
PRIMARIES = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000))
HDR = (b"cICP", b"\x09\x10\x00\x01")


@pytest.mark.parametrize(
    ("chunks", "others"),
    [
        ((), False),
        ((GAMMA,), True),
        ((SRGB_GAMMA,), False),
        ((PRIMARIES, SRGB_GAMMA), True),
        ((HDR,), True),
        (((b"cICP", b"\x01\x0d\x00\x01"),), False),
        ((SRGB_GAMMA, (b"sRGB", b"\0")), False),
    ],
)
def test_meaning_of_colours_survives(tmp_path, chunks, others):
    read = read_image(png(RGB, 8, 2, b"".join(chunk(*each) for each in chunks)))
    assert read.color_chunks == chunks
    assert read.has_other_colors == others
    write_image(tmp_path / "x.png", read)
    assert sorted(read_image(tmp_path / "x.png").color_chunks) == sorted(chunks)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.info.get("gamma") == (
            struct.unpack(">I", dict(chunks)[b"gAMA"])[0] / 1e5 if b"gAMA" in dict(chunks) else None
        )


def test_software_survives(tmp_path):
    for suffix in (".png", ".webp"):
        write_image(tmp_path / f"x{suffix}", DecodedImage(RGB, software="fd-keras"))
        assert read_image(tmp_path / f"x{suffix}").software == "fd-keras"


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


@pytest.mark.parametrize(
    ("name", "file_format"), [("x.bmp", "BMP"), ("x.gif", "GIF"), ("x.JFIF", "JPEG"), ("x", "BMP")]
)
def test_further_formats(tmp_path, name, file_format):
    colors = np.kron(RNG.integers(0, 256, (3, 4, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    path = saved(tmp_path / name, Image.fromarray(colors), format=file_format)
    difference = read_image(path).pixels.astype(int) - colors
    assert np.abs(difference).mean() <= (30 if file_format == "JPEG" else 0)


FIRST_FRAME = "an animation, of which the first frame was read"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WebP"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.fromarray(pixels) for pixels in (GREY, 255 - GREY)]
    options = {"lossless": True} if kind == "WebP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    image, remarks = remarks_of(content)
    np.testing.assert_array_equal(image.pixels[..., :1], GREY[..., np.newaxis])
    assert remarks == [(FIRST_FRAME, "x")]
    assert remarks_of(encoded(frames[0], kind, **options))[1] == []


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"TIFF" + bytes(99)])
def test_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"holds no PNG, JPEG, WebP, BMP or GIF im.*notes\.png"):
        read_image(path)


def test_kind_that_is_not_decoded_is_not_called_broken():
    with pytest.raises(
        ValueError, match=r"of a kind that is not read \(Unsupported BMP pixel depth"
    ):
        read_image(encoded(Image.fromarray(RGB), "BMP").replace(b"\x18\0", b"\x40\0", 1))


def test_jpeg_of_12_bits_is_a_jpeg():
    content = encoded(Image.fromarray(RGB), "JPEG")
    frame = content.index(b"\xff\xc0") + 4
    with pytest.raises(
        ValueError, match="a JPEG image that is broken, or not of 8 bits per sample"
    ):
        read_image(content[:frame] + b"\x0c" + content[frame + 1 :])


def test_broken_16_bit_colours_without_names_of_operations():
    content = png(RGB.astype(int) * 257, 16, 2, chunk(b"tRNS", bytes(6)))
    broken = content[:-16] + bytes(4) + content[-12:]  # the checksum of the pixels
    with pytest.raises(ValueError, match=r"`path` holds a broken PNG image\. Received"):
        read_image(broken)


BAD_EXIF = b"\x00\x08\x00\x02\x01\x12\x00\x03\0\0\0\1\0\1\0\0"


def test_broken_exif_is_ignored():
    """Pillow reads the pixels and refuses the EXIF data (its issue 5528)."""
    image, remarks = remarks_of(png(RGB, 8, 2, chunk(b"eXIf", BAD_EXIF)))
    np.testing.assert_array_equal(image.pixels, RGB)
    assert remarks == [("its EXIF data are damaged; their orientation was ignored", "x")]


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"tEXt", b"a\0b")[:-1] + b"\0",
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b"\0"),
    ],
    ids=["checksum", "large text", "gamma", "size of pixels"],
)
def test_broken_metadata_are_ignored(broken):
    before = broken + chunk(b"iCCP", b"name\0\0" + zlib.compress(PROFILE))
    image, remarks = remarks_of(png(RGB, 8, 2, before))
    np.testing.assert_array_equal(image.pixels, RGB)
    assert image.icc_profile == PROFILE
    assert remarks == [("its metadata are damaged and were ignored", "x")]


def test_broken_metadata_of_an_animation():
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    content = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    exif = b"\x00\x08\x00\x02\x01\x12\x00\x03\0\0\0\1\0\1\0\0"
    image, remarks = remarks_of(content[:33] + chunk(b"eXIf", exif) + content[33:])
    np.testing.assert_array_equal(image.pixels, RGB)
    assert (FIRST_FRAME, "x") in remarks
    assert len(remarks) == 2


@pytest.mark.parametrize("kind", ["tRNS", "IDAT"])
def test_broken_metadata_excuse_nothing_else(kind):
    broken = chunk(b"gAMA", b"\0")
    if kind == "tRNS":
        content = png(RGB, 8, 2, broken + chunk(b"tRNS", b"\0"))
    else:
        content = png(RGB, 8, 2, broken)
        content = content[:-40] + bytes(8) + content[-32:]
    with pytest.raises(ValueError, match="broken image|no PNG"):
        read_image(content)


def test_pillows_warnings_name_the_file(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a description that is cut"
    path = saved(tmp_path / "x.jpg", Image.fromarray(RGB), exif=exif.tobytes()[:-20])
    _, remarks = remarks_of(path)
    assert [name for _, name in remarks] == ["x"]
    with pytest.warns(UserWarning, match=r"x\.jpg: (Truncated|Corrupt)"):
        read_image(path)


def test_remarks_are_counted():
    tally, other = Tally(), Tally()
    for name in ("a", "b"):
        tally.add("hidden", name)
    other.add("hidden", "c")
    tally.update(other)
    assert (str(tally), tally.lines()) == ("3 hidden, such as a", ["a and 2 more: hidden"])


def test_too_little_memory_is_no_broken_image(tmp_path, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    path = saved(tmp_path / "x.png", Image.fromarray(RGB))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(OSError, match=r"too little memory.*x\.png") as error:
        read_image(path)
    assert error.value.errno == errno.ENOMEM


def test_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"must be a regular file.*x\.png"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_truncated_image_is_named(tmp_path, file_format):
    path = tmp_path / "half"
    content = encoded(Image.fromarray(RGB), file_format)
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match=r"`path` holds .*half"):
        read_image(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_threads_keep_to_their_own_limits(tmp_path, monkeypatch):
    """Pillow's limit is a global, which one thread raises while another one reads."""
    path = saved(tmp_path / "image.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            limits = [13 * 21 + number % 2 for number in range(1200)]
            for image in pool.map(lambda limit: read_image(path, max_pixels=limit), limits):
                assert image.pixels.shape == (13, 21, 3)
    finally:
        sys.setswitchinterval(interval)
    assert Image.MAX_IMAGE_PIXELS == 20


@pytest.mark.parametrize("limit", [13 * 21 - 1, 20])
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, limit):
    """Pillow warns above its limit and raises above twice as much."""
    path = saved(tmp_path / "bomb.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=rf"more than {limit} pixels.*max_pixels.*bomb\.png"):
        read_image(path)
    assert read_image(path, max_pixels=13 * 21).pixels.shape == (13, 21, 3)
    assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match=r"more than 272 pixels"):
        read_image(path, max_pixels=272)


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
