"""What a user of the command line is told: its own words, whole lines of help, the next command."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import typer
from PIL import Image

import fd_keras
from fd_keras.evaluation.defences.registry import _PARAMETERS, CANDIDATES
from fd_keras.evaluation.protocols import _BY_NAME, PROTOCOLS
from fd_keras_cli import options
from fd_keras_cli.app import app

# Its set-up of logging closes standard error, if it is first imported where that is captured.
pytest.importorskip("art")

COMMANDS = typer.main.get_command(app).commands

# Python's arguments and values, and functions that no command has.
PYTHON = re.compile(
    r"`[a-z]+(?:_[a-z]+)*`|(?<![\w-])[a-z]+(?:_[a-z]+)*=|\b(?:True|False)\b|Received: None"
    r"|--[\w-]+ None|\w+Error\b|\bunprotect\b|Errno|Traceback"
)


def flat(size, *layers, channels=3):
    return keras.Sequential([keras.Input((*size, channels)), keras.layers.Flatten(), *layers])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of all kinds, in the folder that the commands run in."""
    folder = tmp_path_factory.mktemp("words")
    dense = keras.layers.Dense
    model = flat((8, 8), dense(3))
    model.save(folder / "model.keras")
    saturated = flat((8, 8), dense(3, activation="softmax"))
    saturated.layers[-1].set_weights([np.tile(np.eye(3), (64, 1)), np.array([0.0, -1e-3, -1e-3])])
    saturated.save(folder / "softmax.keras")
    flat((8, 8), dense(3), channels=2).save(folder / "two_channels.keras")
    keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()]).save(
        folder / "any.keras"
    )
    inputs = keras.Input((8, 8, 3))
    features = keras.layers.Flatten()(inputs)
    keras.Model(inputs, [dense(3)(features), dense(3)(features)]).save(folder / "multi.keras")
    fd_keras.protect(model, fd_keras.FeatureDistillation("liu2019")).save(folder / "ours.keras")
    x = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 3), np.uint8)
    y = model.predict(x.astype(np.float32), verbose=0).argmax(-1)
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "wrong.npz", x=x, y=y + 7)
    # Of one colour each, so that the softmax is right and saturated.
    colours = np.zeros((12, 8, 8, 3), np.uint8)
    for index in range(12):
        colours[index, ..., index % 3] = 255
    np.savez(folder / "colours.npz", x=colours, y=np.arange(12) % 3)
    np.savez(folder / "none.npz", x=x)
    np.savez(folder / "one.npz", x=x[:1], y=y[:1])
    Image.fromarray(x[0]).save(folder / "image.png")
    Image.fromarray(x[0]).save(folder / "image.jpg")
    (folder / "notes.json").write_text("{}")
    (folder / "notes.txt").write_text("notes")
    (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / "empty").mkdir()
    (folder / "model.tflite").write_bytes(b"none")
    fd_keras.QuantizationTable(np.full((8, 8), 9), quantizer="soft").save(folder / "soft.json")
    return folder


EVALUATE = "evaluate {} data.npz --out report --attack fgsm --epsilon 2"

WRONG = {
    "apply image.png --table image.jpg --out out": "no quantisation table",
    "apply image.png --table empty --out out": "`--table`",
    "apply image.png --table notes.json --out out": "notes.json",
    "apply image.png --encode --table soft.json --out out": "`--table` must round",
    "apply image.png --encode --model ours.keras --out out": "--strip-layer",
    "apply image.png --encode --model multi.keras --out out": "--model-output",
    "calibrate data.npz --epsilon 0 --out t.json": "`--epsilon`",
    "calibrate data.npz --epsilon 2 --distortion-budget 0 --out t.json": "`--distortion-budget`",
    "calibrate data.npz --epsilon 2 --max-step 1 --out t.json": "--max-step 1",
    "calibrate data.npz --epsilon 2 --scheduler none --out t.json": "`--scheduler`",
    "certify image.png --table soft.json": "`--table` must round",
    "compress image.png --table soft.json --out out": "`--table` must round",
    "inspect notes.txt": "no JPEG image",
    "inspect notes.json": "no quantisation table",
    f"{EVALUATE.format('model.keras')} --baseline bits:99": "`--baseline`: bits must",
    f"{EVALUATE.format('model.keras')} --baseline median:0": "`--baseline`: size must",
    f"{EVALUATE.format('model.keras')} --limit none=3": "`--limit` must be NAME=COUNT",
    f"{EVALUATE.format('model.keras')} --value-range 1 0": "`--value-range`",
    f"{EVALUATE.format('model.keras')} --probabilities": "--logits",
    f"{EVALUATE.format('model.keras')} --import none": "`--import`",
    EVALUATE.format("multi.keras"): "no --model-output",
    EVALUATE.format("ours.keras"): "--strip-layer",
    EVALUATE.format("two_channels.keras"): "`MODEL`",
    EVALUATE.format("any.keras"): "`MODEL`",
    EVALUATE.format("notes.txt"): "`MODEL`",
    EVALUATE.format("model.keras").replace("data", "wrong"): "`DATA` must have labels",
    EVALUATE.format("model.keras").replace("data", "none"): "`DATA` must hold",
    # Pixels of 0..255, where the softmax would need 0..1.
    EVALUATE.format("softmax.keras").replace("data", "colours"): "from 0 to 255 (--value-range)",
    "refine model.keras data.npz --out search --adaptive 0": "`--adaptive`",
    "refine model.keras one.npz --out search": "`DATA` must hold two images",
    "harden model.keras one.npz --out hard": "no --validation-data",
    "harden model.keras data.npz --out hard --dtype-policy none": "`--dtype-policy`",
    "export model.keras --labels classes.txt --out out": "`--labels`",
    "export model.keras --image-size 4 4 --out out": "`--image-size`",
    "export model.keras --quantize int8 --format tflite --out out": "with --quantize int8",
    "verify model.tflite model.keras": "TFLite file",
    "verify empty model.keras": "`EXPORT`",
}


@pytest.mark.parametrize("line", WRONG)
def test_errors_speak_of_options(line, run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, _, errors = run(*line.split())
    (error,) = [text for text in errors.splitlines() if text.startswith("Error: ")]
    assert code == 1
    assert WRONG[line] in error
    assert not PYTHON.search(error), error


# What commands refuse of settings, before TensorFlow is imported.
BAD_SETTINGS = {
    "apply there --table jpeg:abc --out out": "--table jpeg:abc",
    "certify there --table certified:0": "--table certified:0",
    "compress there --table liu2019:3 --out out": "--table liu2019:3",
    "inspect jpeg:101": "FILE jpeg:101",
    "evaluate there there --out out --table jpeg:0": "--table jpeg:0",
    "evaluate there there --out out --baseline none:3 --baseline blur": "--baseline blur",
    "evaluate there there --out out --protocol none": "--protocol none",
    "evaluate there there --out out --attack none --epsilon 2": "--attack none",
    "refine there there --out out --protocol none": "--protocol none",
    "harden there there --out out --table jpeg:1.5": "--table jpeg:1.5",
    "export there --out out --table certified:2:hsv": "--table certified:2:hsv",
    "verify there there --table soft8:1": "--table soft8:1",
}


def test_bad_settings_are_refused_before_tensorflow_is_imported(tmp_path):
    script = """
import json, sys, fd_keras_cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["fd-keras", *arguments]
    try:
        fd_keras_cli.main()
    except SystemExit as end:
        assert end.code == 1, arguments
assert not {"tensorflow", "keras", "fd_keras", "numpy"} & set(sys.modules)
"""
    (tmp_path / "there").touch()
    calls = json.dumps([line.split() for line in BAD_SETTINGS])
    process = subprocess.run(
        [sys.executable, "-c", script, calls], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    errors = process.stderr.splitlines()
    assert len(errors) == len(BAD_SETTINGS)
    for error, received in zip(errors, BAD_SETTINGS.values()):
        assert error.endswith(f"Received: {received}")
        assert not PYTHON.search(error), error


def test_the_command_line_knows_the_names_of_settings():
    assert tuple(PROTOCOLS) == options.PROTOCOL_NAMES
    assert tuple(_BY_NAME) == options.ATTACK_NAMES
    assert tuple(_PARAMETERS) == options.BASELINE_NAMES
    assert tuple(CANDIDATES) == options.FAMILY_NAMES


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_with_names_whole(command, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    lines = out.splitlines()
    assert not [line for line in lines if len(line) > 80]
    words = set(re.findall(r"(?<![\w-])--[\w-]+", out))
    assert not [line for line in lines if re.search(r"\w-$", line)]  # broken in the middle
    if command:
        shown = [p for p in COMMANDS[command].params if not getattr(p, "hidden", False)]
        names = {name for p in shown for name in (*p.opts, *p.secondary_opts)}
        assert {name for name in names if name.startswith("--")} <= words
    if command == "evaluate":
        assert "black-box=" in out


def test_the_next_command_exists(run, folder, monkeypatch, tmp_path, next_command):
    monkeypatch.chdir(folder)
    out = tmp_path / "with a blank"
    for line in (
        "calibrate data.npz --epsilon 2 --out",
        "compress image.png --out",
        "apply image.png --encode --table certified:2 --out",
    ):
        code, printed, _ = run(*line.split(), out / line.split()[0])
        assert code == 0
        assert str(out / line.split()[0]) in next_command(printed)


def test_a_directory_of_versions_serves_as_a_model(run, folder, monkeypatch, tmp_path):
    """To every command that takes a MODEL, as one version in it does."""
    monkeypatch.chdir(folder)
    exported = "export model.keras --format saved_model --no-verify --out"
    assert run(*exported.split(), tmp_path)[0] == 0
    for model in (tmp_path / "saved_model", tmp_path / "saved_model" / "1"):
        apply = ("apply", "image.png", "--encode", "--model", model, "--out", tmp_path / model.name)
        assert run(*apply)[0] == 0
