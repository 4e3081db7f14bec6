"""Handwritten digits that come with scikit-learn, and a small classifier of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn import datasets, model_selection

from fd_keras.data.labelled import LabelledImages

CLASS_NAMES = tuple("0123456789")
TEST_IMAGES = 500

_SIZE = 32
_VALUE_RANGE = (0.0, 255.0)
_LARGEST_SAMPLE = 16


@dataclass(frozen=True)
class Digits:
    """Labelled images for training and for testing.

    Args:
        train: Images float32 ``(count, 32, 32, 1)``, whole grey levels from 0 to 255; the labels
            are the digits, and the indices are those of scikit-learn's data set.
        test: Other images of the same kind.
    """

    train: LabelledImages
    test: LabelledImages


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
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=seed
    )
    return Digits(
        *(LabelledImages(images[i], labels[i], _VALUE_RANGE, i, len(labels)) for i in (train, test))
    )


def _enlarged(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    small = Image.fromarray((image * (255 / _LARGEST_SAMPLE)).astype(np.float32))
    large = small.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    return np.clip(np.rint(np.asarray(large)), 0, 255).astype(np.float32)[..., np.newaxis]


def build_classifier() -> keras.Model:
    """An untrained convolutional network from images in 0..255 to ten logits.

    Strided convolutions and batch normalisation, as in the networks that feature distillation was
    published for, make small, high-frequency perturbations effective, which is what quantisation
    can remove. A network without them yields only to perturbations larger than the quantisation
    steps.

    Example:
        >>> build_classifier().output_shape
        (None, 10)
    """
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((_SIZE, _SIZE, 1)),
            layers.Rescaling(1 / 255),
            *_strided_convolution(16),
            *_strided_convolution(32),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(len(CLASS_NAMES)),
        ],
        name="digits",
    )


def _strided_convolution(filters: int) -> list[keras.layers.Layer]:
    return [
        keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False),
        # Keras' default momentum of 0.99 needs more batches than this data set has.
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
    ]


def train_classifier(
    model: keras.Model,
    data: LabelledImages,
    *,
    epochs: int = 20,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Fit a classifier that returns logits.

    Args:
        model: The network, such as ``build_classifier`` returns; changed in place.
        data: Training images.
        epochs: Number of passes over them.
        callbacks: Keras callbacks, such as a progress bar.

    Example:
        >>> model = build_classifier()
        >>> train_classifier(model, load_digits(seed=1).train[:64], epochs=1)
    """
    model.compile(
        optimizer="adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(
        data.images, data.labels, epochs=epochs, batch_size=32, verbose=0, callbacks=[*callbacks]
    )
