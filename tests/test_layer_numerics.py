"""The layer against the float64 oracle."""

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_keras import FeatureDistillation, QuantizationTable, preset_table
from fd_keras.kernels import distil

PRESETS = ["liu2019", "zigzag15", "balanced", "jpeg:50", "jpeg:95"]
# Float32 errors reach 3e-4 in a coefficient; nearer to a tie than this either side is right.
TIE_MARGIN = 5e-4
TOLERANCE = 1e-3


def assert_matches_oracle(actual, images, steps, color_space, cycle_spins):
    expected, distance = oracle.distil(images, steps, color_space, cycle_spins)
    decided = distance > TIE_MARGIN
    assert decided.mean() > 0.4, "the comparison would be empty"
    np.testing.assert_allclose(actual[decided], expected[decided], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dct_method", ["matmul", "signal"])
@pytest.mark.parametrize("cycle_spins", [1, 2, 4, 5])
@pytest.mark.parametrize("color_space", ["rgb", "ycbcr"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_match_oracle(preset, color_space, cycle_spins, dct_method, rng):
    images = rng.uniform(0, 255, (2, 21, 34, 3)).astype("float32")
    layer = FeatureDistillation(preset, color_space, cycle_spins, dct_method=dct_method)
    steps = preset_table(preset).steps
    assert_matches_oracle(layer(images).numpy(), images, steps, color_space, cycle_spins)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (1, 1), (7, 9), (33, 8), (64, 65)])
def test_sizes_and_formats_match_oracle(size, data_format, rng):
    images = rng.uniform(0, 255, (2, *size, 3)).astype("float32")
    layer = FeatureDistillation("jpeg:50", cycle_spins=2, data_format=data_format)
    if data_format == "channels_first":
        actual = layer(images.transpose(0, 3, 1, 2)).numpy().transpose(0, 2, 3, 1)
    else:
        actual = layer(images).numpy()
    assert_matches_oracle(actual, images, preset_table("jpeg:50").steps, "ycbcr", 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
def test_any_number_of_rgb_channels(channels, rng):
    images = rng.uniform(0, 255, (1, 16, 19, channels)).astype("float32")
    steps = rng.uniform(5, 60, (channels, 8, 8))
    actual = FeatureDistillation(steps)(images).numpy()
    assert_matches_oracle(actual, images, np.float32(steps), "rgb", 1)


def test_grey_image_is_the_luma_of_a_ycbcr_table(rng):
    images = rng.uniform(0, 255, (2, 16, 16, 1)).astype("float32")
    table = preset_table("jpeg:50")
    assert_matches_oracle(
        FeatureDistillation(table)(images).numpy(), images, table.steps[0], "ycbcr", 1
    )


@pytest.mark.parametrize("value_range", [(0, 1), (-1, 1), (16, 235)])
def test_value_range_scales_to_grey_levels(value_range, rng):
    low, high = value_range
    images = rng.uniform(0, 255, (2, 24, 24, 3)).astype("float32")
    layer = FeatureDistillation("liu2019", value_range=value_range)
    scaled = low + images / 255 * (high - low)
    actual = (layer(scaled).numpy() - low) / (high - low) * 255
    assert_matches_oracle(actual, images, preset_table("liu2019").steps, "rgb", 1)


@pytest.mark.parametrize("preset", PRESETS)
def test_integer_pixels_are_decided_alike(preset, photos):
    """Exact half-step ties, which integer pixels produce, fall as the specification says."""
    images = photos[:, 100:196, 200:296]
    table = preset_table(preset)
    actual = FeatureDistillation(preset)(images).numpy()
    assert_matches_oracle(actual, images, table.steps, table.color_space, table.cycle_spins)


def test_exact_tie_goes_up():
    """A constant block of 1 has DC 8, half a step of 16: the offset sends it up to 16."""
    out = FeatureDistillation(np.full((8, 8), 16.0))(np.ones((1, 8, 8, 1), "float32"))
    np.testing.assert_allclose(out, 2.0, atol=1e-5)


def test_neutral_grey_stays_neutral_in_ycbcr(rng):
    grey = np.repeat(rng.integers(0, 256, (1, 16, 16, 1)), 3, -1).astype("float32")
    table = QuantizationTable(
        np.stack([np.ones((8, 8)), np.full((8, 8), 97.0), np.full((8, 8), 97.0)]), "ycbcr"
    )
    out = FeatureDistillation(table)(grey).numpy()
    assert np.ptp(out, axis=-1).max() < 1e-3


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0.5, 200),
    spins=st.integers(1, 8),
    color_space=st.sampled_from(["rgb", "ycbcr"]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_random_tables_match_oracle(seed, scale, spins, color_space, height, width):
    rng = np.random.default_rng(seed)
    steps = np.float32(rng.uniform(0.5, 1.5, (3, 8, 8)) * scale)
    images = rng.uniform(0, 255, (1, height, width, 3)).astype("float32")
    actual = FeatureDistillation(steps, color_space, spins)(images).numpy()
    expected, distance = oracle.distil(images, steps, color_space, spins)
    decided = distance > TIE_MARGIN
    np.testing.assert_allclose(actual[decided], expected[decided], atol=TOLERANCE, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1, 200))
def test_distilling_twice_changes_nothing_more(seed, scale):
    """Unclipped, a distilled image consists of whole steps, which are their own rounding."""
    rng = np.random.default_rng(seed)
    steps = tf.constant(rng.uniform(0.5, 1.5, (3, 8, 8)) * scale, tf.float32)
    images = tf.constant(rng.uniform(0, 255, (1, 16, 16, 3)), tf.float32)
    once = distil(images, steps)
    np.testing.assert_allclose(distil(once, steps), once, atol=TOLERANCE)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_nan_stays_nan_and_stays_in_its_block(jit_compile, rng):
    """XLA's clamp on TensorFlow 2.15 turned NaN into 0."""
    images = rng.uniform(0, 255, (1, 16, 16, 3)).astype("float32")
    images[0, 3, 4, 1] = np.nan
    layer = FeatureDistillation("liu2019")
    out = tf.function(layer, jit_compile=jit_compile)(images).numpy()
    assert np.isnan(out[0, :8, :8]).all()
    assert np.isfinite(out[0, 8:]).all()
    assert np.isfinite(out[0, :, 8:]).all()


def test_infinite_pixels_do_not_crash():
    images = np.full((1, 8, 8, 1), np.inf, "float32")
    assert np.isnan(FeatureDistillation()(images).numpy()).all()


class TestGradient:
    """By default straight-through: rounding and clipping count as identity."""

    @pytest.mark.parametrize("dct_method", ["matmul", "signal"])
    @pytest.mark.parametrize("color_space", ["rgb", "ycbcr"])
    @pytest.mark.parametrize("value_range", [(0, 255), (0, 1)])
    def test_is_the_upstream_gradient(self, color_space, value_range, dct_method, rng):
        layer = FeatureDistillation(
            "jpeg:50", color_space, 2, value_range=value_range, dct_method=dct_method
        )
        # Black and white pixels too, where the result is clipped.
        images = rng.choice(value_range, (2, 13, 22, 3)).astype("float32")
        upstream = rng.normal(size=images.shape).astype("float32")
        x = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = layer(x)
        np.testing.assert_allclose(tape.gradient(out, x, upstream), upstream, atol=1e-5)

    @pytest.mark.parametrize("dct_method", ["matmul", "signal"])
    def test_smooth_one_follows_what_is_about_to_change(self, dct_method, rng):
        """That of round(x) + (x - round(x)) ** 3, coefficient by coefficient."""
        layer = FeatureDistillation("liu2019", dct_method=dct_method, gradient="smooth")
        image, upstream = rng.uniform(0, 255, (2, 1, 8, 8, 1)).astype("float32")
        x = tf.constant(image)
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = layer(x)
        np.testing.assert_array_equal(
            out, FeatureDistillation("liu2019", dct_method=dct_method)(image)
        )
        scaled = oracle.dctn(image[0, ..., 0], norm="ortho") / layer.quantization_table.steps[0]
        slope = 3 * (scaled - np.round(scaled + 1 / 997)) ** 2
        expected = oracle.idctn(
            slope * oracle.dctn(upstream[0, ..., 0], norm="ortho"), norm="ortho"
        )
        gradient = tape.gradient(out, x, upstream)[0, ..., 0]
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=0.05)

    def test_of_the_steps_is_the_rounding_error(self, rng):
        """d/dq of q * round(c / q) with d round = 1 is round(c / q) - c / q."""
        coefficients = rng.uniform(-200, 200, (8, 8))
        steps = rng.uniform(5, 60, (8, 8))
        basis = oracle.dctn(np.eye(8), axes=0, norm="ortho")
        block = (basis.T @ coefficients @ basis).astype("float32")
        variable = tf.Variable(steps[np.newaxis], dtype=tf.float32)
        with tf.GradientTape() as tape:
            out = distil(tf.constant(block[np.newaxis, ..., np.newaxis]), variable)
            # The coefficient (2, 3) of the result.
            wanted = tf.reduce_sum(out[0, ..., 0] * np.outer(basis[2], basis[3]).astype("float32"))
        expected = np.zeros((8, 8))
        scaled = coefficients[2, 3] / steps[2, 3]
        expected[2, 3] = np.round(scaled + 1 / 997) - scaled
        np.testing.assert_allclose(tape.gradient(wanted, variable)[0], expected, atol=1e-4)

    def test_reaches_the_input_of_a_compiled_training_step(self, rng):
        layer = FeatureDistillation("liu2019")
        # Mixing three colours at random can leave only black, whose square has no gradient.
        before = keras.layers.Dense(3, kernel_initializer="identity")
        images = tf.constant(rng.uniform(0, 255, (1, 8, 8, 3)), tf.float32)
        before(images), layer(images)

        @tf.function(jit_compile=True)
        def gradient():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(before(images)) ** 2)
            return tape.gradient(loss, before.trainable_variables)

        assert all(np.abs(g.numpy()).max() > 0 for g in gradient())
