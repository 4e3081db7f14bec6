"""Read and change TFLite files: signatures, outputs, operations and metadata."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from fd_keras.export.signatures import SERVING

# The entry of a file's metadata table that holds the exporter's JSON.
_METADATA_NAME = "fd_keras.json"

# Temporary outputs that show the tensors which hold distilled images.
HIDDEN_PREFIX = "fd_keras_distilled_"

_BUILTIN_NAMES = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()
}
_TYPE_NAMES = {code: name for name, code in vars(schema.TensorType).items() if name.isupper()}


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a TFLite file that ``export_tflite`` wrote.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     is_export(file.name)
        False
    """
    content = Path(path).read_bytes()
    try:
        return bool(TFLiteFile(content).details)
    except Exception:  # the reader raises many types on files that are damaged
        return False


class TFLiteFile:
    """The content of a TFLite file as an object to read and change.

    Args:
        content: The file's bytes.

    Raises:
        ValueError: They are no TFLite file.

    Example:
        >>> TFLiteFile(b"not a model")
        Traceback (most recent call last):
        ...
        ValueError: `content` must be a TFLite file
    """

    def __init__(self, content: bytes) -> None:
        # "TFL3" at byte 4 identifies the format.
        if content[4:8] != b"TFL3":
            raise ValueError("`content` must be a TFLite file")
        self.model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
        for buffer in self.model.buffers:
            # Large files, and litert-quantizer's, keep weights behind the flatbuffer; writing
            # it anew would lose them.
            if buffer.offset > 1:
                end = buffer.offset + buffer.size
                buffer.data = np.frombuffer(content[buffer.offset : end], np.uint8)
                buffer.offset = buffer.size = 0

    def to_bytes(self) -> bytes:
        """The file's bytes, with all changes."""
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))

    @property
    def signatures(self) -> list[str]:
        """Names of the signatures."""
        return [signature.signatureKey.decode() for signature in self.model.signatureDefs or []]

    def output_positions(self) -> dict[str, int]:
        """The place of each output of ``serving_default`` among its graph's outputs."""
        definition, graph = self._signature(SERVING)
        positions = list(graph.outputs)
        return {o.name.decode(): positions.index(o.tensorIndex) for o in definition.outputs}

    def output_tensors(self) -> list[str]:
        """Names of the tensors that ``serving_default`` returns."""
        _, graph = self._signature(SERVING)
        return [graph.tensors[index].name.decode() for index in graph.outputs]

    def rename_signatures(self, names: Mapping[str, str]) -> None:
        """Give signatures other names."""
        for signature in self.model.signatureDefs:
            name = names[signature.signatureKey.decode()].encode()
            signature.signatureKey = self.model.subgraphs[signature.subgraphIndex].name = name

    def hide_outputs(self) -> list[str]:
        """Remove the outputs named with ``HIDDEN_PREFIX``; return their tensors' names in order."""
        definition, graph = self._signature(SERVING)
        hidden = {o.name.decode(): o.tensorIndex for o in definition.outputs}
        hidden = {n: index for n, index in hidden.items() if n.startswith(HIDDEN_PREFIX)}
        definition.outputs = [o for o in definition.outputs if o.name.decode() not in hidden]
        kept = {output.tensorIndex for output in definition.outputs}
        graph.outputs = [index for index in dict.fromkeys(graph.outputs) if index in kept]
        return [
            graph.tensors[hidden[f"{HIDDEN_PREFIX}{number}"]].name.decode()
            for number in range(len(hidden))
        ]

    def show_outputs(self, tensors: Sequence[str]) -> None:
        """Undo ``hide_outputs``, given what it returned."""
        definition, graph = self._signature(SERVING)
        indices = {tensor.name.decode(): index for index, tensor in enumerate(graph.tensors)}
        for number, tensor in enumerate(tensors):
            entry = schema.TensorMapT()
            entry.name = f"{HIDDEN_PREFIX}{number}".encode()
            entry.tensorIndex = indices[tensor]
            definition.outputs.append(entry)
            if entry.tensorIndex not in graph.outputs:
                graph.outputs = [*graph.outputs, entry.tensorIndex]

    def needed_for(self, tensors: Sequence[str] | None, signature: str = SERVING) -> list[str]:
        """Names of the tensors that ``tensors`` (default: all outputs) are computed from."""
        _, graph = self._signature(signature)
        producers = {index: op for op in graph.operators for index in op.outputs}
        names = [tensor.name.decode() for tensor in graph.tensors]
        waiting = list(graph.outputs)
        if tensors is not None:
            waiting = [index for index, name in enumerate(names) if name in tensors]
        needed: set[int] = set()
        while waiting:
            index = waiting.pop()
            if index in producers and index not in needed:
                needed.update(producers[index].outputs)
                waiting.extend(producers[index].inputs)
        return [names[index] for index in sorted(needed)]

    def operation_weights(self) -> dict[str, int]:
        """Number of weights of each operation of ``serving_default``, by its first output."""
        _, graph = self._signature(SERVING)
        return {
            graph.tensors[op.outputs[0]].name.decode(): sum(
                int(np.prod(graph.tensors[index].shape))
                for index in op.inputs
                if index >= 0 and self._is_constant(graph.tensors[index])
            )
            for op in graph.operators
        }

    def value_types(self, apart_from: Collection[str]) -> tuple[Counter[str], Counter[str]]:
        """How many weights and activations are of each type, such as ``{"INT8": 900}``.

        Args:
            apart_from: Names of tensors of ``serving_default``; the operations that compute them
                do not count.
        """
        _, graph = self._signature(SERVING)
        tensors = graph.tensors
        operations = [
            operation
            for operation in graph.operators
            if tensors[operation.outputs[0]].name.decode() not in apart_from
        ]
        read = {index for operation in operations for index in operation.inputs if index >= 0}
        weights = [index for index in read if self._is_constant(tensors[index])]
        computed = {index for operation in operations for index in operation.outputs}
        return self._types(map(tensors.__getitem__, weights)), self._types(
            map(tensors.__getitem__, computed)
        )

    @staticmethod
    def _types(tensors: Iterable[Any]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for tensor in tensors:
            counts[_TYPE_NAMES[tensor.type]] += int(np.prod(tensor.shape))
        return counts

    def operations(self) -> Counter[str]:
        """How often each operation occurs, such as ``{"BATCH_MATMUL": 4}``."""
        names = [self._operation_name(code) for code in self.model.operatorCodes]
        return Counter(
            names[op.opcodeIndex] for graph in self.model.subgraphs for op in graph.operators
        )

    @property
    def details(self) -> dict[str, Any]:
        """The metadata that the exporter wrote; empty for a file of another origin."""
        for entry in self.model.metadata or []:
            if entry.name.decode() == _METADATA_NAME:
                content: dict[str, Any] = json.loads(
                    bytes(self.model.buffers[entry.buffer].data).decode()
                )
                return content
        return {}

    def add_details(self, details: Mapping[str, Any]) -> None:
        """Add a metadata entry of plain JSON."""
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = list(json.dumps(details).encode())
        entry.name, entry.buffer = _METADATA_NAME.encode(), len(self.model.buffers)
        self.model.buffers.append(buffer)
        self.model.metadata = [*(self.model.metadata or []), entry]

    def _is_constant(self, tensor: Any) -> bool:
        return self.model.buffers[tensor.buffer].data is not None

    def _signature(self, name: str) -> tuple[Any, Any]:
        for definition in self.model.signatureDefs or []:
            if definition.signatureKey.decode() == name:
                return definition, self.model.subgraphs[definition.subgraphIndex]
        raise ValueError(f"the TFLite file has no signature {name!r}, but {self.signatures}")

    @staticmethod
    def _operation_name(code: Any) -> str:
        # Old files keep the code in the deprecated field and leave the other at 0, which is ADD.
        name = _BUILTIN_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
        return f"CUSTOM:{code.customCode.decode()}" if name == "CUSTOM" else name
