"""What a search found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fd_keras._files import DocumentFormat
from fd_keras.evaluation.accuracies import THREAT_MODELS, wilson_interval
from fd_keras.refinement.scoring import BENIGN
from fd_keras.tables import QuantizationTable

# Typing alias: how many images are right and how many there are, for benign ones and attacks.
Counts = Mapping[str, tuple[int, int]]

_FORMAT = DocumentFormat("fd_keras.refinement", 1, "result of a search")


@dataclass(frozen=True, eq=False)
class Figures:
    """Accuracies of one defence on one half of the images.

    Args:
        counts: ``"benign"`` and names of attacks to (right, seen).

    Example:
        >>> figures = Figures({"benign": (99, 100), "FGSM": (40, 100), "BIM": (60, 100)})
        >>> figures.benign, figures.attacked
        (0.99, 0.5)
    """

    counts: Counts

    @property
    def benign(self) -> float:
        """Accuracy without an attack."""
        return self._share(BENIGN)

    @property
    def attacked(self) -> float:
        """Mean accuracy over the attacks."""
        return float(np.mean([self._share(name) for name in self.attacks]))

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks."""
        return [name for name in self.counts if name != BENIGN]

    def interval(self, name: str) -> tuple[float, float]:
        """95 % Wilson interval of one accuracy."""
        return wilson_interval(*self.counts[name])

    def _share(self, name: str) -> float:
        right, seen = self.counts[name]
        return right / seen


@dataclass(frozen=True, eq=False)
class Trial:
    """One table that was tried.

    Args:
        number: Its place in the order of the search, from 0.
        status: Keras Tuner's, ``"COMPLETED"`` or ``"FAILED"``.
        values: Of the hyperparameters.
        metrics: What was logged, see ``fd_keras.refinement.scoring.trial_metrics``.
        table: The table; ``None`` for a failed trial.
        selection: Accuracies on the selecting half, as far as they were seen.
    """

    number: int
    status: str
    values: Mapping[str, Any]
    metrics: Mapping[str, float]
    table: QuantizationTable | None
    selection: Figures

    @property
    def complete(self) -> bool:
        """Whether it saw all images."""
        return bool(self.metrics.get("complete"))


@dataclass(frozen=True, eq=False)
class Contender:
    """A defence with its figures on both halves.

    Args:
        name: What reports call it.
        family: What kind it is.
        held_back: Accuracies on images that took no part in choosing.
        selection: Accuracies on the selecting half; ``None`` for rivals, which chose nothing.
        table: Its table, if it is one.
    """

    name: str
    family: str
    held_back: Figures
    selection: Figures | None = None
    table: QuantizationTable | None = None


@dataclass(frozen=True, eq=False)
class RefineResult:
    """The best table of a search, its Pareto front, all trials, and the held-back check.

    Args:
        best: The table with the best objective.
        front: Tables that none beats at both benign and attacked accuracy on the selecting
            half, by rising benign accuracy.
        rivals: What they are compared with.
        trials: All trials in their order.
        settings: Arguments and what they came to.

    Example:
        >>> RefineResult.load("search/result.json").table  # doctest: +SKIP
    """

    best: Contender
    front: Sequence[Contender]
    rivals: Sequence[Contender]
    trials: Sequence[Trial] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)

    @property
    def table(self) -> QuantizationTable:
        """The best table."""
        assert self.best.table is not None
        return self.best.table

    @property
    def feasible(self) -> bool:
        """Whether the best table keeps to ``max_benign_loss`` on the selecting half."""
        assert self.best.selection is not None
        return 1 - self.best.selection.benign <= self.settings["max_benign_loss"] + 1e-9

    def table_within(self, max_benign_loss: float) -> QuantizationTable:
        """The table of the front with the best accuracy under attack within a benign loss.

        Args:
            max_benign_loss: On the selecting half, from 0 to 1.

        Raises:
            ValueError: There is none.
        """
        within = [
            point
            for point in self.front
            if point.selection and 1 - point.selection.benign <= max_benign_loss + 1e-9
        ]
        if not within:
            raise ValueError(
                "`max_benign_loss` must leave a table of the front. "
                f"Received: max_benign_loss={max_benign_loss!r}"
            )
        best = max(within, key=lambda p: p.selection.attacked if p.selection else 0)
        assert best.table is not None
        return best.table

    def __str__(self) -> str:
        return "\n".join(_summary(self))

    def to_markdown(self) -> str:
        """The same figures as a page, with the front."""
        return "\n".join(_page(self)) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, replacing ``path`` atomically.

        Args:
            path: File to write.

        Raises:
            OSError: The file cannot be written.
        """
        content = {
            "settings": dict(self.settings),
            "best": _contender_dict(self.best),
            "front": [_contender_dict(point) for point in self.front],
            "rivals": [_contender_dict(rival) for rival in self.rivals],
            "trials": [_trial_dict(trial) for trial in self.trials],
        }
        _FORMAT.write(path, content, rows=["trials"])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RefineResult:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds no result of a search; the message names the file.
        """
        return _FORMAT.read(path, cls._from_content)

    @classmethod
    def _from_content(cls, content: Mapping[str, Any]) -> RefineResult:
        return cls(
            _contender(content["best"]),
            [_contender(point) for point in content["front"]],
            [_contender(rival) for rival in content["rivals"]],
            [_trial(trial) for trial in content["trials"]],
            content["settings"],
        )


def pareto_front(points: Sequence[Any]) -> list[Any]:
    """Those that no other beats at both benign and attacked accuracy, by rising benign one.

    Args:
        points: Anything with a ``selection`` of ``Figures``; of equals, the first counts.

    Example:
        >>> from types import SimpleNamespace
        >>> points = [
        ...     SimpleNamespace(selection=Figures({"benign": (b, 10), "FGSM": (a, 10)}))
        ...     for b, a in ((9, 5), (8, 4), (7, 6))
        ... ]
        >>> [point.selection.benign for point in pareto_front(points)]
        [0.7, 0.9]
    """
    front: list[Any] = []
    ordered = sorted(points, key=lambda p: (-p.selection.benign, -p.selection.attacked))
    for point in ordered:
        if not front or point.selection.attacked > front[-1].selection.attacked:
            front.append(point)
    return front[::-1]


def _summary(result: RefineResult) -> list[str]:
    settings, best = result.settings, result.best
    assert best.selection is not None
    done = sum(trial.status == "COMPLETED" for trial in result.trials)
    lines = [
        f"{done} of {settings['max_trials']} trials completed, {settings['oracle']} oracle",
        repr(result.table),
        "",
        f"{'accuracy in %, 95 % interval':<30}{'selecting half':>20}{'held-back half':>20}",
    ]
    for name in best.held_back.counts:
        model = threat_model(name)
        label = name if name == model else f"{name} ({model})"
        both = (_cell(figures, name) for figures in (best.selection, best.held_back))
        lines.append(f"{label:<30}" + "".join(f"{cell:>20}" for cell in both))
    lines.append("")
    lines += verdicts(result)
    models = dict.fromkeys(threat_model(name) for name in best.held_back.counts)
    lines += [f"{model}: {THREAT_MODELS[model]}" for model in models if model != BENIGN]
    return lines


def verdicts(result: RefineResult) -> list[str]:
    """What the figures of the best table mean, a sentence each."""
    best, allowed = result.best, result.settings["max_benign_loss"]
    assert best.selection is not None
    sentences = []
    if not result.feasible:
        sentences.append(
            f"No table that was tried keeps to the permitted benign loss of {100 * allowed:g} %."
        )
    loss, low = 1 - best.held_back.benign, 1 - best.held_back.interval(BENIGN)[1]
    within = "within" if low <= allowed else "NOT within"
    sentences.append(
        f"Benign loss on the held-back half: {100 * loss:.1f} %, {within} its interval of the "
        f"permitted {100 * allowed:g} %."
    )
    drop = 100 * (best.selection.attacked - best.held_back.attacked)
    sentences.append(
        f"The selecting half flatters the table's mean accuracy under attack by {drop:+.1f} points."
    )
    return sentences


def threat_model(name: str) -> str:
    """The threat model of a set of images, by its name.

    Example:
        >>> threat_model("FGSM .03"), threat_model("PGD-10 .03, adaptive")
        ('gray-box', 'adaptive')
    """
    if name == BENIGN:
        return BENIGN
    return "adaptive" if name.endswith(", adaptive") else "gray-box"


def _cell(figures: Figures, name: str) -> str:
    if name not in figures.counts:
        return "-"
    right, seen = figures.counts[name]
    low, high = figures.interval(name)
    return f"{100 * right / seen:.1f} [{100 * low:.0f}-{100 * high:.0f}]"


def _page(result: RefineResult) -> list[str]:
    names = list(result.front[0].held_back.counts if result.front else result.best.held_back.counts)
    lines = [
        "# Refinement",
        "",
        "```",
        str(result),
        "```",
        "",
        "## Front and rivals",
        "",
        "Accuracies on the held-back half in %, 95 % Wilson intervals in brackets. Threat model of "
        "all attacks: gray-box. The tables of the front were chosen on the other half.",
        "",
        "| defence | " + " | ".join(names) + " | mean under attack |",
        "|---" * (len(names) + 2) + "|",
    ]
    for entry in (*result.front, *result.rivals):
        cells = [_cell(entry.held_back, name) for name in names]
        mean = f"{100 * entry.held_back.attacked:.1f}"
        lines.append(f"| {entry.name} | " + " | ".join([*cells, mean]) + " |")
    return lines


def _contender_dict(contender: Contender) -> dict[str, Any]:
    return {
        "name": contender.name,
        "family": contender.family,
        "held_back": contender.held_back.counts,
        "selection": contender.selection and contender.selection.counts,
        "table": contender.table and contender.table.to_dict(),
    }


def _contender(data: Mapping[str, Any]) -> Contender:
    return Contender(
        data["name"],
        data["family"],
        _figures(data["held_back"]),
        data["selection"] and _figures(data["selection"]),
        data["table"] and QuantizationTable.from_dict(data["table"]),
    )


def _trial_dict(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "status": trial.status,
        "values": dict(trial.values),
        "metrics": dict(trial.metrics),
        "table": trial.table and trial.table.to_dict(),
        "selection": trial.selection.counts,
    }


def _trial(data: Mapping[str, Any]) -> Trial:
    table = data["table"] and QuantizationTable.from_dict(data["table"])
    fixed = {key: data[key] for key in ("number", "status", "values", "metrics")}
    return Trial(**fixed, table=table, selection=_figures(data["selection"]))


def _figures(counts: Mapping[str, Sequence[int]]) -> Figures:
    return Figures({name: (right, seen) for name, (right, seen) in counts.items()})
