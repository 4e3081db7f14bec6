"""A hardened classifier, its layer, and their accuracies on the validation images."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from fd_keras._checks import shown, validate_value_range
from fd_keras._compat import load_model_file, reason_of
from fd_keras._console import Readable, text_table
from fd_keras._files import DocumentFormat, locked
from fd_keras.evaluation.accuracies import VALIDATION, accuracy_row, check_rows
from fd_keras.hardening.model import CHECK_STEPS
from fd_keras.hardening.recipe import Recipe
from fd_keras.hardening.record import ADAPTIVE, BENIGN, Record
from fd_keras.layer import FeatureDistillation
from fd_keras.protection import protect
from fd_keras.tables import QuantizationTable

UNDEFENDED, LAYER_ONLY, HARDENED = "undefended", "layer only", "hardened"

_FORMAT = DocumentFormat("fd_keras.harden_result", 1, "result of hardening")
_MODEL = "model.keras"
_TABLE = "table.json"
_RESULT = "result.json"
# Folders in which a result is written, and from which it is moved into place once it is whole.
_STAGED, _WHOLE = ".result-staged", ".result-whole"
_FIELDS = ("rows", "history", "best_epoch", "max_benign_loss", "settings")


@dataclass(frozen=True, eq=False, repr=False)
class HardenResult(Readable):
    """A hardened classifier, its layer, and their accuracies on the validation images.

    The validation images chose the epoch, so these accuracies are a little too high, and the
    attack is a short one: report what ``fd_keras.evaluate`` finds on a test split.

    Args:
        model: The classifier with the new weights, without the layer.
        layer: The layer that it was trained behind.
        rows: Accuracies as ``fd_keras.evaluation.accuracies.accuracy_row`` makes them: of the
            original alone (``"undefended"``), of the original behind the layer (``"layer
            only"``) and of the hardened classifier behind the layer (``"hardened"``).
        history: Loss and accuracies of every epoch; those that begin with ``val_`` are of the
            averaged weights on the validation images.
        best_epoch: The epoch that the weights are of, from 1.
        max_benign_loss: Share of the images by which benign accuracy was allowed to fall.
        settings: All that is needed to run it again, by name; plain JSON types.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
        ... )
        >>> right = {"undefended": 98, "hardened": 97}
        >>> rows = [
        ...     accuracy_row(
        ...         defence=name, family="harden", threat_model="benign", correct=n, count=100,
        ...         split="validation",
        ...     )
        ...     for name, n in right.items()
        ... ]
        >>> result = HardenResult(model, FeatureDistillation("liu2019"), rows, [{}], 1, 0.02)
        >>> f"{result.benign_loss:.2f}", result.within_benign_loss
        ('0.01', True)
    """

    model: keras.Model
    layer: FeatureDistillation
    rows: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, float]]
    best_epoch: int
    max_benign_loss: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> QuantizationTable:
        """The layer's table."""
        return self.layer.quantization_table

    @property
    def protected(self) -> keras.Model:
        """The classifier behind its layer, to be exported and served."""
        return protect(self.model, self.layer)

    @property
    def benign_loss(self) -> float:
        """Benign accuracy of the original alone, less that of the hardened one behind the layer."""
        return self.accuracy(UNDEFENDED) - self.accuracy(HARDENED)

    @property
    def within_benign_loss(self) -> bool:
        """Whether the benign loss is at most ``max_benign_loss``."""
        return self.benign_loss <= self.max_benign_loss + 1e-9

    def accuracy(self, subject: str, threat_model: str = "benign") -> float:
        """One accuracy on the validation images.

        Args:
            subject: ``"undefended"``, ``"layer only"`` or ``"hardened"``.
            threat_model: ``"benign"`` or ``"adaptive"``.

        Raises:
            ValueError: It was not measured.
        """
        for row in self.rows:
            if (row["defence"], row["threat_model"]) == (subject, threat_model):
                return float(row["accuracy"])
        raise ValueError(
            "`subject` and `threat_model` must be those of a row. "
            f"Received: subject={shown(subject)}, threat_model={shown(threat_model)}"
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``model.keras``, ``table.json`` and ``result.json``.

        They replace those of another result all at once: if this is killed, ``load`` returns
        either the old result or the new one.

        Args:
            directory: Made if missing.

        Raises:
            OSError: A file cannot be written; the old result stays.
            ValueError: Another process is writing a result into ``directory``.

        Example:
            See ``fd_keras.harden``.
        """
        content = {
            "value_range": list(self.layer.value_range),
            "max_benign_loss": self.max_benign_loss,
            "best_epoch": self.best_epoch,
            "settings": self.settings,
            "rows": list(self.rows),
            "history": [
                {name: value if math.isfinite(value) else None for name, value in epoch.items()}
                for epoch in self.history
            ],
        }
        home = Path(directory)
        staged = home / _STAGED
        with locked(home):
            shutil.rmtree(staged, ignore_errors=True)  # of one that was killed
            staged.mkdir()
            try:
                self.model.save(staged / _MODEL)
                self.table.save(staged / _TABLE)
                _FORMAT.write(staged / _RESULT, content)
                for path in staged.iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                _move_into_place(home)  # one that was killed while it did
                staged.rename(home / _WHOLE)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
            _move_into_place(home)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> HardenResult:
        """Read what ``save`` wrote.

        Args:
            directory: Where it was written. Classes of the model must be registered with Keras.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file is of another kind or version; the message names it.

        Example:
            See ``fd_keras.harden``.
        """
        home = Path(directory)
        text = _latest(home, _RESULT).read_bytes()
        value_range, fields = _FORMAT.read(_latest(home, _RESULT), _checked_content)
        table = QuantizationTable.load(_latest(home, _TABLE))
        model = _loaded_model(_latest(home, _MODEL))
        if _latest(home, _RESULT).read_bytes() != text:  # saved anew in the meantime
            return cls.load(directory)
        return cls(model, FeatureDistillation(table, value_range=value_range), **fields)

    def __str__(self) -> str:
        rows = []
        for row in self.rows:
            low, high = (100 * end for end in row["interval"])
            attack = "" if row["attack"] == "none" else f", {row['attack']}"
            accuracy = f"{100 * row['accuracy']:.1f}"
            rows.append(
                [row["defence"], row["threat_model"] + attack, accuracy, f"{low:.1f}-{high:.1f}"]
            )
        table = text_table(["classifier", "threat model", "accuracy", "95 % interval"], rows)
        kept = "within" if self.within_benign_loss else "MORE than"
        lines = [
            f"Accuracy on {self.rows[0]['count']} validation images, in %",
            table,
            f"Epoch {self.best_epoch} of {len(self.history)}; benign loss "
            f"{100 * self.benign_loss:+.1f} points, {kept} the permitted "
            f"{100 * self.max_benign_loss:g}",
        ]
        if not self.within_benign_loss:
            lines.append("No epoch kept to it; this is the one that lost least")
        if self.settings.get("validation_from_train_data"):
            lines.append(
                "The validation images were taken from the training data: accuracies flatter a "
                "classifier that was trained on them"
            )
        return "\n".join(lines)


def foreign_files(directory: Path) -> list[str]:
    """Names of files that ``HardenResult.save`` would replace, and that are of no such result.

    Args:
        directory: It need not exist.

    Example:
        >>> foreign_files(Path("no such directory"))
        []
    """
    result = _latest(directory, _RESULT)
    if result.exists() and _FORMAT.recognises(result):
        return []
    return [name for name in (_MODEL, _TABLE, _RESULT) if os.path.lexists(directory / name)]


def _latest(home: Path, name: str) -> Path:
    """A file of the result, which is not yet in place if its writer was killed."""
    whole = home / _WHOLE / name
    return whole if whole.exists() else home / name


def _move_into_place(home: Path) -> None:
    for name in (_RESULT, _TABLE, _MODEL):
        new, old = _latest(home, name), home / name
        if new != old:
            if old.is_file():
                shutil.copymode(old, new)
            os.replace(new, old)
    with suppress(FileNotFoundError):
        (home / _WHOLE).rmdir()


def _checked_content(content: Mapping[str, Any]) -> tuple[tuple[float, float], dict[str, Any]]:
    """The value range, and what else ``result.json`` holds."""
    check_rows(content["rows"], splits=(VALIDATION,))
    fields = {name: content[name] for name in _FIELDS}
    fields["history"] = [
        {name: math.nan if value is None else value for name, value in epoch.items()}
        for epoch in content["history"]
    ]
    return validate_value_range(content["value_range"]), fields


def _loaded_model(path: Path) -> keras.Model:
    path.stat()  # a missing file is an OSError here, not a ValueError of Keras
    try:
        return load_model_file(path)
    except Exception as error:  # Keras raises whatever zipfile or a model's own code raises
        raise ValueError(
            f"`directory` holds no model that Keras can load ({reason_of(error)}). Received: {path}"
        ) from error


def result_of(
    record: Record,
    model: keras.Model,
    layer: FeatureDistillation,
    *,
    undefended: int,
    count: int,
    recipe: Recipe,
    max_benign_loss: float,
    settings: Mapping[str, Any],
) -> HardenResult:
    """The result of a training that has been recorded.

    Args:
        record: With one epoch at least.
        model: The classifier with the weights of the best epoch.
        layer: The layer with its table.
        undefended: How many validation images the original gets right alone.
        count: Number of validation images.
        recipe: What was trained on.
        max_benign_loss: Share of the images by which benign accuracy may fall.
        settings: All that is needed to run it again.
    """
    best = record.best_epoch
    assert best is not None
    assert record.start is not None
    trained = {name: record.epochs[best][f"val_{name}"] for name in record.start}
    rows = [_row(UNDEFENDED, "none", undefended, count)]
    for subject, accuracies in ((LAYER_ONLY, record.start), (HARDENED, trained)):
        rows.append(_row(subject, "harden", round(accuracies[BENIGN] * count), count))
        if ADAPTIVE in accuracies:
            withstood = round(accuracies[ADAPTIVE] * count)
            rows.append(_row(subject, "harden", withstood, count, recipe.epsilon))
    return HardenResult(model, layer, rows, record.epochs, best + 1, max_benign_loss, settings)


def _row(
    subject: str, family: str, correct: int, count: int, epsilon: float | None = None
) -> dict[str, Any]:
    """An accuracy; ``epsilon``, in grey levels, is that of the adaptive attack."""
    figure: dict[str, Any] = {"threat_model": "benign"}
    if epsilon is not None:
        figure = {
            "threat_model": "adaptive",
            "attack": f"PGD-{CHECK_STEPS} {epsilon:g}/255",
            "attack_family": "PGD",
            "norm": "inf",
            "epsilon": epsilon / 255,
        }
    return accuracy_row(
        defence=subject,
        family=family,
        correct=correct,
        count=count,
        split=VALIDATION,
        **figure,
    )
