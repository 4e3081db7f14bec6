"""The quantisation table as a value, and as a JSON file."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras._checks import printable, real_numbers, shown
from fd_keras._files import DocumentFormat
from fd_keras.dct import (
    BLOCK_SIZE,
    ColorSpace,
    Quantizer,
    validate_color_space,
    validate_cycle_spins,
    validate_quantizer,
)

# Levels of a provenance: far fewer than JSON, pickles and reprs can take.
_MOST_LEVELS = 100

FORMAT = DocumentFormat("fd_keras.quantization_table", 1, "quantisation table")


@dataclass(frozen=True, eq=False, repr=False)
class QuantizationTable:
    """Immutable quantisation steps with the colour space and block grids to apply them in.

    Args:
        steps: Quantisation steps on the 0..255 pixel scale of an orthonormal 8x8 DCT.
            Shape ``(8, 8)`` or ``(1, 8, 8)``: shared by all channels. Shape
            ``(channels, 8, 8)``: one table per channel, in the order of ``color_space``.
            Indexed by vertical, then horizontal frequency. Positive and finite.
        color_space: ``"rgb"``: the image's own channels, without level shift.
            ``"ycbcr"``: full-range JFIF Y, Cb, Cr, centred on 128 as in a JPEG codec;
            greyscale images are treated as Y.
        cycle_spins: Number of shifted block grids that the result is averaged over, 1 to 64.
        provenance: How the table was made and from which data; any JSON-serialisable mapping. It
            is ignored by ``==``.
        quantizer: What a step ``q`` does to a coefficient. ``"round"``: the nearest multiple of
            ``q``. ``"soft"``: soft thresholding, which moves it by ``q / 2`` towards zero, and no
            further than zero; DC stays as it is. Both remove what is smaller than ``q / 2``.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: ``provenance`` cannot be written as JSON.

    Example:
        >>> table = QuantizationTable(np.full((8, 8), 30.0), cycle_spins=2)
        >>> table.channels, float(table.steps[0, 0, 0])
        (1, 30.0)
        >>> table == QuantizationTable(np.full((1, 8, 8), 30), "rgb", 2)
        True

    References:
        Liu et al., "Feature Distillation", CVPR 2019, section 3; Donoho, "De-noising by
        soft-thresholding", IEEE Transactions on Information Theory 41(3), 1995.
    """

    steps: npt.NDArray[np.float64]
    color_space: ColorSpace = "rgb"
    cycle_spins: int = 1
    provenance: Mapping[str, Any] = field(default_factory=dict)
    quantizer: Quantizer = "round"

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "steps", _validated_steps(self.steps))
        set_field(self, "color_space", validate_color_space(self.color_space))
        set_field(self, "cycle_spins", validate_cycle_spins(self.cycle_spins))
        set_field(self, "provenance", frozen_json(self.provenance))
        set_field(self, "quantizer", validate_quantizer(self.quantizer))
        if self.color_space == "ycbcr" and self.channels not in (1, 3):
            raise ValueError(
                "`steps` of a YCbCr table must have 1 or 3 channels. "
                f"Received: steps of shape {self.steps.shape}"
            )

    @property
    def channels(self) -> int:
        """Number of separate channel tables; 1 means that all channels share one."""
        return int(self.steps.shape[0])

    @property
    def name(self) -> str:
        """Short name for reports and plots, one printable line taken from the provenance."""
        return printable(self._raw_name)

    @property
    def _raw_name(self) -> str:
        return str(self.provenance.get("name", "custom"))

    def steps_for(self, image_channels: int) -> npt.NDArray[np.float64]:
        """Steps for each channel of an image.

        Args:
            image_channels: Number of channels of the image.

        Returns:
            Array ``(image_channels, 8, 8)``.

        Raises:
            ValueError: The table has steps for another number of channels.

        Example:
            >>> QuantizationTable(np.ones((8, 8))).steps_for(3).shape
            (3, 8, 8)
        """
        if self.color_space == "ycbcr" and image_channels not in (1, 3):
            raise ValueError(
                "`color_space='ycbcr'` needs images with 1 or 3 channels. "
                f"Received: images with {image_channels} channels"
            )
        if self.channels == image_channels:
            return self.steps
        if self.channels == 1:
            return np.repeat(self.steps, image_channels, axis=0)
        if self.color_space == "ycbcr":
            return self.steps[:1]  # a greyscale image is its own luma
        raise ValueError(
            f"`quantization_table` has steps for {self.channels} channels. "
            f"Received: images with {image_channels} channels"
        )

    def with_settings(
        self,
        *,
        color_space: ColorSpace | None = None,
        cycle_spins: int | None = None,
        quantizer: Quantizer | None = None,
    ) -> QuantizationTable:
        """The same steps and provenance with another colour space, block grids or quantiser.

        Args:
            color_space: New colour space; ``None`` keeps the table's.
            cycle_spins: New number of block grids; ``None`` keeps the table's.
            quantizer: New quantiser; ``None`` keeps the table's.

        Raises:
            ValueError: A setting is out of its range, or the steps do not fit the colour space.

        Example:
            >>> QuantizationTable(np.ones((8, 8))).with_settings(cycle_spins=4).cycle_spins
            4
        """
        return QuantizationTable(
            self.steps,
            self.color_space if color_space is None else color_space,
            self.cycle_spins if cycle_spins is None else cycle_spins,
            self.provenance,
            self.quantizer if quantizer is None else quantizer,
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert the table to plain JSON types, for ``from_dict``.

        Example:
            >>> table = QuantizationTable(np.ones((8, 8)))
            >>> QuantizationTable.from_dict(table.to_dict()) == table
            True
        """
        return {
            "format": FORMAT.name,
            "version": FORMAT.version,
            "color_space": self.color_space,
            "cycle_spins": self.cycle_spins,
            # Files of rounding tables stay what they were before there was another quantiser.
            **({} if self.quantizer == "round" else {"quantizer": self.quantizer}),
            "provenance": copy.deepcopy(dict(self.provenance)),
            "steps": self.steps.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantizationTable:
        """Make a table from the mapping that ``to_dict`` returned.

        Args:
            data: The mapping.

        Raises:
            ValueError: ``data`` is not a quantisation table, or of another version.

        Example:
            >>> QuantizationTable.from_dict({"format": "x"})  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ...
            ValueError: `data` holds no quantisation table: its format is 'x', not ...
        """
        try:
            return cls._from_content(FORMAT.content(data))
        except (TypeError, ValueError) as error:
            raise ValueError(f"`data` holds no quantisation table: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as human-readable JSON, replacing ``path`` atomically.

        Args:
            path: File to write, usually ``*.json``.

        Raises:
            OSError: The file cannot be written.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> path = Path(tempfile.mkdtemp()) / "table.json"
            >>> table = QuantizationTable(np.full((8, 8), 30))
            >>> table.save(path)
            >>> QuantizationTable.load(path) == table
            True
        """
        FORMAT.write(path, FORMAT.content(self.to_dict()), rows=["steps"])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QuantizationTable:
        """Read a table that ``save`` wrote.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds no valid table; the message names the file.

        Example:
            See ``save``.
        """
        return FORMAT.read(path, cls._from_content)

    @classmethod
    def _from_content(cls, content: Mapping[str, Any]) -> QuantizationTable:
        fields = ("steps", "color_space", "cycle_spins", "provenance")
        if missing := [name for name in fields if name not in content]:
            raise ValueError(f"it lacks the entries {missing}")
        found = {name: content[name] for name in fields}
        return cls(**found, quantizer=content.get("quantizer", "round"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantizationTable):
            return NotImplemented
        return (
            self.color_space == other.color_space
            and self.cycle_spins == other.cycle_spins
            and self.quantizer == other.quantizer
            and np.array_equal(self.steps, other.steps)
        )

    def __hash__(self) -> int:
        return hash((self.color_space, self.cycle_spins, self.quantizer, self.steps.tobytes()))

    def __repr__(self) -> str:
        low, high = self.steps.min(), self.steps.max()
        steps = f"{low:g}" if low == high else f"{low:g}..{high:g}"
        quantizer = "" if self.quantizer == "round" else f", quantizer={self.quantizer!r}"
        return (
            f"QuantizationTable({shown(self._raw_name)}, steps={steps}, channels={self.channels}, "
            f"color_space={self.color_space!r}, cycle_spins={self.cycle_spins}{quantizer})"
        )

    def __str__(self) -> str:
        grids = []
        for index, channel in enumerate(self.steps):
            title = [f"channel {index}"] if self.channels > 1 else []
            grids += title + [" ".join(f"{step:7.4g}" for step in row) for row in channel]
        return "\n".join([repr(self), *grids])

    def __reduce__(self) -> tuple[Any, ...]:
        # A MappingProxyType cannot be pickled, and Keras Tuner and Dask pickle tables.
        return QuantizationTable.from_dict, (self.to_dict(),)


def _validated_steps(steps: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.array(real_numbers("steps", steps))
    if array.ndim == 2:
        array = array[np.newaxis]
    if array.ndim != 3 or array.shape[0] == 0 or array.shape[1:] != (BLOCK_SIZE, BLOCK_SIZE):
        raise ValueError(
            "`steps` must have shape (8, 8) or (channels, 8, 8). "
            f"Received: steps of shape {np.shape(steps)}"
        )
    # The layer multiplies by reciprocals in float32, where those of steps below 1e-38 are infinite.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        usable = np.isfinite(np.float32(array)) & np.isfinite(1 / np.float32(array)) & (array > 0)
    if not usable.all():
        channel, u, v = (int(i) for i in np.argwhere(~usable)[0])
        raise ValueError(
            "`steps` must be positive and finite in float32. "
            f"Received: steps[{channel}, {u}, {v}]={array[channel, u, v]}"
        )
    array.setflags(write=False)
    return array


def check_rounds(table: QuantizationTable, name: str = "table") -> None:
    """Refuse a table whose coefficients are not rounded to multiples of their steps.

    Args:
        table: The table.
        name: Of the caller's argument.

    Raises:
        ValueError: It belongs to soft thresholding.

    Example:
        >>> check_rounds(QuantizationTable(np.ones((8, 8))))
    """
    if table.quantizer != "round":
        raise ValueError(
            f"`{name}` must round, because JPEG files, encoded images and certificates need "
            "multiples of steps, of which soft thresholding knows none. "
            f"Received: {name}={shown(table)}"
        )


def frozen_json(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a read-only copy that is equal to what JSON reads back.

    Args:
        provenance: The mapping.

    Raises:
        TypeError: It is no mapping, or cannot be written as JSON.
        ValueError: It is nested too deeply.

    Example:
        >>> frozen_json({"sizes": (1, 2)})
        mappingproxy({'sizes': [1, 2]})
    """
    if not isinstance(provenance, Mapping):
        raise TypeError(f"`provenance` must be a mapping. Received: provenance={shown(provenance)}")
    if not _within_levels(provenance, _MOST_LEVELS):
        raise ValueError(
            f"`provenance` must not be nested more than {_MOST_LEVELS} levels deep. "
            f"Received: provenance={shown(provenance)}"
        )
    try:
        return MappingProxyType(json.loads(json.dumps(dict(provenance), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`provenance` must be JSON-serialisable ({error}). "
            f"Received: provenance={shown(provenance)}"
        ) from error


def _within_levels(value: object, levels: int) -> bool:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    return levels > 0 and all(_within_levels(inner, levels - 1) for inner in value)
