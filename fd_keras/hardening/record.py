"""The state of a training in one file, from which it goes on to the bit."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._compat import stored_variables
from fd_keras._files import DocumentFormat, replacing
from fd_keras.hardening.model import HardeningModel
from fd_keras.tables import QuantizationTable

BENIGN, ADAPTIVE = "benign_accuracy", "adaptive_accuracy"

_STATE = "state.npz"
_HISTORY = "history.json"
# What a training writes into its directory, with what it leaves there when it is killed.
FILES = (_STATE, _HISTORY, f".{_STATE}", f".{_HISTORY}")

Arrays = dict[str, Any]

_FORMAT = DocumentFormat("fd_keras.hardening_state", 1, "state of a training")
_FIGURES = "record.json"

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

    Together with the weights, the optimiser and the random generators they are the state of a
    training. It is one file, ``state.npz``, which is replaced atomically: whenever a training is
    killed, the file holds the state after one of its epochs, and nothing of another.
    ``history.json`` repeats the accuracies for people to read.

    Args:
        directory: Where the state is kept. ``None``: nowhere.
        allowed: Smallest benign accuracy that is allowed, from 0 to 1.
        writes: Whether this process keeps it there, or only goes on from it.

    Example:
        >>> Record(None, 0.9).best_epoch is None
        True
    """

    def __init__(self, directory: Path | None, allowed: float, *, writes: bool = True) -> None:
        super().__init__()
        self._directory = directory
        self._writes = writes
        self._allowed = allowed
        self._best: tuple[Sequence[npt.NDArray[Any]], QuantizationTable] | None = None
        self.start: Mapping[str, float] | None = None
        self.epochs: list[dict[str, float]] = []
        self.stopped = False

    @property
    def kept(self) -> bool:
        """Whether the directory holds a state."""
        return self._directory is not None and (self._directory / _STATE).exists()

    @property
    def best_epoch(self) -> int | None:
        """Number of the best epoch, from 0; the first one of equals."""
        ranks = [rank(figures, self._allowed) for figures in self.epochs]
        return ranks.index(max(ranks)) if ranks else None

    def best(self) -> tuple[Sequence[npt.NDArray[Any]], QuantizationTable]:
        """Weights and table of the best epoch."""
        assert self._best is not None
        return self._best

    def begin(self, start: Mapping[str, float], model: HardeningModel) -> None:
        """Keep the accuracies before training, and the state that it starts from."""
        self.start = dict(start)
        self._save(model)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Keep its loss and accuracies and, if it is the best one, its weights and table."""
        self.epochs.append({name: float(value) for name, value in (logs or {}).items()})
        if self.best_epoch == epoch:
            self._best = self.model.averaged_weights(), self.model.distillation.table()

    def saving(self) -> keras.callbacks.Callback:
        """The callback that saves the state; what callbacks after it change is not in it."""
        return keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: self._save(self.model))

    def restore(self, model: HardeningModel) -> bool:
        """Read the state in the directory into this record and a model.

        Args:
            model: As it was when the training began.

        Returns:
            Whether there is a state.

        Raises:
            OSError: It cannot be read.
            ValueError: It is damaged, or that of another model.
        """
        if self._directory is None or not self.kept:
            return False
        try:
            with (self._directory / _STATE).open("rb") as file:
                self._restore(_read(file), model)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"`directory` holds a {_STATE} that cannot be gone on from ({error}); choose "
                "another directory, or throw the training away with overwrite=True. "
                f"Received: directory={os.fspath(self._directory)!r}"
            ) from error
        if self._writes:
            self._write_history()
        return True

    def _restore(self, arrays: Arrays, model: HardeningModel) -> None:
        content = _FORMAT.content(json.loads(arrays[_FIGURES]))
        # Everything is checked before anything is assigned.
        found = [
            (stored, _like(stored, arrays, name if name in arrays else first))
            for name, first, stored in _stored(model)
        ]
        firsts = {first for _, first, _ in _stored(model)}
        if not {name for name in arrays if name.endswith(".0")} <= firsts:
            raise ValueError("it is of another model: it has more variables")
        if content["epochs"]:
            weights = model.averaged_weights()
            best = [_like(weight, arrays, f"best{i:05d}") for i, weight in enumerate(weights)]
            self._best = best, QuantizationTable.from_dict(content["best_table"])
        self.start, self.epochs = content["start"], content["epochs"]
        self.stopped = content["stopped"]
        for stored, array in found:
            stored.assign(array)

    def _save(self, model: HardeningModel) -> None:
        """Replace the state by that of now."""
        if self._directory is None:
            return
        self.stopped = bool(model.stop_training)
        # On all processes of a strategy, as building the optimiser needs all of them.
        state = list(_stored(model))
        if not self._writes:
            return
        content = {"start": self.start, "epochs": self.epochs, "stopped": self.stopped}
        arrays: Arrays = {}
        for name, first, stored in state:
            array = np.asarray(stored)
            # Replicas share most variables, but not the statistics of batch normalisation.
            if name == first or array.tobytes() != arrays[first].tobytes():
                arrays[name] = array
        if self._best is not None:
            weights, table = self._best
            arrays.update({f"best{i:05d}": array for i, array in enumerate(weights)})
            content["best_table"] = table.to_dict()
        # Not checked for NaN: a loss that has become one is to be seen.
        text = json.dumps({"format": _FORMAT.name, "version": _FORMAT.version, **content})
        path = self._directory / _STATE
        try:
            with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
                archive.writestr(_FIGURES, text)
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            self._write_history()
        except OSError as error:
            raise OSError(
                error.errno,
                f"the state of the training cannot be written ({error.strerror}); that of the last "
                "epoch before is kept, to go on from",
                os.fspath(path),
            ) from error

    def _write_history(self) -> None:
        assert self._directory is not None
        text = json.dumps({"start": self.start, "epochs": self.epochs}, indent=1)
        with replacing(self._directory / _HISTORY) as file:
            file.write(f"{text}\n".encode())


def _stored(model: HardeningModel) -> Iterator[tuple[str, str, tf.Variable]]:
    """Names of each replica's and of the first replica's array of a variable, and the variable."""
    for number, variable in enumerate(model.state()):
        for replica, stored in enumerate(stored_variables(variable)):
            yield f"state{number:05d}.{replica}", f"state{number:05d}.0", stored


def _read(file: BinaryIO) -> Arrays:
    try:
        with np.load(file) as archive:
            return dict(archive)
    except Exception as error:  # whatever numpy, zipfile and zlib raise on damaged files
        raise ValueError(f"it is damaged: {error!r}") from error


def _like(value: Any, arrays: Arrays, name: str) -> npt.NDArray[Any]:
    """The array of a name, if it has the shape and type of a value."""
    array, dtype = arrays[name], np.asarray(value).dtype
    if array.dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize:
        array = array.view(dtype)  # numpy's files do not know bfloat16
    if (array.shape, array.dtype) != (tuple(value.shape), dtype):
        raise ValueError(f"it is of another model: {array.dtype} {array.shape} in {name}")
    return array
