"""The SavedModel exporter: what a server finds, and what is left when writing fails."""

import keras
import numpy as np
import pytest
import runtimes
import tensorflow as tf
from keras import layers

from fd_keras import FeatureDistillation, export_saved_model, protect
from fd_keras.export import saved_model as exporter


@pytest.fixture
def images(photos):
    return photos[:, 7:39, 406:438].astype(np.float32)


def classifier(shape=(None, None, 3), outputs=lambda x: x):
    inputs = keras.Input(shape)
    x = layers.GlobalMaxPooling2D()(layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(inputs)))
    return keras.Model(inputs, outputs(layers.Dense(3)(x)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, inputs):
        return self.head(tf.reduce_max(inputs, (1, 2)) / 255)


def protected(model=None, **kwargs):
    return protect(model or classifier(), FeatureDistillation("liu2019"), **kwargs)


def signature(path):
    loaded = tf.saved_model.load(str(path))
    assert list(loaded.signatures) == ["serving_default"]
    function = loaded.signatures["serving_default"]
    function.keep_alive = loaded  # the loaded object owns the variables
    return function


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_versions_count_up(tmp_path):
    model = protected()
    assert export_saved_model(model, tmp_path / "new" / "base") == tmp_path / "new" / "base" / "1"
    base = tmp_path / "new" / "base"
    # Neither a name that is no number nor a superscript, which str.isdigit takes for one.
    for other in ("9.bak", "latest", "²"):
        (base / other).mkdir()
    assert export_saved_model(model, base).name == "2"
    assert export_saved_model(model, base, version=7).name == "7"
    assert export_saved_model(model, base).name == "8"
    assert names(base) == sorted(["1", "2", "7", "8", "9.bak", "latest", "²"])
    assert {"saved_model.pb", "variables"} <= set(names(base / "8"))


def test_existing_version_is_refused(tmp_path):
    first = export_saved_model(protected(), tmp_path, version=3)
    content = (first / "saved_model.pb").read_bytes()
    with pytest.raises(FileExistsError, match="`version` exists already"):
        export_saved_model(protected(), tmp_path, version=3)
    assert (first / "saved_model.pb").read_bytes() == content
    assert names(tmp_path) == ["3"]


@pytest.mark.parametrize("version", [0, -1, True, 1.5, "2"])
def test_bad_version_is_refused(version, tmp_path):
    with pytest.raises(ValueError, match="`version` must be a positive integer. Received: version"):
        export_saved_model(protected(), tmp_path / "base", version=version)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("stage", ["write", "rename"])
def test_failed_export_leaves_nothing_behind(stage, error, tmp_path, monkeypatch):
    export_saved_model(protected(), tmp_path)

    def half_written(model, directory):
        directory.mkdir()
        (directory / "saved_model.pb").write_bytes(b"half")
        raise error

    def refused(source, target):
        assert (source / "saved_model.pb").exists()
        raise error

    if stage == "write":
        monkeypatch.setattr(exporter, "write_archive", half_written)
    else:
        monkeypatch.setattr(exporter.os, "rename", refused)
    with pytest.raises(type(error)):
        export_saved_model(protected(), tmp_path)
    assert names(tmp_path) == ["1"]
    monkeypatch.undo()
    assert export_saved_model(protected(), tmp_path).name == "2"


def test_unbuilt_and_multi_input_models_are_refused(tmp_path):
    inputs = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    for model in (
        keras.Sequential([layers.Flatten()]),
        Subclassed(),
        keras.Model(inputs, layers.Add()(inputs)),
    ):
        with pytest.raises(ValueError, match=r"`model` must be a built model with one input"):
            export_saved_model(model, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "build",
    [
        lambda: protected(),
        lambda: protected(classifier((32, 32, 3))),
        lambda: protected(Subclassed(), input_shape=(None, None, 3)),
        lambda: classifier(),
    ],
    ids=["any size", "fixed size", "subclassed", "unprotected"],
)
def test_signature_computes_what_the_model_does(build, images, tmp_path):
    model = build()
    serve = signature(export_saved_model(model, tmp_path))
    spec = serve.structured_input_signature[1]["images"]
    assert tuple(spec.shape) == tuple(model.inputs[0].shape)
    assert spec.dtype == tf.float32
    for batch in (images, images[:1], np.repeat(images, 3, axis=0)):
        outputs = serve(images=tf.constant(batch))
        assert list(outputs) == ["predictions"]
        np.testing.assert_allclose(outputs["predictions"], model(batch), rtol=1e-4, atol=1e-4)


def test_batch_size_is_free_even_where_the_model_fixes_it(images, tmp_path):
    inputs = keras.Input(batch_shape=(2, 32, 32, 3))
    model = protected(keras.Model(inputs, layers.GlobalMaxPooling2D()(inputs)))
    serve = signature(export_saved_model(model, tmp_path))
    assert serve(images=tf.constant(images[:1]))["predictions"].shape == (1, 3)


def test_integer_images_are_served_as_such(photos, tmp_path):
    inputs = keras.Input((None, None, 3), dtype="uint8")
    model = protect(
        keras.Model(inputs, layers.Rescaling(1 / 255)(inputs)),
        FeatureDistillation("liu2019", dtype="uint8"),
    )
    serve = signature(export_saved_model(model, tmp_path))
    assert serve.structured_input_signature[1]["images"].dtype == tf.uint8
    pixels = photos[:, 7:39, 406:438]
    outputs = serve(images=tf.constant(pixels))
    np.testing.assert_allclose(outputs["predictions"], model(pixels), atol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (lambda x: {"logits": x, "positive": layers.ReLU()(x)}, {"logits", "positive"}),
        (lambda x: [x, layers.ReLU()(x)], {"output_0", "output_1"}),
    ],
    ids=["dict", "list"],
)
def test_several_outputs_keep_names_or_order(outputs, expected, images, tmp_path):
    model = protected(classifier(outputs=outputs))
    served = signature(export_saved_model(model, tmp_path))(images=tf.constant(images))
    assert set(served) == expected
    # Names sort as the outputs are ordered, and so does what tf.nest makes of a dictionary.
    for name, value in zip(sorted(served), tf.nest.flatten(model(images))):
        np.testing.assert_allclose(served[name], value, rtol=1e-4, atol=1e-4)


def test_the_table_in_force_is_exported(images, tmp_path):
    layer = FeatureDistillation("liu2019")
    model = protect(classifier(), layer)
    layer.set_quantization_table(np.full((8, 8), 90.0))
    expected = model(images)
    path = export_saved_model(model, tmp_path)
    layer.set_quantization_table("liu2019")
    assert np.abs(model(images) - expected).max() > 1e-3
    np.testing.assert_allclose(
        signature(path)(images=tf.constant(images))["predictions"], expected, rtol=1e-4, atol=1e-4
    )


def test_signal_method_is_served_too(images, tmp_path):
    inputs = keras.Input((None, None, 3))
    layer = FeatureDistillation("jpeg", dct_method="signal")
    path = export_saved_model(keras.Model(inputs, layer(inputs)), tmp_path)
    served = signature(path)(images=tf.constant(images))["predictions"]
    runtimes.assert_same_images(served, layer(images))


def test_nothing_is_printed_to_stdout(tmp_path, capfd):
    export_saved_model(protected(), tmp_path)
    assert capfd.readouterr().out == ""
