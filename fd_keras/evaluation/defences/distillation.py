"""Feature distillation as a defence."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from fd_keras.evaluation.defences.base import Defence, ImageArray
from fd_keras.kernels import clip_straight_through, distil
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

    @functools.cache
    def graph(channels: int) -> Callable[[ImageArray], tf.Tensor]:
        layer = FeatureDistillation(chosen, value_range=(0, 255), data_format="channels_last")
        images = tf.TensorSpec((None, None, None, channels), tf.float32)
        return tf.function(layer.__call__, input_signature=[images])

    def distil(batch: ImageArray, _: Sequence[np.random.Generator]) -> ImageArray:
        out = np.empty_like(batch)
        for start in range(0, len(batch), _BATCH):
            part = slice(start, start + _BATCH)
            out[part] = graph(batch.shape[-1])(batch[part]).numpy()
        return out

    return Defence(
        name or chosen.name,
        "feature distillation",
        distil,
        {"table": chosen.to_dict()},
        table=chosen,
        # Soft thresholding needs no stand-in: it has a gradient of its own.
        smooth=None
        if chosen.quantizer == "soft"
        else functools.partial(smooth_distillation, tables=[chosen]),
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
