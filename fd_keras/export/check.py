"""Compare what a runtime returned with what Keras returns, and judge the difference."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc

from fd_keras._checks import checked_labels
from fd_keras.export.quantization import Quantization
from fd_keras.export.runtimes import Run


class ExportProofError(ValueError):
    """An exported file does not compute what the Keras model does; it was not kept."""


@dataclass(frozen=True)
class Limits:
    """How far an exported file may be from Keras.

    Args:
        same_class: Least share of images with the same class. A smaller share passes where chance
            explains it: among few images, one near the border of two classes is a large share.
        relative_error: Largest root mean square difference of the predictions, relative to the
            predictions' standard deviation.
        accuracy: Largest difference of accuracies, where labels are given.
    """

    same_class: float
    relative_error: float
    accuracy: float


# The distilled image has one limit for all: quantising the body must not touch it.
LIMITS: Mapping[Quantization, Limits] = {
    "none": Limits(same_class=0.99, relative_error=0.02, accuracy=0.01),
    "float16": Limits(same_class=0.99, relative_error=0.1, accuracy=0.01),
    "dynamic": Limits(same_class=0.97, relative_error=0.3, accuracy=0.02),
    "int8": Limits(same_class=0.97, relative_error=0.5, accuracy=0.02),
}

# Largest share of pixels that may be off by more than one grey level.
PIXEL_SHARE = 1e-4

# A coefficient may lie on a tie by chance, and one block then differ: 64 pixels.
_CHANCE_PIXELS = 64

# A share of images is too small when, at the limit, one as small is less likely than this.
_CHANCE = 0.05

# Outputs that hold one number for each class, by name.
_CLASS_OUTPUTS = ("predictions", "logits", "probabilities")


@dataclass(frozen=True)
class RuntimeCheck:
    """How one runtime compares with Keras on the same images.

    Args:
        runtime: Its name.
        pixels: Number of pixels that were compared; 0 for a model that does not distil.
        pixels_beyond: How many of them differ by more than one grey level in any channel.
        largest_pixel_difference: In grey levels of 255.
        same_class: Share of images with the same class, or flag; of the worst output.
        relative_error: Root mean square difference of the predictions, relative to their
            standard deviation; of the worst output.
        finite: Whether the outputs are finite wherever Keras' are.
        milliseconds: Median latency of one image.
        distillation_milliseconds: The same of the distillation alone, where it can be run alone.
        accuracy: Share of images whose class is their label, where labels were given.
    """

    runtime: str
    pixels: int
    pixels_beyond: int
    largest_pixel_difference: float
    same_class: float
    relative_error: float
    finite: bool
    milliseconds: float
    distillation_milliseconds: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class ExportCheck:
    """The outcome of ``verify_export``.

    Args:
        path: The file or directory that was checked.
        format: ``"saved_model"`` or ``"tflite"``.
        quantize: How the body is quantised.
        size: Bytes on disk.
        images: Number of images that were compared.
        operations: How often each operation occurs.
        runtimes: One entry for each runtime that ran.
        not_run: Why others did not, by name.
        keras_accuracy: Accuracy of the Keras model, where labels were given.
        threat_model: How the images were attacked, where labels were given.

    Example:
        >>> check = ExportCheck("model.tflite", "tflite", "none", 1000, 8, {}, ())
        >>> check.passed, check.problems
        (False, ('no runtime ran it',))
    """

    path: str
    format: str
    quantize: Quantization
    size: int
    images: int
    operations: Mapping[str, int]
    runtimes: tuple[RuntimeCheck, ...]
    not_run: Mapping[str, str] = field(default_factory=dict)
    keras_accuracy: float | None = None
    threat_model: str | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong, a line each; empty for an export to trust."""
        if not self.runtimes:
            reasons = [f"{name}: {reason}" for name, reason in self.not_run.items()]
            return (": ".join(["no runtime ran it", *reasons]),)
        return tuple(f"{r.runtime}: {text}" for r in self.runtimes for text in self._wrong(r))

    @property
    def passed(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise ``ExportProofError`` unless the check passed."""
        if self.problems:
            raise ExportProofError(
                f"the export does not compute what the Keras model does: "
                f"{'; '.join(self.problems)} ({self.images} images). Pass images like those it "
                "will see, or verify=False to keep it unproven"
            )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        result: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {**result, "passed": self.passed, "problems": list(self.problems)}

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.format}, quantize={self.quantize}, {self.size} bytes, "
            f"{self.images} images: {'proven' if self.passed else 'NOT PROVEN'}"
        ]
        lines += [self._line(runtime) for runtime in self.runtimes]
        lines += [f"  {name}: not run ({reason})" for name, reason in self.not_run.items()]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join(lines)

    def _wrong(self, run: RuntimeCheck) -> list[str]:
        limits, found = LIMITS[self.quantize], []
        if run.pixels_beyond > max(PIXEL_SHARE * run.pixels, _CHANCE_PIXELS * (run.pixels > 0)):
            found.append(
                f"{run.pixels_beyond / run.pixels:.3%} of the distilled pixels differ by more than "
                f"one grey level (at most {run.largest_pixel_difference:.3g})"
            )
        if not run.finite:
            found.append("outputs are not finite where Keras' are")
        if _beyond_chance(run.same_class, limits.same_class, self.images):
            found.append(
                f"only {run.same_class:.1%} of the images get the same class, not "
                f"{limits.same_class:.0%}"
            )
        if not run.relative_error <= limits.relative_error:
            found.append(f"predictions differ by {run.relative_error:.2g} of their spread")
        if run.accuracy is not None and self.keras_accuracy is not None:
            change = run.accuracy - self.keras_accuracy
            if abs(change) > limits.accuracy + 1e-9:
                points = f"{100 * change:+.1f} points"
                found.append(f"accuracy ({self.threat_model}) changes by {points}")
        return found

    def _line(self, run: RuntimeCheck) -> str:
        parts = []
        if run.pixels:
            parts.append(
                f"{run.pixels_beyond} of {run.pixels} distilled pixels beyond 1 level "
                f"(largest {run.largest_pixel_difference:.2g})"
            )
        parts.append(f"same class {run.same_class:.1%}")
        if run.accuracy is not None and self.keras_accuracy is not None:
            parts.append(
                f"accuracy ({self.threat_model}) {run.accuracy:.1%}, Keras "
                f"{self.keras_accuracy:.1%}"
            )
        latency = f"{run.milliseconds:.2f} ms an image"
        if run.distillation_milliseconds is not None:
            latency += f", distillation alone {run.distillation_milliseconds:.2f} ms"
        return f"  {run.runtime}: {', '.join([*parts, latency])}"


def _beyond_chance(share: float, limit: float, images: int) -> bool:
    """Whether a share of so many images shows that the true one is below a limit."""
    others = round((1 - share) * images)
    return others > 0 and float(bdtrc(others - 1, images, 1 - limit)) < _CHANCE


def report(
    check: ExportCheck,
    target: str | os.PathLike[str],
    on_check: Callable[[ExportCheck], object] | None,
) -> None:
    """Hand on the check of a file that is about to be moved, and raise if it failed.

    Args:
        check: What ``verify_export`` returned.
        target: Where the file will be.
        on_check: Called with the check, under the name ``target``.

    Raises:
        ExportProofError: The check failed.

    Example:
        >>> run = RuntimeCheck("LiteRT", 64, 0, 0.0, 1.0, 0.0, True, 1.0)
        >>> check = ExportCheck(".tmp", "tflite", "none", 1000, 8, {}, (run,))
        >>> report(check, "model.tflite", lambda check: print(check.path))
        model.tflite
    """
    check = replace(check, path=os.fspath(target))
    if on_check is not None:
        on_check(check)
    check.raise_for_problems()


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
        scale: Grey levels of 255 in one unit of the distilled images.
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
