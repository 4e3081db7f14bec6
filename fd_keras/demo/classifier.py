"""A small convolutional network for the digits."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from fd_keras.demo.digits import IMAGE_SIZE, ImageSet

_CLASSES = 10


def build_classifier() -> keras.Model:
    """An untrained network from images in 0..255 to ten logits.

    Strided convolutions and batch normalisation, as in the networks that feature
    distillation was published for. Both matter: they make small, high-frequency
    perturbations effective, which is what quantisation can remove. A network without them
    only yields to perturbations larger than the quantisation steps.

    Example:
        >>> build_classifier().output_shape
        (None, 10)
    """
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1)),
            layers.Rescaling(1 / 255),
            *_strided_convolution(16),
            *_strided_convolution(32),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(_CLASSES),
        ],
        name="digits",
    )


def train_classifier(
    model: keras.Model,
    data: ImageSet,
    *,
    epochs: int = 20,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Fit ``build_classifier``'s network.

    Args:
        model: The network; changed in place.
        data: Training images.
        epochs: Number of passes over them.
        callbacks: Keras callbacks, such as a progress bar.

    Example:
        >>> from fd_keras.demo import load_digits
        >>> model = build_classifier()
        >>> train_classifier(model, load_digits(seed=1).train[:64], epochs=1)
    """
    model.compile(
        optimizer="adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(
        data.images, data.labels, epochs=epochs, batch_size=32, verbose=0, callbacks=[*callbacks]
    )


def _strided_convolution(filters: int) -> list[keras.layers.Layer]:
    return [
        keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False),
        # Keras' default momentum of 0.99 needs more batches than this data set has.
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
    ]
