"""Ranges of activations for int8 bodies."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras.export.runtimes import tflite_interpreter

_LEVELS = 256

# Shares of an end that are tried. Ranges below a third were never the best ones of a network.
_SHARES = np.linspace(1, 0.4, 13)

# The ends depend on each other a little.
_ROUNDS = 2

# Of each activation and image; they decide which of the `_SHARES` is the best.
_VALUES = 1000


def least_error_range(values: npt.NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """The part of a range in which 256 levels reproduce values with the smallest squared error.

    Few values lie near the ends, and a wider range has coarser levels: cutting those few off
    is often better for the others.

    Args:
        values: Floats of any shape.
        low: Smallest of them, or of those they stand for.
        high: Largest.

    Returns:
        Both ends; zero lies between them.

    Example:
        >>> values = np.append(np.linspace(-1, 1, 1000), 3)
        >>> low, high = least_error_range(values, -1, 3)
        >>> low, round(high, 1)
        (-1.0, 3.0)
        >>> low, high = least_error_range(np.repeat(values, 1000)[:-999], -1, 3)
        >>> high < 3
        True
    """
    flat = np.ravel(values)
    outer_low, outer_high = min(low, 0.0), max(high, 0.0)
    low, high = outer_low, outer_high
    for _ in range(_ROUNDS):
        low = min(outer_low * _SHARES, key=lambda end: _squared_error(flat, end, high))
        high = min(outer_high * _SHARES, key=lambda end: _squared_error(flat, low, end))
    return float(low), float(high)


def _squared_error(values: npt.NDArray[Any], low: float, high: float) -> float:
    if high <= low:
        return 0.0
    step = (high - low) / (_LEVELS - 1)
    zero = np.rint(-low / step)
    levels = np.clip(np.rint(values / step) + zero, 0, _LEVELS - 1)
    return float(np.mean(((levels - zero) * step - values) ** 2))


def tightened(
    ranges: dict[str, Any],
    content: bytes,
    samples: npt.NDArray[Any],
    exact: Collection[str],
) -> dict[str, Any]:
    """Ranges between the extremes, cut to the least squared error.

    Args:
        ranges: The ``"min"`` and ``"max"`` of tensors over all samples, by name.
        content: The float32 TFLite file; its first graph is looked at.
        samples: Images as the model takes them.
        exact: Names of tensors whose extremes count, such as predictions: the largest of them is
            what the model is asked for.

    Returns:
        All ranges; those of tensors that are no activation of the first graph are as they were.

    Example:
        >>> extremes = {"predictions": {"min": -9.0, "max": 9.0}}
        >>> tightened(extremes, b"", np.zeros((1, 8, 8, 3)), ["predictions"]) == extremes
        True
    """
    names = [name for name in ranges if name not in exact]
    result = dict(ranges)
    if not names:
        return result
    for name, values in _activations(content, samples, names).items():
        given = ranges[name]
        low, high = least_error_range(values, np.min(given["min"]), np.max(given["max"]))
        result[name] = {
            "min": np.full_like(given["min"], low),
            "max": np.full_like(given["max"], high),
        }
    return result


def _activations(
    content: bytes, samples: npt.NDArray[Any], names: Collection[str]
) -> dict[str, npt.NDArray[Any]]:
    """Values of activations by name, some of each sample."""
    _, interpreter_class = tflite_interpreter()
    interpreter = interpreter_class(model_content=content, experimental_preserve_all_tensors=True)
    (source,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(source["index"], (1, *samples.shape[1:]))
    interpreter.allocate_tensors()
    tensors = {d["name"]: d["index"] for d in interpreter.get_tensor_details()}
    found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names if name in tensors}
    rng = np.random.default_rng(0)
    for sample in samples:
        interpreter.set_tensor(source["index"], sample[np.newaxis])
        interpreter.invoke()
        for name, parts in found.items():
            values = np.ravel(interpreter.get_tensor(tensors[name]))
            parts.append(rng.choice(values, _VALUES) if values.size > _VALUES else values)
    return {name: np.concatenate(parts) for name, parts in found.items()}
