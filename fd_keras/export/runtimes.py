"""Run exported files without Keras and fd_keras, and the Keras model they are compared with."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._extras import import_extra
from fd_keras.export.recording import recorded_distillations
from fd_keras.export.signatures import SERVING
from fd_keras.protection import named_outputs

Arrays = dict[str, npt.NDArray[Any]]

# A latency is the median over single images after a few that warm up.
_TIMED_RUNS = 20
_WARM_UP_RUNS = 3

# Images at a time in Keras.
_BATCH = 16

# If the SavedModel needed fd_keras or Keras, Python would import it unasked: here it cannot.
_SERVE = """
import sys
sys.modules["fd_keras"] = sys.modules["keras"] = None
directory, inputs, outputs, runs, *paths = sys.argv[1:]
sys.path += paths
import time
import numpy as np
import tensorflow as tf

def main():
    model, results = tf.saved_model.load(directory), {}
    for request, array in np.load(inputs).items():
        signature, _, name = request.partition("/")
        serve, array = model.signatures[signature], tf.constant(array)
        batches = [array[start : start + 16] for start in range(0, len(array), 16)]
        parts = [serve(**{name: batch}) for batch in batches]
        for output in parts[0]:
            values = np.concatenate([part[output].numpy() for part in parts])
            results[signature + "/" + output] = values
        times = []
        for index in range(int(runs)):
            start = time.perf_counter()
            serve(**{name: array[index % len(array)][None]})
            times.append(time.perf_counter() - start)
        results[signature + "/seconds"] = np.array(times)
    np.savez(outputs, **results)

try:
    main()
except Exception as error:
    sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
"""

# In characters, of what a failed process said last.
_LONGEST_REASON = 500


@dataclass(frozen=True)
class Run:
    """What a signature returned, and how long it took.

    Args:
        outputs: Arrays by name, for all images.
        distilled: The distilled images of each layer inside the model, where they were read.
        milliseconds: Median time of one image alone; 0 where it was not measured.
        distillation_milliseconds: The same of the distillation alone.
        radii: Certified radii by name, where they were read.
    """

    outputs: Arrays
    distilled: list[npt.NDArray[Any]]
    milliseconds: float
    distillation_milliseconds: float | None = None
    radii: Arrays = field(default_factory=dict)


def run_keras(model: keras.Model, images: npt.NDArray[Any]) -> Run:
    """Run a Keras model, in batches.

    Args:
        model: A Keras model with one input.
        images: Batch as the model takes it.

    Returns:
        The outputs, named as by ``named_outputs``, and the distilled images of each call of a
        distillation layer.

    Example:
        >>> from fd_keras import FeatureDistillation
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), FeatureDistillation("liu2019")])
        >>> run = run_keras(model, np.zeros((2, 8, 8, 3), np.float32))
        >>> list(run.outputs), len(run.distilled)
        (['predictions'], 1)
    """
    outputs, distilled = [], []
    for start in range(0, len(images), _BATCH):
        with recorded_distillations() as recorded:
            result = model(tf.constant(images[start : start + _BATCH]), training=False)
        outputs.append(named_outputs(result))
        distilled.append(recorded)
    joined = {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}
    return Run(joined, [np.concatenate(parts) for parts in zip(*distilled)], milliseconds=0)


def run_saved_model(
    directory: str | os.PathLike[str], requests: Mapping[str, Mapping[str, npt.NDArray[Any]]]
) -> dict[str, Run]:
    """Run signatures of a SavedModel in a new process that can import neither Keras nor fd_keras.

    The process imports nothing from the current directory, whatever lies there.

    Args:
        directory: A version that ``export_saved_model`` wrote.
        requests: For each signature, its input by name: any number of images.

    Returns:
        What each signature returned.

    Raises:
        RuntimeError: The process failed; the message ends with what it said last.

    Example:
        >>> from fd_keras import export_saved_model
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> version = export_saved_model(
        ...     model, tempfile.mkdtemp(), value_range=(0, 255), verify=False
        ... )
        >>> images = np.array([[[[3], [5]]]], np.float32)
        >>> runs = run_saved_model(version, {"serving_default": {"images": images}})
        >>> runs["serving_default"].outputs["predictions"].tolist()
        [[3.0, 5.0]]
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        arrays = {f"{s}/{name}": a for s, named in requests.items() for name, a in named.items()}
        np.savez(inputs, **arrays)  # type: ignore[arg-type]
        # Isolated (-I), Python puts neither the current directory nor PYTHONPATH on its path.
        command = [sys.executable, "-I", "-c", _SERVE, os.path.abspath(directory)]
        runs = str(_WARM_UP_RUNS + _TIMED_RUNS)
        process = subprocess.run(
            [*command, str(inputs), str(outputs), runs, *_import_paths()],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if process.returncode:
            *_, reason = ["", *process.stderr.strip().splitlines()]
            raise RuntimeError(
                "the SavedModel could not be run: "
                f"{reason[:_LONGEST_REASON] or f'exit code {process.returncode}'}"
            )
        try:
            with np.load(outputs) as archive:
                results = dict(archive)
        except ValueError as error:  # an array of objects
            raise RuntimeError(f"the SavedModel does not return numbers: {error}") from error
    return {signature: _run_of(signature, results) for signature in requests}


def _import_paths() -> list[str]:
    """Where this process finds packages, without the current directory."""
    here = os.path.realpath(os.curdir)
    paths = [os.path.abspath(path) for path in sys.path if path]
    return [path for path in paths if os.path.realpath(path) != here]


def _run_of(signature: str, results: Arrays) -> Run:
    prefix = f"{signature}/"
    outputs = {n.removeprefix(prefix): a for n, a in results.items() if n.startswith(prefix)}
    return Run(outputs, [], _median_milliseconds(outputs.pop("seconds")))


def tflite_interpreter() -> tuple[str, Any]:
    """The name and the ``Interpreter`` class of the TFLite runtime that is installed.

    Returns:
        LiteRT's where the extra ``export`` is installed, else TensorFlow's own.

    Example:
        >>> name, interpreter = tflite_interpreter()
    """
    try:
        litert = import_extra("ai_edge_litert.interpreter", "export")
    except ImportError:
        return "tf.lite", tf.lite.Interpreter
    return "LiteRT", litert.Interpreter


def run_tflite(
    content: bytes, images: npt.NDArray[Any], *, signature: str = SERVING, threads: int = 1
) -> Run:
    """Run a signature of a TFLite file, one image after the other.

    Args:
        content: The file's bytes.
        images: Batch as the model takes it.
        signature: Name of the signature.
        threads: Number of threads the runtime may use.

    Returns:
        What the signature returned.

    Example:
        >>> from fd_keras import export_tflite
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> path = export_tflite(model, tempfile.mkdtemp() + "/model.tflite", verify=False)
        >>> images = np.array([[[[3], [5]]]], np.float32)
        >>> run_tflite(path.read_bytes(), images).outputs["predictions"].tolist()
        [[3.0, 5.0]]
    """
    _, interpreter = tflite_interpreter()
    runner = interpreter(model_content=content, num_threads=threads).get_signature_runner(signature)
    return _run_each(lambda image: runner(images=image), images)


def run_openvino(
    path: str | os.PathLike[str], images: npt.NDArray[Any], positions: Mapping[str, int]
) -> Run:
    """Run a TFLite file in OpenVINO, in float32, one image after the other.

    Args:
        path: The file.
        images: Batch as the model takes it.
        positions: The place of each output among those of the file's first graph, which is
            what OpenVINO runs.

    Returns:
        What the first graph returned.

    Raises:
        ImportError: OpenVINO is not installed.

    Example:
        >>> images = np.zeros((1, 8, 8, 3), np.float32)
        >>> run_openvino("model.tflite", images, {"predictions": 0})  # doctest: +SKIP
    """
    openvino = import_extra("openvino", "openvino")
    # Without the hint, processors with bfloat16 would compute in it.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(os.fspath(path), "CPU", hints)

    def run(image: npt.NDArray[Any]) -> Arrays:
        results = model(image).to_tuple()
        return {name: np.array(results[position]) for name, position in positions.items()}

    return _run_each(run, images)


def _run_each(run: Callable[[npt.NDArray[Any]], Arrays], images: npt.NDArray[Any]) -> Run:
    parts, seconds = [], []
    for index in range(max(len(images), _WARM_UP_RUNS + 1)):
        start = time.perf_counter()
        outputs = run(images[index % len(images)][np.newaxis])
        seconds.append(time.perf_counter() - start)
        parts.append(outputs)
    joined = {
        name: np.concatenate([part[name] for part in parts[: len(images)]]) for name in parts[0]
    }
    return Run(joined, [], _median_milliseconds(np.array(seconds)))


def _median_milliseconds(seconds: npt.NDArray[np.float64]) -> float:
    return float(np.median(seconds[_WARM_UP_RUNS:]) * 1e3)
