"""The defences against Pillow, SciPy, plain formulas and loops written here."""

import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.ndimage import median_filter
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from fd_keras import FeatureDistillation, QuantizationTable
from fd_keras.classifier import Classifier
from fd_keras.evaluation.classifiers import attackable, differentiable
from fd_keras.evaluation.defences import (
    CANDIDATES,
    Defence,
    bit_depth,
    defence,
    distillation,
    image_quilting,
    jpeg_compression,
    median_smoothing,
    no_defence,
    same_defence,
    stochastic_local_quantisation,
    total_variation,
)
from fd_keras.evaluation.defences.quilting import PatchBank, minimum_error_cut, stitch
from fd_keras.evaluation.defences.total_variation import minimise_total_variation

SPECS = ("none", "liu2019", "jpeg:75", "bits:5", "median:2", "median:3", "slq", "tvm", "tvm:0,0.03")
SPECS += ("quilting", "quilting:3,4")
RANDOM = ("slq", "tvm", "quilting:3,4")


@pytest.fixture(scope="module")
def crops(photos):
    """Ten pieces of photographs, float32 (10, 20, 23, 3): incomplete blocks and patches."""
    tops = range(100, 350, 50)
    pieces = [photo[top : top + 20, 300:323] for photo in photos for top in tops]
    return np.stack(pieces).astype(np.float32)


@pytest.fixture(scope="module")
def made(photos):
    """Every defence of SPECS, by its spec."""
    background = photos[:, :40, :40]
    return {spec: defence(spec, background=background) for spec in SPECS}


# What all have in common.


@pytest.mark.parametrize("spec", SPECS)
def test_every_defence_returns_images_like_those_it_got(spec, made, crops):
    before = crops.copy()
    result = made[spec](crops)
    assert result.shape == crops.shape
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 255
    np.testing.assert_array_equal(crops, before)
    assert not np.shares_memory(result, crops)
    assert made[spec](crops[:0]).shape == (0, 20, 23, 3)


@pytest.mark.parametrize("spec", SPECS)
def test_neither_batch_nor_order_nor_repetition_matters(spec, made, crops):
    whole = made[spec](crops)
    parts = [made[spec](crops[part]) for part in (np.s_[:1], np.s_[1:4], np.s_[4:])]
    # The layer's matrix products may round otherwise in another batch.
    tolerance = 1e-3 if made[spec].table else 0
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=tolerance)
    np.testing.assert_allclose(made[spec](crops[::-1])[::-1], whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize("spec", SPECS)
def test_grey_images(spec, crops):
    grey = crops[:2, ..., :1]
    assert defence(spec, background=grey)(grey).shape == grey.shape


@pytest.mark.parametrize("spec", SPECS)
def test_only_random_defences_change_with_the_seed(spec, made, crops):
    chosen = made[spec]
    assert chosen.random == (spec in RANDOM)
    other = chosen.reseeded(2)
    changed = np.abs(other(crops) - chosen(crops)).max((1, 2, 3)) > 1
    assert changed.all() if chosen.random else not changed.any()
    if chosen.random:
        assert other.settings == {**chosen.settings, "seed": 2}
        np.testing.assert_array_equal(other.reseeded(1)(crops), chosen(crops))


def test_a_random_defence_draws_anew_for_every_image():
    # Two images that differ in one pixel, far from the block that is compared.
    pixels = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 1)).repeat(8, axis=0)
    pixels[:, -1, -1, 0] = range(8)
    corners = stochastic_local_quantisation()(pixels)[:, :8, :8]
    assert len({corner.tobytes() for corner in corners}) > 1


@pytest.mark.parametrize("spec", SPECS)
def test_settings_are_json(spec, made):
    settings = made[spec].settings
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 8, 3)), "`images` must be a batch .* of shape \\(8, 8, 3\\)"),
        (np.full((1, 8, 8, 3), 255.5), "`images` must have pixels from 0 to 255. .* to 255.5"),
        (np.full((1, 8, 8, 3), -1), "`images` must have pixels from 0 to 255. .* from -1"),
        (np.full((1, 8, 8, 3), np.nan), "`images` must have pixels from 0 to 255"),
    ],
)
def test_refuses_what_are_no_pixels(images, message):
    with pytest.raises(ValueError, match=message):
        no_defence()(images)


def test_leaves_a_float32_rounding_beyond_the_range_to_clipping():
    assert no_defence()(np.full((1, 1, 1, 1), 255.0001)).item() == 255


# One by one.


def pillow_round_trip(image, **options):
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.floor(image + 0.5))).save(file, "JPEG", **options)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("quality", [10, 75, 95])
def test_jpeg_is_what_pillow_writes_by_default(quality, crops):
    images = np.clip(crops + 0.3, 0, 255)
    expected = [pillow_round_trip(image, quality=quality) for image in images]
    np.testing.assert_array_equal(jpeg_compression(quality)(images), expected)
    full = [pillow_round_trip(image, quality=quality, subsampling=0) for image in images]
    np.testing.assert_array_equal(jpeg_compression(quality, subsampling="4:4:4")(images), full)
    assert not np.array_equal(expected, full)


@given(
    pixels=hnp.arrays(np.float32, (1, 2, 3, 1), elements=st.floats(0, 255, width=32)),
    bits=st.integers(1, 8),
)
def test_bit_depth_rounds_to_the_nearest_of_its_levels(pixels, bits):
    levels = np.linspace(0, 255, 2**bits)
    result = bit_depth(bits)(pixels)
    np.testing.assert_allclose(np.abs(result[..., None] - levels).min(-1), 0, atol=1e-4)
    nearest = np.abs(pixels[..., None] - levels).min(-1)
    np.testing.assert_allclose(np.abs(result - pixels), nearest, atol=1e-4)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_median_by_its_definition(size, crops):
    before, after = size // 2, (size - 1) // 2  # an even window lies up and to the left
    padding = ((0, 0), (before, after), (before, after), (0, 0))
    padded = np.pad(crops, padding, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    ranked = np.sort(windows.reshape(*crops.shape, -1), axis=-1)
    np.testing.assert_array_equal(median_smoothing(size)(crops), ranked[..., size * size // 2])


@pytest.mark.parametrize("size", [3, 5])
def test_both_median_filters_agree(size, crops, monkeypatch):
    if not importlib.util.find_spec("tensorflow_addons"):
        pytest.skip("tensorflow-addons is not installed")
    assert "tensorflow-addons" in median_smoothing(size).settings["library"]
    with_addons = median_smoothing(size)(crops)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    without = median_smoothing(size)
    assert "ART" in without.settings["library"]
    np.testing.assert_array_equal(without(crops), with_addons)
    np.testing.assert_array_equal(with_addons, median_filter(crops, (1, size, size, 1)))


@pytest.mark.parametrize("spec", ["liu2019", "jpeg:75,4:4:4", "jpeg:75", "median:2", "median:3"])
def test_what_attackers_differentiate_resembles_the_defence(spec):
    """On an image whose colours change slowly, so that their resolution does not matter."""
    ramp = np.linspace(30, 220, 64, dtype=np.float32)
    image = (ramp[:, None, None] * [0.9, 0.7, 0.5] + ramp[None, :, None] * 0.1)[np.newaxis]
    noisy = np.float32(image + np.random.default_rng(2).normal(0, 3, (1, 64, 64, 1)))
    protection = defence(spec)
    stand_in, defended = protection.smooth(tf.constant(noisy)).numpy(), protection(noisy)
    assert np.abs(stand_in - defended).mean() < 0.6 * np.abs(noisy - defended).mean()


@pytest.mark.parametrize("gradient", ["smooth", "straight-through"])
def test_attackers_of_soft_thresholding_need_no_stand_in(crops, gradient):
    """Its own gradient it is, whatever they ask for: against differences in float64."""
    table = QuantizationTable(np.full((8, 8), 24.0), "ycbcr", 2, quantizer="soft")
    protection = distillation(table)
    assert protection.smooth is None
    assert protection.settings["table"]["quantizer"] == "soft"
    expected = oracle.distil(crops, table.steps, "ycbcr", 2, "soft")[0]
    np.testing.assert_allclose(protection(crops), expected, atol=1e-3)
    image = np.float64(crops[:1] / 255) * 0.5 + 0.25
    upstream = np.random.default_rng(1).normal(size=image.shape)
    pixels = tf.constant(image, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        out = differentiable(protection, gradient)(pixels)
    found = tape.gradient(out, pixels, tf.constant(upstream, tf.float32))

    def objective(x):
        return (oracle.distil(255 * x, table.steps, "ycbcr", 2, "soft")[0] * upstream).sum() / 255

    for index in [(0, 3, 4, 0), (0, 9, 9, 1), (0, 0, 15, 2)]:
        move = np.zeros_like(image)
        move[index] = 1e-6
        slope = (objective(image + move) - objective(image - move)) / 2e-6
        assert float(found[index]) == pytest.approx(slope, abs=2e-3)


@pytest.mark.parametrize("attacked", [False, True])
def test_many_tables_draw_no_warning_from_tensorflow(attacked, crops, caplog):
    model = keras.Sequential([keras.Input((20, 23, 3)), keras.layers.Flatten()])
    logger = tf.get_logger()
    logger.addHandler(caplog.handler)  # it passes nothing on
    try:
        for step in range(20, 32):
            protection = distillation(QuantizationTable(np.full((8, 8), float(step))))
            if attacked:
                found = attackable(Classifier(model), (20, 23, 3), protection)
                assert all(len(found.predict(crops[:n] / 255)) == n for n in (1, 2, 3))
            else:
                protection(crops)
    finally:
        logger.removeHandler(caplog.handler)
    assert "retracing" not in caplog.text


def test_every_defence_is_attacked_where_tensorflow_has_a_single_thread():
    """A transform that is a graph must not be called from a graph by way of Python: it would wait
    forever for the thread that called it."""
    specs = (*SPECS, "certified:2", "soft8", "jpeg:75,4:4:4")
    script = f"""
import numpy as np
import tensorflow as tf
from fd_keras.evaluation.classifiers import differentiable
from fd_keras.evaluation.defences import defence
pixels = tf.constant(np.random.default_rng(1).random((16, 32, 32, 3)), tf.float32)
for spec in {specs}:
    for gradient in ("smooth", "straight-through", "half-step"):
        call = differentiable(defence(spec, background=255 * pixels.numpy()), gradient)
        @tf.function
        def slope(images):
            with tf.GradientTape() as tape:
                tape.watch(images)
                total = tf.reduce_sum(call(images) ** 2)
            return tape.gradient(total, images)
        print(spec, gradient, slope(pixels).shape, flush=True)
"""
    single = {**os.environ, "TF_NUM_INTEROP_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=single, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert len(process.stdout.splitlines()) == 3 * len(specs)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_attackers_of_median_filters_meet_the_filters_themselves(size, crops):
    protection = median_smoothing(size)
    for gradient in ("smooth", "straight-through"):
        found = differentiable(protection, gradient)(tf.constant(crops / 255)).numpy()
        np.testing.assert_allclose(255 * found, protection(crops), atol=1e-4)


def test_half_step_attackers_meet_the_defence_itself(crops):
    protection = defence("certified:2")
    found = differentiable(protection, "half-step")(tf.constant(crops / 255)).numpy()
    np.testing.assert_allclose(255 * found, protection(crops), atol=1e-3)


def test_slq_takes_every_block_from_one_of_the_qualities(crops):
    result = stochastic_local_quantisation((10, 50, 90))(crops)
    seen = np.zeros(3)
    for image, original in zip(result, crops):
        versions = np.stack([pillow_round_trip(original, quality=q) for q in (10, 50, 90)])
        for top, left in itertools.product(range(0, 20, 8), range(0, 23, 8)):
            block = np.s_[top : top + 8, left : left + 8]
            matches = [np.array_equal(image[block], version[block]) for version in versions]
            assert any(matches)
            seen += matches
    # 90 blocks: each quality is expected 30 times.
    assert seen.min() > 12


def total_variation_of(image):
    down, right = np.diff(image, axis=0), np.diff(image, axis=1)
    squares = np.pad(down, ((0, 1), (0, 0), (0, 0))) ** 2
    squares = squares + np.pad(right, ((0, 0), (0, 1), (0, 0))) ** 2
    return np.sqrt(squares).sum()


def test_total_variation_reaches_the_minimum_that_scipy_finds(rng):
    image, kept = rng.random((7, 6, 1)), rng.random((7, 6, 1)) < 0.6

    def objective(flat, rounding=0.0):
        z = flat.reshape(image.shape)
        down = np.diff(z, axis=0, append=z[-1:])
        right = np.diff(z, axis=1, append=z[:, -1:])
        variation = np.sqrt(down**2 + right**2 + rounding).sum()
        return 0.5 * (kept * (z - image) ** 2).sum() + 0.05 * variation

    # SciPy needs a smooth function; its minimum is a little too high for the other one.
    found = minimize(objective, np.full(image.size, 0.5), (1e-9,), options={"maxiter": 3000})
    solved = minimise_total_variation(np.float32(image), np.float32(kept), 0.05, 1000).numpy()
    assert objective(solved) == pytest.approx(objective(found.x), rel=2e-3)
    np.testing.assert_allclose(solved.ravel(), found.x, atol=0.02)


def test_total_variation_knows_nothing_of_dropped_values(crops, rng):
    image = crops[0] / 255
    kept = np.float32(rng.random(image.shape) < 0.5)
    other = np.where(kept, image, rng.random(image.shape)).astype(np.float32)
    results = [minimise_total_variation(x, kept, 0.03, 20).numpy() for x in (image, other)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("drop", [0, 0.5])
def test_total_variation_falls_and_the_mean_stays(drop, crops):
    result = total_variation(drop, iterations=200)(crops)
    for smooth, image in zip(result, crops):
        assert total_variation_of(smooth) < 0.9 * total_variation_of(image)
        # Without drops the mean of each channel is exactly kept, by the optimality condition.
        tolerance = 8 if drop else 0.2
        np.testing.assert_allclose(smooth.mean((0, 1)), image.mean((0, 1)), atol=tolerance)


def test_after_the_default_iterations_little_is_left_to_gain(photos, rng):
    image = np.float32(photos[0, 100:164, 200:264]) / 255
    kept = np.float32(rng.random(image.shape) < 0.5)

    def objective(z):
        return 0.5 * (kept * (z - image) ** 2).sum() + 0.03 * total_variation_of(z)

    default = total_variation().settings["iterations"]
    reached, minimum = (
        objective(minimise_total_variation(image, kept, 0.03, n).numpy()) for n in (default, 2000)
    )
    assert minimum <= reached < 1.01 * minimum


@given(
    hnp.arrays(
        np.int64,
        st.tuples(st.just(1), st.integers(1, 5), st.integers(1, 3)),
        elements=st.integers(0, 9),
    )
)
def test_the_cut_is_the_best_of_all_connected_paths(errors):
    _, length, width = errors.shape
    path = minimum_error_cut(errors)[0]
    paths = [
        candidate
        for candidate in itertools.product(range(width), repeat=length)
        if np.abs(np.diff(candidate)).max(initial=0) <= 1
    ]
    sums = {candidate: errors[0, range(length), candidate].sum() for candidate in paths}
    assert sums[tuple(path)] == min(sums.values())


def stitched_one_by_one(patches, overlap):
    """Efros and Freeman's order, without fronts."""
    rows, columns, size, _, channels = patches.shape
    step = size - overlap
    shape = (step * (rows - 1) + size, step * (columns - 1) + size, channels)
    canvas = np.zeros(shape)
    for row, column in itertools.product(range(rows), range(columns)):
        place = canvas[row * step : row * step + size, column * step : column * step + size]
        errors = ((place - patches[row, column]) ** 2).sum(-1)
        covered = np.ones((size, size), bool)
        if column:
            for y, cut in enumerate(minimum_error_cut(errors[None, :, :overlap])[0]):
                covered[y, :cut] = False
        if row:
            for x, cut in enumerate(minimum_error_cut(errors[None, :overlap].swapaxes(1, 2))[0]):
                covered[:cut, x] = False
        place[covered] = patches[row, column][covered]
    return canvas


@pytest.mark.parametrize(
    ("rows", "columns", "size", "overlap"),
    [(4, 7, 5, 2), (7, 3, 5, 2), (3, 3, 6, 3), (1, 4, 3, 1), (4, 1, 3, 1), (5, 5, 4, 2)],
)
def test_laying_patches_in_fronts_changes_nothing(rows, columns, size, overlap, rng):
    patches = rng.integers(0, 50, (rows, columns, size, size, 2)).astype(np.float32)
    expected = stitched_one_by_one(patches, overlap)
    np.testing.assert_array_equal(stitch(patches, overlap), expected)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_quilting_an_image_from_its_own_patches_returns_it(size, photos):
    image = photos[:1, 40:69, 60:89]  # 29: patches of 2, 3 and 5 fit without rest
    np.testing.assert_array_equal(image_quilting(image, size)(image), image)


def test_a_quilt_holds_benign_colours_only(photos, crops):
    background = photos[:, 200:230, 100:130]
    result = image_quilting(background, patches=500)(crops)
    benign = {tuple(colour) for colour in background.reshape(-1, 3)}
    assert {tuple(colour) for colour in result.reshape(-1, 3)} <= benign


def test_the_bank_finds_the_nearest_patches(photos, rng):
    bank = PatchBank(photos[:, :30, :30], 3, patches=700, seed=1)
    assert bank.patches.shape == (700, 3, 3, 3)
    queries = rng.uniform(0, 255, (20, 27)).astype(np.float32)
    distances = cdist(queries, bank.patches.reshape(700, 27))
    np.testing.assert_array_equal(bank.nearest(queries, 4), distances.argsort(1)[:, :4])


def test_the_index_of_a_large_bank_misses_few(photos):
    bank = PatchBank(photos[:, :300, :300], 5, patches=25_000, seed=1)
    windows = np.lib.stride_tricks.sliding_window_view(photos[0, 300:360, 300:360], (5, 5), (0, 1))
    queries = np.float32(np.moveaxis(windows[::3, ::3], 2, -1).reshape(-1, 75))
    found, exact = bank.nearest(queries, 1)[:, 0], cdist(queries, bank.patches.reshape(-1, 75))
    # By distance: flat patches are there more than once.
    hit = exact[np.arange(len(queries)), found] <= exact.min(1) + 1e-3
    assert hit.mean() > 0.9


def test_quilting_draws_from_all_neighbours(photos):
    image = np.full((1, 3, 3, 1), 100, np.float32)
    background = np.array([98, 99, 103, 200], np.float32).reshape(4, 1, 1, 1)
    quilt = image_quilting(background * np.ones((1, 3, 3, 1)), 3, neighbours=3)
    drawn = {quilt.reseeded(seed)(image)[0, 0, 0, 0] for seed in range(40)}
    assert drawn == {98, 99, 103}


def test_distillation_is_the_layer(crops):
    table = QuantizationTable(np.full((8, 8), 20.0), "ycbcr", 2, {"name": "mine"})
    expected = FeatureDistillation(table)(crops).numpy()
    for source in (table, FeatureDistillation(table, value_range=(0, 1)), table.to_dict()):
        chosen = distillation(source)
        assert (chosen.name, chosen.family) == ("mine", "feature distillation")
        assert chosen.table == table
        assert QuantizationTable.from_dict(chosen.settings["table"]) == table
        np.testing.assert_allclose(chosen(crops), expected, rtol=0, atol=1e-3)
    assert distillation(table, name="ours").name == "ours"


# By name.


@pytest.mark.parametrize(
    ("spec", "name", "family"),
    [
        ("none", "none", "none"),
        ("liu2019", "liu2019", "feature distillation"),
        ("jpeg", "JPEG q75", "JPEG"),
        ("jpeg:50,4:4:4", "JPEG q50 4:4:4", "JPEG"),
        ("bits:1", "1 bit", "bit depth"),
        ("bits:5", "5 bits", "bit depth"),
        ("median:2", "median 2x2", "median"),
        ("slq", "SLQ 20-80", "SLQ"),
        ("slq:20,40,60,80", "SLQ 20-80", "SLQ"),
        ("tvm", "TVM p .5", "TVM"),
        ("tvm:0,0.03", "TVM p 0", "TVM"),
        ("quilting", "quilting 5x5", "quilting"),
        ("quilting:3, 4", "quilting 3x3 of 4", "quilting"),
    ],
)
def test_names(spec, name, family, photos):
    chosen = defence(spec, background=photos[:1, :20, :20])
    assert (chosen.name, chosen.family) == (name, family)
    assert defence(chosen) is chosen


def test_a_defence_from_a_file_or_a_layer(tmp_path):
    table = QuantizationTable(np.full((8, 8), 20.0), provenance={"name": "mine"})
    table.save(tmp_path / "table.json")
    for spec in (tmp_path / "table.json", str(tmp_path / "table.json"), table):
        assert defence(spec).table == table
    assert defence(FeatureDistillation(table)).table == table


def test_candidates_are_defences_of_their_family_with_names_of_their_own(photos):
    made = {
        family: [defence(spec, background=photos[:1, :20, :20]) for spec in specs]
        for family, specs in CANDIDATES.items()
    }
    assert all(one.family == family for family, several in made.items() for one in several)
    names = [one.name for several in made.values() for one in several]
    assert len(names) == len(set(names))


def test_the_seed_reaches_random_defences(photos):
    background = photos[:1, :20, :20]
    for spec in RANDOM:
        chosen = defence(spec, background=background, seed=5)
        assert chosen.seed == chosen.settings["seed"] == 5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jpg:75", "`spec` must be one of none, jpeg.:quality,subsampling., .*liu2019.*'jpg:75'"),
        ("no-such-table.json", "or an existing JSON file of a table"),
        ("none:3", "`spec` must be none, .*'none:3'"),
        ("bits:5,6", r"`spec` must be bits\[:bits\], .*'bits:5,6'"),
        ("bits:five", "with numbers after the colon"),
        ("bits:9", "`bits` must be a whole number from 1 to 8. Received: bits=9"),
        ("bits:2.5", "`bits` must be a whole number"),
        ("jpeg:0", "`quality` must be a whole number from 1 to 100. Received: quality=0"),
        ("jpeg:75,4:1:1", "`subsampling` must be '4:2:0' or '4:4:4'"),
        ("median:1", "`size` must be a whole number at least 2"),
        ("slq:20,101", "`qualities` must be a whole number from 1 to 100"),
        ("tvm:1", "`drop` must be from 0 to below 1. Received: drop=1"),
        ("tvm:0.5,0", "`weight` must be positive and finite"),
        ("quilting", "`background` must hold benign images"),
    ],
)
def test_error_messages(spec, message):
    with pytest.raises(ValueError, match=message):
        defence(spec)


def test_errors_beyond_names(photos):
    with pytest.raises(TypeError, match="`spec` must be a name, .* Received: spec=5"):
        defence(5)
    with pytest.raises(ValueError, match="`qualities` must hold a quality"):
        stochastic_local_quantisation(())
    with pytest.raises(ValueError, match="`seed` must be a whole number at least 0"):
        stochastic_local_quantisation(seed=-1)
    with pytest.raises(ValueError, match="`images` must have 1 or 3 channels for JPEG"):
        jpeg_compression()(np.zeros((1, 8, 8, 4)))
    with pytest.raises(ValueError, match="`background` must hold images of at least 5x5"):
        image_quilting(np.zeros((1, 4, 9, 3)))
    with pytest.raises(ValueError, match="`neighbours` must be a whole number from 1 to 4"):
        image_quilting(np.zeros((1, 6, 6, 3)), neighbours=5)
    quilt = image_quilting(photos[:1, :20, :20])
    with pytest.raises(ValueError, match="`images` must have 3 channels, as `background` has"):
        quilt(np.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="at least 5x5 pixels"):
        quilt(np.zeros((1, 4, 8, 3)))


def test_a_defence_of_ones_own(crops):
    brighter = Defence("brighter", "mine", lambda batch, _: batch + 200)
    np.testing.assert_array_equal(brighter(crops), np.minimum(crops + 200, 255))


def test_a_defence_whose_settings_say_nothing_is_refused():
    """Another one of its family would be taken for it."""
    with pytest.raises(ValueError, match="`settings` that tell it from others.*'brighter'"):
        defence(Defence("brighter", "mine", lambda batch, _: batch + 200))
    brighter = Defence("brighter", "mine", lambda batch, _: batch + 200, {"levels": 200})
    assert defence(brighter) is brighter
    assert defence(no_defence()).name == "none"


def test_quilting_of_other_images_is_another_defence():
    """Results are kept by settings; they used to tell how many images, not which."""
    first, second = (image_quilting(np.full((2, 8, 8, 3), grey)) for grey in (50, 60))
    assert not same_defence(first, second)
    assert same_defence(first, image_quilting(np.full((2, 8, 8, 3), 50)))
