"""Rank DCT bands, and design a quantisation table for perturbations of a given size."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fd_keras._checks import Array, checked, checked_choice, shown, validate_epsilon
from fd_keras.dct import BLOCK_SIZE, Quantizer, validate_quantizer, zigzag_rank
from fd_keras.design.perturbation import Perturbation, PerturbationProfile, pixel_std
from fd_keras.design.prediction import (
    BandModel,
    BandStatistics,
    checked_moments,
    perturbation_of,
)
from fd_keras.tables import QuantizationTable

Ranking = Literal["sigma", "zigzag"]

RANKINGS: tuple[Ranking, ...] = get_args(Ranking)


def rank_bands(std: npt.ArrayLike, ranking: Ranking = "sigma") -> npt.NDArray[np.int64]:
    """Rank of every band, 0 being the most important.

    The gradient of a network with respect to a coefficient grows with the coefficient, so the
    bands with the largest standard deviation matter most for its accuracy. JPEG's zig-zag order,
    which most implementations use instead, was made for the eye. Equal deviations are ranked by
    zig-zag. Every channel is ranked separately.

    Args:
        std: Standard deviation of the benign coefficients, ``(..., 8, 8)``.
        ranking: ``"sigma"``: largest ``std`` first. ``"zigzag"``: lowest frequency first.

    Returns:
        Ranks 0 to 63, of the shape of ``std``.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> std = 100 / (1 + np.add.outer(3 * np.arange(8), np.arange(8)))
        >>> rank_bands(std)[:2, :4].tolist()
        [[0, 1, 2, 4], [3, 5, 7, 10]]
        >>> rank_bands(std, "zigzag")[:2, :4].tolist()
        [[0, 1, 5, 6], [2, 4, 7, 13]]

    References:
        Liu et al., "Feature Distillation", CVPR 2019, section 3.3.
    """
    std = checked("std", std)
    if std.ndim < 2 or std.shape[-2:] != (BLOCK_SIZE, BLOCK_SIZE):
        raise ValueError(f"`std` must have shape (..., 8, 8). Received: std of shape {std.shape}")
    checked_choice("ranking", ranking, RANKINGS)
    zigzag = np.broadcast_to(zigzag_rank(), std.shape).reshape(-1, BLOCK_SIZE**2)
    spread = std.reshape(zigzag.shape) if ranking == "sigma" else np.zeros(zigzag.shape)
    order = np.lexsort((zigzag, -spread), axis=-1)
    return np.argsort(order, axis=-1).reshape(std.shape)


_BANDS_IN_A_MESSAGE = 5

# Arguments that are one number, or one for each channel: the largest, and whether they are whole.
_PER_CHANNEL = (
    ("as_bands", float(BLOCK_SIZE**2), True),
    ("required_removal", 1.0, False),
    ("distortion_budget", np.inf, False),
)

# Beyond what a float64 counts exactly, and so beyond any coefficient.
_LARGEST_STEP = 2**53


def design_table(
    statistics: BandStatistics,
    epsilon: float,
    *,
    as_bands: int | Sequence[int] = 15,
    ranking: Ranking = "sigma",
    required_removal: float | Sequence[float] = 0.985,
    distortion_budget: float | Sequence[float] = 75.0,
    perturbation: Perturbation | PerturbationProfile = "sign",
    channel_correlation: float = 0.0,
    cycle_spins: int = 1,
    min_step: int = 1,
    max_step: int = 255,
    quantizer: Quantizer = "round",
) -> QuantizationTable:
    """Design a defensive quantisation table for perturbations of a given size.

    The ``as_bands`` highest-ranked bands of each channel are accuracy-sensitive (AS), the
    others malicious-defence (MD).

    * MD bands get the smallest step whose removal probability reaches ``required_removal``.
    * AS bands get the smaller of that step and the largest step whose benign distortion is
      within ``distortion_budget``.

    Removal and distortion never fall if a step grows (see ``fd_keras.design.removal``), so
    both steps are well defined, and a larger ``epsilon`` never gives a smaller step. Steps are
    whole numbers, so that a JPEG file can hold them. DC is ranked like any other band; in practice
    it comes first and is AS.

    A table for soft thresholding is designed by the same rules with the removal and the
    distortion of its dead zones, which are as wide as steps. Its DC step has no effect, and is
    ``min_step``.

    The budget is absolute, not relative to a band's variance. The transform is orthonormal, so
    squared errors of bands and of pixels have the same sum, and rate-distortion theory calls for
    an equal error in all bands whose variance exceeds it (reverse water-filling). A relative
    budget would give the largest steps to the bands that matter most for the accuracy.

    Args:
        statistics: Statistics of benign images; their colour space becomes the table's.
        epsilon: Size of the perturbation of a pixel in grey levels of 255, from 0.1 to 255.
        as_bands: Number of AS bands, 0 to 64, for every channel or one per channel.
        ranking: ``"sigma"`` or ``"zigzag"``, see ``rank_bands``.
        required_removal: Probability from 0 to 1, for every channel or one per channel.
        distortion_budget: Maximum mean squared error of an AS band, in squared grey levels,
            for every channel or one per channel. A step of 30 causes at most 75, or
            one of 17 with soft thresholding.
        perturbation: ``"sign"``, ``"uniform"`` or ``"gaussian"``, see ``perturbation_std``; or a
            measured profile, which is scaled to ``epsilon``.
        channel_correlation: See ``perturbation_std``; has no effect with a profile.
        cycle_spins: Number of block grids that the table is applied on; the design itself
            considers one. The cost of the layer grows with it.
        min_step: Smallest step, a whole number.
        max_step: Largest step, a whole number. Baseline JPEG holds 255.
        quantizer: ``"round"`` or ``"soft"``.

    Returns:
        The table. Its provenance holds the arguments, the predictions and the provenance of the
        statistics.

    Raises:
        ValueError: An argument is out of its range, or a requirement cannot be met; the message
            then names the bands and what they reach.

    Example:
        >>> from types import SimpleNamespace
        >>> std = 400 / (1 + np.add.outer(np.arange(8), np.arange(8))[np.newaxis] ** 2)
        >>> statistics = SimpleNamespace(mean=0 * std, std=std, mean_abs=std / 2)
        >>> statistics.count, statistics.color_space, statistics.provenance = 100, "rgb", {}
        >>> print(design_table(statistics, epsilon=2.0))
        QuantizationTable('designed:2', steps=14..41, channels=1, color_space='rgb', cycle_spins=1)
             30      30      32      35      41      36      31      27
             30      32      35      41      36      31      27      23
             32      35      41      36      31      27      23      21
             35      41      36      31      27      23      21      19
             41      36      31      27      23      21      19      17
             36      31      27      23      21      19      17      16
             31      27      23      21      19      17      16      15
             27      23      21      19      17      16      15      14

    References:
        Liu et al., "Feature Distillation", CVPR 2019; Cover & Thomas, "Elements of
        Information Theory", chapter on rate distortion (reverse water-filling).
    """
    epsilon = validate_epsilon(epsilon)
    _, std, _ = checked_moments(statistics)
    low, high = _checked_step_range(min_step, max_step)
    correlation = _one_number("channel_correlation", channel_correlation, 1.0)
    counts, required, budget = (
        _per_channel(name, value, std, high=high, whole=whole)
        for value, (name, high, whole) in zip(
            (as_bands, required_removal, distortion_budget), _PER_CHANNEL
        )
    )
    deviations = perturbation_of(statistics, epsilon, perturbation, correlation)
    model = BandModel(statistics, deviations, validate_quantizer(quantizer))
    chosen, wanted = model.changed, np.broadcast_to(required, std.shape)
    allowed = np.broadcast_to(budget, std.shape)

    def removes(steps: Array, bands: Any, estimated: bool = False) -> npt.NDArray[np.bool_]:
        return model.removal(steps, bands, estimated=estimated) >= wanted[bands]

    def distorts(steps: Array, bands: Any) -> npt.NDArray[np.bool_]:
        return model.distortion(steps, bands) > allowed[bands]

    sensitive = rank_bands(std, ranking) < counts
    bounds = std.shape, low, high
    estimate = _first_step(functools.partial(removes, estimated=True), *bounds)
    removing = _first_step(removes, *bounds, guess=estimate)
    affordable = _first_step(distorts, *bounds) - 1
    _refuse(
        chosen & ~sensitive & (removing > high),
        lambda: model.removal(high),
        f"`required_removal` is out of reach at epsilon={epsilon:g} with max_step={high}",
        f"required_removal={shown(required_removal)}",
    )
    _refuse(
        chosen & sensitive & (affordable < low),
        lambda: model.distortion(low),
        f"`distortion_budget` is exceeded even with min_step={low}",
        f"distortion_budget={shown(distortion_budget)}",
    )
    steps = np.where(sensitive, np.minimum(removing, affordable), removing)
    steps[~chosen] = low
    predicted = model.removal(steps)
    provenance = {
        "source": "design_table",
        "name": f"designed:{epsilon:g}",
        "epsilon": epsilon,
        "as_bands": counts.ravel().astype(int).tolist(),
        "ranking": ranking,
        "required_removal": required.ravel().tolist(),
        "distortion_budget": budget.ravel().tolist(),
        "perturbation": _described(perturbation),
        "channel_correlation": correlation,
        "step_range": [low, high],
        "predicted_as_removal": _mean(predicted, chosen & sensitive),
        "predicted_md_removal": _mean(predicted, chosen & ~sensitive),
        "predicted_distortion": float(model.distortion(steps).mean()),
        "coefficients_per_band": int(np.max(statistics.count)),
        "statistics": dict(statistics.provenance),
    }
    return QuantizationTable(steps, statistics.color_space, cycle_spins, provenance, quantizer)


def check_design(epsilon: float, **design: Any) -> None:
    """Refuse arguments of ``design_table`` that no statistics can make right.

    Args:
        epsilon: As for ``design_table``.
        **design: Other arguments of ``design_table``.

    Raises:
        ValueError: One is out of its range.
        TypeError: There is no such argument.

    Example:
        >>> check_design(2, as_bands=15)
        >>> check_design(2, as_bands=65)
        Traceback (most recent call last):
        ...
        ValueError: `as_bands` must lie between 0 and 64. Received: as_bands=65.0
    """
    bound = inspect.signature(design_table).bind(None, epsilon, **design)
    bound.apply_defaults()
    given = bound.arguments
    size = validate_epsilon(epsilon)
    _checked_step_range(given["min_step"], given["max_step"])
    _one_number("channel_correlation", given["channel_correlation"], 1.0)
    for name, high, whole in _PER_CHANNEL:
        _per_channel(name, given[name], np.ravel(given[name]), high=high, whole=whole)
    checked_choice("ranking", given["ranking"], RANKINGS)
    validate_quantizer(given["quantizer"])
    if not isinstance(given["perturbation"], PerturbationProfile):
        pixel_std(size, given["perturbation"])


def _first_step(
    holds: Callable[[Array, npt.NDArray[np.bool_]], npt.NDArray[np.bool_]],
    shape: tuple[int, ...],
    low: int,
    high: int,
    guess: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """First whole number in ``[low, high]`` from which ``holds`` is true; ``high + 1`` if none.

    ``holds`` is asked of steps of some bands at a time, for all of them twice near ``guess``.
    """
    # Bisection in all bands at once, because `holds` stays true for all larger steps. Around a
    # guess, it goes in growing strides as long as they lead to what is still possible.
    first, last = np.full(shape, low), np.full(shape, high + 1)
    next_ = None if guess is None else np.minimum(guess, high)
    stride = 1
    while (open_ := first < last).any():
        bottom, top = first[open_], last[open_]
        middle = (bottom + top) // 2
        if next_ is not None:
            wanted = next_[open_]
            middle = np.where((bottom <= wanted) & (wanted < top), wanted, middle)
        true = holds(middle.astype(np.float64), open_)
        first[open_], last[open_] = np.where(true, bottom, middle + 1), np.where(true, middle, top)
        if next_ is not None:
            next_[open_] = np.where(true, middle - stride, middle + stride)
            stride *= 2
    return first


def _refuse(
    unmet: npt.NDArray[np.bool_], reached: Callable[[], Array], reason: str, received: str
) -> None:
    bands = np.argwhere(unmet)
    if not len(bands):
        return
    values = reached()
    named = ", ".join(
        f"({u}, {v}) of channel {channel} has {values[channel, u, v]:.4g}"
        for channel, u, v in bands[:_BANDS_IN_A_MESSAGE]
    )
    more = len(bands) - _BANDS_IN_A_MESSAGE
    raise ValueError(
        f"{reason}: band {named}{f', and {more} more bands' if more > 0 else ''}. "
        f"Received: {received}"
    )


def _per_channel(
    name: str, value: Any, like: Array, *, high: float = np.inf, whole: bool = False
) -> Array:
    """One number for each channel, ``(channels, 1, 1)``."""
    array = checked(name, value, high=high)
    channels = len(like)
    if array.shape not in ((), (channels,)):
        raise ValueError(
            f"`{name}` must be one number or one per channel, here {channels}. "
            f"Received: {name}={shown(value)}"
        )
    if whole and (array % 1).any():
        raise ValueError(f"`{name}` must be whole numbers. Received: {name}={shown(value)}")
    return np.broadcast_to(array, channels).reshape(-1, 1, 1)


def _checked_step_range(min_step: int, max_step: int) -> tuple[int, int]:
    try:
        low, high = operator.index(min_step), operator.index(max_step)
    except TypeError:
        low = high = 0
    if not 1 <= low <= high <= _LARGEST_STEP:
        raise ValueError(
            "`min_step` and `max_step` must be whole numbers, 1 <= min_step <= max_step <= 2**53. "
            f"Received: min_step={shown(min_step)}, max_step={shown(max_step)}"
        )
    return low, high


def _one_number(name: str, value: Any, high: float) -> float:
    array = checked(name, value, high=high)
    if array.ndim:
        raise ValueError(f"`{name}` must be one number. Received: {name}={shown(value)}")
    return float(array)


def _described(perturbation: Perturbation | PerturbationProfile) -> str | dict[str, Any]:
    if not isinstance(perturbation, PerturbationProfile):
        return perturbation
    return {"measured_on_pairs": perturbation.count, "at_epsilon": perturbation.epsilon}


def _mean(values: Array, where: npt.NDArray[np.bool_]) -> float | None:
    return float(values[where].mean()) if where.any() else None
