"""AutoAttack from a GPU: its page as it is committed, and how its images are counted."""

import json

import numpy as np
import pytest

from experiments import autoattack
from experiments.harness import RESULTS
from experiments.shared_models import SHARED


def test_the_page_agrees_with_the_json_file():
    results = json.loads((RESULTS / "autoattack.json").read_text())
    assert (RESULTS / "autoattack.md").read_text(encoding="utf-8") == autoattack.page(results)


def test_fd_keras_counts_as_many_images_as_pytorch():
    cells = json.loads((RESULTS / "autoattack.json").read_text())["cells"]
    for cell in cells:
        *_, last = cell["counts"].values()
        assert cell["benign"] == cell["counts"]["benign"], cell["name"]
        assert cell["right"] == last, cell["name"]


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_changes_in_parts_of_epsilon_are_added_to_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(autoattack, "IMAGES", 8)
    images, labels = autoattack.data()
    autoattack.pack(tmp_path, tmp_path)
    cells = json.loads((tmp_path / "cells.json").read_text())
    cell = next(cell for cell in cells if cell["name"] == "untrained-soft8")
    assert cell["table"]["quantizer"] == "soft"
    unchanged = np.zeros(images.shape)
    benign, right = autoattack.counted(cell, unchanged, images, labels, tmp_path)
    assert benign == right > 4
    # Grey, whatever the image: no longer in epsilon, but all of them are of one class.
    grey = np.round((127.5 - images) * autoattack.LEVELS / 128)
    _, right = autoattack.counted({**cell, "epsilon": 128.0}, grey, images, labels, tmp_path)
    assert right < benign
    # A hundredth of that moves no pixel by more than 1.3 grey levels.
    _, right = autoattack.counted({**cell, "epsilon": 1.28}, grey, images, labels, tmp_path)
    assert right == benign
