"""Measurements beside accuracy: time per image, detection, example pictures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from fd_keras.data.labelled import LabelledImages
from fd_keras.detection import conformal_threshold, roc_curve
from fd_keras.evaluation.defences import Defence, no_defence
from fd_keras.evaluation.workbench import ImageSet, Workbench, correct

_ROUNDS = 5
_SLOW = 0.5  # seconds for one image, from which one image and round must do


def milliseconds_per_image(
    defences: Sequence[Defence], images: npt.NDArray[np.float32]
) -> Mapping[str, float]:
    """Median time of each defence, all measured in turn in each round.

    Args:
        defences: With different names.
        images: Batch ``(n, height, width, channels)``, pixels 0..255; slow defences get its
            first image only.

    Returns:
        Milliseconds by name.

    Example:
        >>> from fd_keras.evaluation.defences import no_defence
        >>> list(milliseconds_per_image([no_defence()], np.zeros((2, 8, 8, 3), np.float32)))
        ['none']
    """
    batches, times = {}, {}
    for defence in defences:
        first = _seconds(defence, images[:1])  # the first call may compile
        slow = first > _SLOW and _seconds(defence, images[:1]) > _SLOW
        batches[defence.name] = images[:1] if slow else images
        times[defence.name] = [] if slow else [_seconds(defence, images) / len(images)]
    for _ in range(_ROUNDS):
        for defence in defences:
            batch = batches[defence.name]
            if len(batch) == len(images) or not times[defence.name]:
                times[defence.name].append(_seconds(defence, batch) / len(batch))
    return {name: 1000 * statistics.median(measured) for name, measured in times.items()}


def _seconds(defence: Defence, images: npt.NDArray[np.float32]) -> float:
    start = time.perf_counter()
    defence(images)
    return time.perf_counter() - start


def detection_entries(
    defences: Sequence[Defence],
    gray_box: Sequence[ImageSet],
    tuning: LabelledImages,
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
