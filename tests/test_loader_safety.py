"""Files of others: nothing that a loader reads is unpickled, nor run."""

import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from keras.src.saving.serialization_lib import SafeModeScope

import fd_keras
from fd_keras._compat import ModelCodeError, load_model_file
from fd_keras.data.labelled_sources import open_labelled_images
from fd_keras.data.sources import open_images
from fd_keras.evaluation import EvaluationReport
from fd_keras.refinement import RefineResult
from fd_keras.statistics import CoefficientStatistics


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def trap(tmp_path):
    """A file that appears when code was run; it must not."""
    yield tmp_path / "was run"
    assert not (tmp_path / "was run").exists()


def trapped(trap):
    """A small classifier whose Lambda layer makes a file when it runs."""
    keras.utils.set_random_seed(1)
    path = str(trap)
    code = layers.Lambda(lambda x: (open(path, "a").close(), x)[1], output_shape=(8, 8, 3))
    return keras.Sequential([keras.Input((8, 8, 3)), code, layers.Flatten(), layers.Dense(3)])


@pytest.fixture
def lambdas(trap):
    """Its files."""
    model = trapped(trap)
    paths = [trap.with_name(f"model.{suffix}") for suffix in ("keras", "h5")]
    for path in paths:
        model.save(path)
    trap.unlink(missing_ok=True)  # it was run where the model was made
    return paths


def with_config(path, config):
    """An archive of Keras with another configuration."""
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    whole = json.loads(members["config.json"])
    whole["config"]["layers"][1] = config
    members["config.json"] = json.dumps(whole).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def entry(kind, module="keras.layers", registered=None, **config):
    return {
        "module": module,
        "class_name": kind,
        "config": config,
        "registered_name": registered,
        "build_config": {"input_shape": [None, 8, 8, 3]},
    }


def function(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


BRINGS_CODE = {
    "a lambda": entry("Lambda", function={"class_name": "__lambda__", "config": {"code": "4wE="}}),
    "a lambda elsewhere": entry("core.Lambda", "keras.src.layers", function="x"),
    "a function of a module": entry("Activation", activation=function("os", "system")),
    "a function of Python": entry("Activation", activation=function("builtins", "exec")),
    "a function inside Keras": entry(
        "Activation", activation=function("keras.src.utils.file_utils", "get_file")
    ),
    "a class of a module": entry("Popen", "subprocess", args="touch x"),
    "a class of a file here": entry("Layer", "spy_module"),
    "a pickle of torch": entry("TorchModuleWrapper", module_data="gASV"),
    "a SavedModel": entry("TFSMLayer", filepath="somewhere"),
    "an operation that writes": entry("TFOpLambda", function="io.write_file"),
    "an operation that loads": entry("TFOpLambda", function="load_op_library"),
}  # fmt: skip


@pytest.mark.parametrize("case", BRINGS_CODE)
def test_a_file_that_brings_code_is_refused_and_nothing_runs(case, trap, monkeypatch):
    (trap.parent / "spy_module.py").write_text(f"open({str(trap)!r}, 'w')")
    monkeypatch.syspath_prepend(trap.parent)
    path = trap.with_name("model.keras")
    with_config(path, BRINGS_CODE[case])
    with pytest.raises(ModelCodeError, match="it holds|it calls|could not locate"):
        load_model_file(path)
    with h5py.File(trap.with_name("model.h5"), "w") as file:
        file.attrs["model_config"] = zipfile.ZipFile(path).read("config.json")
    with pytest.raises(ModelCodeError):
        load_model_file(trap.with_name("model.h5"))
    # A file that is an archive, too, with another configuration.
    polyglot = trap.with_name("both.h5")
    innocent = io.BytesIO()
    with zipfile.ZipFile(innocent, "w") as archive:
        archive.writestr("config.json", "{}")
    polyglot.write_bytes(trap.with_name("model.h5").read_bytes() + innocent.getvalue())
    with pytest.raises(ModelCodeError):
        load_model_file(polyglot)


def test_lambda_layers_need_the_users_word(lambdas, trap, run, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros((6, 8, 8, 3), np.uint8), y=np.arange(6) % 3)
    commands = {
        "apply": [tmp_path / "missing.png", "--encode", "--model", lambdas[0]],
        "evaluate": [lambdas[0], tmp_path / "data.npz"],
        "export": [lambdas[0]],
        "harden": [lambdas[1], tmp_path / "data.npz"],
        "refine": [lambdas[1], tmp_path / "data.npz"],
    }
    (tmp_path / "missing.png").write_bytes(b"no image")
    for command, arguments in commands.items():
        code, _, errors = run(command, *arguments, "--out", tmp_path / f"out {command}")
        assert code == 1
        assert "holds a Lambda layer, whose Python code is not run; pass --allow-code" in errors, (
            command
        )
    (tmp_path / "model.tflite").touch()
    code, _, errors = run("verify", tmp_path / "model.tflite", lambdas[0])
    assert "pass --allow-code" in errors


def test_allowed_code_runs_through_a_whole_command(run, tmp_path):
    """Where the model is cloned, too."""
    keras.utils.set_random_seed(1)
    code = layers.Lambda(lambda x: x / 255.0, output_shape=(8, 8, 3))
    model = keras.Sequential([keras.Input((8, 8, 3)), code, layers.Flatten(), layers.Dense(3)])
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=images, y=model.predict(images, verbose=0).argmax(-1))
    arguments = [tmp_path / "model.keras", tmp_path / "data.npz", "--out", tmp_path / "out"]
    with SafeModeScope(None):  # takes the permission back, which no public function can
        settings = ("--epochs", "1", "--epsilon", "0", "--max-benign-loss", "1")
        code, _, errors = run("harden", *arguments, *settings, "--logits", "--allow-code")
        assert code == 0, errors
    assert (tmp_path / "out" / "model.keras").exists()
    with pytest.raises(ValueError, match="holds no model that Keras can load .*Lambda"):
        fd_keras.HardenResult.load(tmp_path / "out")


LOADERS = {
    "images": ("a.npz", open_images),
    "labelled": ("a.npz", lambda path: open_labelled_images(path, (8, 8, 3))),
    "table": ("a.json", fd_keras.QuantizationTable.load),
    "statistics": ("a.json", CoefficientStatistics.load),
    "report": ("a.json", EvaluationReport.from_json),
    "search": ("a.json", RefineResult.load),
}


@pytest.mark.parametrize("case", LOADERS)
@pytest.mark.parametrize("kind", ["pickle", "array", "archive"])
def test_nothing_is_unpickled(case, kind, trap, tmp_path):
    name, load = LOADERS[case]
    path = tmp_path / name
    with open(path, "wb") as file:
        if kind == "pickle":
            pickle.dump(Touch(trap), file)
        elif kind == "array":
            np.save(file, np.array([Touch(trap)], object), allow_pickle=True)
        else:
            np.savez(file, x=np.array([Touch(trap)] * 3, object), y=np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=re.escape(name)):
        list(load(path if name.endswith("json") else str(path)))


def test_no_source_file_unpickles():
    """Nor does a new one: whoever needs it has to change this test."""
    sources = [*Path(fd_keras.__file__).parent.rglob("*.py")]
    sources += [*(Path(fd_keras.__file__).parents[1] / "fd_keras_cli").rglob("*.py")]
    for source in sources:
        text = source.read_text(encoding="utf-8")
        for word in ("pickle.load", "allow_pickle=True", "yaml.load", "marshal", "joblib", "eval("):
            assert word not in text.replace("literal_eval(", ""), f"{source}: {word}"
