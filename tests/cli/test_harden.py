"""``fd-keras harden`` on a model and data made for it."""

import functools

import keras
import numpy as np
import pytest

from fd_keras import HardenResult
from fd_keras._files import locked


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


def test_harden(run, files, next_command):
    arguments = [
        files / "model.keras", files / "train.npz", "--out", files / "out",
        "--epsilon", "8", "--epochs", "1", "--max-benign-loss", "0.2", "--table", "jpeg:75",
        "--learning-rate", "0.001", "--soft-labels", "0.5",
    ]  # fmt: skip
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "Accuracy on 8 validation images" in out
    assert "adaptive, PGD-10 8/255" in out
    # The model is saved without its layer, whose table it is evaluated behind.
    table = ["--table", str(files / "out" / "table.json")]
    assert next_command(out)[:4] == [str(files / "out" / "model.keras"), "DATA", *table]
    result = HardenResult.load(files / "out")
    assert result.table.name == "jpeg:75"
    assert result.settings["recipe"]["epsilon"] == 8
    assert result.settings["recipe"]["soft_labels"] == 0.5
    again = run(*arguments)
    assert again[:2] == (0, out)
    code, _, err = run(*arguments, "--attack-steps", "3")
    assert code == 1
    assert "a training with other recipe" in err


def test_a_training_over_its_budget_is_written_and_fails(run, files):
    train = np.load(files / "train.npz")
    np.savez(files / "wrong.npz", x=train["x"], y=1 - train["y"])
    code, _, err = run(
        files / "model.keras", files / "wrong.npz", "--out", files / "out", "--epochs", "1",
        "--learning-rate", "1", "--epsilon", "0", "--validation-data", files / "validation.npz",
    )  # fmt: skip
    assert code == 1
    assert "Error: no epoch kept within --max-benign-loss 0.01: the result is the one" in err
    assert not HardenResult.load(files / "out").within_benign_loss


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


@pytest.fixture
def unread(monkeypatch):
    """Fail where a command reads images or a model."""

    def read(*_, **__):
        raise AssertionError("read before it was refused")

    monkeypatch.setattr("fd_keras.data.labelled_sources.open_labelled_images", read)
    monkeypatch.setattr("fd_keras_cli.models.load_model", read)


def test_two_commands_in_one_directory(run, files, unread):
    with locked(files / "out" / "training"):
        code, _, err = run(files / "model.keras", files / "train.npz", "--out", files / "out")
    assert code == 1
    assert "`--out` is in use by another run; wait until it has ended" in err
    assert f"Received: --out {files / 'out'}" in err


@pytest.mark.parametrize(
    ("model", "name"),
    [("model.keras", "model.keras"), ("other.keras", "model.keras"), ("other.keras", "table.json")],
)
def test_files_of_others_are_not_replaced(run, files, unread, model, name):
    for other in ("other.keras", name):
        (files / other).touch()
    before = {path: path.read_bytes() for path in files.iterdir()}
    code, _, err = run(files / model, files / "train.npz", "--out", files, "--overwrite")
    assert code == 1
    assert "which this command did not write and would replace" in err
    assert f"Received: --out {files}" in err
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def test_a_model_is_not_replaced_by_what_was_made_of_it(run, files):
    arguments = [files / "train.npz", "--out", files / "out", "--epsilon", "0", "--epochs", "1"]
    assert run(files / "model.keras", *arguments)[0] == 0
    code, _, err = run(files / "out" / "model.keras", *arguments, "--overwrite")
    assert code == 1
    assert "`--out` must not be where MODEL is, which would be replaced" in err
    code, _, err = run(files / "model.keras", *arguments, "--seed", "2")
    assert code == 1
    assert "`--out` holds a training with other data, seed, validation" in err
    assert f"throw the training away with --overwrite. Received: --out {files / 'out'}" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Interrupted; the same command goes on from here"),
        (["--overwrite"], "Interrupted; the same command without --overwrite goes on from here"),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(run, files, monkeypatch, options, message):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fd_keras.harden", interrupted)
    code, _, err = run(files / "model.keras", files / "train.npz", "--out", files / "out", *options)
    assert code == 130
    assert message in err
