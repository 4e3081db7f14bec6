"""The type of all defences."""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from fd_keras._checks import checked_whole
from fd_keras.tables import QuantizationTable

ImageArray = npt.NDArray[np.float32]
# Typing alias: from a batch and, for random defences, one generator per image to a batch.
Transform = Callable[[ImageArray, Sequence[np.random.Generator]], ImageArray]

# Typing alias: the stored images, and the size of the file of each in bytes.
Stored = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

# Mapping a value range to 0..255 may leave it by a few float32 roundings.
_RANGE_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """How a defender stores images before an attacker acts: the first of two passes.

    Args:
        store: Function of a batch ``(n, height, width, channels)``, pixels from 0 to 255, that
            returns the stored images, whole pixel values of the same shape, and the size of the
            file of each in bytes.
        file: Format of that file: ``"JPEG"`` or ``"PNG"``.
        radii: Function of stored images that returns how many grey levels each pixel may change
            without any change of what the defence makes of the image, ``(n,)``; ``None`` where
            nothing is proven.
        aimed: TensorFlow function of a batch, pixels from 0 to 255, whose gradient aims at what
            is nearest to another level, for the half-step attack; ``None``: the identity's
            gradient does so already.

    Example:
        >>> images, sizes = no_defence().encoder.store(np.full((1, 8, 8, 3), 7.2))
        >>> images[0, 0, 0], bool(sizes[0] < 100)
        (array([7, 7, 7], dtype=uint8), True)
    """

    store: Callable[[npt.NDArray[Any]], Stored]
    file: str
    radii: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float64] | None]
    aimed: Callable[[tf.Tensor], tf.Tensor] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Defence:
    """A transformation of images before they are classified.

    It is called with images ``(n, height, width, channels)``, pixels from 0 to 255, and returns
    float32 images of the same shape and range. Each image is transformed independently of the
    others in its batch.

    A random defence draws for each image from a generator that is seeded with ``seed`` and a
    checksum of the image's pixels. The same image gives the same result in any batch, also in an
    evaluation that was interrupted and resumed, while a change of any pixel changes all draws.
    An attacker who averages over the draws (EOT) takes a new ``reseeded`` defence for each.

    Args:
        name: Name in reports, such as ``"JPEG q75"``.
        family: Name that all settings of such a defence share, such as ``"JPEG"``.
        transform: Function of a batch, pixels from 0 to 255, and of one generator per image if
            the defence is random (otherwise none). It returns a batch of the same shape.
        settings: Everything needed to reproduce the defence, as plain JSON types.
        seed: Seed of a random defence; ``None`` for a deterministic one.
        table: Quantisation table of a feature distillation.
        smooth: TensorFlow function of a batch, pixels from 0 to 255, that approximates
            ``transform`` and has a useful gradient, for adaptive attacks (BPDA). ``None``: the
            gradient of the identity is used, or with a ``table`` of soft thresholding its own.
        encoder: How images are stored before they are attacked, in two passes; ``None``: the
            defence has no such encoder, and is judged in one pass only.
        graph: TensorFlow function that does what ``transform`` does, for attackers to build into
            their own graph. ``None``: they call ``transform`` by way of Python, which must then
            not call TensorFlow: it would wait forever where TensorFlow has a single thread. A
            ``table`` is built in without it.

    Raises:
        ValueError: It is called with something else than such images.

    Example:
        >>> darker = Defence("darker", "example", lambda batch, _: batch / 2, {"factor": 0.5})
        >>> darker(np.full((1, 2, 2, 1), 100)).ravel()
        array([50., 50., 50., 50.], dtype=float32)
    """

    name: str
    family: str
    transform: Transform = dataclasses.field(repr=False)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    seed: int | None = None
    table: QuantizationTable | None = None
    smooth: Callable[[tf.Tensor], tf.Tensor] | None = dataclasses.field(default=None, repr=False)
    encoder: Encoder | None = dataclasses.field(default=None, repr=False)
    graph: Callable[[tf.Tensor], tf.Tensor] | None = dataclasses.field(default=None, repr=False)

    @property
    def random(self) -> bool:
        """Whether the result depends on a seed."""
        return self.seed is not None

    def __call__(self, images: npt.ArrayLike) -> ImageArray:
        """Transform images ``(n, height, width, channels)``, pixels from 0 to 255."""
        batch = checked_images("images", images)
        generators = [] if self.seed is None else [_generator(self.seed, i) for i in batch]
        return np.clip(np.asarray(self.transform(batch, generators), np.float32), 0, 255)

    def reseeded(self, seed: int) -> Defence:
        """Return the same defence with another seed; a deterministic one is returned as it is.

        Args:
            seed: The new seed, a whole number that is not negative.

        Raises:
            ValueError: ``seed`` is anything else.

        Example:
            >>> no_defence().reseeded(7).random
            False
        """
        if self.seed is None:
            return self
        seed = checked_whole("seed", seed, 0)
        return dataclasses.replace(self, seed=seed, settings={**self.settings, "seed": seed})


def no_defence() -> Defence:
    """No defence: images stay as they are.

    Example:
        >>> no_defence()(np.full((1, 2, 2, 1), 7)).ravel()
        array([7., 7., 7., 7.], dtype=float32)
    """
    encoder = Encoder(lambda images: stored_as_png(np.rint(images)), "PNG", lambda _: None)
    return Defence("none", "none", lambda batch, _: batch, encoder=encoder)


def stored_as_png(images: npt.NDArray[Any]) -> Stored:
    """Store images of whole pixel values as they are, in PNG files.

    Args:
        images: ``(n, height, width, channels)`` from 0 to 255, with 1 or 3 channels.

    Example:
        >>> stored_as_png(np.full((1, 8, 8, 1), 7.0))[0].dtype
        dtype('uint8')
    """
    pixels = images.clip(0, 255).astype(np.uint8)
    return pixels, np.array([_png_size(image) for image in pixels], np.int64)


def as_picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """A picture of an image ``(height, width, channels)``, which Pillow writes to files.

    Example:
        >>> as_picture(np.zeros((2, 3, 1), np.uint8)).size
        (3, 2)
    """
    # Pillow takes grey images without a channel axis.
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def image_by_image(function: Callable[[ImageArray], npt.NDArray[np.generic]]) -> Transform:
    """Make a ``Transform`` of a function of one image ``(height, width, channels)``.

    Example:
        >>> flip = image_by_image(lambda image: image[::-1])
        >>> flip(np.array([[[[1.0]], [[2.0]]]], np.float32), []).ravel()
        array([2., 1.], dtype=float32)
    """
    return lambda batch, _: _stacked(batch, (function(image) for image in batch))


def draw_by_draw(
    function: Callable[[ImageArray, np.random.Generator], npt.NDArray[np.generic]],
) -> Transform:
    """Make a ``Transform`` of a function of one image and its generator.

    Example:
        >>> noise = draw_by_draw(lambda image, generator: image + generator.random())
        >>> noise(np.zeros((1, 1, 1, 1), np.float32), [np.random.default_rng(1)]).round(2)
        array([[[[0.51]]]], dtype=float32)
    """
    return lambda batch, generators: _stacked(batch, map(function, batch, generators))


def checked_images(argument: str, images: npt.ArrayLike) -> ImageArray:
    """Return ``images`` as float32 if they are a batch of pixels from 0 to 255.

    Args:
        argument: Name of the argument in error messages.
        images: Images ``(n, height, width, channels)``.

    Raises:
        ValueError: ``images`` are anything else.

    Example:
        >>> checked_images("images", np.zeros((2, 8, 8, 3), np.uint8)).dtype
        dtype('float32')
    """
    batch = np.asarray(images, np.float32)
    if batch.ndim != 4:
        raise ValueError(
            f"`{argument}` must be a batch (n, height, width, channels). "
            f"Received: {argument} of shape {batch.shape}"
        )
    # Comparisons with NaN are false, so this refuses NaN too.
    if batch.size and not (
        batch.min() >= -_RANGE_TOLERANCE and batch.max() <= 255 + _RANGE_TOLERANCE
    ):
        raise ValueError(
            f"`{argument}` must have pixels from 0 to 255. "
            f"Received: {argument} from {batch.min():g} to {batch.max():g}"
        )
    return batch


def _stacked(batch: ImageArray, results: Any) -> ImageArray:
    out = np.empty_like(batch)
    for target, result in zip(out, results):
        target[...] = result
    return out


def _png_size(image: npt.NDArray[np.uint8]) -> int:
    file = io.BytesIO()
    as_picture(image).save(file, "PNG", optimize=True)
    return file.tell()


def _generator(seed: int, image: ImageArray) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(image).data)])
