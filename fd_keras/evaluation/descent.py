"""Attacks in one graph, on batches that each image leaves when it is done.

ART's and Foolbox's attacks carry every image of a batch along until the last one is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras.evaluation.classifiers import LogOdds

# Of Adam, and of the map from pixels to the whole line, as in Carlini's code.
_DECAY_1, _DECAY_2, _TINY = 0.9, 0.999, 1e-8
_INSIDE = 0.999999

# A bound below one grey level is not looked for.
_SMALLEST_TAU = 1 / 256

# A wrong logit must exceed the right one by this before an image counts as misclassified, so that
# it stays so where the same classifier runs in another batch or without a graph.
_MARGIN = 1e-2

Logits = Callable[[tf.Tensor], tf.Tensor]

# Typing alias: what an attack knows of each image, by name, ``(batch, ...)`` each.
State = dict[str, tf.Tensor]


def _until_done(
    step: Callable[[State], State], state: State, found: str
) -> npt.NDArray[np.float32]:
    """Repeat a step until ``done`` is true of every image, and return what is ``found`` of each."""
    state = {"index": tf.range(len(state["done"])), **state}
    result = np.array(state[found])
    while len(state["index"]):
        state = {**state, **step(state)}
        done = state["done"].numpy()
        if done.any():
            result[state["index"].numpy()[done]] = state[found].numpy()[done]
            state = {name: value[~done] for name, value in state.items()}
    return result


class _AnyBatch:
    """A step as one graph for batches of all sizes.

    ``tf.function`` alone would build one for the first size and another one for all others, and
    warn where several classifiers are attacked.

    Args:
        step: Function of a state, and of tensors that are not of single images.
    """

    def __init__(self, step: Callable[..., State]) -> None:
        self._step = step
        self._graphs: dict[tuple[int, ...], Any] = {}

    def __call__(self, state: State, *others: tf.Tensor) -> State:
        image = tuple(state["point"].shape[1:])
        if image not in self._graphs:
            states = {n: tf.TensorSpec((None, *v.shape[1:]), v.dtype) for n, v in state.items()}
            signature = [states, *(tf.TensorSpec(value.shape, value.dtype) for value in others)]
            graph = tf.function(self._step, input_signature=signature)
            self._graphs[image] = graph.get_concrete_function()
        found: State = self._graphs[image](state, *others)
        return found


@dataclass(frozen=True)
class SignedSteps:
    """BIM and PGD that leave an image as soon as it is misclassified.

    An image that withstands is attacked like ART's: it gets all steps from all starts. One that
    does not keeps the first change that fools the classifier, so that this is for attackers whose
    classifier is the one that counts, and not for images that must fool another one behind a
    defence.

    Bounds and numbers of steps are given with the images, so that one graph serves them all.

    Args:
        logits: Differentiable function of images from 0 to 1 that returns ``(batch, classes)``.

    Example:
        >>> attack = SignedSteps(lambda x: tf.reshape(x, (-1, 2)))
        >>> image = tf.constant([[[[0.5], [0.4]]]])
        >>> attack(image, np.array([0]), eps=0.25, eps_step=0.0625, max_iter=9).ravel().round(4)
        array([0.4375, 0.4625], dtype=float32)

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
    """

    logits: Logits

    def __call__(
        self,
        images: tf.Tensor,
        labels: npt.NDArray[np.integer],
        *,
        eps: float,
        eps_step: float,
        max_iter: int,
        num_random_init: int = 0,
    ) -> npt.NDArray[np.float32]:
        """Attack a batch.

        Args:
            images: float32 ``(batch, height, width, channels)`` from 0 to 1.
            labels: True classes ``(batch,)``.
            eps: Largest change of a pixel.
            eps_step: Change of a pixel in one step.
            max_iter: Number of steps.
            num_random_init: Number of random starts; 0: one start, at the image itself.

        Returns:
            Attacked images.
        """
        result = np.array(images)
        standing = np.arange(len(result))
        stride, last = tf.constant(eps_step, tf.float32), tf.constant(max_iter, tf.int32)
        for _ in range(max(1, num_random_init)):
            benign = tf.gather(images, standing)
            noise = eps if num_random_init else 0.0
            start = benign + np.float32(np.random.uniform(-noise, noise, benign.shape))
            state = {
                "point": tf.clip_by_value(start, 0, 1),
                "lowest": tf.maximum(benign - eps, 0),
                "highest": tf.minimum(benign + eps, 1),
                "label": tf.constant(labels[standing], tf.int64),
                "count": tf.zeros(len(standing), tf.int32),
                "done": tf.zeros(len(standing), tf.bool),
            }
            result[standing] = _until_done(
                lambda state: self._step(state, stride, last), state, "point"
            )
            if num_random_init > 1:
                classes = self.logits(tf.constant(result[standing])).numpy().argmax(axis=-1)
                standing = standing[classes == labels[standing]]
            if not len(standing):
                break
        return result

    @cached_property
    def _step(self) -> _AnyBatch:
        return _AnyBatch(self._stepped)

    def _stepped(self, state: State, stride: tf.Tensor, last: tf.Tensor) -> State:
        point = state["point"]
        with tf.GradientTape() as tape:
            tape.watch(point)
            scores = self.logits(point)
            odds = LogOdds().call(state["label"], scores)
        gradient = tape.gradient(odds, point)
        # ART, too, counts what is not a number as zero.
        signs = tf.sign(tf.where(tf.math.is_nan(gradient), 0.0, gradient))
        moved = point + stride * signs
        moved = tf.clip_by_value(moved, state["lowest"], state["highest"])
        wrong = lead(scores, state["label"]) < -_MARGIN
        count = state["count"] + 1
        return {
            "point": tf.where(_like(wrong, point), point, moved),
            "count": count,
            "done": wrong | (count >= last),
        }


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

    logits: Logits
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
        each = tf.zeros(len(images))
        state = {
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
        return _until_done(self._step, state, "best")

    @cached_property
    def _step(self) -> _AnyBatch:
        return _AnyBatch(self._stepped)

    def _stepped(self, state: State) -> State:
        point, const, tau = (state[name] for name in ("point", "const", "tau"))
        with tf.GradientTape() as tape:
            tape.watch(point)
            pixels = (tf.tanh(point) + 1) / 2
            scores = self.logits(pixels)
            hinge = tf.nn.relu(self.confidence - lead(scores, state["target"]))
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


def lead(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """By how much the logit of a class exceeds the largest of the others.

    Args:
        logits: ``(batch, classes)``.
        classes: ``(batch,)``.

    Returns:
        ``(batch,)``.

    Example:
        >>> lead(tf.constant([[5.0, 3.0, 4.0]]), tf.constant([1])).numpy()
        array([-2.], dtype=float32)
    """
    own = tf.one_hot(classes, tf.shape(logits)[-1])
    others = tf.reduce_max(tf.where(own > 0, logits.dtype.min, logits), axis=-1)
    return tf.reduce_sum(own * logits, axis=-1) - others


def _like(values: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """One value per image, to broadcast over what each image has of another tensor."""
    return tf.reshape(values, [-1] + [1] * (len(other.shape) - 1))
