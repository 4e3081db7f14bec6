"""Models of every kind on the command line: what is said of a file, and in whose words."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import fd_keras
from fd_keras_cli.models import load_model


class Unknown(layers.Layer):
    def call(self, inputs):
        return inputs


def unknown_activation(x):
    return x


def saved(path, *between):
    keras.Sequential([keras.Input((8, 8, 3)), *between, layers.Flatten()]).save(path)


WRITERS = {
    "class.keras": lambda path: saved(path, Unknown()),
    "class.h5": lambda path: saved(path, Unknown()),
    "function.keras": lambda path: saved(path, layers.Activation(unknown_activation)),
    "lambda.keras": lambda path: saved(path, layers.Lambda(lambda x: x / 255)),
    "cut.keras": lambda path: path.write_bytes(b"PK\x03\x04 and no more"),
    "empty.h5": lambda path: path.write_bytes(b""),
    "weights.h5": lambda path: keras.Sequential([keras.Input((2,)), layers.Dense(1)]).save_weights(
        path.with_suffix(".weights.h5")
    ),
    "notes.txt": lambda path: path.write_text("no model"),
}
REMEDIES = {
    "class": "holds classes or functions that Keras does not know: decorate them with",
    "function": "holds classes or functions that Keras does not know: decorate them with",
    "lambda": "holds a Lambda layer, whose Python code is not run; pass --allow-code if you trust",
    "cut": "cannot be loaded; the file may be damaged",
    "empty": "cannot be loaded; the file may be damaged",
    "weights": "holds weights alone; save the whole model with model.save",
    "notes": "must be a .keras or .h5 file, or a SavedModel directory",
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_wrong_with_a_file_is_said_whole(name, tmp_path):
    """Of a .keras file it was said that it must be one, and the reason ended in mid-sentence."""
    path = tmp_path / name
    WRITERS[name](path)
    if name == "weights.h5":
        path = path.with_suffix(".weights.h5")
    with pytest.raises(ValueError, match="`MODEL`") as refused:
        load_model(path, [])
    message = str(refused.value)
    stem, suffix = name.split(".")
    assert REMEDIES[stem] in message
    if suffix == "keras":
        assert "must be a .keras" not in message
    if stem == "notes":  # Keras' reason would be advice on its own functions
        assert message.endswith(f"Received: {path}")
        return
    reason = message.partition(f"Received: {path} ")[2]
    assert reason.startswith("(")
    assert reason[-2] in ".)'\"`("  # a whole sentence
    assert "config=" not in reason
    if stem in ("class", "function"):
        assert {"class": "Unknown", "function": "function"}[stem] in reason


@pytest.fixture
def binary_file(tmp_path):
    """A model that ends in a sigmoid, and images that it gets right."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((16, 16, 1))
    outputs = layers.Dense(1, activation="sigmoid")(
        layers.Flatten()(layers.Rescaling(1 / 255, -0.5)(inputs))
    )
    model = keras.Model(inputs, {"cat": outputs, "pixels": layers.Flatten()(inputs)})
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(2).integers(0, 256, (40, 16, 16, 1)).astype(np.uint8)
    labels = (model.predict(images, verbose=0)["cat"][:, 0] > 0.5).astype(int)
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    return tmp_path / "model.keras"


def test_harden_takes_one_sigmoid_among_several_outputs(run, binary_file, tmp_path):
    arguments = [
        "harden", binary_file, tmp_path / "data.npz", "--out", tmp_path / "out", "--epochs", "1",
        "--epsilon", "0",
    ]  # fmt: skip
    code, _, err = run(*arguments)
    assert code == 1
    assert "`--model-output` must name one of the outputs of `MODEL`, which are 'cat' (None" in err
    assert "Received: no --model-output" in err
    code, _, err = run(*arguments, "--model-output", "cat", "--logits")
    assert code == 1
    assert "Pass --probabilities, or take off its sigmoid" in err
    assert "from_logits" not in err
    code, out, err = run(*arguments, "--model-output", "cat", "--probabilities")
    assert code == 0, err
    assert "Accuracy on 8 validation images" in out


def test_a_model_of_any_size_becomes_int8_in_one(run, tmp_path, photos):
    """`protect(..., input_shape=...)` was the advice, which no option gave."""
    inputs = keras.Input((None, None, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(inputs))
    keras.Model(inputs, layers.Dense(3)(pooled)).save(tmp_path / "model.keras")
    sizes = [photos[0, :40, : 40 + 8 * (i % 2)] for i in range(6)]
    (tmp_path / "images").mkdir()
    for i, pixels in enumerate(sizes):
        png = tf.io.encode_png(pixels).numpy()
        (tmp_path / "images" / f"{i}.png").write_bytes(png)
    arguments = [
        "--table", "liu2019", "--format", "tflite", "--quantize", "int8", "--out",
        tmp_path / "out", "--representative",
    ]  # fmt: skip
    np.savez(tmp_path / "same.npz", x=np.stack([pixels[:, :40] for pixels in sizes]))
    code, _, err = run("export", tmp_path / "model.keras", *arguments, tmp_path / "same.npz")
    assert code == 1
    assert "give --image-size, such as 224 224" in err
    pytest.importorskip("litert_quantizer")
    arguments += [tmp_path / "images", "--image-size", "32", "32"]
    code, out, err = run("export", tmp_path / "model.keras", *arguments)
    assert code == 0, err
    assert "6 images: proven" in out
    code, out, err = run(
        "verify", tmp_path / "out/model_int8.tflite", tmp_path / "model.keras", "--table",
        "liu2019", "--image-size", "32", "32", "--out", tmp_path / "check.json",
    )  # fmt: skip
    assert json.loads((tmp_path / "check.json").read_text())["format"] == "tflite"
    assert "Traceback" not in err


def test_a_subclassed_model_tells_the_size_of_its_images(tmp_path):
    from fd_keras_cli.models import image_shape

    @keras.saving.register_keras_serializable("fd_keras_tests_cli")
    class Flat(keras.Model):
        def call(self, inputs):
            return tf.reshape(inputs, (-1, 192))

        def get_config(self):
            return {}

    model = Flat()
    with pytest.raises(ValueError, match="`MODEL` must take images of one size"):
        image_shape(model)
    model(np.zeros((1, 8, 8, 3), np.float32))
    assert image_shape(model) == (8, 8, 3)
    layer = fd_keras.FeatureDistillation("liu2019")
    with pytest.raises(ValueError, match="apply the layer to the image input"):
        image_shape(
            keras.Model(
                x := [keras.Input((8, 8, 3)), keras.Input((192,))],
                layers.Add()([layers.Flatten()(layer(x[0])), x[1]]),
            )
        )
