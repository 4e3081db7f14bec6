"""Fronts of two versions, compared, and the page as it is committed."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.earlier_version import LEAST_BENIGN, hypervolume, markdown
from experiments.shared_models import SHARED

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_hypervolume_is_the_share_of_points_below_the_front():
    rng = np.random.default_rng(1)
    for _ in range(10):
        front = rng.uniform((0.85, 0), (1, 1), (6, 2))
        points = rng.uniform((LEAST_BENIGN, 0), (1, 1), (20000, 2))
        below = (points[:, None] <= front).all(axis=2).any(axis=1)
        assert hypervolume(front.tolist()) == pytest.approx(below.mean(), abs=0.02)
    assert hypervolume([[1.0, 1.0]]) == pytest.approx(1)
    assert hypervolume([[LEAST_BENIGN, 1.0]]) == 0


def test_the_page_agrees_with_the_json_file():
    results = json.loads((RESULTS / "earlier_version.json").read_text())
    assert (RESULTS / "earlier_version.md").read_text(encoding="utf-8") == markdown(results)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_the_worker_measures_this_version(tmp_path):
    from benchmarks.earlier_version_worker import evaluation, search
    from experiments.networks import classifier_and_data

    classifier, data = classifier_and_data("cifar10")
    few = tuple(part[:32] for part in data)
    options = {"images": 16, "seed": 1, "trials": 2, "defences": ["bits:3"]}
    found = search(classifier, few, argparse.Namespace(**options), tmp_path)
    assert found["seconds"] > 0
    assert all(0 <= share <= 1 for point in found["front"] for share in point)
    options["images"] = 2
    found = evaluation(classifier, few, argparse.Namespace(**options), tmp_path / "cache")
    assert found["images"] == 2
    assert "gray-box DeepFool" in found["undefended"]
