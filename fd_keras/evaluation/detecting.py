"""How well the shift of a prediction tells attacked images from benign ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from fd_keras.detection import conformal_threshold, roc_curve
from fd_keras.evaluation.defences import Defence, no_defence
from fd_keras.evaluation.selection import Selection
from fd_keras.evaluation.workbench import ImageSet, Workbench, correct


def detection_entries(
    defences: Sequence[Defence],
    gray_box: Sequence[ImageSet],
    tuning: Selection,
    workbench: Workbench,
    false_positive_rate: float,
) -> list[dict[str, Any]]:
    """Detection by every feature distillation of every gray-box attack, as in a report.

    The score is that of ``DistillationDetector``. Its threshold comes from the benign images
    of the tuning split; without one, from every second reported image, and the others tell the
    rate of false alarms. Only attacked images that fool the classifier count.

    Args:
        defences: Those that are no feature distillation are passed over.
        gray_box: Reported images under attack.
        tuning: Images that are not reported; may be empty.
        workbench: Classifies them.
        false_positive_rate: Of the threshold.

    Returns:
        Nothing for attacks that fool no image, or if benign images are too few for the rate.
    """
    entries = []
    for defence in defences:
        if defence.table is None or not gray_box:
            continue
        reported = max((images.images for images in gray_box), key=len)
        benign = _scores(ImageSet(reported), defence, workbench)
        if len(tuning):
            calibration = _scores(ImageSet(tuning), defence, workbench)
        else:
            calibration, benign = benign[::2], benign[1::2]
        if (len(calibration) + 1) * false_positive_rate < 1 or not len(benign):
            continue
        threshold = conformal_threshold(calibration, false_positive_rate)
        for images in gray_box:
            fooled = ~correct(workbench.logits(images, no_defence()), images.images.labels)
            if not fooled.any() or images.attack is None:
                continue
            scores = _scores(images, defence, workbench)[fooled]
            curve = roc_curve(benign, scores)
            entries.append(
                {
                    "defence": defence.name,
                    "attack": images.attack.name,
                    "threat_model": images.threat_model,
                    "auc": curve.auc,
                    "detection_rate": float(np.mean(scores > threshold)),
                    "false_positive_rate_target": false_positive_rate,
                    "false_positive_rate": float(np.mean(benign > threshold)),
                    "roc": {
                        "fpr": curve.false_positive_rate.tolist(),
                        "tpr": curve.true_positive_rate.tolist(),
                    },
                }
            )
    return entries


def _scores(images: ImageSet, defence: Defence, workbench: Workbench) -> npt.NDArray[np.floating]:
    """Feature Squeezing's L1 distance between the probabilities with and without defence."""
    raw, distilled = (
        softmax(workbench.logits(images, chosen).astype(np.float64), axis=-1)
        for chosen in (no_defence(), defence)
    )
    return np.asarray(np.abs(raw - distilled).sum(axis=-1))
