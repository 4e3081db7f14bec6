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


def test_run_tflite_takes_value_range_and_class_names_from_the_file(photos, tmp_path):
    pytest.importorskip("ai_edge_litert")
    image = photos[0, :8, :8]
    head = keras.layers.Dense(3)
    body = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), head])
    # The last class for the photograph, the first for the white that 0 to 255 is clipped to.
    between = np.float32(image.sum() / 255 + image.size) / 2
    weights = np.tile(np.float32([[1, 0, -1]]), (image.size, 1))
    head.set_weights([weights, np.float32([0, -999, 2 * between])])
    layer = fd_keras.FeatureDistillation("jpeg:50", value_range=(0, 1))
    protected = fd_keras.protect(body, layer)
    path = tmp_path / "model.tflite"
    fd_keras.export_tflite(protected, path, labels=["low", "none", "high"], verify=False)
    Image.fromarray(image).save(tmp_path / "photo.png")
    (tmp_path / "mine.txt").write_text("a\nb\nc\n")

    def run(*arguments):
        command = [sys.executable, EXPORT / "run_tflite.py", "model.tflite", "photo.png"]
        run = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
        return run.stdout, run.stderr

    best = int(np.argmax(protected(image[np.newaxis] / 255)[0]))
    assert best == 2
    assert run()[0].startswith(f"photo.png: class {best} (high),")
    assert run("--value-range", "0", "255", "--labels", "mine.txt")[0].startswith(
        "photo.png: class 0 (a),"
    )
    last = keras.layers.Dense(1, "sigmoid", kernel_initializer="zeros", bias_initializer="ones")
    binary = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), last])
    fd_keras.export_tflite(
        fd_keras.protect(binary, layer), path, labels=["no", "yes"], verify=False
    )
    assert run()[0] == "photo.png: class 1 (yes), output 0.7311, class 1 above 0.5\n"
    path.write_bytes(path.read_bytes()[:200])
    output, errors = run()
    assert output == ""
    assert "model.tflite is not a whole TFLite file" in errors
    assert "Traceback" not in errors
