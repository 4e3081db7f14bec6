"""The parts of the layer alone, beside a memory pass."""

import numpy as np
import tensorflow as tf

from benchmarks.performance import cases as c
from fd_keras.dct import BLOCK_SIZE
from fd_keras.kernels import dct_basis

PRODUCTS = "its four matrix products alone"


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
    return {"rows": c.measured(found, scale), "not_run": []}


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
