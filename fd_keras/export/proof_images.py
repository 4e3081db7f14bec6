"""Real images to prove an export on where the user gives none."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from fd_keras.export.distilled import distillation_layers
from fd_keras.export.signatures import image_signature
from fd_keras.kernels import from_grey_levels

# Enough that one block that lies on a tie by chance does not hide a broken distillation.
_PIXELS = 100_000
_SMALLEST_COUNT, _LARGEST_COUNT = 2, 64

# Of an axis that the model leaves open; no multiple of 8, so that edges are repeated.
_OPEN_SIZE = 101


def proof_images(model: keras.Model) -> npt.NDArray[Any]:
    """Parts of scikit-learn's two photographs, as a model takes them.

    They have whole grey levels, scaled to the value range of the model's first
    ``FeatureDistillation`` (0..255 without one), and are the same in every run.

    Args:
        model: A built model with one image input.

    Returns:
        A batch of 2 to 64 images of the model's input type.

    Example:
        >>> proof_images(keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])).shape
        (64, 32, 32, 3)
    """
    from sklearn.datasets import load_sample_images  # slow to import

    spec = image_signature(model)
    layers = distillation_layers(model)
    channels_first = bool(layers) and layers[0].data_format == "channels_first"
    shape = [size or _OPEN_SIZE for size in spec.shape[1:]]
    height, width, channels = np.roll(shape, -1) if channels_first else shape
    count = int(np.clip(_PIXELS // (height * width), _SMALLEST_COUNT, _LARGEST_COUNT))
    photos = np.stack(load_sample_images().images)
    # Photographs repeated for models that take larger images.
    times = (1, -(-height // photos.shape[1]) + 1, -(-width // photos.shape[2]) + 1, 1)
    tiled = np.tile(photos, times)
    rng = np.random.default_rng(0)
    images = np.stack([_crop(tiled[index % 2], height, width, rng) for index in range(count)])
    images = np.tile(images, -(-channels // 3))[..., :channels]
    if channels_first:
        images = np.moveaxis(images, -1, 1)
    low, high = layers[0].value_range if layers else (0.0, 255.0)
    scaled = from_grey_levels(images.astype(np.float32), low, high)
    return np.asarray(scaled, spec.dtype.as_numpy_dtype)


def _crop(
    photo: npt.NDArray[np.uint8], height: int, width: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    top = rng.integers(photo.shape[0] - height + 1)
    left = rng.integers(photo.shape[1] - width + 1)
    return photo[top : top + height, left : left + width]
