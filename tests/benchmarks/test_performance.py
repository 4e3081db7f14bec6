"""A smoke test of the performance benchmark, and tests of its goals and profiles."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.performance.goals import judged
from benchmarks.performance.pipeline import COMPUTING, FILES, place_of

ROOT = Path(__file__).parents[2]


_EARLIER_WORKER = """
import json, sys
rows = [{"name": "fd-keras --help", "seconds": 2.5, "threads": 2}]
out = sys.argv[sys.argv.index("--out") + 1]
open(out, "w").write(json.dumps({"startup": {"rows": rows, "not_run": []}}))
"""


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder that a smoke run wrote to, and what it printed."""
    out = tmp_path_factory.mktemp("performance")
    # An earlier version that has one part.
    before = tmp_path_factory.mktemp("before")
    worker = before / "benchmarks" / "performance" / "worker.py"
    worker.parent.mkdir(parents=True)
    worker.write_text(_EARLIER_WORKER)
    for package in (worker.parent, worker.parents[1]):
        (package / "__init__.py").touch()
    command = [sys.executable, "-m", "benchmarks.performance", "--smoke", "--out", str(out)]
    command += ["--before", str(before)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return out, process.stdout


def test_every_part_is_measured_or_says_why_not(smoke):
    out, printed = smoke
    result = json.loads((out / "performance.json").read_text())
    for part, found in result["parts"].items():
        assert found["rows"] or found["not_run"], part
        assert all(entry["reason"] for entry in found["not_run"])
    assert {"processor", "cores", "memory_gb"} <= result["machine"].keys()
    assert result["command"] == "python -m benchmarks.performance --smoke"
    names = {row["name"] for row in result["parts"]["baselines"]["rows"]}
    assert {"layer", "gradient", "tf.signal end to end", "libjpeg round trip (Pillow)"} <= names
    assert "layer, soft thresholding" in names
    assert "peak extra memory, in inputs" in printed


def test_goals_are_judged_unless_their_extra_is_missing(smoke):
    result = json.loads((smoke[0] / "performance.json").read_text())
    incomplete = {"gpu"} | {
        part
        for part, found in result["parts"].items()
        if any("not installed" in entry["reason"] for entry in found["not_run"])
    }
    for goal in result["goals"]:
        assert (goal["figure"] is not None) or goal["part"] in incomplete, goal


def test_goals_stand_beside_those_of_an_earlier_version(smoke):
    result = json.loads((smoke[0] / "performance.json").read_text())
    before = {goal["goal"]: goal["before"] for goal in result["goals"]}
    assert before.pop("seconds of fd-keras --help") == 2.5
    assert set(before.values()) == {None}
    page = (smoke[0] / "performance.html").read_text()
    assert "<summary>Before</summary>" in page
    assert "2.500" in page
    assert "before" in smoke[1]


def test_an_earlier_version_must_be_a_checkout(tmp_path):
    command = [sys.executable, "-m", "benchmarks.performance", "--smoke", "--before", str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert "--before must be a checkout" in process.stderr


def test_page_needs_no_other_file(smoke):
    page = (smoke[0] / "performance.html").read_text()
    assert "falls short" in page or "holds" in page
    assert 'src="data:' in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("fd_keras.data.files", FILES),
        ("fd_keras._files", FILES),
        ("fd_keras.kernels", COMPUTING),
        ("fd_keras.evaluation.evaluate", "fd_keras/evaluation/evaluate"),
    ],
)
def test_the_time_of_a_module_goes_to_its_place(module, place):
    """Patterns of places name files of the package, and missed those that had moved."""
    file = importlib.import_module(module).__file__
    assert place_of(file, "function") == place


def test_a_figure_beyond_its_limit_falls_short():
    def goals(seconds):
        row = {"name": "fd-keras --help", "seconds": seconds, "threads": 2}
        judgements = judged({"startup": {"rows": [row]}})
        return {goal["goal"]: goal for goal in judgements}

    assert goals(0.4)["seconds of fd-keras --help"]["holds"] is True
    assert goals(0.6)["seconds of fd-keras --help"]["holds"] is False
    assert goals(0.6)["gradient, in forward passes"]["holds"] is None
