"""The search space of quantisation tables, as a function of Keras Tuner's hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras._checks import checked, shown
from fd_keras.certification import certified_table
from fd_keras.dct import BLOCK_SIZE, ColorSpace, Quantizer, zigzag_rank
from fd_keras.design import design_table, rank_bands
from fd_keras.presets import preset_table
from fd_keras.statistics import CoefficientStatistics
from fd_keras.tables import QuantizationTable

# Typing alias: HyperParameters -> table.
Space = Callable[[Any], QuantizationTable]
# Typing alias: statistics in each of the colour spaces that may be searched.
Statistics = CoefficientStatistics | Mapping[ColorSpace, CoefficientStatistics]

_BANDS = BLOCK_SIZE**2
_LARGEST = 255.0

# (lowest, highest, default) of what ``band_space`` searches.
_LIMITS = {
    "as_bands": (0, _BANDS, 15),
    "as_step": (1.0, 80.0, 20.0),
    "delta": (0.0, 100.0, 20.0),
    "dc_step": (1.0, 80.0, 20.0),
    "chroma": (0.5, 8.0, 2.0),
}

# Tables that a search starts from, besides the presets.
_DESIGN_EPSILONS = (1.0, 2.0, 4.0)
# Luma steps, factor for chroma and growth of the step from the tenth band on, which random searches
# end near again and again. Soft thresholding moves all coefficients by half a step: it costs as
# much with smaller ones, and flat tables like ``soft8`` leave most under adaptive attacks.
_GENTLE: dict[Quantizer, tuple[tuple[float, ...], float, float]] = {
    "round": ((5.0, 8.0, 12.0, 18.0, 26.0, 38.0), 3.0, 1 / 3),
    "soft": ((8.0, 10.0, 12.0, 14.0, 17.0, 20.0), 2.0, 0.0),
}
_GENTLE_BANDS = 10


def band_space(
    statistics: Statistics,
    *,
    cycle_spins: Sequence[int] = (1, 2, 4),
    quantizers: Sequence[Quantizer] = ("round",),
) -> Space:
    """The paper's space: a split of the ranked bands, and a step on either side of it.

    Searched are ``as_bands`` (number of accuracy-sensitive bands of each channel, by standard
    deviation), their ``as_step``, ``delta`` (by how much the step of the other bands is
    larger), ``dc_step``, ``chroma`` (factor of the steps of Cb and Cr), ``color_space``,
    ``cycle_spins`` and ``quantizer``; thresholds are half of the steps. A space of your own is any
    function that asks a ``keras_tuner.HyperParameters`` for values and returns a
    ``QuantizationTable``.

    Args:
        statistics: Of benign images; a mapping where several colour spaces may be searched.
        cycle_spins: Numbers of block grids to choose from.
        quantizers: Quantisers to choose from.

    Returns:
        The space.

    Raises:
        ValueError: ``statistics`` or ``cycle_spins`` are empty.

    Example:
        >>> import keras_tuner
        >>> images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3))
        >>> space = band_space(CoefficientStatistics.from_data(images))
        >>> space(keras_tuner.HyperParameters())  # the defaults
        QuantizationTable('searched', steps=20..40, channels=3, color_space='rgb', cycle_spins=1)

    References:
        Liu et al., "Feature Distillation", CVPR 2019, section 3.3.
    """
    found = _by_color_space(statistics)

    def table(hp: Any) -> QuantizationTable:
        color_space, spins = _color_space_and_spins(hp, found, cycle_spins)
        several = len(quantizers) > 1
        quantizer = hp.Choice("quantizer", list(quantizers)) if several else quantizers[0]
        steps = _band_steps(
            rank_bands(found[color_space].std),
            as_bands=hp.Int("as_bands", *_LIMITS["as_bands"][:2], default=15),
            as_step=_log_float(hp, "as_step"),
            delta=hp.Float("delta", *_LIMITS["delta"][:2], default=_LIMITS["delta"][2]),
            dc_step=_log_float(hp, "dc_step"),
        )
        # Asked for in every colour space, so that the space has the same axes everywhere.
        if "ycbcr" in found and found["ycbcr"].channels == 3:
            factor = _log_float(hp, "chroma")
            if color_space == "ycbcr":
                steps = steps * np.array([1, factor, factor]).reshape(3, 1, 1)
        # A hundredth of a grey level is far below what any image shows, and reads well in a file.
        steps = np.maximum(steps.round(2), 0.01)
        provenance = {"source": "band_space", "name": "searched", "values": dict(hp.values)}
        return QuantizationTable(steps, color_space, spins, provenance, quantizer)

    return table


def certified_space(
    epsilon: float, *, color_spaces: Sequence[ColorSpace] = ("rgb", "ycbcr")
) -> Space:
    """A space of tables that all certify the same radius for encoded images.

    No step is smaller than that of ``certified_table``. Searched are ``color_space``, ``dc_factor``
    (of the step of DC, which moves brightness only), ``kept_bands`` (number of bands in zigzag
    order that keep the certified step), ``factor`` (of the steps of the others) and ``chroma``
    (factor of the steps of Cb and Cr).

    Args:
        epsilon: The radius, in grey levels of 255.
        color_spaces: Colour spaces to choose from.

    Returns:
        The space.

    Raises:
        ValueError: ``epsilon`` is not in grey levels of 255.

    Example:
        >>> import keras_tuner
        >>> space = certified_space(2, color_spaces=["rgb"])
        >>> space(keras_tuner.HyperParameters()) == certified_table(2)  # the defaults
        True
    """
    bases = {name: certified_table(epsilon, color_space=name) for name in color_spaces}

    def table(hp: Any) -> QuantizationTable:
        names = list(bases)
        color_space = hp.Choice("color_space", names) if len(names) > 1 else names[0]
        dc_factor, factor, chroma = (
            float(hp.Float(name, 1.0, 4.0, sampling="log", default=1.0))
            for name in ("dc_factor", "factor", "chroma")
        )
        kept = hp.Int("kept_bands", 1, _BANDS, default=_BANDS)
        steps = bases[color_space].steps * np.where(zigzag_rank() < kept, 1.0, factor)
        steps[:, 0, 0] *= dc_factor
        steps[1:] *= chroma
        provenance = {"source": "certified_space", "name": "searched", "values": dict(hp.values)}
        # JPEG files hold no larger steps.
        steps = np.minimum(np.ceil(steps), np.maximum(bases[color_space].steps, _LARGEST))
        return QuantizationTable(steps, color_space, 1, provenance)

    return table


def band_values(
    table: QuantizationTable,
    statistics: Statistics,
    *,
    cycle_spins: Sequence[int] = (1, 2, 4),
    quantizers: Sequence[Quantizer] = ("round",),
) -> dict[str, Any]:
    """The point of ``band_space`` nearest to a table, to start a search from.

    The split is the one with the smallest squared error of the logarithm of the steps; steps
    are medians. Values outside the space are moved to its border.

    Args:
        table: Any table.
        statistics: Those of the space.
        cycle_spins: Those of the space.
        quantizers: Those of the space.

    Returns:
        Values of the hyperparameters.

    Raises:
        ValueError: The table does not fit the statistics.

    Example:
        >>> images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3))
        >>> statistics = CoefficientStatistics.from_data(images)
        >>> table = QuantizationTable(np.full((8, 8), 30.0))
        >>> band_values(table, statistics)["cycle_spins"]
        1
    """
    found = _by_color_space(statistics)
    color_space = table.color_space if table.color_space in found else next(iter(found))
    measured = found[color_space]
    steps = table.steps_for(measured.channels)
    order = np.argsort(rank_bands(measured.std[0]).ravel())
    logs = np.log(steps[0].ravel()[order])
    ac = logs[1:]
    errors = [np.var(ac[:n]) * n + np.var(ac[n:]) * len(ac[n:]) for n in range(1, len(ac))]
    split = int(np.argmin(errors)) + 1
    low, high = np.exp(np.median(ac[:split])), np.exp(np.median(ac[split:]))
    values: dict[str, Any] = {
        "as_bands": split + 1,
        "as_step": low,
        "delta": high - low,
        "dc_step": steps[0, 0, 0],
    }
    if any(statistics.channels > 1 for statistics in found.values()):
        values["chroma"] = np.exp(np.mean(np.log(steps[1:])) - np.mean(logs))
    for name, value in values.items():
        clipped = float(np.clip(value, *_LIMITS[name][:2]))
        values[name] = int(clipped) if name == "as_bands" else clipped
    if len(found) > 1:
        values["color_space"] = color_space
    values["cycle_spins"] = min(cycle_spins, key=lambda spins: abs(spins - table.cycle_spins))
    if len(quantizers) > 1:
        values["quantizer"] = table.quantizer
    return values


def starting_points(
    statistics: Statistics,
    *,
    cycle_spins: Sequence[int] = (1, 2, 4),
    quantizers: Sequence[Quantizer] = ("round",),
) -> list[dict[str, Any]]:
    """Points of ``band_space`` near presets, near tables of step 1, and near six gentle tables.

    There are such for each quantiser, except that presets round. The gentle ones have the largest
    number of block grids and nearly equal steps, three times as large for Cb and Cr; for soft
    thresholding equal ones, twice as large.

    Args:
        statistics: Those of the space.
        cycle_spins: Those of the space.
        quantizers: Those of the space.

    Returns:
        Values of the hyperparameters for each, without repetition.

    Example:
        >>> images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3))
        >>> len(starting_points(CoefficientStatistics.from_data(images))) > 2
        True
    """
    found = _by_color_space(statistics)
    measured, spins = found.get("ycbcr", next(iter(found.values()))), max(cycle_spins)
    tables = []
    for quantizer in quantizers:
        if quantizer == "round":
            tables += [preset_table(name) for name in ("liu2019", "zigzag15", "jpeg:75")]
        for epsilon in _DESIGN_EPSILONS:
            try:
                table = design_table(measured, epsilon, cycle_spins=spins, quantizer=quantizer)
            except ValueError:
                continue  # no such table exists for these images
            tables.append(table)
        tables += _gentle_tables(measured, spins, quantizer)
    points = [
        band_values(table, found, cycle_spins=cycle_spins, quantizers=quantizers)
        for table in tables
    ]
    return list({str(point): point for point in points}.values())


def _band_steps(
    ranks: npt.NDArray[np.int64], *, as_bands: int, as_step: float, delta: float, dc_step: float
) -> npt.NDArray[np.float64]:
    """Steps of bands of these ranks: ``as_step`` below ``as_bands``, ``delta`` more above."""
    steps = np.where(ranks < as_bands, float(as_step), float(as_step + delta))
    steps[..., 0, 0] = dc_step
    return steps


def _gentle_tables(
    statistics: CoefficientStatistics, cycle_spins: int, quantizer: Quantizer
) -> Iterator[QuantizationTable]:
    ranks = rank_bands(statistics.std)
    sizes, chroma, growth = _GENTLE[quantizer]
    for size in sizes:
        steps = _band_steps(
            ranks, as_bands=_GENTLE_BANDS, as_step=size, delta=growth * size, dc_step=size
        )
        steps[1:] *= chroma
        yield QuantizationTable(steps, statistics.color_space, cycle_spins, quantizer=quantizer)


def _by_color_space(statistics: Statistics) -> dict[ColorSpace, CoefficientStatistics]:
    if isinstance(statistics, CoefficientStatistics):
        return {statistics.color_space: statistics}
    found = dict(statistics)
    if not found or any(name != measured.color_space for name, measured in found.items()):
        raise ValueError(
            "`statistics` must be CoefficientStatistics, or map colour spaces to some measured in "
            f"them. Received: statistics={shown(statistics)}"
        )
    return found


def _color_space_and_spins(
    hp: Any,
    statistics: Mapping[ColorSpace, CoefficientStatistics],
    cycle_spins: Sequence[int],
) -> tuple[ColorSpace, int]:
    names = list(statistics)
    color_space = hp.Choice("color_space", names) if len(names) > 1 else names[0]
    choices = [int(spins) for spins in checked("cycle_spins", cycle_spins, 1, _BANDS)]
    spins = hp.Choice("cycle_spins", choices, ordered=True) if len(choices) > 1 else choices[0]
    return color_space, int(spins)


def _log_float(hp: Any, name: str) -> float:
    low, high, default = _LIMITS[name]
    return float(hp.Float(name, low, high, sampling="log", default=default))
