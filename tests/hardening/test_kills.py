"""Trainings that are killed, interrupted or refused, and states that are damaged."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import fd_keras
from fd_keras import FeatureDistillation
from fd_keras._files import locked
from fd_keras.classifier import Classifier
from fd_keras.hardening import AverageWeights, HardeningModel, Recipe, Training
from fd_keras.hardening.record import Record

HELPER = Path(__file__).parents[1] / "helpers" / "kill_harden.py"

# Quick, for no image is attacked, with a table that is learnt.
RECIPE = Recipe(epsilon=0, table_rate=1.0, averaging=0.5)


class Killed(BaseException):
    """Stands for the end of the process."""


def model():
    """A classifier with statistics and random numbers."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def data():
    images = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 1)).astype(np.float32)
    return images, images[:, 0, 0, 0].astype(int) % 3


@pytest.fixture
def harden(data, tmp_path):
    def run(*callbacks, directory="run", epochs=3, optimizer=None, **options):
        return fd_keras.harden(
            model(),
            FeatureDistillation("liu2019"),
            data,
            recipe=RECIPE,
            training=Training(epochs, batch_size=8, optimizer=optimizer, callbacks=callbacks),
            directory=None if directory is None else tmp_path / directory,
            max_benign_loss=1,
            **options,
        )

    return run


@pytest.fixture
def fitting(data):
    """The record of a training, and a function that goes on with it."""

    def build(directory, optimizer="adam", policy=None):
        training = HardeningModel(
            model(), FeatureDistillation("liu2019"), RECIPE, dtype_policy=policy
        )
        training.compile(optimizer)
        record = Record(directory, 0)
        if not record.restore(training):
            record.begin({"benign_accuracy": 0.5}, training)

        def fit(epochs=1):
            done = len(record.epochs)
            callbacks = [AverageWeights(), record, record.saving()]
            training.fit(
                *data, batch_size=8, initial_epoch=done, epochs=done + epochs, validation_data=data,
                shuffle=False, verbose=0, callbacks=callbacks,
            )  # fmt: skip

        return record, fit

    return build


def content(directory):
    """All entries of a state."""
    with np.load(directory / "state.npz") as archive:
        return {name: bytes(archive[name]) for name in archive.files}


def assert_same(found, expected):
    assert found.history == expected.history
    assert found.rows == expected.rows
    assert found.table == expected.table
    for one, other in zip(found.model.get_weights(), expected.model.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_killed_runs_end_as_one_that_was_not(tmp_path):
    """Killed within a state, between state and history, and while the result is replaced."""
    moments = ("write an array", "training/.history.json", ".result-whole/table.json")
    options = [f"--at={moment}" for moment in moments]
    done = subprocess.run(
        [sys.executable, HELPER, tmp_path / "runs", *options],
        env={**os.environ, "PYTHONPATH": str(HELPER.parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ended as undisturbed") == 3


def test_a_state_is_that_of_one_epoch_wherever_its_writing_ends(fitting, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    record, fit = fitting(tmp_path / "run")
    fit()
    old = content(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    fit()
    new = content(tmp_path / "run")
    assert set(old) == set(new)
    assert old != new
    steps = itertools.count()

    def dying(function, kill_at):
        def call(*arguments, **options):
            if next(steps) == kill_at:
                raise Killed
            result = function(*arguments, **options)
            if next(steps) == kill_at:
                raise Killed
            return result

        return call

    found = []
    for kill_at in itertools.count():
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(tmp_path / "old", tmp_path / "run")
        steps = itertools.count()
        with monkeypatch.context() as patch:
            for place, name in ((np.lib.format, "write_array"), (os, "replace"), (os, "fsync")):
                patch.setattr(place, name, dying(getattr(place, name), kill_at))
            patch.setattr(Path, "unlink", lambda *_, **__: None)  # nor does a killed process
            try:
                record.saving().on_epoch_end(1, {})
                break
            except Killed:
                found.append([old, new].index(content(tmp_path / "run")))
        left = set(os.listdir(tmp_path / "run")) - {"state.npz", "history.json"}
        assert left <= {".state.npz", ".history.json"}
        record.saving().on_epoch_end(1, {})
        assert content(tmp_path / "run") == new
        assert set(os.listdir(tmp_path / "run")) == {"state.npz", "history.json"}
    assert found == sorted(found)
    assert found.count(0) > 20
    assert found.count(1) > 3


def test_a_full_disk_is_named_and_costs_no_more_than_the_epoch(harden, tmp_path, monkeypatch):
    whole = harden(directory=None)
    write, count = np.lib.format.write_array, itertools.count()

    def full(*arguments, **options):
        if next(count) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*arguments, **options)

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(
        OSError, match=r"written \(No space left on device\);.*state\.npz"
    ) as raised:
        harden()
    assert raised.value.errno == errno.ENOSPC
    run = tmp_path / "run"
    assert len(json.loads((run / "history.json").read_text())["epochs"]) in (1, 2)
    assert not (run / ".state.npz").exists()
    monkeypatch.undo()
    assert_same(harden(), whole)


def averaged_sgd():
    rates = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    return keras.optimizers.SGD(rates, momentum=0.9, use_ema=True, ema_momentum=0.5)


@pytest.mark.parametrize(
    ("optimizer", "policy"), [(keras.optimizers.Adam, "mixed_float16"), (averaged_sgd, None)]
)
def test_optimisers_go_on_to_the_bit(fitting, tmp_path, optimizer, policy):
    for part in ("whole", "resumed"):
        (tmp_path / part).mkdir()
    _, fit = fitting(tmp_path / "whole", optimizer(), policy)
    fit(2)
    for _ in range(2):
        _, fit = fitting(tmp_path / "resumed", optimizer(), policy)
        fit()
    assert content(tmp_path / "resumed") == content(tmp_path / "whole")


class _Interrupted(keras.callbacks.Callback):
    """Lowers the learning rate after each epoch, and ends the second one before its state."""

    def __init__(self, interrupt):
        super().__init__()
        self._interrupt = interrupt

    def on_epoch_end(self, epoch, logs=None):
        rate = self.model.optimizer.learning_rate
        rate.assign(0.1 * rate)
        if epoch == 1 and self._interrupt:
            raise KeyboardInterrupt


def test_what_callbacks_change_when_an_epoch_ends_is_kept(harden):
    sgd = keras.optimizers.SGD(0.1)
    whole = harden(_Interrupted(False), directory=None, optimizer=sgd)
    with pytest.raises(KeyboardInterrupt):
        harden(_Interrupted(True), optimizer=sgd)
    assert_same(harden(_Interrupted(False), optimizer=sgd), whole)


class _Enough(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def test_a_training_that_a_callback_ended_is_not_gone_on_with(harden):
    assert len(harden(_Enough()).history) == 1
    assert len(harden(_Enough()).history) == 1


@pytest.mark.parametrize("damage", ["empty", "short", "text", "flipped"])
def test_a_damaged_state_is_named(fitting, tmp_path, damage):
    fitting(tmp_path)
    state = tmp_path / "state.npz"
    whole = state.read_bytes()
    half = len(whole) // 2
    flipped = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]
    state.write_bytes(
        {"empty": b"", "short": whole[:half], "text": b"state", "flipped": flipped}[damage]
    )
    with pytest.raises(ValueError, match=r"holds a state\.npz .* damaged.*directory='"):
        fitting(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", "\x00"])
def test_a_state_of_other_origin_is_named(fitting, tmp_path, text):
    with zipfile.ZipFile(tmp_path / "state.npz", "w") as archive:
        archive.writestr("record.json", text)
    with pytest.raises(ValueError, match=r"holds a state\.npz .*directory='"):
        fitting(tmp_path)


@pytest.mark.parametrize(("one", "other"), [("adam", "sgd"), ("sgd", "adam")])
def test_a_state_of_another_training_is_named(fitting, tmp_path, one, other):
    fitting(tmp_path, one)
    with pytest.raises(ValueError, match=r"holds a state\.npz .*directory='"):
        fitting(tmp_path, other)


def test_two_trainings_in_one_directory(harden, tmp_path, monkeypatch):
    correct = Classifier.correct

    def work(self, images, labels):
        assert len(images) <= 2, "worked before it was refused"
        return correct(self, images, labels)

    monkeypatch.setattr(Classifier, "correct", work)
    with (
        locked(tmp_path / "run"),
        pytest.raises(ValueError, match="`directory` is in use by another run.*run'"),
    ):
        harden()


def test_overwriting_deletes_what_a_training_wrote_and_nothing_else(harden, tmp_path):
    harden(epochs=1)
    run = tmp_path / "run"
    mine = [run / "notes.txt", run / "logs" / "mine.txt", run / "logs" / "train" / "mine.txt"]
    for path in mine:
        path.write_text("mine")
    events = set(run.rglob("*tfevents*"))
    assert events
    assert len(harden(epochs=2, overwrite=True).history) == 2
    assert all(path.read_text() == "mine" for path in mine)
    assert not events & set(run.rglob("*tfevents*"))


@pytest.mark.parametrize("name", ["history.json", "logs/train/events.out.tfevents.1"])
def test_files_of_others_are_not_taken_for_a_training(harden, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=f"`directory` holds {name}, and no hardening.json"):
            harden(overwrite=overwrite)
    assert path.read_text() == "mine"
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_a_training_of_an_earlier_version_is_refused(harden, tmp_path):
    """Its mark was plain settings, and its state a folder of Keras' `BackupAndRestore`."""
    run = tmp_path / "run"
    (run / "backup").mkdir(parents=True)
    for name in ("best.npz", "best_table.json", "history.json", "backup/latest.weights.h5"):
        (run / name).write_bytes(b"{}")
    (run / "hardening.json").write_text('{"seed": 1}')
    for overwrite in (False, True):
        message = "holds a hardening.json that marks no training of this version.*choose another"
        with pytest.raises(ValueError, match=message):
            harden(overwrite=overwrite)
    (run / "hardening.json").unlink()
    with pytest.raises(ValueError, match="holds history.json, and no hardening.json says"):
        harden()
    assert len([path for path in run.rglob("*") if path.is_file()]) == 4


def test_links_in_the_places_of_files_are_refused(harden, tmp_path):
    harden(epochs=1)
    for name in ("state.npz", ".state.npz", "history.json", "logs/train", "logs"):
        place, elsewhere = tmp_path / "run" / name, tmp_path / "elsewhere" / name
        elsewhere.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            place.rename(elsewhere)
        else:
            elsewhere.touch()
        place.symlink_to(elsewhere)
        before = sorted(elsewhere.rglob("*")) or elsewhere.read_bytes()
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=f"{name} is a link"):
                harden(epochs=1, overwrite=overwrite)
        assert (sorted(elsewhere.rglob("*")) or elsewhere.read_bytes()) == before
        place.unlink()
        elsewhere.rename(place)
