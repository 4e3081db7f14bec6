"""Progress of a training on a console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
from rich.console import Console

from fd_keras._console import Advance, bar, progress_bars
from fd_keras.hardening.model import CHECK_STEPS
from fd_keras.hardening.record import ADAPTIVE, BENIGN


@contextmanager
def training_progress(
    console: Console | None, epochs: int, batches: int | None
) -> Iterator[keras.callbacks.Callback]:
    """Show a bar over all batches, and a line for every epoch.

    Args:
        console: Where to print; ``None``: nowhere.
        epochs: Number of epochs.
        batches: Number of batches in each; ``None``: unknown.

    Yields:
        The callback that tells of the progress.

    Example:
        >>> with training_progress(None, epochs=2, batches=10) as progress:
        ...     callbacks = [progress]
    """
    total = None if batches is None else batches * epochs
    with (
        progress_bars(console, unit="batches") as progress,
        bar(progress, "Hardening", total) as advance,
    ):
        yield _Progress(progress.console, advance, epochs, batches or 0)


class _Progress(keras.callbacks.Callback):
    def __init__(self, console: Console, advance: Advance, epochs: int, batches: int) -> None:
        super().__init__()
        self._console, self._advance = console, advance
        self._epochs, self._batches = epochs, batches
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if not self._begun:  # a resumed training does not begin at 0
            self._advance(epoch * self._batches)
            self._begun = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._advance(1)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        logs = logs or {}
        figures = [f"loss {logs['loss']:.3f}", f"benign {100 * logs[f'val_{BENIGN}']:.1f} %"]
        if f"val_{ADAPTIVE}" in logs:
            adaptive = 100 * logs[f"val_{ADAPTIVE}"]
            figures.append(f"adaptive (PGD-{CHECK_STEPS}) {adaptive:.1f} %")
        text = f"Epoch {epoch + 1} of {self._epochs}: " + ", ".join(figures)
        self._console.print(text, highlight=False)
