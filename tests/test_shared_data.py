"""Statistics and calibration on the development data in ``../shared``, if it is there."""

import itertools

import numpy as np
import oracle
import pytest
from scipy.fft import dctn

import fd_keras
from fd_keras.data.sources import open_images


def sigma_in_float64(images, color_space):
    """Population standard deviation of every band, of images of one size."""
    images = np.stack(images).astype(np.float64)
    planes = oracle.to_ycbcr(images) if color_space == "ycbcr" else images
    n, h, w, c = planes.shape
    blocks = planes.reshape(n, h // 8, 8, w // 8, 8, c).transpose(0, 1, 3, 5, 2, 4)
    return dctn(blocks, axes=(-2, -1), norm="ortho").reshape(-1, c, 8, 8).std(0)


@pytest.mark.parametrize("color_space", ["rgb", "ycbcr"])
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("imagenet-sample", 60),
        ("cifar10_lossless_2000.npz", 500),
        ("cifar10_train_jpeg.tfrecord.gz", 200),
    ],
)
def test_sigma_matches_float64_and_shards_match_one_pass(shared, name, count, color_space):
    images = list(itertools.islice(open_images(shared / "data" / name), count))
    whole = fd_keras.CoefficientStatistics.from_data(images, color_space=color_space)
    np.testing.assert_allclose(whole.std, sigma_in_float64(images, color_space), rtol=1e-4)
    one, two = (
        fd_keras.CoefficientStatistics.from_data(part, color_space=color_space)
        for part in (images[: count // 3], images[count // 3 :])
    )
    np.testing.assert_allclose(one.merge(two).std, whole.std, rtol=1e-5)


@pytest.mark.parametrize("name", ["imagenet-sample", "cifar10_lossless_2000.npz"])
def test_calibrate(shared, name, tmp_path, run):
    out = tmp_path / "table.json"
    arguments = [shared / "data" / name, "--epsilon", 2, "--out", out, "--limit", 100]
    code, _, errors = run("calibrate", *arguments)
    assert code == 0, errors
    table = fd_keras.QuantizationTable.load(out)
    assert table.provenance["statistics"] == {"data": name, "images": 100}
    assert table.channels == 3
