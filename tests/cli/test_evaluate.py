"""``fd-keras evaluate`` on a model and data made for it."""

import io
import json
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import fd_keras_cli
from fd_keras.evaluation import Protocol, bim, protocols
from fd_keras_cli.console import print_error, print_note

pytest.importorskip("art", reason="ART is not installed")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A linear model of two classes, images it mostly gets right, and a short protocol."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 1))
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    model = keras.Model(inputs, outputs)
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(2).integers(0, 256, (40, 16, 16, 1)).astype(np.uint8)
    labels = model.predict(images, verbose=0).argmax(-1)
    labels[:3] = 1 - labels[:3]
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    short = Protocol("short", "", (bim(8, 2),), (bim(8, 2),))
    monkeypatch.setitem(protocols.PROTOCOLS, "short", short)
    monkeypatch.setattr("fd_keras_cli.evaluate.PROTOCOL_NAMES", ("short",))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path


@pytest.fixture
def run(run, files):
    return lambda *arguments: run("evaluate", *arguments, "--protocol", "short")


def test_report(run, files, next_command):
    code, out, err = run(
        files / "model.keras", files / "data.npz", "--out", files / "out", "--baseline", "bits:3"
    )
    assert code == 0, err
    report = json.loads((files / "out" / "report.json").read_text())
    assert report["settings"]["count"] == 37
    assert report["settings"]["data"] == "data.npz"
    assert {row["defence"] for row in report["rows"]} == {"none", "liu2019", "3 bits"}
    assert "gray-box" in out
    assert "adaptive" in out
    assert next_command(out)[:3] == [str(files / "model.keras"), "--table", "liu2019"]
    page = (files / "out" / "report.html").read_text()
    assert "liu2019" in page
    assert list((files / "keras" / "fd_keras" / "evaluation").rglob("*.npy"))


def test_two_passes(run, files, next_command):
    arguments = ("--passes", "2", "--baseline", "bits:3", "--limit", "adaptive=4")
    code, out, err = run(
        files / "model.keras", files / "data.npz", "--out", files / "out", *arguments
    )
    assert code == 0, err
    report = json.loads((files / "out" / "report.json").read_text())
    assert report["settings"]["passes"] == 2
    assert report["settings"]["count"] == 40
    for model in ("two-pass gray-box", "two-pass adaptive", "certified"):
        assert model in out
    assert all(entry["two_passes"]["bytes_per_image"] > 0 for entry in report["defences"])
    assert next_command(out)[:4] == ["IMAGES", "--encode", "--table", "liu2019"]
    page = (files / "out" / "report.html").read_text()
    assert "Certified accuracy against bytes per image" in page


def test_a_damaged_file_of_the_cache_is_named_and_computed_again(files, monkeypatch, capfd):
    """What is shown beside progress bars goes to the file descriptor."""
    paths = (files / "model.keras", files / "data.npz", "--out", files / "out")
    command = ["fd-keras", "evaluate", *map(str, paths), "--protocol", "short"]
    monkeypatch.setattr(sys, "argv", command)

    def evaluated():
        with pytest.raises(SystemExit) as ended:
            fd_keras_cli.main()
        assert ended.value.code == 0
        rows = json.loads((files / "out" / "report.json").read_text())["rows"]
        return rows, " ".join(capfd.readouterr().err.split())

    rows, err = evaluated()
    assert "damaged" not in err
    path = next((files / "keras" / "fd_keras" / "evaluation").rglob("*.npy"))
    path.write_bytes(path.read_bytes()[:-40])
    again, err = evaluated()
    assert f"Warning: {path} is damaged" in err
    assert again == rows


def test_limits_and_the_earlier_name_of_baseline(run, files):
    arguments = ("--rival", "bits:3", "--baseline", "bits:2", "--limit", "BIM=9")
    code, _, err = run(
        files / "model.keras", files / "data.npz", "--out", files / "out", *arguments
    )
    assert code == 0, err
    report = json.loads((files / "out" / "report.json").read_text())
    assert {row["defence"] for row in report["rows"]} == {"none", "liu2019", "2 bits", "3 bits"}
    assert {row["count"] for row in report["rows"] if row["attack"] != "none"} == {9}
    assert report["settings"]["limits"] == {"BIM": 9}


def test_help_names_the_baseline_and_hides_its_earlier_name(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run("--help")
    assert "--baseline" in out
    assert "rival" not in out


def test_class_names_must_fit_the_outputs(run, files):
    (files / "classes.txt").write_text("cat\ndog\nfish\n")
    arguments = ("--out", files / "out", "--classes", files / "classes.txt")
    code, _, err = run(files / "model.keras", files / "data.npz", *arguments)
    assert code == 1
    assert "one name for each of the 2 outputs" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.keras", "none.npz", "--out", "out"], "none.npz"),
        (["none.keras", "data.npz", "--out", "out"], "none.keras"),
        (["model.keras", "data.npz", "--out", "data.npz"], "`--out` must be a directory"),
        (["model.keras", "data.npz", "--out", "out", "--limit", "BIM"], "must be NAME=COUNT"),
        (
            ["model.keras", "data.npz", "--out", "out", "--limit", "XX=1"],
            "NAME=COUNT with",
        ),
        (
            ["model.keras", "data.npz", "--out", "out", *("--limit", "BIM=1", "--limit", "BIM=2")],
            "`--limit` must be given once for a name. Received: BIM=1 and BIM=2",
        ),
        (
            ["model.keras", "data.npz", "--out", "out", "--attack", "deepfool", "--epsilon", "4"],
            "`--epsilon` is the bound of an attack that has one",
        ),
        (["model.keras", "data.npz", "--out", "out", "--table", "no.json"], "no.json"),
        (["model.keras", "data.npz", "--out", "out", "--probabilities"], "return probabilities"),
        (
            ["model.keras", "data.npz", "--out", "out", "--passes", "2", "--baseline", "median:3"],
            "`--passes` must be 1 for defences without an encoder",
        ),
    ],
)
def test_errors_are_one_line_and_leave_nothing(run, files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    code, _, err = run(*arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert not (files / "out").exists()


def test_names_of_classes_are_text_in_pages_and_terminals(run, files):
    """Folders of others name the classes: neither markup of rich nor of HTML."""
    names = ["[red]<script>alert(1)<", "[link=x]\x1b[31m&amp;"]
    for number, name in enumerate(names):
        (files / "data" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.full((8, 8, 3), 100 + 10 * number + i, np.uint8)
            Image.fromarray(pixels).save(files / "data" / name / f"[red]<b>{i}.png")
        (files / "data" / name / "[bold]<i>\x1b[7m.png").write_bytes(b"no image")
    (files / "classes.txt").write_text("\n".join(names))
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(2))
    model.set_weights([np.tile([[-1.0, 1.0]], (192, 1)), np.array([106.0, -106.0]) * 192])
    model.save(files / "[red]<model>.keras")
    code, printed, errors = run(
        *(files / "[red]<model>.keras", files / "data"),
        *("--classes", files / "classes.txt"),
        *("--logits", "--out", files / "[red]<out>", "--cache", files / "cache"),
    )
    assert code == 0, errors
    assert "[red]<out>/report.html" in printed
    assert "\x1b" not in printed
    for tell in (print_error, print_note):
        output = io.StringIO()
        tell(f"{names[0]} {names[1]}", Console(file=output, color_system=None))
        assert "[red]<script>alert(1)< [link=x]\\x1b[31m&amp;" in output.getvalue()
    page = (files / "[red]<out>" / "report.html").read_text(encoding="utf-8")
    assert "[red]&lt;script&gt;alert(1)&lt;" in page
    assert "<script" not in page
    assert "\x1b" not in page
