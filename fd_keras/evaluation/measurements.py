"""Entries of a report beside accuracies: time per image, detection rates, example pictures."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from fd_keras.data.labelled import LabelledImages
from fd_keras.detection import conformal_threshold, exact_rate, roc_curve
from fd_keras.evaluation.defences import Defence, no_defence
from fd_keras.evaluation.workbench import AttackedImages, Workbench, correct

_ROUNDS = 5
_SLOW = 0.5  # seconds per image; a slower defence is timed once, on one image
_PICTURES = 3
_SHOWN_CHANNELS = (1, 3)


def milliseconds_per_image(
    defences: Sequence[Defence], images: npt.NDArray[np.float32]
) -> Mapping[str, float]:
    """Measure the median time of each defence.

    All defences take turns in each of several rounds.

    Args:
        defences: Defences with different names.
        images: ``(n, height, width, channels)``, pixels from 0 to 255. Slow defences get the first
            image only.

    Returns:
        Milliseconds per image, by name of the defence.

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
    gray_box: Sequence[AttackedImages],
    validation: LabelledImages,
    workbench: Workbench,
    false_positive_rate: float,
) -> list[dict[str, Any]]:
    """Measure how well each feature distillation, and all together, detect each gray-box attack.

    The score of an image is that of ``DistillationDetector``; of several tables, the largest. The
    threshold comes from the benign
    images of the validation split. Without one, it comes from every second benign image, and the
    others give the rate of false positives. Of the attacked images, only those that fool the
    classifier count.

    Args:
        defences: Defences; only feature distillation detects.
        gray_box: Images under gray-box attacks.
        validation: The validation split; may be empty.
        workbench: Classifies the images.
        false_positive_rate: Share of benign images that may be flagged.

    Returns:
        Dictionaries as ``EvaluationReport.detection`` takes them. There is none for an attack that
        fools no image, nor for too few benign images for the rate.
    """
    entries = []
    tables = [defence for defence in defences if defence.table is not None]
    detectors = {defence.name: [defence] for defence in tables}
    if len(tables) > 1:
        detectors[f"largest score of {len(tables)} tables"] = tables
    for name, detector in detectors.items():
        if not gray_box:
            continue
        most = max((images.images for images in gray_box), key=len)
        benign = _scores(AttackedImages(most), detector, workbench)
        if len(validation):
            calibration = _scores(AttackedImages(validation), detector, workbench)
        else:
            calibration, benign = benign[::2], benign[1::2]
        if (len(calibration) + 1) * exact_rate(false_positive_rate) < 1 or not len(benign):
            continue
        threshold = conformal_threshold(calibration, false_positive_rate)
        for images in gray_box:
            fooled = ~workbench.correct(images, no_defence())
            if not fooled.any() or images.attack is None:
                continue
            scores = _scores(images, detector, workbench)[fooled]
            curve = roc_curve(benign, scores)
            entries.append(
                {
                    "defence": name,
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


def _scores(
    images: AttackedImages, tables: Sequence[Defence], workbench: Workbench
) -> npt.NDArray[np.floating]:
    """Feature Squeezing's L1 distance between probabilities without and with a table."""

    def probabilities(defence: Defence) -> npt.NDArray[np.float64]:
        logits = workbench.logits(images, defence).astype(np.float64)
        return np.asarray(softmax(logits, axis=-1))

    raw = probabilities(no_defence())
    shifts = [np.abs(raw - probabilities(table)).sum(axis=-1) for table in tables]
    return np.asarray(np.max(shifts, axis=0))


def picture_entries(
    defences: Sequence[Defence],
    gray_box: Sequence[AttackedImages],
    workbench: Workbench,
) -> list[dict[str, Any]]:
    """Show the first images that fool the classifier: benign, attacked and distilled.

    They are not selected by what the defence makes of them.

    Args:
        defences: The first feature distillation among them is shown.
        gray_box: The first entry whose attack has a bound is shown.
        workbench: Classifies the images.

    Returns:
        Dictionaries as ``EvaluationReport.pictures`` takes them.
    """
    tables = [defence for defence in defences if defence.table is not None]
    bounded = [images for images in gray_box if images.attack and images.attack.epsilon]
    if not tables or not bounded or bounded[0].images.images.shape[-1] not in _SHOWN_CHANNELS:
        return []
    defence, attacked = tables[0], bounded[0]
    assert attacked.attack is not None
    labels = attacked.images.labels
    raw = workbench.logits(attacked, no_defence())
    shown = np.flatnonzero(~correct(raw, labels))[:_PICTURES]
    name = functools.partial(_class_name, workbench.classifier.class_names)
    pictures = []
    for index in shown:
        benign = attacked.images[index : index + 1].unit_images()
        hit = workbench.pixels_of(attacked, int(index))[None]
        distilled = defence(255 * hit)
        predicted = workbench.classifier.logits(distilled / 255).argmax()
        pictures.append(
            {
                "attack": attacked.attack.name,
                "threat_model": attacked.threat_model,
                "defence": defence.name,
                "true": name(int(labels[index])),
                "predicted_benign": name(int(labels[index])),  # correct, as the images are selected
                "predicted_attacked": name(int(raw[index].argmax())),
                "predicted_distilled": name(int(predicted)),
                "benign": _levels(benign)[0],
                "attacked": _levels(hit)[0],
                "distilled": _levels(distilled / 255)[0],
            }
        )
    return pictures


def _class_name(names: Sequence[str] | None, number: int) -> str:
    """The name of a class, with its number where another one has the same, as ImageNet's cranes."""
    if names is None:
        return str(number)
    name = names[number]
    return name if list(names).count(name) == 1 else f"{name} ({number})"


def _levels(images: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    return np.uint8(np.round(255 * images))
