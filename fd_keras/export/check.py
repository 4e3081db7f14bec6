"""Compare what a runtime returned with what Keras returns, and judge the difference."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc

from fd_keras._checks import checked_labels, shown
from fd_keras._console import Readable
from fd_keras.classifier import SIGMOIDS, known_threshold
from fd_keras.export.quantization import Quantization
from fd_keras.export.runtimes import Arrays, Run
from fd_keras.kernels import TOLERANCE


class ExportProofError(ValueError):
    """An exported file does not compute what the Keras model does; it was not kept."""


@dataclass(frozen=True)
class Limits:
    """How far an exported file may be from Keras.

    Args:
        same_class: Least share of decisions that are the same. A smaller share passes where chance
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

# What a certificate takes off for float32, in grey levels of the L2 norm; radii may be off by it.
RADIUS_TOLERANCE = 2 * TOLERANCE
_RELATIVE_RADIUS = 1e-5

# A coefficient may lie on a tie by chance, and one block then differ: 64 pixels.
_CHANCE_PIXELS = 64

# A share of images is too small when, at the limit, one as small is less likely than this.
_CHANCE = 0.05

# Outputs that hold one number for each class, by name.
_CLASS_OUTPUTS = ("predictions", "logits", "probabilities")

# What a layer that keeps less of the benign accuracy than this share most likely suffers from.
LEAST_KEPT = 0.5
USUAL_CAUSES = (
    "usually the value_range of the layer is not that of the model's pixels, the order of the "
    "classes is another one, or probabilities are taken for logits"
)


@dataclass(frozen=True)
class Rule:
    """How an output of a model decides.

    Args:
        kind: ``"class"``: the largest number. ``"threshold"``: whether a number is above
            ``threshold``. ``"flag"``: a truth value. ``"none"``: it decides nothing that is known.
        text: The same in words, with what was assumed.
        threshold: For ``"threshold"``.

    Example:
        >>> Rule("threshold", "above 0.5", 0.5).decisions(np.array([[0.4], [0.6]])).tolist()
        [False, True]
    """

    kind: Literal["class", "threshold", "flag", "none"]
    text: str
    threshold: float = 0.0

    def decisions(self, outputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What an output decides: for each image, or for each pixel of each image.

        Args:
            outputs: The output.
        """
        if self.kind == "class":
            return np.asarray(outputs.argmax(-1))
        if self.kind == "threshold":
            return np.asarray(outputs > self.threshold).reshape(outputs.shape[:-1] or -1)
        return np.asarray(outputs)


def rule_of(
    name: str,
    outputs: npt.NDArray[Any],
    activation: str | None = None,
    *,
    distilled: bool = False,
) -> Rule:
    """How an output decides, by its shape, its name, its last activation and its values.

    A single number for each image, or pixel, is a probability where a sigmoid made it, or where
    that is not known and all of them lie from 0 to 1; else it is a logit.

    Args:
        name: Name of the output.
        outputs: What Keras returned.
        activation: What ``last_activation`` returned.
        distilled: Whether it is a distilled image.

    Example:
        >>> rule_of("predictions", np.array([[-3.0], [0.2]])).text
        'above 0, taken for a logit'
    """
    rank, last = outputs.ndim, outputs.shape[-1]
    if outputs.dtype == bool:
        return Rule("flag", "flag")
    if distilled:
        return Rule("none", "the distilled image")
    if name == "score":  # of a detector
        return Rule("none", "decisions not compared, for the flag decides")
    where = " of each pixel" if rank == 4 else ""
    images = rank == 4 and last == 3 and activation in (*SIGMOIDS, "tanh")
    if rank in (2, 4) and last > 1 and not images:
        return Rule("class", f"largest of {last} classes{where}")
    if rank == 1 or (rank in (2, 4) and last == 1):
        return _threshold_rule(name, outputs, activation, where)
    return Rule("none", f"decisions not compared, for shape {outputs.shape[1:]} is none of classes")


def _threshold_rule(
    name: str, outputs: npt.NDArray[Any], activation: str | None, where: str
) -> Rule:
    threshold = known_threshold(name, activation)
    if threshold is None:
        probability = bool(outputs.min() >= 0 and outputs.max() <= 1)
        threshold, why = (0.5, ", as all lie from 0 to 1") if probability else (0.0, "")
    else:
        named = name in ("logits", "probabilities")
        why = " as it is named" if named else f", as its activation is {activation}"
    kind = "probability" if threshold else "logit"
    return Rule("threshold", f"above {threshold:g}{where}, taken for a {kind}{why}", threshold)


@dataclass(frozen=True)
class RuntimeCheck:
    """How one runtime compares with Keras on the same images.

    Args:
        runtime: Its name.
        pixels: Number of pixels that were compared; 0 for a model that does not distil.
        pixels_beyond: How many of them differ by more than one grey level in any channel.
        largest_pixel_difference: In grey levels of 255.
        same_class: Share of decisions that are the same, of the worst output: classes of images or
            of pixels, or flags. ``None`` where no output decides.
        relative_error: Root mean square difference of the predictions, relative to their
            standard deviation; of the worst output.
        finite: Whether the outputs are finite wherever Keras' are.
        milliseconds: Median latency of one image.
        distillation_milliseconds: The same of the distillation alone, where it can be run alone.
        accuracy: Share of images whose class is their label, where labels were given.
        shares: The same share of each output that decides, and of how many decisions, by name.
        radius_difference: Largest difference of a certified radius from that of
            ``fd_keras.certify``, in grey levels, where the file has the signature ``certify``.
    """

    runtime: str
    pixels: int
    pixels_beyond: int
    largest_pixel_difference: float
    same_class: float | None
    relative_error: float
    finite: bool
    milliseconds: float
    distillation_milliseconds: float | None = None
    accuracy: float | None = None
    shares: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    radius_difference: float | None = None


@dataclass(frozen=True)
class Unprotected:
    """How a Keras model decides without the layer that ``protect`` put in front of it.

    Args:
        accuracy: Its accuracy, where labels were given.
        same_class: Share of the decisions that are the same behind the layer.
        classes: Number of classes of the output that classifies.

    Example:
        >>> Unprotected(accuracy=0.9).same_class is None
        True
    """

    accuracy: float | None = None
    same_class: float | None = None
    classes: int | None = None


@dataclass(frozen=True, repr=False)
class ExportCheck(Readable):
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
        decided: How each output was taken to decide, in words, by name.
        unprotected: How the Keras model compares with itself without the layer, on images that the
            caller gave; ``None``: the caller gave none.

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
    decided: Mapping[str, str] = field(default_factory=dict)
    unprotected: Unprotected | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong, a line each; empty for an export to trust."""
        if not self.runtimes:
            reasons = [f"{name}: {reason}" for name, reason in self.not_run.items()]
            return (": ".join(["no runtime ran it", *reasons]),)
        found = [f"{r.runtime}: {text}" for r in self.runtimes for text in self._wrong(r)]
        return (*found, *self._wrong_accuracies())

    @property
    def passed(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise ``ExportProofError`` unless the check passed."""
        if self.problems:
            way = "Pass images like those it will see, or"
            if self.unprotected is not None:
                way = "Use" if self.quantize == "none" else "Use another `quantize`, or"
            raise ExportProofError(
                f"the export is not proven to compute what the Keras model does: "
                f"{'; '.join(self.problems)} ({self.images} images). {way} verify=False to keep it "
                "unproven"
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
        lines += [f"  {name}: {text}" for name, text in self.decided.items()]
        lines += [self._line(runtime) for runtime in self.runtimes]
        lines += self._layer_lines()
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
        if run.radius_difference is not None and not run.radius_difference <= RADIUS_TOLERANCE:
            found.append(f"certified radii differ by {run.radius_difference:.2g} grey levels")
        if not run.finite:
            found.append("outputs are not finite where Keras' are")
        shares = dict(run.shares)
        if not shares and run.same_class is not None:
            shares = {"predictions": (run.same_class, self.images)}
        for name, (share, count) in shares.items():
            if _beyond_chance(share, limits.same_class, count):
                where = f" in {name}" if len(shares) > 1 else ""
                found.append(
                    f"only {share:.1%} of the {'pixels' if count > self.images else 'images'} get "
                    f"the same class{where}, not {limits.same_class:.0%}"
                )
        allowed = limits.relative_error
        if not shares:
            # Where no decision can be compared, values alone must show that nothing changed.
            allowed = LIMITS["none"].relative_error
            if not run.pixels:
                found.append("no output decides anything that could be compared")
        if not run.relative_error <= allowed:
            found.append(f"predictions differ by {run.relative_error:.2g} of their spread")
        if run.accuracy is not None and self.keras_accuracy is not None:
            change = run.accuracy - self.keras_accuracy
            if abs(change) > limits.accuracy + 1e-9:
                points = f"{100 * change:+.1f} points"
                found.append(f"accuracy ({self.threat_model}) changes by {points}")
        return found

    def _wrong_accuracies(self) -> list[str]:
        """What the accuracies of the Keras model itself say about the layer in front of it."""
        after, bare = self.keras_accuracy, self.unprotected
        if (
            bare is None
            or after is None
            or not (self.threat_model or "").lower().startswith("benign")
        ):
            return []
        if (before := bare.accuracy) is not None and after < LEAST_KEPT * before:
            return [
                f"the layer lowers the Keras model's own accuracy ({self.threat_model}) from "
                f"{before:.1%} to {after:.1%}; {USUAL_CAUSES}"
            ]
        if bare.classes is not None and after <= 1 / bare.classes:
            return [
                f"the Keras model's own accuracy ({self.threat_model}), {after:.1%}, is that of "
                f"guessing; {USUAL_CAUSES}"
            ]
        return []

    def _layer_lines(self) -> list[str]:
        lines: list[str] = []
        bare = self.unprotected
        if bare is None:
            return lines
        if bare.same_class is not None:
            lines.append(
                f"  behind the layer, {bare.same_class:.1%} of what Keras decides stays the same"
            )
        if bare.accuracy is not None and self.keras_accuracy is not None:
            lines.append(
                f"  Keras' accuracy ({self.threat_model}): {bare.accuracy:.1%} without "
                f"the layer, {self.keras_accuracy:.1%} behind it"
            )
        return lines

    def _line(self, run: RuntimeCheck) -> str:
        parts = []
        if run.pixels:
            parts.append(
                f"{run.pixels_beyond} of {run.pixels} distilled pixels beyond 1 level "
                f"(largest {run.largest_pixel_difference:.2g})"
            )
        if run.radius_difference is not None:
            parts.append(f"radii differ by {run.radius_difference:.1g} levels")
        if run.same_class is not None:
            parts.append(f"same class {run.same_class:.1%}")
        else:
            parts.append(f"values differ by {run.relative_error:.1g} of their spread")
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
    rules: Mapping[str, Rule],
    labels: npt.NDArray[Any] | None = None,
    output: str | None = None,
) -> RuntimeCheck:
    """Compare two runs on the same images.

    Args:
        runtime: Name of the runtime of ``actual``.
        actual: What it returned.
        expected: What Keras returned.
        scale: Grey levels of 255 in one unit of the distilled images.
        rules: How each output decides.
        labels: Integer classes of the images.
        output: Name of the output that classifies; see ``accuracy_of``.

    Raises:
        ValueError: An output is missing.

    Example:
        >>> run = Run({"predictions": np.eye(3)}, [np.zeros((3, 8, 8, 3))], 1.0)
        >>> rules = {"predictions": rule_of("predictions", np.eye(3))}
        >>> compared("LiteRT", run, run, 1.0, rules).pixels_beyond
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
    shares = {
        name: same_decisions(actual.outputs[name], expected.outputs[name], rule)
        for name, rule in rules.items()
        if rule.kind != "none"
    }
    return RuntimeCheck(
        runtime=runtime,
        pixels=sum(d.size for d in differences),
        # A NaN is beyond every limit.
        pixels_beyond=sum(int(np.sum(~(d <= 1))) for d in differences),
        largest_pixel_difference=max((float(d.max()) for d in differences), default=0.0),
        same_class=min((share for share, _ in shares.values()), default=None),
        relative_error=max((_relative_error(a, b) for a, b in pairs), default=0.0),
        finite=all(bool(np.all(np.isfinite(a) | ~np.isfinite(b))) for a, b in pairs),
        milliseconds=actual.milliseconds,
        distillation_milliseconds=actual.distillation_milliseconds,
        accuracy=None if labels is None else accuracy_of(actual, labels, rules, output),
        shares=shares,
        radius_difference=_largest_difference(actual.radii, expected.radii),
    )


def _largest_difference(actual: Arrays, expected: Arrays) -> float | None:
    """The largest difference of two runs' radii, NaN if there is one; ``None`` without radii."""
    if not (actual and expected):
        return None
    # Steps of a million have radii of which float32 does not hold hundredths.
    beyond = [
        np.abs(actual[name] - expected[name]) - _RELATIVE_RADIUS * expected[name]
        for name in expected
    ]
    return float(np.max(np.maximum(beyond, 0.0)))


def classifying(rules: Mapping[str, Rule], output: str | None = None) -> str:
    """The name of the output that classifies images.

    Args:
        rules: How each output decides.
        output: Its name. Default: the one that is named ``predictions``, ``logits`` or
            ``probabilities``, or the only one that decides a class.

    Raises:
        ValueError: There is none, or several.

    Example:
        >>> classifying({"a": Rule("class", ""), "b": Rule("none", "")})
        'a'
    """
    deciding = [name for name, rule in rules.items() if rule.kind in ("class", "threshold")]
    if output is not None and output in deciding:
        return output
    named = [name for name in _CLASS_OUTPUTS if name in deciding]
    if output is None and (named or len(deciding) == 1):
        return (named or deciding)[0]
    raise ValueError(
        "`output` must name the output that the `labels` are of, one of "
        f"{deciding or 'which there is none'}. Received: output={shown(output)} for outputs "
        f"{sorted(rules)}"
    )


def accuracy_of(
    run: Run,
    labels: npt.NDArray[Any],
    rules: Mapping[str, Rule],
    output: str | None = None,
) -> float:
    """The share of images whose class is their label.

    Args:
        run: A run of a classifier.
        labels: Integer classes.
        rules: How each output decides.
        output: As for ``classifying``.

    Raises:
        ValueError: No output classifies images, or several do.

    Example:
        >>> run = Run({"predictions": np.eye(2)}, [], 1.0)
        >>> accuracy_of(run, np.array([0, 0]), {"predictions": Rule("class", "")})
        0.5
    """
    name = classifying(rules, output)
    decided = rules[name].decisions(run.outputs[name])
    if decided.ndim != 1:
        raise ValueError(
            f"`labels` belong to images, and {name!r} decides each pixel. "
            f"Received: labels of shape {np.shape(labels)}"
        )
    return float(np.mean(decided == checked_labels(labels, len(decided))))


def same_decisions(
    actual: npt.NDArray[Any], expected: npt.NDArray[Any], rule: Rule
) -> tuple[float, int]:
    """The share of the same decisions, and their number.

    Args:
        actual: An output of one run.
        expected: The same output of another run.
        rule: How it decides.

    Example:
        >>> same_decisions(np.eye(2), np.eye(2)[::-1], Rule("class", ""))
        (0.0, 2)
    """
    found, wanted = rule.decisions(actual), rule.decisions(expected)
    different = int(np.sum(found != wanted))
    # A threshold of a detector is the score of some image, on which rounding errors decide.
    if rule.kind == "flag" and different <= 1:
        different = 0
    return 1 - different / wanted.size, wanted.size


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
