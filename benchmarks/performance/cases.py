"""Functions to time, with their names, settings and batches."""

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

# Names that the goals refer to.
LAYER = "layer"
ONE_IMAGE = "layer, a batch of one image"
LARGE_IMAGE = "layer, one large image"
SOFT = "layer, soft thresholding"
UNIT = "layer, pixels from 0 to 1"
UNIT_SOFT = "layer, soft thresholding, pixels from 0 to 1"
GRADIENT = "gradient"
PASS = "one memory pass (x + 1)"
SIGNAL = "tf.signal end to end"
LIBJPEG = "libjpeg round trip (Pillow)"
ADJUST_QUALITY = "tf.image.adjust_jpeg_quality"
QUILTING = "image quilting"
TOTAL_VARIATION = "ART TotalVarMin"

JPEG_QUALITY = 75

# A call of one of these runs the whole function; on a CPU it returns when all is computed.
MODES = {
    "eager": lambda function: function,
    "graph": functools.partial(tf.function, autograph=False),
    "XLA": functools.partial(tf.function, autograph=False, jit_compile=True),
}


@dataclass(frozen=True)
class Case:
    """One function to time: one row of the results.

    Args:
        name: Name of the layer or baseline.
        setting: How it runs, such as ``"XLA"``.
        run: Function without arguments that processes the batch once.
        shape: Shape of the batch.
    """

    name: str
    setting: str
    run: Callable
    shape: tuple


def random_images(batch, size):
    """Uniform noise; the time of no case depends on the content."""
    return np.random.default_rng(1).integers(0, 256, (batch, size, size, 3), np.uint8)


def in_modes(name, function, pixels, modes=tuple(MODES)):
    """One case for each way to run a TensorFlow function of a batch."""
    pixels = tf.constant(pixels, tf.float32)
    prepared = {mode: MODES[mode](function) for mode in modes}
    return [
        Case(name, mode, functools.partial(run, pixels), tuple(pixels.shape))
        for mode, run in prepared.items()
    ]


def built(*arguments, channels=3, **options):
    """A layer that is built already: a compiled function may not create weights."""
    layer = FeatureDistillation(*arguments, **options)
    layer.build((None, None, None, channels))
    return layer


def one_of(name):
    """The row name of a baseline that processes one image."""
    return f"{name}, one image"


def grids_name(color, spins):
    """The row name of a colour space and a number of grids."""
    return f"layer, {color}, {spins} {'grid' if spins == 1 else 'grids'}"


def memory_pass(pixels):
    return in_modes(PASS, lambda x: x + 1, pixels, ("graph",))


def gradient_of(layer, with_forward=False):
    """A function that returns the layer's gradient; the batch serves as upstream gradient, too."""

    def gradient(pixels):
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            distilled = layer(pixels)
        backward = tape.gradient(distilled, pixels, output_gradients=pixels)
        return (distilled, backward) if with_forward else backward

    return gradient


def libjpeg(images, threads, name=LIBJPEG):
    """JPEG round trips by Pillow, which releases the GIL, one image for each task."""
    go_through = ThreadPoolExecutor(threads).map if threads > 1 else map
    return Case(
        name,
        "1 thread" if threads == 1 else f"{threads} threads",
        lambda: list(go_through(_round_trip, images)),
        images.shape,
    )


def _round_trip(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(buffer))


def measured(cases, scale, **about):
    """Time cases in turns in this process.

    Args:
        cases: ``Case`` objects, no two of the same name and setting.
        scale: Number of rounds and time budget.
        **about: Further entries of each row.

    Returns:
        A row for each: ``name``, ``setting``, ``ms_per_image``, ``ns_per_pixel``, ``shape``.
    """
    functions = {(c.name, c.setting): c.run for c in cases}
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
        for c in cases
    ]
