"""Write and read SavedModel directories: the graph, and the extra files beside it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import shown
from fd_keras._compat import last_activation
from fd_keras._extras import import_extra
from fd_keras._version import __version__
from fd_keras.classifier import known_threshold
from fd_keras.export.recording import distillation_layers
from fd_keras.protection import named_outputs

# No server looks for anything in this directory but for warm-up requests.
_EXTRAS = "assets.extra"
DETAILS_FILE = f"{_EXTRAS}/fd_keras.json"
LABELS_FILE = f"{_EXTRAS}/labels.txt"
WARMUP_FILE = f"{_EXTRAS}/tf_serving_warmup_requests"

# Held while TensorFlow writes or converts a SavedModel, which is not made for several threads: it
# changes settings of the process, such as the level of its log, and then sets them back.
EXCLUSIVE = threading.RLock()

# Typing alias: names of classes, or a text file with one on each line.
Labels = Sequence[str] | str | os.PathLike[str]


@dataclass(frozen=True)
class Endpoint:
    """One signature: a function of one tensor, and the tensor's shape, type and name.

    Args:
        function: Takes the tensor, returns a dictionary of named tensors.
        input: The tensor's specification; its name is the input's name.
    """

    function: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]
    input: tf.TensorSpec


def write_archive(
    tracked: Sequence[Any],
    endpoints: Mapping[str, Endpoint],
    directory: str | os.PathLike[str],
) -> None:
    """Write a SavedModel with the given signatures.

    ``keras.export.ExportArchive`` is used because ``tf.saved_model.save`` of a Keras 3 model
    gives a directory that Python loads, and the C API and so TF Serving do not.

    Args:
        tracked: Models, layers, and what else holds the weights that the functions read.
        endpoints: Signatures by name.
        directory: Where to write; must not exist.

    Raises:
        OSError: There is no room for it.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> images = tf.TensorSpec((None, 8, 8, 1), name="images")
        >>> target = tempfile.mkdtemp() + "/saved_model"
        >>> serve = Endpoint(lambda images: {"flat": model(images)}, images)
        >>> write_archive([model], {"serving_default": serve}, target)
        >>> list(tf.saved_model.load(target).signatures)
        ['serving_default']
    """
    with EXCLUSIVE, _silence():
        archive = keras.export.ExportArchive()
        # Not the models themselves: Keras 3 takes `predict_function` off a model while it looks
        # for tables in it, and another thread may be predicting.
        owner = tf.Module()
        owner.resources = archive.resources = _resources(tracked)
        archive.track(owner)
        for name, endpoint in endpoints.items():
            archive.add_endpoint(name, endpoint.function, [endpoint.input])
        try:
            archive.write_out(os.fspath(directory))
        except tf.errors.ResourceExhaustedError as error:
            if (full := os.strerror(errno.ENOSPC)) not in str(error):
                raise
            raise OSError(errno.ENOSPC, full, os.fspath(directory)) from error


def _resources(tracked: Sequence[Any]) -> list[Any]:
    """The lookup tables and the like that functions read, and do not hold as they do variables."""
    found: dict[int, Any] = {}
    for root in tracked:
        layers = root._flatten_layers() if isinstance(root, keras.layers.Layer) else [root]
        for layer in layers:
            # Keras 3 does not show TensorFlow what a layer keeps in lists and dictionaries.
            for owner in [layer, *_collected(list(vars(layer).values()))]:
                for part in tf.train.TrackableView(owner).descendants():
                    if isinstance(part, tf.saved_model.experimental.TrackableResource):
                        found[id(part)] = part
    return list(found.values())


def _collected(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _collected(item)
    elif isinstance(value, (tf.Module, tf.saved_model.experimental.TrackableResource)):
        yield value


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep TensorFlow and Keras from announcing a path that is about to be renamed.

    Both are told so for this thread alone.
    """
    thread, logger = threading.get_ident(), tf.get_logger()

    def is_shown(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.WARNING

    printing = keras.utils.is_interactive_logging_enabled()
    keras.utils.disable_interactive_logging()
    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)
        if printing:
            keras.utils.enable_interactive_logging()


def export_details(
    model: keras.Model,
    labels: Labels | None,
    value_range: tuple[float, float] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What exported files hold about themselves, as JSON types: value range, tables, labels.

    A single output that decides between two classes has its threshold in ``thresholds``.

    Args:
        model: The model that is exported.
        labels: Names of the classes, or a text file with one on each line.
        value_range: The model's pixel values of black and white; ``None``: unknown.
        **more: Further entries.

    Raises:
        ValueError: ``labels`` are not one line of text for each class.
        OSError: The file of labels cannot be read.

    Example:
        >>> from fd_keras import FeatureDistillation
        >>> body = [FeatureDistillation("liu2019"), keras.layers.Flatten(), keras.layers.Dense(2)]
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *body])
        >>> export_details(model, ["cat", "dog"], (0, 255))["value_range"]
        [0, 255]
    """
    layers = distillation_layers(model)
    return {
        "fd_keras": __version__,
        "model": model.name,
        "value_range": None if value_range is None else list(value_range),
        "tables": [layer.quantization_table.to_dict() for layer in layers],
        "labels": None if labels is None else _label_names(labels, _class_counts(model)),
        "thresholds": _thresholds(model),
        **more,
    }


def _label_names(labels: Labels, classes: set[int]) -> list[str]:
    if isinstance(labels, (str, os.PathLike)):
        try:
            names = Path(labels).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"`labels` must be a text file in UTF-8 ({error}). Received: labels={shown(labels)}"
            ) from error
    else:
        names = list(labels)
    one_line = all(isinstance(n, str) and n.strip() and len(n.splitlines()) == 1 for n in names)
    if not names or not one_line:
        raise ValueError(
            f"`labels` must be one line of text for each class. Received: labels={shown(labels)}"
        )
    if classes and len(names) not in classes:
        count = " or ".join(map(str, sorted(classes)))
        raise ValueError(
            f"`labels` must be one line of text for each of the {count} classes of `model`. "
            f"Received: {len(names)} labels"
        )
    return names


def _declared_outputs(model: keras.Model) -> dict[str, Any]:
    """Symbolic outputs by the names that exported files give them, without distilled images."""
    # A sequential model that was not called has `outputs` alone.
    structure = getattr(model, "output", None)
    if structure is None:
        structure = model.outputs if len(model.outputs) > 1 else model.outputs[0]
    return {name: part for name, part in named_outputs(structure).items() if name != "distilled"}


def _class_counts(model: keras.Model) -> set[int]:
    """The numbers of classes that the outputs may have; none where their shapes do not tell."""
    outputs = tf.nest.flatten(_declared_outputs(model))
    shapes = [tuple(output.shape) for output in outputs]
    # A single number for each image decides between two classes.
    return {max(shape[-1], 2) for shape in shapes if len(shape) > 1 and shape[-1] is not None}


def _thresholds(model: keras.Model) -> dict[str, float]:
    """What outputs of one number for each image must exceed for class 1, where that is known."""
    found = {
        name: known_threshold(name, last_activation(output))
        for name, output in _declared_outputs(model).items()
        if tuple(getattr(output, "shape", ()))[1:] == (1,)
    }
    return {name: threshold for name, threshold in found.items() if threshold is not None}


def write_extras(version: Path, details: dict[str, Any]) -> None:
    """Write ``fd_keras.json`` and ``labels.txt``, which describe a SavedModel.

    Args:
        version: The directory with ``saved_model.pb``.
        details: What ``export_details`` returned.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_extras(folder, {"labels": ["cat", "dog"]})
        >>> (folder / LABELS_FILE).read_text().splitlines()
        ['cat', 'dog']
    """
    file = version / DETAILS_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(details, indent=1), encoding="utf-8")
    if details["labels"] is not None:
        lines = "".join(f"{label}\n" for label in details["labels"])
        (version / LABELS_FILE).write_text(lines, encoding="utf-8")


def write_warmup(
    version: str | os.PathLike[str],
    model_name: str,
    requests: Mapping[str, Mapping[str, npt.NDArray[Any]]],
) -> None:
    """Write requests that TF Serving answers while it loads a version.

    Without them the first requests of users wait for what TensorFlow prepares lazily.

    Args:
        version: The directory with ``saved_model.pb``.
        model_name: Name under which the model is served.
        requests: For each signature, its input by name: each row becomes a request.

    Raises:
        ImportError: tensorflow-serving-api is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> folder = tempfile.mkdtemp()
        >>> images = np.zeros((2, 8, 8, 3), np.float32)
        >>> write_warmup(folder, "classifier", {"serving_default": {"images": images}})
        >>> len(list(tf.data.TFRecordDataset(folder + "/" + WARMUP_FILE)))
        2
    """
    logs = import_extra("tensorflow_serving.apis.prediction_log_pb2", "export")
    path = Path(version) / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for signature, inputs in requests.items():
            for index in range(len(next(iter(inputs.values())))):
                log = logs.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name = model_name
                request.model_spec.signature_name = signature
                for name, array in inputs.items():
                    request.inputs[name].CopyFrom(_tensor(array[index : index + 1]))
                writer.write(log.SerializeToString())


def _tensor(array: npt.NDArray[Any]) -> Any:
    return tf.make_tensor_proto(array, tf.string if array.dtype == object else None)


def is_saved_model(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a SavedModel directory.

    Args:
        path: Any path.

    Example:
        >>> is_saved_model("no_such_directory")
        False
    """
    return (Path(path) / "saved_model.pb").is_file()


def versions(directory: str | os.PathLike[str]) -> list[Path]:
    """The versions of a served model, from the oldest to the newest, whole or not.

    Args:
        directory: Base directory of the served model; it need not exist.

    Example:
        >>> versions("no_such_directory")
        []
    """
    found = [path for path in Path(directory).glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def newest_version(directory: str | os.PathLike[str]) -> Path | None:
    """The newest version of a served model, or ``None`` where there is none.

    Args:
        directory: Base directory of the served model; it need not exist.

    Example:
        >>> newest_version("no_such_directory") is None
        True
    """
    return next(filter(is_saved_model, reversed(versions(directory))), None)


def found_export(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """The file or version that a path to an export leads to.

    Args:
        path: A ``.tflite`` file, a SavedModel, or the base directory of a served model, which
            leads to its newest version.
        argument: Name of the caller's argument in the error message.

    Raises:
        ValueError: There is no export.

    Example:
        >>> found_export("no_such_directory")
        Traceback (most recent call last):
        ...
        ValueError: `path` must be a .tflite file, or a directory that holds saved_model.pb or
        numbered versions of it. Received: path='no_such_directory'
    """
    version = path if is_saved_model(path) or os.path.isfile(path) else newest_version(path)
    if version is None:
        raise ValueError(
            f"`{argument}` must be a .tflite file, or a directory that holds saved_model.pb or "
            f"numbered versions of it. Received: {argument}={os.fspath(path)!r}"
        )
    return Path(version)


def saved_model_operations(path: str | os.PathLike[str]) -> Counter[str]:
    """How often each operation occurs in the graph and its functions.

    Args:
        path: A SavedModel directory.

    Example:
        >>> saved_model_operations("served/classifier/1")  # doctest: +SKIP
        Counter({'Const': 12, 'MatMul': 4})
    """
    graph = _meta_graph(path).graph_def
    nodes = [*graph.node, *(n for function in graph.library.function for n in function.node_def)]
    return Counter(node.op for node in nodes)


def signature_names(path: str | os.PathLike[str]) -> list[str]:
    """The names of the signatures, without Keras' internal ones.

    Args:
        path: A SavedModel directory.

    Example:
        >>> signature_names("served/classifier/1")  # doctest: +SKIP
        ['serving_default', 'distill']
    """
    return [name for name in _meta_graph(path).signature_def if not name.startswith("__")]


def _meta_graph(path: str | os.PathLike[str]) -> Any:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    content = (Path(path) / "saved_model.pb").read_bytes()
    try:
        (graph,) = SavedModel.FromString(content).meta_graphs
    except Exception as error:  # protobuf's own type, or there is another number of graphs
        raise ValueError(
            f"`path` must hold a whole SavedModel; saved_model.pb is damaged ({error}). "
            f"Received: path={os.fspath(path)!r}"
        ) from error
    return graph
