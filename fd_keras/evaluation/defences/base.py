"""What every defence of an evaluation has in common."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import checked_whole
from fd_keras.tables import QuantizationTable

ImageArray = npt.NDArray[np.float32]
# Typing alias: a batch and, for random defences, one generator for each of its images.
Transform = Callable[[ImageArray, Sequence[np.random.Generator]], ImageArray]

# Mapping a model's range to 0..255 and back leaves it by a few float32 roundings.
_RANGE_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Defence:
    """A transformation of images that stands before a classifier.

    Calling it with images ``(n, height, width, channels)``, pixels 0..255, returns new ones,
    float32 of the same shape and range. Each image is treated for itself: batch size and
    order change nothing.

    A random defence draws for each image from a generator seeded with ``seed`` and a
    checksum of the image's pixels. So the same image always becomes the same result, in any
    batch and in an evaluation that was interrupted and resumed, while any change of a pixel
    changes the whole draw. An attacker who averages over the randomness (expectation over
    transformation) takes a new ``reseeded`` defence for each draw.

    Args:
        name: What reports call it, such as ``"JPEG q75"``.
        family: The kind of defence, such as ``"JPEG"``; settings of one family compete.
        transform: Maps a batch within 0..255, and one generator per image when the defence
            is random (otherwise none), to a batch of the same shape.
        settings: Everything needed to reproduce it, in plain JSON types.
        seed: Seed of a random defence; ``None`` for one that is not random.
        table: Quantisation table of a feature distillation.
        smooth: TensorFlow function of a batch of pixels 0..255 that resembles ``transform`` and
            has a useful gradient, for attackers who know the defence. ``None``: the identity
            has to do.

    Raises:
        ValueError: When called with something else than such images.

    Example:
        >>> darker = Defence("darker", "example", lambda batch, _: batch / 2, {"factor": 0.5})
        >>> darker(np.full((1, 2, 2, 1), 100)).ravel()
        array([50., 50., 50., 50.], dtype=float32)
    """

    name: str
    family: str
    transform: Transform = dataclasses.field(repr=False)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    table: QuantizationTable | None = None
    smooth: Callable[[tf.Tensor], tf.Tensor] | None = dataclasses.field(default=None, repr=False)

    @property
    def random(self) -> bool:
        """Whether another seed changes the result."""
        return self.seed is not None

    def __call__(self, images: npt.ArrayLike) -> ImageArray:
        """Transform images ``(n, height, width, channels)``, pixels 0..255, to float32 ones."""
        batch = checked_images("images", images)
        generators = [] if self.seed is None else [_generator(self.seed, i) for i in batch]
        return np.clip(np.asarray(self.transform(batch, generators), np.float32), 0, 255)

    def reseeded(self, seed: int) -> Defence:
        """The same defence with other draws; one that is not random comes back as it is.

        Args:
            seed: The new seed, not negative.

        Raises:
            ValueError: It is no such number.

        Example:
            >>> no_defence().reseeded(7).random
            False
        """
        if self.seed is None:
            return self
        seed = checked_whole("seed", seed, 0)
        return dataclasses.replace(self, seed=seed, settings={**self.settings, "seed": seed})


def no_defence() -> Defence:
    """The images as they are: the line that every defence is compared with.

    Example:
        >>> no_defence()(np.full((1, 2, 2, 1), 7)).ravel()
        array([7., 7., 7., 7.], dtype=float32)
    """
    return Defence("none", "none", lambda batch, _: batch)


def image_by_image(function: Callable[[ImageArray], npt.NDArray[np.generic]]) -> Transform:
    """A ``Transform`` that takes images ``(height, width, channels)`` one at a time.

    Example:
        >>> flip = image_by_image(lambda image: image[::-1])
        >>> flip(np.array([[[[1.0]], [[2.0]]]], np.float32), []).ravel()
        array([2., 1.], dtype=float32)
    """
    return lambda batch, _: _stacked(batch, (function(image) for image in batch))


def draw_by_draw(
    function: Callable[[ImageArray, np.random.Generator], npt.NDArray[np.generic]],
) -> Transform:
    """A ``Transform`` that takes images one at a time, each with its generator.

    Example:
        >>> noise = draw_by_draw(lambda image, generator: image + generator.random())
        >>> noise(np.zeros((1, 1, 1, 1), np.float32), [np.random.default_rng(1)]).round(2)
        array([[[[0.51]]]], dtype=float32)
    """
    return lambda batch, generators: _stacked(batch, map(function, batch, generators))


def checked_images(argument: str, images: npt.ArrayLike) -> ImageArray:
    """Return ``images`` as float32 when they are a batch of pixels from 0 to 255.

    Args:
        argument: What the error message calls them.
        images: Candidate.

    Raises:
        ValueError: They are anything else.

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


def _generator(seed: int, image: ImageArray) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(image).data)])
