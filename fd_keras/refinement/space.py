"""Which tables a search may propose, as plain functions of Keras Tuner's hyperparameters.

A space is any function that asks a ``keras_tuner.HyperParameters`` for values and returns a
``QuantizationTable``; write your own to search something else. Those here are made from the
statistics of benign images, because bands are counted by their standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras._checks import checked
from fd_keras.dct import BLOCK_SIZE, ColorSpace
from fd_keras.design import design_table, rank_bands
from fd_keras.presets import preset_table
from fd_keras.statistics import CoefficientStatistics
from fd_keras.tables import QuantizationTable

# Typing alias: HyperParameters -> table.
Space = Callable[[Any], QuantizationTable]
# Typing alias: statistics in each of the colour spaces that may be searched.
Statistics = CoefficientStatistics | Mapping[ColorSpace, CoefficientStatistics]

FloatArray = npt.NDArray[np.float64]

_BANDS = BLOCK_SIZE**2
_DESIGN_EPSILONS = (1.0, 2.0, 4.0)

_LADDER = (5.0, 8.0, 12.0, 18.0, 26.0, 38.0)
_LADDER_CHROMA = 3.0

# (lowest, highest, default) of what ``band_space`` searches.
_LIMITS = {
    "as_bands": (0, _BANDS, 15),
    "as_step": (1.0, 80.0, 20.0),
    "delta": (0.0, 100.0, 20.0),
    "dc_step": (1.0, 80.0, 20.0),
    "chroma": (0.5, 8.0, 2.0),
}


def band_space(statistics: Statistics, *, cycle_spins: Sequence[int] = (1, 2, 4)) -> Space:
    """The paper's space: a split of the ranked bands, and a step on either side of it.

    Searched are ``as_bands`` (how many bands of each channel, ranked by standard deviation,
    are accuracy-sensitive), their ``as_step``, ``delta`` (by how much the step of the other
    bands is larger), ``dc_step``, ``chroma`` (by how much steps of Cb and Cr are multiplied),
    ``color_space`` and ``cycle_spins``.

    Args:
        statistics: Of benign images; a mapping where several colour spaces may be searched.
        cycle_spins: Numbers of block grids to choose from.

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
    found = by_color_space(statistics)

    def table(hp: Any) -> QuantizationTable:
        color_space, spins = _settings(hp, found, cycle_spins)
        ranks = rank_bands(found[color_space].std)
        values = {
            "as_bands": hp.Int("as_bands", *_LIMITS["as_bands"][:2], default=15),
            "as_step": _log_float(hp, "as_step"),
            "delta": hp.Float("delta", *_LIMITS["delta"][:2], default=_LIMITS["delta"][2]),
            "dc_step": _log_float(hp, "dc_step"),
        }
        steps = band_steps(ranks, **values)
        return _table(hp, found, color_space, spins, steps, "band_space")

    return table


def curve_space(statistics: Statistics, *, cycle_spins: Sequence[int] = (1, 2, 4)) -> Space:
    """Steps that follow the spread of the bands: ``level * (sigma / median sigma)**-exponent``.

    An exponent of 0 is a flat table, a positive one gives fine steps to the bands that vary
    most, whatever their channel. Searched are ``level``, ``exponent``, ``dc_step``,
    ``chroma``, ``color_space`` and ``cycle_spins``.

    Args:
        statistics: As for ``band_space``.
        cycle_spins: As for ``band_space``.

    Returns:
        The space.

    Raises:
        ValueError: ``statistics`` or ``cycle_spins`` are empty.

    Example:
        >>> import keras_tuner
        >>> images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3))
        >>> curve_space(CoefficientStatistics.from_data(images))(keras_tuner.HyperParameters())
        QuantizationTable('searched', steps=20..30, channels=3, color_space='rgb', cycle_spins=1)
    """
    found = by_color_space(statistics)

    def table(hp: Any) -> QuantizationTable:
        color_space, spins = _settings(hp, found, cycle_spins)
        level = hp.Float("level", 2.0, 120.0, sampling="log", default=30.0)
        exponent = hp.Float("exponent", -0.5, 1.0, default=0.0)
        std = np.maximum(found[color_space].std, 1e-3)
        steps = np.clip(level * (std / np.median(std)) ** -exponent, 1, 255)
        steps[:, 0, 0] = _log_float(hp, "dc_step")
        return _table(hp, found, color_space, spins, steps, "curve_space")

    return table


def group_space(
    statistics: Statistics, *, groups: int = 6, cycle_spins: Sequence[int] = (1, 2, 4)
) -> Space:
    """A free step for each of several groups of bands with neighbouring ranks.

    Searched are ``step_0`` (DC and the bands that vary most) to ``step_<groups - 1>``,
    ``chroma``, ``color_space`` and ``cycle_spins``.

    Args:
        statistics: As for ``band_space``.
        groups: Number of groups, 1 to 64; the first ones are smaller, as low bands differ more.
        cycle_spins: As for ``band_space``.

    Returns:
        The space.

    Raises:
        ValueError: An argument is empty or out of its range.

    Example:
        >>> import keras_tuner
        >>> images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3))
        >>> space = group_space(CoefficientStatistics.from_data(images), groups=3)
        >>> float(space(hp := keras_tuner.HyperParameters()).steps.max())
        30.0
        >>> list(hp.values)
        ['cycle_spins', 'step_0', 'step_1', 'step_2']
    """
    found = by_color_space(statistics)
    if not 1 <= groups <= _BANDS:
        raise ValueError(f"`groups` must be from 1 to {_BANDS}. Received: groups={groups!r}")
    # Each group is about twice as large as the one before it.
    edges = np.unique(np.rint(np.geomspace(1, _BANDS, groups + 1)[1:-1]))
    group_of_rank = np.searchsorted(edges, np.arange(_BANDS), side="right")

    def table(hp: Any) -> QuantizationTable:
        color_space, spins = _settings(hp, found, cycle_spins)
        free = [
            hp.Float(f"step_{group}", 1.0, 160.0, sampling="log", default=30.0)
            for group in range(group_of_rank.max() + 1)
        ]
        steps = np.array(free)[group_of_rank][rank_bands(found[color_space].std)]
        return _table(hp, found, color_space, spins, steps, "group_space")

    return table


def band_steps(
    ranks: npt.NDArray[np.int64],
    *,
    as_bands: int,
    as_step: float,
    delta: float,
    dc_step: float,
) -> FloatArray:
    """Steps of a table with one step on either side of a split of the ranked bands.

    Args:
        ranks: Rank of each band, ``(..., 8, 8)``, as ``rank_bands`` returns it.
        as_bands: Number of bands that get ``as_step``.
        as_step: Step of the accuracy-sensitive bands.
        delta: How much larger the step of the other bands is.
        dc_step: Step of DC, on whichever side it is.

    Returns:
        Array of the shape of ``ranks``.

    Example:
        >>> ranks = np.arange(64).reshape(8, 8)
        >>> steps = band_steps(ranks, as_bands=3, as_step=10, delta=20, dc_step=5)
        >>> steps[0, :4]
        array([ 5., 10., 10., 30.])
    """
    steps = np.where(ranks < as_bands, float(as_step), float(as_step + delta))
    steps[..., 0, 0] = dc_step
    return steps


def band_values(
    table: QuantizationTable, statistics: Statistics, *, cycle_spins: Sequence[int] = (1, 2, 4)
) -> dict[str, Any]:
    """The point of ``band_space`` that lies nearest to a table, to start a search from.

    The split is the one that leaves the smallest squared error of the logarithm of the steps;
    steps are medians. What is outside the space is moved to its border.

    Args:
        table: Any table.
        statistics: Those of the space.
        cycle_spins: Those of the space.

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
    found = by_color_space(statistics)
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
    return values


def starting_points(
    statistics: Statistics, *, cycle_spins: Sequence[int] = (1, 2, 4)
) -> list[dict[str, Any]]:
    """Points of ``band_space``: near presets, near tables of step 1, and a ladder of gentle ones.

    The ladder has nearly equal steps, coarser ones for Cb and Cr, and averages over as many
    grids as may be searched: what random searches end at again and again, at any strength.

    Args:
        statistics: Those of the space.
        cycle_spins: Those of the space.

    Returns:
        Values of the hyperparameters for each, without repetition.

    Example:
        >>> images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3))
        >>> len(starting_points(CoefficientStatistics.from_data(images))) > 2
        True
    """
    found = by_color_space(statistics)
    tables = [preset_table(name) for name in ("liu2019", "zigzag15", "jpeg:75")]
    measured = found.get("ycbcr", next(iter(found.values())))
    for epsilon in _DESIGN_EPSILONS:
        try:
            table = design_table(measured, epsilon, cycle_spins=max(cycle_spins))
        except ValueError:
            continue  # no such table exists for these images
        tables.append(table)
    tables += [_rung(step, measured, max(cycle_spins)) for step in _LADDER]
    points = [band_values(table, found, cycle_spins=cycle_spins) for table in tables]
    return list({str(point): point for point in points}.values())


def _rung(step: float, statistics: CoefficientStatistics, cycle_spins: int) -> QuantizationTable:
    """A table whose steps grow a little with the rank, and with colour a lot."""
    steps = band_steps(
        rank_bands(statistics.std), as_bands=10, as_step=step, delta=step / 3, dc_step=step
    )
    steps[1:] *= _LADDER_CHROMA
    return QuantizationTable(steps, statistics.color_space, cycle_spins)


def by_color_space(statistics: Statistics) -> dict[ColorSpace, CoefficientStatistics]:
    """Statistics by their colour space.

    Args:
        statistics: One, or a mapping of them.

    Raises:
        ValueError: There are none, or one is filed under another colour space.

    Example:
        >>> list(by_color_space(CoefficientStatistics.from_data(np.zeros((1, 8, 8, 3)))))
        ['rgb']
    """
    if isinstance(statistics, CoefficientStatistics):
        return {statistics.color_space: statistics}
    found = dict(statistics)
    if not found or any(name != measured.color_space for name, measured in found.items()):
        raise ValueError(
            "`statistics` must be CoefficientStatistics, or map colour spaces to some measured in "
            f"them. Received: statistics={statistics!r}"
        )
    return found


def _settings(
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


def _table(
    hp: Any,
    statistics: Mapping[ColorSpace, CoefficientStatistics],
    color_space: ColorSpace,
    cycle_spins: int,
    steps: FloatArray,
    source: str,
) -> QuantizationTable:
    # Asked for in every colour space, so that the space has the same axes everywhere.
    if "ycbcr" in statistics and statistics["ycbcr"].channels == 3:
        factor = _log_float(hp, "chroma")
        if color_space == "ycbcr":
            steps = steps * np.array([1, factor, factor]).reshape(3, 1, 1)
    # A hundredth of a grey level is far below what any image shows, and reads well in a file.
    steps = np.maximum(steps.round(2), 0.01)
    provenance = {"source": source, "name": "searched", "values": dict(hp.values)}
    return QuantizationTable(steps, color_space, cycle_spins, provenance)
