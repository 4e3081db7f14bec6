"""Which hyperparameters of a search its result depended on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fd_keras.refinement.result import Trial

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
