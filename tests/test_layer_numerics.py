"""The layer against the float64 oracle."""

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_keras import FeatureDistillation, QuantizationTable, preset_table
from fd_keras.dct import grid_offsets
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


@settings(max_examples=25)
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


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1, 200))
def test_distilling_twice_changes_nothing_more(seed, scale):
    """Unclipped, a distilled image consists of whole steps, which are their own rounding."""
    rng = np.random.default_rng(seed)
    steps = tf.constant(rng.uniform(0.5, 1.5, (3, 8, 8)) * scale, tf.float32)
    images = tf.constant(rng.uniform(0, 255, (1, 16, 16, 3)), tf.float32)
    once = distil(images, steps)
    np.testing.assert_allclose(distil(once, steps), once, atol=TOLERANCE)


@pytest.mark.parametrize("quantizer", ["round", "soft"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_nan_stays_nan_and_stays_in_its_block(jit_compile, quantizer, rng):
    """XLA's clamp on TensorFlow 2.15 turned NaN into 0."""
    images = rng.uniform(0, 255, (1, 16, 16, 3)).astype("float32")
    images[0, 3, 4, 1] = np.nan
    layer = FeatureDistillation("liu2019", quantizer=quantizer)
    out = tf.function(layer, jit_compile=jit_compile)(images).numpy()
    assert np.isnan(out[0, 3, 4, 1])
    if quantizer == "round":  # XLA may take NaN for a number when it clips coefficients
        assert np.isnan(out[0, :8, :8]).all()
    assert np.isfinite(out[0, 8:]).all()
    assert np.isfinite(out[0, :, 8:]).all()


@pytest.mark.parametrize("quantizer", ["round", "soft"])
def test_infinite_pixels_do_not_crash(quantizer):
    images = np.full((1, 8, 8, 1), np.inf, "float32")
    assert np.isnan(FeatureDistillation(quantizer=quantizer)(images).numpy()).all()


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


class TestSoftThresholding:
    """The other quantiser, which has neither ties nor a made-up gradient."""

    @settings(max_examples=25)
    @given(
        seed=st.integers(0, 2**32 - 1),
        scale=st.floats(0.5, 200),
        spins=st.integers(1, 8),
        color_space=st.sampled_from(["rgb", "ycbcr"]),
        channels=st.sampled_from([1, 3]),
        size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        dct_method=st.sampled_from(["matmul", "signal"]),
        data_format=st.sampled_from(["channels_last", "channels_first"]),
    )
    def test_matches_oracle_on_every_pixel(
        self, seed, scale, spins, color_space, channels, size, dct_method, data_format
    ):
        rng = np.random.default_rng(seed)
        steps = np.float32(rng.uniform(0.5, 1.5, (channels, 8, 8)) * scale)
        images = rng.uniform(0, 255, (1, *size, channels)).astype("float32")
        layer = FeatureDistillation(
            steps,
            color_space,
            spins,
            dct_method=dct_method,
            data_format=data_format,
            quantizer="soft",
        )
        if data_format == "channels_first":
            actual = layer(images.transpose(0, 3, 1, 2)).numpy().transpose(0, 2, 3, 1)
        else:
            actual = layer(images).numpy()
        expected, _ = oracle.distil(images, steps, color_space, spins, "soft")
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE, rtol=0)

    @pytest.mark.parametrize("channels", [2, 5, 9])
    def test_any_number_of_rgb_channels(self, channels, rng):
        images = rng.uniform(0, 255, (1, 16, 19, channels)).astype("float32")
        steps = np.float32(rng.uniform(5, 60, (channels, 8, 8)))
        actual = FeatureDistillation(steps, quantizer="soft")(images).numpy()
        expected, _ = oracle.distil(images, steps, quantizer="soft")
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE, rtol=0)

    @pytest.mark.parametrize(
        ("size", "jit_compile"), [((1, 1), False), ((3, 21), False), ((13, 6), True)]
    )
    def test_sizes_that_a_graph_does_not_know(self, size, jit_compile, rng):
        """They mirror at the edges like known ones, with XLA and without it."""
        layer = FeatureDistillation("jpeg:50", cycle_spins=4, quantizer="soft")
        images = rng.uniform(0, 255, (2, *size, 3)).astype("float32")
        spec = tf.TensorSpec((None, None, None, 3))
        graph = tf.function(layer.__call__, input_signature=[spec], jit_compile=jit_compile)
        np.testing.assert_allclose(graph(images), layer(images), atol=TOLERANCE)

    def test_no_image_stays_none(self):
        layer = FeatureDistillation("jpeg:50", cycle_spins=2, quantizer="soft")
        graph = tf.function(layer.__call__, input_signature=[tf.TensorSpec((None, None, None, 3))])
        for shape in [(0, 8, 8, 3), (2, 0, 8, 3), (2, 8, 0, 3)]:
            assert graph(np.zeros(shape, "float32")).shape == shape

    @settings(max_examples=60)
    @given(
        seed=st.integers(0, 2**32 - 1),
        scale=st.floats(0.5, 200),
        distance=st.floats(0.1, 100),
        spins=st.sampled_from([1, 2, 4]),
        blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        channels=st.sampled_from([1, 3, 5]),
    )
    def test_moves_no_two_images_apart(self, seed, scale, distance, spins, blocks, channels):
        """Exactly so where sides are multiples of 8, and on 2 and 4 grids of 4."""
        rng = np.random.default_rng(seed)
        height, width = ((8 if spins == 1 else 4) * n for n in blocks)
        steps = tf.constant(rng.exponential(scale, (channels, 8, 8)) + 1e-3, tf.float32)
        x = rng.uniform(0, 255, (1, height, width, channels))
        y = x + rng.normal(0, distance, x.shape) * (rng.random(x.shape) < rng.random())
        moved = [
            distil(tf.constant(image, tf.float32), steps, cycle_spins=spins, quantizer="soft")
            for image in (x, y)
        ]
        assert np.linalg.norm(moved[1] - moved[0]) <= np.linalg.norm(y - x) + TOLERANCE

    @settings(max_examples=15)
    @given(
        seed=st.integers(0, 2**32 - 1),
        scale=st.floats(0.5, 200),
        spins=st.integers(1, 16),
        color_space=st.sampled_from(["rgb", "ycbcr"]),
        size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    )
    def test_bound_at_any_size(self, seed, scale, spins, color_space, size):
        """No farther apart than the images as they are continued to whole blocks, on average."""
        rng = np.random.default_rng(seed)
        steps = tf.constant(rng.exponential(scale, (3, 8, 8)) + 1e-3, tf.float32)
        x, y = rng.uniform(0, 255, (2, 1, *size, 3))
        options = {"color_space": color_space, "cycle_spins": spins, "quantizer": "soft"}
        moved = [distil(tf.constant(image, tf.float32), steps, **options) for image in (x, y)]
        continued = [
            np.linalg.norm(
                np.pad(
                    y - x,
                    ((0, 0), (dy, -(size[0] + dy) % 8), (dx, -(size[1] + dx) % 8), (0, 0)),
                    mode="symmetric",
                )
            )
            for dy, dx in grid_offsets(spins)
        ]
        factor = np.linalg.cond(oracle.to_ycbcr(np.eye(3)) + np.array([128, 0, 0]))
        assert factor == pytest.approx(1.752, abs=1e-3)
        bound = np.mean(continued) * (factor if color_space == "ycbcr" else 1)
        assert np.linalg.norm(moved[1] - moved[0]) <= bound + TOLERANCE

    def test_whole_blocks_in_ycbcr(self, rng):
        """Distances of Y, Cb and Cr do not grow; nor, hence, much those in RGB."""
        steps = tf.constant(rng.exponential(60, (3, 8, 8)) + 1e-3, tf.float32)
        x = rng.uniform(0, 255, (1, 16, 24, 3))
        y = x + rng.normal(0, 9, x.shape)
        u, v = (
            distil(tf.constant(image, tf.float32), steps, color_space="ycbcr", quantizer="soft")
            for image in (x, y)
        )
        before, after = (
            np.linalg.norm(oracle.to_ycbcr(np.float64(two)) - oracle.to_ycbcr(np.float64(one)))
            for one, two in ((x, y), (u, v))
        )
        assert after <= before + TOLERANCE

    @pytest.mark.parametrize("gradient", ["straight-through", "smooth"])
    def test_gradient_is_the_true_one(self, gradient, rng):
        """Of pixels and of steps, against differences of the oracle's float64."""
        steps = rng.uniform(20, 80, (3, 8, 8))
        image = rng.uniform(60, 190, (1, 8, 12, 3))
        upstream = rng.normal(size=image.shape)
        variable, x = tf.Variable(steps, dtype=tf.float32), tf.constant(image, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = distil(
                x,
                variable,
                color_space="ycbcr",
                cycle_spins=2,
                quantizer="soft",
                gradient=gradient,
            )
        found = tape.gradient(out, [x, variable], tf.constant(upstream, tf.float32))

        def objective(pixels, thresholds):
            return (oracle.distil(pixels, thresholds, "ycbcr", 2, "soft")[0] * upstream).sum()

        for at, gradients in ((image, found[0]), (steps, found[1])):
            for index in map(tuple, rng.integers(0, at.shape, (12, at.ndim))):
                move = np.zeros_like(at)
                move[index] = 1e-4
                both = [(move, 0), (-move, 0)] if at is image else [(0, move), (0, -move)]
                up, down = (objective(image + one, steps + two) for one, two in both)
                assert float(gradients[index]) == pytest.approx((up - down) / 2e-4, abs=2e-3)

    def test_gradient_passes_a_flat_image(self):
        """All its coefficients but DC are removed; the one of DC, also if it is 0, passes."""
        for level in (0.0, 128.0):
            x = tf.fill((1, 8, 8, 3), level)
            with tf.GradientTape() as tape:
                tape.watch(x)
                out = distil(x, tf.fill((3, 8, 8), 9.0), color_space="ycbcr", quantizer="soft")
            np.testing.assert_allclose(tape.gradient(out, x), np.ones(x.shape), atol=1e-5)

    def test_same_on_integer_pixels_in_every_way_to_run_it(self, photos):
        layer = FeatureDistillation("jpeg:50", cycle_spins=4, quantizer="soft")
        images = tf.constant(photos[:, 100:196, 200:296], tf.float32)
        eager = layer(images).numpy()
        for jit_compile in (False, True):
            out = tf.function(layer, jit_compile=jit_compile)(images)
            assert np.abs(out - eager).max() < 0.01

    def test_graph_rounds_nothing(self):
        layer = FeatureDistillation("jpeg:50", cycle_spins=4, quantizer="soft")
        graph = tf.function(layer).get_concrete_function(tf.TensorSpec((None, 32, 32, 3)))
        types = {operation.type for operation in graph.graph.get_operations()}
        assert not types & {"Round", "Rint", "Floor", "Ceil", "Cast", "FloorMod"}
        assert {"Minimum", "Maximum"} <= types
