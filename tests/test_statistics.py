"""Coefficient statistics against numpy in float64."""

import copy
import json
import pickle
from pathlib import Path

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.fft import dctn

from fd_keras.statistics import CoefficientStatistics

MOMENTS = ("count", "mean", "std", "mean_abs", "min", "max")


def reference_coefficients(images, color_space="rgb"):
    """(blocks, channels, 8, 8) of images whose sides are multiples of 8."""
    planes = oracle.to_ycbcr(images) if color_space == "ycbcr" else np.asarray(images, float)
    n, h, w, c = planes.shape
    blocks = planes.reshape(n, h // 8, 8, w // 8, 8, c).transpose(0, 1, 3, 5, 2, 4)
    return dctn(blocks, axes=(-2, -1), norm="ortho").reshape(-1, c, 8, 8)


def assert_same(one, other, tolerance=1e-5):
    for name in MOMENTS:
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * one.std.max())


@pytest.fixture
def crops(photos, rng):
    return np.stack([photos[i % 2, 3 * i : 3 * i + 48, 5 * i : 5 * i + 64] for i in range(20)])


@pytest.mark.parametrize("color_space", ["rgb", "ycbcr"])
def test_moments_match_float64(crops, color_space):
    actual = CoefficientStatistics.from_data(crops, color_space=color_space, batch_size=7)
    c = reference_coefficients(crops, color_space)
    assert (actual.count == len(c)).all()
    np.testing.assert_allclose(actual.std, c.std(0), rtol=5e-5)
    np.testing.assert_allclose(actual.mean_abs, np.abs(c).mean(0), rtol=1e-5)
    np.testing.assert_allclose(actual.mean, c.mean(0), atol=2e-3)
    np.testing.assert_allclose(actual.min, c.min(0), atol=2e-3)
    np.testing.assert_allclose(actual.max, c.max(0), atol=2e-3)


def test_variance_survives_a_large_mean(rng):
    """Sums of squares in float32 would lose a spread of 0.1 around a DC of 2000."""
    images = 250 + rng.normal(0, 0.1, (50, 16, 16, 1)).astype("float32")
    actual = CoefficientStatistics.from_data(images, batch_size=8)
    np.testing.assert_allclose(actual.std, reference_coefficients(images).std(0), rtol=1e-3)


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_shards_merge_to_one_pass(crops, cut):
    one, two = (CoefficientStatistics.from_data(x) for x in (crops[:cut], crops[cut:]))
    assert_same(one.merge(two), CoefficientStatistics.from_data(crops), 1e-6)
    assert_same(two.merge(one), one.merge(two), 1e-12)


def test_batching_makes_no_difference(crops):
    whole = CoefficientStatistics.from_data(crops, batch_size=20)
    assert_same(CoefficientStatistics.from_data(crops, batch_size=1), whole)


def test_value_range(crops):
    scaled = CoefficientStatistics.from_data(crops / 127.5 - 1, value_range=(-1, 1))
    assert_same(scaled, CoefficientStatistics.from_data(crops))
    assert scaled.value_range == (-1.0, 1.0)


class Dataset(keras.utils.Sequence):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.images[5 * index : 5 * index + 5], np.zeros(5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, np.zeros(len(x))),
        lambda x: tf.constant(x),
        lambda x: tf.data.Dataset.from_tensor_slices(x),
        lambda x: tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(6),
        lambda x: Dataset(x),
        lambda x: list(x),
        lambda x: (image for image in x),
    ],
    ids=["tuple", "tensor", "unbatched", "batched with labels", "PyDataset", "list", "generator"],
)
def test_sources(crops, wrap):
    actual = CoefficientStatistics.from_data(wrap(crops))
    assert_same(actual, CoefficientStatistics.from_data(crops))
    assert actual.provenance["images"] == 20


def test_images_of_mixed_sizes(photos):
    images = [photos[0, :48, :64], photos[1, :24, :16]]
    c = np.concatenate([reference_coefficients(image[np.newaxis]) for image in images])
    actual = CoefficientStatistics.from_data(images)
    np.testing.assert_allclose(actual.std, c.std(0), rtol=5e-5)


def test_odd_sizes_count_the_blocks_the_layer_quantises(photos):
    image = photos[:1, :41, :50]
    padded = np.pad(image, ((0, 0), (0, 7), (0, 6), (0, 0)), mode="edge")
    assert_same(CoefficientStatistics.from_data(image), CoefficientStatistics.from_data(padded))


def test_steps_limit_an_endless_dataset(crops):
    endless = tf.data.Dataset.from_tensor_slices(crops).batch(5).repeat()
    actual = CoefficientStatistics.from_data(endless, steps=4)
    assert_same(actual, CoefficientStatistics.from_data(crops))


def test_file_round_trip(crops, tmp_path):
    statistics = CoefficientStatistics.from_data(
        crops, color_space="ycbcr", provenance={"set": "photos"}
    )
    statistics.save(tmp_path / "statistics.json")
    loaded = CoefficientStatistics.load(tmp_path / "statistics.json")
    assert_same(loaded, statistics, 0)
    assert loaded.color_space == "ycbcr"
    assert loaded.provenance == {"set": "photos", "images": 20}


def test_merge_keeps_where_the_data_came_from(crops):
    one, two, three = (
        CoefficientStatistics.from_data(crops[:n], provenance={"set": name})
        for n, name in [(5, "a"), (3, "a"), (2, "b")]
    )
    same = {"set": "a", "images": 8}
    assert one.merge(two).provenance == same
    other = {"set": "b", "images": 2}
    assert one.merge(two).merge(three).provenance == {"parts": [same, other]}


@pytest.mark.parametrize(
    ("provenance", "merged"),
    [
        ({"images": None}, {"parts": [{"images": None}] * 2}),
        ({"images": "many"}, {"parts": [{"images": "many"}] * 2}),
        ({"parts": 3}, {"parts": 3}),
        ({"parts": None, "images": 2}, {"parts": None, "images": 4}),
    ],
)
def test_any_provenance_is_merged(photos, provenance, merged):
    statistics = CoefficientStatistics.from_data(photos).with_provenance(provenance)
    assert statistics.merge(statistics).provenance == merged


@pytest.mark.parametrize("content", ["", "[]", '{"format": "x"}'])
def test_broken_file_is_named(tmp_path, content):
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(ValueError, match="broken.json"):
        CoefficientStatistics.load(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.zeros((0, 8, 8, 3)), {}, "`data` holds no image"),
        (np.zeros((4, 8)), {}, r"Received: an element of shape \(4, 8\)"),
        (np.full((1, 8, 8, 3), np.nan), {}, "`data` must be finite"),
        (np.zeros((1, 8, 8, 3), complex), {}, "`data` must hold pixels as integers or floats"),
        (np.zeros((1, 8, 8, 3)).astype(str), {}, "integers or floats. Received: dtype <U32"),
        (np.zeros((1, 8, 8, 4)), {"color_space": "ycbcr"}, "images with 4 channels"),
        (np.zeros((1, 8, 8, 3)), {"color_space": "lab"}, "color_space='lab'"),
        ([np.zeros((8, 8, 3)), np.zeros((8, 8, 1))], {}, "`data` .*: images with 3, then 1"),
        (np.full((1, 8, 8, 3), 256), {}, "within value_range, 0 to 255. Received: .*256 to 256"),
        (np.full((1, 8, 8, 3), -1), {}, "within value_range"),
        (np.full((1, 8, 8, 3), 200), {"value_range": (0, 1)}, "within value_range, 0 to 1"),
        (np.linspace(0, 1, 192).reshape(1, 8, 8, 3), {}, "must be scaled to value_range, 0 to 255"),
        (np.zeros((1, 8, 8, 3)), {"value_range": (1, 0)}, r"`value_range` .* value_range=\(1, 0\)"),
        (np.zeros((1, 8, 8, 3)), {"value_range": 255}, "`value_range` must be two finite"),
        (np.zeros((1, 8, 8, 3)), {"batch_size": 0}, "`batch_size` must be a positive integer"),
        (np.zeros((1, 8, 8, 3)), {"steps": -1}, "`steps` must be a positive integer"),
        (np.zeros((50, 28, 28)), {}, r"channel axis: use images\[..., np.newaxis\]"),
        (tf.data.Dataset.from_tensors(np.zeros((50, 28, 28))), {}, "channel axis"),
        ("", {}, "`location` must not be empty"),
    ],
)
def test_bad_data_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        CoefficientStatistics.from_data(data, **options)


def test_dark_images_are_no_error():
    """All black, or with the noise of an 8-bit camera."""
    for darkest in (0, 1):
        for dtype in (np.uint8, np.float32):
            CoefficientStatistics.from_data(
                (np.eye(8)[np.newaxis, ..., np.newaxis] * darkest).astype(dtype)
            )
    scaled = np.eye(8, dtype="float32")[np.newaxis, ..., np.newaxis] / 255
    CoefficientStatistics.from_data(scaled, value_range=(0, 1))


def test_errors_show_no_arrays():
    with pytest.raises(ValueError, match=r"data=ndarray of shape \(0, 8, 8, 3\) and dtype float64"):
        CoefficientStatistics.from_data(np.zeros((0, 8, 8, 3)))


@pytest.mark.parametrize("path_type", [str, Path])
def test_directory_of_mixed_sizes(photos, tmp_path, path_type):
    images = [photos[0, :48, :64], photos[1, :24, :16]]
    (tmp_path / "images" / "more").mkdir(parents=True)
    Image.fromarray(images[0]).save(tmp_path / "images" / "a.png")
    Image.fromarray(images[1]).save(tmp_path / "images" / "more" / "b.png")
    actual = CoefficientStatistics.from_data(path_type(tmp_path / "images"))
    assert_same(actual, CoefficientStatistics.from_data(images))
    assert actual.provenance == {"data": "images", "images": 2}
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.png"):
        CoefficientStatistics.from_data(path_type(tmp_path / "images"))


def test_npz(crops, tmp_path):
    np.savez(tmp_path / "crops.npz", x=crops)
    actual = CoefficientStatistics.from_data(tmp_path / "crops.npz")
    assert_same(actual, CoefficientStatistics.from_data(crops))


@pytest.mark.parametrize("shape", [(3, 40, 56, 3), (1, 203, 101, 3)])
def test_large_images_in_parts(photos, monkeypatch, shape):
    """Of whole images, or of block rows of one."""
    images = photos[[0, 1, 0]][: shape[0], : shape[1], : shape[2]]
    expected = CoefficientStatistics.from_data(images, color_space="ycbcr")
    measured = []
    of_batch = CoefficientStatistics._of_batch
    monkeypatch.setattr("fd_keras.data.batches.PIXELS_AT_ONCE", 2500)
    monkeypatch.setattr(
        CoefficientStatistics,
        "_of_batch",
        lambda batch, *rest: measured.append(batch[..., 0].size) or of_batch(batch, *rest),
    )
    for data in (images, list(images)):
        actual = CoefficientStatistics.from_data(data, color_space="ycbcr")
        assert_same(actual, expected, 1e-6)
        assert actual.provenance["images"] == shape[0]
    assert max(measured) <= 2500
    assert len(measured) > 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(crops, copied):
    statistics = CoefficientStatistics.from_data(
        crops / 255, value_range=(0, 1), color_space="ycbcr"
    )
    other = copied(statistics)
    assert_same(other, statistics, 0)
    for name in ("color_space", "value_range", "provenance"):
        assert getattr(other, name) == getattr(statistics, name)


def changed(statistics, **moments):
    """The same statistics with one band of some moments changed."""
    fields = {name: np.array(getattr(statistics, name), float) for name in MOMENTS}
    for name, value in moments.items():
        fields[name][1, 2, 3] = value
    return fields


IMPOSSIBLE = {
    "no block": ({"count": 0}, "`count` must be finite and at least 1, in whole numbers"),
    "fewer than none": ({"count": -3}, "`count` must be .* Received: count=-3"),
    "half a block": ({"count": 1.5}, "`count` must be .* Received: count=1.5"),
    "too many blocks": ({"count": 1e300}, "`count` must be finite"),
    "no deviation": ({"std": np.nan}, "`std` must be finite"),
    "negative deviation": ({"std": -1}, "`std` must be finite and at least 0"),
    "negative size": ({"mean_abs": -1}, "`mean_abs` must be finite and at least 0"),
    "infinite mean": ({"mean": np.inf}, "`mean` must be finite"),
    "order": ({"min": 2, "max": 1}, r"`min` must not exceed `max`. Received: .*at \(1, 2, 3\)"),
    "mean too large": ({"mean": 3000}, "`mean` must lie between `min` and `max`. Received"),
    "mean too small": ({"mean": -3000}, "`mean` must lie between `min` and `max`"),
    "size below the mean's": ({"mean": 5, "mean_abs": 1, "max": 9}, "`mean_abs` must lie between"),
    "size above the largest": ({"mean_abs": 3000}, "`mean_abs` must lie between the size of"),
    "wider than the range": ({"std": 3000}, "`std` must not exceed half of the distance"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_moments(crops, name, tmp_path):
    moments, message = IMPOSSIBLE[name]
    statistics = CoefficientStatistics.from_data(crops)
    fields = changed(statistics, **moments)
    with pytest.raises(ValueError, match=message):
        CoefficientStatistics(**fields)
    path = tmp_path / "statistics.json"
    statistics.save(path)
    content = {**json.loads(path.read_text()), **{n: f.tolist() for n, f in fields.items()}}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="statistics.json"):
        CoefficientStatistics.load(path)


@given(
    arrays(
        st.sampled_from([np.uint8, np.float32]),
        st.tuples(
            st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3])
        ),
        elements=st.integers(0, 255) | st.sampled_from([0, 255]),
        fill=st.integers(0, 255),
    ),
    st.sampled_from(["rgb", "ycbcr"]),
)
@settings(max_examples=50)
def test_measured_moments_are_possible(images, color_space):
    """Whatever the images, rounding never makes moments that contradict each other."""
    measured = CoefficientStatistics.from_data(images, color_space=color_space)
    measured.merge(measured).merge(
        CoefficientStatistics.from_data(images[:1], color_space=color_space)
    )


@pytest.mark.parametrize("moment", ["mean", "count"])
@pytest.mark.parametrize("dtype", [str, complex, bool])
def test_moments_of_other_types(crops, moment, dtype):
    fields = changed(CoefficientStatistics.from_data(crops))
    fields[moment] = fields[moment].astype(dtype)
    with pytest.raises(ValueError, match=f"`{moment}` must be numbers. Received: {moment}="):
        CoefficientStatistics(**fields)


def test_channels_first_are_told():
    images = np.zeros((4, 3, 32, 40), np.uint8)
    with pytest.warns(UserWarning, match=r"\(3, 32, 40\), which look like .*'channels_first'"):
        CoefficientStatistics.from_data(images)


def test_file_with_a_number_too_large(crops, tmp_path):
    path = tmp_path / "statistics.json"
    CoefficientStatistics.from_data(crops).save(path)
    path.write_text(path.read_text().replace("960", "1e400"))
    with pytest.raises(ValueError, match="statistics.json"):
        CoefficientStatistics.load(path)


def test_files_of_other_channels_are_named_as_data(tmp_path):
    for channels in (3, 1):
        np.savez(tmp_path / f"{channels}.npz", x=np.zeros((2, 16, 16, channels), np.uint8))
    paths = [tmp_path / "3.npz", tmp_path / "1.npz"]
    with pytest.raises(ValueError, match="`data` must .*: images with 3, then 1"):
        CoefficientStatistics.from_data(paths)


def test_unlike_statistics_do_not_merge(crops):
    one = CoefficientStatistics.from_data(crops)
    with pytest.raises(ValueError, match="color_space='rgb'.*color_space='ycbcr'"):
        one.merge(CoefficientStatistics.from_data(crops, color_space="ycbcr"))
    with pytest.raises(TypeError, match="`other` must be .*other=None"):
        one.merge(None)
