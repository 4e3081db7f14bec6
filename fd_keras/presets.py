"""Named quantisation tables."""

from __future__ import annotations

import importlib.resources
import json
import numbers
import os
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fd_keras._checks import shown, validate_epsilon
from fd_keras.dct import BLOCK_SIZE, TIE_OFFSET, ColorSpace, validate_color_space, zigzag_rank
from fd_keras.kernels import TOLERANCE, Norm, gains, linf_gains
from fd_keras.tables import QuantizationTable

PRESETS = ("liu2019", "zigzag15", "balanced", "soft8", "jpeg", "certified")

# Typing alias: what the layer accepts as a table.
TableLike = str | os.PathLike[str] | QuantizationTable | Mapping[str, object] | npt.ArrayLike

# ITU-T T.81, annex K.1: luminance and chrominance at libjpeg's quality 50.
_ANNEX_K_LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_ANNEX_K_CHROMA = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
]

_DEFAULT_JPEG_QUALITY = 75  # Pillow's and libjpeg's

# Whole pixel values are half a grey level from the lattice at most.
ROUNDING = 0.5

# What an encoder forgives a coefficient for float32 rounding of its own; steps make up for it.
SLACK = 0.001


def preset_table(name: str, *, quality: int | None = None) -> QuantizationTable:
    """Return a quantisation table by its name.

    * ``"liu2019"``: the table of the authors' code, with step 25 in the sixteen lowest bands (4x4)
      and 30 elsewhere, for each RGB channel.
    * ``"zigzag15"``: step 1 in the first 15 zig-zag bands and 41 elsewhere, in YCbCr, as in
      another public implementation.
    * ``"balanced"``: the table that ``refine`` found for MobileNetV2 on ImageNet images at no more
      than 5 % benign loss; its accuracies are in ``experiments/results/imagenet_front.md``.
    * ``"soft8"``: soft thresholding with thresholds of 8 grey levels for luma and 16 for chroma, on
      four block grids: for attackers who know the layer. Its accuracies beside rounding are in
      ``experiments/results/quantizers.md``.
    * ``"jpeg"``: the Annex K tables at libjpeg's ``quality``, in YCbCr without chroma
      subsampling. ``"jpeg:90"`` is the same as ``preset_table("jpeg", quality=90)``.
    * ``"certified"``: the smallest whole steps with which an encoded image withstands every change
      of at most 2 grey levels per pixel, in RGB; see ``certified_table``. ``"certified:4"`` is
      for 4 grey levels, and ``"certified:4:ycbcr"`` in YCbCr, which makes smaller JPEG files.

    Args:
        name: One of ``PRESETS``, ``"jpeg:<quality>"`` or ``"certified:<epsilon>[:ycbcr]"``.
        quality: JPEG quality from 1 to 100; only for ``"jpeg"``. Default: 75.

    Returns:
        The table; its provenance names the preset.

    Raises:
        ValueError: ``name`` is unknown, or ``quality`` invalid or not applicable.

    Example:
        >>> preset_table("liu2019")
        QuantizationTable('liu2019', steps=25..30, channels=1, color_space='rgb', cycle_spins=1)
        >>> preset_table("jpeg:50") == preset_table("jpeg", quality=50)
        True

    References:
        Liu et al., CVPR 2019, and their code; ITU-T T.81, annex K.1.
    """
    base, separator, suffix = name.partition(":") if isinstance(name, str) else ("", "", "")
    if base not in PRESETS:
        raise ValueError(
            f"`name` must be one of {PRESETS}, 'jpeg:<quality>' or "
            f"'certified:<epsilon>[:ycbcr]'. Received: name={shown(name)}"
        )
    if base == "jpeg":
        if separator and quality is not None:
            raise ValueError(
                "`quality` must not be given twice. "
                f"Received: name={shown(name)}, quality={shown(quality)}"
            )
        return _jpeg_table(_parsed_quality(name, suffix) if separator else quality)
    if base == "certified" and quality is None:
        return _certified_preset(name, suffix if separator else "2")
    if separator or quality is not None:
        raise ValueError(
            f"`quality` belongs to the 'jpeg' preset only. "
            f"Received: name={shown(name)}, quality={shown(quality)}"
        )
    return _TABLES[base]()


def as_table(value: TableLike) -> QuantizationTable:
    """Convert what the layer accepts as a table to a ``QuantizationTable``.

    Args:
        value: Preset name (see ``preset_table``), path of a file that ``QuantizationTable.save``
            wrote, steps of shape ``(8, 8)`` or ``(channels, 8, 8)``, a ``QuantizationTable``, or
            its ``to_dict()``.

    Raises:
        ValueError: ``value`` is no valid table.
        OSError: The file cannot be read.

    Example:
        >>> as_table([[30.0] * 8] * 8).channels
        1
    """
    if isinstance(value, QuantizationTable):
        return value
    if isinstance(value, (str, os.PathLike)):
        return table_from_argument(os.fspath(value))
    if isinstance(value, Mapping):
        return QuantizationTable.from_dict(value)
    if isinstance(getattr(value, "quantization_table", None), QuantizationTable):
        raise ValueError(
            "`table` must be no layer: pass layer.quantization_table, and the layer's settings "
            f"beside it. Received: table={shown(value)}"
        )
    return QuantizationTable(value)  # type: ignore[arg-type]


def table_from_argument(argument: str) -> QuantizationTable:
    """Return the table that a text names, such as an argument of the command line.

    Args:
        argument: Preset name, or path of a file that ``QuantizationTable.save`` wrote.

    Raises:
        ValueError: ``argument`` is neither.
        OSError: The file cannot be read.

    Example:
        >>> table_from_argument("jpeg:90").name
        'jpeg:90'
    """
    if argument.partition(":")[0] in PRESETS:
        return preset_table(argument)
    if "\0" in argument or not os.path.exists(argument):
        raise ValueError(
            f"`table` must be a preset ({', '.join(PRESETS)}, jpeg:<quality>, "
            "certified:<epsilon>[:ycbcr]) or an existing JSON file. "
            f"Received: table={shown(argument)}"
        )
    return QuantizationTable.load(argument)


def _liu2019_table() -> QuantizationTable:
    steps = np.full((BLOCK_SIZE, BLOCK_SIZE), 30.0)
    steps[:4, :4] = 25.0
    return QuantizationTable(steps, "rgb", provenance=_provenance("liu2019"))


def _zigzag15_table() -> QuantizationTable:
    steps = np.where(zigzag_rank() < 15, 1.0, 41.0)
    return QuantizationTable(steps, "ycbcr", provenance=_provenance("zigzag15"))


def _balanced_table() -> QuantizationTable:
    file = importlib.resources.files("fd_keras").joinpath("balanced.json")
    table = QuantizationTable.from_dict(json.loads(file.read_text(encoding="utf-8")))
    return QuantizationTable(
        table.steps, table.color_space, table.cycle_spins, _provenance("balanced")
    )


def _soft8_table() -> QuantizationTable:
    steps = np.full((3, BLOCK_SIZE, BLOCK_SIZE), 32.0)
    steps[0] = 16.0
    return QuantizationTable(steps, "ycbcr", 4, _provenance("soft8"), "soft")


_TABLES = {
    "liu2019": _liu2019_table,
    "zigzag15": _zigzag15_table,
    "balanced": _balanced_table,
    "soft8": _soft8_table,
}


def _jpeg_table(quality: int | None) -> QuantizationTable:
    if quality is None:
        quality = _DEFAULT_JPEG_QUALITY
    if (
        not isinstance(quality, numbers.Integral)
        or isinstance(quality, bool)
        or not 1 <= quality <= 100
    ):
        raise ValueError(
            f"`quality` must be an integer from 1 to 100. Received: quality={shown(quality)}"
        )
    # libjpeg's jpeg_quality_scaling, in its integer arithmetic.
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    luma, chroma = (
        np.clip((np.array(table) * percent + 50) // 100, 1, 255)
        for table in (_ANNEX_K_LUMA, _ANNEX_K_CHROMA)
    )
    steps = np.stack([luma, chroma, chroma]).astype(np.float64)
    return QuantizationTable(steps, "ycbcr", provenance=_provenance(f"jpeg:{quality}"))


def _parsed_quality(name: str, suffix: str) -> int:
    try:
        return int(suffix)
    except ValueError:
        raise ValueError(
            f"`name` must end in a whole number after 'jpeg:'. Received: name={shown(name)}"
        ) from None


def certified_steps(
    epsilon: float, color_space: ColorSpace, norm: Norm, *, whole_steps: bool = True
) -> npt.NDArray[np.float64]:
    """The smallest steps that certify encoded images; see ``certified_table``.

    Args:
        epsilon: Perturbation in grey levels of 255.
        color_space: In which the steps quantise.
        norm: Of the perturbation.
        whole_steps: Whether to round up to whole steps.

    Returns:
        Array ``(1, 8, 8)`` for RGB, ``(3, 8, 8)`` for YCbCr.

    Example:
        >>> float(certified_steps(2, "rgb", "inf")[0, 0, 0])
        41.0
    """
    channels = 3 if color_space == "ycbcr" else 1
    moved = epsilon * gains(channels, color_space, norm) + ROUNDING * linf_gains()
    steps = (moved + 2 * TOLERANCE + SLACK) / (0.5 - TIE_OFFSET)
    return np.asarray(np.ceil(steps) if whole_steps else steps)


def certified_name(epsilon: float, color_space: ColorSpace, norm: Norm) -> str:
    """The name of a certified table, which for the L-inf norm is that of a preset.

    Args:
        epsilon: Perturbation in grey levels of 255.
        color_space: In which the steps quantise.
        norm: Of the perturbation.

    Example:
        >>> certified_name(2, "ycbcr", "inf")
        'certified:2:ycbcr'
    """
    kind = "certified" if norm == "inf" else "certified-l2"
    return f"{kind}:{epsilon:g}" + (":ycbcr" if color_space == "ycbcr" else "")


def _certified_preset(name: str, suffix: str) -> QuantizationTable:
    size, _, space = suffix.partition(":")
    try:
        epsilon = validate_epsilon(float(size))
        color_space = validate_color_space(space or "rgb")
    except ValueError:
        raise ValueError(
            "`name` must be 'certified:' with a number of grey levels of 255, from 0.1 to 255, and "
            f"nothing else but ':ycbcr' or ':rgb'. Received: name={shown(name)}"
        ) from None
    steps = certified_steps(epsilon, color_space, "inf")
    return QuantizationTable(
        steps, color_space, provenance=_provenance(certified_name(epsilon, color_space, "inf"))
    )


def _provenance(name: str) -> dict[str, str]:
    return {"source": "preset", "name": name}
