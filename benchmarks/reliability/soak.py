"""Run four threads on images of changing sizes: memory, results and traces stay as they are."""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.reliability.fuzz import LEDGER

# What a run may grow by after it has warmed up.
MOST_MB = 32
SIZES = ((8, 8), (9, 17), (24, 16), (31, 40))
BATCHES = (1, 2, 5)


def subjects() -> dict:
    """Functions from images to results, by name; each is for one thread."""
    import keras

    import fd_keras
    from fd_keras.export.runtimes import tflite_interpreter

    keras.utils.set_random_seed(1)
    layer = fd_keras.FeatureDistillation("liu2019")
    inputs = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(pooled))
    protected = fd_keras.protect(model, layer)
    detector = fd_keras.DistillationDetector(model, fd_keras.FeatureDistillation("jpeg:50"))
    content = _tflite()
    _, runtime = tflite_interpreter()
    interpreter = runtime(model_content=content, num_threads=1)

    def litert(images):
        index = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(index, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, images)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return {
        "layer": lambda images: layer(images).numpy(),
        "predict": lambda images: protected.predict(images, verbose=0),
        "detector": lambda images: detector.score(images),
        "LiteRT": litert,
    }


def _tflite():
    import tempfile

    import fd_keras

    layer = fd_keras.FeatureDistillation("liu2019")
    with tempfile.TemporaryDirectory() as folder:
        path = fd_keras.export_tflite(layer, Path(folder, "layer.tflite"), verify=False)
        return path.read_bytes()


def memory() -> float:
    """MB of this process that are in memory."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


class Traces:
    """Counts how often layers are traced into a graph."""

    def __init__(self) -> None:
        import tensorflow as tf

        import fd_keras

        call = fd_keras.FeatureDistillation.call
        self.count = 0

        def counted(layer, inputs):
            if tf.inside_function():
                self.count += 1
            return call(layer, inputs)

        fd_keras.FeatureDistillation.call = counted


def soak(seconds: float, seed: int = 1) -> dict:
    """Run all threads for some time; return what was counted.

    Args:
        seconds: After warming up with every size.
        seed: Of the order of sizes.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    images = [
        generator.uniform(0, 255, (batch, *size, 3)).astype(np.float32)
        for size in SIZES
        for batch in BATCHES
    ]
    functions = subjects()
    traces = Traces()
    expected = {name: [call(batch) for batch in images] for name, call in functions.items()}
    faults: list[str] = []
    calls = dict.fromkeys(functions, 0)
    ended = threading.Event()

    def use(name):
        rng = random.Random(f"{seed} {name}")
        while not ended.is_set():
            chosen = rng.randrange(len(images))
            try:
                result = functions[name](images[chosen])
                if not np.array_equal(result, expected[name][chosen]):
                    distance = np.abs(result - expected[name][chosen]).max()
                    faults.append(f"{name}: {images[chosen].shape} differs by {distance:g}")
            except Exception as error:
                faults.append(f"{name}: {error!r}")
            calls[name] += 1
            if len(faults) > 20:
                return

    threads = [threading.Thread(target=use, args=(name,)) for name in functions]
    for thread in threads:
        thread.start()
    # Allocators of threads, too, have to warm up.
    ended.wait(min(60, seconds / 5))
    start, warm = memory(), traces.count
    ended.wait(seconds)
    ended.set()
    for thread in threads:
        thread.join()
    end = memory()
    if end - start > MOST_MB:
        faults.append(f"memory grew from {start:.0f} to {end:.0f} MB")
    if traces.count > warm:
        faults.append(f"{traces.count - warm} traces after warming up")
    return {
        "minutes": round(seconds / 60, 1),
        "calls": ", ".join(f"{name} {count}" for name, count in calls.items()),
        "shapes": len(images),
        "traces": traces.count,
        "memory_start_mb": round(start),
        "memory_end_mb": round(end),
        "faults": faults,
    }


def main(arguments: list[str] | None = None) -> int:
    """Soak; the exit code says whether there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    options = parser.parse_args(arguments)
    found = soak(60 * options.minutes)
    from benchmarks.reliability.ledger import Ledger

    ledger = Ledger(options.ledger)
    name = f"{len(ledger.content['soak']) + 1}, {time.strftime('%Y-%m-%d')}"
    ledger.content["soak"][name] = found
    ledger.write()
    print(found)
    return min(1, len(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
