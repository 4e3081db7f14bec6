"""The experiments on the speed of attacks and on detection as they are committed."""

import json

import numpy as np
import pytest

from experiments import attack_speed, detection
from experiments.harness import RESULTS


@pytest.mark.parametrize(
    ("name", "page"), [("attack_speed", attack_speed.page), ("detection", detection.page)]
)
def test_the_page_agrees_with_the_json_file(name, page):
    results = json.loads((RESULTS / f"{name}.json").read_text())
    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == page(results)


def test_ours_are_as_strong_as_arts_and_foolboxs_five_times_faster():
    rows = json.loads((RESULTS / "attack_speed.json").read_text())["attacks"]
    for name, row in rows.items():
        assert row["ours"]["success"] > row["art"]["success"] - 0.05, name
    for name in ("DeepFool", "CW-L2 next, at most 1000 steps"):
        found = rows[name]
        assert found["art"]["seconds_per_image"] > 5 * found["ours"]["seconds_per_image"]
        assert found["ours"]["mean_l2"] < 1.05 * found["art"]["mean_l2"]


def test_a_joint_score_is_the_largest():
    scores = {"a": np.array([0.1, 0.9]), "b": np.array([0.5, 0.2])}
    assert detection.joint(scores, ("a", "b")).tolist() == [0.5, 0.9]
    assert detection.areas(scores, {"x": scores}, ("a",)) == {"x": 0.5}
