"""Images, folders and the command line, for several test modules."""

import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import typer
from hypothesis import settings

import fd_keras_cli

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Weights drawn at random are the same in every run, fixtures of a module included."""
    keras.utils.set_random_seed(20260101)


@pytest.fixture(scope="session")
def photos():
    """Two photographs of scikit-learn, uint8 (2, 427, 640, 3)."""
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)


@pytest.fixture(scope="session")
def shared():
    """The folder of development data that stands beside a checkout, where there is one."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the development data in ../shared is not here")
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``fd-keras`` and return its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fd-keras", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            fd_keras_cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


@pytest.fixture
def next_command():
    """What a command said comes next, which must exist with all of its options."""

    def found(out):
        line = out.splitlines()[-1]
        assert line.startswith("Next: fd-keras ")
        name, *arguments = shlex.split(line.removeprefix("Next: fd-keras "))
        commands = typer.main.get_command(fd_keras_cli.app.app).commands
        commands[name].make_context(name, list(arguments))
        return arguments

    return found
