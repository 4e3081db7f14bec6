"""Options and messages about data that several commands share."""

import os
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import fd_keras_cli
from fd_keras_cli.console import echo, print_error, printable
from fd_keras_cli.models import model_images
from fd_keras_cli.options import read_class_names
from fd_keras_cli.words import set_options

# Its set-up of logging closes standard error, if it is first imported where that is captured.
pytest.importorskip("art")

LABELLED = ("evaluate", "refine", "harden")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A classifier of 8x8 images with three classes."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]).save(
        path
    )
    return path


@pytest.fixture
def folder(tmp_path, rng):
    """Images of two classes."""
    for name in ("data/blue/1.png", "data/green/2.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return tmp_path / "data"


@pytest.fixture
def records(tmp_path):
    """Records with an image and a label under keys of their own."""
    path = tmp_path / "train-00000-of-00001"
    content = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(3):
            image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
            label = tf.train.Feature(int64_list=tf.train.Int64List(value=[9]))
            features = tf.train.Features(feature={"jpeg": image, "cls": label})
            writer.write(tf.train.Example(features=features).SerializeToString())
    return path


@pytest.fixture
def run(monkeypatch, capfd):
    """Run ``fd-keras`` and return its exit code, output and errors, those of its console too."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fd-keras", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            fd_keras_cli.main()
        captured = capfd.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


class TestClasses:
    @pytest.mark.parametrize(
        "content",
        ["cat\ndog", "cat\r\n\r\n dog \r\n", "\ufeffcat\ndog\n"],
        ids=["plain", "Windows", "with a mark"],
    )
    def test_files_that_are_read(self, tmp_path, content):
        (tmp_path / "classes.txt").write_bytes(content.encode())
        assert read_class_names(tmp_path / "classes.txt") == ["cat", "dog"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("café\nchien".encode("latin-1"), r"UTF-8\. Received: --classes .*classes\.txt"),
            ("cat\ndog".encode("utf-16"), "UTF-8"),
            (b"\n \n", "must name a class per line"),
        ],
        ids=["latin-1", "UTF-16", "empty"],
    )
    def test_files_that_are_refused(self, tmp_path, content, message):
        (tmp_path / "classes.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_class_names(tmp_path / "classes.txt")

    @pytest.mark.parametrize("command", LABELLED)
    def test_folders_that_are_not_the_classes(self, run, model, folder, tmp_path, command):
        """Two folders of three classes were taken for the first two."""
        out = tmp_path / "out"
        code, _, errors = run(command, model, folder, "--out", out)
        assert code == 1
        assert "each of the 3 classes of the model; --classes says which of them it has" in errors
        assert not (out / "training").exists()
        (tmp_path / "classes.txt").write_text("red\nblue\nblack\n")
        code, _, errors = run(
            command, model, folder, "--out", out, "--classes", tmp_path / "classes.txt"
        )
        assert code == 1
        assert "`--classes` must name every subdirectory" in errors
        assert "Received: --classes without ['green']" in errors
        (tmp_path / "classes.txt").write_text("green\nblue\ngreen\n")
        code, _, errors = run(
            command, model, folder, "--out", out, "--classes", tmp_path / "classes.txt"
        )
        assert code == 1
        assert "`--classes` must name each subdirectory once. Received: ['green'] more" in errors


@pytest.mark.parametrize("command", LABELLED)
def test_keys_of_records_are_named_once(run, model, records, tmp_path, command):
    images = ("--max-images", 5)
    arguments = (command, model, records, "--out", tmp_path / "out", *images)
    _, _, errors = run(*arguments)
    (line,) = [line for line in errors.splitlines() if "--label-key names another" in line]
    assert re.search(r"#\d with \['cls', 'jpeg'\] and 2 more$", line)
    _, _, errors = run(*arguments, "--label-key", "cls")
    (line,) = [line for line in errors.splitlines() if "--image-key names another" in line]
    assert re.search(r"#\d with \['cls', 'jpeg'\] and 2 more$", line)
    code, _, errors = run(*arguments, "--label-key", "cls", "--image-key", "jpeg")
    assert code == 1
    assert "Traceback" not in errors
    assert "names another" not in errors
    assert "label" in errors  # 9 is none of the three classes


@pytest.fixture
def sorted_folder(tmp_path, rng):
    """Eight images of each of three classes, the first class first."""
    for name in ("blue", "green", "red"):
        (tmp_path / "sorted" / name).mkdir(parents=True)
        for number in range(8):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            image.save(tmp_path / "sorted" / name / f"{number}.png")
    return tmp_path / "sorted"


SAMPLE = "images in sorted, 6 are used: a random sample, spread over 3 classes or folders"


def test_a_limited_number_of_images_to_harden_with_is_a_sample(
    run, model, sorted_folder, tmp_path, monkeypatch
):
    taken = []

    def stop(classifier, layer, *data, **__):
        taken.extend(sorted(part[1].tolist()) for part in data[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr("fd_keras.harden", stop)
    limits = ("--max-images", 6, "--max-validation-images", 3)
    paths = (model, sorted_folder, "--validation-data", sorted_folder, "--out", tmp_path / "out")
    assert f"Of 24 {SAMPLE} (seed 1)" in run("harden", *paths, *limits)[2]
    assert taken == [[0, 0, 1, 1, 2, 2], [0, 1, 2]]


def test_images_to_measure_and_to_prove_with_are_samples(
    run, sorted_folder, tmp_path, monkeypatch, records
):
    out = ("--epsilon", 2, "--out", tmp_path / "table.json", "--limit", 6)
    assert f"Of 24 {SAMPLE} (seed 1)" in run("calibrate", sorted_folder, *out)[2]
    _, _, errors = run("calibrate", records, *out, "--image-key", "jpeg")
    assert f"Of the images in {records.name}, at most 6 are used: a random sample" in errors
    monkeypatch.setattr("fd_keras_cli.models._IMAGE_LIMIT", 3)
    several = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    images = model_images(str(sorted_folder), several, (0.0, 255.0))
    files = [sorted((sorted_folder / name).iterdir()) for name in ("blue", "green", "red")]
    known = [{np.asarray(Image.open(file)).tobytes() for file in group} for group in files]
    found = [np.uint8(image).tobytes() for image in images]
    assert [sum(content in group for content in found) for group in known] == [1, 1, 1]


def test_images_of_exports(run, model, records, tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"no flatbuffer")  # the images are read first
    commands = [
        ("verify", tmp_path / "model.tflite", model, "--images", records),
        ("export", model, "--out", tmp_path / "out", "--representative", records),
    ]
    for arguments in commands:
        code, _, errors = run(*arguments)
        assert code == 1
        assert "--image-key names another" in errors
        assert errors.splitlines()[-1] == "Error: no usable image in train-00000-of-00001"
    _, _, errors = run(*commands[0], "--image-key", "jpeg")
    assert "no usable image" not in errors


@pytest.mark.parametrize("command", ["refine", "harden", "export", "demo"])
def test_output_that_tensorflow_cannot_write(run, command, tmp_path):
    """It failed after the work."""
    out = tmp_path / os.fsdecode(b"caf\xe9")
    arguments = {"export": ["model"], "demo": []}.get(command, ["model", "data"])
    code, _, errors = run(command, *arguments, "--out", out)
    assert code == 1
    assert errors == (
        "Error: `--out` must have a name in UTF-8 without control characters, as TensorFlow "
        f"writes there. Received: --out {tmp_path}/caf\\xe9\n"
    )
    assert not out.exists()


def test_too_little_memory_is_one_line(run, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr("fd_keras.presets.preset_table", fail)
    assert run("inspect", "jpeg") == (1, "", "Error: too little memory\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\x7f\x85\u2028\u202e\u2066", r"\x7f\x85\u2028\u202e\u2066"),
        (os.fsdecode(b"\xff"), r"\xff"),
        ("\ud800", r"\ud800"),
        ("naïve 日本 👩‍👩‍👧 [red]", "naïve 日本 👩‍👩‍👧 [red]"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(capsys, text, shown):
    assert printable(text) == shown
    print_error(f"x{text}y")
    assert capsys.readouterr().err in (f"Error: x{shown}y\n", "Error: xa by\n")
    echo(f"{text}\n\tnext")
    assert capsys.readouterr().out.endswith("\n\tnext\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`path` holds no. Received: path='x'", "the file holds no. Received: 'x'"),
        ("`location` is none. Received: location='x'", "`DATA` is none. Received: DATA 'x'"),
        ("give image_key or `label_key`", "give --image-key or label key"),
        ("max_pixels raises it", "--max-pixels raises it"),
        ("`class_names` must", "`--classes` must"),
        ("/data/max_pixels/a.max_pixels", "/data/max_pixels/a.max_pixels"),
        ("with ['image_key']", "with ['image_key']"),
    ],
)
def test_arguments_become_options(capsys, text, shown):
    options = {
        "data": "DATA",
        "classes": "--classes",
        "max_pixels": "--max-pixels",
        "image_key": "--image-key",
    }
    set_options(options)
    print_error(text)
    assert capsys.readouterr().err == f"Error: {shown}\n"
    set_options({})


def test_messages_name_the_option_that_the_data_came_by(run, model, folder, tmp_path):
    """All were called DATA."""
    (tmp_path / "none").mkdir()
    (tmp_path / "out.tflite").write_bytes(b"no flatbuffer")
    out = ("--out", tmp_path / "out")
    commands = {
        "--images": ("verify", tmp_path / "out.tflite", model, "--images"),
        "--representative": ("export", model, *out, "--representative"),
        "TRAIN_DATA": ("harden", model, *out),
        "DATA": ("calibrate", "--epsilon", 2, "--out", tmp_path / "table.json"),
    }
    for name, arguments in commands.items():
        code, _, errors = run(*arguments, tmp_path / "none")
        assert code == 1
        assert f"`{name}` must hold" in errors
        assert f"Received: {name} '{tmp_path}/none'" in errors
    (tmp_path / "classes.txt").write_text("red\nblue\ngreen\n")
    classes = ("--classes", tmp_path / "classes.txt")
    harden = ("harden", model, folder, *out, *classes, "--validation-data", tmp_path / "none")
    assert f"Received: --validation-data '{tmp_path}/none'" in run(*harden)[2]
