"""Measure every part in new processes, compare with the goals, and write JSON and page."""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks.performance.machine import machine, versions
from benchmarks.performance.scale import FULL, SMOKE

PARTS = ("baselines", "kernel", "sizes", "memory", "tflite", "gpu", "pipeline", "startup")

# Parts that are measured with each number of threads; the others, with the most.
_BY_THREADS = ("baselines", "kernel", "sizes")

_SYSTEM_MEMORY = {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"}

_ROOT = Path(__file__).parents[2]


def main():
    parser = argparse.ArgumentParser(description="Measure speed and memory against their goals.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", choices=PARTS, help="keep earlier results of other parts")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to test the command")
    arguments = parser.parse_args()
    chosen = [arguments.only] if arguments.only else PARTS
    parts = {}
    for run in track(list(_runs(chosen, arguments.smoke)), description="Measuring"):
        for part, found in _measured(*run, arguments.smoke).items():
            earlier = parts.setdefault(part, {"rows": [], "not_run": []})
            earlier["rows"] += found["rows"]
            earlier["not_run"] += [x for x in found["not_run"] if x not in earlier["not_run"]]
    _write(arguments, parts)


def _runs(chosen, smoke):
    """Parts and number of threads of each process; a smoke run takes one process for all."""
    threads = (SMOKE if smoke else FULL).threads
    if smoke:
        yield chosen, threads[-1]
        return
    for part in chosen:
        for count in threads if part in _BY_THREADS else threads[-1:]:
            yield [part], count


def _measured(parts, threads, smoke):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "results.json")
        command = [sys.executable, "-m", "benchmarks.performance.worker", *parts]
        command += ["--threads", str(threads), "--out", str(out), *["--smoke"] * smoke]
        environment = {**os.environ, **(_SYSTEM_MEMORY if "memory" in parts else {})}
        process = subprocess.run(
            command, cwd=_ROOT, env=environment, capture_output=True, text=True
        )
        if process.returncode:
            raise SystemExit(f"{' '.join(parts)} failed:\n{process.stderr[-4000:]}")
        return json.loads(out.read_text())


def _write(arguments, parts):
    # These import TensorFlow, which must not disturb the measurements.
    from benchmarks.performance.goals import judged
    from benchmarks.performance.page import write
    from benchmarks.performance.tables import goals_in_terminal
    from fd_keras._files import atomic_path

    target = arguments.out / "performance.json"
    about = {
        "command": "python -m benchmarks.performance" + " --smoke" * arguments.smoke,
        "machine": machine(),
        "versions": versions(),
    }
    date = datetime.date.today().isoformat()
    found = {name: {"date": date, **parts[name]} for name in PARTS if name in parts}
    if arguments.only and target.exists():
        earlier = json.loads(target.read_text())
        if all(earlier[key] == value for key, value in about.items()):
            found = {**earlier["parts"], **found}
    result = {**about, "goals": judged(found), "parts": found}
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    write(arguments.out / "performance.html", result)
    Console().print(goals_in_terminal(result["goals"]))


if __name__ == "__main__":
    main()
