"""Select the images of an evaluation, and the best setting of a family of defences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages, batches_with_labels
from fd_keras.evaluation.defences import Defence
from fd_keras.evaluation.workbench import AttackedImages, Workbench

# Typing alias: benign images and attacked ones.
ImageSets = tuple[AttackedImages, Sequence[AttackedImages]]


def select(
    classifier: Classifier,
    data: Any,
    *,
    max_images: int,
    batch_size: int,
    only_correct: bool = True,
) -> LabelledImages:
    """Select the first images, by default of those that the classifier alone gets right.

    Args:
        classifier: The classifier without any defence.
        data: ``(images, labels)``, a ``tf.data.Dataset``, a ``PyDataset`` or an iterable of
            batches ``(images, labels)``; images in the classifier's value range, labels as
            integers.
        max_images: Maximum number of images.
        batch_size: Number of images classified at once.
        only_correct: Whether to leave out images that are classified wrongly.

    Returns:
        The images, with their indices in ``data`` and the number of images that were read.

    Raises:
        ValueError: Images, labels and classifier do not fit, or no image is classified
            correctly.
        TypeError: ``data`` is of another type.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> images = np.array([[[[9], [0]]], [[[9], [0]]], [[[0], [9]]]])
        >>> data = images, np.array([1, 0, 1])
        >>> select(Classifier(model), data, max_images=9, batch_size=2).indices
        array([1, 2])
    """
    images, labels, indices, seen, found, right = [], [], [], 0, 0, 0
    for batch, classes in batches_with_labels(data, batch_size):
        correct = classifier.correct(batch, classes)
        right += int(correct.sum())
        kept = correct if only_correct else np.ones(len(classes), bool)
        keep = np.flatnonzero(kept)[: max_images - found]
        found += len(keep)
        images.append(batch[keep])
        labels.append(classes[keep])
        indices.append(seen + keep)
        seen += len(batch) if found < max_images else int(keep[-1]) + 1
        if found == max_images:
            break
    if right == 0:
        raise ValueError(
            "`data` must hold images that `model` classifies correctly; it gets none of the "
            f"{seen} right. Check the order of the classes and `value_range`, which is "
            f"{classifier.value_range} here"
        )
    return LabelledImages(
        np.concatenate(images),
        np.concatenate(labels),
        classifier.value_range,
        np.concatenate(indices),
        seen,
    )


def split(images: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Split images alternately into a validation and a test split.

    Args:
        images: At least two images.

    Returns:
        The images at even and at odd positions.

    Raises:
        ValueError: There are fewer than two images.

    Example:
        >>> images = LabelledImages(np.zeros((3, 1, 1, 1)), np.array([5, 6, 7]), (0, 1))
        >>> validation, test = split(images)
        >>> validation.labels, test.labels
        (array([5, 7]), array([6]))
    """
    if len(images) < 2:
        raise ValueError(
            "`data` must hold two images that `model` classifies correctly, one for the validation "
            f"split and one for the test split. Received: {len(images)}"
        )
    return images[::2], images[1::2]


def best_setting(
    candidates: Sequence[Defence],
    images_for: Callable[[Defence], ImageSets],
    workbench: Workbench,
) -> Defence:
    """Select the candidate with the best mean of benign and mean gray-box accuracy.

    Args:
        candidates: Settings of one family of defences.
        images_for: Returns the images of the validation split for a candidate: benign, and the
            same under gray-box attacks.
        workbench: Classifies them.

    Returns:
        The best candidate; the first of several.
    """
    sets = [images_for(candidate) for candidate in candidates]
    total = sum(len(part.images) for benign, attacked in sets for part in (benign, *attacked))
    with workbench.bar(f"Validating: {candidates[0].family}", total) as advance:

        def accuracy(images: AttackedImages, candidate: Defence) -> float:
            if not len(images.images):  # none is right once this candidate has encoded it
                return 0.0
            return float(workbench.correct(images, candidate, on_batch=advance).mean())

        def score(candidate: Defence, images: ImageSets) -> float:
            benign, attacked = images
            under_attack = [accuracy(part, candidate) for part in attacked]
            return accuracy(benign, candidate) + float(np.mean(under_attack))

        scores = [score(*pair) for pair in zip(candidates, sets)]
        return candidates[int(np.argmax(scores))]
