"""Evaluation reports: accuracies, sanity checks and settings, as JSON, table or HTML page."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fd_keras._checks import shown
from fd_keras._console import html_table, text_table
from fd_keras._files import DocumentFormat
from fd_keras._pages import render_page
from fd_keras.evaluation.accuracies import (
    BENIGN,
    THREAT_MODELS,
    AccuracyGrid,
    Row,
    check_rows,
    is_number,
)
from fd_keras.evaluation.page import page_fields
from fd_keras.evaluation.verdict import verdict

_FORMAT = DocumentFormat("fd_keras.evaluation_report", 1, "evaluation report")
# Columns of a terminal in which a text table has room.
_TEXT_WIDTH = 80

_LISTS = ("rows", "defences", "checks", "detection")

_STORED = (
    *("file", "bytes_per_image", "images", "right_once_encoded"),
    *("least_radius", "median_radius"),
)

# What each entry must have; an accuracy without its threat model is refused.
_KEYS = {
    "defences": ("name", "family", "settings", "ms_per_image", "chosen_from"),
    "checks": ("name", "passed", "detail", "defence"),
    "detection": (
        *("defence", "attack", "threat_model", "auc", "detection_rate"),
        *("false_positive_rate_target", "false_positive_rate", "roc"),
    ),
    "pictures": (
        *("attack", "threat_model", "defence", "true"),
        *("predicted_benign", "predicted_attacked", "predicted_distilled"),
        *("benign", "attacked", "distilled"),
    ),
}

# What entries are found and shown by.
_TEXTS = ("name", "family", "defence", "attack", "threat_model")


@dataclass(frozen=True, repr=False)
class EvaluationReport:
    """Result of an evaluation.

    Args:
        rows: One dictionary per accuracy, as ``accuracy_row`` makes it: ``defence``, ``family``,
            ``attack`` (``"none"`` for benign images), ``attack_family``, ``threat_model``
            (one of ``THREAT_MODELS``), ``norm``, ``epsilon`` (on pixels from 0 to 1),
            ``accuracy``, ``correct``, ``count``, ``interval`` (95 %, Wilson) and ``split``
            (``"test"``); where it is known what the attack did, also ``effect``: ``success`` at the
            model that was attacked, and ``mean_l2`` and ``mean_linf`` of what succeeded (on pixels
            from 0 to 1).
        defences: ``name``, ``family``, ``settings``, ``ms_per_image`` (median, or ``None``) and
            ``chosen_from`` (names of the settings tried on the validation split) of each defence;
            in two passes also ``two_passes``: ``file``, ``bytes_per_image``, ``images``,
            ``right_once_encoded``, ``least_radius`` and ``median_radius`` (certified grey levels,
            or ``None``) of the images as it stores them.
        checks: ``name``, ``passed``, ``detail`` and ``defence`` of each sanity check.
        detection: ``defence``, ``attack``, ``threat_model``, ``auc``, ``detection_rate``,
            ``false_positive_rate_target``, ``false_positive_rate`` and ``roc`` (``{"fpr": [...],
            "tpr": [...]}``) of each detector and attack.
        settings: Whatever is needed to run it again, by name; any JSON.
        pictures: Examples: ``attack``, ``threat_model``, ``defence``, the texts ``true``,
            ``predicted_benign``, ``predicted_attacked`` and ``predicted_distilled``, and the
            uint8 arrays ``(height, width, channels)`` ``benign``, ``attacked`` and
            ``distilled``. They are shown on the HTML page, but neither written as JSON nor
            compared by ``==``.

    Raises:
        ValueError: An entry lacks something, contradicts itself or cannot be written as JSON.

    Example:
        >>> from fd_keras.evaluation.accuracies import accuracy_row
        >>> row = accuracy_row(
        ...     defence="none", family="none", threat_model="benign", correct=9, count=10
        ... )
        >>> report = EvaluationReport([row])
        >>> report.verdict
        'No attack was run: these are benign accuracies only. No sanity check was run.'
        >>> EvaluationReport.from_json(report.to_json()) == report
        True
    """

    rows: list[dict[str, Any]]
    defences: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    detection: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    pictures: list[dict[str, Any]] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in (*_LISTS, "settings"):
            object.__setattr__(self, name, _plain_json(name, getattr(self, name)))
        check_rows(self.rows)
        for name, keys in _KEYS.items():
            _check_entries(name, getattr(self, name), keys)
        _check_details(self.defences, self.checks, self.detection)
        _check_pictures(self.pictures)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, name))} {name}" for name in _LISTS)
        return f"{type(self).__name__}({counts})"

    def _repr_html_(self) -> str:
        models = self.grid.threat_models or [BENIGN]
        tables = (html_table(*_cells(self.grid, model, ": ", _percent)) for model in models)
        failed = [check for check in self.checks if not check["passed"]]
        alarm = f"<p><b>{len(failed)} sanity checks failed</b></p>" if failed else ""
        return f"{alarm}<p>{html.escape(self.verdict)}</p>{''.join(tables)}"

    @cached_property
    def grid(self) -> AccuracyGrid:
        """The rows by defence, threat model and attack."""
        return AccuracyGrid(self.rows, [defence["name"] for defence in self.defences])

    @property
    def verdict(self) -> str:
        """Summary in a few sentences that name every threat model."""
        stored = {entry["name"]: entry.get("two_passes") for entry in self.defences}
        sizes = {name: found["bytes_per_image"] for name, found in stored.items() if found}
        return verdict(self.grid, self.checks, sizes)

    def table(
        self, format: Literal["text", "markdown"] = "text", *, intervals: bool = False
    ) -> str:
        """Accuracies in percent by defence and attack, one table for each threat model.

        The last row of each is the number of images of its accuracies. A last table says what each
        attack did to the undefended classifier: how often it reached its aim, and the mean norms of
        the changes that did, of pixels from 0 to 1.

        Args:
            format: ``"text"`` or ``"markdown"``.
            intervals: Whether each accuracy is followed by its 95 % interval in brackets.

        Raises:
            ValueError: There is no such format.

        Example:
            >>> from fd_keras.evaluation.accuracies import accuracy_row
            >>> row = {"defence": "none", "family": "none", "correct": 9, "count": 10}
            >>> attacked = {"threat_model": "gray-box", "attack": "FGSM .03", "correct": 2}
            >>> rows = [accuracy_row(**row, threat_model="benign")]
            >>> print(EvaluationReport([*rows, accuracy_row(**{**row, **attacked})]).table())
            accuracy            gray-box
            in %       benign   FGSM .03
            ----------------------------
            none         90.0       20.0
            images         10         10
        """
        if format not in ("text", "markdown"):
            raise ValueError(
                f"`format` must be 'text' or 'markdown'. Received: format={shown(format)}"
            )
        models = self.grid.threat_models or [BENIGN]
        cell = _with_interval if intervals else _percent
        blocks = [_block(self.grid, model, format == "markdown", cell) for model in models]
        if self.grid.effects:
            blocks.append(_effects(self.grid.effects, format == "markdown"))
        return "\n\n".join(blocks)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The report as JSON, without the pictures.

        Args:
            path: File to write, replaced atomically; ``None``: none.

        Returns:
            The text, with one line per accuracy.

        Raises:
            OSError: The file cannot be written.

        Example:
            >>> print(EvaluationReport([]).to_json().partition("version")[0])
            {
             "format": "fd_keras.evaluation_report",
             "
        """
        content = {"settings": self.settings, **{name: getattr(self, name) for name in _LISTS}}
        if path is not None:
            _FORMAT.write(path, content, rows=_LISTS)
        return _FORMAT.text(content, rows=_LISTS)

    @staticmethod
    def is_file(path: str | os.PathLike[str]) -> bool:
        """Whether the ``format`` entry of a JSON file is that of an evaluation report.

        Args:
            path: The file.

        Raises:
            OSError: It cannot be read.

        Example:
            >>> import tempfile
            >>> path = tempfile.mkdtemp() + "/report.json"
            >>> _ = EvaluationReport([]).to_json(path)
            >>> EvaluationReport.is_file(path)
            True
        """
        return _FORMAT.recognises(path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> EvaluationReport:
        """Read what ``to_json`` wrote.

        Args:
            source: The file, or the text, which begins with ``{``.

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds no valid report.

        Example:
            See the class.
        """
        if not isinstance(source, str) or not source.lstrip().startswith("{"):
            return _FORMAT.read(source, cls._from_content, argument="source")
        try:
            return cls._from_content(_FORMAT.parse(source))
        except ValueError as error:
            raise ValueError(f"`source` holds no evaluation report ({error}).") from error

    @classmethod
    def _from_content(cls, content: Mapping[str, Any]) -> EvaluationReport:
        if missing := [key for key in (*_LISTS, "settings") if key not in content]:
            raise ValueError(f"it lacks {missing}")
        return cls(**{key: content[key] for key in (*_LISTS, "settings")})

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write a page that needs no network and no other file, replacing ``path`` atomically.

        Args:
            path: File to write.

        Returns:
            ``path``.

        Raises:
            ImportError: matplotlib or Jinja2 is not installed.
            OSError: The file cannot be written.

        Example:
            >>> import tempfile
            >>> EvaluationReport([]).to_html(tempfile.mkdtemp() + "/report.html").name
            'report.html'
        """
        parts = (self.grid, self.rows, self.defences, self.detection, self.pictures)
        render_page(path, "report.html.j2", report=self, **page_fields(*parts))
        return Path(path)


def _block(
    grid: AccuracyGrid, threat_model: str, markdown: bool, cell: Callable[[Row | None], str]
) -> str:
    """One table; its first column is benign, and every head says the threat model."""
    columns, body = _cells(grid, threat_model, ": " if markdown else "\n", cell)
    return text_table(columns, body, markdown=markdown, width=_TEXT_WIDTH)


def _cells(
    grid: AccuracyGrid, threat_model: str, between: str, cell: Callable[[Row | None], str]
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of one table."""
    columns = [pair for pair in grid.columns if pair[0] in (BENIGN, threat_model)]
    heads = [model if model == BENIGN else f"{model}{between}{attack}" for model, attack in columns]
    names = grid.shown(threat_model)
    body = [[name, *(cell(grid.row(name, *column)) for column in columns)] for name in names]
    counts = ["images", *(grid.counts(*column, names) for column in columns)]
    return ["accuracy\nin %", *heads], [*body, counts]


def _effects(effects: Mapping[str, Mapping[str, float | None]], markdown: bool) -> str:
    """What attacks did, in the order in which Feature Squeezing prints it."""
    norms = [f"mean {norm},{' ' if markdown else chr(10)}pixels 0..1" for norm in ("L2", "Linf")]
    heads = ["attack on the\nclassifier" if not markdown else "attack", "success\nin %", *norms]
    body = [
        [
            name,
            f"{100 * (effect['success'] or 0):.1f}",
            *("-" if n is None else f"{n:.3f}" for n in (effect["mean_l2"], effect["mean_linf"])),
        ]
        for name, effect in effects.items()
    ]
    return text_table(heads, body, markdown=markdown)


def _percent(row: Row | None) -> str:
    return "-" if row is None else f"{100 * row['accuracy']:.1f}"


def _with_interval(row: Row | None) -> str:
    if row is None:
        return "-"
    low, high = row["interval"]
    return f"{_percent(row)} [{100 * low:.0f}-{100 * high:.0f}]"


def _plain_json(name: str, value: Any) -> Any:
    """A copy made through JSON, so that what is saved reads back equal."""

    def plain(item: Any) -> Any:
        if isinstance(item, np.generic | np.ndarray):
            return item.tolist()
        raise TypeError(f"{type(item).__name__} is no JSON type")

    kind = dict if name == "settings" else list
    if not isinstance(value, Mapping if kind is dict else Sequence) or isinstance(value, str):
        raise ValueError(f"`{name}` must be a {kind.__name__}. Received: {name}={shown(value)}")
    try:
        return json.loads(json.dumps(kind(value), allow_nan=False, default=plain))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be writable as JSON: {error}.") from error


def _check_entries(name: str, entries: Sequence[Any], keys: Sequence[str]) -> None:
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise ValueError(f"`{name}[{number}]` must be a dictionary. Received: {shown(entry)}")
        if missing := [key for key in keys if key not in entry]:
            raise ValueError(
                f"`{name}[{number}]` must have the keys {missing} too. Received: {sorted(entry)}"
            )
        for key in _TEXTS:
            # A check may be about no defence.
            if not isinstance(entry.get(key, ""), str) and (key, entry[key]) != ("defence", None):
                raise ValueError(
                    f"`{name}[{number}]` must have a text as {key}. Received: {key}="
                    f"{shown(entry[key])}"
                )
        if entry.get("threat_model", "benign") not in THREAT_MODELS:
            raise ValueError(
                f"`{name}[{number}]` must have a threat_model of {list(THREAT_MODELS)}. "
                f"Received: threat_model={shown(entry['threat_model'])}"
            )


def _check_details(
    defences: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
    detection: Sequence[Mapping[str, Any]],
) -> None:
    for entry in defences:
        time = entry["ms_per_image"]
        if time is not None and not (is_number(time) and time >= 0):
            raise ValueError(
                "`defences` must have ms_per_image as milliseconds or None. "
                f"Received: {shown(entry)}"
            )
        stored = entry.get("two_passes")
        if stored is not None and not (
            isinstance(stored, Mapping)
            and all(key in stored for key in _STORED)
            and is_number(stored["bytes_per_image"])
        ):
            raise ValueError(
                f"`defences` must have two_passes with {list(_STORED)}. Received: {shown(entry)}"
            )
    for entry in checks:
        # 0, 1 or "false" in the place of a truth value would let a failure pass for a success.
        if not isinstance(entry["passed"], bool):
            raise ValueError(
                f"`checks` must have passed as True or False. Received: {shown(entry)}"
            )
    for entry in detection:
        shares = [entry["auc"], entry["detection_rate"], entry["false_positive_rate"]]
        roc = entry["roc"]
        fpr, tpr = (roc.get("fpr"), roc.get("tpr")) if isinstance(roc, Mapping) else ([], [])
        paired = isinstance(fpr, list) and isinstance(tpr, list) and len(fpr) == len(tpr)
        if not paired or not all(is_number(share) and 0 <= share <= 1 for share in shares):
            raise ValueError(
                "`detection` must have auc and rates from 0 to 1, and as many fpr as tpr. "
                f"Received: the entry of {entry['defence']!r} and {entry['attack']!r}"
            )


def _check_pictures(pictures: Sequence[Mapping[str, Any]]) -> None:
    for number, entry in enumerate(pictures):
        arrays = [np.asarray(entry[key]) for key in ("benign", "attacked", "distilled")]
        shapes = {array.shape for array in arrays}
        shape = arrays[0].shape
        fits = len(shapes) == 1 and len(shape) == 3 and shape[-1] in (1, 3) and 0 not in shape
        if not fits or any(array.dtype != np.uint8 for array in arrays):
            raise ValueError(
                f"`pictures[{number}]` must hold three uint8 arrays of one shape "
                "(height, width, channels) with 1 or 3 channels. Received: "
                f"{[(array.shape, str(array.dtype)) for array in arrays]}"
            )
