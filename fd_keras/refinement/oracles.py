"""Keras Tuner's oracles, made reproducible and safe to kill and resume.

Differences from Keras Tuner 1.4.8:

* ``seed=0`` is a seed like any other; there it means a random one.
* Files are replaced atomically; there a process that is killed while writing leaves a broken
  search.
* Files carry a checksum, and a damaged one is named; there it ends in an error of JSON, or changes
  the result.
* A trial that was being written when the process was killed is run, and one that had ended is
  not run again; there it is the other way round.
* A search that was killed and resumed ends as one that was not; there the Bayesian oracle loses
  its random state and the grid its position.
* The Bayesian oracle looks at many random tables at once and improves the best few; there it starts
  50 searches that ask the model of one table at a time, which takes longer than a trial of a small
  network.
* The trial of a worker that is lost goes to another worker after ``worker_timeout`` seconds; there
  the chief waits for ever.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import numpy.typing as npt
import scipy.optimize
from keras_tuner.engine import trial as trials

from fd_keras._checks import shown
from fd_keras._files import atomic_path

ORACLES = ("bayesian", "random", "hyperband", "grid")
OBJECTIVE = "score"

# Passes over the images in Hyperband's sense: its smallest trials see a quarter of them.
HYPERBAND_EPOCHS = 4

# Of the Bayesian oracle: random points of which its model is asked at once, how many of the best
# are improved, and the difference in each direction that gives a slope.
_CANDIDATES = 2000
_DESCENTS = 5
_DIFFERENCE = 1e-6

_STATUS = trials.TrialStatus

_ORACLE, _TRIAL = "oracle.json", "trial.json"
_CHECKSUM = "sha256"


class _Guarded(keras_tuner.Oracle):
    """Mixed into an oracle of Keras Tuner; see the docstring of the module."""

    def __init__(
        self,
        *,
        seed: int,
        starting_points: Sequence[Mapping[str, Any]] = (),
        worker_timeout: float = 60.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            objective=keras_tuner.Objective(OBJECTIVE, direction="max"),
            seed=seed + 1,
            allow_new_entries=False,
            **kwargs,
        )
        self.starting_points = [dict(point) for point in starting_points]
        self.worker_timeout = worker_timeout
        #: Whether a tuner was told that the search is over.
        self.over = False
        #: When a tuner was last heard of.
        self.last_heard: float | None = None
        #: Called after a trial has ended.
        self.on_trial_end: Callable[[], None] = lambda: None
        self._heard: dict[str, float] = {}  # by trial
        self._retry_queue: list[str]

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Any:
        self._take_back_lost_trials(tuner_id)
        self._retry_queue = [name for name in self._retry_queue if name not in self.end_order]
        trial = super().create_trial(tuner_id)
        if trial.status == _STATUS.STOPPED and self.ongoing_trials:
            # Others are still at work. Should they be lost, this tuner takes over.
            trial.status = _STATUS.IDLE
            self.tuner_ids.add(tuner_id)
        self.over = trial.status == _STATUS.STOPPED
        self._hear(trial.trial_id)
        return trial

    def get_trial(self, trial_id: str) -> Any:
        self._hear(trial_id)  # a worker's sign of life
        return super().get_trial(trial_id)

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: Any, step: int = 0) -> Any:
        self._hear(trial_id)
        if trial_id in self.end_order:
            return self.trials[trial_id]  # from a worker that was thought to be lost
        return super().update_trial(trial_id, metrics, step)

    @keras_tuner.synchronized
    def end_trial(self, trial: Any) -> None:
        if trial.trial_id not in self.end_order:
            super().end_trial(trial)
            self.on_trial_end()

    def save(self) -> None:
        write_state(self._get_oracle_fname(), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        write_state(Path(self._get_trial_dir(trial.trial_id)) / _TRIAL, trial.get_state())

    def reload(self) -> None:
        check_states(self._project_dir)
        super().reload()

    def set_state(self, state: Mapping[str, Any]) -> None:
        super().set_state(state)
        running = {t.trial_id for t in self.ongoing_trials.values()} | set(self._retry_queue)
        self._retry_queue += [
            name
            for name, trial in self.trials.items()
            if trial.status == _STATUS.RUNNING and name not in running
        ]

    def populate_space(self, trial_id: str) -> Any:
        if len(self.trials) < len(self.starting_points):
            values = self.starting_points[len(self.trials)]
            if not self._duplicate(values):
                return {"status": _STATUS.RUNNING, "values": dict(values)}
        return super().populate_space(trial_id)

    def _hear(self, trial_id: str) -> None:
        self.last_heard = self._heard[trial_id] = time.monotonic()

    def _take_back_lost_trials(self, asking: str) -> None:
        now = time.monotonic()
        for tuner_id, trial in list(self.ongoing_trials.items()):
            silent = now - self._heard.get(trial.trial_id, now)
            if tuner_id != asking and silent > self.worker_timeout:
                del self.ongoing_trials[tuner_id]
                self.tuner_ids.discard(tuner_id)
                self._retry_queue.append(trial.trial_id)


class RandomOracle(_Guarded, keras_tuner.oracles.RandomSearchOracle):
    """Random search."""


class BayesianOracle(_Guarded, keras_tuner.oracles.BayesianOptimizationOracle):
    """Bayesian optimisation: a Gaussian process and its upper confidence bound."""

    def populate_space(self, trial_id: str) -> Any:
        """Values of a trial."""
        # Keras Tuner does not save this generator.
        self._random_state = np.random.RandomState([self.seed, len(self.trials)])
        ended = sum(trial.status == _STATUS.COMPLETED for trial in self.trials.values())
        if ended < self.num_initial_points:
            return super().populate_space(trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn reports on every length scale
            self.gpr.fit(*self._vectorize_trials())
            values = self._vector_to_values(self._promising_point())
        return {"status": _STATUS.RUNNING, "values": values}

    def _promising_point(self) -> npt.NDArray[np.float64]:
        """Where the score may be best, as the model is sure of it."""
        bounds = self._get_hp_bounds()
        points = self._random_state.uniform(bounds[:, 0], bounds[:, 1], (_CANDIDATES, len(bounds)))
        best = points[np.argsort(self._bound(points), kind="stable")[:_DESCENTS]]
        found = [
            scipy.optimize.minimize(
                self._bound_and_slope, point, jac=True, bounds=bounds, method="L-BFGS-B"
            )
            for point in best
        ]
        return np.asarray(min(found, key=lambda result: float(result.fun)).x)

    def _bound(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Lower confidence bounds of the negative score."""
        mean, deviation = self.gpr.predict(points, return_std=True)
        return np.asarray(mean - self.beta * deviation)

    def _bound_and_slope(
        self, point: npt.NDArray[np.float64]
    ) -> tuple[float, npt.NDArray[np.float64]]:
        around = np.concatenate([[point], point + _DIFFERENCE * np.eye(len(point))])
        value, *others = self._bound(around)
        return float(value), (np.array(others) - value) / _DIFFERENCE


class HyperbandOracle(_Guarded, keras_tuner.oracles.HyperbandOracle):
    """Hyperband: many trials on few images, the best of them on more."""

    def __init__(self, *, max_trials: int, starting_points: Any = (), **kwargs: Any) -> None:
        # It draws its own trials and takes no others.
        super().__init__(
            max_epochs=HYPERBAND_EPOCHS, factor=2, hyperband_iterations=max_trials, **kwargs
        )
        self.max_trials = max_trials


class GridOracle(_Guarded, keras_tuner.oracles.GridSearchOracle):
    """All combinations in order."""

    def __init__(self, *, starting_points: Any = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)  # other points have no place in its order

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on where the grid was."""
        super().set_state(state)

        def order(one: str, other: str) -> int:
            return self._compare(*(self.trials[t].hyperparameters.values for t in (one, other)))

        tried = sorted(self.trials, key=functools.cmp_to_key(order))
        for trial_id in tried:
            self._ordered_ids.insert(trial_id)
        self._populate_next = tried


def make_oracle(name: str, hyperparameters: Any, **settings: Any) -> Any:
    """An oracle by its name.

    Args:
        name: One of ``ORACLES``.
        hyperparameters: The complete ``keras_tuner.HyperParameters``.
        **settings: ``max_trials``, ``seed`` and, optionally, ``starting_points`` (values to
            try first; the grid and Hyperband take none) and ``worker_timeout``.

    Raises:
        ValueError: There is no such oracle.

    Example:
        >>> hp = keras_tuner.HyperParameters()
        >>> _ = hp.Float("step", 1, 64)
        >>> make_oracle("random", hp, max_trials=3, seed=0).objective.name
        'score'
    """
    if name not in ORACLES:
        raise ValueError(f"`oracle` must be one of {ORACLES}. Received: oracle={shown(name)}")
    if name == "bayesian":
        # Enough to tell the axes apart; Keras Tuner's own three times as many leave it no time.
        points = len(settings.get("starting_points", ())) + len(hyperparameters.space) + 1
        settings["num_initial_points"] = points
    made = {
        "bayesian": BayesianOracle,
        "random": RandomOracle,
        "hyperband": HyperbandOracle,
        "grid": GridOracle,
    }[name]
    return made(hyperparameters=hyperparameters, **settings)


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write the state of an oracle, a trial or a tuner with its checksum.

    Args:
        path: The file; it is replaced atomically.
        state: Plain JSON types.

    Example:
        See ``check_states``.
    """
    text = json.dumps({**state, _CHECKSUM: _checksum(state)})
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_states(directory: str | os.PathLike[str]) -> None:
    """Refuse a search of which a file is damaged or missing.

    Args:
        directory: Where the oracle and the trials are kept; need not exist.

    Raises:
        ValueError: A file is damaged or missing; the message names it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_state(folder / "oracle.json", {"start_order": ["0"]})
        >>> check_states(folder)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: `directory` holds a search with a file that is missing; restore the file, ...
    """
    home = Path(directory)
    found = {path: _checked_state(path) for path in sorted(home.glob(f"trial_*/{_TRIAL}"))}
    oracle = home / _ORACLE
    if not oracle.exists():
        return  # killed before its first trial
    for trial_id in _checked_state(oracle)["start_order"]:
        if (path := home / f"trial_{trial_id}" / _TRIAL) not in found:
            raise ValueError(_unusable(path, "missing"))


def _checked_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_bytes())
        checksum = state.pop(_CHECKSUM)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(_unusable(path, "damaged")) from error
    if checksum != _checksum(state):
        raise ValueError(_unusable(path, "damaged"))
    return dict(state)


def _unusable(path: Path, how: str) -> str:
    return (
        f"`directory` holds a search with a file that is {how}; restore the file, or throw the "
        f"search away with overwrite=True. Received: directory={os.fspath(path)!r}"
    )


def _checksum(state: Mapping[str, Any]) -> str:
    read_back = json.loads(json.dumps(state))  # keys are texts then, and sorted as such
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()
