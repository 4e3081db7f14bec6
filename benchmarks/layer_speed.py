"""Time per image of the layer beside its own reference path and a JPEG round trip.

Run: ``python -m benchmarks.layer_speed [--size 224] [--batch 32] [--rounds 15]``
"""

import argparse
import io

import numpy as np
import tensorflow as tf
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.interleaved import median_seconds
from fd_keras import FeatureDistillation


def jpeg_round_trip(image):
    """Compress and decompress one image with Pillow at its default quality."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", subsampling=0)
    return np.asarray(Image.open(buffer))


def contenders(images):
    """What is compared: names and functions without arguments."""
    pixels = tf.constant(images, tf.float32)

    def compiled(function, **options):
        graph = tf.function(function, **options)
        return lambda: graph(pixels).numpy()

    return {
        "one memory pass (x + 1)": compiled(lambda x: x + 1),
        "layer": compiled(FeatureDistillation("liu2019")),
        "layer, XLA": compiled(FeatureDistillation("liu2019"), jit_compile=True),
        "layer, YCbCr": compiled(FeatureDistillation("jpeg")),
        "layer, 4 spins": compiled(FeatureDistillation("liu2019", cycle_spins=4)),
        "layer, tf.signal end to end": compiled(
            FeatureDistillation("liu2019", dct_method="signal")
        ),
        "Pillow JPEG round trip": lambda: [jpeg_round_trip(image) for image in images],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    shape = (arguments.batch, arguments.size, arguments.size, 3)
    images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    seconds = median_seconds(contenders(images), arguments.rounds)
    table = Table("", "ms per image", "times the layer", title=f"batch of shape {shape}")
    for name, value in seconds.items():
        ratio = value / seconds["layer"]
        table.add_row(name, f"{1e3 * value / arguments.batch:.3f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
