"""Feature distillation as a defence."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras.certification import certify, ordered
from fd_keras.dct import TIE_OFFSET, YCBCR_TO_RGB
from fd_keras.encoding import encode
from fd_keras.evaluation.defences.base import Defence, Encoder, ImageArray, Stored
from fd_keras.jpeg import encode_jpeg, rounded_table
from fd_keras.kernels import (
    clip_straight_through,
    coefficients,
    distil,
    linf_gains,
    pad_to_blocks,
)
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import TableLike, as_table, table_from_argument
from fd_keras.tables import QuantizationTable

# Images per call of the graph: enough to be fast, few enough for the processor's cache.
_BATCH = 32


def distillation(
    table: TableLike | os.PathLike[str] | FeatureDistillation, *, name: str | None = None
) -> Defence:
    """Feature distillation with a quantisation table.

    Args:
        table: Preset name, path of a table's JSON file, steps, a ``QuantizationTable``, or a
            ``FeatureDistillation`` layer, of which only the table is used.
        name: Name in reports. Default: the table's name.

    Returns:
        The defence; its settings hold the whole table.

    Raises:
        ValueError: There is no such table, or the table does not fit the images of a call.

    Example:
        >>> distillation("liu2019").name
        'liu2019'
        >>> grey = np.full((1, 8, 8, 3), 128)
        >>> float(np.abs(distillation(np.full((8, 8), 2.0))(grey) - grey).max()) < 1e-3
        True

    References:
        Liu et al., "Feature Distillation: DNN-Oriented JPEG Compression Against Adversarial
        Examples", CVPR 2019.
    """
    if isinstance(table, FeatureDistillation):
        chosen = table.quantization_table
    elif isinstance(table, (str, os.PathLike)):
        chosen = table_from_argument(os.fspath(table))
    else:
        chosen = as_table(table)

    rounds = chosen.quantizer == "round"
    return Defence(
        name or chosen.name,
        "feature distillation",
        _Distillation(chosen),
        {"table": chosen.to_dict()},
        table=chosen,
        # Soft thresholding needs no stand-in: it has a gradient of its own.
        smooth=functools.partial(smooth_distillation, tables=[chosen]) if rounds else None,
        # With several block grids there is no lattice on which an image could be stored.
        encoder=_encoder(chosen) if rounds and chosen.cycle_spins == 1 else None,
    )


class _Distillation:
    """The transform of a table; pickled as the table, for graphs cannot be."""

    def __init__(self, table: QuantizationTable) -> None:
        self._table = table
        self._graphs: dict[int, tuple[FeatureDistillation, Any]] = {}

    def __reduce__(self) -> tuple[type[_Distillation], tuple[QuantizationTable]]:
        return _Distillation, (self._table,)

    def __call__(self, batch: ImageArray, _: Sequence[np.random.Generator]) -> ImageArray:
        channels = batch.shape[-1]
        if channels not in self._graphs:
            self._graphs[channels] = self._graph(channels)
        _, graph = self._graphs[channels]
        out = np.empty_like(batch)
        for start in range(0, len(batch), _BATCH):
            part = slice(start, start + _BATCH)
            out[part] = graph(tf.constant(batch[part])).numpy()
        return out

    def _graph(self, channels: int) -> tuple[FeatureDistillation, Any]:
        """A layer and its graph, which reads the layer's steps but does not keep them.

        It is a concrete function: TensorFlow takes the tables of an evaluation for one function
        that is traced again and again, and would warn.
        """
        layer = FeatureDistillation(self._table, value_range=(0, 255), data_format="channels_last")
        images = tf.TensorSpec((None, None, None, channels), tf.float32)
        graph = tf.function(layer.__call__, input_signature=[images])
        return layer, graph.get_concrete_function()


def _encoder(table: QuantizationTable) -> Encoder:
    """Images on the table's lattice; their files are JPEG, with the steps rounded for it."""

    def store(images: npt.NDArray[Any]) -> Stored:
        stored, steps = encode(images, table), rounded_table(table)
        return stored, np.array([len(encode_jpeg(image, steps)) for image in stored], np.int64)

    return Encoder(
        store,
        "JPEG",
        lambda images: certify(images, table).linf_radius,
        functools.partial(aimed_distillation, table=table),
    )


def smooth_distillation(images: tf.Tensor, tables: Sequence[QuantizationTable]) -> tf.Tensor:
    """Mean of images distilled with several tables, with the smooth gradient.

    It approximates JPEG codecs too.

    Args:
        images: float32 ``(n, height, width, channels)``, pixels from 0 to 255.
        tables: The quantisation tables.

    Returns:
        float32 of the same shape and range.

    Example:
        >>> from fd_keras import preset_table
        >>> smooth_distillation(tf.fill((1, 8, 8, 3), 90.0), [preset_table("jpeg:50")]).shape
        TensorShape([1, 8, 8, 3])
    """
    distilled = [
        distil(
            images,
            tf.constant(table.steps_for(images.shape[-1]), tf.float32),
            color_space=table.color_space,
            cycle_spins=table.cycle_spins,
            quantizer=table.quantizer,
            gradient="smooth",
        )
        for table in tables
    ]
    return clip_straight_through(tf.add_n(distilled) / len(distilled), 0.0, 255.0)


# How much sooner the half-step attack moves a coefficient that is near to its boundary. The higher,
# the fewer coefficients share what the bound permits.
_SHARPNESS = 5.0


def aimed_distillation(images: tf.Tensor, table: QuantizationTable) -> tf.Tensor:
    """Distil images, with a gradient that aims coefficients at the half step.

    Where images lie on the lattice, every coefficient is half a step from the next level, the
    smooth gradient is 0 and the identity's spends the bound on all coefficients alike, so that
    none gets there. This one moves every coefficient in the direction that the loss asks for, the
    sooner the fewer grey levels are left to its boundary.

    Args:
        images: float32 ``(n, height, width, channels)``, pixels from 0 to 255.
        table: With one block grid.

    Returns:
        float32 of the same shape and range.

    Example:
        >>> from fd_keras import preset_table
        >>> aimed_distillation(tf.fill((1, 8, 8, 3), 90.0), preset_table("jpeg:50")).shape
        TensorShape([1, 8, 8, 3])
    """
    channels = images.shape[-1]
    steps = table.steps_for(channels)
    grid = tf.constant(ordered(steps), tf.float32)
    gains = tf.constant(ordered(np.broadcast_to(linf_gains(), steps.shape)), tf.float32)
    mixed = table.color_space == "ycbcr" and channels == 3

    @tf.custom_gradient
    def call(pixels: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        distilled = distil(pixels, tf.constant(steps, tf.float32), color_space=table.color_space)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(pixels)
                found = coefficients(pad_to_blocks(pixels), table.color_space)
            # The transpose of the inverse transform: what a coefficient is worth to the loss.
            worth = upstream @ tf.constant(YCBCR_TO_RGB, tf.float32) if mixed else upstream
            worth = coefficients(pad_to_blocks(worth)) * grid
            levels = found / grid
            residual = levels - tf.round(levels + TIE_OFFSET)
            left = (0.5 - tf.sign(worth) * residual) * grid / gains
            return tape.gradient(found, pixels, worth / (left + 0.1) ** _SHARPNESS)

        return tf.clip_by_value(distilled, 0.0, 255.0), gradient

    return call(images)
