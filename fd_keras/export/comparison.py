"""Comparing what a runtime returned with what Keras returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras.evaluation.accuracy import checked_labels
from fd_keras.export.check import RuntimeCheck
from fd_keras.export.runtimes import Run

# Outputs that hold one number for each class, by name.
_CLASS_OUTPUTS = ("predictions", "logits", "probabilities")


def compared(
    runtime: str,
    actual: Run,
    expected: Run,
    scale: float,
    labels: npt.NDArray[Any] | None = None,
) -> RuntimeCheck:
    """Compare two runs on the same images.

    Args:
        runtime: Name of the runtime of ``actual``.
        actual: What it returned.
        expected: What Keras returned.
        scale: Grey levels (of 255) in one unit of the distilled images.
        labels: Integer classes of the images.

    Raises:
        ValueError: An output is missing.

    Example:
        >>> run = Run({"predictions": np.eye(3)}, [np.zeros((3, 8, 8, 3))], 1.0)
        >>> compared("LiteRT", run, run, scale=1.0).pixels_beyond
        0
    """
    missing = sorted(set(expected.outputs) - set(actual.outputs))
    if missing or len(actual.distilled) != len(expected.distilled):
        raise ValueError(
            f"`path` must hold an export of `model`; it lacks {missing or 'the distilled images'}"
        )
    images = zip(actual.distilled, expected.distilled)
    differences = [np.abs(np.float64(a) - np.float64(b)).max(-1) * scale for a, b in images]
    pairs = [(actual.outputs[name], array) for name, array in expected.outputs.items()]
    same = [share for a, b in pairs if (share := _same_decisions(a, b)) is not None]
    return RuntimeCheck(
        runtime=runtime,
        pixels=sum(d.size for d in differences),
        # A NaN is beyond every limit.
        pixels_beyond=sum(int(np.sum(~(d <= 1))) for d in differences),
        largest_pixel_difference=max((float(d.max()) for d in differences), default=0.0),
        same_class=min(same, default=1.0),
        relative_error=max((_relative_error(a, b) for a, b in pairs), default=0.0),
        finite=all(bool(np.all(np.isfinite(a) | ~np.isfinite(b))) for a, b in pairs),
        milliseconds=actual.milliseconds,
        distillation_milliseconds=actual.distillation_milliseconds,
        accuracy=None if labels is None else accuracy_of(actual, labels),
    )


def accuracy_of(run: Run, labels: npt.NDArray[Any]) -> float:
    """The share of images whose class is their label.

    Args:
        run: A run of a classifier.
        labels: Integer classes.

    Raises:
        ValueError: The run has no output of classes.

    Example:
        >>> accuracy_of(Run({"predictions": np.eye(2)}, [], 1.0), np.array([0, 0]))
        0.5
    """
    for name in _CLASS_OUTPUTS:
        if name in run.outputs:
            scores = run.outputs[name]
            return float(np.mean(scores.argmax(-1) == checked_labels(labels, len(scores))))
    raise ValueError(
        f"`labels` need an output named like one of {_CLASS_OUTPUTS}. "
        f"Received: outputs {sorted(run.outputs)}"
    )


def _same_decisions(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float | None:
    """The share of images with the same class or flag; ``None`` for an output of neither."""
    if expected.dtype == bool:
        different = int(np.sum(actual != expected))
        # A threshold is the score of some image, on which rounding errors decide.
        return 1.0 if different <= 1 else 1 - different / len(expected)
    if expected.ndim != 2 or expected.shape[-1] < 2:
        return None
    return float(np.mean(actual.argmax(-1) == expected.argmax(-1)))


def _relative_error(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    a, b = np.float64(actual), np.float64(expected)
    usable = np.isfinite(b)
    if expected.dtype == bool or not usable.any():
        return 0.0
    size = np.sqrt(np.mean(b[usable] ** 2))
    # One number for each image, such as a score, may well be the same for all of them.
    spread = max(np.std(b[usable]), (1e-3 if b.ndim > 1 else 1) * size, 1e-6)
    a, b = a[usable], b[usable]
    return float(np.sqrt(np.mean((a - b) ** 2)) / spread)
