"""The images of an evaluation: those that the classifier alone gets right."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages, batches_with_labels


def select(
    classifier: Classifier, data: Any, *, max_images: int, batch_size: int
) -> LabelledImages:
    """Read labelled images until enough are found that the classifier gets right.

    Args:
        classifier: The classifier without any defence.
        data: ``(images, labels)``, a ``tf.data.Dataset``, a ``PyDataset`` or an iterable of
            batches ``(images, labels)``; images in the classifier's value range, labels as
            integers.
        max_images: Stop when so many are found.
        batch_size: Number of images classified at once.

    Raises:
        ValueError: Images, labels and classifier do not fit, or no image is classified
            correctly.
        TypeError: ``data`` is nothing of the above.
    """
    images, labels, indices, seen, found = [], [], [], 0, 0
    for batch, classes in batches_with_labels(data, batch_size):
        keep = np.flatnonzero(classifier.correct(batch, classes))[: max_images - found]
        found += len(keep)
        images.append(batch[keep])
        labels.append(classes[keep])
        indices.append(seen + keep)
        seen += len(batch) if found < max_images else int(keep[-1]) + 1
        if found == max_images:
            break
    if found == 0:
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
