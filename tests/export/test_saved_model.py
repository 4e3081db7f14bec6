"""The SavedModel exporter: what a server finds, and what is left when writing fails."""

import functools
import io
import json
import shutil
import sys

import keras
import numpy as np
import pytest
import runtimes
import tensorflow as tf
from keras import layers
from PIL import Image

import fd_keras
from fd_keras import DistillationDetector, FeatureDistillation, protect, wrap_saved_model
from fd_keras.export import saved_model as exporter
from fd_keras.export.archive import export_details
from fd_keras.export.signatures import exportable

# Proofs have their own tests, in test_verification.py.
export_saved_model = functools.partial(fd_keras.export_saved_model, verify=False)


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


def signature(path, name="serving_default"):
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures[name]
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

    def half_written(tracked, endpoints, directory):
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


def png(image):
    return tf.io.encode_png(image).numpy()


def served_bytes(path, contents):
    return signature(path, "serving_bytes")(image_bytes=tf.constant(contents))["predictions"]


@pytest.mark.parametrize("value_range", [(0, 255), (-1, 1)])
def test_encoded_images_of_the_models_size_keep_their_pixels(value_range, photos, tmp_path):
    low, high = value_range
    layer = FeatureDistillation("jpeg:50", value_range=value_range)
    model = protect(keras.Sequential([keras.Input((32, 32, 3)), layers.Flatten()]), layer)
    path = export_saved_model(model, tmp_path)
    pixels = photos[:, 7:39, 406:438]
    expected = model(low + pixels / np.float32(255) * (high - low))
    served = served_bytes(path, [png(image) for image in pixels])
    np.testing.assert_allclose(served, expected, atol=1e-3)
    # TensorFlow's own default decodes JPEG with a fast DCT, which no other decoder does.
    jpegs = [tf.io.encode_jpeg(image, quality=95).numpy() for image in pixels]
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in jpegs])
    expected = model(low + decoded / np.float32(255) * (high - low))
    np.testing.assert_allclose(served_bytes(path, jpegs), expected, atol=1e-3)


def size_model(shape):
    return keras.Sequential([keras.Input(shape), layers.Flatten()])


def test_crop_keeps_the_aspect_ratio_and_the_centre(tmp_path):
    image = np.zeros((16, 48, 1), np.uint8)
    image[:, 16:32] = 200
    for resize, expected in (("crop", [200] * 8), ("stretch", [0, 0, None, 200, 200, None, 0, 0])):
        path = export_saved_model(size_model((8, 8, 1)), tmp_path / resize, resize=resize)
        row = np.reshape(served_bytes(path, [png(image)]), (8, 8))[4]
        for value, wanted in zip(row, expected):
            assert wanted is None or abs(value - wanted) < 30, (resize, row)
    with pytest.raises(ValueError, match="`resize` must be one of"):
        export_saved_model(size_model((8, 8, 1)), tmp_path, resize="bend")


def test_sizes_around_the_models_are_all_taken(rng, tmp_path):
    path = export_saved_model(size_model((8, 12, 3)), tmp_path)
    for shape in [(8, 12), (12, 8), (7, 12), (9, 13), (1, 1), (100, 3), (5, 301)]:
        content = png(rng.integers(0, 256, (*shape, 3), np.uint8))
        assert served_bytes(path, [content]).shape == (1, 8 * 12 * 3)


def test_grey_alpha_and_sixteen_bits_are_converted(tmp_path):
    path = export_saved_model(size_model((8, 8, 3)), tmp_path)
    contents = [
        png(np.full((8, 8, 1), 77, np.uint8)),
        png(np.full((8, 8, 4), 77, np.uint8)),
        png(np.full((8, 8, 3), 77 * 257, np.uint16)),
    ]
    np.testing.assert_array_equal(served_bytes(path, contents), np.full((3, 192), 77.0))


def test_models_of_other_channels_take_no_files(tmp_path):
    loaded = tf.saved_model.load(str(export_saved_model(size_model((8, 8, 7)), tmp_path)))
    assert list(loaded.signatures) == ["serving_default"]


@pytest.fixture(scope="module")
def served(photos, tmp_path_factory):
    """A version with everything, and the model, detector and images it was made of."""
    pytest.importorskip("tensorflow_serving.apis")
    model = classifier((32, 32, 3))
    layer = FeatureDistillation("liu2019")
    detector = DistillationDetector(model, layer)
    crops = photos[:, 7:39, 406:438].astype(np.float32)
    lower = int(np.argmin(detector.score(crops)))
    detector.adapt(crops[lower : lower + 1], 0.5)  # so that the other one is flagged
    path = export_saved_model(
        protect(model, layer),
        tmp_path_factory.mktemp("served") / "classifier",
        detector=detector,
        labels=["tower", "flower", "other"],
        warmup=True,
        images=crops,
    )
    return path, detector, crops


def test_detect_returns_what_the_detector_does(served):
    path, detector, crops = served
    result = signature(path, "detect")(images=tf.constant(crops))
    expected = detector(crops)
    assert set(result) == {"logits", "score", "flag"}
    np.testing.assert_allclose(result["score"], expected["score"], atol=1e-5)
    np.testing.assert_allclose(result["logits"], expected["logits"], atol=1e-4)
    flags = detector.score(crops) > detector.threshold * (1 + 1e-4)
    np.testing.assert_array_equal(np.array(result["flag"]) >= flags, True)


def test_a_detector_of_other_images_is_refused(tmp_path):
    detector = DistillationDetector(classifier((16, 16, 3)), FeatureDistillation())
    with pytest.raises(ValueError, match="`detector` must take the images that `model` takes"):
        export_saved_model(classifier((32, 32, 3)), tmp_path, detector=detector)


def test_extras_say_what_it_is(served):
    path, _, _ = served
    assert (path / "assets.extra/labels.txt").read_text() == "tower\nflower\nother\n"
    details = json.loads((path / "assets.extra/fd_keras.json").read_text())
    assert details["fd_keras"] == fd_keras.__version__
    assert details["value_range"] == [0, 255]
    assert (details["resize"], details["labels"]) == ("crop", ["tower", "flower", "other"])


def output_model(*units):
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(inputs)
    return keras.Model(inputs, [layers.Dense(n)(x) for n in units] if units[1:] else
                       layers.Dense(units[0])(x))  # fmt: skip


@pytest.mark.parametrize(
    ("units", "count", "message"),
    [
        ((3,), 2, "each of the 3 classes of `model`. Received: 2 labels"),
        ((3,), 4, "each of the 3 classes of `model`. Received: 4 labels"),
        ((1,), 1, "each of the 2 classes"),
        ((1,), 2, None),
        ((3, 5), 5, None),
        ((3, 5), 4, "each of the 3 or 5 classes"),
    ],
)
def test_labels_are_as_many_as_the_classes(units, count, message, tmp_path):
    names_of_classes = [f"class {index}" for index in range(count)]
    (tmp_path / "labels.txt").write_text("\n".join(names_of_classes), encoding="utf-8-sig")
    for labels in (names_of_classes, tmp_path / "labels.txt"):
        if message is None:
            details = export_details(output_model(*units), labels)
            assert details["labels"] == names_of_classes
        else:
            with pytest.raises(ValueError, match=message):
                export_saved_model(output_model(*units), tmp_path / "served", labels=labels)
    assert names(tmp_path) == ["labels.txt"]


def test_labels_of_other_models(tmp_path):
    sequential = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])
    assert export_details(sequential, list("abc"))["labels"] == list("abc")
    with pytest.raises(ValueError, match="each of the 3 classes"):
        export_details(sequential, list("ab"))
    detector = DistillationDetector(classifier((16, 16, 3)), FeatureDistillation())
    assert export_details(detector, list("abc"))["labels"] == list("abc")
    with pytest.raises(ValueError, match="each of the 3 classes"):
        export_details(detector, list("ab"))
    # The layer does not know the classes of what it stands in front of.
    plugin = exportable(FeatureDistillation("liu2019"))
    assert export_details(plugin, list("abcde"))["labels"] == list("abcde")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "for each class"), (b"a\n\nb\n", "for each class"), (b"\xff\xe9\n", "in UTF-8")],
)
def test_what_is_no_list_of_labels_is_refused(content, message, tmp_path):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"`labels` must be .*{message}"):
        export_details(classifier(), tmp_path / "labels.txt")
    with pytest.raises(ValueError, match="`labels` must be one line"):
        export_details(classifier(), ["a\u2028b", "c", "d"])


def test_the_warmup_file_replays(served):
    """As TF Serving does: parse each record, and run the request it holds."""
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    path, _, crops = served
    loaded = tf.saved_model.load(str(path))
    file = path / "assets.extra/tf_serving_warmup_requests"
    results = {"serving_default": [], "serving_bytes": []}
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        request = PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.name == "classifier"
        inputs = {name: tf.constant(tf.make_ndarray(t)) for name, t in request.inputs.items()}
        name = request.model_spec.signature_name
        results[name].append(loaded.signatures[name](**inputs)["predictions"])
    expected = loaded.signatures["serving_default"](images=tf.constant(crops))["predictions"]
    for rows in results.values():
        np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-4)


def test_the_warmup_file_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.prediction_log_pb2", None)
    with pytest.raises(ImportError, match=r"tensorflow_serving is not installed.*\[export\]"):
        export_saved_model(classifier(), tmp_path, warmup=True)
    assert names(tmp_path) == []


def test_every_signature_runs_without_python(served, tmp_path):
    path, detector, crops = served
    program = runtimes.compile_c_program(tmp_path)
    distilled = runtimes.run_c_api(program, path, crops, tmp_path, "distill")["distilled"]
    runtimes.assert_same_images(distilled, detector.distillation(crops))
    expected = signature(path)(images=tf.constant(crops))["predictions"]
    content = png(crops[0].astype(np.uint8))
    for name, request in (("serving_default", crops[:1]), ("serving_bytes", content)):
        result = runtimes.run_c_api(program, path, request, tmp_path, name)["predictions"]
        np.testing.assert_allclose(result, expected[:1], rtol=1e-4, atol=1e-4)
    detected = runtimes.run_c_api(program, path, crops, tmp_path, "detect")
    assert set(detected) == {"logits", "score", "flag"}
    np.testing.assert_allclose(detected["logits"], detector(crops)["logits"], atol=1e-4)
    np.testing.assert_allclose(detected["score"], detector.score(crops), atol=1e-5)
    np.testing.assert_array_equal(detected["flag"], detected["score"] > detector.threshold)
    assert detected["flag"][np.argmax(detected["score"])]


def test_a_plugin_distils_images_of_any_size(photos, tmp_path):
    layer = FeatureDistillation("zigzag15")
    path = export_saved_model(layer, tmp_path)
    images = photos[:, 15:116, 350:499].astype(np.float32)
    result = signature(path)(images=tf.constant(images))["distilled"]
    runtimes.assert_same_images(result, layer(images))


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "served").write_text("")
    with pytest.raises(ValueError, match="`directory` must be a directory"):
        export_saved_model(classifier(), tmp_path / "served")


class Opaque(tf.Module):
    """A model of another origin: no Keras, a variable, a table, its own names."""

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(tf.random.stateless_normal((32 * 32 * 3, 3), (1, 2)))
        initializer = tf.lookup.KeyValueTensorInitializer([0, 1, 2], [50, 60, 70])
        self.codes = tf.lookup.StaticHashTable(initializer, -1)

    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32, name="pic")])
    def classify(self, pic):
        scores = tf.reshape(pic, (-1, 32 * 32 * 3)) @ self.weight
        best = tf.cast(tf.argmax(scores, -1), tf.int32)
        return {"scores": scores, "code": tf.cast(self.codes.lookup(best), tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, name="numbers")])
    def count(self, numbers):
        return {"numbers": numbers}


@pytest.fixture(scope="module")
def opaque(tmp_path_factory):
    model, folder = Opaque(), tmp_path_factory.mktemp("opaque")
    signatures = {"serving_default": model.classify, "count": model.count}
    tf.saved_model.save(model, str(folder), signatures=signatures)
    return model, folder


def test_an_existing_saved_model_is_protected_without_its_code(opaque, images, tmp_path):
    model, folder = opaque
    layer = FeatureDistillation("liu2019")
    protected = protect(wrap_saved_model(folder), layer)
    path = fd_keras.export_saved_model(protected, tmp_path / "served")
    expected = model.classify(layer(images))
    program = runtimes.compile_c_program(tmp_path)
    result = runtimes.run_c_api(program, path, images, tmp_path)
    np.testing.assert_allclose(result["scores"], expected["scores"], rtol=1e-3)
    np.testing.assert_array_equal(result["code"], expected["code"])
    # The original may go: the new one holds what it needs.
    assert "distill" in tf.saved_model.load(str(path)).signatures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signature": "predict"}, r"`signature` must be one of \['count', 'serving_default'\]"),
        ({"signature": "count"}, "`signature` must take batches of images"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(arguments, message, opaque, tmp_path):
    with pytest.raises(ValueError, match=message):
        wrap_saved_model(opaque[1], **arguments)
    with pytest.raises(ValueError, match="`directory` must hold saved_model.pb"):
        wrap_saved_model(tmp_path)


class WritesWhenLoaded(tf.saved_model.experimental.TrackableResource):
    """Writes a file wherever its SavedModel is loaded."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def _create_resource(self):
        return tf.raw_ops.MutableHashTableV2(key_dtype=tf.int64, value_dtype=tf.int64)

    def _initialize(self):
        tf.io.write_file(self.path, "written")
        return tf.constant(0)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Files of models that run a SavedModel beside them, which writes ``mark`` when loaded."""
    folder = tmp_path_factory.mktemp("outside")
    module, mark = Opaque(), folder / "mark"
    module.writes = WritesWhenLoaded(mark)
    tf.saved_model.save(module, str(folder / "served"), signatures=module.classify)
    wrapped = wrap_saved_model(folder / "served")
    assert mark.exists()
    outputs = keras.Model(wrapped.inputs, wrapped(wrapped.inputs[0])["scores"])
    wrapped.save(folder / "wrapped.keras")
    protect(outputs, FeatureDistillation("liu2019")).save(folder / "protected.keras")
    DistillationDetector(outputs, FeatureDistillation("liu2019")).save(folder / "detector.keras")
    mark.unlink()
    return folder


@pytest.mark.parametrize("name", ["wrapped", "protected", "detector"])
def test_safe_mode_loads_no_saved_model_from_outside_of_the_file(name, outside, images, tmp_path):
    file, mark = outside / f"{name}.keras", outside / "mark"
    message = "not loaded in safe mode.*wrap_saved_model.*safe_mode=False"
    for arguments in ({}, {"safe_mode": True}):
        with pytest.raises(ValueError, match=message):
            keras.models.load_model(file, **arguments)
    assert not mark.exists()
    model = keras.models.load_model(file, safe_mode=False)
    assert mark.exists()
    mark.unlink()
    assert model(images) is not None
    # Neither does a config alone.
    with pytest.raises(ValueError, match=message):
        type(model).from_config(model.get_config())
    assert not mark.exists()


def test_a_moved_saved_model_is_named(outside, tmp_path):
    shutil.copytree(outside, tmp_path / "copy")
    wrapped = wrap_saved_model(tmp_path / "copy" / "served")
    (outside / "mark").unlink()
    wrapped.save(tmp_path / "wrapped.keras")
    (tmp_path / "copy" / "served").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="copy/served', which is no longer there. Wrap it again"):
        keras.models.load_model(tmp_path / "wrapped.keras", safe_mode=False)
