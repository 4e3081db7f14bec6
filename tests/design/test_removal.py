"""The removal model compared with simulations of coefficients, noise and rounding."""

from __future__ import annotations

import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.fft import dctn

from fd_keras.design import (
    band_distortion,
    band_removal,
    benign_distortion,
    empirical_distortion,
    empirical_removal_probability,
    generalized_gaussian_shape,
    perturbation_profile,
    perturbation_std,
    removal_probability,
)

STEPS = (1.0, 5.0, 25.0, 100.0)
SCALES = (0.1, 1.0, 5.0, 50.0)
EPSILONS = (0.3, 1.0, 2.0, 8.0, 40.0)
SHAPES = (0.35, 0.5, 1.0, 2.0)
SAMPLES = 200_000

positive = st.floats(1e-3, 1e3)
shapes = st.sampled_from([0.2, 0.5, 1.0, 2.0, 8.0])


# A standard deviation may be of any size; the epsilon of a "sign" perturbation, which has the same
# deviation, is refused below 0.1 grey levels.
removal_of_std = functools.partial(removal_probability, perturbation="gaussian")


def quantised(c, step):
    return step * np.round(c / step)


def coefficients(shape, scale, seed=7):
    """Generalised Gaussian samples with the given mean absolute value."""
    samples = stats.gennorm(shape).rvs(SAMPLES, random_state=np.random.default_rng(seed))
    return samples * (scale / np.mean(np.abs(samples)))


@pytest.mark.parametrize("shape", SHAPES)
def test_removal_agrees_with_simulation(shape):
    noise = np.random.default_rng(1).standard_normal(SAMPLES)
    for step, scale, epsilon in itertools.product(STEPS, SCALES, EPSILONS):
        c = coefficients(shape, scale)
        kept = quantised(c + epsilon * noise, step) == quantised(c, step)
        predicted = removal_probability(step, scale, epsilon, shape=shape)
        assert predicted == pytest.approx(np.mean(kept), abs=0.01), (step, scale, epsilon)


@pytest.mark.parametrize("shape", SHAPES)
def test_distortion_agrees_with_simulation(shape):
    for step, scale in itertools.product(STEPS, SCALES):
        c = coefficients(shape, scale)
        real = np.mean((c - quantised(c, step)) ** 2)
        # The rarest and largest samples carry a share of the variance of the peakiest shape.
        tolerance = 0.02 if shape >= 0.5 else 0.06
        predicted = benign_distortion(step, scale, shape=shape)
        assert predicted == pytest.approx(real, rel=tolerance), (step, scale)


def softened(c, step):
    return np.sign(c) * np.maximum(np.abs(c) - step / 2, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_dead_zone_agrees_with_simulation(shape):
    """Of the coefficients that soft thresholding removes, those that it still removes."""
    noise = np.random.default_rng(1).standard_normal(SAMPLES)
    for step, scale in itertools.product(STEPS, SCALES):
        c = coefficients(shape, scale)
        real = np.mean((c - softened(c, step)) ** 2)
        tolerance = 0.02 if shape >= 0.5 else 0.06
        predicted = benign_distortion(step, scale, shape=shape, quantizer="soft")
        assert predicted == pytest.approx(real, rel=tolerance), (step, scale)
        removed = softened(c, step) == 0
        if removed.sum() < 5_000:
            continue
        for epsilon in EPSILONS:
            kept = softened(c + epsilon * noise, step)[removed] == 0
            predicted = removal_probability(step, scale, epsilon, shape=shape, quantizer="soft")
            case = step, scale, epsilon
            assert predicted == pytest.approx(kept.mean(), abs=0.02), case
            seen = empirical_removal_probability(step, c[:2000], epsilon, quantizer="soft")
            assert seen == pytest.approx(predicted, abs=0.05), case


def test_dead_zone_of_wide_coefficients_is_a_cell_of_rounding():
    for epsilon in (0.5, 2.0, 20.0):
        soft, rounded = (
            removal_probability(9.0, [1e4, np.inf], epsilon, quantizer=quantizer)
            for quantizer in ("soft", "round")
        )
        np.testing.assert_allclose(soft, rounded, rtol=1e-3)
    for shape in (0.5, 1.0, 2.0):
        distortion = benign_distortion(6.0, [1e4, np.inf], shape=shape, quantizer="soft")
        np.testing.assert_allclose(distortion, 9.0, rtol=5e-3)


@settings(max_examples=25)
@given(st.floats(0.01, 1e3), st.floats(1e-3, 1e3), st.floats(0.01, 1e2), shapes)
def test_dead_zones_grow_with_steps(step, scale, epsilon, shape):
    soft = {"shape": shape, "quantizer": "soft"}
    steps = step * np.array([1.0, 1.1, 2.0, 30.0])
    assert (np.diff(removal_of_std(steps, scale, epsilon, **soft)) >= -2e-4).all()
    assert (np.diff(benign_distortion(steps, scale, **soft)) >= -1e-6 * scale**2).all()
    assert (np.diff(removal_of_std(step, scale, epsilon * steps, **soft)) <= 2e-4).all()


def test_samples_in_a_dead_zone():
    samples = np.array([-3.0, 0.0, 9.0, 8.0])
    assert empirical_distortion(8.0, samples, quantizer="soft") == np.mean([9, 0, 16, 16])
    assert empirical_removal_probability(8.0, samples[2:], 1.0, quantizer="soft") == 0
    with pytest.raises(ValueError, match="`quantizer` must be one of"):
        removal_probability(8.0, 1.0, 1.0, quantizer="hard")


@pytest.mark.parametrize("band", [(0, 0), (1, 0), (3, 4), (7, 7)])
@pytest.mark.parametrize("perturbation", ["sign", "uniform"])
def test_pixel_noise_has_the_coefficients_the_model_assumes(band, perturbation):
    # The one approximation in the perturbation: 64 pixels are as good as a Gaussian.
    rng = np.random.default_rng(2)
    pixels = rng.uniform(-1, 1, (50_000, 8, 8))
    noise = 2.0 * (np.sign(pixels) if perturbation == "sign" else pixels)
    d = dctn(noise, axes=(1, 2), norm="ortho")[(slice(None), *band)]
    c = coefficients(1.0, 4.0)[: len(d)]
    for step in (2.0, 8.0, 30.0):
        real = np.mean(quantised(c + d, step) == quantised(c, step))
        predicted = removal_probability(step, 4.0, 2.0, perturbation=perturbation)
        assert predicted == pytest.approx(real, abs=0.01)


def test_signs_have_the_deviation_of_their_size():
    for epsilon in EPSILONS:
        assert removal_probability(9.0, 5.0, epsilon) == removal_of_std(9.0, 5.0, epsilon)


def test_infinite_scale_is_uniform_within_the_cell():
    rng = np.random.default_rng(3)
    c, noise = rng.uniform(-5000, 5000, SAMPLES), rng.standard_normal(SAMPLES)
    for step, epsilon in itertools.product((4.0, 16.0), (0.5, 3.0, 20.0)):
        real = np.mean(quantised(c + epsilon * noise, step) == quantised(c, step))
        for shape in (0.3, 1.0, 2.0):
            predicted = removal_probability(step, np.inf, epsilon, shape=shape)
            assert predicted == pytest.approx(real, abs=0.005)
            inside = stats.norm(0, epsilon).expect(lambda d, q=step: 1 - d / q, 0, step)
            assert predicted == pytest.approx(2 * inside, abs=1e-7)
    assert benign_distortion(6.0, np.inf) == pytest.approx(3.0, rel=1e-12)
    assert benign_distortion(6.0, np.inf, shape=0.5) == pytest.approx(3.0, rel=1e-12)
    assert benign_distortion(6.0, 6e4) == pytest.approx(3.0, rel=1e-8)
    # And it is where finite scales lead.
    for shape in (0.5, 1.0, 2.0):
        removal = removal_probability(6.0, [1e4, 1e9, np.inf], 2.0, shape=shape)
        np.testing.assert_allclose(removal, removal[-1], rtol=1e-3)
        assert benign_distortion(6.0, 1e9, shape=shape) == pytest.approx(3.0, rel=1e-3)


def test_closed_form_and_quadrature_agree():
    step = np.logspace(-2, 3, 20)[:, np.newaxis, np.newaxis]
    scale = np.logspace(-3, 3, 15)[:, np.newaxis]
    std = np.logspace(-3, 3, 15)
    closed = removal_of_std(step, scale, std)
    np.testing.assert_allclose(closed, removal_of_std(step, scale, std, shape=1 + 1e-9), atol=1e-4)
    np.testing.assert_allclose(
        benign_distortion(step, scale), benign_distortion(step, scale, shape=1 + 1e-9), rtol=1e-4
    )


def test_empirical_model_agrees_with_the_distribution_it_samples():
    c = np.stack([coefficients(0.5, 3.0), coefficients(1.0, 10.0)], axis=1)
    scale, shape = np.array([3.0, 10.0]), np.array([0.5, 1.0])
    for step in (2.0, 10.0, 40.0):
        np.testing.assert_allclose(
            empirical_removal_probability(step, c, 2.0),
            removal_probability(step, scale, 2.0, shape=shape),
            atol=0.005,
        )
        np.testing.assert_allclose(
            empirical_distortion(step, c), benign_distortion(step, scale, shape=shape), rtol=0.02
        )


def test_empirical_model_sees_what_a_distribution_cannot():
    # All mass on a cell border: half of all perturbations cross it, however small.
    on_border = np.full(10, 14.999999)
    removal = functools.partial(empirical_removal_probability, perturbation="gaussian")
    assert removal(10.0, on_border, 0.01) == pytest.approx(0.5, abs=1e-3)
    assert removal(10.0, on_border - 5, 0.01) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [0.2, 0.5, 1.0, 2.0, 8.0])
def test_limits(shape):
    def removal(step, scale, epsilon):
        return removal_probability(step, scale, epsilon, shape=shape)

    assert removal(10.0, 5.0, 0.0) == pytest.approx(1.0, abs=1e-6)
    assert removal(10.0, 5.0, 1e9) == pytest.approx(0.0, abs=1e-5)
    assert removal(1e9, 5.0, 2.0) == pytest.approx(1.0, abs=1e-6)
    assert removal(1e-6, 5.0, 2.0) == pytest.approx(0.0, abs=1e-5)
    # A constant coefficient: nothing but the perturbation decides.
    inside = stats.norm.cdf(2.5) - stats.norm.cdf(-2.5)
    assert removal(10.0, 0.0, 2.0) == pytest.approx(inside, abs=1e-6)
    assert benign_distortion(10.0, 0.0, shape=shape) == pytest.approx(0.0, abs=1e-12)


@given(step=positive, factor=st.floats(1, 100), scale=positive, std=positive, shape=shapes)
@settings(max_examples=200)
def test_monotone(step, factor, scale, std, shape):
    def removal(step, std):
        return removal_of_std(step, scale, std, shape=shape)

    here = removal(step, std)
    assert 0 <= here <= 1
    assert removal(step, std * factor) <= here + 1e-9
    assert removal(step * factor, std) >= here - 1e-6
    distortion = benign_distortion(step, scale, shape=shape)
    assert benign_distortion(step * factor, scale, shape=shape) >= distortion * (1 - 1e-6)


@pytest.mark.parametrize("shape", [0.2, 1.0, 8.0])
def test_extreme_values_stay_finite(shape):
    step = np.array([1e-30, 1e-3, 1.0, 1e30])
    scale = np.array([0, 1e-30, 1.0, 1e30, np.inf])[:, np.newaxis]
    std = np.array([0, 1e-30, 1.0, 1e30])[:, np.newaxis, np.newaxis]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        removal = removal_of_std(step, scale, std, shape=shape)
        distortion = benign_distortion(step, scale, shape=shape)
    assert removal.shape == (4, 5, 4)
    assert distortion.shape == (5, 4)
    assert ((removal >= 0) & (removal <= 1)).all()
    assert (np.isfinite(distortion) & (distortion >= 0)).all()


@pytest.mark.parametrize("shape", [0.25, 0.5, 1.0, 1.7, 5.0])
def test_shape_is_recovered_from_the_moments(shape):
    distribution = stats.gennorm(shape)
    mean_abs = 2 * distribution.expect(lambda x: x, lb=0, ub=np.inf)
    assert generalized_gaussian_shape(distribution.std(), mean_abs) == pytest.approx(shape, 1e-4)


def test_shape_of_degenerate_moments():
    std, mean_abs = np.array([0.0, 1.0, 1.0]), np.array([0.0, 1e-6, 1.0])
    assert generalized_gaussian_shape(std, mean_abs).round(6).tolist() == [1.0, 0.2, 8.0]


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_perturbation_std_in_ycbcr(correlation):
    rng = np.random.default_rng(5)
    shared, own = rng.standard_normal((SAMPLES, 1)), rng.standard_normal((SAMPLES, 3))
    rgb = 3.0 * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
    # JFIF, from the definition of Cb and Cr as scaled differences to luma.
    luma = rgb @ [0.299, 0.587, 0.114]
    measured = [luma.std(), ((rgb[:, 2] - luma) / 1.772).std(), ((rgb[:, 0] - luma) / 1.402).std()]
    std = perturbation_std(3.0, color_space="ycbcr", channel_correlation=correlation)
    np.testing.assert_allclose(std, measured, rtol=0.01, atol=1e-9)


def test_perturbation_std_without_colour():
    assert perturbation_std(3.0, channel_correlation=0.5).tolist() == [3.0] * 3
    assert perturbation_std(3.0, color_space="ycbcr", channels=1).tolist() == [3.0]
    assert perturbation_std(3.0, "uniform", channels=5) == pytest.approx(np.full(5, 3**0.5))


def profile_oracle(change):
    """Per-block loop with scipy's DCT; edges complete the blocks."""
    height, width = change.shape[1:3]
    rows, columns = np.arange(-(-height // 8) * 8), np.arange(-(-width // 8) * 8)
    change = change[:, np.minimum(rows, height - 1)][:, :, np.minimum(columns, width - 1)]
    blocks = [
        dctn(image[y : y + 8, x : x + 8], axes=(0, 1), norm="ortho")
        for image in change
        for y in rows[::8]
        for x in columns[::8]
    ]
    blocks = np.moveaxis(blocks, -1, 1)
    return np.sqrt(np.mean(blocks**2, 0)), np.mean(np.abs(blocks), 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_profile_agrees_with_oracle(channels):
    rng = np.random.default_rng(6)
    benign = rng.random((70, 13, 24, channels), np.float32)
    adversarial = np.clip(benign + rng.normal(0, 0.01, benign.shape), 0, 1)
    change = (adversarial.astype(np.float64) - benign) * 255
    profile = perturbation_profile(benign, adversarial, value_range=(0, 1))
    std, mean_abs = profile_oracle(change)
    np.testing.assert_allclose(profile.std, std, rtol=1e-6)
    np.testing.assert_allclose(profile.mean_abs, mean_abs, rtol=1e-6)
    assert profile.epsilon == pytest.approx(np.abs(change).max())
    assert (profile.count, profile.color_space) == (70, "rgb")


def test_profile_in_ycbcr_of_integer_images():
    rng = np.random.default_rng(7)
    benign = rng.integers(0, 250, (4, 16, 16, 3), np.uint8)
    # In uint8 this difference would wrap around.
    adversarial = benign + rng.integers(-2, 3, benign.shape).clip(-benign.astype(int))
    change = adversarial.astype(np.float64) - benign
    luma = change @ [0.299, 0.587, 0.114]
    planes = [luma, (change[..., 2] - luma) / 1.772, (change[..., 0] - luma) / 1.402]
    profile = perturbation_profile(benign, adversarial.astype(np.uint8), color_space="ycbcr")
    np.testing.assert_allclose(profile.std, profile_oracle(np.stack(planes, -1))[0], rtol=1e-6)


def test_whole_model_on_images():
    """From images to the predictions: nothing but pixels, noise and rounding."""
    rng = np.random.default_rng(8)
    image = rng.gamma(0.5, 3.0, (8, 8)).cumsum(0)[::-1]  # a spectrum that falls
    c = stats.gennorm(0.6).rvs((20_000, 1, 8, 8), random_state=rng) * image
    c[..., 0, 0] += rng.uniform(500, 1500, (20_000, 1))
    d = dctn(rng.choice([-2.0, 2.0], c.shape), axes=(2, 3), norm="ortho")
    statistics = SimpleNamespace(
        mean=c.mean(0), std=c.std(0), mean_abs=np.abs(c).mean(0), color_space="rgb"
    )
    real = np.mean(quantised(c + d, 12.0) == quantised(c, 12.0), axis=0)
    np.testing.assert_allclose(band_removal(statistics, 12.0, 2.0), real, atol=0.02)
    mse = np.mean((c - quantised(c, 12.0)) ** 2, axis=0)
    np.testing.assert_allclose(band_distortion(statistics, 12.0), mse, rtol=0.05)


def test_a_mean_counts_as_spread():
    """The model is centred on zero: 3 off with a deviation of 4 is 5 in the mean square."""
    full = np.full((1, 8, 8), 1.0)
    off = SimpleNamespace(mean=3 * full, std=4 * full, mean_abs=3 * full, color_space="rgb")
    centred = SimpleNamespace(mean=0 * full, std=5 * full, mean_abs=3 * full, color_space="rgb")
    np.testing.assert_array_equal(band_removal(off, 9.0, 2.0), band_removal(centred, 9.0, 2.0))
    np.testing.assert_array_equal(band_distortion(off, 9.0), band_distortion(centred, 9.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: removal_probability(0, 1, 1), "`step` must be finite and positive. Received"),
        (lambda: removal_probability(np.nan, 1, 1), "step=nan"),
        (lambda: removal_probability("a", 1, 1), "`step` must be numbers"),
        (lambda: removal_probability(1, -1, 1), "`scale` must be not negative"),
        (lambda: removal_probability(1, np.nan, 1), "scale=nan"),
        (lambda: removal_probability(1, 1, -2), "`epsilon` must be finite and not negative"),
        (lambda: removal_probability(1, 1, np.inf), "epsilon=inf"),
        (lambda: removal_probability(1, 1, 1, shape=0.1), "`shape` must lie between 0.2 and 8"),
        (lambda: removal_probability(1, 1, 1, perturbation="x"), "`perturbation` must be one of"),
        (lambda: benign_distortion(-1, 1), "`step` must be finite and positive"),
        (lambda: empirical_distortion(1, []), r"`coefficients` must .* shape \(0,\)"),
        (lambda: empirical_distortion(1, 3.0), "`coefficients` must be finite samples"),
        (lambda: empirical_distortion(1, [np.nan]), "`coefficients` must be finite samples"),
        (lambda: empirical_distortion([1, 2], [3.0, 4.0]), r"`step` must broadcast .* \(2,\)"),
        (lambda: empirical_distortion([1, 2], np.ones((4, 3))), r"`step` must broadcast .* \(2,\)"),
        (
            lambda: removal_probability([1, 2], 1.0, [1, 2, 3]),
            r"must have shapes that broadcast.*step of shape \(2,\).*epsilon of shape \(3,\)",
        ),
        (
            lambda: generalized_gaussian_shape([1, 2], [1, 2, 3]),
            r"`std` and `mean_abs` must have shapes that broadcast. Received: std of shape \(2,\)",
        ),
        (
            lambda: empirical_removal_probability(1, [3.0, 4.0], [1, 2]),
            "`epsilon` must broadcast to the bands",
        ),
        (lambda: perturbation_std(1, channel_correlation=2), "`channel_correlation` must lie"),
        (lambda: perturbation_std(1, color_space="ycbcr", channels=4), "channels=4"),
        (lambda: perturbation_std(1, channels=0), "channels=0"),
        (lambda: perturbation_std(1, color_space="hsv"), "`color_space` must be one of"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([(2, 8, 8, 3), (1, 8, 8, 3)], {}, r"shape \(2, 8, 8, 3\), adversarial of shape"),
        ([(8, 8, 3), (8, 8, 3)], {}, "`benign` and `adversarial` must be images"),
        ([(0, 8, 8, 3), (0, 8, 8, 3)], {}, "`benign` and `adversarial` must be images"),
        ([(2, 8, 8, 4), (2, 8, 8, 4)], {"color_space": "ycbcr"}, "channels=4"),
        ([(2, 8, 8, 3), (2, 8, 8, 3)], {"value_range": (1, 0)}, r"value_range=\(1, 0\)"),
        ([(2, 8, 8, 3), (2, 8, 8, 3)], {"value_range": 255}, "value_range=255"),
        ([(2, 8, 8, 3), (2, 8, 8, 3)], {}, "`adversarial` must differ from `benign` by 0.1"),
    ],
)
def test_profile_errors(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        perturbation_profile(*(np.zeros(shape) for shape in shapes), **options)


def test_profile_refuses_nan():
    adversarial = np.ones((70, 8, 8, 1))  # more than are read at once
    adversarial[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="differ by nan"):
        perturbation_profile(np.zeros_like(adversarial), adversarial)
