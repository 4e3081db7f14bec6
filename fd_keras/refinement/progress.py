"""Show the trials of a search on a console and in TensorBoard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fd_keras._console import text_table
from fd_keras.refinement.result import Trial, pareto_front

_SHOWN = 8


@contextmanager
def search_view(
    console: Console | None, max_trials: int
) -> Iterator[Callable[[Sequence[Trial]], None]]:
    """Show a search on ``console``, or nothing when it is ``None``.

    Args:
        console: Where to show it.
        max_trials: Number of trials there will be.

    Yields:
        A function to call with all trials that have ended, after each of them.

    Example:
        >>> with search_view(None, 3) as show:
        ...     show([])
    """
    if console is None:
        yield lambda trials: None
        return
    started, already = time.monotonic(), [-1]
    with Live(console=console, refresh_per_second=4) as live:

        def show(trials: Sequence[Trial]) -> None:
            if already[0] < 0:
                already[0] = max(0, len(trials) - 1)  # resumed ones took no time
            here = max(1, len(trials) - already[0])
            left = (time.monotonic() - started) / here * max(0, max_trials - len(trials))
            live.update(_drawn(trials, max_trials, left))

        yield show


def _drawn(trials: Sequence[Trial], max_trials: int, seconds_left: float) -> Group:
    minutes, seconds = divmod(round(seconds_left), 60)
    head = f"Trial {len(trials)} of {max_trials}, {minutes}:{seconds:02d} left"
    scored = [trial for trial in trials if "score" in trial.metrics]
    if scored:
        best = max(scored, key=lambda trial: trial.metrics["score"])
        benign, attacked = 100 * best.validation.benign, 100 * best.metrics["accuracy"]
        feasible = "" if best.metrics["score"] >= 0 else ", too lossy"
        head += f"; best: {benign:.1f} % benign, {attacked:.1f} % under attack{feasible}"
    front = pareto_front([trial for trial in scored if trial.complete])
    rows = [
        (
            str(trial.number),
            f"{100 * trial.validation.benign:.1f}",
            f"{100 * trial.validation.attacked:.1f}",
            "" if trial.table is None else _steps(trial.table.steps.min(), trial.table.steps.max()),
        )
        for trial in front[::-1][:_SHOWN]
    ]
    table = text_table(("trial", "benign, %", "under attack, %", "steps"), rows)
    return Group(Text(head), Text("Pareto front on the validation split:"), Text(table))


def _steps(low: float, high: float) -> str:
    return f"{low:g} to {high:g}"


class TrialLogger:
    """Writes a TensorBoard run for each trial: scalars, and hyperparameters for HParams.

    Args:
        directory: TensorBoard's; ``None``: nothing is written.

    Example:
        >>> TrialLogger(None).log(None, {"score": 0.5})
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._directory = None if directory is None else Path(directory)

    def log(self, trial: Any, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a trial.

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
