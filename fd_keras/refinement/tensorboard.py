"""Trials in TensorBoard: scalars, and hyperparameters in its HParams page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf


class TrialLogger:
    """Writes one run for each trial; ``tensorboard --logdir`` shows them.

    Args:
        directory: TensorBoard's; ``None``: nothing is written.

    Example:
        >>> TrialLogger(None).log(None, {"score": 0.5})
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._directory = None if directory is None else Path(directory)

    def log(self, trial: Any, metrics: Mapping[str, float]) -> None:
        """Write what became of a trial.

        Args:
            trial: ``keras_tuner.engine.trial.Trial``.
            metrics: Numbers by name.
        """
        if self._directory is None:
            return
        from tensorboard.plugins.hparams import api as hparams  # slow to import

        # In the order of the trials, so that scalars of all runs read as a curve.
        step = int(trial.trial_id)
        with tf.summary.create_file_writer(str(self._directory / trial.trial_id)).as_default():
            hparams.hparams(dict(trial.hyperparameters.values), trial_id=trial.trial_id)
            for name, value in metrics.items():
                tf.summary.scalar(name.replace(" ", "/", 1), value, step=step)
