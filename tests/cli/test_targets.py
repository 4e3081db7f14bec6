"""Outputs that cannot be written are refused before the work, in the command line's words."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from fd_keras.evaluation import EvaluationReport
from fd_keras.export.tflite_file import TFLiteFile
from fd_keras_cli.console import check_directory, check_target

# Its set-up of logging closes standard error, if it is first imported where that is captured.
pytest.importorskip("art")

# A directory in which nobody can make a file, not even root.
SEALED = Path("/proc")


@pytest.fixture
def picture(tmp_path):
    """No image: whoever reads it says so."""
    (tmp_path / "a.png").write_bytes(b"no image")
    return tmp_path / "a.png"


needs_sealed = pytest.mark.skipif(not SEALED.is_dir(), reason="there is no /proc")


@needs_sealed
@pytest.mark.parametrize("command", ["calibrate", "apply", "compress"])
def test_directories_that_cannot_be_written_to(run, picture, command):
    out = SEALED / ("table.json" if command == "calibrate" else "new")
    epsilon = ["--epsilon", "2"] if command == "calibrate" else []
    data = picture.parent if command == "calibrate" else picture
    code, _, errors = run(command, data, *epsilon, "--out", out)
    assert code == 1
    assert f"{SEALED} cannot be written to" in errors
    assert f"Received: --out {out}" in errors
    assert "a.png" not in errors


@pytest.mark.parametrize("check", [lambda path: check_target("--out", path), check_directory])
def test_checks_leave_nothing_behind(tmp_path, check):
    check(tmp_path / "new" / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="`--out` must be a .*file/out"):
        check(tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_pipes_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(ValueError, match="`--out` must be a file to write"):
            check_target("--out", target)


@needs_sealed
def test_links_are_checked_where_they_lead(tmp_path):
    (tmp_path / "good").symlink_to(tmp_path / "there.json")
    check_target("--out", tmp_path / "good")
    (tmp_path / "bad").symlink_to(SEALED / "there.json")
    with pytest.raises(ValueError, match=f"{SEALED} cannot be written to"):
        check_target("--out", tmp_path / "bad")


@pytest.fixture
def unreadable(tmp_path_factory, monkeypatch):
    """Work where files are that are neither models nor images."""
    directory = tmp_path_factory.mktemp("unreadable")
    monkeypatch.chdir(directory)
    for name in ("no model", "no data"):
        (directory / name).write_text(name)


WRITTEN = {
    "evaluate": ("report.html", ["no model", "no data"]),
    "evaluate figures": ("report.json", ["no model", "no data"]),
    "demo": ("report.html", []),
    "demo page": ("demo.html", []),
    "demo export": ("model.tflite", []),
    "export": ("model.tflite", ["no model"]),
    "export int8": ("model_int8.tflite", ["no model", "--quantize", "int8"]),
    "refine": ("report.md", ["no model", "no data"]),
    "harden": ("table.json", ["no model", "no data"]),
}


@pytest.mark.parametrize("case", WRITTEN)
@pytest.mark.usefixtures("unreadable")
def test_files_of_others_are_not_replaced(run, tmp_path, case):
    """Reports and exports were replaced, whoever wrote them."""
    name, arguments = WRITTEN[case]
    command = case.partition(" ")[0]
    (tmp_path / name).write_text("mine")
    code, _, errors = run(command, *arguments, "--out", tmp_path)
    assert code == 1
    assert f"`--out` holds {name}, which this command did not write and would replace" in errors
    assert ("--overwrite" in errors) == (command not in ("refine", "harden"))
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    code, _, errors = run(command, *arguments, "--out", tmp_path, "--overwrite")
    assert code == 1
    assert f"`--out` must hold no directory {name}" in errors


@pytest.mark.usefixtures("unreadable")
def test_files_that_a_command_wrote_are_replaced(run, tmp_path):
    pytest.importorskip("jinja2")
    EvaluationReport([]).to_json(tmp_path / "report.json")
    (tmp_path / "report.html").write_text("the page")
    arguments = ("no model", "no data", "--out", tmp_path)
    assert "`MODEL` must be a .keras" in run("evaluate", *arguments)[2]
    (tmp_path / "report.json").unlink()
    assert "did not write" in run("evaluate", *arguments)[2]
    assert "`MODEL` must be a .keras" in run("evaluate", *arguments, "--overwrite")[2]
    file = TFLiteFile(tiny_tflite())
    (tmp_path / "model.tflite").write_bytes(file.to_bytes())
    assert "did not write" in run("export", "no model", "--out", tmp_path)[2]
    file.add_details({"fd_keras": "1"})
    (tmp_path / "model.tflite").write_bytes(file.to_bytes())
    assert "`MODEL` must be a .keras" in run("export", "no model", "--out", tmp_path)[2]


def tiny_tflite():
    double = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([1])])
    functions = [double.get_concrete_function()]
    return tf.lite.TFLiteConverter.from_concrete_functions(functions).convert()


def test_a_file_that_an_option_names_is_replaced_unless_it_is_read(run, tmp_path):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    photo, table, figures = (tmp_path / name for name in ("a.png", "table.json", "figures.json"))
    table.write_text("something")
    assert run("calibrate", photo, "--epsilon", 2, "--out", table)[0] == 0
    figures.symlink_to(table)
    for arguments, option, other in (
        (("calibrate", photo, "--epsilon", 2, "--out", photo), "--out", "DATA"),
        (("calibrate", tmp_path, "--epsilon", 2, "--out", photo), "--out", "DATA"),
        (
            ("calibrate", photo, "--epsilon", 2, "--out", table, "--statistics", figures),
            "--statistics",
            "--out",
        ),
        (("inspect", table, "--plot", figures), "--plot", "FILE"),
        (("verify", photo, table, "--out", table), "--out", "MODEL"),
    ):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        code, _, errors = run(*arguments)
        assert code == 1
        assert f"`{option}` must be another file than {other}, which would be replaced" in errors
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@needs_sealed
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("verify", "no export", "no model"), "--out"),
        (("inspect", "no file"), "--plot"),
        (("evaluate", "no model", "no data", "--out", "out"), "--cache"),
        (("refine", "no model", "no data", "--out", "out"), "--cache"),
        (("demo",), "--out"),
        (("export", "no model"), "--out"),
        (("harden", "no model", "no data"), "--out"),
    ],
)
def test_every_output_is_checked_before_the_work(run, monkeypatch, tmp_path, command, option):
    monkeypatch.chdir(tmp_path)
    code, _, errors = run(*command, option, SEALED / "new")
    assert code == 1
    assert f"{SEALED} cannot be written to" in errors
    assert f"Received: {option} {SEALED}/new" in errors


@pytest.mark.parametrize(("command", "name"), [("harden", "training"), ("export", "saved_model")])
@pytest.mark.usefixtures("unreadable")
def test_directories_below_out_are_checked_too(run, tmp_path, command, name):
    (tmp_path / name).write_text("a file")
    data = ["no data"] if command == "harden" else []
    code, _, errors = run(command, "no model", *data, "--out", tmp_path)
    assert code == 1
    assert f"`--out` must be a directory. Received: --out {tmp_path / name}" in errors
