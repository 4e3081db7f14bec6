"""Write and read SavedModel directories, which every exported format starts from."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

DETAILS_FILE = "assets.extra/fd_keras.json"
LABELS_FILE = "assets.extra/labels.txt"


@dataclass(frozen=True)
class Endpoint:
    """One signature: a function of one tensor, and that tensor's shape, type and name.

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
    gives a directory that Python loads and the C API, so TF Serving, does not.

    Args:
        tracked: Models, layers, and what else holds the weights that the functions read.
        endpoints: Signatures by name.
        directory: Where to write; must not exist.

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
    archive = keras.export.ExportArchive()
    for resource in tracked:
        archive.track(resource)
    # Keras 2 saves no tables but its own layers' unless they hang on the archive itself.
    archive.resources = [r for r in tracked if not isinstance(r, keras.layers.Layer)]
    for name, endpoint in endpoints.items():
        archive.add_endpoint(name, endpoint.function, [endpoint.input])
    with _silence():
        archive.write_out(os.fspath(directory))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep TensorFlow and Keras from announcing a path that is about to be renamed."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        # Keras 2.15 prints, and has no argument against it.
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def is_saved_model(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a SavedModel directory.

    Args:
        path: Any path.

    Example:
        >>> is_saved_model("no_such_directory")
        False
    """
    return (Path(path) / "saved_model.pb").is_file()


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


def signature_definitions(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``SignatureDef`` of each signature, without Keras' internal ones.

    Args:
        path: A SavedModel directory.

    Example:
        >>> signature_definitions("served/classifier/1")["serving_default"]  # doctest: +SKIP
    """
    return {
        name: definition
        for name, definition in _meta_graph(path).signature_def.items()
        if not name.startswith("__")
    }


def saved_model_details(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the exporter wrote about a SavedModel; empty for one of other origin.

    Args:
        path: A SavedModel directory.

    Example:
        >>> saved_model_details("no_such_directory")
        {}
    """
    file = Path(path) / DETAILS_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _meta_graph(path: str | os.PathLike[str]) -> Any:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    content = (Path(path) / "saved_model.pb").read_bytes()
    (graph,) = SavedModel.FromString(content).meta_graphs
    return graph
