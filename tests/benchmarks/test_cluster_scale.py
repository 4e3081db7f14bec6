"""What the page on scale says of its figures."""

import json
from pathlib import Path

from benchmarks.cluster_scale import GOAL, WAYS, markdown

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_page_judges_the_largest_set():
    def row(files, one, two):
        seconds = {"1 worker": one, "2 workers": two, "1 process": 3.0, "2 processes": 2.0}
        return {"files": files, "seconds": seconds, "megabytes": dict.fromkeys(WAYS, 500.0)}

    results = {
        "command": "python -m benchmarks.cluster_scale",
        "machine": "some, 2 cores",
        "distributed": "1",
        "tensorflow": "2",
        "images_in_file": 100,
        "rounds": 3,
        "rows": [row(1, 2.0, 2.0), row(10, 4.0, 2.1)],
    }
    page = markdown(results)
    assert "| 1000   |" in page
    judged = f"Goal: two workers {GOAL} times as fast as one. Reached: 1.90 on"
    assert judged in page
    assert "plain processes reach 1.50" in page
    results["rows"].reverse()
    assert "Missed: 1.00 on" in markdown(results)


def test_the_page_agrees_with_the_json_file():
    results = json.loads((RESULTS / "scale.json").read_text())
    assert (RESULTS / "scale.md").read_text(encoding="utf-8") == markdown(results)
