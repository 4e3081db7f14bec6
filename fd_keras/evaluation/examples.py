"""Pictures of what attacks and defences do to images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras.evaluation.defences import Defence, no_defence
from fd_keras.evaluation.workbench import ImageSet, Workbench, correct

_PICTURES = 3


def example_pictures(
    defences: Sequence[Defence],
    gray_box: Sequence[ImageSet],
    workbench: Workbench,
    class_names: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """The first images that the first gray-box attack fools, through the first distillation.

    They are taken in their order, whatever the defence makes of them.

    Args:
        defences: The first feature distillation among them is shown.
        gray_box: The images of its first entry that has a bound are shown.
        workbench: Classifies them.
        class_names: Names of the classes; numbers if ``None``.

    Returns:
        Dictionaries as ``EvaluationReport.pictures`` takes them.
    """
    tables = [defence for defence in defences if defence.table is not None]
    bounded = [images for images in gray_box if images.attack and images.attack.epsilon]
    if not tables or not bounded:
        return []
    defence, attacked = tables[0], bounded[0]
    assert attacked.attack is not None
    labels = attacked.images.labels
    raw = workbench.logits(attacked, no_defence())
    shown = np.flatnonzero(~correct(raw, labels))[:_PICTURES]
    pictures = []
    for index in shown:
        one = ImageSet(attacked.images[index : index + 1])
        benign = _levels(one.images.unit_images())
        hit = workbench.pixels(attacked.first(int(index) + 1))[-1:]
        distilled = defence(255 * hit)
        predicted = workbench.classifier.logits(distilled / 255).argmax()
        name = str if class_names is None else class_names.__getitem__
        pictures.append(
            {
                "attack": attacked.attack.name,
                "threat_model": attacked.threat_model,
                "defence": defence.name,
                "true": name(int(labels[index])),
                "predicted_benign": name(int(labels[index])),  # by the choice of images
                "predicted_attacked": name(int(raw[index].argmax())),
                "predicted_distilled": name(int(predicted)),
                "benign": benign[0],
                "attacked": _levels(hit)[0],
                "distilled": _levels(distilled / 255)[0],
            }
        )
    return pictures


def _levels(images: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    return np.uint8(np.round(255 * images))
