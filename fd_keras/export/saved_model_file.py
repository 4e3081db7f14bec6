"""Reading a SavedModel directory without running it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

DETAILS_FILE = "assets.extra/fd_keras.json"
LABELS_FILE = "assets.extra/labels.txt"


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
