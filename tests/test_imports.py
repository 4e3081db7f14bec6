"""Public names, and the modules that ``import fd_keras`` loads."""

import subprocess
import sys

import fd_keras


def test_public_names_exist():
    assert {"Classifier", "FeatureDistillation", "evaluate", "harden", "refine"} < set(
        fd_keras.__all__
    )
    for name in fd_keras.__all__:
        assert hasattr(fd_keras, name), name


def test_extras_and_the_search_are_imported_where_they_are_used():
    script = """
import sys, keras
before = set(sys.modules)
import fd_keras
brought = {name.partition(".")[0] for name in set(sys.modules) - before}
extras = {"art", "dask", "distributed", "jinja2", "keras_tuner", "matplotlib", "sklearn"}
unwanted = brought & extras
assert not unwanted, unwanted
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_other_backends_are_refused_by_name():
    """They are not installed here, so Keras is made to say that it has one."""
    script = """
import importlib, keras
for backend in ("jax", "torch"):
    keras.backend.backend = lambda: backend
    for module in ("fd_keras", "fd_keras.layer", "fd_keras_cli.models"):
        try:
            importlib.import_module(module)
            from fd_keras import protect
        except ImportError as error:
            print(error)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "fd_keras needs the TensorFlow backend of Keras: set KERAS_BACKEND=tensorflow before "
        f"Keras is imported. Received: the backend {backend!r}"
        for backend in ("jax", "torch")
        for _ in range(3)
    ]
