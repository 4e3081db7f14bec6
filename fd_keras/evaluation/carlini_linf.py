"""Carlini and Wagner's attack in the L-inf norm, on whole batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

# Of Adam, and of the map from pixels to the whole line, as in Carlini's code.
_DECAY_1, _DECAY_2, _TINY = 0.9, 0.999, 1e-8
_INSIDE = 0.999999

# A bound below one grey level is not looked for.
_SMALLEST_TAU = 1 / 256

# How many steps are made before images that are done leave the batch.
_STEPS_AT_ONCE = 10

# Typing alias: what the search knows of each image, by name, ``(batch, ...)`` each.
State = dict[str, tf.Tensor]


@dataclass(frozen=True)
class CarliniLinf:
    """Finds images near given ones that a classifier puts in target classes.

    For each image, Adam minimises ``const * max(0, best other logit - target's logit +
    confidence) + sum(max(0, change of a pixel - tau))``. Once that is zero, ``tau`` falls below the
    largest change, and it goes on from there. Where ``iterations`` steps do not suffice, ``const``
    grows; beyond its largest value, the last image found is the result. This is Carlini's
    ``li_attack.py``, but each image of a batch goes its own way and leaves it when it is done.

    ART 1.20's ``CarliniLInfMethod`` is another attack: it starts each search at the benign image,
    attacks one image at a time, and given targets, it takes images for found that miss them.

    Args:
        logits: Differentiable function of images that returns ``(batch, classes)``.
        confidence: By how much the target's logit must exceed the others.
        iterations: Maximum number of steps for one ``const``.
        step_size: Of Adam, on the inverse hyperbolic tangent of pixels from -1 to 1.
        initial_const: First weight of the hinge loss.
        largest_const: Weights from here on are not tried.
        const_factor: What ``const`` grows by.
        decrease_factor: What ``tau`` is multiplied by after each success.

    Example:
        >>> attack = CarliniLinf(
        ...     lambda x: tf.reshape(x, (-1, 2)), confidence=0.0, iterations=100, step_size=0.005,
        ...     initial_const=0.001, largest_const=20, const_factor=10, decrease_factor=0.9,
        ... )
        >>> attacked = attack(tf.constant([[[[0.6], [0.4]]]]), np.array([1]))
        >>> bool(attacked.argmax() == 1), attacked.ravel().round(1)
        (True, array([0.5, 0.5], dtype=float32))

    References:
        Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017.
    """

    logits: Callable[[tf.Tensor], tf.Tensor]
    confidence: float
    iterations: int
    step_size: float
    initial_const: float
    largest_const: float
    const_factor: float
    decrease_factor: float

    def __call__(
        self, images: tf.Tensor, targets: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.float32]:
        """Attack a batch.

        Args:
            images: float32 ``(batch, height, width, channels)`` from 0 to 1.
            targets: Target classes ``(batch,)``.

        Returns:
            Attacked images; benign ones as they are where nothing was found.
        """
        result = np.array(images)
        each = tf.zeros(len(result))
        state = {
            "index": tf.range(len(result)),
            "benign": images,
            "target": tf.constant(targets, tf.int64),
            "point": tf.atanh((2 * images - 1) * _INSIDE),
            "first": tf.zeros_like(images),
            "second": tf.zeros_like(images),
            "count": each,
            "best": images,
            "const": each + self.initial_const,
            "tau": each + 1,
            "done": each > 0,
        }
        while len(state["index"]):
            state = self._steps(state)
            done = state["done"].numpy()
            if not done.any():
                continue
            result[state["index"].numpy()[done]] = state["best"].numpy()[done]
            state = {name: value[~done] for name, value in state.items()}
        return result

    @cached_property
    def _steps(self) -> Any:
        """Several steps in one graph, for batches of any size."""

        def steps(state: State) -> State:
            names = list(state)

            def body(*values: tf.Tensor) -> list[tf.Tensor]:
                before = dict(zip(names, values))
                after = self._step(before)
                # What is done stays as it is until it leaves the batch.
                return [
                    tf.where(_like(before["done"], after[name]), before[name], after[name])
                    for name in names
                ]

            values = tf.while_loop(
                lambda *_: True, body, list(state.values()), maximum_iterations=_STEPS_AT_ONCE
            )
            return dict(zip(names, values))

        return tf.function(steps, reduce_retracing=True)

    def _step(self, state: State) -> State:
        point, const, tau = (state[name] for name in ("point", "const", "tau"))
        with tf.GradientTape() as tape:
            tape.watch(point)
            pixels = (tf.tanh(point) + 1) / 2
            scores = self.logits(pixels)
            own = tf.one_hot(state["target"], tf.shape(scores)[-1])
            other = tf.reduce_max(tf.where(own > 0, scores.dtype.min, scores), axis=-1)
            hinge = tf.nn.relu(other - tf.reduce_sum(own * scores, axis=-1) + self.confidence)
            change = tf.abs(pixels - state["benign"])
            excess = tf.reduce_sum(tf.nn.relu(change - _like(tau, change)), axis=(1, 2, 3))
            loss = const * hinge + excess
        gradient = tape.gradient(loss, point)
        count = state["count"] + 1
        first = _DECAY_1 * state["first"] + (1 - _DECAY_1) * gradient
        second = _DECAY_2 * state["second"] + (1 - _DECAY_2) * gradient**2
        descent = (first / _like(1 - _DECAY_1**count, first)) / (
            tf.sqrt(second / _like(1 - _DECAY_2**count, second)) + _TINY
        )
        # As in Carlini's code, the rest of the loss may be tiny.
        found = (loss < 1e-4 * const) & (tf.argmax(scores, -1) == state["target"])
        spent = ~found & (count >= self.iterations)
        const = tf.where(spent, const * self.const_factor, const)
        largest = tf.reduce_max(change, axis=(1, 2, 3))
        tau = tf.where(found, self.decrease_factor * tf.minimum(tau, largest), tau)
        here, fresh = _like(found, point), _like(found | spent, point)
        return {
            **state,
            # The next search starts at what was found.
            "point": tf.where(here, point, point - self.step_size * descent),
            "first": tf.where(fresh, 0.0, first),
            "second": tf.where(fresh, 0.0, second),
            "count": tf.where(found | spent, 0.0, count),
            "best": tf.where(here, pixels, state["best"]),
            "const": const,
            "tau": tau,
            "done": (const >= self.largest_const) | (tau <= _SMALLEST_TAU),
        }


def _like(values: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """One value per image, to broadcast over what each image has of another tensor."""
    return tf.reshape(values, [-1] + [1] * (len(other.shape) - 1))
