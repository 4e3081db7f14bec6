"""What classifiers return: logits or probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Outputs in half precision do not sum to 1 any closer.
_SUM_TOLERANCE = 1e-3


def check_outputs(outputs: npt.NDArray[np.floating], *, from_logits: bool) -> None:
    """Refuse outputs that are not what ``from_logits`` says.

    Args:
        outputs: What a classifier returned, ``(batch, classes)``.
        from_logits: Whether they should be logits; else probabilities.

    Raises:
        ValueError: They are not finite, or the other of the two.

    Example:
        >>> check_outputs(np.array([[-1.0, 2.0]]), from_logits=True)
    """
    received = f"Received: outputs from {outputs.min():g} to {outputs.max():g}"
    if not np.isfinite(outputs).all():
        raise ValueError(f"`model` must return finite outputs. {received}")
    sums = outputs.sum(axis=-1, dtype=np.float64)
    looks_normal = outputs.min() >= 0 and np.abs(sums - 1).max() <= _SUM_TOLERANCE
    if looks_normal and from_logits:
        raise ValueError(
            "`model` must return logits, and these are probabilities: they lie from 0 to 1 "
            "and sum to 1. Pass from_logits=False, or take off its softmax. "
            f"{received}, with from_logits=True"
        )
    if not looks_normal and not from_logits:
        raise ValueError(
            "`model` must return probabilities, which lie from 0 to 1 and sum to 1. Pass "
            f"from_logits=True for logits. {received}, with from_logits=False"
        )
