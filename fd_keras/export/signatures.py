"""The signatures of an exported model: their names, inputs and outputs, and what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import shown, validate_value_range
from fd_keras.certification import radii
from fd_keras.detection import LatticeDistance, ThresholdDetector
from fd_keras.export.archive import Endpoint
from fd_keras.export.recording import distillation_layers, recorded_distillations
from fd_keras.kernels import from_grey_levels, to_grey_levels
from fd_keras.layer import FeatureDistillation
from fd_keras.protection import named_outputs, takes_grey_levels, with_preprocessor

SERVING = "serving_default"
DISTILL = "distill"
BYTES = "serving_bytes"
DETECT = "detect"
CERTIFY = "certify"

# The outputs of ``certify`` beside the model's own.
RADII = ("linf_radius", "l2_radius")

ResizePolicy = Literal["crop", "stretch"]
_RESIZE_POLICIES: tuple[ResizePolicy, ...] = get_args(ResizePolicy)

# Black and white where nothing else is known.
GREY_LEVELS = (0.0, 255.0)

# Layers that tell the range of a model's pixels.
_OF_A_RANGE = (FeatureDistillation, LatticeDistance)

# Models with other numbers of channels take no image files.
_CHANNELS_OF_FILES = (1, 3)


def exportable(model: keras.Model | FeatureDistillation) -> keras.Model:
    """The model that is exported for ``model``.

    Args:
        model: A built model with one input; or a layer alone, which becomes a model from images
            of any size to distilled images, with the channels it was built for, else three.

    Raises:
        ValueError: The model is not built, or has several inputs.

    Example:
        >>> exportable(FeatureDistillation("liu2019")).input_shape
        (None, None, None, 3)
    """
    if isinstance(model, FeatureDistillation):
        channels = model.steps.shape[0] if model.built else 3
        shape = [None, None, channels]
        if model.data_format == "channels_first":
            shape = [channels, None, None]
        images = keras.Input(shape, dtype=_input_dtype(model))
        return keras.Model(images, {"distilled": model(images)}, name="plugin")
    image_signature(model)
    return with_preprocessor(model)


def image_signature(model: keras.Model) -> tf.TensorSpec:
    """The specification of a model's input, named ``images``, with a free batch size.

    Args:
        model: A built model with one input.

    Raises:
        ValueError: It is not built, or has several inputs.

    Example:
        >>> image_signature(keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]))
        TensorSpec(shape=(None, 8, 8, 1), dtype=tf.float32, name='images')
    """
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1:
        way = "Keras' own model.export writes one with several"
        if not inputs:
            way = "`fd_keras.protect` returns one"
        raise ValueError(
            f"`model` must be a built model with one input; {way}. "
            f"Received: model {model.name!r} with {len(inputs)} inputs"
        )
    (tensor,) = inputs
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name="images")


def known_value_range(
    model: keras.Model, given: Sequence[float] | None = None
) -> tuple[float, float] | None:
    """The pixel values of black and white that a model takes; ``None`` where nothing tells them.

    Args:
        model: Any Keras model. A layer of ours in it tells them, and so do inputs of dtype uint8
            and a ``Rescaling`` of 0..255 as its first layer.
        given: What the caller says they are; ``None``: nothing.

    Raises:
        ValueError: ``given`` is no range, or not that of the model.

    Example:
        >>> layer = FeatureDistillation("liu2019", value_range=(0, 1))
        >>> known_value_range(keras.Sequential([keras.Input((8, 8, 3)), layer]))
        (0.0, 1.0)
        >>> known_value_range(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))
    """
    ours = [x for x in model._flatten_layers() if isinstance(x, _OF_A_RANGE)]
    own = ours[0].value_range if ours else (0.0, 255.0) if takes_grey_levels(model) else None
    if given is None:
        return own
    wanted = validate_value_range(given)
    if own not in (None, wanted):
        raise ValueError(
            f"`value_range` must be that of the model's own layers, {own[0]:g} to {own[1]:g}. "
            f"Received: value_range={shown(given)}"
        )
    return wanted


def named_distilled(distilled: list[Any]) -> dict[str, Any]:
    """Distilled images by name: ``distilled``, or numbered where there are several.

    Args:
        distilled: What ``recorded_distillations`` recorded.

    Example:
        >>> sorted(named_distilled([tf.zeros(1), tf.zeros(2)]))
        ['distilled_0', 'distilled_1']
    """
    if len(distilled) == 1:
        return {"distilled": distilled[0]}
    return {f"distilled_{index}": images for index, images in enumerate(distilled)}


def certified_layer(model: keras.Model) -> FeatureDistillation | None:
    """The distillation that all of a model sees its images through; ``None`` if there is none.

    Args:
        model: What ``exportable`` returned.

    Example:
        >>> layer = FeatureDistillation("liu2019")
        >>> certified_layer(keras.Sequential([keras.Input((8, 8, 3)), layer])) is layer
        True
    """
    layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    first = layers[0] if layers else None
    # One that casts its inputs to fewer bits sees other coefficients than theirs, and soft
    # thresholding has no levels that they could stay on.
    if (
        not isinstance(first, FeatureDistillation)
        or first._casts_inputs
        or first.quantizer != "round"
    ):
        return None
    (images,) = _origins(model.inputs)
    elsewhere = [*_origins(model.outputs), *(x for other in layers[1:] for x in _read_by(other))]
    return first if images in _read_by(first) and images not in elsewhere else None


def _read_by(layer: keras.layers.Layer) -> list[Any]:
    """The origins of the symbolic tensors that a layer was called on."""
    return _origins([node.input_tensors for node in layer._inbound_nodes])


def _origins(tensors: Any) -> list[Any]:
    return [getattr(x, "_keras_history", None) for x in tf.nest.flatten(tensors)]


def radii_endpoint(model: keras.Model) -> Endpoint | None:
    """``certify`` of a model, from images to their certified radii.

    Args:
        model: What ``exportable`` returned.

    Returns:
        The endpoint, which returns ``linf_radius`` and ``l2_radius`` in grey levels, as
        ``fd_keras.certify`` does; ``None`` for a model that uses its images beside the layer.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 7)), keras.layers.Flatten()])
        >>> radii_endpoint(model) is None
        True
    """
    layer = certified_layer(model)
    if layer is None:
        return None
    table, (low, high) = layer.quantization_table, layer.value_range

    def certify(images: tf.Tensor) -> Mapping[str, Any]:
        pixels = tf.cast(images, tf.float32)
        if layer.data_format == "channels_first":
            pixels = tf.transpose(pixels, (0, 2, 3, 1))
        return dict(zip(RADII, radii(to_grey_levels(pixels, low, high), table)))

    return Endpoint(certify, image_signature(model))


def certify_endpoint(model: keras.Model) -> Endpoint | None:
    """``certify`` of a model, with its outputs beside the certified radii.

    Args:
        model: What ``exportable`` returned.

    Example:
        >>> layer = FeatureDistillation("certified:2")
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), layer])
        >>> sorted(certify_endpoint(model).function(tf.zeros((1, 8, 8, 3))))
        ['l2_radius', 'linf_radius', 'predictions']
    """
    alone = radii_endpoint(model)
    if alone is None:
        return None

    def certify(images: tf.Tensor) -> Mapping[str, Any]:
        return {**named_outputs(model(images, training=False)), **alone.function(images)}

    return Endpoint(certify, alone.input)


def model_endpoints(model: keras.Model) -> dict[str, Endpoint]:
    """``serving_default`` of a model, and ``distill`` of one that distils.

    Args:
        model: What ``exportable`` returned.

    Returns:
        ``serving_default`` returns ``predictions`` (a model with a dictionary of outputs keeps
        its names), ``distill`` returns ``distilled``.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), FeatureDistillation("liu2019")])
        >>> list(model_endpoints(model))
        ['serving_default', 'distill']
    """
    spec = image_signature(model)

    def serve(images: tf.Tensor) -> Mapping[str, Any]:
        return named_outputs(model(images, training=False))

    def distill(images: tf.Tensor) -> Mapping[str, Any]:
        with recorded_distillations() as distilled:
            model(images, training=False)
        return named_distilled(distilled)

    endpoints = {SERVING: Endpoint(serve, spec)}
    if _distils_in_sight(model, distill, spec):
        endpoints[DISTILL] = Endpoint(distill, spec)
    return endpoints


def bytes_endpoint(
    model: keras.Model, resize: ResizePolicy, value_range: tuple[float, float] = GREY_LEVELS
) -> Endpoint | None:
    """``serving_bytes`` of a model, from the content of image files to its outputs.

    Args:
        model: What ``exportable`` returned.
        resize: What happens to images of another size; see ``image_decoder``.
        value_range: The model's pixel values of black and white.

    Returns:
        The endpoint, or ``None`` for a model that does not take grey or RGB images, channels
        last.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 7)), keras.layers.Flatten()])
        >>> bytes_endpoint(model, "crop") is None
        True
    """
    if not _takes_files(model):
        return None
    decode = image_decoder(image_signature(model), value_range, resize)

    def serve(image_bytes: tf.Tensor) -> Mapping[str, Any]:
        return named_outputs(model(decode(image_bytes), training=False))

    return Endpoint(serve, tf.TensorSpec((None,), tf.string, name="image_bytes"))


def detect_endpoint(model: keras.Model, detector: ThresholdDetector) -> Endpoint:
    """``detect`` of a detector that takes the images that ``model`` takes.

    Args:
        model: What ``exportable`` returned.
        detector: The detector.

    Raises:
        ValueError: It takes other images.

    Example:
        >>> head = [keras.layers.Flatten(), keras.layers.Dense(3)]
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *head])
        >>> from fd_keras import DistillationDetector
        >>> detector = DistillationDetector(model, FeatureDistillation("liu2019"))
        >>> detect_endpoint(model, detector).input.name
        'images'
    """
    spec, given = image_signature(model), image_signature(detector)
    pairs = list(zip(spec.shape.as_list(), given.shape.as_list()))
    fits = len(spec.shape) == len(given.shape) and all(b in (None, a) for a, b in pairs)
    if not fits or spec.dtype != given.dtype:
        raise ValueError(
            f"`detector` must take the images that `model` takes, {spec.shape}, {spec.dtype.name}. "
            f"Received: a detector of images {given.shape}, {given.dtype.name}"
        )
    pixels, taken = known_value_range(model), known_value_range(detector)
    if None not in (pixels, taken) and pixels != taken:
        raise ValueError(
            f"`detector` must take pixels in the range of `model`'s, {pixels}. "
            f"Received: a detector of value_range={taken}"
        )
    return Endpoint(lambda images: detector(images, training=False), spec)


def _distils_in_sight(model: keras.Model, distill: Any, spec: tf.TensorSpec) -> bool:
    layers = distillation_layers(model)
    if any(layer in layers for layer in model.layers):
        return True
    # Deeper inside, it may be in a loop of its own, which only tracing the model tells.
    return bool(layers and tf.function(distill).get_concrete_function(spec).structured_outputs)


def _takes_files(model: keras.Model) -> bool:
    shape = image_signature(model).shape
    formats = {layer.data_format for layer in distillation_layers(model)}
    return shape.rank == 4 and shape[-1] in _CHANNELS_OF_FILES and "channels_first" not in formats


def _input_dtype(layer: FeatureDistillation) -> str:
    dtype = tf.as_dtype(layer.compute_dtype)
    return dtype.name if dtype.is_integer else "float32"


def image_decoder(
    spec: tf.TensorSpec, value_range: tuple[float, float], resize: ResizePolicy
) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function that decodes JPEG and PNG files into a model's input, inside the graph.

    JPEG files give the pixels that libjpeg, and so Pillow, gives. Grey and colour are converted
    into what the model takes, transparency is dropped, 16 bits become 8, and the EXIF orientation
    is not applied. An image of the model's size keeps its pixels. Others are resized with bilinear
    filtering (antialiased): ``"crop"`` keeps the aspect ratio, makes the image cover the model's
    size and cuts out its centre; ``"stretch"`` does not keep it. For a model of any size nothing is
    resized, and all images of a batch must be of one size.

    Args:
        spec: The model's input ``(None, height, width, channels)``, with 1 or 3 channels.
        value_range: The model's pixel values of black and white.
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
    if resize not in _RESIZE_POLICIES:
        raise ValueError(
            f"`resize` must be one of {_RESIZE_POLICIES}. Received: resize={shown(resize)}"
        )
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


def png_files(
    images: npt.NDArray[Any], value_range: tuple[float, float]
) -> npt.NDArray[np.object_]:
    """Images as the content of PNG files, rounded to whole grey levels.

    Args:
        images: ``(batch, height, width, channels)`` in ``value_range``, 1 or 3 channels.
        value_range: The pixel values of black and white.

    Returns:
        Bytes ``(batch,)``.

    Example:
        >>> png_files(np.zeros((1, 8, 8, 3)), (0, 1))[0][1:4]
        b'PNG'
    """
    low, high = value_range
    pixels = np.clip(np.rint((np.float64(images) - low) * (255 / (high - low))), 0, 255)
    contents = [tf.io.encode_png(image).numpy() for image in pixels.astype(np.uint8)]
    return np.array(contents, object)
