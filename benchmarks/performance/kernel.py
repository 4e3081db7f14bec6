"""The parts of the layer alone, beside a memory pass, and the floor under the layer's time."""

import functools
import math

import numpy as np
import tensorflow as tf

from benchmarks.performance import cases as c
from fd_keras.dct import BLOCK_SIZE
from fd_keras.kernels import dct_basis

PRODUCTS = "its four matrix products alone"
LARGE_PRODUCT = "a product of two large square matrices"

# Multiplications of each number in a product along the width, whose matrix holds three channels,
# and along the height; there is one of each in the DCT, and in the inverse DCT.
_MULTIPLICATIONS = 2 * (3 * BLOCK_SIZE + BLOCK_SIZE)
_BYTES = 4  # of a float32


def measure(scale):
    """Rows of the layer and its parts, all on the same batch."""
    images = c.random_images(scale.batch, scale.size)
    parts = {
        "one product along the width": _along_the_width,
        "one product along the height": _along_the_height,
        PRODUCTS: _products,
        "its quantisation alone": _quantised,
        "its clipping alone": lambda x: tf.clip_by_value(x, 0.0, 255.0),
    }
    found = [
        *c.memory_pass(images),
        *c.in_modes(c.LAYER, c.built("liu2019"), images, ("graph", "XLA")),
    ]
    for name, part in parts.items():
        found += c.in_modes(name, part, images, ("graph", "XLA"))
    found += _large_product(scale.large // 2)
    return {"rows": c.measured(found, scale), "not_run": []}


def roofline(rows):
    """The floor under the layer's time, for each number of threads.

    A floor is the time of the layer's multiplications at the rate of a large matrix product, or of
    reading and writing the batch once at the rate of a memory pass, whichever is longer. The one
    that TensorFlow's kernels permit is the time of the products at their own shapes and of a pass.

    Returns:
        For each number of threads, a dictionary with rates per second and milliseconds per image.
    """
    floors = []
    for threads in sorted({row["threads"] for row in rows}):
        times, shapes = {}, {}
        for row in rows:
            if row["threads"] == threads and row["setting"] == "graph":
                times[row["name"]] = row["ms_per_image"]
                shapes[row["name"]] = row["shape"]
        if LARGE_PRODUCT not in times:  # an older file
            continue
        numbers = math.prod(shapes[c.LAYER][1:])
        multiplied = shapes[LARGE_PRODUCT][1] ** 3 / times[LARGE_PRODUCT]
        multiplications = _MULTIPLICATIONS * numbers
        floor = max(multiplications / multiplied, times[c.PASS])
        floors.append(
            {
                "threads": threads,
                "memory, GB/s": 2e-6 * _BYTES * numbers / times[c.PASS],
                "large product, 10^9 multiplications/s": 1e-6 * multiplied,
                "the layer's products, 10^9 multiplications/s": 1e-6
                * multiplications
                / times[PRODUCTS],
                "floor, ms": floor,
                "floor of these kernels, ms": times[PRODUCTS] + times[c.PASS],
                "layer, ms": times[c.LAYER],
            }
        )
    return floors


def _large_product(size):
    """A square matrix times itself: as fast as this machine multiplies."""
    matrix = tf.constant(np.random.default_rng(1).random((size, size)), tf.float32)
    run = tf.function(tf.matmul, autograph=False)
    return [c.Case(LARGE_PRODUCT, "graph", functools.partial(run, matrix, matrix), (1, size, size))]


def _along_the_width(x):
    """Every 8 pixels of three channels times a 24x24 matrix."""
    matrix = np.kron(dct_basis().T, np.eye(3))
    rows = tf.reshape(x, (-1, len(matrix)))
    return tf.matmul(rows, tf.constant(matrix, tf.float32))


def _along_the_height(x):
    """An 8x8 matrix times every 8 rows."""
    stride = x.shape[-2] * x.shape[-1]
    return tf.matmul(tf.constant(dct_basis(), tf.float32), tf.reshape(x, (-1, BLOCK_SIZE, stride)))


def _products(x):
    """DCT and inverse DCT, in the layer's order."""
    shape = x.shape
    for transform in (_along_the_width, _along_the_height, _along_the_height, _along_the_width):
        x = tf.reshape(transform(x), shape)
    return x


def _quantised(x):
    step = tf.fill((1, 1, x.shape[-2], x.shape[-1]), 20.0)
    return tf.round(x * (1 / step) + 0.001) * step
