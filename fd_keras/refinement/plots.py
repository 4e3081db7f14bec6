"""Plots of a search.

Every function returns a ``matplotlib.figure.Figure``. matplotlib comes with the extra
``evaluate``. The heat map of the best table is ``fd_keras.plots.plot_table``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fd_keras.plots import NamedPoint, empty_axes, place_names
from fd_keras.refinement.result import Contender, RefineResult, Trial

_TREES = 200
_REPEATS = 20


def parameter_importance(trials: Sequence[Trial]) -> dict[str, float]:
    """How much worse a forest predicts the objective once a parameter's values are shuffled.

    It is about the values that this search tried, and a parameter that only matters together
    with another one shares its importance with it.

    Args:
        trials: Of a search; failed ones are left out.

    Returns:
        Shares that sum to 1, by parameter, the largest first; empty for fewer than 8 trials,
        which say nothing.

    Example:
        >>> parameter_importance([])
        {}

    References:
        Breiman, "Random Forests", Machine Learning, 2001; Geurts et al., "Extremely randomized
        trees", Machine Learning, 2006.
    """
    scored = [trial for trial in trials if "score" in trial.metrics]
    names = [name for name in (scored[0].values if scored else ()) if not name.startswith("tuner/")]
    if len(scored) < 8 or not names:
        return {}
    from sklearn.ensemble import ExtraTreesRegressor  # slow to import
    from sklearn.inspection import permutation_importance

    columns = [_numbers([trial.values[name] for trial in scored]) for name in names]
    x, y = np.stack(columns, 1), np.array([trial.metrics["score"] for trial in scored])
    forest = ExtraTreesRegressor(_TREES, random_state=0, min_samples_leaf=2).fit(x, y)
    found = permutation_importance(forest, x, y, n_repeats=_REPEATS, random_state=0)
    shares = np.maximum(found.importances_mean, 0)
    shares = shares / max(shares.sum(), 1e-12)
    return {names[i]: float(shares[i]) for i in np.argsort(-shares)}


def _numbers(values: Sequence[object]) -> np.ndarray:
    if any(isinstance(value, str) for value in values):
        return np.unique(np.array(values), return_inverse=True)[1].astype(np.float64)
    return np.array(values, np.float64)


_OURS = "#e0561b"
_PALE = "#c9d3dc"
_RIVALS = "#2f7fd1"
_INK = "#1b2733"


def plot_front(result: RefineResult) -> Any:
    """Benign against attacked accuracy on the held-back half: the front, the best, the rivals.

    Small dots are all trials on the selecting half: how far the front lies below the best of
    them is how far the search has adapted to its images. Threat model: gray-box.

    Args:
        result: Of a search.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axis = empty_axes(6.4, 4.8)
    seen = [trial.selection for trial in result.trials if trial.complete]
    axis.plot(
        [100 * figures.benign for figures in seen],
        [100 * _gray_box(figures) for figures in seen],
        **{"marker": ".", "linestyle": "", "color": _PALE, "label": "trials, selecting half"},
    )
    _points(axis, result.front, color=_OURS, marker="*", linestyle="-", label="front, held back")
    _points(axis, [result.best], color=_OURS, marker="*", linestyle="", markersize=15)
    families = dict.fromkeys(rival.family for rival in result.rivals)
    for family in families:
        members = [rival for rival in result.rivals if rival.family == family]
        members.sort(key=lambda rival: rival.held_back.benign)
        line = "-" if family == "JPEG" else ""
        color = _RIVALS if family == "JPEG" else _INK
        _points(axis, members, color=color, marker="o", markersize=4, linestyle=line, linewidth=1)
    allowed = 100 * (1 - result.settings["max_benign_loss"])
    axis.axvline(allowed, color=_INK, linewidth=0.8, linestyle=":")
    axis.set(xlabel="benign accuracy, %", ylabel="gray-box accuracy, % (mean over attacks)")
    least = min(allowed, *axis.get_xlim())
    axis.set(xlim=(least - 1, 100 + 0.06 * (101 - least)), ylim=(-3, 103))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    named = [(result.best, True), *((rival, False) for rival in result.rivals)]
    points = [
        NamedPoint(
            contender.name,
            100 * contender.held_back.benign,
            100 * _gray_box(contender.held_back),
            bold,
        )
        for contender, bold in named
    ]
    place_names(figure, axis, points)
    return figure


def plot_importance(result: RefineResult) -> Any:
    """What share each hyperparameter had in the objective, see ``parameter_importance``.

    Args:
        result: Of a search.

    Returns:
        A figure; empty axes where too few trials say nothing.

    Raises:
        ImportError: matplotlib is not installed.
    """
    shares = parameter_importance(result.trials)
    figure, axis = empty_axes(4.6, 0.9 + 0.3 * max(1, len(shares)))
    axis.barh(list(shares)[::-1], [100 * share for share in shares.values()][::-1], color=_OURS)
    axis.set(xlabel="share in the objective, %", xlim=(0, 100))
    return figure


def plot_trials(result: RefineResult) -> Any:
    """The objective of every trial in their order, and the best so far.

    Args:
        result: Of a search.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axis = empty_axes(6.4, 3.2)
    scored = [trial for trial in result.trials if "score" in trial.metrics]
    numbers, scores = [t.number for t in scored], [t.metrics["score"] for t in scored]
    best = [max(scores[: i + 1]) for i in range(len(scores))]
    axis.plot(numbers, scores, ".", color=_RIVALS, label="trial")
    axis.step(numbers, best, where="post", color=_OURS, label="best so far")
    axis.axhline(0, color=_INK, linewidth=0.8, linestyle=":")
    axis.set(xlabel="trial", ylabel="objective (below 0: too lossy)")
    axis.legend(fontsize=8)
    return figure


def _points(axis: Any, contenders: Sequence[Contender], **look: Any) -> None:
    axis.plot(
        [100 * contender.held_back.benign for contender in contenders],
        [100 * _gray_box(contender.held_back) for contender in contenders],
        **look,
    )


def _gray_box(figures: Any) -> float:
    """Mean over the gray-box attacks, which all defences met."""
    names = [name for name in figures.attacks if not name.endswith(", adaptive")]
    return sum(right / seen for right, seen in map(figures.counts.get, names)) / len(names)
