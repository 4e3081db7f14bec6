"""Seconds to import the package and to print the command line's help."""

import statistics
import subprocess
import sys
import time

IMPORT, HELP = "import fd_keras, beyond tensorflow", "fd-keras --help"

_IMPORTS = """
import time, tensorflow
times = [time.perf_counter()]
import keras
times.append(time.perf_counter())
import fd_keras
times.append(time.perf_counter())
print(times[1] - times[0], times[2] - times[1])
"""


def measure(scale):
    """Rows in seconds, each a median over new processes."""
    imports, helps = [], []
    for _ in range(scale.processes):
        imports.append([float(value) for value in _output("-c", _IMPORTS).split()])
        start = time.perf_counter()
        _output("-m", "fd_keras_cli", "--help")
        helps.append(time.perf_counter() - start)
    keras, package = (statistics.median(column) for column in zip(*imports))
    both = statistics.median(map(sum, imports))
    rows = [
        {"name": IMPORT, "seconds": both},
        {"name": "of it: import keras", "seconds": keras},
        {"name": "of it: fd_keras and the rest", "seconds": package},
        {"name": HELP, "seconds": statistics.median(helps)},
    ]
    return {"rows": rows, "not_run": []}


def _output(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
