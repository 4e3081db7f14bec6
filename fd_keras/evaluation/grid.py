"""Accuracies by defence, threat model and attack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fd_keras.evaluation.accuracies import BENIGN, NO_ATTACK, OURS, THREAT_MODELS, UNDEFENDED

Row = Mapping[str, Any]


class Mean(NamedTuple):
    """Mean accuracy over attacks.

    Args:
        accuracy: From 0 to 1.
        low: Mean of the lower ends of the 95 % intervals.
        high: Mean of their upper ends. Attacks share their images, so that errors do not
            average out: the interval is no wider for one attack than for many.
    """

    accuracy: float
    low: float
    high: float


class AccuracyGrid:
    """The rows of a report, to be looked up.

    Args:
        rows: Valid rows.
        order: Names of defences, in the order to show them; those without rows are left out,
            and others follow.

    Example:
        >>> from fd_keras.evaluation.accuracies import accuracy_row
        >>> row = accuracy_row(
        ...     defence="none", family="none", threat_model="benign", correct=9, count=10
        ... )
        >>> grid = AccuracyGrid([row])
        >>> grid.defences, grid.columns, grid.benign("none").accuracy
        (['none'], [('benign', 'none')], 0.9)
    """

    def __init__(self, rows: Sequence[Row], order: Iterable[str] = ()) -> None:
        self._rows = {(row["defence"], row["threat_model"], row["attack"]): row for row in rows}
        self.families: dict[str, str] = {row["defence"]: row["family"] for row in rows}
        named = dict.fromkeys([*order, *self.families])
        self.defences = [name for name in named if name in self.families]
        pairs = dict.fromkeys((row["threat_model"], row["attack"]) for row in rows)
        # Sorting is stable: attacks stay in the order in which they came.
        self.columns = sorted(pairs, key=lambda pair: list(THREAT_MODELS).index(pair[0]))

    @property
    def threat_models(self) -> list[str]:
        """Those with an attacker, in the order to show them."""
        return [name for name in dict.fromkeys(pair[0] for pair in self.columns) if name != BENIGN]

    @property
    def ours(self) -> list[str]:
        """Names of the feature-distillation defences."""
        return [name for name in self.defences if self.families[name] == OURS]

    @property
    def rivals(self) -> list[str]:
        """Names of the other defences."""
        return [name for name in self.defences if self.families[name] not in (OURS, UNDEFENDED)]

    @property
    def undefended(self) -> str | None:
        """Name of the bare classifier, if it was evaluated."""
        names = (name for name in self.defences if self.families[name] == UNDEFENDED)
        return next(names, None)

    def row(self, defence: str, threat_model: str, attack: str) -> Row | None:
        """One figure, if it was measured.

        Args:
            defence: Name of the defence.
            threat_model: The threat model.
            attack: Name of the attack.
        """
        return self._rows.get((defence, threat_model, attack))

    def attacks(self, threat_model: str, defence: str | None = None) -> list[str]:
        """Attacks that were run under a threat model.

        Args:
            threat_model: The threat model.
            defence: Only those run against this defence.
        """
        return [
            attack
            for model, attack in self.columns
            if model == threat_model and (defence is None or self.row(defence, model, attack))
        ]

    def shared_attacks(self, threat_model: str, defences: Sequence[str]) -> list[str]:
        """Attacks that were run under a threat model against every one of some defences.

        Args:
            threat_model: The threat model.
            defences: Names of the defences.
        """
        return [
            attack
            for attack in self.attacks(threat_model)
            if all(self.row(name, threat_model, attack) for name in defences)
        ]

    def benign(self, defence: str) -> Mean | None:
        """Accuracy without an attack, if it was measured.

        Args:
            defence: Name of the defence.
        """
        return self.mean(defence, BENIGN, [NO_ATTACK])

    def mean(self, defence: str, threat_model: str, attacks: Sequence[str]) -> Mean | None:
        """Mean accuracy under several attacks of one threat model, if all were run.

        Args:
            defence: Name of the defence.
            threat_model: The threat model.
            attacks: Names of the attacks.
        """
        rows = [self.row(defence, threat_model, attack) for attack in attacks]
        found = [row for row in rows if row is not None]
        if not found or len(found) < len(rows):
            return None
        triples = [(row["accuracy"], *row["interval"]) for row in found]
        return Mean(*(sum(values) / len(found) for values in zip(*triples)))
