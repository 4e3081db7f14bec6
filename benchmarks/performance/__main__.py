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

# Threads of NumPy's BLAS would wait for work on the processors that the next case needs.
_SHORT_WAITS = {"OPENBLAS_THREAD_TIMEOUT": "4"}

# For peaks of memory: what is freed goes back to the system at once.
_SYSTEM_MEMORY = {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}

_ROOT = Path(__file__).parents[2]


def main():
    parser = argparse.ArgumentParser(description="Measure speed and memory against their goals.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", choices=PARTS, help="keep earlier results of other parts")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to test the command")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="a checkout of an earlier version, which is measured in turns with this one",
    )
    arguments = parser.parse_args()
    chosen = [arguments.only] if arguments.only else PARTS
    checkouts = [_ROOT] if arguments.before is None else [arguments.before.resolve(), _ROOT]
    revision = _revision(checkouts[0]) if arguments.before is not None else None
    parts = {checkout: {} for checkout in checkouts}
    for run in track(list(_runs(chosen, arguments.smoke)), description="Measuring"):
        for checkout in checkouts:
            found = _measured(*run, arguments.smoke, checkout)
            _add(parts[checkout], found)
    before = None
    if arguments.before is not None:
        before = {"revision": revision, "parts": parts[checkouts[0]]}
    _write(arguments, parts[_ROOT], before)


def _revision(checkout):
    """The commit of a checkout; refuses what has no benchmark."""
    if not (checkout / "benchmarks" / "performance" / "worker.py").is_file():
        raise SystemExit(
            "--before must be a checkout of an earlier version of this repository. "
            f"Received: --before {checkout}"
        )
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or checkout.name


def _add(parts, found):
    """Add what one process measured to what those before it did."""
    for name, part in found.items():
        earlier = parts.setdefault(name, {"rows": [], "not_run": []})
        earlier["rows"] += part["rows"]
        earlier["not_run"] += [x for x in part["not_run"] if x not in earlier["not_run"]]


def _runs(chosen, smoke):
    """Parts and number of threads of each process; a smoke run takes one process for all."""
    threads = (SMOKE if smoke else FULL).threads
    if smoke:
        yield chosen, threads[-1]
        return
    for part in chosen:
        for count in threads if part in _BY_THREADS else threads[-1:]:
            yield [part], count


def _measured(parts, threads, smoke, checkout):
    """What a process measures; of an earlier version that lacks a part, why not."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "results.json")
        command = [sys.executable, "-m", "benchmarks.performance.worker", *parts]
        command += ["--threads", str(threads), "--out", str(out), *["--smoke"] * smoke]
        memory = _SYSTEM_MEMORY if "memory" in parts else {}
        environment = {**os.environ, **_SHORT_WAITS, **memory}
        # Before whatever version is installed, in the processes that a part starts, too.
        environment["PYTHONPATH"] = str(checkout)
        process = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True
        )
        if process.returncode and checkout != _ROOT:
            reason = process.stderr.strip().rpartition("\n")[2]
            entry = {"what": "the version before", "reason": reason}
            return {part: {"rows": [], "not_run": [entry]} for part in parts}
        if process.returncode:
            raise SystemExit(f"{' '.join(parts)} failed:\n{process.stderr[-4000:]}")
        return json.loads(out.read_text())


def _write(arguments, parts, before):
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
            same = before and earlier.get("before", {}).get("revision") == before["revision"]
            if same:
                before["parts"] = {**earlier["before"]["parts"], **before["parts"]}
    result = {**about, "goals": judged(found), "parts": found}
    if before is not None:
        for goal, one in zip(result["goals"], judged(before["parts"])):
            goal["before"] = one["figure"]
        result["before"] = before
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    write(arguments.out / "performance.html", result)
    Console().print(goals_in_terminal(result["goals"]))


if __name__ == "__main__":
    main()
