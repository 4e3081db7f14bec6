"""Real images that come with scikit-learn: handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn import datasets, model_selection

IMAGE_SIZE = 32
TEST_IMAGES = 500

_LARGEST_SAMPLE = 16


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and what they show.

    Args:
        images: float32 ``(count, 32, 32, 1)``, whole grey levels from 0 to 255.
        labels: int64 ``(count,)``, the digits.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __getitem__(self, index: slice | npt.NDArray[np.bool_]) -> ImageSet:
        return ImageSet(self.images[index], self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Digits:
    """Images to train on, and others to test on."""

    train: ImageSet
    test: ImageSet


def load_digits(seed: int) -> Digits:
    """The 1797 digits of scikit-learn, enlarged from 8x8 to 32x32.

    Args:
        seed: Decides which 500 images are set aside for testing, every digit equally often.

    Returns:
        1297 images for training and 500 for testing.

    Example:
        >>> load_digits(seed=1).test.images.shape
        (500, 32, 32, 1)

    References:
        Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    data = datasets.load_digits()
    images = np.stack([_enlarged(image) for image in data.images])
    labels = data.target.astype(np.int64)
    train_x, test_x, train_y, test_y = model_selection.train_test_split(
        images, labels, test_size=TEST_IMAGES, stratify=labels, random_state=seed
    )
    return Digits(ImageSet(train_x, train_y), ImageSet(test_x, test_y))


def _enlarged(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    small = Image.fromarray((image * (255 / _LARGEST_SAMPLE)).astype(np.float32))
    large = small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.clip(np.rint(np.asarray(large)), 0, 255).astype(np.float32)[..., np.newaxis]
