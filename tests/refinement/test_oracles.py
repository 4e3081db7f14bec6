"""Oracles whose trials and workers are lost, and the chief that waits for them."""

import json
import time
from pathlib import Path

import keras_tuner
import numpy as np
import pytest
from scipy.optimize import differential_evolution

from fd_keras.refinement.oracles import make_oracle
from fd_keras.refinement.refine import serve_until_over


def test_a_chief_does_not_wait_for_ever_for_workers_that_are_lost():
    _ = (hp := keras_tuner.HyperParameters()).Float("step", 1, 64)
    oracle = make_oracle("random", hp, max_trials=3, seed=1)
    oracle.last_heard = time.monotonic()
    with pytest.raises(RuntimeError, match="No worker is left; 0 of 3"):
        serve_until_over(lambda: time.sleep(5), oracle, 0.1)

    def taken():
        raise OSError("port in use")

    with pytest.raises(OSError, match="port"):
        serve_until_over(taken, oracle, 60)


def test_trials_of_lost_workers_go_to_others(tmp_path, monkeypatch):
    _ = (hp := keras_tuner.HyperParameters()).Float("step", 1, 64)
    oracle = make_oracle("random", hp, max_trials=1, seed=1, worker_timeout=10)
    oracle._set_project_dir(tmp_path, "x")
    oracle.verbose = 0
    clock = [100.0]
    monkeypatch.setattr("fd_keras.refinement.oracles.time.monotonic", lambda: clock[0])
    lost = oracle.create_trial("a")
    assert oracle.create_trial("b").status == "IDLE"  # not STOPPED: "a" may be lost
    clock[0] += 8
    oracle.get_trial(lost.trial_id)  # the heart of "a" beats
    clock[0] += 8
    assert oracle.create_trial("b").status == "IDLE"
    clock[0] += 8
    taken = oracle.create_trial("b")
    assert (taken.trial_id, taken.status) == (lost.trial_id, "RUNNING")
    oracle.update_trial(taken.trial_id, {"score": 0.5})
    taken.status = "COMPLETED"
    oracle.end_trial(taken)
    oracle.update_trial(lost.trial_id, {"score": 0.9})  # "a" was only slow
    oracle.end_trial(lost)
    assert oracle.trials[lost.trial_id].score == 0.5
    assert oracle.end_order == [lost.trial_id]
    assert oracle.create_trial("b").status == "STOPPED"
    assert oracle.over


def test_a_trial_that_ended_while_it_was_saved_is_not_run_again(tmp_path):
    _ = (hp := keras_tuner.HyperParameters()).Float("step", 1, 64)

    def oracle():
        made = make_oracle("random", hp, max_trials=2, seed=1)
        made._set_project_dir(tmp_path, "x")
        made.verbose = 0
        return made

    first = oracle()
    trial = first.create_trial("a")
    first.update_trial(trial.trial_id, {"score": 0.5})
    trial.status = "COMPLETED"
    first.end_trial(trial)
    # Keras Tuner saves before it takes the trial off its list of running ones.
    state = json.loads(Path(first._get_oracle_fname()).read_text())
    assert state["ongoing_trials"] == {"a": trial.trial_id}
    second = oracle()
    second.reload()
    assert second.create_trial("a").trial_id != trial.trial_id


def test_the_model_is_asked_for_the_most_promising_point(tmp_path, rng):
    """A global search that knows nothing of ours finds no better one."""
    hp = keras_tuner.HyperParameters()
    for name in "abc":
        hp.Float(name, 0, 1)
    oracle = make_oracle("bayesian", hp, max_trials=20, seed=1)
    tried = rng.uniform(size=(12, 3))
    oracle.gpr.fit(tried, ((tried - 0.6) ** 2).sum(1))
    oracle._random_state = np.random.RandomState(1)
    point = oracle._promising_point()

    def bound(x):
        mean, deviation = oracle.gpr.predict(x.reshape(1, -1), return_std=True)
        return float((mean - oracle.beta * deviation)[0])

    best = differential_evolution(bound, [(0, 1)] * 3, seed=1, maxiter=30, popsize=8)
    assert bound(point) <= best.fun + 1e-4
