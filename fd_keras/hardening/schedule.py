"""How the learning rate of a fine-tuning runs."""

from __future__ import annotations

from typing import Any

import keras

_WARM_UP = 0.05  # share of the training


def warm_up_cosine(learning_rate: float, steps: int) -> Any:
    """A learning rate that rises from 0 in the first 20th, then falls to 0 in a cosine.

    Args:
        learning_rate: The highest.
        steps: Batches of the whole training.

    Returns:
        A schedule for any Keras optimiser.

    Example:
        >>> schedule = warm_up_cosine(0.1, 100)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 100)]
        [0.0, 0.1, 0.0]

    References:
        Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    """
    steps = max(2, steps)
    warm_up = max(1, round(_WARM_UP * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warm_up, warmup_target=learning_rate, warmup_steps=warm_up
    )
