"""Detect attacked images: by the shift of the prediction, or by the lattice they have left."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import check_range, real_numbers, shown, validate_value_range
from fd_keras._compat import add_float32_weight, clip, last_activation
from fd_keras.classifier import check_kind
from fd_keras.data.batches import described, image_batches
from fd_keras.kernels import distil, to_grey_levels
from fd_keras.presets import TableLike, as_table
from fd_keras.protection import chosen_output, layer_for, protect, run_whole
from fd_keras.tables import QuantizationTable, check_rounds

FloatArray = npt.NDArray[np.floating]

# By how many grey levels runtimes may differ in a pixel.
_FLOAT_ERROR = 1e-3


class RocCurve(NamedTuple):
    """A receiver operating characteristic.

    Args:
        false_positive_rate: Share of benign images that are flagged, ascending from 0 to 1.
        true_positive_rate: Share of attacked images that are flagged at the same thresholds.
        auc: Area under the curve; 0.5 for guessing, 1 for perfect detection.
    """

    false_positive_rate: FloatArray
    true_positive_rate: FloatArray
    auc: float


class ThresholdDetector(keras.Model):
    """A model from images to a score and a flag, with a threshold that benign images set.

    Subclasses are functional models with the outputs ``"score"`` and ``"flag"``, and tell the
    layer that decides between them.
    """

    _decision: Any
    _value_range: tuple[float, float]
    _channel_axis: int

    @property
    def threshold(self) -> float:
        """The score above which an image is flagged; infinite before ``adapt``."""
        return float(tf.convert_to_tensor(self._decision.threshold))

    def adapt(
        self,
        data: Any,
        false_positive_rate: float = 0.05,
        *,
        batch_size: int = 32,
        steps: int | None = None,
    ) -> None:
        """Set the threshold so that at most a given share of benign images is flagged.

        The share of new images from the same source that is flagged is at most
        ``false_positive_rate`` in expectation over ``data`` (split conformal prediction). For one
        small set of images, it may well be larger.

        Args:
            data: Benign images in the detector's value range, on which no model was trained: an
                array, a ``tf.data.Dataset``, a ``PyDataset`` or an iterable of images; labels are
                ignored. A ``TamperDetector`` takes them as they are stored.
            false_positive_rate: Between 0 and 1.
            batch_size: Number of images in a batch, where ``data`` is not batched already.
            steps: Maximum number of batches; ``None``: all. Of arrays and files they are a random
                sample, spread over the labels or folders; of data sets and iterables, the first.

        Raises:
            ValueError: There are too few images for the rate, a pixel is out of range, or the
                outputs of a classifier are not what its detector's ``from_logits`` says.

        Example:
            See the class.

        References:
            Vovk et al., "Algorithmic Learning in a Random World", 2005.
        """
        exact_rate(false_positive_rate)  # before a long measurement
        scores = self._measure(data, batch_size, steps)["score"]
        self._decision.threshold.assign(conformal_threshold(scores, false_positive_rate))

    def score(self, data: Any, *, batch_size: int = 32) -> npt.NDArray[np.float32]:
        """Compute the score of each image; it is large for suspicious ones.

        Args:
            data: Images as for ``adapt``.
            batch_size: Number of images in a batch, where ``data`` is not batched already.

        Returns:
            Array ``(n,)``, as the class says.

        Raises:
            ValueError: As for ``adapt``.

        Example:
            >>> from fd_keras import FeatureDistillation
            >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
            >>> detector = DistillationDetector(model, FeatureDistillation(np.ones((8, 8))))
            >>> detector.score(np.array([[[[77], [77]]]])).round(6).tolist()
            [0.0]
        """
        return self._measure(data, batch_size)["score"]

    def detection_rate(self, data: Any, *, batch_size: int = 32) -> float:
        """Compute the share of images that are flagged.

        For attacked images this is the true-positive rate, for benign ones the false-positive
        rate. Pass only those attacked images that fool the classifier: the other attacks failed
        and need not be detected.

        Args:
            data: Images as for ``adapt``.
            batch_size: Number of images in a batch, where ``data`` is not batched already.

        Returns:
            A number from 0 to 1.

        Raises:
            ValueError: As for ``adapt``, or ``adapt`` was not called.

        Example:
            >>> from fd_keras import FeatureDistillation
            >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
            >>> detector = DistillationDetector(model, FeatureDistillation("liu2019"))
            >>> images = np.arange(38).reshape(19, 1, 2, 1)
            >>> detector.adapt(images, false_positive_rate=0.05)
            >>> detector.detection_rate(images) <= 1 / 19
            True
        """
        if math.isinf(self.threshold):
            raise ValueError("`adapt` must have set the threshold first.")
        return float(np.mean(self._measure(data, batch_size)["flag"]))

    def roc(self, benign: Any, adversarial: Any, *, batch_size: int = 32) -> RocCurve:
        """Compute the trade-off between false and true positives over all thresholds.

        Args:
            benign: Images as for ``adapt``, other than those that were used there.
            adversarial: Attacked images that fool the classifier.
            batch_size: Number of images in a batch, where the data is not batched already.

        Returns:
            ``(false_positive_rate, true_positive_rate, auc)``.

        Raises:
            ValueError: As for ``adapt``.

        Example:
            >>> from fd_keras import FeatureDistillation
            >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
            >>> detector = DistillationDetector(model, FeatureDistillation("liu2019"))
            >>> images = np.arange(38).reshape(19, 1, 2, 1)
            >>> detector.roc(images, images).auc
            0.5
        """
        named = {"benign": benign, "adversarial": adversarial}
        scores = (self._measure(data, batch_size, name=name) for name, data in named.items())
        return roc_curve(*(np.asarray(found["score"]) for found in scores))

    def _check(self, outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Refuse outputs that are not what the detector takes them for."""

    def _measure(
        self, data: Any, batch_size: int, steps: int | None = None, name: str = "data"
    ) -> dict[str, npt.NDArray[Any]]:
        measured = []
        batches = image_batches(
            data, batch_size=batch_size, steps=steps, channel_axis=self._channel_axis
        )
        for batch in batches:
            check_range(name, batch, self._value_range)
            measured.append(self.predict_on_batch(batch))
        if not measured:
            raise ValueError(f"`{name}` holds no image. Received: {name}={described(data)}")
        outputs = {key: np.concatenate([part[key] for part in measured]) for key in measured[0]}
        self._check(outputs)
        return outputs


@keras.saving.register_keras_serializable(package="fd_keras")
class DistillationDetector(ThresholdDetector):
    """Flags images whose prediction changes when they are distilled.

    The score is the L1 distance, from 0 to 2, between the class probabilities of the original
    and of the distilled image; of several layers, it is the largest, as in Feature Squeezing.
    Images with a score above a threshold are flagged; ``adapt`` determines the threshold from
    benign images. Before, it is infinite and no image is flagged. An image whose score is NaN is
    always flagged.

    The detector is a functional Keras model from images to a dictionary of

    * ``"logits"`` ``(batch, classes)``, or ``(batch, 1)`` for two classes: the output of ``model``
      for the original image (``"probabilities"`` with ``from_logits=False``);
    * ``"score"`` ``(batch,)``, float32;
    * ``"flag"`` ``(batch,)``, bool.

    It is saved, loaded and exported like any other Keras model, with its threshold.

    The detector finds attacks by an attacker who does not know of it. One who does can make
    images that have both a wrong class and a small score: see the references. A detection rate
    without its threat model means nothing.

    Args:
        model: A functional, sequential or subclassed classifier with one image input. It is
            not copied: the detector shares its weights.
        layer: A ``FeatureDistillation`` with the ``value_range`` of the pixels that ``model``
            takes, or a table; see ``protect``. Or a list of several, each of which costs a
            prediction more.
        from_logits: Whether ``model`` returns logits; otherwise it returns probabilities.
        input_shape: As for ``protect``.
        output: Name of the output that classifies, of a model with several.
        **kwargs: ``name`` and further arguments of ``keras.Model``.

    Raises:
        ValueError: ``model`` does not return one batch ``(batch, classes)`` or ``(batch, 1)``, or
            has no such ``output``; ``layer`` does not fit it, see ``protect``; or several layers
            take other pixels.

    Example:
        >>> from fd_keras import FeatureDistillation
        >>> head = keras.layers.Dense(3)
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), head])
        >>> detector = DistillationDetector(model, FeatureDistillation("liu2019"))
        >>> benign = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3))
        >>> detector.adapt(benign, false_positive_rate=0.1)
        >>> sorted(detector(benign))
        ['flag', 'logits', 'score']
        >>> layers = [FeatureDistillation(table) for table in ("liu2019", "soft8")]
        >>> several = DistillationDetector(model, layers)
        >>> bool(np.all(several.score(benign) >= detector.score(benign)))
        True

    References:
        Score: Xu et al., "Feature Squeezing: Detecting Adversarial Examples in Deep Neural
        Networks", NDSS 2018. Attacks that break detectors like this one once the attacker
        knows them: Carlini & Wagner, "Adversarial Examples Are Not Easily Detected: Bypassing
        Ten Detection Methods", AISec 2017; He et al., "Adversarial Example Defenses: Ensembles
        of Weak Defenses are not Strong", WOOT 2017 (Feature Squeezing). Why to doubt any
        detector that claims more than robust classifiers do: Tramer, "Detecting Adversarial
        Examples Is (Nearly) As Hard As Classifying Them", ICML 2022.
    """

    def __init__(
        self,
        model: keras.Model,
        layer: keras.layers.Layer | TableLike | Sequence[keras.layers.Layer | TableLike],
        *,
        from_logits: bool = True,
        input_shape: Sequence[int | None] | None = None,
        output: str | None = None,
        **kwargs: Any,
    ) -> None:
        several = _several(layer)
        chosen = [layer_for(model, one) for one in several or (layer,)]
        _check_same_pixels(chosen)
        # Each refuses a layer that does not fit the model.
        protected, *_ = [protect(model, one, input_shape=input_shape) for one in chosen]
        images = protected.input
        heads = [
            chosen_output(x, output, model)
            for x in (
                run_whole(model, images),
                protected.output,
                *(run_whole(model, one(images)) for one in chosen[1:]),
            )
        ]
        if any(len(getattr(head, "shape", ())) != 2 for head in heads):
            raise ValueError(
                "`model` must return one batch of outputs, (batch, classes), or (batch, 1) for two "
                f"classes. Received: model {model.name!r} with outputs of shape "
                f"{tuple(heads[0].shape)}"
            )
        shift = PredictionShift(from_logits, name="shift")
        name = "logits" if from_logits else "probabilities"
        super().__init__(
            inputs=images,
            outputs={name: heads[0], **shift(heads)},
            **{"name": f"{model.name}_detector", **kwargs},
        )
        self.classifier = model
        self.distillation = chosen if several else chosen[0]
        self.from_logits = from_logits
        self.output_name = output
        self._activation = last_activation(heads[0]) if heads[0].shape[-1] == 1 else None
        self._decision = shift
        self._value_range = chosen[0].value_range
        self._channel_axis = -3 if chosen[0].data_format == "channels_first" else -1

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor as plain JSON types."""
        serialize = keras.saving.serialize_keras_object
        layers = self.distillation
        several = _several(layers)
        return {
            "name": self.name,
            "model": serialize(self.classifier),
            "layer": [serialize(layer) for layer in several] or serialize(layers),
            "from_logits": self.from_logits,
            "input_shape": list(self.inputs[0].shape[1:]),
            "output": self.output_name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Make a detector from what ``get_config`` returned."""

        def deserialized(part: Any) -> Any:
            if isinstance(part, list):
                return [deserialized(one) for one in part]
            return keras.saving.deserialize_keras_object(part, custom_objects)

        return cls(
            **{**config, **{name: deserialized(config[name]) for name in ("model", "layer")}}
        )

    def _check(self, outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        name = "logits" if self.from_logits else "probabilities"
        check_kind(outputs[name], from_logits=self.from_logits, activation=self._activation)


def _several(layer: Any) -> list[Any]:
    """The layers and tables of a list of them; empty for one layer or the steps of one table."""
    one = (keras.layers.Layer, str, os.PathLike, Mapping, QuantizationTable)
    listed = isinstance(layer, (list, tuple)) and all(isinstance(entry, one) for entry in layer)
    return list(layer) if listed else []


def _check_same_pixels(layers: Sequence[Any]) -> None:
    for name in ("value_range", "data_format"):
        found = [getattr(layer, name, None) for layer in layers]
        if any(other != found[0] for other in found):
            raise ValueError(
                f"`layer` must be layers with one {name}. Received: layers with {name} "
                f"{', '.join(map(str, found))}"
            )


@keras.saving.register_keras_serializable(package="fd_keras")
class PredictionShift(keras.layers.Layer):
    """L1 distance between batches of predictions, and whether it is above a threshold.

    Of more than two batches, it is the largest distance of the first from any other.

    The layer computes in float32 under every dtype policy. ``threshold`` is a non-trainable
    weight.

    Args:
        from_logits: Whether the predictions are logits; otherwise they are probabilities.
        **kwargs: ``name`` and further arguments of ``keras.layers.Layer``.

    Input shape:
        A list of at least two tensors ``(batch, classes)``, or ``(batch, 1)`` for the second of
        two classes.

    Output shape:
        A dictionary of ``"score"`` and ``"flag"``, both ``(batch,)``.

    Example:
        >>> shift = PredictionShift(from_logits=False)
        >>> shift([tf.constant([[1.0, 0.0]]), tf.constant([[0.5, 0.5]])])["score"].numpy().tolist()
        [1.0]
    """

    def __init__(self, from_logits: bool = True, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.from_logits = from_logits

    def build(self, input_shape: Any) -> None:
        """Create the weight that holds the threshold, a scalar."""
        self.threshold = add_float32_weight(self, "threshold", np.array(np.inf))
        self.built = True

    def call(self, inputs: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """Compare batches of predictions."""
        single = inputs[0].shape[-1] == 1
        if self.from_logits:
            inputs = [tf.sigmoid(x) if single else tf.nn.softmax(x) for x in inputs]
        first, *others = inputs
        scores = [tf.reduce_sum(tf.abs(first - other), axis=-1) for other in others]
        score = scores[0]
        for other in scores[1:]:
            # Runtimes do not agree on the maximum of a number and NaN, which must stay NaN.
            score = tf.maximum(score, other) + 0 * (score + other)
        if single:  # the other class moves as far
            score *= 2
        # Not `score > threshold`, which is false for NaN.
        flag = tf.logical_not(score <= tf.convert_to_tensor(self.threshold))
        return {"score": score, "flag": flag}

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor as plain JSON types."""
        return {**super().get_config(), "from_logits": self.from_logits}


@keras.saving.register_keras_serializable(package="fd_keras")
class TamperDetector(ThresholdDetector):
    """Flags images that were changed since they were encoded.

    In two passes, an untouched image lies on the lattice of its table, but for the rounding of
    pixels: the score is the root mean square distance, in grey levels, between an image and the
    nearest image of whole pixel values that ``fd_keras.encode`` makes. With a table that certifies
    a radius, it is 0 for what was encoded and stored without loss, and the size of the change for
    what was changed by less than that radius. A file of ``encode_jpeg`` that libjpeg decoded has a
    score of about 0.5, because the decoder rounds once more. ``adapt`` determines the threshold
    from untouched images as they are stored; before, it is infinite and no image is flagged. An
    image whose score is NaN is always flagged.

    The detector is a functional Keras model from images to a dictionary of ``"score"``
    ``(batch,)``, float32, and ``"flag"`` ``(batch,)``, bool. It is saved, loaded and exported like
    any other Keras model, with its threshold; ``export_saved_model(model, directory,
    detector=...)`` adds it to a served classifier.

    It tells nothing about why an image changed: a resized one, one that another program compressed
    again, or one that was never encoded, is flagged too. It does not find an attacker who knows
    the table and encodes the attacked image: that one lies on the lattice again.

    Args:
        table: What images were encoded with; see ``fd_keras.encode``.
        value_range: Lowest and highest pixel value.
        input_shape: Shape of an image; ``None`` stands for any size.
        input_dtype: Type of the images.
        **kwargs: ``name`` and further arguments of ``keras.Model``.

    Raises:
        ValueError: ``table`` is invalid, has several block grids, or does not fit the channels.

    Example:
        >>> from fd_keras.lattice import Lattice
        >>> table = QuantizationTable(np.full((8, 8), 48.0))
        >>> benign = np.random.default_rng(1).uniform(0, 255, (20, 8, 8, 3)).astype(np.float32)
        >>> stored = np.float32(Lattice.of(table, 3).fitted(benign))
        >>> detector = TamperDetector(table)
        >>> detector.adapt(stored, false_positive_rate=0.05)
        >>> detector.detection_rate(stored), detector.detection_rate(np.clip(stored + 1, 0, 255))
        (0.0, 1.0)
    """

    def __init__(
        self,
        table: TableLike,
        *,
        value_range: Sequence[float] = (0, 255),
        input_shape: Sequence[int | None] = (None, None, 3),
        input_dtype: str = "float32",
        **kwargs: Any,
    ) -> None:
        distance = LatticeDistance(table, value_range, name="distance")
        images = keras.Input(tuple(input_shape), dtype=input_dtype, name="images")
        super().__init__(
            inputs=images,
            outputs=distance(images),
            **{"name": "tamper_detector", **kwargs},
        )
        self._decision = distance
        self._value_range = distance.value_range
        self._channel_axis = -1

    @property
    def table(self) -> QuantizationTable:
        """What untouched images were encoded with."""
        return self._decision.table

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor as plain JSON types."""
        return {
            "name": self.name,
            "table": self.table.to_dict(),
            "value_range": list(self._value_range),
            "input_shape": list(self.inputs[0].shape[1:]),
            "input_dtype": tf.as_dtype(self.inputs[0].dtype).name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Make a detector from what ``get_config`` returned."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="fd_keras")
class LatticeDistance(keras.layers.Layer):
    """Distance of images to those that ``encode`` makes, and whether it is above a threshold.

    The layer computes in float32 under every dtype policy. ``threshold`` is a non-trainable
    weight.

    Args:
        table: What images were encoded with.
        value_range: Lowest and highest pixel value.
        **kwargs: ``name`` and further arguments of ``keras.layers.Layer``.

    Input shape:
        ``(batch, height, width, channels)``.

    Output shape:
        A dictionary of ``"score"`` and ``"flag"``, both ``(batch,)``.

    Example:
        >>> distance = LatticeDistance(np.full((8, 8), 48.0))
        >>> float(distance(tf.fill((1, 8, 8, 1), 104.0))["score"][0])  # 102 is on the lattice
        2.0
    """

    def __init__(
        self, table: TableLike, value_range: Sequence[float] = (0, 255), **kwargs: Any
    ) -> None:
        super().__init__(**{"autocast": False, **kwargs, "dtype": "float32"})
        self.table = as_table(table)
        check_rounds(self.table)
        self.value_range = validate_value_range(value_range)
        if self.table.cycle_spins != 1:
            raise ValueError(
                "`table` must have one block grid, as that of `encode` has. "
                f"Received: table={shown(self.table)}"
            )

    def build(self, input_shape: Any) -> None:
        """Create the weight that holds the threshold, a scalar."""
        self.threshold = add_float32_weight(self, "threshold", np.array(np.inf))
        self.table.steps_for(input_shape[-1])  # raises where they do not fit
        self.built = True

    def call(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Measure a batch of images."""
        pixels = to_grey_levels(tf.cast(inputs, tf.float32), *self.value_range)
        steps = tf.constant(self.table.steps_for(pixels.shape[-1]), tf.float32)
        lattice = clip(distil(pixels, steps, color_space=self.table.color_space), 0.0, 255.0)
        # Near half a level, runtimes round to either side.
        either = [tf.round(lattice - _FLOAT_ERROR), tf.round(lattice + _FLOAT_ERROR)]
        distance = tf.minimum(*(tf.abs(pixels - whole) for whole in either))
        distance = tf.where(distance <= _FLOAT_ERROR, 0.0, distance)
        score = tf.sqrt(tf.reduce_mean(tf.square(distance), axis=(1, 2, 3)))
        # Not `score > threshold`, which is false for NaN.
        flag = tf.logical_not(score <= tf.convert_to_tensor(self.threshold))
        return {"score": score, "flag": flag}

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor as plain JSON types."""
        config = {"table": self.table.to_dict(), "value_range": list(self.value_range)}
        return {**super().get_config(), **config}


def roc_curve(benign: FloatArray, adversarial: FloatArray) -> RocCurve:
    """Compute the trade-off between false and true positives over all thresholds of a score.

    Args:
        benign: Scores of benign images ``(n,)``.
        adversarial: Scores of attacked images ``(m,)``.

    Returns:
        ``(false_positive_rate, true_positive_rate, auc)``.

    Example:
        >>> roc_curve(np.array([0.0, 0.1]), np.array([0.2, 0.3])).auc
        1.0
    """
    from sklearn import metrics  # slow to import

    attacked = np.repeat([False, True], [len(benign), len(adversarial)])
    false_positive, true_positive, _ = metrics.roc_curve(
        attacked, np.concatenate([benign, adversarial])
    )
    return RocCurve(
        false_positive, true_positive, float(metrics.auc(false_positive, true_positive))
    )


def conformal_threshold(scores: FloatArray, false_positive_rate: float) -> float:
    """Find the threshold that a new benign score exceeds with at most a given probability.

    The threshold is the ``ceil((n + 1) (1 - false_positive_rate))``-th smallest of ``n`` scores.
    The probability is over these scores and the new one, which must be exchangeable with them.

    Args:
        scores: Scores of benign images ``(n,)``.
        false_positive_rate: Between 0 and 1.

    Returns:
        One of ``scores``.

    Raises:
        ValueError: The rate is out of range, or too small for the number of scores; or a score
            is NaN.

    Example:
        >>> conformal_threshold(np.arange(1.0, 100.0), 0.05)
        95.0

    References:
        Vovk et al., "Algorithmic Learning in a Random World", 2005.
    """
    rate, count = exact_rate(false_positive_rate), len(scores)
    allowed = math.floor((count + 1) * rate)
    if allowed == 0:
        raise ValueError(
            f"`data` must hold at least {math.ceil(1 / rate) - 1} benign images for "
            f"false_positive_rate={shown(false_positive_rate)}. Received: {count} images"
        )
    if np.isnan(scores).any():
        raise ValueError(
            "`data` must give scores that are numbers: distilled images must have finite outputs. "
            f"Received: {int(np.isnan(scores).sum())} scores that are NaN"
        )
    return float(np.sort(scores)[count - allowed])


def exact_rate(rate: float) -> Fraction:
    """A false positive rate as the decimal number that the user wrote.

    Args:
        rate: Between 0 and 1.

    Raises:
        ValueError: ``rate`` is anything else.

    Example:
        >>> exact_rate(0.29)
        Fraction(29, 100)
    """
    try:
        number = real_numbers("false_positive_rate", rate)
    except ValueError:
        number = np.array(np.nan)
    if number.ndim or not 0 < number < 1:
        raise ValueError(
            "`false_positive_rate` must lie between 0 and 1. "
            f"Received: false_positive_rate={shown(rate)}"
        )
    # 0.29 * 100 is less than 29 in floating point.
    return Fraction(str(float(rate)))
