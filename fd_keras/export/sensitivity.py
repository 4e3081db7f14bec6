"""Which operations of a body lose most in eight bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras.export.flatbuffer import TFLiteFile
from fd_keras.export.runtimes import run_tflite

# An operation of which the file keeps more numbers than this share of all would make it much
# larger in float32.
_LARGEST_SHARE = 0.1


def worst_operations(
    content: bytes,
    alone: Callable[[str], bytes],
    samples: npt.NDArray[Any],
    left_alone: Sequence[str],
    error: float,
) -> list[str]:
    """The operations to leave in float32 so that only a part of the error of int8 stays.

    Each operation is quantised alone, and the mean squared difference that it makes to the
    predictions is its error. The sum over all operations stands for the error of a body wholly in
    int8. The worst ones are chosen until the others' sum is small enough; those that hold more
    than a tenth of the model's weights are not among them.

    Args:
        content: A float32 TFLite file.
        alone: Returns the file with one operation quantised, given the name of its output.
        samples: Images as the model takes them, that the differences are measured on.
        left_alone: Names of tensors whose operations are in float32 anyway.
        error: Share of the sum that may stay; 1: nothing is measured or chosen.

    Returns:
        Names of the outputs of the chosen operations, the worst first.

    Example:
        >>> worst_operations(b"", lambda name: b"", np.zeros((1, 8, 8, 3)), [], error=1.0)
        []

    References:
        Wu et al., "Integer quantization for deep learning inference", 2020, arXiv 2004.09602,
        section 5.1 (partial quantisation after a sensitivity analysis).
    """
    if error >= 1:
        return []
    weights = TFLiteFile(content).operation_weights()
    exact = run_tflite(content, samples).outputs
    errors = {
        name: _difference(exact, run_tflite(alone(name), samples).outputs)
        for name in weights
        if name not in left_alone
    }
    largest = _LARGEST_SHARE * sum(weights.values())
    chosen: list[str] = []
    stays, total = sum(errors.values()), sum(errors.values())
    for name in sorted(errors, key=lambda name: -errors[name]):
        if stays <= error * total:
            break
        if weights[name] <= largest:
            chosen.append(name)
            stays -= errors[name]
    return chosen


def _difference(
    exact: Mapping[str, npt.NDArray[Any]], found: Mapping[str, npt.NDArray[Any]]
) -> float:
    """Mean squared difference relative to the variance, of all outputs together."""
    return sum(
        float(np.mean((found[name] - values) ** 2) / max(np.var(values), np.finfo(float).tiny))
        for name, values in exact.items()
    )
