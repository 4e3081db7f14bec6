"""What is left of commands that Ctrl-C or SIGTERM ends: a line, and the shell's exit code."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import typer
from keras import layers
from PIL import Image

from fd_keras_cli import console
from fd_keras_cli.app import app

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def test_exit_codes_are_documented():
    """What each of them means is tested with the commands."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
    codes = re.findall(r"^\| (\d+) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code in codes] == [0, 1, 2, *CODES.values()]


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """Shells ignore SIGINT for what they run in the background, such as this test run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_the_block_after_it_tidied_up(number, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)

    @console.interruptible("Interrupted, as it was")
    def work():
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            (tmp_path / "tidy").touch()

    with pytest.raises(typer.Exit) as ended:
        work()
    assert ended.value.exit_code == CODES[number]
    assert (tmp_path / "tidy").exists()
    assert capsys.readouterr().err == "Interrupted, as it was\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_of_somebody_else_stays():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("theirs"))
    try:
        with console.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["theirs"]


ARGUMENTS = {
    "apply": ["image.png", "--out", "out"],
    "calibrate": [".", "--epsilon", "2", "--out", "table.json"],
    "certify": ["image.png"],
    "compress": ["image.png", "--out", "out"],
    "demo": [],
    "evaluate": ["model.keras", ".", "--out", "out"],
    "export": ["model.keras", "--out", "out"],
    "harden": ["model.keras", ".", "--out", "out"],
    "inspect": ["image.png"],
    "refine": ["model.keras", ".", "--out", "out"],
    "tune": ["model.keras", ".", "--out", "out"],
    "verify": ["model.tflite", "model.keras"],
}


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("command", ARGUMENTS)
def test_every_command_ends_with_a_line(command, number, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("image.png")
    for name in ("model.keras", "model.tflite"):
        (tmp_path / name).touch()  # missing files are refused first
    opened = console.tempfile.TemporaryFile

    def kill(*arguments):
        os.kill(os.getpid(), number)
        time.sleep(10)
        return opened(*arguments)

    monkeypatch.setattr(console.tempfile, "TemporaryFile", kill)
    code, _, err = run(command, *ARGUMENTS[command])
    assert (code, err.count("\n")) == (CODES[number], 1), err
    assert err.startswith("Interrupted")


def test_every_command_is_tried():
    names = {info.name or info.callback.__name__ for info in app.registered_commands}
    assert names == set(ARGUMENTS)


def test_a_terminated_export_leaves_nothing(tmp_path):
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(3)])
    model.save(tmp_path / "model.keras")
    (tmp_path / "temporary").mkdir()
    served = tmp_path / "out" / "saved_model"
    arguments = ["export", "model.keras", "--table", "liu2019", "--out", "out"]
    with subprocess.Popen(
        [sys.executable, "-m", "fd_keras_cli", *arguments],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # While the SavedModel is proven in a process of its own.
        while process.poll() is None and not list(tmp_path.glob("temporary/*/inputs.npz")):
            time.sleep(0.05)
        assert list(served.glob(".1.*"))
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Interrupted" in errors
    assert list((tmp_path / "temporary").iterdir()) == []
    assert list(served.iterdir()) == []
