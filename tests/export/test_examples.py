"""The deployer's page and scripts under export/ work as they stand."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import fd_keras

EXPORT = Path(__file__).parents[2] / "export"


@pytest.mark.parametrize("input_shape", [(24, 24, 3), (None, None, 3), (16, 16, 1)])
def test_run_tflite_prints_what_keras_predicts(input_shape, photos, tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(5, 3),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    protected = fd_keras.protect(model, fd_keras.FeatureDistillation("jpeg:50"))
    fd_keras.export_tflite(protected, tmp_path / "model.tflite")
    height = input_shape[0] or 40
    image = photos[0, :height, :height]
    if input_shape[2] == 1:
        image = image[..., :1]
    Image.fromarray(image.squeeze()).save(tmp_path / "photo.png")
    run = subprocess.run(
        [sys.executable, EXPORT / "run_tflite.py", "model.tflite", "photo.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = int(np.argmax(protected(image[np.newaxis])[0]))
    assert run.stdout.startswith(f"photo.png: class {expected},")
