"""The layer's share of a network's latency in LiteRT, on one thread."""

import functools
import tempfile
from pathlib import Path

import keras
import numpy as np

from benchmarks.interleaved import median_seconds
from experiments.shared_models import SHARED, load_builder
from fd_keras import FeatureDistillation, export_tflite, protect
from fd_keras._extras import import_extra

ALONE, SOFT_ALONE = "layer alone", "soft layer alone"
BODIES = {"float32": "none", "int8": "int8"}


def measure(scale):
    """A row for each body: milliseconds of one image with the layer, without it, of it alone."""
    rows, missing = [], []
    model = network(scale)
    with tempfile.TemporaryDirectory() as folder:
        for body, quantize in BODIES.items():
            try:
                rows.append({"body": body, **_latencies(model, quantize, Path(folder), scale)})
            except ImportError as error:
                missing.append({"what": f"LiteRT, {body} body", "reason": str(error)})
    return {"rows": rows, "not_run": missing}


def network(scale):
    """MobileNetV2, or a few convolutions, for images in [0, 1]."""
    return _mobilenet() if scale.mobilenet else _small_network(scale.size)


def _mobilenet():
    """MobileNetV2 1.0/224; its weights make no difference to its latency."""
    if (SHARED / "models").exists():
        build = load_builder("mobilenet_v2").build_mobilenet_v2
        return build(SHARED / "models" / "mobilenet_v2_imagenet_weights.npz")
    return keras.applications.MobileNetV2(weights=None, classifier_activation=None)


def _small_network(size):
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((size, size, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(4)]
    )


def _latencies(model, quantize, folder, scale):
    interpreter = import_extra("ai_edge_litert.interpreter", "export").Interpreter
    shape = model.input_shape[1:]
    images = np.random.default_rng(1).random((scale.rounds, *shape), np.float32)
    layer = FeatureDistillation("liu2019", value_range=(0, 1))
    models = {"without": model, "with": protect(model, layer)}
    if quantize == "none":
        soft = FeatureDistillation("liu2019", value_range=(0, 1), quantizer="soft")
        for name, single in ((ALONE, layer), (SOFT_ALONE, soft)):
            models[name] = keras.Sequential([keras.Input(shape), single])
    runs = {}
    for name, exported in models.items():
        path = folder / f"{quantize}-{name}.tflite"
        # Wholly in int8, so that both bodies are the same.
        options = {"quantize": quantize, "int8_error": 1, "single_image": True, "verify": False}
        export_tflite(exported, path, representative_data=images, **options)
        runner = interpreter(str(path), num_threads=1).get_signature_runner("serving_default")
        runs[name] = functools.partial(runner, images=images[:1])
    seconds = median_seconds(runs, 20 * scale.rounds, scale.budget)
    return {
        "milliseconds": {name: 1e3 * value for name, value in seconds.items()},
        "share": 1 - seconds["without"] / seconds["with"],
        "model": model.name,
    }
