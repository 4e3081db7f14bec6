"""One-pass and two-pass pipelines, at the encoder and at the decoder."""

import numpy as np
import pytest

from fd_keras import FeatureDistillation, QuantizationTable
from fd_keras.encoding import PIPELINES, make_pipeline
from fd_keras.jpeg import rounded_table

TABLE = QuantizationTable(np.full((8, 8), 40.3), "ycbcr", 2)


@pytest.fixture
def image(photos):
    return photos[1, 100:164, 200:280]


def test_one_pass_is_the_layer(image):
    pipeline = make_pipeline("one-pass", TABLE)
    assert pipeline.encode(image) is image
    assert pipeline.layer().quantization_table == TABLE


def test_encoder_stores_what_the_layer_would_compute(image):
    pipeline = make_pipeline("one-pass-encoder", TABLE)
    assert pipeline.layer() is None
    expected = FeatureDistillation(rounded_table(TABLE))(image).numpy()
    assert (np.abs(pipeline.encode(image) - expected) > 2.5).mean() < 0.03


def test_second_pass_removes_what_came_after_the_first(image, rng):
    """One grey level of noise is far from half a step of 40 around a stored image."""
    noise = rng.choice([-1.0, 1.0], image.shape)
    layer = make_pipeline("two-pass", TABLE).layer()
    stored = make_pipeline("two-pass", TABLE).encode(image)
    untouched, attacked = (layer(x).numpy() for x in (stored, stored + noise))
    assert (np.abs(untouched - attacked) > 0.01).mean() < 0.02
    # In one pass, coefficients lie anywhere between the ties, and some of them jump.
    layer = make_pipeline("one-pass", rounded_table(TABLE)).layer()
    untouched, attacked = (layer(x).numpy() for x in (image.astype(float), image + noise))
    assert (np.abs(untouched - attacked) > 0.01).mean() > 0.2


def test_rgb_table(image):
    pipeline = make_pipeline("two-pass", "liu2019")
    assert pipeline.encode(image).shape == image.shape
    assert pipeline.encode(image[..., :1]).shape == image[..., :1].shape


def test_unknown_name():
    with pytest.raises(ValueError, match="name='three-pass'"):
        make_pipeline("three-pass")
    assert len(PIPELINES) == 3


@pytest.mark.parametrize(("color_space", "step"), [("ycbcr", 100), ("rgb", 100), ("rgb", 128)])
def test_two_lattices_of_brightness_meet(color_space, step):
    """Flat images that the encoder stored are nothing new to the layer."""
    table = QuantizationTable(np.full((8, 8), step), color_space)
    pipeline = make_pipeline("two-pass", table)
    layer = pipeline.layer()
    moved = []
    for grey in range(40, 216, 5):
        stored = pipeline.encode(np.full((8, 8, 3), grey, np.uint8))
        moved.append(np.abs(layer(stored).numpy() - stored).max())
    assert max(moved) <= 1
