"""The paper's table as it is committed."""

from pathlib import Path

import pytest

from experiments.paper_table import added_up, detectors, duration, kept, side_by_side, summary
from fd_keras.evaluation import EvaluationReport
from fd_keras.evaluation.accuracies import accuracy_row

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_markdown_is_what_the_json_file_says():
    """Written anew by ``python -m experiments.paper_table --page``."""
    markdown = (RESULTS / "paper_table.md").read_text(encoding="utf-8")
    assert summary(kept(RESULTS / "paper_table.json")) == markdown


def test_both_numbers_of_passes_stand_beside_each_other():
    """Attacks that both have met, under their own threat models, and what only two passes have."""
    attack = {"attack": "FGSM .0156", "attack_family": "FGSM", "norm": "inf", "epsilon": 0.0156}

    def rows(name, benign, model, left):
        known = {"defence": name, "family": name, "count": 100}
        return [
            accuracy_row(**known, threat_model="benign", correct=benign),
            accuracy_row(**known, threat_model=model, correct=left, **attack),
        ]

    stored = {"file": "JPEG", "bytes_per_image": 899.4, "images": 100, "right_once_encoded": 90}
    entry = {"name": "liu2019", "family": "liu2019", "settings": {}, "ms_per_image": None}
    entry |= {"chosen_from": [], "two_passes": {**stored, "least_radius": 1, "median_radius": 1}}
    certified = accuracy_row(
        **{"defence": "liu2019", "family": "liu2019", "count": 100, "correct": 85},
        **{
            "threat_model": "certified",
            "attack": "within 1/255",
            "norm": "inf",
            "epsilon": 1 / 255,
        },
    )
    one = EvaluationReport(rows("liu2019", 96, "gray-box", 35) + rows("median", 95, "gray-box", 50))
    two = EvaluationReport([*rows("liu2019", 87, "two-pass gray-box", 93), certified], [entry])
    table = [line for line in side_by_side(one, two) if line.startswith("|")]
    (lines,) = [part.split("\n") for part in table]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2:] == [
        ["liu2019", "96.0", "87.0", "35.0", "93.0", "85.0", "-", "-", "899"],
        ["median", "95.0", "-", "50.0", "-", "-", "-", "-", "-"],
    ]


def test_seconds_add_up_over_runs_that_were_stopped(tmp_path, monkeypatch):
    clock = iter([0.0, 60.0, 100.0, 130.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    path = tmp_path / "cache" / "run.seconds"
    with pytest.raises(KeyboardInterrupt), added_up(path):
        raise KeyboardInterrupt
    with added_up(path):
        pass
    assert duration({"seconds_from_nothing": float(path.read_text())}).split()[2] == "2"
    assert duration({}) == ""


def test_detectors_have_a_dash_where_an_attack_fooled_no_image():
    entries = [
        {"defence": "liu2019", "attack": "FGSM .0156", "auc": 0.9},
        {"defence": "liu2019", "attack": "DeepFool", "auc": 0.95},
        {"defence": "zigzag15", "attack": "FGSM .0156", "auc": 0.8},
    ]
    (table,) = (part for part in detectors(entries) if part.startswith("|"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")]
    assert rows[0] == ["detector", "FGSM .0156", "DeepFool"]
    assert rows[2:] == [["liu2019", "0.900", "0.950"], ["zigzag15", "0.800", "-"]]
    assert detectors([]) == []
