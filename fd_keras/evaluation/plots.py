"""Trade-offs, curves over epsilon, ROC curves and times of an evaluation, and their plots.

Every function that plots returns a ``matplotlib.figure.Figure``, small enough to be read on a
phone. matplotlib comes with the extra ``evaluate``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fd_keras._pages import PAGE_PAPER, PAGE_SOFT, page_colors
from fd_keras.evaluation.accuracies import (
    CERTIFIED,
    OURS,
    TWO_PASS,
    UNBOUNDED,
    UNDEFENDED,
    AccuracyGrid,
    Row,
)
from fd_keras.plots import (
    PALETTE,
    NamedPoint,
    color_of,
    draw_steps,
    empty_axes,
    place_names,
    short_name,
)


class TradeOff(NamedTuple):
    """Accuracy of a defence without an attack and under attack.

    Args:
        defence: Name of the defence.
        family: Kind of defence.
        benign: Benign accuracy, from 0 to 1.
        attacked: Mean accuracy over attacks of one threat model.
    """

    defence: str
    family: str
    benign: float
    attacked: float

    def dominates(self, other: TradeOff) -> bool:
        """Whether it dominates another: no worse at both accuracies, and better at one.

        Args:
            other: Of the same threat model and attacks.

        Example:
            >>> TradeOff("a", "", 0.9, 0.5).dominates(TradeOff("b", "", 0.9, 0.4))
            True
        """
        mine, theirs = (self.benign, self.attacked), (other.benign, other.attacked)
        return mine != theirs and mine[0] >= theirs[0] and mine[1] >= theirs[1]


class StoredSize(NamedTuple):
    """Certified accuracy of a defence, and how many bytes its stored images take.

    Args:
        defence: Name of the defence.
        family: Kind of defence.
        bytes_per_image: Mean over the images.
        certified: Certified accuracy, from 0 to 1.
    """

    defence: str
    family: str
    bytes_per_image: float
    certified: float


class EpsilonCurve(NamedTuple):
    """Accuracy of a defence under attacks of growing epsilon.

    Args:
        defence: Name of the defence.
        family: Kind of defence.
        epsilons: In grey levels of 255, ascending; 0 is benign. In two passes there is no 0, since
            only images that are right once encoded are attacked.
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
        One point for each defence that any such attack was run on, and the attacks that were run
        on all of them.

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


def stored_sizes(
    grid: AccuracyGrid, defences: Sequence[Mapping[str, Any]], bound: str
) -> list[StoredSize]:
    """Certified accuracy and bytes per image of each defence for which something is certified.

    Args:
        grid: The accuracies.
        defences: Entries of a report's ``defences``.
        bound: As the grid names it, such as ``"within 1/255"``.

    Example:
        >>> stored_sizes(AccuracyGrid([]), [], "within 1/255")
        []
    """
    return [
        StoredSize(
            entry["name"],
            entry["family"],
            entry["two_passes"]["bytes_per_image"],
            row["accuracy"],
        )
        for entry in defences
        if entry.get("two_passes") and (row := grid.row(entry["name"], CERTIFIED, bound))
    ]


def swept_attacks(rows: Sequence[Row], threat_model: str) -> list[tuple[str, str | None]]:
    """Attacks that were run at several epsilons, without those that have none in effect.

    Args:
        rows: Of a report.
        threat_model: Of the attacks.

    Returns:
        Pairs of attack family and norm.

    Example:
        >>> swept_attacks([], "gray-box")
        []
    """
    swept: dict[tuple[str, str | None], set[float]] = defaultdict(set)
    for row in rows:
        if row["attack_family"] and _is_on_curve(row, threat_model):
            swept[row["attack_family"], row["norm"]].add(row["epsilon"])
    return [kind for kind, epsilons in swept.items() if len(epsilons) > 1]


def epsilon_curves(
    grid: AccuracyGrid,
    rows: Sequence[Row],
    threat_model: str,
    kind: tuple[str, str | None],
) -> list[EpsilonCurve]:
    """Accuracy against epsilon: of every table, and of the best setting of each other family.

    Where several attacks of the kind have the same epsilon, the strongest counts.

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
        if (row["attack_family"], row["norm"]) == kind and _is_on_curve(row, threat_model):
            point = (row["accuracy"], *row["interval"])
            curve = points[row["defence"]]
            epsilon = 255 * row["epsilon"]
            curve[epsilon] = min(point, curve.get(epsilon, point))
    best: dict[str, EpsilonCurve] = {}
    for name in (name for name in grid.defences if len(points[name]) > 1):
        benign, family = grid.benign(name), grid.families[name]
        if threat_model.startswith(TWO_PASS):
            benign = None  # of all images, and not only of those that are attacked
        start = {0.0: tuple(benign)} if benign else {}
        epsilons, values = zip(*sorted({**start, **points[name]}.items()))
        curve_of = EpsilonCurve(name, family, epsilons, *zip(*values))
        key = name if family == OURS else family
        if key not in best or sum(curve_of.accuracy) > sum(best[key].accuracy):
            best[key] = curve_of
    return list(best.values())


def _is_on_curve(row: Row, threat_model: str) -> bool:
    """Whether an attack has an epsilon, and is not the sanity check's."""
    return row["threat_model"] == threat_model and 0 < (row["epsilon"] or 0) < UNBOUNDED


# A shape of its own for each family, beside its colour.
_MARKERS = {
    OURS: "*",
    UNDEFENDED: "X",
    "JPEG": "o",
    "bit depth": "s",
    "median": "D",
    "SLQ": "^",
    "TVM": "v",
    "quilting": "P",
}
_OTHER = "h"
_STYLES = ("-", "--", "-.", ":")
# Several tables in one plot keep the star and a warm colour.
_OUR_COLORS = [PALETTE[name] for name in ("orange", "red", "amber", "brown")]


def plot_trade_off(points: Sequence[TradeOff], threat_model: str) -> Any:
    """Benign against attacked accuracy, with the Pareto front of the defences.

    Feature distillation has stars, JPEG qualities are joined. A name that would cover another
    is left out.

    Args:
        points: What ``trade_offs`` returned.
        threat_model: Of the attacked accuracies.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> points = [TradeOff("none", "none", 1.0, 0.1), TradeOff("mine", OURS, 0.9, 0.5)]
        >>> len(plot_trade_off(points, "gray-box").axes)
        1
    """
    with page_colors():
        figure, axis = empty_axes(4.6, 4.0)
        front = [point for point in points if not any(other.dominates(point) for other in points)]
        front.sort(key=lambda point: (point.benign, -point.attacked))
        # Asking for at least x benign accuracy gets the next point of the front.
        _line(axis, front, color=PAGE_SOFT, linestyle="--", linewidth=1, drawstyle="steps-pre")
        jpeg = [point for point in points if point.family == "JPEG"]
        if len(jpeg) > 1:
            jpeg.sort(key=lambda point: point.benign)
            _line(axis, jpeg, color=color_of("JPEG"), linewidth=1, alpha=0.6)
        for family in dict.fromkeys(point.family for point in points):
            color = color_of(family)
            _line(
                axis,
                [point for point in points if point.family == family],
                **{"color": color, "marker": _MARKERS.get(family, _OTHER), "linestyle": ""},
                label=family,
                markersize=13 if family == OURS else 6,
                markeredgecolor=PAGE_PAPER if family == OURS else color,
                zorder=5 if family == OURS else 3,
            )
        axis.margins(0.12, 0.12)
        axis.set(xlabel="benign accuracy, %", ylabel=f"{threat_model} accuracy, % (mean)")
        _legend_below(figure, axis, 3)
        important = sorted(points, key=lambda p: (p.family != OURS, p not in front))
        named = [
            NamedPoint(p.defence, 100 * p.benign, 100 * p.attacked, bold=p.family == OURS)
            for p in important
        ]
        place_names(figure, axis, named)
        return figure


def plot_sizes(points: Sequence[StoredSize], bound: str) -> Any:
    """Certified accuracy against bytes per stored image, on a logarithmic scale.

    Args:
        points: What ``stored_sizes`` returned.
        bound: Of the certificates, such as ``"within 1/255"``.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> points = [StoredSize("4 bits", "bit depth", 1800.0, 0.9)]
        >>> len(plot_sizes(points, "within 1/255").axes)
        1
    """
    with page_colors():
        figure, axis = empty_axes(4.6, 3.9)
        for family in dict.fromkeys(point.family for point in points):
            ours, color = family == OURS, color_of(family)
            members = [point for point in points if point.family == family]
            axis.plot(
                [point.bytes_per_image for point in members],
                _percents([point.certified for point in members]),
                **{"color": color, "marker": _MARKERS.get(family, _OTHER), "linestyle": ""},
                label=family,
                markersize=13 if ours else 6,
                markeredgecolor=PAGE_PAPER if ours else color,
                zorder=5 if ours else 3,
                clip_on=False,
            )
        axis.set_xscale("log")
        sizes = [point.bytes_per_image for point in points]
        low, high = min(sizes) / 1.3, max(sizes) * 1.3
        ticks = [m * 10**e for e in range(9) for m in (1, 2, 3, 5, 7) if low <= m * 10**e <= high]
        axis.set_xlim(low, high)
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set_xticks([], minor=True)
        axis.set(xlabel="bytes per image (logarithmic)", ylabel=f"certified {bound}, %")
        axis.set(ylim=(-4, 104))
        _legend_below(figure, axis, 3)
        important = sorted(points, key=lambda point: point.family != OURS)
        named = [
            NamedPoint(p.defence, p.bytes_per_image, 100 * p.certified, bold=p.family == OURS)
            for p in important
        ]
        place_names(figure, axis, named)
        return figure


def plot_epsilons(curves: Sequence[EpsilonCurve], threat_model: str) -> Any:
    """Accuracy against epsilon, with 95 % bands for feature distillation.

    Args:
        curves: What ``epsilon_curves`` returned.
        threat_model: Of the accuracies.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> curve = EpsilonCurve("none", "none", (0.0, 1.0), (1.0, 0.2), (0.9, 0.1), (1.0, 0.3))
        >>> len(plot_epsilons([curve], "gray-box").axes)
        1
    """
    with page_colors():
        figure, axis = empty_axes(4.6, 3.7)
        drawn = 0
        for curve in curves:
            ours = curve.family == OURS
            color = _OUR_COLORS[drawn % len(_OUR_COLORS)] if ours else color_of(curve.family)
            axis.plot(
                curve.epsilons,
                _percents(curve.accuracy),
                color=color,
                label=curve.defence,
                marker=_MARKERS.get(curve.family, _OTHER),
                linestyle=_STYLES[drawn % len(_STYLES)] if ours else "-",
                linewidth=2.4 if ours else 1.2,
                markersize=9 if ours else 4,
                zorder=4 if ours else 3,
                clip_on=False,
            )
            if ours:
                drawn += 1
                low, high = _percents(curve.low), _percents(curve.high)
                axis.fill_between(curve.epsilons, low, high, color=color, alpha=0.15, linewidth=0)
        axis.set(xlabel="epsilon, in 1/255", ylabel=f"{threat_model} accuracy, %")
        axis.set(ylim=(-2, 102))
        # Epsilons usually double from one to the next, and 0 has to be there too.
        ticks = sorted({epsilon for curve in curves for epsilon in curve.epsilons})
        smallest = next((tick for tick in ticks if tick > 0), 1.0)
        axis.set_xscale("symlog", base=2, linthresh=smallest, linscale=0.5)
        axis.set_xlim(ticks[0], ticks[-1])
        # The protocols' .0039 and .0078 are 1 and 2 grey levels; more digits would collide.
        labels = [f"{tick:.1f}".removesuffix(".0") for tick in ticks]
        axis.set_xticks(ticks, labels)
        axis.set_xticks([], minor=True)
        _legend_below(figure, axis, 3)
        return figure


def plot_steps(steps: npt.NDArray[np.float64]) -> Any:
    """The steps of one channel of a table, with the numbers in them.

    Args:
        steps: Array ``(8, 8)``.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> len(plot_steps(np.full((8, 8), 30.0)).axes)
        1
    """
    with page_colors():
        figure, axis = empty_axes(4.0, 4.0)
        axis.grid(False)
        draw_steps(axis, steps, darkest=max(64.0, float(steps.max())))
        return figure


def plot_roc(found: Sequence[Mapping[str, Any]]) -> Any:
    """ROC curves of a detector, with a dot at its threshold.

    Args:
        found: Entries of a report's ``detection``, of one threat model.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> roc = {"fpr": [0, 0.1, 1], "tpr": [0, 0.8, 1]}
        >>> rates = {"auc": 0.85, "detection_rate": 0.8, "false_positive_rate": 0.1}
        >>> len(plot_roc([{"attack": "FGSM", "roc": roc, **rates}]).axes)
        1
    """
    with page_colors():
        figure, axis = empty_axes(4.6, 4.2)
        axis.plot([0, 100], [0, 100], color=PAGE_SOFT, linewidth=0.8, linestyle=":")
        for number, entry in enumerate(found):
            color = color_of(number)
            fpr, tpr = (_percents(entry["roc"][key]) for key in ("fpr", "tpr"))
            style = _STYLES[number // len(PALETTE) % len(_STYLES)]
            label = f"{entry['attack']}: AUC {entry['auc']:.3f}"
            axis.plot(fpr, tpr, color=color, linestyle=style, linewidth=1.6, label=label)
            works_at = 100 * entry["false_positive_rate"], 100 * entry["detection_rate"]
            axis.plot(*works_at, color=color, marker="o", markersize=6)
        axis.set(xlabel="benign images flagged, %", ylabel="attacked images flagged, %")
        axis.set(xlim=(-2, 102), ylim=(-2, 102))
        _legend_below(figure, axis, 2)
        return figure


def plot_times(defences: Sequence[Mapping[str, Any]]) -> Any:
    """Milliseconds per image on a logarithmic scale, the fastest at the top.

    Args:
        defences: Entries of a report's ``defences``, with a positive time each.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> len(plot_times([{"name": "a", "family": "JPEG", "ms_per_image": 0.7}]).axes)
        1
    """
    with page_colors():
        timed = sorted(defences, key=lambda entry: -entry["ms_per_image"])
        figure, axis = empty_axes(4.6, 0.9 + 0.25 * len(timed))
        times = [entry["ms_per_image"] for entry in timed]
        colors = [color_of(entry["family"]) for entry in timed]
        bars = axis.barh([short_name(entry["name"]) for entry in timed], times, color=colors)
        axis.bar_label(bars, [f"{time:.3g}" for time in times], padding=3, fontsize=9)
        axis.set(xscale="log", xlabel="ms per image, median (logarithmic)")
        axis.set_xlim(min(times) / 2.5, max(times) * 5)
        axis.grid(False, axis="y")
        axis.tick_params(axis="y", length=0)
        return figure


def _line(axis: Any, points: Sequence[TradeOff], **look: Any) -> None:
    benign, attacked = [point.benign for point in points], [point.attacked for point in points]
    axis.plot(_percents(benign), _percents(attacked), **look)


def _legend_below(figure: Any, axis: Any, columns: int) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        [short_name(name) for name in names],
        **{"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 8},
        **{"handlelength": 2.4, "columnspacing": 1.0},
    )


def _percents(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]
