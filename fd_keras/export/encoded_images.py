"""From encoded image files to a model's input, inside the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import tensorflow as tf

from fd_keras.kernels import from_grey_levels

ResizePolicy = Literal["crop", "stretch"]

RESIZE_POLICIES: tuple[ResizePolicy, ...] = get_args(ResizePolicy)

# Models of other channels take no image files.
READABLE_CHANNELS = (1, 3)


def image_decoder(
    spec: tf.TensorSpec, value_range: tuple[float, float], resize: ResizePolicy
) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function that decodes JPEG and PNG files into a model's input.

    JPEG files give the pixels that libjpeg, so Pillow, gives. Grey and colour are converted into
    what the model takes, transparency is dropped, 16 bits become 8, and the EXIF orientation is
    not applied. An image of the model's size keeps its pixels. Others are resized with bilinear
    filtering (antialiased): ``"crop"`` keeps the aspect ratio, makes the image cover the model's
    size and cuts its centre out; ``"stretch"`` does not keep it. For a model of any size nothing is
    resized, and all images of a batch must be of one size.

    Args:
        spec: The model's input ``(None, height, width, channels)``, with 1 or 3 channels.
        value_range: What black and white are for the model.
        resize: What happens to images of other sizes.

    Returns:
        A function from strings ``(batch,)`` to ``(batch, height, width, channels)``.

    Raises:
        ValueError: There is no such policy.

    Example:
        >>> spec = tf.TensorSpec((None, 4, 4, 1), tf.float32)
        >>> decode = image_decoder(spec, (0, 1), "crop")
        >>> png = tf.io.encode_png(tf.fill((8, 6, 1), tf.constant(255, tf.uint8)))
        >>> float(tf.reduce_min(decode(png[tf.newaxis])))
        1.0
    """
    if resize not in RESIZE_POLICIES:
        raise ValueError(f"`resize` must be one of {RESIZE_POLICIES}. Received: resize={resize!r}")
    _, height, width, channels = spec.shape
    low, high = value_range

    def decode(content: tf.Tensor) -> tf.Tensor:
        # It reads PNG too. Without the accurate DCT, as in `decode_image`, most pixels of a JPEG
        # differ from other decoders' by up to 6 levels.
        pixels = tf.io.decode_jpeg(content, channels=channels, dct_method="INTEGER_ACCURATE")
        pixels.set_shape((None, None, channels))
        pixels = tf.cast(pixels, tf.float32)
        if height is not None and width is not None:
            pixels = _resized(pixels, height, width, resize)
        pixels = from_grey_levels(pixels, low, high)
        return tf.cast(tf.round(pixels) if spec.dtype.is_integer else pixels, spec.dtype)

    one = tf.TensorSpec(spec.shape[1:], spec.dtype)
    return lambda contents: tf.map_fn(decode, contents, fn_output_signature=one)


def _resized(pixels: tf.Tensor, height: int, width: int, policy: ResizePolicy) -> tf.Tensor:
    if policy == "stretch":
        return tf.image.resize(pixels, (height, width), antialias=True)
    found = tf.cast(tf.shape(pixels)[:2], tf.float32)
    scale = tf.reduce_max(tf.constant([height, width], tf.float32) / found)
    size = tf.maximum(tf.cast(tf.round(found * scale), tf.int32), [height, width])
    covering = tf.image.resize(pixels, size, antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    cropped: Any = covering[top : top + height, left : left + width]
    return tf.ensure_shape(cropped, (height, width, pixels.shape[-1]))
