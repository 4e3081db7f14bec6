"""Seconds to import the package, to print the command line's help, and to refuse a file."""

import statistics
import subprocess
import sys
import time

IMPORT, HELP = "import fd_keras, beyond tensorflow", "fd-keras --help"
REFUSAL = "fd-keras evaluate, of a model that does not exist"
_REFUSED = ("evaluate", "no-model.keras", "cifar10", "--out", ".")

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
    imports, helps, refusals = [], [], []
    for _ in range(scale.processes):
        imports.append([float(value) for value in _output("-c", _IMPORTS).split()])
        for seconds, arguments, code in ((helps, ["--help"], 0), (refusals, _REFUSED, 1)):
            start = time.perf_counter()
            _output("-m", "fd_keras_cli", *arguments, code=code)
            seconds.append(time.perf_counter() - start)
    keras, package = (statistics.median(column) for column in zip(*imports))
    both = statistics.median(map(sum, imports))
    rows = [
        {"name": IMPORT, "seconds": both},
        {"name": "of it: import keras", "seconds": keras},
        {"name": "of it: fd_keras and the rest", "seconds": package},
        {"name": HELP, "seconds": statistics.median(helps)},
        {"name": REFUSAL, "seconds": statistics.median(refusals)},
    ]
    return {"rows": rows, "not_run": []}


def _output(*arguments, code=0):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode != code:
        raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr}")
    return done.stdout
