"""ART's attacks on Keras classifiers.

What an attack is generated on decides the threat model. On the classifier alone it is
*gray-box*: the attacker knows the classifier, not the layer. On a model that ``protect``
returned, the attacker knows both and differentiates through the layer with its
straight-through gradient (BPDA, Athalye et al. 2018); an *adaptive* evaluation starts there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from fd_keras.evaluation.accuracy import checked_labels
from fd_keras.extras import import_extra

# Typing alias: told how many images have just been attacked.
OnBatch = Callable[[int], None]


def art_classifier(model: keras.Model, *, value_range: Sequence[float] = (0, 255)) -> Any:
    """A Keras classifier as ART sees it.

    Args:
        model: A built model from one image input to logits ``(batch, classes)``. A softmax
            at its end would make its gradients vanish and every attack look weak.
        value_range: Lowest and highest pixel value; no attack leaves it.

    Returns:
        An ``art.estimators.classification.TensorFlowV2Classifier``.

    Raises:
        ImportError: ART is not installed.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> art_classifier(model).nb_classes
        2

    References:
        Nicolae et al., "Adversarial Robustness Toolbox", arXiv:1807.01069.
    """
    low, high = value_range
    art = import_extra("art.estimators.classification", "evaluate")
    return art.TensorFlowV2Classifier(
        model=model,
        nb_classes=int(model.output_shape[-1]),
        input_shape=tuple(model.input_shape[1:]),
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(float(low), float(high)),
    )


def fgsm(
    classifier: Any,
    images: npt.NDArray[np.generic],
    labels: npt.NDArray[np.integer],
    *,
    epsilon: float,
    batch_size: int = 64,
    on_batch: OnBatch | None = None,
) -> npt.NDArray[np.float32]:
    """Move every pixel by ``epsilon`` along the sign of the loss gradient, once.

    Args:
        classifier: What ``art_classifier`` returned.
        images: Batch within the classifier's value range.
        labels: True classes ``(batch,)``, integers.
        epsilon: Change of a pixel, in the unit of the value range.
        batch_size: Number of images that are attacked at once.
        on_batch: Called with the number of images just attacked, for a progress bar.

    Returns:
        Attacked images, clipped to the value range.

    Raises:
        ValueError: An argument does not fit.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> image = np.array([[[[100.0], [90.0]]]], np.float32)
        >>> fgsm(art_classifier(model), image, np.array([0]), epsilon=8).ravel()
        array([92., 98.], dtype=float32)

    References:
        Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015.
    """
    attack = import_extra("art.attacks.evasion", "evaluate").FastGradientMethod(
        classifier, norm=np.inf, eps=float(epsilon), batch_size=batch_size
    )
    return _in_batches(attack, images, labels, on_batch)


def bim(
    classifier: Any,
    images: npt.NDArray[np.generic],
    labels: npt.NDArray[np.integer],
    *,
    epsilon: float,
    step: float,
    iterations: int = 10,
    batch_size: int = 64,
    on_batch: OnBatch | None = None,
) -> npt.NDArray[np.float32]:
    """Repeat small signed gradient steps, never further than ``epsilon`` from the image.

    Args:
        classifier: What ``art_classifier`` returned.
        images: Batch within the classifier's value range.
        labels: True classes ``(batch,)``, integers.
        epsilon: Largest change of a pixel, in the unit of the value range.
        step: Change of a pixel in one iteration, at most ``epsilon``.
        iterations: Number of steps.
        batch_size: Number of images that are attacked at once.
        on_batch: Called with the number of images just attacked, for a progress bar.

    Returns:
        Attacked images, clipped to the value range.

    Raises:
        ValueError: An argument does not fit.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> image = np.array([[[[100.0], [90.0]]]], np.float32)
        >>> bim(art_classifier(model), image, np.array([0]), epsilon=8, step=3).ravel()
        array([92., 98.], dtype=float32)

    References:
        Kurakin et al., "Adversarial Examples in the Physical World", 2017.
    """
    attack = import_extra("art.attacks.evasion", "evaluate").BasicIterativeMethod(
        classifier,
        eps=float(epsilon),
        eps_step=float(step),
        max_iter=iterations,
        batch_size=batch_size,
        verbose=False,
    )
    return _in_batches(attack, images, labels, on_batch)


def _in_batches(
    attack: Any,
    images: npt.NDArray[np.generic],
    labels: npt.NDArray[np.integer],
    on_batch: OnBatch | None,
) -> npt.NDArray[np.float32]:
    labels = checked_labels(labels, len(images))
    classes = attack.estimator.nb_classes
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"`labels` must lie from 0 to {classes - 1}, the classifier's classes. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    low, high = attack.estimator.clip_values.tolist()
    # Comparisons with NaN are false, so this refuses NaN too.
    if not (images.min() >= low and images.max() <= high):
        raise ValueError(
            f"`images` must lie within the classifier's value range, {low:g} to {high:g}. "
            f"Received: images from {images.min():g} to {images.max():g}"
        )
    attacked = []
    for start in range(0, len(images), attack.batch_size):
        batch = slice(start, start + attack.batch_size)
        attacked.append(attack.generate(images[batch].astype(np.float32), labels[batch]))
        if on_batch:
            on_batch(len(attacked[-1]))
    return np.concatenate(attacked)
