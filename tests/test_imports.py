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
unwanted = brought & {"art", "jinja2", "keras_tuner", "matplotlib", "sklearn"}
assert not unwanted, unwanted
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
