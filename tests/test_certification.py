"""Encoded images reach the radius of their table, and certificates hold."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from fd_keras import FeatureDistillation, QuantizationTable, preset_table
from fd_keras.certification import certified_table, certify, nominal_radius, radii
from fd_keras.dct import RGB_TO_YCBCR, TIE_OFFSET, YCBCR_TO_RGB, level_shift
from fd_keras.encoding import encode, make_pipeline
from fd_keras.jpeg import encode_jpeg, rounded_table
from fd_keras.kernels import TOLERANCE, coefficients, l2_gains, linf_gains

BASIS = dctn(np.eye(64).reshape(64, 8, 8), axes=(1, 2), norm="ortho")  # pixel, u, v

# Nearly black images look like ones that were scaled to 0..1, which the layer warns of.
pytestmark = pytest.mark.filterwarnings("ignore:.*value_range:UserWarning")

SHAPES = [(8, 8, 1), (8, 8, 3), (1, 1, 3), (9, 13, 3), (8, 3, 1), (20, 17, 3), (64, 40, 3)]


def exact_indices(image, table):
    """Indices by scipy in float64, of an image of whole blocks; and the coefficients' residuals."""
    x = np.float64(image) - level_shift(table.color_space)
    if table.color_space == "ycbcr" and x.shape[-1] == 3:
        x = x @ RGB_TO_YCBCR.T
    height, width, channels = x.shape
    padded = np.pad(x, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    rows, columns = padded.shape[0] // 8, padded.shape[1] // 8
    blocks = padded.reshape(rows, 8, columns, 8, channels).transpose(0, 2, 4, 1, 3)
    found = dctn(blocks, axes=(-2, -1), norm="ortho")
    return np.round(found / table.steps_for(channels) + TIE_OFFSET)


def worst_perturbation(shape, limiting, color_space):
    """The L-inf perturbation of size 1 that moves the limiting coefficient most."""
    u, v = limiting.band
    pattern = BASIS[:, u, v].reshape(8, 8)[..., np.newaxis]
    weights = np.eye(shape[-1])[limiting.channel]
    if color_space == "ycbcr" and shape[-1] == 3:
        weights = RGB_TO_YCBCR[limiting.channel]
    change = np.zeros(shape)
    top, left = 8 * limiting.row, 8 * limiting.column
    change[top : top + 8, left : left + 8] = np.sign(pattern * weights)
    return change


@st.composite
def images(draw, shapes=tuple(SHAPES)):
    shape = draw(st.sampled_from(shapes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["noise", "black and white", "gradient", "bright"]))
    if kind == "noise":
        return rng.integers(0, 256, shape, np.uint8)
    if kind == "black and white":
        return rng.choice(np.array([0, 255], np.uint8), shape)
    if kind == "bright":
        return rng.integers(235, 256, shape, np.uint8)
    ramp = np.add.outer(np.arange(shape[0]), 3 * np.arange(shape[1]))[..., np.newaxis]
    return np.uint8((ramp + rng.integers(0, 9, shape)) % 256)


@settings(max_examples=60)
@given(images(), st.sampled_from([1, 2, 3.5, 4]), st.sampled_from(["rgb", "ycbcr"]))
def test_every_encoded_image_reaches_the_radius(image, epsilon, color_space):
    table = certified_table(epsilon, color_space=color_space)
    encoded = encode(image, table)
    assert encoded.dtype == np.uint8
    assert encoded.shape == image.shape
    assert certify(encoded, table).holds(epsilon).all()


def test_a_dark_block_near_a_tie_reaches_the_radius():
    """Its Cr, 12.4785 by a step of 25, is put on a level that is not the nearest one."""
    table = certified_table(1, color_space="ycbcr")
    color = 128 + YCBCR_TO_RGB @ np.array([-987.995, -18.979, 12.4785]) / 8
    image = np.broadcast_to(np.float32(color), (8, 8, 3))
    assert certify(encode(image, table), table).holds(1).all()


@settings(max_examples=40)
@given(images(), st.integers(0, 1000), st.sampled_from(["rgb", "ycbcr"]), st.booleans())
def test_any_table_reaches_its_nominal_radius(image, seed, color_space, shared):
    rng = np.random.default_rng(seed)
    channels = 1 if shared else image.shape[-1]
    table = QuantizationTable(rng.uniform(3, 90, (channels, 8, 8)), color_space)
    radius = certify(encode(image, table), table).linf_radius[0]
    assert radius >= nominal_radius(table, image.shape[-1]) - 1e-3


@settings(max_examples=60)
@given(
    images(((16, 24, 3), (8, 8, 1), (24, 16, 1))),
    st.sampled_from(["rgb", "ycbcr"]),
    st.sampled_from([1, 2, 4]),
)
def test_the_limiting_band_moves_just_beyond_the_radius(image, color_space, epsilon):
    table = certified_table(epsilon, color_space=color_space)
    encoded = np.float64(encode(image, table))
    certificate = certify(encoded, table)
    radius, limiting = certificate.linf_radius[0], certificate.limiting[0]
    before = exact_indices(encoded, table)
    change = worst_perturbation(encoded.shape, limiting, color_space)
    for sign in (1, -1):
        within = exact_indices(encoded + 0.999 * radius * sign * change, table)
        np.testing.assert_array_equal(within, before)
    beyond = [exact_indices(encoded + 1.01 * radius * s * change, table) for s in (1, -1)]
    index = limiting.row, limiting.column, limiting.channel, *limiting.band
    assert any(moved[index] != before[index] for moved in beyond)


@settings(max_examples=30)
@given(images(), st.sampled_from(["rgb", "ycbcr"]), st.integers(0, 1000), st.booleans())
def test_the_distilled_image_is_the_same_to_the_bit(image, color_space, seed, corners):
    table = certified_table(2, color_space=color_space)
    layer = FeatureDistillation(table)
    encoded = np.float32(encode(image, table))
    rng = np.random.default_rng(seed)
    size = 0.999 * certify(encoded, table).linf_radius[0]
    change = (
        rng.choice([-size, size], encoded.shape)
        if corners
        else rng.uniform(-size, size, encoded.shape)
    )
    attacked = np.float32(encoded + change)
    np.testing.assert_array_equal(layer(attacked), layer(encoded))


@settings(max_examples=30)
@given(images(), st.sampled_from(["rgb", "ycbcr"]), st.integers(0, 1000))
def test_l2_radius_holds_at_repeated_edges(image, color_space, seed):
    table = certified_table(20, color_space=color_space, norm="2")
    layer = FeatureDistillation(table)
    encoded = np.float32(encode(image, table))
    certificate = certify(encoded, table)
    change = np.zeros(encoded.shape)
    change[-1, -1] = np.random.default_rng(seed).normal(size=encoded.shape[-1])
    change *= 0.999 * certificate.l2_radius[0] / np.linalg.norm(change)
    np.testing.assert_array_equal(layer(np.float32(encoded + change)), layer(encoded))


def test_l2_certificate_reaches_epsilon_on_whole_blocks(photos):
    for color_space in ("rgb", "ycbcr"):
        table = certified_table(10, color_space=color_space, norm="2")
        assert certify(encode(photos[:, :424, :640], table), table).holds(10, "2").all()


def test_gains_are_the_worst_cases():
    rng = np.random.default_rng(1)
    signs = np.sign(rng.normal(size=(10_000, 8, 8)))
    reached = np.abs(dctn(signs, axes=(1, 2), norm="ortho")).max(axis=0)
    assert (reached <= linf_gains() + 1e-9).all()
    worst = [[np.abs(BASIS[:, u, v]).sum() for v in range(8)] for u in range(8)]
    np.testing.assert_allclose(linf_gains(), worst)
    np.testing.assert_allclose(l2_gains(1, "ycbcr"), [1])


@pytest.mark.parametrize("color_space", ["rgb", "ycbcr"])
def test_float32_errors_stay_well_within_the_tolerance(rng, color_space):
    """What the certificate takes off for float32 is twice what one computation may be off by."""
    extremes = rng.choice([0.0, 255.0], (64, 8, 8, 3))
    for pixels in (extremes, rng.uniform(0, 255, (64, 8, 8, 3)), np.full((64, 8, 8, 3), 255.0)):
        found = (
            coefficients(tf.constant(pixels, tf.float32), color_space).numpy().reshape(64, 8, 8, 3)
        )
        x = np.float64(np.float32(pixels)) - level_shift(color_space)
        x = x @ RGB_TO_YCBCR.T if color_space == "ycbcr" else x
        exact = dctn(x, axes=(1, 2), norm="ortho")
        assert np.abs(found - exact).max() < TOLERANCE / 2


def test_encoding_is_near_the_layer(photos):
    for table in ("liu2019", certified_table(1, color_space="ycbcr")):
        distilled = np.rint(np.asarray(FeatureDistillation(table)(photos)))
        assert np.abs(encode(photos, table) - distilled).mean() < 0.5


def test_value_range_scales_what_is_stored(photos):
    small = photos[:, :40, :40]
    stored = encode(small / 127.5 - 1, "liu2019", value_range=(-1, 1))
    assert stored.dtype == np.float32
    np.testing.assert_allclose((stored + 1) * 127.5, encode(small, "liu2019"), atol=1e-3)
    ours = certify(stored, "liu2019", value_range=(-1, 1)).linf_radius
    np.testing.assert_allclose(
        ours, certify(encode(small, "liu2019"), "liu2019").linf_radius, atol=1e-3
    )


def test_several_grids_are_refused_by_the_encoder_and_counted_by_the_certificate(photos):
    table = preset_table("liu2019").with_settings(cycle_spins=4)
    with pytest.raises(ValueError, match="one block grid"):
        encode(photos, table)
    encoded = encode(photos[:1], "liu2019")
    assert certify(encoded, table).linf_radius[0] < certify(encoded, "liu2019").linf_radius[0]


def test_large_images_in_strips(photos, monkeypatch):
    encoded = encode(photos[0, :203, :101], "certified:1")
    whole = certify(encoded, "certified:1")
    monkeypatch.setattr("fd_keras.certification.PIXELS_AT_ONCE", 2600)
    strips = certify(encoded, "certified:1")
    assert strips.linf_radius == whole.linf_radius
    assert strips.l2_radius == whole.l2_radius
    assert strips.limiting == whole.limiting
    np.testing.assert_allclose(strips.residual, whole.residual, rtol=0.05)


@pytest.mark.parametrize(
    ("size", "spins", "known"),
    [((1, 1), 3, False), ((9, 1), 1, False), ((13, 20), 3, True), ((16, 24), 1, False)],
)
def test_radii_of_a_graph_are_those_of_the_certificate(photos, size, spins, known):
    table = preset_table("jpeg:30").with_settings(cycle_spins=spins)
    images = np.float32(photos[:, 50 : 50 + size[0], 70 : 70 + size[1]])
    spec = tf.TensorSpec((None, *(size if known else (None, None)), 3))
    found = tf.function(lambda x: radii(x, table), input_signature=[spec])(images)
    expected = certify(images, table)
    np.testing.assert_allclose(found[0], expected.linf_radius, atol=1e-3)
    np.testing.assert_allclose(found[1], expected.l2_radius, atol=1e-3)


def test_residual_tells_encoded_images_from_others(photos):
    for table in ("liu2019", "certified:1", "certified:4:ycbcr"):
        certificate = certify(encode(photos, table), table)
        assert certificate.encoded.all()
        assert (certificate.residual < 0.8).all()
        assert not certify(photos, table).encoded.any()


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (np.zeros((8, 8)), "one image"),
        (np.zeros((0, 8, 8, 3)), "one image"),
        (np.full((8, 8, 3), np.nan), "finite"),
        (np.zeros((8, 8, 3), complex), "dtype complex128"),
        (np.linspace(0, 1, 192).reshape(8, 8, 3), "must be scaled to value_range, 0 to 255"),
    ],
)
def test_what_is_no_image_is_refused(images, problem):
    for function in (encode, certify):
        with pytest.raises(ValueError, match=problem):
            function(images, "liu2019")


def test_grey_levels_are_not_taken_for_shares(photos):
    with pytest.raises(ValueError, match="must be scaled to value_range, 0 to 1"):
        certify(photos, "certified:2", value_range=(0, 1))


def test_whole_steps_stay_whole_beside_others():
    table = certified_table(2, at_least=np.full((8, 8), 50.5))
    np.testing.assert_array_equal(table.steps, np.full((1, 8, 8), 51))


@pytest.mark.parametrize("epsilon", [0, -1, np.nan, np.inf, "2x"])
def test_certified_table_refuses_what_is_no_size(epsilon):
    with pytest.raises(ValueError, match="`epsilon`"):
        certified_table(epsilon)


@pytest.mark.parametrize(
    "use",
    [
        lambda table: certify(np.zeros((8, 8, 3)), table),
        lambda table: encode(np.zeros((8, 8, 3)), table),
        lambda table: nominal_radius(table, 3),
        lambda table: certified_table(2, color_space=table.color_space, at_least=table),
        lambda table: encode_jpeg(np.zeros((8, 8, 3), np.uint8), table),
        lambda table: rounded_table(table),
        lambda table: make_pipeline("two-pass", table),
    ],
)
def test_soft_thresholding_has_no_lattice(use):
    table = QuantizationTable(np.full((8, 8), 16.0), "ycbcr", quantizer="soft")
    with pytest.raises(ValueError, match=r"must round, .* soft thresholding .*quantizer='soft'"):
        use(table)
    use(table.with_settings(quantizer="round"))
    assert make_pipeline("one-pass", table).layer().quantizer == "soft"
