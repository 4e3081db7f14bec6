"""Batches of images from arrays, data sets and iterables."""

import numpy as np
import pytest

from fd_keras.data.batches import image_batches, image_sample, parts_of_batch


def test_single_images_are_stacked_up_to_a_number_of_pixels(monkeypatch):
    monkeypatch.setattr("fd_keras.data.batches.PIXELS_AT_ONCE", 100 * 16 * 16)
    images = [np.zeros((16, 16, 3))] * 250
    sizes = [len(batch) for batch in image_batches(images, batch_size=1000)]
    assert sizes == [100, 100, 50]


def test_images_of_other_shapes_start_a_batch_of_their_own():
    images = [np.zeros((8, 8, 3))] * 2 + [np.zeros((8, 9, 3))] + [np.zeros((2, 8, 8, 3))]
    shapes = [batch.shape for batch in image_batches(images)]
    assert shapes == [(2, 8, 8, 3), (1, 8, 9, 3), (2, 8, 8, 3)]


@pytest.mark.parametrize("shape", [(5, 10, 10, 3), (1, 50, 20, 3), (2, 7, 64, 1)])
def test_parts_hold_every_pixel_once(monkeypatch, shape):
    monkeypatch.setattr("fd_keras.data.batches.PIXELS_AT_ONCE", 250)
    batch = np.zeros(shape, int)
    for part in parts_of_batch(batch):
        part += 1  # a view
    assert (batch == 1).all()


@pytest.mark.parametrize("more", [(), ("weights",)])
def test_samples_are_spread_over_labels_beside_whatever_else(more):
    labels = np.repeat([0, 1, 2], 30)
    images = np.broadcast_to(labels[:, np.newaxis, np.newaxis, np.newaxis], (90, 8, 8, 3))
    found = image_sample((images, labels, *more), 6)
    assert sorted(found[:, 0, 0, 0]) == [0, 0, 1, 1, 2, 2]
