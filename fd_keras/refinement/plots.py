"""Plots of a search, and how much each hyperparameter mattered in it.

Every plot is a ``matplotlib.figure.Figure``; matplotlib comes with the extra ``evaluate``. For the
heat map of the best table, see ``fd_keras.plots.plot_table``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fd_keras._pages import PAGE_INK
from fd_keras.plots import PALE, NamedPoint, color_of, empty_axes, place_names
from fd_keras.refinement.result import RefineResult, ScoredDefence, Trial
from fd_keras.refinement.scoring import Accuracies

_OURS, _BASELINE = color_of("feature distillation"), color_of("JPEG")

_TREES = 200
_REPEATS = 20
_LEAST_TRIALS = 8


def plot_front(result: RefineResult) -> Any:
    """Benign against gray-box accuracy on the test split: the front, the best, the baselines.

    Qualities of JPEG are one line, whose points are named by their quality alone. Small dots are
    all trials on the validation split: how far the front lies below the best of them is how far
    the search has overfitted its images.

    Args:
        result: Of a search.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axis = empty_axes(6.4, 4.8)
    trials = [trial.validation for trial in result.trials if trial.complete]
    _points(axis, trials, marker=".", linestyle="", color=PALE, label="trials, validation split")
    front = [point.test for point in result.front]
    _points(axis, front, color=_OURS, marker="*", linestyle="-", label="front, test split")
    _points(axis, [result.best.test], color=_OURS, marker="*", linestyle="", markersize=15)
    for family in dict.fromkeys(baseline.family for baseline in result.baselines):
        members = [baseline.test for baseline in result.baselines if baseline.family == family]
        members.sort(key=lambda accuracies: accuracies.benign)
        jpeg = {"color": _BASELINE, "linestyle": "-", "linewidth": 1, "label": "JPEG, test split"}
        look = jpeg if family == "JPEG" else {"color": PAGE_INK, "linestyle": ""}
        _points(axis, members, marker="o", markersize=4, **look)
    allowed = 100 * (1 - result.settings["max_benign_loss"])
    axis.axvline(allowed, color=PAGE_INK, linewidth=0.8, linestyle=":")
    axis.set(xlabel="benign accuracy, %", ylabel="gray-box accuracy, % (mean over attacks)")
    least = min(allowed, *axis.get_xlim())
    axis.set(xlim=(least - 1, 100 + 0.06 * (101 - least)), ylim=(-3, 103))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    best = NamedPoint(result.best.name, *_percent(result.best.test), bold=True)
    place_names(figure, axis, [best, *map(_named, result.baselines)])
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
    axis.plot(numbers, scores, ".", color=_BASELINE, label="trial")
    axis.step(numbers, best, where="post", color=_OURS, label="best so far")
    axis.axhline(0, color=PAGE_INK, linewidth=0.8, linestyle=":")
    axis.set(xlabel="trial", ylabel="objective (below 0: too lossy)")
    axis.legend(fontsize=8)
    return figure


def plot_importance(result: RefineResult) -> Any:
    """The share of each hyperparameter in the objective, see ``parameter_importance``.

    Args:
        result: Of a search.

    Returns:
        A figure; empty axes where there are too few trials.

    Raises:
        ImportError: matplotlib is not installed.
    """
    shares = parameter_importance(result.trials)
    figure, axis = empty_axes(4.6, 0.9 + 0.3 * max(1, len(shares)))
    axis.barh(list(shares)[::-1], [100 * share for share in shares.values()][::-1], color=_OURS)
    axis.set(xlabel="share in the objective, %", xlim=(0, 100))
    return figure


def parameter_importance(trials: Sequence[Trial]) -> dict[str, float]:
    """Permutation importance of each hyperparameter in a forest that predicts the objective.

    It is about the values that this search tried, and a parameter that only matters together
    with another one shares its importance with it.

    Args:
        trials: Of a search; failed ones are left out.

    Returns:
        Shares that sum to 1, by parameter, the largest first; empty for fewer than 8 trials.

    Example:
        >>> parameter_importance([])
        {}

    References:
        Breiman, "Random Forests", Machine Learning, 2001; Geurts et al., "Extremely randomized
        trees", Machine Learning, 2006.
    """
    scored = [trial for trial in trials if "score" in trial.metrics]
    names = [name for name in (scored[0].values if scored else ()) if not name.startswith("tuner/")]
    if len(scored) < _LEAST_TRIALS or not names:
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


def _named(baseline: ScoredDefence) -> NamedPoint:
    place = _percent(baseline.test)
    if baseline.family == "JPEG":
        return NamedPoint(baseline.name.removeprefix("JPEG "), *place, color=_BASELINE)
    return NamedPoint(baseline.name, *place)


def _points(axis: Any, points: Sequence[Accuracies], **look: Any) -> None:
    pairs = [_percent(accuracies) for accuracies in points]
    axis.plot([x for x, _ in pairs], [y for _, y in pairs], **look)


def _percent(accuracies: Accuracies) -> tuple[float, float]:
    return 100 * accuracies.benign, 100 * accuracies.gray_box
