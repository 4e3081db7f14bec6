"""The Keras layer that quantises the DCT of images in the graph."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import (
    checked_choice,
    layout_doubt,
    of_another_scale,
    shown,
    validate_value_range,
)
from fd_keras._compat import add_float32_weight
from fd_keras.data.batches import described, image_batches
from fd_keras.dct import ColorSpace, Quantizer
from fd_keras.design.tables import check_design, design_table
from fd_keras.kernels import (
    DCT_METHODS,
    GRADIENTS,
    DctMethod,
    Gradient,
    clip_straight_through,
    distil,
)
from fd_keras.presets import TableLike, as_table
from fd_keras.statistics import CoefficientStatistics, merged
from fd_keras.tables import QuantizationTable

# The list to which calls append their distilled images; see `fd_keras.export.recording`. A context
# variable, because other threads may call the same layers meanwhile.
RECORD: ContextVar[list[Any] | None] = ContextVar("RECORD", default=None)

# By how many grey levels of 255 inputs of 16 bits may be rounded without a warning.
_ROUNDED_BY = 0.01

# Numbers of an eager input that are looked at in every call, which takes far less time than the
# layer itself; all are looked at only where these are suspicious.
_LOOKED_AT = 2**16


@keras.saving.register_keras_serializable(package="fd_keras")
class FeatureDistillation(keras.layers.Layer):
    """Quantises the 8x8 block DCT of images, so that small perturbations are removed.

    Each 8x8 block of each channel is transformed by an orthonormal DCT-II on the 0..255
    pixel scale, every coefficient ``c`` of a band with step ``q`` becomes
    ``q * round(c / q + 1/997)``, and the inverse transform is clipped to ``value_range``. Integer
    pixels produce ties; the offset of 1/997 makes all runtimes round them in the same direction.
    The true gradient of rounding is 0 and is replaced by another one, for training and for
    attackers alike; it is no protection.

    With ``quantizer="soft"``, it becomes ``c - clip(c, -q / 2, q / 2)``, and DC stays as it is: the
    same coefficients are removed, and the others shrink. An attacker who knows the layer can use
    rounding, where one grey level may move a coefficient by a whole step. Soft thresholding is
    non-expansive: the DCT is orthonormal, shrinkage moves no two coefficients apart, and neither
    does the mean over grids. So the distilled images of two inputs are never farther apart in L2
    than the inputs, in RGB and grey, where sides are multiples of 8 or, on 2 and 4 grids, of 4;
    YCbCr can move them apart by a factor of at most 1.76. This says nothing about the classifier,
    which is as fragile as before.

    The layer computes in float32 under every dtype policy, and in training as in inference. A
    subclassed or not yet built model under a policy of mixed precision rounds its inputs to 16
    bits before any layer sees them: give it ``autocast=False``, or a ``keras.Input``.

    Args:
        quantization_table: Preset name (``"liu2019"``, ``"zigzag15"``, ``"balanced"``,
            ``"soft8"``, ``"jpeg"``, ``"jpeg:<quality>"``), path of a table's JSON file, steps of
            shape ``(8, 8)`` or ``(channels, 8, 8)``, or a ``QuantizationTable``. Steps are on
            the 0..255 pixel scale.
        color_space: ``"rgb"``: quantise the channels as they are. ``"ycbcr"``: quantise
            full-range JFIF Y, Cb, Cr of an RGB image, or a grey image as Y. ``None``: that of
            the table.
        cycle_spins: Number of shifted block grids (1 to 64; use 1, 2, 4, ...) whose results
            are averaged; the cost grows with it. ``None``: that of the table.
        value_range: Lowest and highest pixel value of inputs and outputs, such as
            ``(0, 255)``, ``(0, 1)`` or ``(-1, 1)``. Pixels outside it are clipped. An eager call
            warns once of pixels that are almost certainly of another range.
        dct_method: ``"matmul"``: products with constant matrices. ``"signal"``:
            ``tf.signal.dct``, a slow reference that TFLite cannot run without Flex.
        data_format: ``"channels_last"``, ``"channels_first"`` or ``None`` for Keras' own
            setting.
        gradient: Gradient that replaces that of rounding. ``"straight-through"``: that of the
            identity, for training. ``"smooth"``: that of a cubic (Shin & Song), which makes much
            stronger attacks; adaptive attacks without it overestimate the layer. Without meaning
            for soft thresholding, whose true gradient is used.
        quantizer: ``"round"`` or ``"soft"``; ``None``: that of the table.
        **kwargs: ``name``, ``dtype`` and further arguments of ``keras.layers.Layer``.

    Input shape:
        ``(height, width, channels)`` or ``(batch, height, width, channels)``, or with channels
        first according to ``data_format``. Any height, width and batch, also unknown ones and 0;
        edges are repeated to complete blocks, or mirrored for soft thresholding. Dense, of any
        float or integer dtype. A non-finite pixel makes its block NaN; with soft thresholding it
        may be the only one, and infinity may be clipped.

    Output shape:
        That of the input, in the layer's compute dtype. With an integer ``dtype``, which needs a
        ``value_range`` that it can hold, outputs are rounded; an eager call then refuses
        non-finite pixels, and a graph makes them any integer.

    Raises:
        ValueError: An argument is invalid; or the type, the rank or the channels of an input do
            not fit.

    Example:
        >>> layer = FeatureDistillation("liu2019", value_range=(0, 1))
        >>> image = np.random.default_rng(7).random((1, 32, 32, 3), np.float32)
        >>> layer(image).shape
        TensorShape([1, 32, 32, 3])

    References:
        Method: Liu et al., "Feature Distillation: DNN-Oriented JPEG Compression Against
        Adversarial Examples", CVPR 2019 (arXiv:1803.05787). Soft thresholding: Donoho,
        "De-noising by soft-thresholding", IEEE Transactions on Information Theory 41(3), 1995.
        Averaging over grids: Coifman & Donoho, "Translation-invariant de-noising", 1995.
        Attacks that break transformations like this one once the attacker knows them: Athalye
        et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018 (BPDA); Shin &
        Song, "JPEG-resistant Adversarial Images", NIPS workshop on machine learning and computer
        security, 2017; Tramer et al., "On Adaptive Attacks to Adversarial Example Defenses",
        NeurIPS 2020.
    """

    def __init__(
        self,
        quantization_table: TableLike = "liu2019",
        color_space: ColorSpace | None = None,
        cycle_spins: int | None = None,
        value_range: Sequence[float] = (0, 255),
        dct_method: DctMethod = "matmul",
        data_format: str | None = None,
        gradient: Gradient = "straight-through",
        quantizer: Quantizer | None = None,
        **kwargs: Any,
    ) -> None:
        # Without autocast: a cast of inputs to float16 before the DCT would lose precision.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self._casts_inputs = bool(kwargs["autocast"])
        self._table = as_table(quantization_table).with_settings(
            color_space=color_space, cycle_spins=cycle_spins, quantizer=quantizer
        )
        self.color_space = self._table.color_space
        self.cycle_spins = self._table.cycle_spins
        self.quantizer = self._table.quantizer
        self.value_range = validate_value_range(value_range)
        self.dct_method = checked_choice("dct_method", dct_method, DCT_METHODS)
        self.gradient = checked_choice("gradient", gradient, GRADIENTS)
        if data_format is not None:
            checked_choice("data_format", data_format, ("channels_first", "channels_last"))
        self._check_dtype()
        self._warned_of_scale = self._warned_of_rounding = False
        self._statistics: CoefficientStatistics | None = None
        self.data_format = data_format or keras.backend.image_data_format()

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the weight that holds the steps, ``(channels, 8, 8)``."""
        channels = self._channels(input_shape)
        doubt = layout_doubt(tuple(input_shape), self.data_format)
        try:
            steps = self._table.steps_for(channels)
        except ValueError as error:
            raise ValueError(f"{error}, which {doubt}" if doubt else str(error)) from error
        if self._table.channels != channels:
            self._warn_of_layout(input_shape)
        self.steps = add_float32_weight(self, "steps", steps)
        self.built = True

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Distil a batch of images, or one image."""
        _check_images(inputs)  # before Keras, which takes a list for several inputs
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Distil a batch of images, or one image."""
        _check_images(inputs)
        inputs = tf.convert_to_tensor(inputs)
        self._check_input(inputs)
        x = tf.cast(inputs, tf.float32)
        if inputs.shape.rank == 3:
            x = x[tf.newaxis]
        if self.data_format == "channels_first":
            x = tf.transpose(x, (0, 2, 3, 1))
        x = distil(
            x,
            tf.convert_to_tensor(self.steps),
            color_space=self.color_space,
            cycle_spins=self.cycle_spins,
            quantizer=self.quantizer,
            method=self.dct_method,
            gradient=self.gradient,
            value_range=self.value_range,
        )
        x = clip_straight_through(x, *self.value_range)
        if self.data_format == "channels_first":
            x = tf.transpose(x, (0, 3, 1, 2))
        if inputs.shape.rank == 3:
            x = tf.squeeze(x, 0)
        dtype = tf.as_dtype(self.compute_dtype)
        if dtype.is_integer:
            eager_floats = tf.executing_eagerly() and inputs.dtype.is_floating
            if eager_floats and not bool(tf.reduce_all(tf.math.is_finite(x))):
                raise ValueError(
                    "`inputs` must be finite, because integers cannot hold NaN. "
                    f"Received: pixels that are not finite, with dtype={dtype.name!r}"
                )
            x = tf.round(x)
        distilled = tf.cast(x, dtype)
        if (record := RECORD.get()) is not None:
            record.append(distilled)
        return distilled

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor as plain JSON types."""
        config = super().get_config()
        config.update(
            quantization_table=self.quantization_table.to_dict(),
            color_space=self.color_space,
            cycle_spins=self.cycle_spins,
            value_range=list(self.value_range),
            dct_method=self.dct_method,
            data_format=self.data_format,
            gradient=self.gradient,
            quantizer=self.quantizer,
            # Keras leaves it out.
            **({"autocast": True} if self._casts_inputs else {}),
        )
        return config

    @property
    def quantization_table(self) -> QuantizationTable:
        """The table in use, read from the layer's weight once the layer is built."""
        if not self.built:
            return self._table
        with tf.init_scope():  # eager, also while a graph is traced
            steps = np.asarray(tf.convert_to_tensor(self.steps), np.float64)
        if np.array_equal(steps, np.float32(self._table.steps_for(len(steps)))):
            return self._table
        # Weights were loaded or assigned: the provenance of the old table does not apply to them.
        return QuantizationTable(
            steps,
            self.color_space,
            self.cycle_spins,
            {"source": "layer weights"},
            self.quantizer,
        )

    def set_quantization_table(self, table: TableLike) -> None:
        """Replace the steps; compiled functions and graphs that use the layer stay valid.

        Args:
            table: As ``quantization_table`` of the constructor. Steps alone are taken to be in the
                colour space and for the quantiser of the layer.

        Raises:
            ValueError: The table does not fit the layer's channels, or has another colour space,
                number of cycle spins or quantiser, which are built into the graph.

        Example:
            >>> layer = FeatureDistillation("liu2019")
            >>> layer.set_quantization_table(np.full((8, 8), 20.0))
            >>> float(layer.quantization_table.steps.max())
            20.0
        """
        new = as_table(table)
        if not isinstance(table, (str, os.PathLike, QuantizationTable, Mapping)):
            new = new.with_settings(
                color_space=self.color_space,
                cycle_spins=self.cycle_spins,
                quantizer=self.quantizer,
            )
        for setting in ("color_space", "cycle_spins", "quantizer"):
            mine, theirs = getattr(self, setting), getattr(new, setting)
            if mine != theirs:
                raise ValueError(
                    f"`table` must have the layer's {setting}={mine!r}; make a new layer for "
                    f"another one. Received: table={shown(new)}"
                )
        if self.built:
            self.steps.assign(np.float32(new.steps_for(self.steps.shape[0])))
        self._table = new

    def adapt(
        self,
        data: Any,
        epsilon: float,
        *,
        batch_size: int = 32,
        steps: int | None = None,
        **design: Any,
    ) -> None:
        """Measure benign images, and design a table for perturbations of a given size.

        The table is designed by ``fd_keras.design_table`` in the layer's colour space, with its
        cycle spins and for its quantiser, and replaces the layer's table. Statistics of earlier
        calls are discarded. As in Keras' preprocessing layers, ``update_state`` and
        ``finalize_state`` do the same in parts. A saved layer keeps its table, but not statistics
        that were not yet finalised.

        Args:
            data: Benign images in the layer's ``value_range`` and ``data_format``: an array,
                a ``tf.data.Dataset``, a ``PyDataset`` or an iterable of images; labels are
                ignored. For files, pass ``fd_keras.data.sources.open_images(path)``.
            epsilon: Size of the perturbation of a pixel in grey levels of 255, whatever the
                layer's ``value_range``: 2 means 2/255. From 0.1 to 255.
            batch_size: Number of images in a batch, where ``data`` is not batched already.
            steps: Maximum number of batches; ``None``: all. Of arrays and files they are a random
                sample, spread over the labels or folders; of data sets and iterables, the first.
            **design: Further arguments of ``design_table``, except ``cycle_spins`` and
                ``quantizer``.

        Raises:
            ValueError: There is no image, an image does not fit the layer, or the requirements on
                the table cannot be met; see ``design_table``. The layer then keeps its table.

        Example:
            >>> images = np.random.default_rng(3).integers(0, 256, (10, 32, 32, 3))
            >>> layer = FeatureDistillation(color_space="ycbcr")
            >>> layer.adapt(images, epsilon=2)
            >>> layer.quantization_table.name
            'designed:2'

        References:
            Liu et al., CVPR 2019, section 3.2.
        """
        self._refuse_settings(design)
        check_design(epsilon, **design)
        self.reset_state()
        axis = -3 if self.data_format == "channels_first" else -1
        batches = image_batches(data, batch_size=batch_size, steps=steps, channel_axis=axis)
        try:
            for batch in batches:
                self.update_state(batch)
            if self._statistics is None:
                raise ValueError(f"`data` holds no image. Received: data={described(data)}")
            self.finalize_state(epsilon, **design)
        finally:
            self.reset_state()

    def reset_state(self) -> None:
        """Discard the statistics of ``update_state``; the table stays."""
        self._statistics = None

    def update_state(self, data: npt.ArrayLike) -> None:
        """Measure a batch of benign images for ``finalize_state``."""
        if not isinstance(data, (list, tuple)):
            _check_images(data)
        try:
            batch = np.asarray(data)
        except ValueError as error:
            raise ValueError(
                f"`data` must be one batch of images of one size. Received: data={shown(data)}"
            ) from error
        check = self._check_channels if self.built else self._channels
        check(tf.TensorShape(batch.shape))
        if self.data_format == "channels_first":
            self._warn_of_layout(batch.shape)
            batch = np.moveaxis(batch, -3, -1)
        measured = CoefficientStatistics.from_data(
            batch, color_space=self.color_space, value_range=self.value_range
        )
        if self._statistics is None:
            self._statistics = measured
        else:
            self._statistics = merged(self._statistics, measured)

    def finalize_state(self, epsilon: float | None = None, **design: Any) -> None:
        """Design a table from the measured batches, and discard their statistics.

        Args:
            epsilon: Size of the perturbation of a pixel in grey levels of 255, as for ``adapt``;
                ``None``: nothing is done.
            **design: Further arguments of ``design_table``, except ``cycle_spins`` and
                ``quantizer``.

        Raises:
            ValueError: Nothing was measured, or as for ``design_table``.
        """
        if epsilon is None:
            return  # Keras 2 calls this on every layer after `set_weights`
        self._refuse_settings(design)
        if self._statistics is None:
            raise ValueError("`update_state` must have measured images first.")
        statistics = self._statistics.with_provenance(
            {"source": "adapt", **self._statistics.provenance}
        )
        self.set_quantization_table(design_table(statistics, epsilon, **self._settings(), **design))
        self.reset_state()

    def _settings(self) -> dict[str, Any]:
        """What the layer decides of a table that is designed for it."""
        return {"cycle_spins": self.cycle_spins, "quantizer": self.quantizer}

    def _refuse_settings(self, design: Mapping[str, Any]) -> None:
        for name, value in self._settings().items():
            if name in design:
                raise ValueError(
                    f"`{name}` must be left to the layer, which has {value!r}; make a new layer "
                    f"for another one. Received: {name}={shown(design[name])}"
                )

    def _channels(self, input_shape: Sequence[int | None]) -> int:
        shape = tuple(tf.TensorShape(input_shape).as_list())
        if len(shape) not in (3, 4):
            raise ValueError(
                "`inputs` must be one image (rank 3) or a batch of images (rank 4). "
                f"Received: inputs of shape {shape}"
            )
        channels = shape[-3 if self.data_format == "channels_first" else -1]
        if not channels:
            raise ValueError(
                f"`inputs` must have a known number of channels ({self.data_format}). "
                f"Received: inputs of shape {shape}"
            )
        return int(channels)

    def _check_channels(self, shape: tf.TensorShape) -> None:
        if shape.rank is None:
            raise ValueError(
                "`inputs` must have a known rank, 3 or 4; call set_shape() on images decoded "
                f"in tf.data. Received: inputs of shape {shape}"
            )
        channels, built_for = self._channels(shape), self.steps.shape[0]
        if channels != built_for:
            doubt = layout_doubt(shape.as_list(), self.data_format)
            raise ValueError(
                f"`inputs` must have the {built_for} channels the layer was built for "
                f"({self.data_format}). Received: inputs of shape {tuple(shape)}"
                f"{doubt and f', which {doubt}'}"
            )

    def _warn_of_layout(self, shape: Sequence[int | None]) -> None:
        if doubt := layout_doubt(shape, self.data_format):
            warnings.warn(
                f"`inputs` of shape {tuple(shape)} are taken as data_format={self.data_format!r}, "
                f"but {doubt}.",
                stacklevel=3,
            )

    def _check_dtype(self) -> None:
        """Refuse a compute dtype that cannot hold pixels of ``value_range``."""
        dtype, (low, high) = tf.as_dtype(self.compute_dtype), self.value_range
        if dtype.is_floating and not float(dtype.min) <= low < high <= float(dtype.max):
            raise ValueError(
                f"`dtype` must hold the pixels of value_range, {low:g} to {high:g}. "
                f"Received: dtype={dtype.name!r}"
            )
        if not (dtype.is_floating or dtype.is_integer):
            raise ValueError(
                f"`dtype` must be one of floats or integers. Received: dtype={dtype.name!r}"
            )
        if dtype.is_integer and not (dtype.min <= low and high <= dtype.max and high - low >= 255):
            raise ValueError(
                f"`dtype` must be a float type, or one of integers that hold the grey levels of "
                f"value_range, {low:g} to {high:g}. Received: dtype={dtype.name!r}"
            )

    def _check_input(self, inputs: tf.Tensor) -> None:
        self._check_channels(inputs.shape)
        if inputs.dtype.size == 2 and inputs.dtype.is_floating and not self._warned_of_rounding:
            self._check_rounding(inputs.dtype)
        if tf.executing_eagerly() and not self._warned_of_scale and 0 not in inputs.shape:
            self._check_scale(inputs)

    def _check_rounding(self, dtype: tf.DType) -> None:
        """Warn, once, of pixels whose dtype has rounded grey levels away."""
        low, high = self.value_range
        error = _rounded_by(dtype, low, high)
        if error > _ROUNDED_BY:
            self._warned_of_rounding = True
            warnings.warn(
                f"`inputs` of dtype {dtype.name} hold pixels of value_range, {low:g} to {high:g}, "
                f"to {error:.2g} grey levels of 255 only, and quantisation may multiply what they "
                "were rounded by. Under mixed precision, make the model around the layer with "
                "autocast=False, or with a keras.Input.",
                stacklevel=2,
            )

    def _check_scale(self, inputs: tf.Tensor) -> None:
        """Warn, once, of pixels that are almost certainly of another range than the layer's."""
        flat = tf.stop_gradient(tf.reshape(inputs, (-1,)))
        first = flat[:_LOOKED_AT].numpy()
        if not of_another_scale(first, self.value_range):
            return
        pixels = flat.numpy()
        if not of_another_scale(pixels, self.value_range):
            return
        low, high = self.value_range
        self._warned_of_scale = True
        warnings.warn(
            f"`inputs` lie from {float(pixels.min()):g} to {float(pixels.max()):g}, which does "
            f"not look like the layer's value_range, {low:g} to {high:g}: make the layer with "
            "the value_range of its pixels.",
            stacklevel=2,
        )


@functools.cache
def _rounded_by(dtype: tf.DType, low: float, high: float) -> float:
    """By how many grey levels of 255 a dtype rounds those from ``low`` to ``high`` at most."""
    levels = low + (high - low) * np.linspace(0, 1, 256)
    rounded = levels.astype(dtype.as_numpy_dtype).astype(np.float64)
    return 255 / (high - low) * float(np.abs(rounded - levels).max())


def _check_images(inputs: Any) -> None:
    """Refuse what is no dense array or tensor of numbers."""
    sparse = isinstance(inputs, tf.SparseTensor) or getattr(inputs, "sparse", False) is True
    ragged = isinstance(inputs, tf.RaggedTensor) or getattr(inputs, "ragged", False) is True
    if sparse or ragged:
        way = "tf.sparse.to_dense" if sparse else "a batch for each size of images"
        raise ValueError(
            f"`inputs` must be dense; use {way}. Received: a {'sparse' if sparse else 'ragged'} "
            f"tensor of shape {inputs.shape}"
        )
    if not hasattr(inputs, "shape") or not hasattr(inputs, "dtype"):
        raise ValueError(
            "`inputs` must be one array or tensor of images; use np.stack on a list of images of "
            f"one size. Received: inputs={shown(inputs)}"
        )
    try:
        dtype = tf.as_dtype(inputs.dtype)
    except TypeError:
        if not isinstance(inputs, np.ndarray):
            return  # an array of another library, which TensorFlow may convert
        dtype = tf.resource
    if not (dtype.is_floating or dtype.is_integer):
        raise ValueError(
            f"`inputs` must be floats or integers. Received: inputs of dtype {inputs.dtype}"
        )
