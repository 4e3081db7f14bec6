"""The layer that is random at inference, which the package does not have."""

import json

import numpy as np
import oracle
import pytest
import tensorflow as tf

from experiments.harness import RESULTS
from experiments.randomised_layer import drawn, on_shifted_grid, page
from fd_keras.kernels import distil


@pytest.mark.parametrize("offset", [(0, 0), (3, 7), (4, 4)])
@pytest.mark.parametrize("size", [(16, 24), (13, 9)])
def test_shifted_grid_is_that_of_the_oracle(rng, offset, size):
    """Shifting the grid is distilling an image that continues beyond its edges."""
    image = rng.integers(0, 256, (1, *size, 1)).astype(np.float32)
    steps = np.full((8, 8), 40.0)
    found = on_shifted_grid(
        tf.constant(image),
        tf.constant(offset),
        lambda pixels: distil(pixels, tf.constant(steps[np.newaxis], tf.float32)),
    ).numpy()
    expected, distance = oracle.distil_plane(image[0, ..., 0].astype(float), steps, offset)
    close = np.abs(found[0, ..., 0] - expected)
    assert close[distance > 0.01].max() < 1e-2


def test_draws_differ_and_stay_in_their_range():
    first, second = (drawn(tf.constant([1, n]), step_jitter=0.2, random_grids=True) for n in (1, 2))
    assert not np.array_equal(first[0], second[0])
    assert np.abs(np.log(first[0])).max() <= 0.2 + 1e-6
    assert first[1].shape == (2,)
    image = tf.ones((1, 8, 8, 3))
    np.testing.assert_array_equal(on_shifted_grid(image, first[1], tf.identity), image)
    assert drawn(tf.constant([1, 2]), step_jitter=0.0, random_grids=False) == (None, None)


def test_the_page_agrees_with_the_json_file():
    results = json.loads((RESULTS / "randomised_layer.json").read_text())
    assert (RESULTS / "randomised_layer.md").read_text(encoding="utf-8") == page(results)
