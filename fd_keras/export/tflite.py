"""Export a model as a TFLite file for LiteRT, on phones and in browsers."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import check_range, checked, shown
from fd_keras._files import atomic_path, held
from fd_keras.data.batches import image_batches, image_sample
from fd_keras.export.archive import EXCLUSIVE, Endpoint, Labels, export_details, write_archive
from fd_keras.export.check import ExportCheck, report
from fd_keras.export.quantization import QUANTIZATIONS, Quantization, quantized
from fd_keras.export.recording import distillation_layers, recorded_distillations
from fd_keras.export.signatures import (
    CERTIFY,
    DISTILL,
    SERVING,
    exportable,
    image_signature,
    known_value_range,
    model_endpoints,
    radii_endpoint,
)
from fd_keras.export.tflite_file import HIDDEN_PREFIX, TFLiteFile
from fd_keras.export.verification import verify_export
from fd_keras.export.wrapping import wrapped_resources
from fd_keras.layer import FeatureDistillation
from fd_keras.protection import named_outputs

# The converter sorts signatures by name. `serving_default` has to come first: runtimes that know
# nothing of signatures run the first graph.
_SORTED_NAMES = {"0": SERVING, "1": DISTILL, "2": CERTIFY}

# Names of files that are being written, but for the suffix.
_LEFTOVER = r"\.[0-9a-f]{32}"

# With 250 of them, or attacked ones among them, MobileNetV2 in int8 came no closer to Keras.
_REPRESENTATIVE_IMAGES = 100


def export_tflite(
    model: keras.Model | FeatureDistillation,
    path: str | os.PathLike[str],
    *,
    quantize: Quantization = "none",
    representative_data: Any = None,
    int8_error: float = 0.3,
    labels: Labels | None = None,
    single_image: bool = False,
    value_range: Sequence[float] | None = None,
    images: npt.ArrayLike | None = None,
    verify: bool = True,
    on_check: Callable[[ExportCheck], object] | None = None,
) -> Path:
    """Write a model as a TFLite file of builtin operations, and prove it.

    Batch size, and height and width where the model leaves them open, can be chosen at run
    time with ``resize_tensor_input``. Whatever ``quantize`` does to the model's body, the
    distillation stays float32: in eight bits most distilled pixels would move while the benign
    accuracy hardly changed, so that the defence would break unnoticed.

    The file carries a metadata entry ``fd_keras.json`` with the value range, the tables, the
    labels and the version of fd_keras.

    Args:
        model: A built Keras model with one input, such as ``protect`` returns; or a
            ``FeatureDistillation`` alone, to put in front of a model of another origin.
        path: File to write, usually ``*.tflite``. An existing one is replaced atomically.
        quantize: ``"none"``; ``"dynamic"``: int8 weights, a quarter of the size;
            ``"float16"``: float16 weights, half the size; ``"int8"``: int8 weights and activations.
            Inputs and outputs stay as in the model.
        representative_data: For ``"int8"``: images like those the model will see, from which the
            ranges of activations are measured; ends that only a few values reach are cut to the
            least squared error. An array, a ``tf.data.Dataset``, a ``PyDataset`` or an iterable of
            images. A hundred are used: of an array a random sample, else the first.
        int8_error: For ``"int8"``: share, from 0 to 1, of the error of a body wholly in int8 that
            may stay. The operations that cause the rest, found by quantising each alone, are
            computed in float32; with 1, none is. MobileNetV2 wholly in int8 keeps its class on
            97 % of benign images; with 0.3 on 99 %, and the file is 15 to 45 % larger and takes 20
            to 30 % longer.
        labels: Names of the classes, or a text file with one on each line.
        single_image: Whether to fix the batch at one image, which LiteRT.js and some accelerators
            need; they need a fixed height and width, too.
        value_range: The pixel values of black and white of ``model``, where no layer in it tells
            them; images are checked against it, and the file holds it.
        images: Images to prove the file on. Default: ``representative_data``, else those of
            ``verify_export``.
        verify: Whether to run ``verify_export`` and to refuse a file that fails it.
        on_check: Called with the ``ExportCheck`` that ``verify_export`` returned.

    Returns:
        ``path``. Its signature ``serving_default`` takes ``images`` and returns ``predictions``
        (or the names of a model with several outputs); ``distill`` returns the distilled images;
        ``certify``, of models that see their images through one layer alone, returns their
        ``linf_radius`` and ``l2_radius`` in grey levels, as ``fd_keras.certify`` does.
        Outputs that are bool, such as a detector's ``flag``, become float32: 0 or 1.

    Raises:
        ValueError: The model needs an operation that is no TFLite builtin (the message names it
            and a remedy), is not built, or cannot be quantised as asked; or another export writes
            to the same directory.
        ImportError: ``quantize`` needs the extra ``export``.
        ExportProofError: The file does not compute what the model does; nothing was written.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> export_tflite(model, tempfile.mkdtemp() + "/model.tflite").name
        'model.tflite'
    """
    int8_error = float(checked("int8_error", int8_error, 0, 1))
    if quantize not in QUANTIZATIONS:
        raise ValueError(
            f"`quantize` must be one of {QUANTIZATIONS}. Received: quantize={shown(quantize)}"
        )
    model, path = exportable(model), Path(path)
    _refuse_signal_method(model)
    known = known_value_range(model, value_range)
    samples = None
    if quantize == "int8":
        samples = _checked_samples(model, representative_data, known)
        images = samples if images is None else images
    details = export_details(model, labels, known, quantize=quantize)
    # Beside the file that a link leads to, as the temporary file is.
    final = Path(os.path.realpath(path))
    leftovers = _LEFTOVER + re.escape(final.suffix)
    with held(final.parent, leftovers=leftovers, argument="path"):
        file, distilled = _converted(model, single_image)
        if quantize != "none":
            _refuse_hidden_distillation(model, distilled)
            kept = _float_tensors(file, distilled)
            content = quantized(file.to_bytes(), quantize, kept, samples, int8_error)
            file = TFLiteFile(content)
        file.add_details({**details, "distilled": distilled})
        with atomic_path(path) as temporary:
            temporary.write_bytes(file.to_bytes())
            if verify:
                report(verify_export(temporary, model, images), path, on_check)
    return path


def _converted(model: keras.Model, single_image: bool) -> tuple[TFLiteFile, list[str]]:
    """The float32 file, and the names of the tensors that hold the distilled images."""
    endpoints = _sorted_endpoints(model, 1 if single_image else None)
    with tempfile.TemporaryDirectory() as folder:
        saved_model = os.path.join(folder, "saved_model")
        write_archive([model, *wrapped_resources(model)], endpoints, saved_model)
        try:
            with EXCLUSIVE:
                content = _tflite_content(saved_model, list(endpoints))
        except Exception as error:
            operations = _refused_operations(str(error))
            if not operations:
                raise
            raise ValueError(
                f"`model` needs operations that are no TFLite builtins: {', '.join(operations)}. "
                f"{_advice(str(error))}. Received: model {model.name!r}"
            ) from error
    file = TFLiteFile(content)
    file.rename_signatures(_SORTED_NAMES)
    return file, file.hide_outputs()


def _tflite_content(saved_model: str, signatures: list[str]) -> bytes:
    # from_concrete_functions yields NaN for Keras 3 models on TF 2.21.
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=signatures)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return bytes(converter.convert())


def _sorted_endpoints(model: keras.Model, batch: int | None) -> dict[str, Endpoint]:
    """The model's signatures, with the distilled images among the outputs of the first."""
    endpoints = model_endpoints(model)
    if certified := radii_endpoint(model):
        endpoints[CERTIFY] = certified

    def serve_and_show(images: tf.Tensor) -> Mapping[str, Any]:
        with recorded_distillations() as distilled:
            outputs = named_outputs(model(images, training=False))
        hidden = {f"{HIDDEN_PREFIX}{number}": shown for number, shown in enumerate(distilled)}
        return {**{name: _number(output) for name, output in outputs.items()}, **hidden}

    endpoints[SERVING] = dataclasses.replace(endpoints[SERVING], function=serve_and_show)
    spec = image_signature(model)
    images = tf.TensorSpec((batch, *spec.shape[1:]), spec.dtype, name=spec.name)
    return {
        name: dataclasses.replace(endpoints[given], input=images)
        for name, given in _SORTED_NAMES.items()
        if given in endpoints
    }


def _number(output: tf.Tensor) -> tf.Tensor:
    """LiteRT.js refuses to load a file with a bool output."""
    return tf.cast(output, tf.float32) if output.dtype == tf.bool else output


def _float_tensors(file: TFLiteFile, distilled: list[str]) -> list[str]:
    """Names of the tensors whose operations must not be quantised."""
    alone = [name for name in (DISTILL, CERTIFY) if name in file.signatures]
    return sum((file.needed_for(None, name) for name in alone), file.needed_for(distilled))


def _checked_samples(
    model: keras.Model, data: Any, value_range: tuple[float, float] | None
) -> npt.NDArray[Any]:
    spec = image_signature(model)
    if data is None:
        raise ValueError(
            "`representative_data` must hold images like those the model will see, to measure the "
            "ranges of its activations for quantize='int8'. Received: representative_data=None"
        )
    if not spec.shape[1:].is_fully_defined():
        raise ValueError(
            "`model` must have a fixed image size for quantize='int8', whose ranges hold for one "
            "size; give protect an `input_shape` such as (224, 224, 3), or use 'dynamic' or "
            f"'float16'. Received: model {model.name!r} with inputs of shape {spec.shape}"
        )
    sample = image_sample(data, _REPRESENTATIVE_IMAGES)
    batches = image_batches(sample, batch_size=_REPRESENTATIVE_IMAGES)
    images = (image for batch in batches for image in batch)
    samples = list(itertools.islice(images, _REPRESENTATIVE_IMAGES))
    if not samples or not spec.shape[1:].is_compatible_with(samples[0].shape):
        found = samples[0].shape if samples else "no image"
        raise ValueError(
            f"`representative_data` must hold images of shape {tuple(spec.shape[1:])}. "
            f"Received: {found}"
        )
    if value_range is not None:
        check_range("representative_data", np.stack(samples), value_range)
    return np.stack(samples).astype(spec.dtype.as_numpy_dtype)


def _refuse_signal_method(model: keras.Model) -> None:
    for layer in distillation_layers(model):
        if layer.dct_method == "signal":
            raise ValueError(
                "`model` uses tf.signal, which TFLite cannot run without Flex; build the layer "
                f"with dct_method='matmul'. Received: layer {layer.name!r} with "
                "dct_method='signal'"
            )


def _refuse_hidden_distillation(model: keras.Model, distilled: list[str]) -> None:
    if distillation_layers(model) and not distilled:
        raise ValueError(
            "`model` distils inside a loop, where the distillation cannot be told from what is "
            "quantised; call the layer outside of it, or use quantize='none'. "
            f"Received: model {model.name!r}"
        )


def _refused_operations(message: str) -> list[str]:
    """The operations that the converter's error lists among pages of other text."""
    located = re.findall(r'error: loc\(.*?"(\w+):", "([^"@]+)', message)
    return [f"{operation} (in {place})" for operation, place in sorted(dict(located).items())]


def _advice(message: str) -> str:
    if re.search("f(16|64)>", message):  # as in tensor<?x8x8xbf16>
        return "They compute in float32: rebuild the model with the dtype policy 'float32'"
    return "Replace the layers that make them, or serve the model with export_saved_model"
