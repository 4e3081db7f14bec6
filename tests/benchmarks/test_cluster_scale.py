"""What the page on scale says of its figures."""

from benchmarks.cluster_scale import GOAL, markdown


def test_the_page_judges_the_largest_set():
    def row(files, one, two):
        return {
            "files": files,
            "seconds": {"1 worker": one, "2 workers": two, "2 processes": 2.0},
            "worker_megabytes": {"1 worker": 500.0, "2 workers": 510.0},
        }

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
    assert f"Goal: two workers {GOAL} times as fast as one. Reached: 1.90 on" in page
    results["rows"].reverse()
    assert "Missed: 1.00 on" in markdown(results)
