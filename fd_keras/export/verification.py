"""Proving that an exported file computes what the Keras model does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from fd_keras.export.archive import (
    is_saved_model,
    saved_model_operations,
    signature_definitions,
)
from fd_keras.export.check import ExportCheck, accuracy_of, compared
from fd_keras.export.distilled import named_distilled, run_recorded
from fd_keras.export.proof_images import proof_images
from fd_keras.export.quantization import Quantization
from fd_keras.export.runtimes import (
    Run,
    run_openvino,
    run_saved_model,
    run_tflite,
    tflite_interpreter,
)
from fd_keras.export.signatures import (
    BYTES,
    DISTILL,
    SERVING,
    exportable,
    image_signature,
    value_range_of,
)
from fd_keras.export.tflite_file import HIDDEN_PREFIX, TFLiteFile
from fd_keras.export.warmup import png_files
from fd_keras.layer import FeatureDistillation

_GREY_LEVELS = 255

# Images from which a latency is taken.
_TIMED_IMAGES = 8

# Typing alias: a run by each runtime, and why the others did not.
_Runs = tuple[dict[str, Run], dict[str, str]]


def verify_export(
    path: str | os.PathLike[str],
    model: keras.Model | FeatureDistillation,
    images: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    *,
    threat_model: str | None = None,
) -> ExportCheck:
    """Run an exported file in its real runtimes and compare it with the Keras model.

    A ``.tflite`` file runs in LiteRT (without the extra ``export`` in ``tf.lite``), and in
    OpenVINO where that is installed; a SavedModel in a new Python process that can import neither
    Keras nor fd_keras. What is compared first is the *distilled image*, because an accuracy hardly
    shows when the defence is broken: in a TFLite file the very tensor that ``serving_default``
    hands to the classifier, in a SavedModel the signature ``distill``.

    Args:
        path: What an exporter wrote.
        model: The Keras model, or layer, it was made from.
        images: Images as the model takes them. Default: parts of scikit-learn's two photographs,
            which show whether the distillation is right, but are no test of a classifier.
        labels: Integer classes of ``images``; their accuracy is compared too.
        threat_model: How ``images`` were attacked, such as ``"gray-box FGSM 2/255"`` or
            ``"benign"``; goes with ``labels``.

    Returns:
        What was found; ``passed`` says whether the file can be trusted.

    Raises:
        ValueError: There is no such export, the images do not fit, or an accuracy has no threat
            model.

    Example:
        >>> from fd_keras import FeatureDistillation, export_tflite
        >>> layer = FeatureDistillation("liu2019")
        >>> path = export_tflite(layer, tempfile.mkdtemp() + "/plugin.tflite", verify=False)
        >>> verify_export(path, layer).passed
        True
    """
    model, path = exportable(model), Path(path)
    batch = proof_images(model) if images is None else checked_images(model, images)
    if (labels is None) != (threat_model is None):
        raise ValueError(
            "`labels` and `threat_model` belong together: an accuracy means nothing without the "
            f"attack. Received: threat_model={threat_model!r}, labels={labels!r}"
        )
    classes = None if labels is None else np.asarray(labels)
    expected = Run(*run_recorded(model, batch), milliseconds=0)
    not_run: dict[str, str] = {}
    if is_saved_model(path):
        try:
            runs = _run_saved_model(path, batch, model, len(expected.distilled))
        except RuntimeError as error:
            runs, not_run = {}, {"Python without fd_keras": str(error)}
        kind, operations = "saved_model", saved_model_operations(path)
        quantize: Quantization = "none"
    else:
        content = path.read_bytes()
        file = TFLiteFile(content)
        runs, not_run = _run_tflite(content, batch)
        kind, operations = "tflite", file.operations()
        quantize = file.details.get("quantize", "none")
    low, high = value_range_of(model)
    scale = _GREY_LEVELS / (high - low)
    return ExportCheck(
        path=os.fspath(path),
        format=kind,
        quantize=quantize,
        size=sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()),
        images=len(batch),
        operations=dict(operations),
        runtimes=tuple(compared(name, run, expected, scale, classes) for name, run in runs.items()),
        not_run=not_run,
        keras_accuracy=None if classes is None else accuracy_of(expected, classes),
        threat_model=threat_model,
    )


def _run_saved_model(
    path: Path, images: npt.NDArray[Any], model: keras.Model, distillations: int
) -> dict[str, Run]:
    requests = {SERVING: {"images": images}}
    if distillations:
        requests[DISTILL] = {"images": images}
    if BYTES in signature_definitions(path) and _whole_grey_levels(images, model):
        files = png_files(images, value_range_of(model))
        # Not as objects, which numpy would pickle; no PNG file ends in a zero.
        requests[BYTES] = {"image_bytes": np.array(list(files))}
    results = run_saved_model(path, requests)
    alone, distilled = results.get(DISTILL), []
    if alone:
        # The names of as many outputs, in their order.
        names = named_distilled([None] * distillations)
        distilled = [alone.outputs[name] for name in names if name in alone.outputs]
    return {
        f"Python without fd_keras, {signature}": replace(
            results[signature],
            distilled=distilled,
            distillation_milliseconds=alone.milliseconds if alone else None,
        )
        for signature in (SERVING, BYTES)
        if signature in results
    }


def _whole_grey_levels(images: npt.NDArray[Any], model: keras.Model) -> bool:
    low, high = value_range_of(model)
    levels = (np.float64(images) - low) * (_GREY_LEVELS / (high - low))
    inside = levels.min() > -0.5 and levels.max() < _GREY_LEVELS + 0.5
    return bool(inside and np.abs(levels - np.rint(levels)).max() < 1e-3)


def _run_tflite(content: bytes, images: npt.NDArray[Any]) -> _Runs:
    file = TFLiteFile(content)
    name, _ = tflite_interpreter()
    try:
        latency = run_tflite(content, images[:_TIMED_IMAGES]).milliseconds
    except RuntimeError as error:
        return {}, {name: str(error)}
    alone: Mapping[str, Any] = {}
    if DISTILL in file.signatures:
        timed = run_tflite(content, images[:_TIMED_IMAGES], signature=DISTILL)
        alone = {"distillation_milliseconds": timed.milliseconds}
    # The same file, with the distilled images inside `serving_default` shown as outputs.
    file.show_outputs(file.details.get("distilled", []))
    shown, positions = file.to_bytes(), file.output_positions()
    found = _with_distilled(run_tflite(shown, images))
    runs, not_run = {name: replace(found, milliseconds=latency, **alone)}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        path.write_bytes(shown)
        try:
            runs["OpenVINO"] = _with_distilled(run_openvino(path, images, positions))
        except ImportError as error:
            not_run["OpenVINO"] = str(error)
        except RuntimeError:  # it does not read every quantised file
            not_run["OpenVINO"] = "it cannot run this file"
    return runs, not_run


def _with_distilled(run: Run) -> Run:
    shown = sorted(
        (name for name in run.outputs if name.startswith(HIDDEN_PREFIX)),
        key=lambda name: int(name.removeprefix(HIDDEN_PREFIX)),
    )
    outputs = {name: array for name, array in run.outputs.items() if name not in shown}
    return replace(run, outputs=outputs, distilled=[run.outputs[name] for name in shown])


def checked_images(model: keras.Model, images: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return ``images`` as a batch of the model's input type when they are what it takes.

    Args:
        model: A built model with one input.
        images: Candidate.

    Raises:
        ValueError: They are of another shape, or there is none.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
        >>> checked_images(model, np.zeros((2, 8, 8, 3))).dtype
        dtype('float32')
    """
    spec = image_signature(model)
    batch = np.asarray(images)
    if not spec.shape.is_compatible_with(batch.shape) or not len(batch):
        raise ValueError(
            f"`images` must be at least one image of the shape the model takes, {spec.shape}. "
            f"Received: images of shape {batch.shape}"
        )
    return batch.astype(spec.dtype.as_numpy_dtype)
