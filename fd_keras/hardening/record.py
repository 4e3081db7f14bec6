"""Accuracies of every epoch and the weights of the best one, on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from fd_keras._files import atomic_path
from fd_keras.hardening.model import HardeningModel
from fd_keras.tables import QuantizationTable

BENIGN, ADAPTIVE = "benign_accuracy", "adaptive_accuracy"

_HISTORY = "history.json"
_BEST = "best.npz"
_TABLE = "best_table.json"

# Rounding of accuracies, far below one image.
_ROUNDING = 1e-6


def rank(figures: Mapping[str, float], allowed: float) -> tuple[bool, float, float]:
    """A key to compare epochs by; larger is better.

    Epochs with at least the allowed benign accuracy come first, by their accuracy under attack
    (by benign accuracy where nothing is attacked), then the others by benign accuracy. Between
    equals, the other accuracy decides.

    Args:
        figures: ``val_benign_accuracy`` and, if anything is attacked, ``val_adaptive_accuracy``.
        allowed: Smallest benign accuracy that is allowed, from 0 to 1.

    Example:
        >>> rank({"val_benign_accuracy": 0.9, "val_adaptive_accuracy": 0.6}, 0.89)
        (True, 0.6, 0.9)
    """
    benign = figures[f"val_{BENIGN}"]
    adaptive = figures.get(f"val_{ADAPTIVE}", benign)
    if benign < allowed - _ROUNDING:
        return False, benign, adaptive
    return True, adaptive, benign


class Record(keras.callbacks.Callback):
    """Keeps loss and accuracies of every epoch, and averaged weights and table of the best one.

    In a directory of an interrupted training, it goes on from there when ``fit`` does. It must
    come before ``BackupAndRestore`` among the callbacks: an epoch that is backed up is then
    recorded too.

    Args:
        directory: Where ``history.json``, ``best.npz`` and ``best_table.json`` are.
        allowed: Smallest benign accuracy that is allowed, from 0 to 1.

    Example:
        >>> import tempfile
        >>> Record(Path(tempfile.mkdtemp()), 0.9).best_epoch is None
        True
    """

    FILES = (_HISTORY, _BEST, _TABLE)

    def __init__(self, directory: Path, allowed: float) -> None:
        super().__init__()
        self._directory = directory
        self._allowed = allowed
        self.start: Mapping[str, float] | None = None
        self.epochs: list[dict[str, float]] = []
        path = directory / _HISTORY
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.start, self.epochs = stored["start"], stored["epochs"]

    @property
    def best_epoch(self) -> int | None:
        """Number of the best epoch, from 0; the first one of equals."""
        ranks = [rank(figures, self._allowed) for figures in self.epochs]
        return ranks.index(max(ranks)) if ranks else None

    def begin(self, start: Mapping[str, float]) -> None:
        """Keep the accuracies before training."""
        self.start = dict(start)
        self._write()

    def best(self) -> tuple[Sequence[npt.NDArray[Any]], QuantizationTable]:
        """Weights and table of the best epoch."""
        with np.load(self._directory / _BEST) as archive:
            weights = [archive[name] for name in sorted(archive.files)]
        return weights, QuantizationTable.load(self._directory / _TABLE)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Forget epochs that were recorded but not backed up: they are run again."""
        del self.epochs[epoch:]

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Keep its loss and accuracies and, if it is the best one, its weights and table."""
        self.epochs.append({name: float(value) for name, value in (logs or {}).items()})
        if self.best_epoch == epoch:
            self._write_best(self.model)
        self._write()

    def _write_best(self, model: HardeningModel) -> None:
        weights = {f"w{i:05d}": array for i, array in enumerate(model.averaged_weights())}
        with atomic_path(self._directory / _BEST) as temporary:
            np.savez(temporary, **weights)
        model.distillation.table().save(self._directory / _TABLE)

    def _write(self) -> None:
        text = json.dumps({"start": self.start, "epochs": self.epochs}, indent=1)
        with atomic_path(self._directory / _HISTORY) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
