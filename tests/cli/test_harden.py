"""``fd-keras harden`` on a model and data made for it."""

import functools

import keras
import numpy as np
import pytest

from fd_keras import HardenResult


@pytest.fixture
def run(run):
    return functools.partial(run, "harden")


@pytest.fixture
def files(tmp_path):
    """A linear model of two classes, and images that it gets right."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 1))
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    model = keras.Model(inputs, outputs)
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(2).integers(0, 256, (60, 16, 16, 1)).astype(np.uint8)
    labels = model.predict(images, verbose=0).argmax(-1)
    np.savez(tmp_path / "train.npz", x=images[:40], y=labels[:40])
    np.savez(tmp_path / "validation.npz", x=images[40:], y=labels[40:])
    return tmp_path


def test_harden(run, files):
    arguments = [
        files / "model.keras", files / "train.npz", "--out", files / "out",
        "--epsilon", "8", "--epochs", "1", "--max-benign-loss", "0.2", "--table", "jpeg:75",
        "--learning-rate", "0.001", "--soft-labels", "0.5",
    ]  # fmt: skip
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "Accuracy on 8 validation images" in out
    assert "adaptive, PGD-10 8/255" in out
    result = HardenResult.load(files / "out")
    assert result.table.name == "jpeg:75"
    assert result.settings["recipe"]["epsilon"] == 8
    assert result.settings["recipe"]["soft_labels"] == 0.5
    again = run(*arguments)
    assert again[:2] == (0, out)
    code, _, err = run(*arguments, "--attack-steps", "3")
    assert code == 1
    assert "a training with other recipe" in err


@pytest.mark.parametrize("option", ["--max-validation-images", "--max-held-out"])
def test_validation_images_of_their_own(run, files, option):
    code, out, err = run(
        files / "model.keras", files / "train.npz", "--out", files / "out", "--epochs", "1",
        "--epsilon", "0", "--validation-data", files / "validation.npz", option, "12",
    )  # fmt: skip
    assert code == 0, err
    assert "Accuracy on 12 validation images" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none.keras", "data.npz", "--out", "out"], "none.keras"),
        (["none.keras", "data.npz", "--out", "data.npz"], "`--out` must be a directory"),
        (["model.keras", "train.npz", "--out", "out", "--epsilon", "0.05"], "255, from 0.1"),
    ],
)
def test_errors_are_one_line(run, files, monkeypatch, options, message):
    monkeypatch.chdir(files)
    (files / "data.npz").touch()
    code, _, err = run(*options)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
