"""The progress of a training on a console."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import keras
from rich.console import Console

from fd_keras._console import Advance, bar, progress_bars
from fd_keras.hardening.model import CHECK_STEPS
from fd_keras.hardening.record import ADAPTIVE, BENIGN


class TrainingView:
    """A bar over all batches, and a line for every epoch.

    Args:
        console: Where to print; ``None``: nowhere.
        epochs: Number of epochs.
        batches: Number of batches in each; ``None``: unknown.

    Example:
        >>> with TrainingView(None, epochs=2, batches=10) as view:
        ...     callbacks = [view.callback]
    """

    def __init__(self, console: Console | None, epochs: int, batches: int | None) -> None:
        self._console = console
        self._epochs = epochs
        self._batches = batches
        self._stack = ExitStack()
        self._advance: Advance = lambda count: None

    def __enter__(self) -> TrainingView:
        progress = self._stack.enter_context(progress_bars(self._console, unit="batches"))
        total = None if self._batches is None else self._batches * self._epochs
        self._print = progress.console.print
        self._advance = self._stack.enter_context(bar(progress, "Hardening", total))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @property
    def callback(self) -> keras.callbacks.Callback:
        """What tells of the progress."""
        return _Progress(self._begin, self._advance, self._report)

    def _begin(self, epochs_done: int) -> None:
        self._advance(epochs_done * (self._batches or 0))

    def _report(self, epoch: int, logs: Mapping[str, float]) -> None:
        figures = [f"loss {logs['loss']:.3f}", f"benign {100 * logs[f'val_{BENIGN}']:.1f} %"]
        if f"val_{ADAPTIVE}" in logs:
            adaptive = 100 * logs[f"val_{ADAPTIVE}"]
            figures.append(f"adaptive (PGD-{CHECK_STEPS}) {adaptive:.1f} %")
        self._print(f"Epoch {epoch + 1} of {self._epochs}: " + ", ".join(figures), highlight=False)


class _Progress(keras.callbacks.Callback):
    """Tells a view what happens."""

    def __init__(self, begin: Any, advance: Advance, report: Any) -> None:
        super().__init__()
        self._begin, self._advance, self._report = begin, advance, report
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if not self._begun:  # a resumed training does not begin at 0
            self._begin(epoch)
            self._begun = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._advance(1)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._report(epoch, logs or {})
