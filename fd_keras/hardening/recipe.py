"""What a classifier is trained on while it is hardened, its loss, for how long and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import tensorflow as tf

from fd_keras._checks import checked, checked_whole, shortened, shown, validate_epsilon
from fd_keras.kernels import GRADIENTS, Gradient

# Typing alias: a batch of images and a seed of two integers, to other images.
Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_WARM_UP = 0.05  # share of the training


@dataclass(frozen=True)
class Recipe:
    """The attack on training images, and the loss on them.

    A part of every batch is attacked through the layer, with a surrogate gradient for rounding
    (BPDA), and, if wanted, another part on the original classifier alone. The whole batch is then
    distilled, and the loss is its mean cross-entropy.

    Args:
        epsilon: Largest change of a pixel by the attack through the layer, in grey levels of 255
            whatever the value range: 2 means 2/255. 0: no such attack.
        attack_steps: Steps of the attack. 1: FGSM from a random start, with a step of 1.25
            epsilon. More: PGD, with steps of 2.5 epsilon divided by their number.
        attack_gradient: Surrogate gradient of rounding. ``"smooth"`` makes much stronger attacks
            than ``"straight-through"``, the identity's. Soft thresholding has its own gradient.
        attacked_share: Part of every batch that is attacked through the layer, from 0 to 1.
        transferred_share: Part of every batch that is attacked by ``attack_steps`` steps on the
            original classifier, from 0 to 1: what gray-box attackers do who have that one alone.
        transferred_epsilon: Their largest change of a pixel, in grey levels of 255.
        soft_labels: Weight of the original classifier's probabilities in the targets, from 0 to
            1: knowledge distillation, with the original as the teacher. It sees the benign images
            without the layer.
        table_rate: Learning rate of the logarithms of the table's steps: that of the weights
            times this number (Adam) or its square (SGD). 0: the table is fixed.
        averaging: Momentum of the moving average of the weights, from 0 to below 1; it is smaller
            in the first batches. The averaged weights are what is validated and returned. 0: no
            averaging.

    Raises:
        ValueError: A number is out of its range, both shares are more than a batch, or
            ``attack_gradient`` is unknown.

    Example:
        >>> Recipe(epsilon=2, attack_steps=5).attacks
        True

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018
        (PGD); Tramèr et al., "Ensemble Adversarial Training", ICLR 2018 (attacks on another
        classifier); Wong et al., "Fast is better than free", ICLR 2020 (FGSM from a random start);
        Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018 (BPDA);
        Das et al., "SHIELD", KDD 2018 (training on compressed images); Hinton et al., "Distilling
        the Knowledge in a Neural Network", arXiv:1503.02531; Salamah et al., "JPEG Inspired Deep
        Learning", ICLR 2025 (learning the table).
    """

    epsilon: float = 2.0
    attack_steps: int = 1
    attack_gradient: Gradient = "smooth"
    attacked_share: float = 0.5
    soft_labels: float = 0.0
    table_rate: float = 0.0
    averaging: float = 0.999
    transferred_share: float = 0.0
    transferred_epsilon: float = 4.0

    def __post_init__(self) -> None:
        plain: dict[str, float] = {
            name: float(checked(name, getattr(self, name), 0, 1))
            for name in ("attacked_share", "transferred_share", "soft_labels", "averaging")
        }
        plain["table_rate"] = float(checked("table_rate", self.table_rate))
        plain["attack_steps"] = checked_whole("attack_steps", self.attack_steps, 1)
        if self.epsilon != 0:  # 0: no attack
            plain["epsilon"] = validate_epsilon(self.epsilon)
        name = "transferred_epsilon"
        plain[name] = validate_epsilon(self.transferred_epsilon, name)
        # JSON files do not take NumPy's numbers.
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self._share + self.transferred_share > 1:
            raise ValueError(
                "`attacked_share` and `transferred_share` must not be more than 1 together. "
                f"Received: attacked_share={self.attacked_share}, "
                f"transferred_share={self.transferred_share}"
            )
        if self.attack_gradient not in GRADIENTS:
            raise ValueError(
                f"`attack_gradient` must be one of {GRADIENTS}. "
                f"Received: attack_gradient={shown(self.attack_gradient)}"
            )
        if self.averaging == 1:
            raise ValueError(
                "`averaging` must be below 1, or the weights stay as they are. "
                "Received: averaging=1"
            )

    @property
    def attacks(self) -> bool:
        """Whether any image is attacked through the layer."""
        return self._share > 0

    @property
    def keeps_benign(self) -> bool:
        """Whether every batch has benign images, too."""
        return self._share + self.transferred_share < 1

    @property
    def _share(self) -> float:
        return self.attacked_share if self.epsilon > 0 else 0.0

    def attacked_counts(self, count: Any) -> tuple[Any, Any]:
        """How many images of a batch are attacked: through the layer, and on the original.

        Args:
            count: Number of images in the batch, or an integer tensor.

        Example:
            >>> Recipe(attacked_share=0.5, transferred_share=0.25).attacked_counts(7)
            (4, 2)
        """
        through = _part(self._share, count)
        both = _part(self._share + self.transferred_share, count)
        return through, both - through

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return asdict(self)


def _part(share: float, count: Any) -> Any:
    if isinstance(count, int):
        return math.ceil(share * count)
    return tf.cast(tf.math.ceil(share * tf.cast(count, tf.float32)), tf.int32)


def cross_entropy(
    labels: tf.Tensor,
    logits: tf.Tensor,
    teacher_logits: tf.Tensor | None = None,
    teacher_share: float = 0.0,
) -> tf.Tensor:
    """Mean cross-entropy with labels that may be softened by a teacher's probabilities.

    Args:
        labels: True classes ``(batch,)``.
        logits: ``(batch, classes)``.
        teacher_logits: Logits of the teacher ``(batch, classes)``; no gradient reaches them.
        teacher_share: Weight of the teacher's probabilities in the targets, from 0 to 1.

    Returns:
        Scalar.

    Example:
        >>> round(float(cross_entropy(tf.constant([1]), tf.zeros((1, 2)))), 4)
        0.6931

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    """
    targets = tf.one_hot(labels, logits.shape[-1])
    if teacher_logits is not None:
        soft = tf.stop_gradient(tf.nn.softmax(teacher_logits))
        targets = (1 - teacher_share) * targets + teacher_share * soft
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))


@dataclass(frozen=True)
class Training:
    """How long a classifier is trained, and how its weights are moved.

    Args:
        epochs: Passes over the training images.
        batch_size: Number of images in a batch of arrays; data sets come in their own.
        optimizer: What ``compile`` takes; it is copied. Default: Adam, with a learning rate that
            rises to 0.001 and falls in a cosine over all epochs.
        augment: Function of a batch of training images and a seed of two integers, such as
            ``tf.image.stateless_random_flip_left_right``. Default: none.
        dtype_policy: Name of a Keras dtype policy to train with, such as ``"mixed_bfloat16"``;
            the result has the classifier's own.
        jit_compile: Whether to compile the training step with XLA.
        callbacks: Further Keras callbacks. One that sets ``stop_training`` ends the training for
            good, also where it would be resumed.

    Raises:
        ValueError: A number is out of its range, or Keras does not know the optimiser or the
            policy.
        TypeError: ``augment`` cannot be called, or ``callbacks`` are of another type.

    Example:
        >>> Training(epochs=2, optimizer="sgd").batch_size
        128
    """

    epochs: int = 12
    batch_size: int = 128
    optimizer: Any = None
    augment: Augment | None = None
    dtype_policy: str | None = None
    jit_compile: bool = False
    callbacks: Sequence[keras.callbacks.Callback] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            object.__setattr__(self, name, checked_whole(name, getattr(self, name), 1))
        for name, known in (
            ("optimizer", keras.optimizers.get),
            ("dtype_policy", keras.mixed_precision.Policy),
        ):
            value = getattr(self, name)
            try:
                if value is not None:
                    known(value)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"`{name}` must be one that Keras knows ({shortened(str(error))}). "
                    f"Received: {name}={shown(value)}"
                ) from error
        if self.augment is not None and not callable(self.augment):
            raise TypeError(
                "`augment` must be a function of images and a seed. "
                f"Received: augment={shown(self.augment)}"
            )
        callbacks = tuple(self.callbacks)
        if not all(isinstance(callback, keras.callbacks.Callback) for callback in callbacks):
            raise TypeError(
                f"`callbacks` must be Keras callbacks. Received: callbacks={shown(self.callbacks)}"
            )
        object.__setattr__(self, "callbacks", callbacks)


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
