"""Read and write single image files as 8-bit arrays."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag
from PIL.PngImagePlugin import PngInfo

from fd_keras._checks import checked_whole
from fd_keras._files import atomic_path

READABLE_FORMATS = ("PNG", "JPEG", "WebP", "BMP", "GIF")
READABLE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")

# Typing aliases: what is called with a text about a file and the file's name, and one chunk of a
# PNG file, type and data.
Remark = Callable[[str, str], None]
Chunk = tuple[bytes, bytes]

# Pillow also calls a JPEG file animated that holds a preview.
_ANIMATED_FORMATS = ("GIF", "PNG", "WEBP")

# By suffix: Pillow's format, and the options that make it lossless. `exact` keeps the colours of
# fully transparent pixels.
_LOSSLESS_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
}
LOSSLESS_SUFFIXES = tuple(_LOSSLESS_FORMATS)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _GREY_ALPHA = 0, 2, 4  # colour types of PNG

# PNG chunks that say which colours the samples mean, with their sizes, and what they hold where
# these are sRGB's.
_COLOR_CHUNKS = {b"cHRM": 32, b"cICP": 4, b"gAMA": 4, b"sRGB": 1}
_SRGB_GAMMA = 45_455
_SRGB_CHROMATICITIES = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)
_SRGB_CODE_POINTS = (b"\x01\x0d\x00\x01", b"\x01\x0d\x00\x00")
_COLOR_TOLERANCE = 1_000  # hundredths of a per cent: writers round differently

# PNG chunks that its pixels need, frames of an animation among them.
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"IEND")

# What is to be done with an array of pixels for each EXIF orientation.
_UPRIGHT: dict[object, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}

# Held while Pillow's limit, a global variable, is another one.
_LIMIT_LOCK = threading.Lock()


class Tally:
    """Files counted by a reason, with the first file for each.

    Example:
        >>> tally = Tally()
        >>> tally.add("hidden", "cat/.1.png")
        >>> tally.add("hidden", "cat/.2.png")
        >>> str(tally)
        '2 hidden, such as cat/.1.png'
        >>> tally.lines()
        ['cat/.1.png and 1 more: hidden']
    """

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, name: object, count: int = 1) -> None:
        """Count files.

        Args:
            reason: What is to be said of them.
            name: One of them.
            count: Their number.
        """
        before, first = self._counts.get(reason, (0, str(name)))
        self._counts[reason] = before + count, first

    def update(self, other: Tally) -> None:
        """Count what another tally counts.

        Args:
            other: The other one.
        """
        for reason, (count, first) in other._counts.items():
            self.add(reason, first, count)

    def clear(self) -> None:
        """Forget everything."""
        self._counts.clear()

    def entries(self) -> list[tuple[str, str, int]]:
        """Each reason with the first file and the number of files, as ``add`` takes them."""
        return [(reason, first, count) for reason, (count, first) in self._counts.items()]

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {reason}, {'such as ' if count > 1 else ''}{first}"
            for reason, (count, first) in self._counts.items()
        )

    def lines(self) -> list[str]:
        """One line for each reason."""
        return [
            f"{first}{f' and {count - 1} more' if count > 1 else ''}: {reason}"
            for reason, (count, first) in self._counts.items()
        ]


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One image with its EXIF orientation applied and 8 bits per sample.

    Args:
        pixels: uint8 ``(height, width, channels)``: 1 channel for grey, 3 for RGB.
        alpha: uint8 ``(height, width)``, or ``None`` for an image without transparency.
        icc_profile: ICC colour profile of ``pixels``, as in the file.
        color_chunks: Type and data of the PNG chunks that say which colours ``pixels`` mean.
        software: EXIF's name of the program that wrote the file.
    """

    pixels: npt.NDArray[np.uint8]
    alpha: npt.NDArray[np.uint8] | None = None
    icc_profile: bytes | None = None
    color_chunks: tuple[Chunk, ...] = ()
    software: str | None = None

    @property
    def has_other_colors(self) -> bool:
        """Whether PNG chunks, and no ICC profile, give the samples other colours than sRGB's."""
        chunks = dict(self.color_chunks)
        if self.icc_profile is not None or b"sRGB" in chunks:
            return False
        if b"cICP" in chunks:
            return chunks[b"cICP"] not in _SRGB_CODE_POINTS
        return _differs(chunks.get(b"gAMA"), (_SRGB_GAMMA,)) or _differs(
            chunks.get(b"cHRM"), _SRGB_CHROMATICITIES
        )


def _differs(data: bytes | None, numbers: tuple[int, ...]) -> bool:
    received = numbers if data is None else struct.unpack(f">{len(numbers)}I", data)
    return any(abs(one - other) > _COLOR_TOLERANCE for one, other in zip(received, numbers))


class _RefusedError(Exception):
    """The file is no image that is read, for the reason that is the message."""


def read_image(
    path: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    max_pixels: int | None = None,
    remark: Remark | None = None,
) -> DecodedImage:
    """Read a PNG, JPEG, WebP, BMP or GIF file.

    The EXIF orientation is applied. Palette and CMYK images become RGB, one-bit images become
    grey, and 16 bits per sample become 8. Of an animation, the first frame is read.

    Args:
        path: The file, or its content.
        name: Name of the file in error messages. Default: the path.
        max_pixels: Largest number of pixels that is read. Default: ``PIL.Image.MAX_IMAGE_PIXELS``.
        remark: Called with a text and ``name`` about each thing that was not read as it stands in
            the file, and with Pillow's warnings. Default: warns.

    Returns:
        The image.

    Raises:
        OSError: The file cannot be opened, or there is too little memory for its pixels.
        ValueError: The file holds no such image, a broken one, or
            too many pixels; or it is no regular file. The message names the file.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/grey.png"
        >>> write_image(path, DecodedImage(np.full((5, 7, 1), 77, np.uint8)))
        >>> read_image(path).pixels.shape
        (5, 7, 1)
    """
    if max_pixels is not None:
        checked_whole("max_pixels", max_pixels, 1)
    texts: list[str] = []
    if isinstance(path, bytes):
        name = name or f"content of {len(path)} bytes"
        image = _read(io.BytesIO(path), name, max_pixels, texts)
    else:
        name = name or os.fspath(path)
        check_regular(path)
        with open(path, "rb") as file:
            image = _read(file, name, max_pixels, texts)
    for text in dict.fromkeys(texts):
        (remark or _warn)(text, name)
    return image


def check_regular(path: str | os.PathLike[str], argument: str = "path") -> None:
    """Refuse pipes, devices and sockets, from which a read may wait forever.

    Args:
        path: The file.
        argument: Name of the caller's argument in the error message.

    Raises:
        OSError: There is no such file.
        ValueError: It is a pipe, a device or a socket.

    Example:
        >>> check_regular("/dev/null")
        Traceback (most recent call last):
        ...
        ValueError: `path` must be a regular file. Received: path='/dev/null'
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(
            f"`{argument}` must be a regular file. Received: {argument}={os.fspath(path)!r}"
        )


def write_image(path: str | os.PathLike[str], image: DecodedImage) -> None:
    """Write an image losslessly, replacing ``path`` atomically.

    Args:
        path: File to write; its suffix, ``.png`` or ``.webp``, names the format.
        image: The image. WebP cannot hold its ``color_chunks``.

    Raises:
        OSError: The file cannot be written.
        ValueError: The suffix names no lossless format, or the format cannot hold the image.

    Example:
        See ``read_image``.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _LOSSLESS_FORMATS:
        raise ValueError(
            f"`path` must end in one of {LOSSLESS_SUFFIXES}, which store pixels without loss. "
            f"Received: path={os.fspath(path)!r}"
        )
    file_format, options = _LOSSLESS_FORMATS[suffix]
    options = dict(options, icc_profile=image.icc_profile)
    if file_format == "PNG":
        chunks = PngInfo()
        for kind, data in image.color_chunks:
            chunks.add(kind, data)
        options["pnginfo"] = chunks
    if image.software is not None:
        options["exif"] = software_exif(image.software)
    channels = list(np.moveaxis(image.pixels, -1, 0))
    if image.alpha is not None:
        channels.append(image.alpha)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(channels)]
    picture = Image.merge(mode, [Image.fromarray(channel) for channel in channels])
    with atomic_path(path) as temporary:
        picture.save(temporary, file_format, **options)


def software_exif(software: str) -> bytes:
    r"""EXIF data that name the program that wrote a file.

    Args:
        software: Its name.

    Example:
        >>> software_exif("fd-keras")[:6]
        b'Exif\x00\x00'
    """
    exif = Image.Exif()
    exif[ExifTag.Software] = software
    return exif.tobytes()


def _warn(text: str, name: str) -> None:
    warnings.warn(f"{name}: {text}", stacklevel=3)


def _read(file: IO[bytes], name: str, limit: int | None, texts: list[str]) -> DecodedImage:
    """Decode a file; errors become errors about the file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = _decoded(file, limit, texts)
        except MemoryError as error:
            raise OSError(errno.ENOMEM, "too little memory for its pixels", name) from error
        # Pillow's decoders raise many types on broken files, SyntaxError among them.
        except Exception as error:
            rescued = None
            if not isinstance(error, _RefusedError):
                rescued = _without_metadata(file, limit, texts)
            if rescued is None:
                reason = _explained(error, file)
                raise ValueError(f"`path` {reason}. Received: path={name!r}") from error
            texts.append("its metadata are damaged and were ignored")
            image = rescued
    texts += [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    return image


def _decoded(file: IO[bytes], limit: int | None, texts: list[str]) -> DecodedImage:
    png = _Png.of(file)
    with _opened(file, limit) as picture:
        picture.load()
        exif = _exif(picture, texts)
        profile = _profile(picture, file, png, texts)
        pixels, alpha = _samples(picture, file, png)
        if picture.format in _ANIMATED_FORMATS and _has_more_frames(picture):
            texts.append("an animation, of which the first frame was read")
    upright = _UPRIGHT.get(exif.get(ExifTag.Orientation), np.asarray)
    software = exif.get(ExifTag.Software)
    return DecodedImage(
        np.ascontiguousarray(upright(pixels)),
        None if alpha is None else np.ascontiguousarray(upright(alpha)),
        profile,
        () if png is None else png.color_chunks,
        software if isinstance(software, str) else None,
    )


@contextlib.contextmanager
def _opened(file: IO[bytes], limit: int | None) -> Iterator[Image.Image]:
    try:
        with _LIMIT_LOCK:  # the limit is Pillow's global, which another thread may have raised
            pillows = Image.MAX_IMAGE_PIXELS
            limit = pillows if limit is None else limit
            if limit is not None and pillows is not None and limit > pillows:
                Image.MAX_IMAGE_PIXELS = limit
            try:
                picture = Image.open(file, formats=READABLE_FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = pillows
    except Image.DecompressionBombError as error:
        raise _too_large(limit) from error
    with picture:
        if limit is not None and picture.width * picture.height > limit:
            raise _too_large(limit)
        yield picture


def _too_large(limit: int | None) -> _RefusedError:
    return _RefusedError(
        f"holds more than {limit} pixels, the limit against decompression bombs; max_pixels "
        "raises it"
    )


def _exif(picture: Image.Image, texts: list[str]) -> Image.Exif:
    try:
        return picture.getexif()
    except Exception:  # Pillow's parser raises many types on broken data
        texts.append("its EXIF data are damaged; their orientation was ignored")
        return Image.Exif()


def _profile(
    picture: Image.Image, file: IO[bytes], png: _Png | None, texts: list[str]
) -> bytes | None:
    """The ICC profile of the pixels; what cannot be had of it goes to ``texts``."""
    profile = picture.info.get("icc_profile") or None
    if profile is not None and picture.mode == "CMYK":
        texts.append("its ICC profile is of CMYK, and was not applied to its RGB pixels")
        return None
    if profile is None and _names_profile(picture, file, png):
        texts.append("its ICC profile was not read")
    return profile


def _names_profile(picture: Image.Image, file: IO[bytes], png: _Png | None) -> bool:
    if picture.format == "PNG":
        return png is not None and png.has_profile
    if picture.format == "GIF":
        return bool(picture.info.get("extension", (b"",))[0].startswith(b"ICCRGBG1"))
    if picture.format == "BMP":
        file.seek(14)
        header = file.read(124)
        # The size of the header is that of version 5, and its colour space "MBED" or "LINK".
        return header[:1] == b"\x7c" and header[56:60] in (b"DEBM", b"KNIL")
    segments = getattr(picture, "applist", [])
    return any(data.startswith(b"ICC_PROFILE") for _, data in segments)


def _has_more_frames(picture: Image.Image) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # a broken second frame is one, too
        return True


def _samples(
    picture: Image.Image, file: IO[bytes], png: _Png | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
    """Pixels and alpha, as they lie in the file."""
    grey = picture.mode in ("1", "L", "LA")
    if picture.mode.startswith("I"):  # 16-bit grey; wider integers are in no readable format
        wide = np.asarray(picture, np.uint32)
        alpha = None if png is None else png.alpha(wide[..., np.newaxis], file)
        return np.uint8((wide + 128) // 257)[..., np.newaxis], alpha
    if png is not None and png.transparent is not None:
        samples = np.asarray(picture.convert("L" if grey else "RGB"))
        pixels = samples.reshape(*samples.shape[:2], -1)
        return pixels, png.alpha(pixels, file)
    if picture.has_transparency_data:
        samples = np.asarray(picture.convert("LA" if grey else "RGBA"))
        if png is not None and png.color_type == _GREY_ALPHA:
            samples = samples[..., -2:]  # Pillow makes RGB of 16-bit grey with alpha
        return samples[..., :-1], samples[..., -1]
    samples = np.asarray(picture.convert("L" if grey else "RGB"))
    return samples.reshape(*samples.shape[:2], -1), None


@dataclass(frozen=True)
class _Png:
    """What stands in a PNG file before its pixels and Pillow does not tell, or not rightly.

    Args:
        depth: Bits per sample.
        color_type: See the PNG specification.
        transparent: Samples of the transparent colour of a grey or RGB image.
        color_chunks: See ``DecodedImage``.
        has_profile: Whether there is an ICC profile.
    """

    depth: int
    color_type: int
    transparent: tuple[int, ...] | None
    color_chunks: tuple[Chunk, ...]
    has_profile: bool

    @classmethod
    def of(cls, file: IO[bytes]) -> _Png | None:
        """Read the chunks of a file; ``None`` if it is no PNG file, or a broken one."""
        chunks: dict[bytes, bytes] = {}
        for kind, data, intact in _chunks(file, (b"IHDR", b"tRNS", b"iCCP", *_COLOR_CHUNKS)):
            if kind == b"IDAT":
                break
            if intact and len(data) == _COLOR_CHUNKS.get(kind, len(data)):
                chunks.setdefault(kind, data)
        header = chunks.get(b"IHDR", b"")
        if len(header) != 13:
            return None
        depth, color_type = header[8], header[9]
        samples = {_GREY: 1, _RGB: 3}.get(color_type, 0)
        key = chunks.get(b"tRNS", b"")[: 2 * samples]
        transparent = None
        if samples and len(key) == 2 * samples:
            # Bits beyond the depth are to be ignored.
            transparent = tuple(
                value & ((1 << depth) - 1) for value in struct.unpack(f">{samples}H", key)
            )
        return cls(
            depth,
            color_type,
            transparent,
            tuple((kind, chunks[kind]) for kind in _COLOR_CHUNKS if kind in chunks),
            b"iCCP" in chunks,
        )

    def alpha(self, samples: npt.NDArray[Any], file: IO[bytes]) -> npt.NDArray[np.uint8] | None:
        """Alpha of the transparent colour; of samples scaled to 8 bits, or 16 bits of grey."""
        if self.transparent is None:
            return None
        if self.depth == 16 and self.color_type == _RGB:  # of which Pillow reads 8 bits
            file.seek(0)
            try:
                opaque = tf.io.decode_png(file.read(), 4, tf.uint16).numpy()[..., 3] > 0
            except tf.errors.OpError as error:  # libpng is stricter than Pillow
                raise _RefusedError("holds a broken PNG image") from error
        else:
            scale = 1 if self.depth == 16 else 255 // ((1 << self.depth) - 1)
            opaque = (samples != np.array(self.transparent) * scale).any(-1)
        return np.uint8(opaque) * np.uint8(255)


def _chunks(file: IO[bytes], wanted: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes, bool]]:
    """Type, data and intactness of the chunks of a PNG file; data only of ``wanted`` ones."""
    file.seek(0)
    if file.read(8) != _PNG_SIGNATURE:
        return
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in wanted:
            data = file.read(length)
            yield kind, data, file.read(4) == zlib.crc32(kind + data).to_bytes(4, "big")
        else:
            file.seek(length + 4, os.SEEK_CUR)
            yield kind, b"", False


def _without_metadata(file: IO[bytes], limit: int | None, texts: list[str]) -> DecodedImage | None:
    """Decode a PNG file without the chunks that its pixels do not need, if that is possible."""
    for more in ((b"iCCP", *_COLOR_CHUNKS), ()):
        content, dropped = [_PNG_SIGNATURE], False
        for kind, data, intact in _chunks(file, (*_PIXEL_CHUNKS, *more)):
            if intact and len(data) == _COLOR_CHUNKS.get(kind, len(data)):
                sizes = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
                content += [sizes[0], kind, data, sizes[1]]
            elif kind in _PIXEL_CHUNKS:
                return None
            else:
                dropped = True
        if dropped:
            found: list[str] = []
            with contextlib.suppress(Exception):
                image = _decoded(io.BytesIO(b"".join(content)), limit, found)
                texts += found
                return image
    return None


def _explained(error: Exception, file: IO[bytes]) -> str:
    if isinstance(error, _RefusedError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        file.seek(0)
        if file.read(3) == b"\xff\xd8\xff":
            return "holds a JPEG image that is broken, or not of 8 bits per sample"
        *most, last = READABLE_FORMATS
        return f"holds no {', '.join(most)} or {last} image"
    # Pillow says so of kinds that it does not decode.
    unknown = any(words in str(error).lower() for words in ("unsupported", "cannot handle"))
    return (
        f"holds {'an image of a kind that is not read' if unknown else 'a broken image'} ({error})"
    )
