"""Quantising the body of a TFLite file and leaving its distillation in float32.

Quantised to eight bits, the distillation's own matrix products move most of the distilled pixels
by more than a grey level, while the accuracy on benign images barely changes: nothing but the
defence breaks. So every operation on the way to the distilled image stays as it is.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fd_keras.export.flatbuffer import TFLiteFile
from fd_keras.export.ranges import tightened
from fd_keras.export.sensitivity import worst_operations
from fd_keras.export.signatures import DISTILL, SERVING
from fd_keras.extras import import_extra

Quantization = Literal["none", "dynamic", "float16", "int8"]

QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

# The quantiser cuts an operation's name at 10,000 characters; a pattern may be longer.
_NOTHING = "$^"

# Of the samples; they decide which operations are the worst, and each one is tried on them.
_TRIED_SAMPLES = 16


def quantized(
    content: bytes,
    quantize: Quantization,
    kept: Sequence[str],
    samples: npt.NDArray[Any] | None = None,
    int8_error: float = 1.0,
) -> bytes:
    """The file with the weights, or all numbers, of its body in fewer bits.

    Args:
        content: A float32 TFLite file.
        quantize: ``"dynamic"``: int8 weights. ``"float16"``: float16 weights. ``"int8"``: int8
            weights and activations; images and predictions stay float32.
        kept: Names of the tensors whose operations stay as they are.
        samples: For ``"int8"``: images as the model takes them.
        int8_error: For ``"int8"``: share of its error that may stay; see ``worst_operations``.

    Returns:
        The new file's content.

    Raises:
        ImportError: ai-edge-quantizer is not installed.

    Example:
        >>> quantized(b"", "none", [])
        b''
    """
    if quantize == "none":
        return content
    with _silence():
        if samples is None:
            return _quantized(content, _recipe(quantize, kept))
        ranges = _ranges(content, _recipe(quantize, kept), samples, kept)

        def alone(name: str) -> bytes:
            return _quantized(content, _recipe(quantize, kept, only=name), ranges)

        worst = worst_operations(content, alone, samples[:_TRIED_SAMPLES], kept, int8_error)
        return _quantized(content, _recipe(quantize, [*kept, *worst]), ranges)


def _quantized(
    content: bytes, recipe: list[dict[str, Any]], ranges: dict[str, Any] | None = None
) -> bytes:
    module = import_extra("ai_edge_quantizer.quantizer", "export")
    result = module.Quantizer(content, recipe).quantize(ranges, enable_progress_report=False)
    return bytes(result.quantized_model)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the quantiser's progress bars and its interpreter's warning to ourselves."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _recipe(
    quantize: Quantization, kept: Sequence[str], only: str | None = None
) -> list[dict[str, Any]]:
    """The quantiser's recipe for all operations, or one alone, but for those that are kept."""
    types = import_extra("ai_edge_quantizer.qtyping", "export")
    manager = import_extra("ai_edge_quantizer.recipe_manager", "export").RecipeManager()
    everything = types.TFLOperationName.ALL_SUPPORTED
    if quantize == "int8":
        pattern = ".*" if only is None else _pattern([only])
        manager.add_static_config(pattern, everything, activation_num_bits=8, weight_num_bits=8)
    elif quantize == "dynamic":
        manager.add_dynamic_config(".*", everything, num_bits=8)
    else:
        manager.add_quantization_config(
            ".*",
            everything,
            types.OpQuantizationConfig(
                weight_tensor_config=types.TensorQuantizationConfig(
                    num_bits=16, dtype=types.TensorDataType.FLOAT
                ),
                compute_precision=types.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            ),
            algorithm_key="float_casting",
        )
    manager.add_quantization_config(_pattern(kept), everything, None, algorithm_key="no_quantize")
    for end in (types.TFLOperationName.INPUT, types.TFLOperationName.OUTPUT):
        manager.add_quantization_config(".*", end, None, algorithm_key="no_quantize")
    recipe: list[dict[str, Any]] = manager.get_quantization_recipe()
    return recipe


def _pattern(names: Sequence[str]) -> str:
    """What matches the operations with these outputs."""
    # An operation is known by the names of its outputs, each followed by a semicolon.
    return "|".join(rf"(^|;){re.escape(name)};" for name in names) or _NOTHING


def _ranges(
    content: bytes,
    recipe: list[dict[str, Any]],
    samples: npt.NDArray[Any],
    kept: Sequence[str],
) -> dict[str, Any]:
    """The range of each activation that is quantised."""
    calibrator = import_extra("ai_edge_quantizer.calibrator", "export")
    manager = import_extra("ai_edge_quantizer.recipe_manager", "export").RecipeManager()
    manager.load_quantization_recipe(recipe)
    minimum_and_maximum = import_extra("ai_edge_quantizer.utils.qsv_utils", "export").min_max_update
    measure = calibrator.Calibrator(content, qsv_update_func=minimum_and_maximum)
    data = [{"images": sample[np.newaxis]} for sample in samples]
    file = TFLiteFile(content)
    requests = {name: data for name in (SERVING, DISTILL) if name in file.signatures}
    measure.calibrate(requests, manager)
    return tightened(measure.get_model_qsvs(), content, samples, {*kept, *file.output_tensors()})
