"""JPEG compression, with one quality or with a random quality for each block."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL
import tensorflow as tf
from PIL import Image, features

from fd_keras._checks import checked_whole, shown
from fd_keras.certification import certify
from fd_keras.dct import BLOCK_SIZE
from fd_keras.evaluation.defences.base import (
    Defence,
    Encoder,
    ImageArray,
    Stored,
    as_picture,
    draw_by_draw,
    image_by_image,
)
from fd_keras.evaluation.defences.distillation import aimed_distillation, smooth_distillation
from fd_keras.presets import preset_table

Subsampling = Literal["4:2:0", "4:4:4"]

_SHIELD_QUALITIES = (20, 40, 60, 80)

# By how much libjpeg's DCT in whole numbers may differ from the exact one, in grey levels of
# radius: half a unit of a coefficient, several times the sum of its roundings.
_CODEC_DCT = 0.08
# It rounds Y, Cb and Cr to whole numbers before the DCT.
_CODEC_COLOUR = 0.5
# Pixels are rounded to whole numbers first: what lies below this is no change at all.
_CODEC_PIXEL = 0.499


def jpeg_compression(quality: int = 75, *, subsampling: Subsampling = "4:2:0") -> Defence:
    """Compress images to JPEG and decompress them, by Pillow's libjpeg.

    Pixels are rounded to 8 bits first, as a JPEG file holds nothing else.

    In two passes, images are stored as JPEG files of the same kind and attacked as they are
    decoded. With 4:4:4 and for grey images, a radius is certified that accounts for the codec's
    own roundings; with 4:2:0 none is.

    Args:
        quality: libjpeg's quality, from 1 to 100.
        subsampling: Resolution of the chroma channels: ``"4:2:0"`` is half in both directions,
            Pillow's default and the choice of the literature; ``"4:4:4"`` is full resolution. No
            effect on grey images.

    Returns:
        The defence, for images with 1 or 3 channels.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> defence = jpeg_compression(30)
        >>> defence.name, defence(np.full((1, 8, 8, 1), 128)).ravel()[:2]
        ('JPEG q30', array([128., 128.], dtype=float32))

    References:
        Dziugaite et al., "A study of the effect of JPG compression on adversarial images",
        2016; Guo et al., "Countering Adversarial Images using Input Transformations",
        ICLR 2018.
    """
    quality = checked_whole("quality", quality, 1, 100)
    if subsampling not in ("4:2:0", "4:4:4"):
        raise ValueError(
            f"`subsampling` must be '4:2:0' or '4:4:4'. Received: subsampling={shown(subsampling)}"
        )
    suffix = "" if subsampling == "4:2:0" else f" {subsampling}"
    return Defence(
        f"JPEG q{quality}{suffix}",
        "JPEG",
        image_by_image(lambda image: _round_trip(_eight_bits(image), quality, subsampling)),
        {"quality": quality, "subsampling": subsampling, "library": _library()},
        smooth=_smooth_jpeg([quality]),
        encoder=Encoder(
            functools.partial(_stored, quality=quality, subsampling=subsampling),
            "JPEG",
            functools.partial(_radii, quality=quality, subsampling=subsampling),
            functools.partial(aimed_distillation, table=preset_table("jpeg", quality=quality)),
        ),
    )


def _stored(images: npt.NDArray[np.floating], *, quality: int, subsampling: Subsampling) -> Stored:
    """Images as they are decoded from JPEG files, and the sizes of the files."""
    pixels = [_eight_bits(image) for image in images]
    decoded = [_round_trip(image, quality, subsampling) for image in pixels]
    # Optimal codes, as `encode_jpeg` has them, change the size of a file alone.
    files = [_jpeg_file(image, quality, subsampling, optimize=True) for image in pixels]
    return np.stack(decoded), np.array([len(file.getvalue()) for file in files], np.int64)


def _radii(
    images: npt.NDArray[np.uint8], *, quality: int, subsampling: Subsampling
) -> npt.NDArray[np.float64] | None:
    """What a second round trip through the codec provably removes, in grey levels."""
    colour = images.shape[-1] == 3
    if colour and subsampling != "4:4:4":
        return None
    exact = certify(images, preset_table("jpeg", quality=quality)).linf_radius
    left = exact - _CODEC_DCT - (_CODEC_COLOUR if colour else 0)
    return np.asarray(np.maximum(np.floor(left), 0) + _CODEC_PIXEL)


def stochastic_local_quantisation(
    qualities: Sequence[int] = _SHIELD_QUALITIES, *, seed: int = 1
) -> Defence:
    """SHIELD's SLQ: compress each 8x8 block to JPEG with a random quality.

    The whole image is compressed with every quality (4:2:0, as ``jpeg_compression`` does), and
    each block is taken from one of the results, drawn uniformly.

    Args:
        qualities: libjpeg's qualities, from 1 to 100.
        seed: Seed of the draws, see ``Defence``.

    Returns:
        The defence, for images with 1 or 3 channels.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> defence = stochastic_local_quantisation()
        >>> defence.name, defence.random, defence(np.full((2, 16, 20, 3), 128)).shape
        ('SLQ 20-80', True, (2, 16, 20, 3))

    References:
        Das et al., "SHIELD: Fast, Practical Defense and Vaccination for Deep Learning using
        JPEG Compression", KDD 2018. (SHIELD also retrains the classifier and uses an ensemble;
        this is its transformation alone.)
    """
    values = tuple(checked_whole("qualities", quality, 1, 100) for quality in qualities)
    if not values:
        raise ValueError(f"`qualities` must hold a quality. Received: qualities={shown(qualities)}")
    label = "20-80" if values == _SHIELD_QUALITIES else "/".join(map(str, values))

    def quantise(image: ImageArray, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
        pixels = _eight_bits(image)
        versions = np.stack([_round_trip(pixels, quality, "4:2:0") for quality in values])
        return versions_by_block(versions, generator)

    return Defence(
        f"SLQ {label}",
        "SLQ",
        draw_by_draw(quantise),
        {
            "qualities": list(values),
            "block": BLOCK_SIZE,
            "subsampling": "4:2:0",
            "library": _library(),
            "seed": seed,
        },
        seed=checked_whole("seed", seed, 0),
        smooth=_smooth_jpeg(values),
    )


def versions_by_block(
    versions: npt.NDArray[np.uint8], generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draw each 8x8 block of an image from one of several versions of it.

    Args:
        versions: Array ``(versions, height, width, channels)``; blocks at the lower and right
            edges may be incomplete.
        generator: Source of the draws, which are uniform and independent.

    Returns:
        Array ``(height, width, channels)``.

    Example:
        >>> versions = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1).repeat(16, axis=2)
        >>> versions_by_block(versions, np.random.default_rng(5)).ravel()
        array([2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3], dtype=uint8)
    """
    count, height, width, _ = versions.shape
    grid = (-(-height // BLOCK_SIZE), -(-width // BLOCK_SIZE))
    drawn = generator.integers(count, size=grid)
    pixels = drawn.repeat(BLOCK_SIZE, axis=0).repeat(BLOCK_SIZE, axis=1)[:height, :width]
    return np.take_along_axis(versions, pixels[np.newaxis, :, :, np.newaxis], axis=0)[0]


def _eight_bits(image: ImageArray) -> npt.NDArray[np.uint8]:
    if image.shape[-1] not in (1, 3):
        raise ValueError(
            f"`images` must have 1 or 3 channels for JPEG. Received: {image.shape[-1]} channels"
        )
    return np.rint(image).clip(0, 255).astype(np.uint8)


def _round_trip(
    pixels: npt.NDArray[np.uint8], quality: int, subsampling: Subsampling
) -> npt.NDArray[np.uint8]:
    with Image.open(_jpeg_file(pixels, quality, subsampling)) as decoded:
        return np.asarray(decoded).reshape(pixels.shape)


def _jpeg_file(
    pixels: npt.NDArray[np.uint8], quality: int, subsampling: Subsampling, *, optimize: bool = False
) -> io.BytesIO:
    file = io.BytesIO()
    as_picture(pixels).save(
        file, "JPEG", quality=quality, subsampling=subsampling, optimize=optimize
    )
    return file


def _smooth_jpeg(qualities: Sequence[int]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Mean over qualities of quantisation with libjpeg's tables, at full chroma resolution."""
    tables = [preset_table("jpeg", quality=quality) for quality in qualities]
    return functools.partial(smooth_distillation, tables=tables)


def _library() -> str:
    turbo = features.version_feature("libjpeg_turbo")
    codec = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return f"Pillow {PIL.__version__}, {codec}"
