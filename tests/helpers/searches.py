"""A small search on the packaged digits; as a program, one process of a distributed search."""

import dataclasses
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import fd_keras
from fd_keras.dct import zigzag_rank
from fd_keras.demo import build_classifier, load_digits, train_classifier
from fd_keras.refinement import Search


def digits_and_classifier():
    """A weak but real classifier, test images, and noisy ones in place of attacked ones."""
    keras.utils.set_random_seed(3)
    digits = load_digits(seed=3)
    model = build_classifier()
    train_classifier(model, digits.train[:600], epochs=3)
    return model, digits.test[:60]


def noisy(images, size=12):
    """Signs in place of an attack's: nothing here depends on what they do to the classifier."""
    signs = np.random.default_rng(5).choice([-size, size], images.shape)
    return np.clip(images + signs, 0, 255).astype(np.float32)


def small_space(hp):
    """Three parameters and one compiled graph."""
    low, high = hp.Float("low", 1, 40), hp.Float("high", 10, 120)
    steps = np.where(zigzag_rank() < hp.Int("bands", 0, 64), low, high)
    return fd_keras.QuantizationTable(steps)


def search(model, test, directory, **settings):
    """``refine`` with settings that take seconds; others are its own or those of ``Search``."""
    settings = {
        "max_benign_loss": 0.05,
        "max_trials": 4,
        "oracle": "random",
        "space": small_space,
        "baselines": ["liu2019"],
        "directory": directory,
        **settings,
    }
    fields = {field.name for field in dataclasses.fields(Search)} & set(settings)
    search = Search(**{name: settings.pop(name) for name in fields})
    data, attacked = (test.images, test.labels), {"noise": noisy(test.images)}
    return fd_keras.refine(model, data, attacked, search, **settings)


def values_of(result):
    """Hyperparameters of all trials."""
    return [trial.values for trial in result.trials]


def main(directory, max_trials, slow):
    """A process of a search, alone, chief or worker as the environment says."""
    path = Path(directory) / "model.keras"
    model = keras.models.load_model(path)
    test = load_digits(seed=3).test[:60]
    if slow == "slow":  # so that there is time to kill it in the middle of a trial
        delay(Path(directory))
    result = search(
        model, test, Path(directory) / "search", max_trials=int(max_trials), worker_timeout=2.0
    )
    if result is not None:
        result.save(Path(directory) / "result.json")


def delay(directory):
    """Say in a file that a trial runs, and take a long time over it."""
    import time

    from fd_keras.refinement.tuner import RefinementTuner

    run_trial = RefinementTuner.run_trial

    def slow(self, trial, **kwargs):
        if trial.trial_id >= "2":
            (directory / f"running-{os.environ.get('KERASTUNER_TUNER_ID', 'alone')}").touch()
            time.sleep(600)
        return run_trial(self, trial, **kwargs)

    RefinementTuner.run_trial = slow


if __name__ == "__main__":
    main(*sys.argv[1:])
