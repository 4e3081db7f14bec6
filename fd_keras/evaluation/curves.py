"""What the plots of an evaluation show, taken from its accuracies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fd_keras.evaluation.grid import AccuracyGrid
from fd_keras.evaluation.rows import OURS


class TradeOff(NamedTuple):
    """What a defence keeps without an attack and under attack.

    Args:
        defence: Its name.
        family: What kind it is.
        benign: Benign accuracy, from 0 to 1.
        attacked: Mean accuracy over attacks of one threat model.
    """

    defence: str
    family: str
    benign: float
    attacked: float

    def beats(self, other: TradeOff) -> bool:
        """Whether it is at least as good at both and better at one.

        Args:
            other: Of the same threat model and attacks.

        Example:
            >>> TradeOff("a", "", 0.9, 0.5).beats(TradeOff("b", "", 0.9, 0.4))
            True
        """
        mine, theirs = (self.benign, self.attacked), (other.benign, other.attacked)
        return mine != theirs and mine[0] >= theirs[0] and mine[1] >= theirs[1]


class EpsilonCurve(NamedTuple):
    """Accuracy of a defence under stronger and stronger attacks.

    Args:
        defence: Its name.
        family: What kind it is.
        epsilons: Ascending, on pixels from 0 to 1; 0 is benign.
        accuracy: At each epsilon, from 0 to 1.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    defence: str
    family: str
    epsilons: tuple[float, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def trade_offs(grid: AccuracyGrid, threat_model: str) -> tuple[list[TradeOff], list[str]]:
    """Benign accuracy and mean attacked accuracy of each defence, over the same attacks.

    Args:
        grid: The accuracies.
        threat_model: Of the attacks.

    Returns:
        The defences that met any such attack, and the attacks that all of them met.

    Example:
        >>> trade_offs(AccuracyGrid([]), "gray-box")
        ([], [])
    """
    met = [name for name in grid.defences if grid.attacks(threat_model, name)]
    met = [name for name in met if grid.benign(name)]
    attacks = grid.shared_attacks(threat_model, met)
    points = []
    for name in met:
        benign, attacked = grid.benign(name), grid.mean(name, threat_model, attacks)
        if benign and attacked:
            points.append(TradeOff(name, grid.families[name], benign.accuracy, attacked.accuracy))
    return points, attacks


def swept_attacks(
    rows: Sequence[Mapping[str, Any]], threat_model: str
) -> list[tuple[str, str | None]]:
    """Kinds of attack that were run at several strengths.

    Args:
        rows: Of a report.
        threat_model: Of the attacks.

    Returns:
        Pairs of attack family and norm.

    Example:
        >>> swept_attacks([], "gray-box")
        []
    """
    strengths: dict[tuple[str, str | None], set[float]] = defaultdict(set)
    for row in rows:
        if row["threat_model"] == threat_model and row["attack_family"] and row["epsilon"]:
            strengths[row["attack_family"], row["norm"]].add(row["epsilon"])
    return [kind for kind, epsilons in strengths.items() if len(epsilons) > 1]


def epsilon_curves(
    grid: AccuracyGrid,
    rows: Sequence[Mapping[str, Any]],
    threat_model: str,
    kind: tuple[str, str | None],
) -> list[EpsilonCurve]:
    """Accuracy against epsilon: of every table, and of the best setting of each rival family.

    Where several attacks of the kind have the same epsilon, the one that hurts most counts.

    Args:
        grid: The accuracies.
        rows: The same, as a list.
        threat_model: Of the attacks.
        kind: Attack family and norm, from ``swept_attacks``.

    Returns:
        Curves in the grid's order of defences.

    Example:
        >>> epsilon_curves(AccuracyGrid([]), [], "gray-box", ("PGD", "inf"))
        []
    """
    points: dict[str, dict[float, tuple[float, float, float]]] = defaultdict(dict)
    for row in rows:
        same_kind = (row["attack_family"], row["norm"]) == kind
        if same_kind and row["threat_model"] == threat_model and row["epsilon"]:
            point = (row["accuracy"], *row["interval"])
            curve = points[row["defence"]]
            curve[row["epsilon"]] = min(point, curve.get(row["epsilon"], point))
    best: dict[str, EpsilonCurve] = {}
    for name in (name for name in grid.defences if len(points[name]) > 1):
        benign, family = grid.benign(name), grid.families[name]
        start = {0.0: tuple(benign)} if benign else {}
        epsilons, values = zip(*sorted({**start, **points[name]}.items()))
        curve_of = EpsilonCurve(name, family, epsilons, *zip(*values))
        key = name if family == OURS else family
        if key not in best or sum(curve_of.accuracy) > sum(best[key].accuracy):
            best[key] = curve_of
    return list(best.values())
