"""Quantise the body of a TFLite file, and leave its distillation in float32.

Quantised to eight bits, the distillation's own matrix products move most of the distilled pixels
by more than a grey level, while the accuracy on benign images barely changes: nothing but the
defence breaks. So every operation on the way to the distilled image stays as it is.

Two measures keep an int8 body close to the float32 one: the ranges of activations are cut to the
least squared error, and the operations that lose most stay in float32.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fd_keras._extras import import_extra
from fd_keras.export.runtimes import run_tflite, tflite_interpreter
from fd_keras.export.signatures import CERTIFY, DISTILL, SERVING
from fd_keras.export.tflite_file import TFLiteFile

Quantization = Literal["none", "dynamic", "float16", "int8"]

QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

# Types of weights and activations in eight bits and similar.
_INTEGERS = ("INT4", "INT8", "UINT8", "INT16")

# A pattern that matches no operation.
_NOTHING = "$^"

# Number of samples that each operation, quantised alone, is run on to find the worst ones.
_TRIED_SAMPLES = 16

# An operation that holds more than this share of all weights is never left in float32: the file
# would become much larger.
_LARGEST_SHARE = 0.1

# Number of values in eight bits.
_LEVELS = 256

# Parts of a range that are tried. None below a third was ever the best for a network.
_SHARES = np.linspace(1, 0.4, 13)

# Rounds over both ends of a range, which depend on each other a little.
_ROUNDS = 2

# Values of each activation and image that decide which of the `_SHARES` is the best.
_VALUES = 1000


def quantized(
    content: bytes,
    quantize: Quantization,
    kept: Sequence[str],
    samples: npt.NDArray[Any] | None = None,
    int8_error: float = 1.0,
) -> bytes:
    """Quantise the weights, or weights and activations, of a TFLite file's body.

    Args:
        content: A float32 TFLite file.
        quantize: ``"dynamic"``: int8 weights. ``"float16"``: float16 weights. ``"int8"``: int8
            weights and activations; images and predictions stay float32.
        kept: Names of the tensors whose operations stay as they are.
        samples: For ``"int8"``: images as the model takes them.
        int8_error: For ``"int8"``: share of the error that may stay; see ``worst_operations``.

    Returns:
        The new file's content.

    Raises:
        ImportError: litert-quantizer is not installed.

    Example:
        >>> quantized(b"", "none", [])
        b''
    """
    if quantize == "none":
        return content
    # Of LiteRT; the intermediate values are what the ranges are measured on.
    warnings.filterwarnings("ignore", ".*`experimental_preserve_all_tensors`")
    if samples is None:
        return _quantized(content, _recipe(quantize, kept))
    ranges = _ranges(content, _recipe(quantize, kept), samples, kept)

    def alone(name: str) -> bytes:
        return _quantized(content, _recipe(quantize, kept, only=name), ranges)

    worst = worst_operations(content, alone, samples[:_TRIED_SAMPLES], kept, int8_error)
    return _quantized(content, _recipe(quantize, [*kept, *worst]), ranges)


def quantization_of(file: TFLiteFile) -> Quantization:
    """How a file is quantised, by the types of its tensors and not by what it says of itself.

    Args:
        file: A TFLite file.

    Returns:
        What more than half of the body is; the distillation does not count.

    Example:
        >>> import tempfile, keras
        >>> from fd_keras import export_tflite
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> path = export_tflite(model, tempfile.mkdtemp() + "/model.tflite", verify=False)
        >>> quantization_of(TFLiteFile(path.read_bytes()))
        'none'
    """
    distilled = file.details.get("distilled", [])
    weights, activations = file.value_types(file.needed_for(distilled) if distilled else [])
    if _share(activations, _INTEGERS) > 0.5:
        return "int8"
    if _share(weights, _INTEGERS) > 0.5:
        return "int8" if _share(activations, _INTEGERS) else "dynamic"
    return "float16" if _share(weights, ("FLOAT16",)) > 0.5 else "none"


def _share(counts: Counter[str], types: Sequence[str]) -> float:
    """The share of types among numbers in floating point or in few bits."""
    whole = sum(counts[name] for name in ("FLOAT32", "FLOAT16", *_INTEGERS))
    return sum(counts[name] for name in types) / max(whole, 1)


def _quantized(
    content: bytes, recipe: list[dict[str, Any]], ranges: dict[str, Any] | None = None
) -> bytes:
    # The steps of `Quantizer.quantize`, which shows a progress bar for each of them.
    manager = import_extra("litert_quantizer.recipe_manager", "export").RecipeManager()
    manager.load_quantization_recipe(recipe)
    model = import_extra("litert_quantizer.utils.tfl_flatbuffer_utils", "export").read_model(
        content
    )
    params = import_extra("litert_quantizer.params_generator", "export").ParamsGenerator(model)
    settings = params.generate_quantization_parameters(manager, ranges, enable_progress_bar=False)
    modifier = import_extra("litert_quantizer.model_modifier", "export").ModelModifier(model)
    return bytes(modifier.modify_model(settings, enable_progress_bar=False))


def _recipe(
    quantize: Quantization, kept: Sequence[str], only: str | None = None
) -> list[dict[str, Any]]:
    """The quantiser's recipe for all operations, or one alone, but for those that are kept."""
    types = import_extra("litert_quantizer.qtyping", "export")
    manager = import_extra("litert_quantizer.recipe_manager", "export").RecipeManager()
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
    """A regular expression for the operations with these outputs."""
    # An operation is known by the names of its outputs, each followed by a semicolon. The
    # quantiser cuts that text at 10,000 characters; a pattern may be longer.
    return "|".join(rf"(^|;){re.escape(name)};" for name in names) or _NOTHING


def _ranges(
    content: bytes,
    recipe: list[dict[str, Any]],
    samples: npt.NDArray[Any],
    kept: Sequence[str],
) -> dict[str, Any]:
    """The range of each activation that is quantised."""
    calibrator = import_extra("litert_quantizer.calibrator", "export")
    manager = import_extra("litert_quantizer.recipe_manager", "export").RecipeManager()
    manager.load_quantization_recipe(recipe)
    minimum_and_maximum = import_extra("litert_quantizer.utils.qsv_utils", "export").min_max_update
    measure = calibrator.Calibrator(content, qsv_update_func=minimum_and_maximum)
    measure._get_total_operations = lambda data: 0  # so few that it shows no progress bar
    data = [{"images": sample[np.newaxis]} for sample in samples]
    file = TFLiteFile(content)
    requests = {name: data for name in (SERVING, DISTILL, CERTIFY) if name in file.signatures}
    measure.calibrate(requests, manager)
    return tightened(measure.get_model_qsvs(), content, samples, {*kept, *file.output_tensors()})


def tightened(
    ranges: dict[str, Any],
    content: bytes,
    samples: npt.NDArray[Any],
    exact: Collection[str],
) -> dict[str, Any]:
    """Cut ranges of activations from the extremes to the least squared error.

    Args:
        ranges: The ``"min"`` and ``"max"`` of tensors over all samples, by name.
        content: The float32 TFLite file; only its first graph is read.
        samples: Images as the model takes them.
        exact: Names of tensors that keep their extremes, such as predictions, of which the largest
            is what the model is asked for.

    Returns:
        All ranges; those of tensors that are no activation of the first graph are unchanged.

    Example:
        >>> extremes = {"predictions": {"min": -9.0, "max": 9.0}}
        >>> tightened(extremes, b"", np.zeros((1, 8, 8, 3)), ["predictions"]) == extremes
        True
    """
    names = [name for name in ranges if name not in exact]
    result = dict(ranges)
    if not names:
        return result
    for name, values in _activations(content, samples, names).items():
        given = ranges[name]
        low, high = least_error_range(values, np.min(given["min"]), np.max(given["max"]))
        result[name] = {
            "min": np.full_like(given["min"], low),
            "max": np.full_like(given["max"], high),
        }
    return result


def _activations(
    content: bytes, samples: npt.NDArray[Any], names: Collection[str]
) -> dict[str, npt.NDArray[Any]]:
    """Values of activations by name, some of each sample."""
    _, interpreter_class = tflite_interpreter()
    interpreter = interpreter_class(model_content=content, experimental_preserve_all_tensors=True)
    (source,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(source["index"], (1, *samples.shape[1:]))
    interpreter.allocate_tensors()
    tensors = {d["name"]: d["index"] for d in interpreter.get_tensor_details()}
    found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names if name in tensors}
    rng = np.random.default_rng(0)
    for sample in samples:
        interpreter.set_tensor(source["index"], sample[np.newaxis])
        interpreter.invoke()
        for name, parts in found.items():
            values = np.ravel(interpreter.get_tensor(tensors[name]))
            parts.append(rng.choice(values, _VALUES) if values.size > _VALUES else values)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def least_error_range(values: npt.NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """The part of a range in which 256 levels reproduce values with the smallest squared error.

    A wider range has coarser levels. Where few values lie near the ends, clipping them is better
    for all the others.

    Args:
        values: Floats of any shape.
        low: Smallest value, of ``values`` or of those that they were drawn from.
        high: Largest value.

    Returns:
        Both ends; zero lies between them.

    Example:
        >>> values = np.append(np.linspace(-1, 1, 1000), 3)
        >>> low, high = least_error_range(values, -1, 3)
        >>> low, round(high, 1)
        (-1.0, 3.0)
        >>> low, high = least_error_range(np.repeat(values, 1000)[:-999], -1, 3)
        >>> high < 3
        True
    """
    flat = np.ravel(values)
    outer_low, outer_high = min(low, 0.0), max(high, 0.0)
    low, high = outer_low, outer_high
    for _ in range(_ROUNDS):
        low = min(outer_low * _SHARES, key=lambda end: _squared_error(flat, end, high))
        high = min(outer_high * _SHARES, key=lambda end: _squared_error(flat, low, end))
    return float(low), float(high)


def _squared_error(values: npt.NDArray[Any], low: float, high: float) -> float:
    if high <= low:
        return 0.0
    step = (high - low) / (_LEVELS - 1)
    zero = np.rint(-low / step)
    levels = np.clip(np.rint(values / step) + zero, 0, _LEVELS - 1)
    return float(np.mean(((levels - zero) * step - values) ** 2))


def worst_operations(
    content: bytes,
    alone: Callable[[str], bytes],
    samples: npt.NDArray[Any],
    left_alone: Sequence[str],
    error: float,
) -> list[str]:
    """The operations to leave in float32 so that only a part of the error of int8 stays.

    The error of an operation is the mean squared difference of the predictions when it alone is
    quantised. The sum over all operations stands for the error of a body wholly in int8. The worst
    operations are chosen until the sum of the others is small enough; operations with more than a
    tenth of the model's weights are never chosen.

    Args:
        content: A float32 TFLite file.
        alone: Returns the file with one operation quantised, given the name of its output.
        samples: Images as the model takes them; the differences are measured on them.
        left_alone: Names of tensors whose operations are in float32 anyway.
        error: Share of the sum that may stay, from 0 to 1; with 1 nothing is measured or chosen.

    Returns:
        Names of the outputs of the chosen operations, the worst first.

    Example:
        >>> worst_operations(b"", lambda name: b"", np.zeros((1, 8, 8, 3)), [], error=1.0)
        []

    References:
        Wu et al., "Integer quantization for deep learning inference", 2020, arXiv 2004.09602,
        section 5.1 (partial quantisation after a sensitivity analysis).
    """
    if error >= 1:
        return []
    weights = TFLiteFile(content).operation_weights()
    exact = run_tflite(content, samples).outputs
    errors = {
        name: _difference(exact, run_tflite(alone(name), samples).outputs)
        for name in weights
        if name not in left_alone
    }
    largest = _LARGEST_SHARE * sum(weights.values())
    chosen: list[str] = []
    stays, total = sum(errors.values()), sum(errors.values())
    for name in sorted(errors, key=lambda name: -errors[name]):
        if stays <= error * total:
            break
        if weights[name] <= largest:
            chosen.append(name)
            stays -= errors[name]
    return chosen


def _difference(
    exact: Mapping[str, npt.NDArray[Any]], found: Mapping[str, npt.NDArray[Any]]
) -> float:
    """Mean squared difference relative to the variance, of all outputs together."""
    return sum(
        float(np.mean((found[name] - values) ** 2) / max(np.var(values), np.finfo(float).tiny))
        for name, values in exact.items()
    )
