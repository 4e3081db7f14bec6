"""Prove that an exported file computes what the Keras model does."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import check_range, shown, validate_value_range
from fd_keras._compat import last_activation
from fd_keras.certification import certify
from fd_keras.export.archive import (
    DETAILS_FILE,
    found_export,
    is_saved_model,
    saved_model_operations,
    signature_names,
)
from fd_keras.export.check import (
    LEAST_KEPT,
    USUAL_CAUSES,
    ExportCheck,
    Rule,
    Unprotected,
    accuracy_of,
    classifying,
    compared,
    rule_of,
    same_decisions,
)
from fd_keras.export.quantization import quantization_of
from fd_keras.export.recording import distillation_layers
from fd_keras.export.runtimes import (
    Run,
    run_keras,
    run_openvino,
    run_saved_model,
    run_tflite,
    tflite_interpreter,
)
from fd_keras.export.signatures import (
    BYTES,
    CERTIFY,
    DETECT,
    DISTILL,
    GREY_LEVELS,
    RADII,
    SERVING,
    certified_layer,
    exportable,
    image_signature,
    known_value_range,
    named_distilled,
    png_files,
)
from fd_keras.export.tflite_file import HIDDEN_PREFIX, TFLiteFile
from fd_keras.kernels import from_grey_levels
from fd_keras.layer import FeatureDistillation
from fd_keras.protection import named_outputs

_GREY_LEVELS = 255

# Images from which a latency is taken.
_TIMED_IMAGES = 8

# Images at a time, where Keras runs without the layer.
_BATCH = 16

# The default images have this many pixels together: enough that one block that lies on a tie by
# chance does not hide a broken distillation.
_PROOF_PIXELS = 100_000
_SMALLEST_COUNT, _LARGEST_COUNT = 2, 64

# Size along an axis that the model leaves open; no multiple of 8, so that edges are repeated.
_OPEN_SIZE = 101

# Typing alias: a run by each runtime, and why the others did not run.
_Runs = tuple[dict[str, Run], dict[str, str]]


def verify_export(
    path: str | os.PathLike[str],
    model: keras.Model | FeatureDistillation,
    images: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    *,
    threat_model: str | None = None,
    output: str | None = None,
) -> ExportCheck:
    """Run an exported file in its real runtimes and compare it with the Keras model.

    A ``.tflite`` file runs in LiteRT (without the extra ``export`` in ``tf.lite``), and in
    OpenVINO where that is installed; a SavedModel in a new Python process that can import neither
    Keras nor fd_keras. The *distilled image* is compared first, because a broken defence hardly
    shows in an accuracy: in a TFLite file the very tensor that ``serving_default`` hands to the
    classifier, in a SavedModel the signature ``distill``. Where the file has the signature
    ``certify``, its radii are compared with those of ``fd_keras.certify``.

    Then what the outputs decide is compared: the class of each image, or of each pixel (outputs of
    rank 4); with a single output, whether a logit is above 0 or a probability above 0.5. Outputs
    of other shapes decide nothing that is known; a file in which nothing could be compared is not
    proven.

    Args:
        path: The file or version that an exporter wrote; or the directory of all versions, of which
            the newest is taken.
        model: The Keras model, or layer, it was made from.
        images: Images as the model takes them, in its value range: that of the layer in it, else
            the one that the file was exported with. Default: parts of scikit-learn's two
            photographs, which show whether the distillation is right, but are no test of a
            classifier.
        labels: Integer classes of ``images``; their accuracy is compared too, and with that of the
            model without the layer that ``protect`` put in front of it.
        threat_model: How ``images`` were attacked, such as ``"gray-box FGSM 2/255"`` or
            ``"benign"``; goes with ``labels``.
        output: Name of the output that ``labels`` are of, where several could be.

    Returns:
        What was found; ``passed`` says whether the file can be trusted.

    Raises:
        ValueError: There is no such export, it is damaged, the images do not fit or are not in the
            layer's value range, or an accuracy has no threat model.

    Example:
        >>> from fd_keras import FeatureDistillation, export_tflite
        >>> layer = FeatureDistillation("liu2019")
        >>> path = export_tflite(layer, tempfile.mkdtemp() + "/plugin.tflite", verify=False)
        >>> verify_export(path, layer).passed
        True
    """
    model, path = exportable(model), found_export(path)
    known = known_value_range(model) or _recorded_range(path)
    batch = proof_batch(model, images, known)
    if (labels is None) != (threat_model is None):
        raise ValueError(
            "`labels` and `threat_model` belong together: an accuracy means nothing without the "
            f"attack. Received: threat_model={shown(threat_model)}, labels={shown(labels)}"
        )
    classes = None if labels is None else np.asarray(labels)
    expected = replace(run_keras(model, batch), radii=_certified_radii(model, batch))
    rules = _rules(model, expected)
    low, high = known or GREY_LEVELS
    runs, not_run, about = _run_file(path, batch, (low, high), len(expected.distilled))
    for name, run in runs.items():
        _check_shapes(name, run, expected)
    scale = _GREY_LEVELS / (high - low)
    check = ExportCheck(
        path=os.fspath(path),
        size=_size_of(path),
        images=len(batch),
        runtimes=tuple(
            compared(name, run, expected, scale, rules, classes, output)
            for name, run in runs.items()
        ),
        not_run=not_run,
        keras_accuracy=None if classes is None else accuracy_of(expected, classes, rules, output),
        threat_model=threat_model,
        decided={name: rule.text for name, rule in rules.items()},
        **about,
    )
    if images is None:
        return check
    bare = _unprotected(check, model, batch, expected, rules, classes, output)
    return replace(check, unprotected=bare)


def verify_detector(path: Path, detector: keras.Model, images: npt.NDArray[Any]) -> ExportCheck:
    """Compare the signature ``detect`` of a SavedModel with a detector, as ``verify_export`` does.

    Args:
        path: The version.
        detector: What ``detect`` was made from.
        images: As it takes them.

    Example:
        >>> from fd_keras import TamperDetector, export_saved_model
        >>> detector = TamperDetector("certified:2")
        >>> version = export_saved_model(detector, tempfile.mkdtemp(), verify=False)
        >>> verify_detector(version, detector, np.zeros((2, 16, 16, 3), np.float32)).passed
        True
    """
    expected = replace(run_keras(detector, images), distilled=[])
    rules = _rules(detector, expected)
    about: dict[str, Any] = {"runtimes": (), "not_run": {}}
    name = f"Python without fd_keras, {DETECT}"
    try:
        run = run_saved_model(path, {DETECT: {"images": images}})[DETECT]
        about["runtimes"] = (compared(name, run, expected, 1.0, rules),)
    except RuntimeError as error:
        about["not_run"] = {name: str(error)}
    return ExportCheck(
        path=os.fspath(path),
        format="saved_model",
        quantize="none",
        size=_size_of(path),
        images=len(images),
        operations=dict(saved_model_operations(path)),
        decided={name: rule.text for name, rule in rules.items()},
        **about,
    )


def _size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def _certified_radii(model: keras.Model, images: npt.NDArray[Any]) -> dict[str, Any]:
    """What ``certify`` says of images, where all of a model sees them through one layer."""
    layer = certified_layer(model)
    if layer is None:
        return {}
    pixels = np.moveaxis(images, 1, -1) if layer.data_format == "channels_first" else images
    found = certify(pixels, layer.quantization_table, value_range=layer.value_range)
    return {name: getattr(found, name) for name in RADII}


def _rules(model: keras.Model, run: Run) -> dict[str, Rule]:
    """How each output of a model decides."""
    structure = getattr(model, "output", None)
    symbolic = named_outputs(structure if structure is not None else model.outputs[0])
    return {
        name: rule_of(
            name,
            array,
            last_activation(symbolic.get(name)),
            distilled=any(np.array_equal(array, images) for images in run.distilled),
        )
        for name, array in run.outputs.items()
    }


def _unprotected(
    check: ExportCheck,
    model: keras.Model,
    images: npt.NDArray[Any],
    expected: Run,
    rules: Mapping[str, Rule],
    labels: npt.NDArray[Any] | None,
    output: str | None,
) -> Unprotected:
    """How the model decides without the layer in front of it."""
    deciding = [name for name, rule in rules.items() if rule.kind in ("class", "threshold")]
    if not deciding:
        return Unprotected()
    name = deciding[0] if labels is None and output is None else classifying(rules, output)
    classes = 2 if rules[name].kind == "threshold" else expected.outputs[name].shape[-1]
    parts = [
        _without_layer(model, images[start : start + _BATCH])
        for start in range(0, len(images), _BATCH)
    ]
    if parts[0] is None:
        return Unprotected(classes=classes)
    bare = Run(
        {key: np.concatenate([part[key] for part in parts if part]) for key in parts[0]}, [], 0
    )
    kept, _ = same_decisions(expected.outputs[name], bare.outputs[name], rules[name])
    benign = (check.threat_model or "benign").lower().startswith("benign")
    if labels is None and benign and kept < LEAST_KEPT:
        warnings.warn(
            f"behind the layer, only {kept:.1%} of `images` keep their class; {USUAL_CAUSES}",
            stacklevel=3,
        )
    accuracy = None if labels is None else accuracy_of(bare, labels, rules, output)
    return Unprotected(accuracy, kept, classes)


def _without_layer(model: keras.Model, images: npt.NDArray[Any]) -> dict[str, Any] | None:
    """The outputs of what ``protect`` put a layer in front of; ``None`` for other models."""
    layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    if not layers or not isinstance(layers[0], FeatureDistillation):
        return None
    *between, inner = layers[1:] or [None]
    made_by: list[Any] = [getattr(x, "_keras_history", (None,)) for x in model.outputs]
    if not isinstance(inner, keras.Model) or any(history[0] is not inner for history in made_by):
        return None
    outputs: Any = tf.constant(images)
    for layer in between:
        outputs = layer(outputs)
    flat = tf.nest.flatten(inner(outputs, training=False))
    chosen = [np.asarray(flat[history[2]]) for history in made_by]
    return named_outputs(tf.nest.pack_sequence_as(model.output, chosen))


def _check_shapes(runtime: str, run: Run, expected: Run) -> None:
    named = [(name, run.outputs.get(name), array) for name, array in expected.outputs.items()]
    named += [("distilled", *pair) for pair in zip(run.distilled, expected.distilled)]
    for name, actual, wanted in named:
        if actual is not None and actual.shape != wanted.shape:
            raise ValueError(
                f"`path` must hold an export of `model`; in {runtime}, {name!r} is of shape "
                f"{actual.shape}, not {wanted.shape}"
            )


def _run_file(
    path: Path, images: npt.NDArray[Any], value_range: tuple[float, float], distillations: int
) -> tuple[dict[str, Run], dict[str, str], dict[str, Any]]:
    """Run a file of either format, and say which it is."""
    if is_saved_model(path):
        operations = dict(saved_model_operations(path))
        about = {"format": "saved_model", "quantize": "none", "operations": operations}
        return *_run_saved_model(path, images, value_range, distillations), about
    content = path.read_bytes()
    try:
        file = TFLiteFile(content)
        about = {
            "format": "tflite",
            "quantize": quantization_of(file),
            "operations": dict(file.operations()),
        }
        # The same file, with the distilled images inside `serving_default` shown as outputs.
        file.show_outputs(file.details.get("distilled", []))
        shown = file.to_bytes()
    except Exception as error:  # the reader of flatbuffers raises many types on damaged files
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"`path` must hold a whole TFLite file with the signature {SERVING!r} "
            f"({reason}). Received: path={os.fspath(path)!r}"
        ) from error
    return *_run_tflite(file, content, shown, images), about


def _run_saved_model(
    path: Path, images: npt.NDArray[Any], value_range: tuple[float, float], distillations: int
) -> _Runs:
    requests = {SERVING: {"images": images}}
    if distillations:
        requests[DISTILL] = {"images": images}
    signatures = signature_names(path)
    if CERTIFY in signatures:
        requests[CERTIFY] = {"images": images}
    if BYTES in signatures and _whole_grey_levels(images, value_range):
        files = png_files(images, value_range)
        # Not as objects, which numpy would pickle; no PNG file ends in a zero.
        requests[BYTES] = {"image_bytes": np.array(list(files))}
    try:
        results = run_saved_model(path, requests)
    except RuntimeError as error:
        return {}, {"Python without fd_keras": str(error)}
    alone, distilled = results.get(DISTILL), []
    certified = results[CERTIFY].outputs if CERTIFY in results else {}
    if alone:
        # The names of as many outputs, in their order.
        names = named_distilled([None] * distillations)
        distilled = [alone.outputs[name] for name in names if name in alone.outputs]
    runs = {
        f"Python without fd_keras, {signature}": replace(
            results[signature],
            distilled=distilled,
            distillation_milliseconds=alone.milliseconds if alone else None,
            radii={name: certified[name] for name in RADII if name in certified},
        )
        for signature in (SERVING, BYTES)
        if signature in results
    }
    return runs, {}


def _whole_grey_levels(images: npt.NDArray[Any], value_range: tuple[float, float]) -> bool:
    low, high = value_range
    levels = (np.float64(images) - low) * (_GREY_LEVELS / (high - low))
    inside = levels.min() > -0.5 and levels.max() < _GREY_LEVELS + 0.5
    return bool(inside and np.abs(levels - np.rint(levels)).max() < 1e-3)


def _run_tflite(file: TFLiteFile, content: bytes, shown: bytes, images: npt.NDArray[Any]) -> _Runs:
    name, _ = tflite_interpreter()
    timed = images[:_TIMED_IMAGES]
    try:
        latency: dict[str, Any] = {"milliseconds": run_tflite(content, timed).milliseconds}
        if DISTILL in file.signatures:
            alone = run_tflite(content, timed, signature=DISTILL)
            latency["distillation_milliseconds"] = alone.milliseconds
        if CERTIFY in file.signatures:
            latency["radii"] = run_tflite(content, images, signature=CERTIFY).outputs
        runs = {name: replace(_with_distilled(run_tflite(shown, images)), **latency)}
    except Exception as error:  # what the runtime raises depends on what is wrong with the file
        return {}, {name: " ".join(str(error).split())}
    not_run = {}
    try:
        runs["OpenVINO"] = _run_in_openvino(shown, images, file.output_positions())
    except ImportError as error:
        not_run["OpenVINO"] = str(error)
    except Exception:  # it does not read every quantised file
        not_run["OpenVINO"] = "it cannot run this file"
    return runs, not_run


def _run_in_openvino(content: bytes, images: npt.NDArray[Any], positions: Mapping[str, int]) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        path.write_bytes(content)
        return _with_distilled(run_openvino(path, images, positions))


def _with_distilled(run: Run) -> Run:
    """A run whose hidden outputs are its distilled images."""
    shown = sorted(
        (name for name in run.outputs if name.startswith(HIDDEN_PREFIX)),
        key=lambda name: int(name.removeprefix(HIDDEN_PREFIX)),
    )
    outputs = {name: array for name, array in run.outputs.items() if name not in shown}
    return replace(run, outputs=outputs, distilled=[run.outputs[name] for name in shown])


def _recorded_range(path: Path) -> tuple[float, float] | None:
    """The value range that a file says it has; of a damaged file, which is refused later, none."""
    try:
        if is_saved_model(path):
            details = json.loads((path / DETAILS_FILE).read_text(encoding="utf-8"))
        else:
            details = TFLiteFile(path.read_bytes()).details
        return validate_value_range(details["value_range"])
    except Exception:
        return None


def proof_batch(
    model: keras.Model,
    images: npt.ArrayLike | None,
    value_range: tuple[float, float] | None = None,
) -> npt.NDArray[Any]:
    """A batch of the model's input type, to run model and file on.

    Args:
        model: A built model with one input.
        images: Of the shape and scale that it takes. ``None``: those of ``proof_images``.
        value_range: Its pixel values of black and white; ``None``: unknown, and so not checked.

    Raises:
        ValueError: ``images`` are of another shape or scale, or there is none.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
        >>> proof_batch(model, np.zeros((2, 8, 8, 3))).dtype
        dtype('float32')
    """
    if images is None:
        return proof_images(model, value_range or GREY_LEVELS)
    spec = image_signature(model)
    batch = np.asarray(images)
    if not spec.shape.is_compatible_with(batch.shape) or not len(batch):
        raise ValueError(
            f"`images` must be at least one image of the shape the model takes, {spec.shape}. "
            f"Received: images of shape {batch.shape}"
        )
    if value_range is not None:
        check_range("images", batch, value_range)
    return batch.astype(spec.dtype.as_numpy_dtype)


def proof_images(
    model: keras.Model, value_range: tuple[float, float] = GREY_LEVELS
) -> npt.NDArray[Any]:
    """Parts of scikit-learn's two photographs, as a model takes them; the same in every run.

    Args:
        model: A built model with one image input.
        value_range: Its pixel values of black and white, to which whole grey levels are scaled.

    Returns:
        A batch of 2 to 64 images of the model's input type.

    Example:
        >>> proof_images(keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])).shape
        (64, 32, 32, 3)
    """
    from sklearn.datasets import load_sample_images  # slow to import

    spec = image_signature(model)
    layers = distillation_layers(model)
    channels_first = bool(layers) and layers[0].data_format == "channels_first"
    shape = [size or _OPEN_SIZE for size in spec.shape[1:]]
    height, width, channels = np.roll(shape, -1) if channels_first else shape
    count = int(np.clip(_PROOF_PIXELS // (height * width), _SMALLEST_COUNT, _LARGEST_COUNT))
    photos = np.stack(load_sample_images().images)
    # Photographs repeated for models that take larger images.
    times = (1, -(-height // photos.shape[1]) + 1, -(-width // photos.shape[2]) + 1, 1)
    tiled = np.tile(photos, times)
    rng = np.random.default_rng(0)
    images = np.stack([_crop(tiled[index % 2], height, width, rng) for index in range(count)])
    images = np.tile(images, -(-channels // 3))[..., :channels]
    if channels_first:
        images = np.moveaxis(images, -1, 1)
    scaled = from_grey_levels(images.astype(np.float32), *value_range)
    return np.asarray(scaled, spec.dtype.as_numpy_dtype)


def _crop(
    photo: npt.NDArray[np.uint8], height: int, width: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    top = rng.integers(photo.shape[0] - height + 1)
    left = rng.integers(photo.shape[1] - width + 1)
    return photo[top : top + height, left : left + width]
