"""Read and write single image files as 8-bit arrays."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fd_keras._files import atomic_path

READABLE_FORMATS = ("PNG", "JPEG", "WebP")
READABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# By suffix: Pillow's format, and the options that make it lossless. `exact` keeps the colours of
# fully transparent pixels.
_LOSSLESS_FORMATS = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
}
LOSSLESS_SUFFIXES = tuple(_LOSSLESS_FORMATS)


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One image with its EXIF orientation applied and 8 bits per sample.

    Args:
        pixels: uint8 ``(height, width, channels)``: 1 channel for grey, 3 for RGB.
        alpha: uint8 ``(height, width)``, or ``None`` for an image without transparency.
        icc_profile: ICC colour profile of ``pixels``, as in the file.
    """

    pixels: npt.NDArray[np.uint8]
    alpha: npt.NDArray[np.uint8] | None = None
    icc_profile: bytes | None = None


def read_image(path: str | os.PathLike[str] | bytes, *, name: str | None = None) -> DecodedImage:
    """Read a PNG, JPEG or WebP file.

    The EXIF orientation is applied. Palette and CMYK images become RGB, one-bit images become
    grey, and 16 bits per sample become 8.

    Args:
        path: The file, or its content.
        name: Name of the file in error messages. Default: the path.

    Returns:
        The image.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file holds no such image, a broken one, an animation, or one with so many
            pixels that Pillow takes it for a decompression bomb. The message names the file.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/grey.png"
        >>> write_image(path, DecodedImage(np.full((5, 7, 1), 77, np.uint8)))
        >>> read_image(path).pixels.shape
        (5, 7, 1)
    """
    with opened_picture(path, name=name) as picture:
        _refuse_animation(picture)
        return _decoded(ImageOps.exif_transpose(picture))


@contextmanager
def opened_picture(
    source: str | os.PathLike[str] | bytes,
    *,
    argument: str = "path",
    name: str | None = None,
    formats: tuple[str, ...] = READABLE_FORMATS,
) -> Iterator[Image.Image]:
    """Open an image file with Pillow; errors in the block become errors about the file.

    Args:
        source: The file, or its content.
        argument: Name of the caller's argument in error messages.
        name: Name of the file in error messages. Default: the path.
        formats: Pillow's names of the formats that are accepted.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file holds no such image, a broken one, or one with so many pixels that
            Pillow takes it for a decompression bomb. The message names the file.

    Example:
        >>> with opened_picture(b"no image"):
        ...     pass
        Traceback (most recent call last):
        ...
        ValueError: `path` holds no PNG, JPEG or WebP image. Received: path='content of 8 bytes'
    """
    if isinstance(source, bytes):
        opened: IO[bytes] = io.BytesIO(source)
        name = name or f"content of {len(source)} bytes"
    else:
        opened = open(source, "rb")  # noqa: SIM115  # closed by the block below
        name = name or os.fspath(source)
    with opened as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=formats) as picture:
                yield picture
        # Pillow's decoders raise many types on broken files, SyntaxError among them.
        except Exception as error:
            reason = _explained(error, formats)
            raise ValueError(f"`{argument}` {reason}. Received: {argument}={name!r}") from error


def write_image(path: str | os.PathLike[str], image: DecodedImage) -> None:
    """Write an image losslessly, replacing ``path`` atomically.

    Args:
        path: File to write; its suffix, ``.png`` or ``.webp``, names the format.
        image: The image.

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
    channels = list(np.moveaxis(image.pixels, -1, 0))
    if image.alpha is not None:
        channels.append(image.alpha)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(channels)]
    picture = Image.merge(mode, [Image.fromarray(channel) for channel in channels])
    with atomic_path(path) as temporary:
        picture.save(temporary, file_format, icc_profile=image.icc_profile, **options)


def _decoded(image: Image.Image) -> DecodedImage:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16-bit grey; wider integers are in no readable format
        wide = np.asarray(image, np.uint32)
        return DecodedImage(np.uint8((wide + 128) // 257)[..., np.newaxis], None, profile)
    if image.mode == "CMYK":
        profile = None  # it describes CMYK, not the converted RGB
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        samples = np.asarray(image.convert("LA" if grey else "RGBA"))
        return DecodedImage(samples[..., :-1], samples[..., -1], profile)
    samples = np.asarray(image.convert("L" if grey else "RGB"))
    return DecodedImage(samples.reshape(*samples.shape[:2], -1), None, profile)


class _AnimationError(Exception):
    """The file holds an animation."""


def _refuse_animation(image: Image.Image) -> None:
    # A phone's JPEG may carry previews as further frames ("MPO"); the first is the photo.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise _AnimationError


def _explained(error: Exception, formats: tuple[str, ...]) -> str:
    if isinstance(error, UnidentifiedImageError):
        *most, last = formats
        return f"holds no {', '.join(most)}{' or ' if most else ''}{last} image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"holds more than {Image.MAX_IMAGE_PIXELS} pixels, which Pillow takes for an attack"
    if isinstance(error, _AnimationError):
        return "holds an animation; extract its frames first"
    return f"holds a broken image ({error})"
