"""The result of a search: the best table, its Pareto front, baselines and all trials."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fd_keras._checks import shown
from fd_keras._console import Readable, text_table
from fd_keras._files import DocumentFormat
from fd_keras.evaluation.accuracies import BENIGN, THREAT_MODELS
from fd_keras.refinement.scoring import Accuracies, Objective, threat_model
from fd_keras.tables import QuantizationTable

_FORMAT = DocumentFormat("fd_keras.refinement", 1, "result of a search")


@dataclass(frozen=True, eq=False)
class Trial:
    """One table that was tried.

    Args:
        number: Its place in the order of the search, from 0.
        status: Keras Tuner's, ``"COMPLETED"`` or ``"FAILED"``.
        values: Of the hyperparameters.
        metrics: Numbers by name, see ``fd_keras.refinement.tuner.trial_metrics``; and ``seconds``.
        table: The table; ``None`` for a failed trial.
        validation: Accuracies on the images of the validation split that were classified.
    """

    number: int
    status: str
    values: Mapping[str, Any]
    metrics: Mapping[str, float]
    table: QuantizationTable | None
    validation: Accuracies

    @property
    def complete(self) -> bool:
        """Whether all images were classified."""
        return bool(self.metrics.get("complete"))


@dataclass(frozen=True, eq=False)
class ScoredDefence:
    """A defence with its accuracies on both splits.

    Args:
        name: What reports call it.
        family: What kind it is.
        test: Accuracies on the test split.
        validation: Accuracies on the validation split; ``None`` for baselines, which were not
            chosen on it.
        table: Its table, if it is one.
    """

    name: str
    family: str
    test: Accuracies
    validation: Accuracies | None = None
    table: QuantizationTable | None = None


@dataclass(frozen=True, eq=False, repr=False)
class RefineResult(Readable):
    """The best table of a search, its Pareto front and baselines, scored on the test split.

    Args:
        best: The table with the best objective.
        front: The Pareto front of benign and attacked accuracy on the validation split, by
            rising benign accuracy. Counted are the attacks of the search's objective.
        baselines: Other defences for comparison.
        trials: All trials in their order.
        settings: The arguments of the search, and the images that they led to.

    Example:
        >>> RefineResult.load("search/result.json").table  # doctest: +SKIP
    """

    best: ScoredDefence
    front: Sequence[ScoredDefence]
    baselines: Sequence[ScoredDefence]
    trials: Sequence[Trial] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)

    @property
    def table(self) -> QuantizationTable:
        """The best table."""
        assert self.best.table is not None
        return self.best.table

    @property
    def feasible(self) -> bool:
        """Whether the best table keeps to ``max_benign_loss`` on the validation split."""
        assert self.best.validation is not None
        return self.best.validation.benign_loss <= self.settings["max_benign_loss"] + 1e-9

    def table_within(self, max_benign_loss: float) -> QuantizationTable:
        """The table of the front with the best accuracy under attack within a benign loss.

        Args:
            max_benign_loss: Share of the validation split's benign images, from 0 to 1.

        Raises:
            ValueError: There is none.
        """
        points = [(point.validation, point.table) for point in self.front]
        objective = self.settings.get("objective", "all")
        within = [
            (accuracies.counted(objective), table)
            for accuracies, table in points
            if accuracies and table and accuracies.benign_loss <= max_benign_loss + 1e-9
        ]
        if not within:
            raise ValueError(
                "`max_benign_loss` must leave a table of the front. "
                f"Received: max_benign_loss={shown(max_benign_loss)}"
            )
        return max(within, key=lambda point: point[0])[1]

    def __str__(self) -> str:
        best, settings = self.best, self.settings
        assert best.validation is not None
        completed = sum(trial.status == "COMPLETED" for trial in self.trials)
        names = list(best.test.counts)
        models = dict.fromkeys(threat_model(name) for name in names)
        rows = [
            (
                name if name == threat_model(name) else f"{name} ({threat_model(name)})",
                _cell(best.validation, name),
                _cell(best.test, name),
            )
            for name in names
        ]
        head = ("accuracy in %, 95 % interval", "validation split", "test split")
        lines = [
            f"{completed} of {settings['max_trials']} trials completed, "
            f"{settings['oracle']} oracle",
            repr(self.table),
            "",
            text_table(head, rows),
            "",
            *_conclusions(self),
            *(f"{model}: {THREAT_MODELS[model]}" for model in models if model != BENIGN),
        ]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """The same figures as a page, with the front and the baselines."""
        shown = (*self.front, *self.baselines)
        names = list(shown[0].test.counts) if shown else []
        rows = [
            (
                defence.name,
                *(_cell(defence.test, name) for name in names),
                f"{100 * defence.test.attacked:.1f}",
            )
            for defence in shown
        ]
        lines = [
            "# Refinement",
            "",
            "```",
            str(self),
            "```",
            "",
            "## Front and baselines",
            "",
            "Accuracies on the test split in %, 95 % Wilson intervals in brackets. Threat model of "
            "all attacks: gray-box. The tables of the front were chosen on the validation split.",
            "",
            text_table(("defence", *names, "mean under attack"), rows, markdown=True),
        ]
        return "\n".join(lines) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, replacing ``path`` atomically.

        Args:
            path: File to write.

        Raises:
            OSError: The file cannot be written.
        """
        content = {
            "settings": dict(self.settings),
            "best": _defence_content(self.best),
            "front": [_defence_content(point) for point in self.front],
            "baselines": [_defence_content(baseline) for baseline in self.baselines],
            "trials": [_trial_content(trial) for trial in self.trials],
        }
        _FORMAT.write(path, content, rows=["front", "baselines", "trials"])

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
        result = cls(
            _defence(content["best"]),
            [_defence(point) for point in content["front"]],
            [_defence(baseline) for baseline in content["baselines"]],
            [_trial(trial) for trial in content["trials"]],
            content["settings"],
        )
        if not (result.best.table and result.best.validation):
            raise ValueError("its best entry lacks a table or accuracies")
        result.to_markdown()  # which needs the settings
        return result


def pareto_front(points: Sequence[Any], objective: Objective = "all") -> list[Any]:
    """The points that no other beats at both benign and attacked accuracy.

    Args:
        points: Anything with ``Accuracies`` as ``validation``; of equals, the first counts.
        objective: Which attacks count.

    Returns:
        The front, by rising benign accuracy.

    Example:
        >>> from types import SimpleNamespace
        >>> points = [
        ...     SimpleNamespace(validation=Accuracies({"benign": (b, 10), "FGSM": (a, 10)}))
        ...     for b, a in ((9, 5), (8, 4), (7, 6))
        ... ]
        >>> [point.validation.benign for point in pareto_front(points)]
        [0.7, 0.9]
    """
    front: list[Any] = []

    def attacked(point: Any) -> float:
        return float(point.validation.counted(objective))

    for point in sorted(points, key=lambda p: (-p.validation.benign, -attacked(p))):
        if not front or attacked(point) > attacked(front[-1]):
            front.append(point)
    return front[::-1]


def _conclusions(result: RefineResult) -> list[str]:
    best, allowed = result.best, result.settings["max_benign_loss"]
    assert best.validation is not None
    sentences = []
    if not result.feasible:
        sentences.append(f"No table that was tried keeps to a benign loss of {100 * allowed:g} %.")
    low, high = (1 - end for end in reversed(best.test.interval(BENIGN)))
    kept = "NOT kept, even at its lower end" if low > allowed else "kept, as far as it can tell"
    sentences.append(
        f"Benign loss on the test split: {100 * best.test.benign_loss:.1f} %, 95 % interval "
        f"[{100 * low:.1f}-{100 * high:.1f}]. The permitted {100 * allowed:g} % are {kept}."
    )
    drop = 100 * _overfitting(best.validation, best.test, result.settings.get("objective", "all"))
    sentences.append(
        "Mean accuracy under attack, validation minus test split (overfitting of the search): "
        f"{drop:+.1f} points."
    )
    return sentences


def _overfitting(validation: Accuracies, test: Accuracies, objective: Objective) -> float:
    """How much higher accuracy is on the validation split, under attacks made on both splits.

    A table that costs too much benign accuracy is not attacked adaptively on the validation split.
    """
    both = [name for name in test.attacks if name in validation.counts]
    found = [Accuracies({name: part.counts[name] for name in both}) for part in (validation, test)]
    # Of one that was not, an adaptive objective has nothing to compare.
    counted = objective if any(threat_model(name) == "adaptive" for name in both) else "all"
    first, second = (part.counted(counted) for part in found)
    return first - second


def _cell(accuracies: Accuracies, name: str) -> str:
    if name not in accuracies.counts:
        return "-"
    low, high = accuracies.interval(name)
    return f"{100 * accuracies.of(name):.1f} [{100 * low:.0f}-{100 * high:.0f}]"


def _defence_content(defence: ScoredDefence) -> dict[str, Any]:
    return {
        "name": defence.name,
        "family": defence.family,
        "test": defence.test.counts,
        "validation": defence.validation and defence.validation.counts,
        "table": defence.table and defence.table.to_dict(),
    }


def _defence(content: Mapping[str, Any]) -> ScoredDefence:
    return ScoredDefence(
        _text(content["name"]),
        _text(content["family"]),
        _accuracies(content["test"]),
        content["validation"] and _accuracies(content["validation"]),
        content["table"] and QuantizationTable.from_dict(content["table"]),
    )


def _trial_content(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "status": trial.status,
        "values": dict(trial.values),
        "metrics": dict(trial.metrics),
        "table": trial.table and trial.table.to_dict(),
        "validation": trial.validation.counts,
    }


def _trial(content: Mapping[str, Any]) -> Trial:
    table = content["table"] and QuantizationTable.from_dict(content["table"])
    fixed = {key: content[key] for key in ("number", "status", "values", "metrics")}
    if type(fixed["number"]) is not int or not all(
        isinstance(fixed[key], Mapping) for key in ("values", "metrics")
    ):
        raise TypeError(f"a trial is {shown(fixed)}")
    return Trial(**fixed, table=table, validation=_accuracies(content["validation"]))


def _accuracies(counts: Mapping[str, Sequence[int]]) -> Accuracies:
    found = {name: (correct, count) for name, (correct, count) in counts.items()}
    for name, pair in found.items():
        if any(type(number) is not int for number in pair) or not 0 <= pair[0] <= pair[1] > 0:
            raise ValueError(f"its accuracy {shown(name)} is {shown(pair)}")
    return Accuracies(found)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name is {shown(value)}")
    return value
