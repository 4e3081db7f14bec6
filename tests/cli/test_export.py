"""``fd-keras export`` and ``fd-keras verify``."""

import functools
import io
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from rich.console import Console

import fd_keras
from fd_keras._files import locked
from fd_keras_cli.models import load_model


@pytest.fixture
def model_file(tmp_path):
    keras.utils.set_random_seed(5)
    body = [layers.Rescaling(1 / 255), layers.AveragePooling2D(8), layers.Flatten()]
    head = layers.Dense(3, kernel_initializer=keras.initializers.Orthogonal(10))
    model = keras.Sequential([keras.Input((16, 16, 3)), *body, head])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.fixture
def images_file(photos, tmp_path):
    cut = [photos[i % 2, 9 * i : 9 * i + 24, 7 * i : 7 * i + 32] for i in range(12)]
    np.savez(tmp_path / "images.npz", x=np.stack(cut))
    return tmp_path / "images.npz"


def test_both_formats_are_exported_and_proven(run, model_file, tmp_path, next_command):
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    out = tmp_path / "out"
    arguments = ["--table", "jpeg:50", "--labels", tmp_path / "labels.txt", "--out", out]
    code, text, _ = run("export", model_file, *arguments)
    assert code == 0
    assert text.count(": proven") == 2
    assert f"Wrote {out}/model.tflite\nWrote {out}/saved_model/1\n" in text
    assert next_command(text)[:2] == [f"{out}/model.tflite", str(model_file)]
    assert (out / "saved_model/1/assets.extra/labels.txt").read_text() == "cat\ndog\nbird\n"
    code, text, _ = run("verify", out / "model.tflite", model_file, "--table", "jpeg:50")
    assert (code, text.count(": proven")) == (0, 1)
    # The directory of the versions leads to the newest whole one, which is named.
    for name in ("3", "latest"):
        (out / "saved_model" / name).mkdir()
    shutil.copytree(out / "saved_model/1", out / "saved_model/2")
    code, text, _ = run("verify", out / "saved_model", model_file, "--table", "jpeg:50")
    assert code == 0
    assert text.startswith(f"{out}/saved_model/2: saved_model,")
    code, text, _ = run("verify", out / "model.tflite", model_file, "--table", "liu2019")
    assert code == 1
    assert "NOT PROVEN" in text
    # A SavedModel is a model, too: here it gets a second layer.
    code, text, _ = run(
        "export", out / "saved_model", "--table", "liu2019", "--format", "saved_model",
        "--out", tmp_path / "second",
    )  # fmt: skip
    assert code == 0
    assert (tmp_path / "second/saved_model/1/saved_model.pb").exists()


def test_int8_is_exported_with_representative_images(run, model_file, images_file, tmp_path):
    pytest.importorskip("litert_quantizer")
    arguments = [
        "--table",
        "liu2019",
        "--format",
        "tflite",
        "--quantize",
        "int8",
        "--out",
        tmp_path,
    ]
    code, _, err = run("export", model_file, *arguments)
    assert code == 1
    assert "`--representative` must be given" in err
    code, text, err = run("export", model_file, *arguments, "--representative", images_file)
    assert code == 0, err
    assert f"Wrote {tmp_path}/model_int8.tflite\n" in text
    found = tmp_path / "check.json"
    arguments = ["--table", "liu2019", "--images", images_file, "--out", found]
    assert run("verify", tmp_path / "model_int8.tflite", model_file, *arguments)[0] == 0
    found = json.loads(found.read_text())
    assert (found["quantize"], found["images"], found["passed"]) == ("int8", 12, True)


def test_the_name_of_a_served_model_is_that_of_its_directory_and_warm_up(run, model_file, tmp_path):
    pytest.importorskip("tensorflow_serving")
    out = ("--format", "saved_model", "--warmup", "--no-verify", "--out", tmp_path / "served")
    assert run("export", model_file, "--name", "classifier", *out)[0] == 0
    version = tmp_path / "served" / "classifier" / "1"
    assert b"classifier" in (version / "assets.extra/tf_serving_warmup_requests").read_bytes()
    for name in ("", "..", "a/b"):
        code, _, errors = run("export", model_file, "--name", name, *out)
        assert code == 1
        assert "`--name` must be the name of one directory" in errors


CUSTOM = """
import keras

class Twice(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs
"""


def test_unregistered_classes_name_the_way_out(run, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CUSTOM.replace(
        "class", '@keras.saving.register_keras_serializable("mine")\nclass'))  # fmt: skip
    script = """
import keras, mine
layers = [keras.Input((16, 16, 3)), mine.Twice(), keras.layers.Flatten()]
keras.Sequential(layers).save("model.keras")
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    model = tmp_path / "model.keras"
    arguments = ["--format", "tflite", "--out", tmp_path / "out"]
    code, _, err = run("export", model, *arguments)
    assert code == 1
    assert "@keras.saving.register_keras_serializable()" in err
    assert "--import" in err
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = run("export", model, "--import", "mine", *arguments)
    assert code == 0, err


def test_what_is_no_model_is_refused(run, tmp_path):
    for name in ("notes.keras", "notes.txt"):
        (tmp_path / name).write_text("no model")
    for path, message in (
        (tmp_path / "notes.keras", "`MODEL` cannot be loaded; the file may be damaged"),
        (tmp_path / "notes.txt", "`MODEL` must be a .keras or .h5 file"),
        (tmp_path / "missing.keras", "`MODEL` does not exist"),
        (tmp_path, "`MODEL` must be a .keras or .h5 file, or a directory that holds saved_model"),
    ):
        code, _, err = run("export", path, "--out", tmp_path / "out")
        assert code == 1
        assert message in err
    assert not (tmp_path / "out").exists()


def test_the_version_that_is_taken_as_a_model_is_named(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten()])
    for version in (9, 10):
        fd_keras.export_saved_model(model, tmp_path / "served", version=version, verify=False)
    (tmp_path / "served" / "11").mkdir()
    said = io.StringIO()
    wrapped = load_model(tmp_path / "served", [], Console(file=said))
    assert said.getvalue() == f"Taking version 10 of {tmp_path}/served\n"
    assert wrapped.layers[1].directory == f"{tmp_path}/served/10"


@pytest.mark.parametrize("command", ["export", "verify"])
def test_a_model_that_runs_a_saved_model_from_elsewhere_is_refused(command, run, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])
    served = fd_keras.export_saved_model(model, tmp_path / "served", verify=False)
    file = tmp_path / "wrapped.keras"
    fd_keras.wrap_saved_model(served).save(file)
    first = [served] if command == "verify" else []
    for there in (True, False):
        code, _, err = run(command, *first, file, "--out", tmp_path / "out")
        assert code == 1
        assert err.count("\n") == 1
        assert f"`MODEL` runs a SavedModel outside of its file, {served}" in err
        assert "give the directory of that SavedModel as MODEL" in err
        assert ("operations can read and write files" in err, "no longer there" in err) == (
            there,
            not there,
        )
        if there:
            served = served.rename(tmp_path / "served" / "2")
            first, served = [served] if first else [], tmp_path / "served" / "1"


def test_two_exports_into_one_directory_are_refused_before_work(run, model_file, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "none.keras").write_text("no model")
    for held in (out, out / "saved_model"):
        with locked(held):
            # Even before the model is read.
            code, _, err = run("export", tmp_path / "none.keras", "--out", out)
        assert (code, err.count("\n")) == (1, 1)
        assert "`--out` is in use by another run; wait until it has ended" in err
    with locked(out / "saved_model"):
        arguments = ["--format", "tflite", "--no-verify", "--out", out]
        assert run("export", model_file, *arguments)[0] == 0


def damaged(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path.parent if path.suffix == ".pb" else path


def test_damaged_files_are_named_in_one_line(run, model_file, tmp_path):
    export_tflite = functools.partial(fd_keras.export_tflite, verify=False)
    tflite = export_tflite(keras.models.load_model(model_file), tmp_path / "good.tflite")
    content = tflite.read_bytes()
    swapped = bytearray(content)
    swapped[:64], swapped[64:128] = swapped[64:128], swapped[:64]
    swapped[4:8] = b"TFL3"
    exports = [
        damaged(tmp_path / "a.tflite", content[: len(content) // 2]),
        damaged(tmp_path / "b.tflite", content[:8]),
        damaged(tmp_path / "c.tflite", b""),
        damaged(tmp_path / "d.tflite", bytes(swapped)),
        damaged(tmp_path / "e" / "saved_model.pb", b"\x0a\xff\xff"),
        damaged(tmp_path / "f" / "saved_model.pb", b""),
    ]
    for path in exports:
        code, _, err = run("verify", path, model_file)
        assert (code, err.count("\n")) == (1, 1), err
        assert "must hold a whole" in err
        assert str(path) in err
    for path in exports[-2:]:
        code, _, err = run("export", path, "--out", tmp_path / "out")
        assert (code, err.count("\n")) == (1, 1), err
        assert "`MODEL` must be a whole SavedModel" in err
    for nothing, reason in (
        (tmp_path / "none", "`EXPORT` does not exist"),
        (tmp_path, "`EXPORT` must be a .tflite file, or a directory that holds saved_model.pb"),
    ):
        code, _, err = run("verify", nothing, model_file)
        assert (code, err.count("\n")) == (1, 1)
        assert reason in err


def test_a_failed_proof_is_one_line_and_leaves_nothing(run, model_file, tmp_path, monkeypatch):
    from fd_keras.export import tflite

    real, other = tflite.verify_export, fd_keras.FeatureDistillation("jpeg")
    model = fd_keras.protect(keras.models.load_model(model_file), other)
    monkeypatch.setattr(tflite, "verify_export", lambda path, _, images: real(path, model, images))
    arguments = ["--table", "liu2019", "--format", "tflite", "--out", tmp_path / "out"]
    code, _, err = run("export", model_file, *arguments)
    assert code == 1
    assert err.count("\n") == 1
    assert "of the distilled pixels differ" in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def unscaled_file(tmp_path):
    """A model that takes pixels from 0 to 1, and does not show it."""
    keras.utils.set_random_seed(5)
    body = [layers.AveragePooling2D(8), layers.Flatten(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((16, 16, 3)), *body])
    model.save(tmp_path / "unscaled.keras")
    return tmp_path / "unscaled.keras"


def test_a_model_without_a_layer_is_served_in_the_value_range_that_is_given(
    run, unscaled_file, photos, tmp_path, next_command
):
    """Files were decoded to 0..255, and the proof compared that with Keras on the same images."""
    options = ("--value-range", 0, 1, "--format", "saved_model", "--out", tmp_path / "out")
    code, text, errors = run("export", unscaled_file, *options)
    assert code == 0, errors
    assert next_command(text)[2:] == ["--value-range", "0", "1"]
    version = tmp_path / "out" / "saved_model" / "1"
    details = json.loads((version / "assets.extra" / "fd_keras.json").read_text())
    assert details["value_range"] == [0.0, 1.0]
    image = photos[:1, :16, :16]
    encoded = keras.utils.array_to_img(image[0], scale=False)
    file = io.BytesIO()
    encoded.save(file, "PNG")
    served = tf.saved_model.load(str(version)).signatures["serving_bytes"]
    found = served(image_bytes=tf.constant([file.getvalue()]))["predictions"]
    expected = keras.models.load_model(unscaled_file)(np.float32(image) / 255)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Images of another range prove nothing of the file.
    np.savez(tmp_path / "images.npz", x=photos[:, :16, :16])
    images = ("--images", tmp_path / "images.npz")
    code, _, errors = run("verify", version, unscaled_file, *images)
    assert code == 1
    assert "must be finite and lie within --value-range, 0 to 1" in errors
    assert run("verify", version, unscaled_file, *images, "--value-range", 0, 1)[0] == 0


def test_value_ranges_that_contradict_the_model_are_refused(run, model_file, tmp_path):
    """The proof could not see them, because file and Keras got the same images."""
    options = ("--value-range", 0, 1, "--out", tmp_path / "out")
    for more in ((), ("--table", "liu2019")):
        code, _, errors = run("export", model_file, *options, *more)
        assert code == 1
        assert "value-range" in errors
    assert not (tmp_path / "out" / "saved_model").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quantize", "int8"), "`--representative` must be given with --quantize int8"),
        (("--int8-error", "0.5"), "`--int8-error` needs --quantize int8"),
        (("--format", "saved_model", "--quantize", "float16"), "`--quantize` needs --format"),
        (("--format", "tflite", "--warmup"), "`--warmup` needs --format saved_model"),
    ],
)
def test_options_without_effect_are_refused_before_anything_is_written(
    run, model_file, tmp_path, options, message
):
    code, _, errors = run("export", model_file, "--out", tmp_path / "out", *options)
    assert code == 1
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_what_was_written_is_said_where_the_other_file_fails(
    run, model_file, tmp_path, monkeypatch
):
    def full(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr("fd_keras.export_saved_model", full)
    code, text, errors = run("export", model_file, "--out", tmp_path / "out")
    assert code == 1
    assert f"Wrote {tmp_path}/out/model.tflite" in text
    assert "no space left" in errors


def test_images_of_several_sizes_need_a_size(run, photos, tmp_path):
    pooled = [layers.GlobalAveragePooling2D(), layers.Dense(3)]
    keras.Sequential([keras.Input((None, None, 3)), *pooled]).save(tmp_path / "any.keras")
    folder = tmp_path / "photos"
    folder.mkdir()
    for size in (24, 32):
        keras.utils.save_img(folder / f"{size}.png", photos[0, :size, :size], scale=False)
    options = ("--table", "liu2019", "--representative", folder, "--out", tmp_path / "out")
    code, _, errors = run("export", tmp_path / "any.keras", *options)
    assert code == 1
    assert "`--image-size` must be given" in errors
