"""The proof of an export: what passes, what is found out, and what a failed proof leaves."""

import functools
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import runtimes
from keras import layers

import fd_keras
from fd_keras import (
    DistillationDetector,
    ExportCheck,
    ExportProofError,
    FeatureDistillation,
    protect,
    verify_export,
)
from fd_keras.export import runtimes as export_runtimes
from fd_keras.export import saved_model as saved_model_exporter
from fd_keras.export import tflite as exporter
from fd_keras.export.check import RuntimeCheck
from fd_keras.export.tflite_file import TFLiteFile

SIZE = 32
CLASSES = 4

export_tflite = functools.partial(fd_keras.export_tflite, verify=False)
export_saved_model = functools.partial(fd_keras.export_saved_model, verify=False)


@pytest.fixture(scope="module")
def crops(photos):
    """40 crops with whole grey levels, float32."""
    places = [(10 * i, 15 * i) for i in range(20)]
    cut = [photos[:, top : top + SIZE, left : left + SIZE] for top, left in places]
    return np.concatenate(cut).astype(np.float32)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.features = layers.Conv2D(8, 3, strides=2, activation="relu")
        self.head = layers.Dense(CLASSES)

    def call(self, inputs):
        return self.head(keras.layers.Flatten()(self.features(inputs / 255)))


def classifier():
    """Tells its four quarters' brightness apart, with margins that survive eight bits."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.AveragePooling2D(8)(x)
    x = layers.Reshape((4, 6))(x)
    x = layers.GlobalAveragePooling1D(data_format="channels_first")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, kernel_initializer="identity")(x))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    return protect(classifier(), FeatureDistillation("jpeg:50"))


@pytest.fixture(scope="module")
def quantized_files(model, crops, tmp_path_factory):
    pytest.importorskip("litert_quantizer")
    folder = tmp_path_factory.mktemp("quantized")
    return {
        quantize: export_tflite(
            model,
            folder / f"{quantize}.tflite",
            quantize=quantize,
            representative_data=crops,
            labels=list("abcd"),
        )
        for quantize in ("none", "dynamic", "float16", "int8")
    }


@pytest.mark.parametrize("quantize", ["none", "dynamic", "float16", "int8"])
def test_the_distillation_is_the_layers_in_every_quantisation(
    quantize, quantized_files, model, crops
):
    check = verify_export(quantized_files[quantize], model, crops)
    assert check.passed, str(check)
    assert (check.format, check.quantize, check.images) == ("tflite", quantize, 40)
    assert check.runtimes[0].runtime in ("LiteRT", "tf.lite")
    for run in check.runtimes:
        assert (run.pixels, run.pixels_beyond) == (40 * SIZE * SIZE, 0)
        assert run.distillation_milliseconds is None or run.distillation_milliseconds > 0
    # An oracle beside the check: the layer itself against the file's own signature.
    path = quantized_files[quantize]
    distilled = runtimes.interpreter(path).get_signature_runner("distill")(images=crops[:3])
    runtimes.assert_same_images(distilled["distilled"], model.layers[1](crops[:3]))


def test_quantised_bodies_are_quantised(quantized_files):
    types = {}
    for quantize, path in quantized_files.items():
        assert "CUSTOM" not in runtimes.tflite_operations(path)
        tensors = [t for graph in runtimes.tflite_model(path).subgraphs for t in graph.tensors]
        types[quantize] = {tensor.type for tensor in tensors}
    float32, float16, int8 = 0, 1, 9
    assert float16 in types["float16"]
    assert int8 in types["dynamic"] & types["int8"]
    assert not {float16, int8} & types["none"]
    assert "QUANTIZE" in runtimes.tflite_operations(quantized_files["int8"])
    details = runtimes.interpreter(quantized_files["int8"]).get_input_details()
    assert [d["dtype"] for d in details] == [np.float32]
    assert float32 in types["int8"]


def test_a_quantised_distillation_is_found_out(model, crops, tmp_path, monkeypatch):
    """What the exporter must never do: eight bits in the distillation as well."""
    pytest.importorskip("litert_quantizer")
    monkeypatch.setattr(exporter, "_float_tensors", lambda file, distilled: [])
    for quantize in ("dynamic", "int8", "float16"):
        # What LiteRT refuses to run is no proof either.
        path = tmp_path / f"{quantize}.tflite"
        with pytest.raises(
            ExportProofError, match="of the distilled pixels differ by|failed to prep"
        ):
            fd_keras.export_tflite(model, path, quantize=quantize, representative_data=crops)
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_plain_json(quantized_files, model):
    details = TFLiteFile(quantized_files["int8"].read_bytes()).details
    assert details["fd_keras"] == fd_keras.__version__
    assert details["value_range"] == [0, 255]
    assert details["labels"] == list("abcd")
    assert details["quantize"] == "int8"
    (table,) = details["tables"]
    assert fd_keras.QuantizationTable.from_dict(table) == fd_keras.preset_table("jpeg:50")


@pytest.mark.parametrize("claimed", ["int8", "dynamic", "float16"])
def test_the_limits_are_those_of_the_tensors_not_of_what_a_file_says_of_itself(
    claimed, quantized_files, model, crops, tmp_path
):
    """Float weights that are off by a tenth would pass for an int8 body."""
    file = TFLiteFile(quantized_files["none"].read_bytes())
    exact = file.needed_for(file.details["distilled"])
    (graph, *_) = file.model.subgraphs
    for operation in graph.operators:
        if graph.tensors[operation.outputs[0]].name.decode() in exact:
            continue
        for tensor in (graph.tensors[index] for index in operation.inputs if index >= 0):
            buffer = file.model.buffers[tensor.buffer]
            if buffer.data is not None and tensor.type == 0:
                values = np.frombuffer(bytes(buffer.data), np.float32)
                buffer.data = np.frombuffer((1.1 * values).astype("<f4").tobytes(), np.uint8)
    entries = [e for e in file.model.metadata if e.name == b"fd_keras.json"]
    file.model.metadata = [e for e in file.model.metadata if e not in entries]
    details = TFLiteFile(quantized_files["none"].read_bytes()).details
    file.add_details({**details, "quantize": claimed})
    path = tmp_path / "model.tflite"
    path.write_bytes(file.to_bytes())
    check = verify_export(path, model, crops)
    assert (check.quantize, check.passed) == ("none", False)
    assert check.runtimes[0].pixels_beyond == 0
    assert any("of their spread" in problem for problem in check.problems)


def test_serving_default_is_the_first_graph(quantized_files):
    """Runtimes that know nothing of signatures run the first graph."""
    for path in quantized_files.values():
        found = runtimes.tflite_model(path)
        indices = {s.signatureKey: s.subgraphIndex for s in found.signatureDefs}
        assert indices == {b"serving_default": 0, b"distill": 1, b"certify": 2}


def test_saved_model_is_proven_with_its_encoded_images(model, crops, tmp_path):
    check = verify_export(export_saved_model(model, tmp_path / "served"), model, crops)
    assert check.passed, str(check)
    assert [run.runtime.rpartition(", ")[2] for run in check.runtimes] == [
        "serving_default",
        "serving_bytes",
    ]
    assert all(run.pixels == 40 * SIZE * SIZE for run in check.runtimes)
    assert check.operations["Round"] >= 1
    assert "proven" in str(check)
    assert check.to_dict()["passed"] is True


def test_another_models_file_is_found_out(model, tmp_path):
    path = export_tflite(model, tmp_path / "model.tflite")
    layer = FeatureDistillation("liu2019")
    check = verify_export(path, protect(model.layers[2], layer))
    assert not check.passed
    assert any("of the distilled pixels differ" in problem for problem in check.problems)
    with pytest.raises(ExportProofError, match="Pass images like those it will see"):
        check.raise_for_problems()


def test_a_file_of_another_number_of_classes_is_named(model, crops, tmp_path):
    path = export_tflite(model, tmp_path / "model.tflite")
    head = layers.Dense(CLASSES + 1)(model.layers[-1].output)
    other = keras.Model(model.layers[-1].inputs, head)
    with pytest.raises(ValueError, match=r"'predictions' is of shape \(2, 4\), not \(2, 5\)"):
        verify_export(path, protect(other, model.layers[1]), crops[:2])


def test_default_images_find_a_wrong_table(tmp_path):
    layer = FeatureDistillation("liu2019", value_range=(-1, 1))
    path = export_tflite(layer, tmp_path / "plugin.tflite")
    assert verify_export(path, layer).passed
    steps = np.array(layer.quantization_table.steps)
    steps[0, 0, 0] += 1
    layer.set_quantization_table(steps)
    assert not verify_export(path, layer).passed


def test_detectors_and_subclassed_models_are_proven(crops, tmp_path):
    model = Subclassed()
    layer = FeatureDistillation("zigzag15")
    detector = DistillationDetector(model, layer, input_shape=(SIZE, SIZE, 3))
    detector.adapt(crops, 0.1)
    check = verify_export(export_tflite(detector, tmp_path / "detector.tflite"), detector, crops)
    assert check.passed, str(check)
    protected = protect(model, layer, input_shape=(SIZE, SIZE, 3))
    path = fd_keras.export_tflite(protected, tmp_path / "model.tflite", images=crops)
    assert path.exists()


def test_accuracies_come_with_their_threat_model(model, crops, tmp_path):
    path = export_tflite(model, tmp_path / "model.tflite")
    labels = np.argmax(model.predict(crops, verbose=0), -1)
    check = verify_export(path, model, crops, labels, threat_model="benign")
    assert check.keras_accuracy == check.runtimes[0].accuracy == 1
    assert "accuracy (benign) 100.0%" in str(check)
    for only in ({"labels": labels}, {"threat_model": "gray-box"}):
        with pytest.raises(ValueError, match="belong together"):
            verify_export(path, model, crops, **only)


def unit_classifier(crops):
    """Tells bright from dark images of pixels from 0 to 1, exactly."""
    inputs = keras.Input((SIZE, SIZE, 3))
    middle = float(np.median(crops.mean((1, 2, 3)))) / 255
    mean = layers.GlobalAveragePooling2D()(layers.Rescaling(9, -9 * middle)(inputs))
    head = layers.Dense(1)
    body = keras.Model(inputs, head(mean))
    head.set_weights([np.ones((3, 1)), np.zeros(1)])
    labels = (crops.mean((1, 2, 3)) / 255 > middle).astype(int)
    return body, labels


def test_images_must_be_in_the_range_of_the_layer(crops, tmp_path):
    """A model for 0..1 behind a layer for 0..255 saw black, and its export was proven."""
    body, labels = unit_classifier(crops)
    wrong = protect(body, FeatureDistillation("liu2019"))
    path = export_tflite(wrong, tmp_path / "model.tflite")
    with pytest.raises(ValueError, match="`images` must be scaled to value_range, 0 to 255; give"):
        verify_export(path, wrong, crops / 255, labels, threat_model="benign")
    with pytest.raises(ValueError, match=r"`images` must be.*preprocess_input belongs inside"):
        fd_keras.export_saved_model(wrong, tmp_path / "served", images=crops - 120)
    with pytest.raises(ValueError, match="`representative_data` must be scaled to value_range"):
        export_tflite(
            wrong, tmp_path / "m.tflite", quantize="int8", representative_data=crops / 255
        )


def test_accuracy_is_said_before_and_behind_the_layer(crops, tmp_path):
    body, labels = unit_classifier(crops)
    right = protect(body, FeatureDistillation("liu2019", value_range=(0, 1)))
    path = export_tflite(right, tmp_path / "model.tflite")
    check = verify_export(path, right, crops / 255, labels, threat_model="benign")
    assert check.passed, str(check)
    assert (check.unprotected.accuracy, check.unprotected.classes) == (1, 2)
    assert check.unprotected.same_class == check.keras_accuracy > 0.8
    assert "Keras' accuracy (benign): 100.0% without the layer" in str(check)


def test_a_layer_that_costs_most_of_the_accuracy_is_no_success(crops, tmp_path):
    """As in a wrong value range, the classifier behind it sees the same in all images."""
    centres = np.quantile(crops.mean((1, 2, 3)) / 255, [0.125, 0.375, 0.625, 0.875])
    inputs, head = keras.Input((SIZE, SIZE, 3)), layers.Dense(CLASSES)
    body = keras.Model(
        inputs, head(layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(inputs)))
    )
    head.set_weights([np.tile(2 * centres / 3, (3, 1)), -(centres**2)])  # the nearest centre
    labels = body.predict(crops, verbose=0).argmax(-1)
    model = protect(body, FeatureDistillation(np.full((8, 8), 1e6)))
    path = export_tflite(model, tmp_path / "model.tflite")
    check = verify_export(path, model, crops, labels, threat_model="benign")
    assert not check.passed
    assert "lowers the Keras model's own accuracy (benign) from 100.0% to" in check.problems[0]
    assert "value_range" in check.problems[0]
    assert "the order of the classes" in check.problems[0]
    assert "probabilities are taken for logits" in check.problems[0]
    assert verify_export(path, model, crops, labels, threat_model="adaptive PGD").passed
    with pytest.warns(UserWarning, match="only .* of `images` keep their class; usually the value"):
        verify_export(path, model, crops)
    shifted = verify_export(path, model, crops, (labels + 1) % CLASSES, threat_model="benign")
    assert not shifted.passed
    assert "is that of guessing" in shifted.problems[0]


@pytest.mark.parametrize("head", ["logit", "probability", "segmentation", "boxes"])
def test_models_of_other_heads_are_compared_by_what_they_decide(head, crops, tmp_path):
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 255, offset=-0.5)(inputs)
    outputs = {
        "logit": lambda: layers.Dense(1)(layers.GlobalAveragePooling2D()(x)),
        "probability": lambda: layers.Dense(1, activation="sigmoid")(layers.Flatten()(x)),
        "segmentation": lambda: layers.Conv2D(4, 3)(x),
        "boxes": lambda: layers.Reshape((64, 16))(layers.Conv2D(16, 4, strides=4)(x)),
    }[head]()
    model = keras.Model(inputs, outputs)
    check = verify_export(export_tflite(model, tmp_path / "model.tflite"), model, crops)
    decided = check.decided["predictions"]
    if head == "boxes":
        assert not check.passed
        assert decided.startswith("decisions not compared")
        with pytest.raises(ExportProofError, match="no output decides anything"):
            fd_keras.export_tflite(model, tmp_path / "boxes.tflite")
        return
    assert check.passed, str(check)
    expected = {
        "logit": "above 0, taken for a logit, as its activation is linear",
        "probability": "above 0.5, taken for a probability, as its activation is sigmoid",
        "segmentation": "largest of 4 classes of each pixel",
    }[head]
    assert decided == expected
    assert 0.99 <= check.runtimes[0].same_class <= 1


@pytest.mark.parametrize("images", [np.zeros((0, SIZE, SIZE, 3)), np.zeros((1, 8, 8, 3))])
def test_images_of_another_shape_are_refused(images, model, tmp_path):
    with pytest.raises(ValueError, match="`images` must be at least one image of the shape"):
        verify_export(export_tflite(model, tmp_path / "model.tflite"), model, images)


def test_tf_lite_stands_in_for_litert(model, crops, tmp_path, monkeypatch):
    def missing(module, extra):
        raise ImportError(f'{module} is not installed; run: pip install "fd-keras[{extra}]"')

    monkeypatch.setattr(export_runtimes, "import_extra", missing)
    check = verify_export(export_tflite(model, tmp_path / "model.tflite"), model, crops[:4])
    assert [run.runtime for run in check.runtimes] == ["tf.lite"]
    assert "pip install" in check.not_run["OpenVINO"]
    assert check.passed


def test_quantising_needs_its_extra(model, crops, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_quantizer", None)
    monkeypatch.setitem(sys.modules, "litert_quantizer.qtyping", None)
    with pytest.raises(ImportError, match=r"litert_quantizer is not installed.*\[export\]"):
        export_tflite(model, tmp_path / "model.tflite", quantize="dynamic")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantize": "int4"}, "`quantize` must be one of"),
        ({"quantize": "int8"}, "`representative_data` must hold images like those"),
        (
            {"quantize": "int8", "representative_data": np.zeros((2, 8, 8, 3))},
            r"`representative_data` must hold images of shape \(32, 32, 3\)",
        ),
        ({"labels": []}, "`labels` must be one line of text for each class"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_tflite(model, tmp_path / "model.tflite", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_body_of_any_size_cannot_be_int8(crops, tmp_path):
    inputs = keras.Input((None, None, 3))
    body = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs)))
    model = protect(body, FeatureDistillation("liu2019"))
    arguments = {"quantize": "int8", "representative_data": crops}
    with pytest.raises(ValueError, match=r"must have a fixed image size.*'dynamic' or 'float16'"):
        export_tflite(model, tmp_path / "m.tflite", **arguments)
    pytest.importorskip("litert_quantizer")
    fixed = protect(body, FeatureDistillation("liu2019"), input_shape=(SIZE, SIZE, 3))
    assert export_tflite(fixed, tmp_path / "m.tflite", **arguments).exists()


def test_a_graph_that_no_runtime_can_run_is_no_proof(model, tmp_path):
    version = export_saved_model(model, tmp_path / "served")
    (version / "variables" / "variables.index").unlink()
    check = verify_export(version, model)
    assert "no runtime ran it: Python without fd_keras: the SavedModel" in check.problems[0]
    assert not check.passed


def passing(*args):
    run = RuntimeCheck("none", 0, 0, 0.0, 1.0, 0.0, True, 1.0)
    return ExportCheck("", "saved_model", "none", 0, 1, {}, (run,))


class Stop(BaseException):
    """What kills the export; nothing in the exporters catches it."""


STEPS = {
    "tflite": ["_converted", "quantized", "verify_export"],
    "saved_model": ["write_archive", "write_extras", "write_warmup", "verify_export"],
}


@pytest.mark.parametrize("step", STEPS["tflite"])
def test_an_interrupted_tflite_export_leaves_the_old_file(
    step, model, crops, tmp_path, monkeypatch
):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    def stop(*args, **kwargs):
        raise Stop

    monkeypatch.setattr(exporter, step, stop)
    arguments = {"quantize": "int8", "representative_data": crops}
    with pytest.raises(Stop):
        fd_keras.export_tflite(model, path, **arguments)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("step", STEPS["saved_model"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_saved_model_export_leaves_no_version(
    step, when, model, tmp_path, monkeypatch
):
    pytest.importorskip("tensorflow_serving.apis")
    real = getattr(saved_model_exporter, step)
    monkeypatch.setattr(saved_model_exporter, "verify_export", passing)

    def stop(*args, **kwargs):
        if when == "after" and step != "verify_export":
            real(*args, **kwargs)
        raise Stop

    monkeypatch.setattr(saved_model_exporter, step, stop)
    with pytest.raises(Stop):
        fd_keras.export_saved_model(model, tmp_path / "served", warmup=True)
    assert list((tmp_path / "served").iterdir()) == []


def test_a_killed_export_leaves_nothing_that_a_server_loads(tmp_path):
    """SIGKILL runs no clean-up: what stays must not look like a version."""
    script = """
import os, signal, sys
import keras, fd_keras
from fd_keras.export import saved_model
real = saved_model.write_extras
def kill(*args):
    real(*args)
    os.kill(os.getpid(), signal.SIGKILL)
saved_model.write_extras = kill
fd_keras.export_saved_model(fd_keras.FeatureDistillation("liu2019"), sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    names = [path.name for path in tmp_path.iterdir()]
    assert any(name.startswith(".1.") for name in names)
    assert not any(name.isdecimal() for name in names)
    # The next export removes what it left.
    layer = FeatureDistillation("liu2019")
    assert export_saved_model(layer, tmp_path).name == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_failed_proof_of_a_saved_model_leaves_no_version(model, tmp_path, monkeypatch):
    other = protect(model.layers[2], FeatureDistillation("liu2019"))
    real = saved_model_exporter.verify_export
    monkeypatch.setattr(
        saved_model_exporter, "verify_export", lambda path, _, images: real(path, other, images)
    )
    with pytest.raises(ExportProofError, match="of the distilled pixels differ"):
        fd_keras.export_saved_model(model, tmp_path / "served")
    assert list((tmp_path / "served").iterdir()) == []


def test_nothing_that_lies_in_the_current_directory_is_run(model, crops, tmp_path, monkeypatch):
    version = export_saved_model(model, tmp_path / "served")
    mark = tmp_path / "mark"
    for module in ("numpy", "tensorflow", "json", "sitecustomize"):
        (tmp_path / f"{module}.py").write_text(f"open({str(mark)!r}, 'a').write(__name__)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = verify_export(version.relative_to(tmp_path), model, crops[:2])
    assert not mark.exists()
    assert check.passed


def test_a_preprocessor_is_exported_with_its_model(crops, tmp_path):
    model = classifier()
    model.preprocessor = layers.Rescaling(0.5)
    path = fd_keras.export_tflite(model, tmp_path / "model.tflite", images=crops)
    (run, *_) = verify_export(path, model, crops).runtimes
    served = runtimes.run_tflite(path, crops[:2])["predictions"]
    np.testing.assert_allclose(served, model(crops[:2] / 2), rtol=1e-3, atol=1e-4)
    assert run.same_class == 1


def test_several_inputs_are_refused_without_a_circle(tmp_path):
    """`protect` refused them, too, and was what the exporter's message named."""
    x = [keras.Input((SIZE, SIZE, 3)), keras.Input((SIZE, SIZE, 3))]
    with pytest.raises(ValueError, match="Keras' own model.export writes one with several"):
        export_tflite(keras.Model(x, layers.Add()(x)), tmp_path / "model.tflite")
