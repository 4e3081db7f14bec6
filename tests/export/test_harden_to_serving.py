"""``export/harden_to_serving.py``: a model of one's own from training to proven files."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import fd_keras
from fd_keras.demo import load_digits

ROOT = Path(__file__).parents[2]
SCRIPT = "export/harden_to_serving.py"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    for package in ("art", "ai_edge_litert"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("hardened")
    command = [sys.executable, ROOT / SCRIPT, "--smoke", "--out", out]
    run = subprocess.run(command, capture_output=True, text=True, cwd=out)
    assert run.returncode == 0, run.stderr
    (out / "printed.txt").write_text(run.stdout)
    return out


def test_every_accuracy_is_printed_with_its_threat_model(out):
    printed = (out / "printed.txt").read_text()
    assert re.search(r"^hardened +adaptive, PGD-10 8/255 +\d", printed, re.MULTILINE)
    for threat_model, attack in (
        ("gray-box", "BIM 8/255"),
        ("adaptive", "PGD-20 8/255"),
        ("black-box", "Square-100 8/255"),
    ):
        head = rf"^accuracy .*{threat_model}.*\nin % .*{attack}.*\n.*\nnone .*\nliu2019 +\d"
        assert re.search(head, printed, re.MULTILINE)


def test_both_files_are_proven_on_attacked_images(out):
    printed = (out / "printed.txt").read_text()
    assert re.findall(r": (\w+), quantize=none.* images: (.*)", printed) == [
        ("saved_model", "proven"),
        ("tflite", "proven"),
    ]
    assert re.search(r"LiteRT: .*accuracy \(gray-box BIM 8/255\) [\d.]+%, Keras", printed)


def test_the_served_model_distils_and_has_learnt(out):
    test = load_digits(seed=1).test[:50]
    images = tf.constant(test.images / 255)
    served = tf.saved_model.load(str(out / "served" / "digits" / "1"))
    layer = fd_keras.FeatureDistillation("liu2019", value_range=(0, 1))
    distilled = served.signatures["distill"](images=images)["distilled"]
    np.testing.assert_allclose(distilled, layer(images), atol=1e-5)
    predictions = served.signatures["serving_default"](images=images)["predictions"]
    assert np.mean(np.argmax(predictions, -1) == test.labels) > 0.5


def test_the_guide_names_it():
    assert SCRIPT in (ROOT / "docs" / "guides" / "harden.md").read_text()
