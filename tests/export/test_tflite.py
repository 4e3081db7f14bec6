"""The TFLite exporter: builtin operations only, any size at run time, or a clear refusal."""

import functools
import tempfile

import keras
import numpy as np
import pytest
import runtimes
import tensorflow as tf
from keras import layers

import fd_keras
from fd_keras import FeatureDistillation, protect

# Proofs have their own tests, in test_verification.py.
export_tflite = functools.partial(fd_keras.export_tflite, verify=False)

# A crop without chance ties, see test_runtimes_agree.py; smaller ones keep its block grid.
TOP, LEFT = 7, 406
SIZES = [(64, 64), (37, 53), (8, 8), (5, 3), (96, 40), (64, 64)]


def crop(photos, height, width):
    return photos[:, TOP : TOP + height, LEFT : LEFT + width].astype(np.float32)


def model_of(layer, shape=(None, None, 3)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


class Apply(keras.layers.Layer):
    """A layer that TFLite may or may not be able to run."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


@pytest.fixture
def temporary_files(tmp_path, monkeypatch):
    """An empty folder in which tempfile makes its files and folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def folders(path):
    # Keras 2 leaves the sources that autograph generates there: files, and not the exporter's.
    return [entry for entry in path.iterdir() if entry.is_dir()]


@pytest.mark.parametrize("shape", [(None, None, 3), (37, 53, 3), (64, 64, 3), (None, None, 1)])
@pytest.mark.parametrize(
    "table",
    [
        {"quantization_table": "liu2019"},
        {"quantization_table": "zigzag15", "cycle_spins": 4},
        {"quantization_table": "jpeg:50", "value_range": (-1, 1)},
    ],
    ids=["liu2019", "zigzag15", "jpeg"],
)
def test_the_layer_is_builtins_without_transposes(table, shape, tmp_path):
    path = export_tflite(model_of(FeatureDistillation(**table), shape), tmp_path / "model.tflite")
    operations = runtimes.tflite_operations(path)
    assert {"BATCH_MATMUL", "ROUND"} <= operations
    assert not operations & {"CUSTOM", "DELEGATE", "TRANSPOSE"}
    for subgraph in runtimes.tflite_model(path).subgraphs:
        shapes = [() if tensor.shape is None else tensor.shape for tensor in subgraph.tensors]
        assert max(map(len, shapes)) <= 5


@pytest.mark.parametrize("shape", [(None, None, 3), (40, 53, 3)])
def test_soft_thresholding_rounds_nothing(shape, photos, tmp_path):
    """Neither in the file nor, therefore, differently from Keras in any pixel."""
    layer = FeatureDistillation("jpeg:50", cycle_spins=4, quantizer="soft")
    path = export_tflite(model_of(layer, shape), tmp_path / "model.tflite")
    operations = runtimes.tflite_operations(path)
    assert {"BATCH_MATMUL", "MINIMUM", "MAXIMUM"} <= operations
    assert not {name for name in operations if "ROUND" in name or name in ("FLOOR", "CEIL")}
    assert not operations & {"CUSTOM", "TRANSPOSE"}
    images = crop(photos, 40, 53)
    result = runtimes.run_tflite(path, images)["predictions"]
    assert np.abs(result - layer(images)).max() <= 0.01


def test_many_channels_and_channels_first_are_builtins(tmp_path):
    for layer, shape in (
        (FeatureDistillation("liu2019"), (None, None, 7)),
        (FeatureDistillation("liu2019", data_format="channels_first"), (3, None, None)),
    ):
        model = model_of(layer, shape)
        path = export_tflite(model, tmp_path / "model.tflite")
        assert "CUSTOM" not in runtimes.tflite_operations(path)
        images = np.random.default_rng(5).uniform(0, 255, (2, *[n or 19 for n in shape]))
        images = images.astype(np.float32)
        result = runtimes.run_tflite(path, images)["predictions"]
        np.testing.assert_allclose(result, model(images), atol=1e-2)


@pytest.mark.parametrize("spins", [1, 4])
@pytest.mark.parametrize("table", ["liu2019", "zigzag15", "jpeg"])
def test_sizes_are_chosen_at_run_time(table, spins, photos, tmp_path):
    layer = FeatureDistillation(table, cycle_spins=spins)
    interpreter = runtimes.interpreter(export_tflite(model_of(layer), tmp_path / "model.tflite"))
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert source["shape_signature"].tolist() == [-1, -1, -1, 3]
    for count, size in enumerate(SIZES, start=1):
        images = np.tile(crop(photos, *size), (count, 1, 1, 1))
        interpreter.resize_tensor_input(source["index"], images.shape, strict=True)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], images)
        interpreter.invoke()
        runtimes.assert_same_images(interpreter.get_tensor(target["index"]), layer(images))


def test_fixed_size_keeps_the_batch_free(photos, tmp_path):
    layer = FeatureDistillation("liu2019")
    path = export_tflite(model_of(layer, (37, 53, 3)), tmp_path / "model.tflite")
    for images in (crop(photos, 37, 53), crop(photos, 37, 53)[:1]):
        result = runtimes.run_tflite(path, images)["predictions"]
        runtimes.assert_same_images(result, layer(images))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, inputs):
        return self.head(tf.reduce_max(inputs, (1, 2)) / 255)


def test_protected_subclassed_model(photos, tmp_path):
    model = protect(Subclassed(), FeatureDistillation("jpeg"), input_shape=(None, None, 3))
    path = export_tflite(model, tmp_path / "model.tflite")
    for size in SIZES:
        images = crop(photos, *size)
        result = runtimes.run_tflite(path, images)["predictions"]
        np.testing.assert_allclose(result, model(images), rtol=1e-4, atol=1e-3)


def test_integer_images(photos, tmp_path):
    layer = FeatureDistillation("liu2019", dtype="uint8")
    inputs = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(inputs, layer(inputs))
    path = export_tflite(model, tmp_path / "model.tflite")
    pixels = crop(photos, 37, 53).astype(np.uint8)
    result = runtimes.run_tflite(path, pixels)["predictions"]
    assert result.dtype == np.uint8
    runtimes.assert_same_images(result, layer(pixels).numpy().astype(np.float32))


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (
            lambda x: {"distilled": x, "negative": layers.Rescaling(-1)(x)},
            ["distilled", "negative"],
        ),
        (lambda x: [x, layers.Rescaling(-1)(x)], ["output_0", "output_1"]),
    ],
    ids=["dict", "list"],
)
def test_several_outputs_keep_names_or_order(outputs, expected, photos, tmp_path):
    layer = FeatureDistillation("liu2019")
    model = model_of(lambda inputs: outputs(layer(inputs)))
    images = crop(photos, 8, 8)
    results = runtimes.run_tflite(export_tflite(model, tmp_path / "model.tflite"), images)
    assert sorted(results) == expected
    for name, sign in zip(expected, (1, -1)):
        runtimes.assert_same_images(results[name], sign * layer(images).numpy(), name)


def signal_layer():
    return FeatureDistillation("liu2019", dct_method="signal", name="slow")


class Nest(keras.Model):
    """Hides a layer in a dictionary of a list."""

    def __init__(self, layer):
        super().__init__()
        self.parts = [{"layer": layer}]

    def call(self, inputs):
        return self.parts[0]["layer"](inputs)


@pytest.mark.parametrize(
    "build",
    [
        lambda: model_of(signal_layer(), (16, 16, 3)),
        lambda: keras.Sequential([keras.Input((16, 16, 3)), signal_layer()]),
        lambda: model_of(model_of(signal_layer(), (16, 16, 3)), (16, 16, 3)),
        lambda: model_of(Nest(signal_layer()), (16, 16, 3)),
        lambda: model_of(Apply(Nest(signal_layer())), (16, 16, 3)),
        lambda: model_of(layers.TimeDistributed(signal_layer()), (2, 16, 16, 3)),
    ],
    ids=["functional", "sequential", "nested", "subclassed", "in a layer", "wrapped"],
)
def test_signal_method_is_refused(build, tmp_path, temporary_files):
    with pytest.raises(ValueError, match=r"dct_method='matmul'.*layer 'slow'"):
        export_tflite(build(), tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == [temporary_files]


BEYOND_BUILTINS = {
    "MatrixDeterminant": tf.linalg.det,
    "Betainc": lambda x: tf.math.betainc(x, x, x),  # Flex has no such operation either
    "IRFFT": lambda x: tf.signal.irfft(tf.complex(x, x)),
    "PyFunc": lambda x: tf.ensure_shape(
        tf.numpy_function(lambda array: array, [x], tf.float32), (None, 8, 8)
    ),
}


@pytest.mark.parametrize("operation", BEYOND_BUILTINS)
def test_operations_beyond_builtins_are_named(operation, tmp_path, temporary_files):
    model = model_of(Apply(BEYOND_BUILTINS[operation], name="culprit"), (8, 8))
    with pytest.raises(ValueError, match="^`model` needs operations that are no TFL") as caught:
        export_tflite(model, tmp_path / "model.tflite")
    message = str(caught.value)
    assert f"{operation} (in " in message
    assert "culprit" in message
    assert "serve the model with export_saved_model" in message
    # The converter's own pages name the entry function and parts of the API like operations.
    assert "\n" not in message
    assert "entry_function" not in message
    assert list(tmp_path.iterdir()) == [temporary_files]
    assert folders(temporary_files) == []


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_told_from_missing_operations(policy, tmp_path):
    """Convolutions are builtins: "replace the layers" would send the user the wrong way."""
    model = model_of(layers.Conv2D(4, 3, dtype=policy), (16, 16, 3))
    with pytest.raises(ValueError, match="rebuild the model with the dtype policy 'float32'"):
        export_tflite(model, tmp_path / "model.tflite")


def test_other_failures_are_not_blamed_on_operations(tmp_path, monkeypatch):
    class Converter:
        target_spec = tf.lite.TargetSpec()

        def convert(self):
            raise MemoryError("32 GiB")

    monkeypatch.setattr(
        tf.lite.TFLiteConverter, "from_saved_model", lambda path, **kwargs: Converter()
    )
    with pytest.raises(MemoryError, match="^32 GiB$"):
        export_tflite(model_of(FeatureDistillation()), tmp_path / "model.tflite")


def test_failed_export_keeps_the_old_file(tmp_path, monkeypatch, temporary_files):
    path = export_tflite(
        model_of(FeatureDistillation("liu2019")), tmp_path / "out" / "model.tflite"
    )
    content = path.read_bytes()
    with pytest.raises(ValueError, match="MatrixDeterminant"):
        export_tflite(model_of(Apply(tf.linalg.det), (8, 8)), path)

    def half_written(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "write_bytes", half_written)
    for target in (path, path.with_name("new.tflite")):
        with pytest.raises(OSError, match="disk full"):
            export_tflite(model_of(FeatureDistillation("jpeg")), target)
    monkeypatch.undo()
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == content
    assert folders(temporary_files) == []


def test_an_existing_file_is_replaced(photos, tmp_path):
    layer = FeatureDistillation("jpeg")
    for model in (model_of(FeatureDistillation("liu2019")), model_of(layer)):
        path = export_tflite(model, tmp_path / "model.tflite")
    images = crop(photos, 37, 53)
    runtimes.assert_same_images(runtimes.run_tflite(path, images)["predictions"], layer(images))


def test_unbuilt_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`model` must be a built model with one input"):
        export_tflite(keras.Sequential([layers.Flatten()]), tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_printed_to_stdout(tmp_path, capfd):
    export_tflite(model_of(FeatureDistillation()), tmp_path / "model.tflite")
    assert capfd.readouterr().out == ""


def test_a_single_image_has_a_fixed_shape(photos, tmp_path):
    layer = FeatureDistillation("liu2019")
    model = model_of(layer, (37, 53, 3))
    path = fd_keras.export_tflite(model, tmp_path / "model.tflite", single_image=True)
    for subgraph in runtimes.tflite_model(path).subgraphs:
        for tensor in subgraph.tensors:
            signature = tensor.shapeSignature
            assert signature is None or -1 not in signature
    result = runtimes.run_tflite(path, crop(photos, 37, 53)[:1])["predictions"]
    runtimes.assert_same_images(result, layer(crop(photos, 37, 53)[:1]))
