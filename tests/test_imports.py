"""What ``import fd_keras`` costs beyond ``import keras``."""

import subprocess
import sys


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
