"""Directories that exports write to: one export at a time, and nothing that killed ones left."""

import errno
import threading

import keras
import pytest
import tensorflow as tf
from keras import layers

from fd_keras import export_saved_model, export_tflite
from fd_keras._files import held, locked
from fd_keras.export import saved_model as saved_model_exporter
from fd_keras.export import tflite as tflite_exporter

HEX = "0123456789abcdef" * 2


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_directory_is_held_by_one_thread_and_again_within_the_block(tmp_path):
    refused = []

    def other():
        with pytest.raises(ValueError, match="`--out` is in use by another run") as error:
            held(tmp_path, argument="--out").__enter__()
        refused.append(error)

    (tmp_path / "link").symlink_to(tmp_path)
    with held(tmp_path):
        with held(tmp_path / "link"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused
    with held(tmp_path):
        pass
    assert names(tmp_path) == ["link"]  # the lock has gone


def test_an_export_into_a_directory_in_use_is_refused_before_work(model, tmp_path, monkeypatch):
    work = []
    for exporter in (saved_model_exporter, tflite_exporter):
        monkeypatch.setattr(exporter, "write_archive", lambda *arguments: work.append(arguments))
    with locked(tmp_path):
        with pytest.raises(ValueError, match="`directory` is in use by another run"):
            export_saved_model(model, tmp_path)
        with pytest.raises(ValueError, match="`path` is in use by another run"):
            export_tflite(model, tmp_path / "model.tflite")
    assert not work


def test_what_killed_exports_left_is_removed_and_nothing_else(model, tmp_path):
    left = [f".1.{HEX}", f".12.{HEX}"]
    others = [f".a.{HEX}", ".1.backup", f".1.{HEX}.old", "1.tmp"]
    for name in (*left, *others):
        (tmp_path / "served" / name).mkdir(parents=True)
        (tmp_path / "served" / name / "saved_model.pb").write_bytes(b"half")
    (tmp_path / f".{HEX}.tflite").write_bytes(b"half")
    for name in (f".{HEX}.png", f".{HEX[1:]}.tflite", "other.tflite"):
        (tmp_path / name).write_bytes(b"theirs")
    export_saved_model(model, tmp_path / "served", verify=False)
    assert names(tmp_path / "served") == sorted([*others, "1"])
    (tmp_path / "model.tflite").symlink_to("elsewhere.tflite")
    export_tflite(model, tmp_path / "model.tflite", verify=False)
    kept = [f".{HEX}.png", f".{HEX[1:]}.tflite", "other.tflite", "served"]
    assert names(tmp_path) == sorted([*kept, "model.tflite", "elsewhere.tflite"])


def test_a_full_disk_is_named_and_leaves_nothing(model, tmp_path, monkeypatch):
    """It was TensorFlow's error, of another kind and without an end."""

    def write_out(archive, directory):
        text = f"{{{{function_node __wrapped__SaveV2}}}} {directory}; No space left on device"
        raise tf.errors.ResourceExhaustedError(None, None, text)

    # Keras 3 returns an object of another class.
    monkeypatch.setattr(type(keras.export.ExportArchive()), "write_out", write_out)
    for export, target in ((export_saved_model, "sm"), (export_tflite, "model.tflite")):
        with pytest.raises(OSError, match="No space left on device") as error:
            export(model, tmp_path / target, verify=False)
        assert error.value.errno == errno.ENOSPC
        assert error.value.filename
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
