"""Feature distillation as a preprocessing defence of the Adversarial Robustness Toolbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import checked_whole, shown
from fd_keras._extras import import_extra
from fd_keras.dct import ColorSpace, Quantizer
from fd_keras.kernels import Gradient
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import TableLike

_Preprocessor: Any = import_extra(
    "art.defences.preprocessor.preprocessor", "evaluate"
).PreprocessorTensorFlowV2


class FeatureDistillationPreprocessor(_Preprocessor):
    """Puts ``FeatureDistillation`` in front of any ART estimator.

    ART's TensorFlow estimators run and differentiate it inside their graph. All others, such as
    black boxes and estimators of other frameworks, call it on numpy arrays and get the same
    values.

    Attacks that ART makes through it are adaptive (BPDA): the gradient of rounding is replaced by
    ``gradient``. The default, ``"smooth"``, makes the strongest attacks that we know of;
    ``"straight-through"``, the default of the layer itself, treats the whole layer as the
    identity. For a gray-box attack, by an attacker who does not know of the defence, attack an
    estimator without it. An accuracy under either is no proof of security: see the references.

    Args:
        quantization_table: As for ``FeatureDistillation``; or such a layer, whose table, value
            range and data format are taken, while ``gradient`` is that of this class.
        color_space: As for ``FeatureDistillation``.
        cycle_spins: As for ``FeatureDistillation``.
        value_range: Lowest and highest pixel value, the estimator's ``clip_values``; ``None``:
            that of a layer, else ``(0, 255)``.
        channels_first: Whether images are ``(channels, height, width)``; ``None``: as a layer
            takes them, else ``False``.
        apply_fit: Whether images are distilled while the estimator is trained.
        apply_predict: Whether images are distilled when the estimator predicts and when it is
            attacked.
        gradient: As for ``FeatureDistillation``.
        quantizer: As for ``FeatureDistillation``.
        batch_size: Number of images that are distilled at once, because ART passes whole data
            sets. It limits memory and does not change the result.

    Raises:
        ImportError: ART is not installed; raised when this module is imported.
        ValueError: An argument is invalid.

    Example:
        >>> images = np.random.default_rng(7).random((2, 32, 32, 3), np.float32)
        >>> defence = FeatureDistillationPreprocessor("liu2019", value_range=(0, 1))
        >>> distilled, _ = defence(images)
        >>> distilled.shape
        (2, 32, 32, 3)

    References:
        Method: Liu et al., CVPR 2019 (arXiv:1803.05787). Attacks that break it once the
        attacker knows it: Athalye et al., "Obfuscated Gradients Give a False Sense of
        Security", ICML 2018 (BPDA); Tramer et al., "On Adaptive Attacks to Adversarial Example
        Defenses", NeurIPS 2020. ART: Nicolae et al., arXiv:1807.01069.
    """

    # Names of the parameters that ART's `set_params` may change.
    params = (
        "quantization_table",
        "color_space",
        "cycle_spins",
        "value_range",
        "channels_first",
        "gradient",
        "quantizer",
        "batch_size",
    )

    def __init__(
        self,
        quantization_table: TableLike | FeatureDistillation = "liu2019",
        color_space: ColorSpace | None = None,
        cycle_spins: int | None = None,
        value_range: Sequence[float] | None = None,
        *,
        channels_first: bool | None = None,
        apply_fit: bool = True,
        apply_predict: bool = True,
        gradient: Gradient = "smooth",
        quantizer: Quantizer | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.quantization_table = quantization_table
        self.color_space = color_space
        self.cycle_spins = cycle_spins
        self.value_range = value_range
        self.channels_first = channels_first
        self.gradient = gradient
        self.quantizer = quantizer
        self.batch_size = batch_size
        self._check_params()

    def forward(self, x: tf.Tensor, y: Any = None) -> tuple[tf.Tensor, Any]:
        """Distil a batch of images inside TensorFlow; ``y`` is returned as it is."""
        count = x.shape[0]
        if count is None or count <= self.batch_size:
            return self._layer(x), y
        starts = range(0, count, self.batch_size)
        # `tf.split`, because the gradient of each slice would be as large as all of `x`.
        parts = tf.split(x, [min(self.batch_size, count - start) for start in starts])
        return tf.concat([self._layer(part) for part in parts], axis=0), y

    def __call__(self, x: npt.NDArray[Any], y: Any = None) -> tuple[npt.NDArray[Any], Any]:
        """Distil an array of images to float32; ``y`` is returned as it is.

        Images of different sizes are an array of arrays with dtype object, as ART's convention is.
        """
        x = np.asarray(x)
        if x.dtype == object:
            distilled = np.empty(len(x), dtype=object)
            for index, image in enumerate(x):
                distilled[index] = self._layer(image).numpy()
            return distilled, y
        result = np.empty(x.shape, np.float32)
        for start in range(0, len(x), self.batch_size):
            batch = slice(start, start + self.batch_size)
            result[batch] = self._layer(x[batch])
        return result, y

    def estimate_gradient(self, x: npt.NDArray[Any], grad: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Propagate a gradient back through the layer.

        Args:
            x: Batch of images.
            grad: Gradient with respect to the distilled images, of the shape of ``x``; or
                ``(batch, classes, ...)``, one for each class.

        Returns:
            Array of the shape of ``grad``.
        """
        result = np.empty_like(grad)
        if x.dtype == object:
            for index, (image, upstream) in enumerate(zip(x, grad)):
                result[index] = self._gradient(image[np.newaxis], upstream[np.newaxis])[0]
            return result
        for start in range(0, len(x), self.batch_size):
            batch = slice(start, start + self.batch_size)
            if grad.ndim == x.ndim:
                result[batch] = self._gradient(x[batch], grad[batch])
            else:
                for number in range(grad.shape[1]):
                    result[batch, number] = self._gradient(x[batch], grad[batch, number])
        return result

    def _gradient(self, x: npt.NDArray[Any], upstream: npt.NDArray[Any]) -> npt.NDArray[Any]:
        images = tf.convert_to_tensor(x, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(images)
            distilled = self._layer(images)
        gradient = tape.gradient(distilled, images, tf.convert_to_tensor(upstream, tf.float32))
        return np.asarray(gradient)

    def _check_params(self) -> None:
        self.batch_size = checked_whole("batch_size", self.batch_size, 1)
        table = self.quantization_table
        settings: dict[str, Any] = {
            "value_range": self.value_range,
            "channels_first": self.channels_first,
        }
        if isinstance(table, FeatureDistillation):
            settings = _settings_of(table, settings)
            table = table.quantization_table
        value_range, channels_first = settings.values()
        self._layer = FeatureDistillation(
            table,
            self.color_space,
            self.cycle_spins,
            (0, 255) if value_range is None else value_range,
            data_format="channels_first" if channels_first else "channels_last",
            gradient=self.gradient,
            quantizer=self.quantizer,
            dtype="float32",
        )


def _settings_of(layer: FeatureDistillation, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a layer; refuses given ones that contradict it."""
    channels_first = layer.data_format == "channels_first"
    settings = {"value_range": layer.value_range, "channels_first": channels_first}
    for name, value in settings.items():
        if given[name] is not None and not np.array_equal(given[name], value):
            raise ValueError(
                f"`{name}` must be left to the layer, which has {value}. "
                f"Received: {name}={shown(given[name])}"
            )
    return settings
