"""What is timed: a function on a batch, its setting, and how many images it takes."""

import functools
import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks.interleaved import median_seconds
from fd_keras import FeatureDistillation

# What the goals speak of.
LAYER = "layer"
ONE_IMAGE = "layer, a batch of one image"
LARGE_IMAGE = "layer, one large image"
GRADIENT = "gradient"
PASS = "one memory pass (x + 1)"
SIGNAL = "tf.signal end to end"
LIBJPEG = "libjpeg round trip (Pillow)"
TOTAL_VARIATION = "ART TotalVarMin"

JPEG_QUALITY = 75

# A call of one of these runs the whole function; on a CPU it returns when all is computed.
MODES = {
    "eager": lambda function: function,
    "graph": functools.partial(tf.function, autograph=False),
    "XLA": functools.partial(tf.function, autograph=False, jit_compile=True),
}


@dataclass(frozen=True)
class Contender:
    """One row of a comparison.

    Args:
        name: What is compared.
        setting: In which of its settings, such as ``"XLA"``.
        run: Does it once.
        shape: Of the batch that it takes.
    """

    name: str
    setting: str
    run: Callable
    shape: tuple


def random_images(batch, size):
    """Images whose blocks are as dear as any: time does not depend on what they show."""
    return np.random.default_rng(1).integers(0, 256, (batch, size, size, 3), np.uint8)


def in_modes(name, function, pixels, modes=tuple(MODES)):
    """A TensorFlow function of a batch, once for each way to run it."""
    pixels = tf.constant(pixels, tf.float32)
    prepared = {mode: MODES[mode](function) for mode in modes}
    return [
        Contender(name, mode, functools.partial(run, pixels), tuple(pixels.shape))
        for mode, run in prepared.items()
    ]


def built(*arguments, channels=3, **options):
    """A layer that has its weights, which a compiled function may not create."""
    layer = FeatureDistillation(*arguments, **options)
    layer.build((None, None, None, channels))
    return layer


def grids_name(color, spins):
    """What the rows of a colour space and a number of grids are called."""
    return f"layer, {color}, {spins} {'grid' if spins == 1 else 'grids'}"


def memory_pass(pixels):
    return in_modes(PASS, lambda x: x + 1, pixels, ("graph",))


def gradient_of(layer, with_forward=False):
    """A function of a batch: the gradient of the layer, for an upstream one of its shape."""

    def gradient(pixels):
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            distilled = layer(pixels)
        backward = tape.gradient(distilled, pixels, output_gradients=pixels)
        return (distilled, backward) if with_forward else backward

    return gradient


def libjpeg(images, threads):
    """Pillow's round trips, one image for each task; it lets go of Python's lock meanwhile."""
    go_through = ThreadPoolExecutor(threads).map if threads > 1 else map
    return Contender(
        LIBJPEG,
        "1 thread" if threads == 1 else f"{threads} threads",
        lambda: list(go_through(_round_trip, images)),
        images.shape,
    )


def _round_trip(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(buffer))


def measured(contenders, scale, **about):
    """Milliseconds per image of each contender, all taken in turns in this process.

    Args:
        contenders: No two of the same name and setting.
        scale: How often.
        **about: What else the rows say.

    Returns:
        A row for each: ``name``, ``setting``, ``ms_per_image``, ``ns_per_pixel``, ``shape``.
    """
    functions = {(c.name, c.setting): c.run for c in contenders}
    seconds = median_seconds(functions, scale.rounds, scale.budget)
    return [
        {
            "name": c.name,
            "setting": c.setting,
            "ms_per_image": 1e3 * seconds[c.name, c.setting] / c.shape[0],
            "ns_per_pixel": 1e9 * seconds[c.name, c.setting] / math.prod(c.shape[:3]),
            "shape": list(c.shape),
            **about,
        }
        for c in contenders
    ]
