"""The signature ``certify``: the same radii in every runtime, and the same images within them."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from fd_keras import (
    DistillationDetector,
    ExportProofError,
    FeatureDistillation,
    TamperDetector,
    certified_table,
    certify,
    encode,
    export_saved_model,
    export_tflite,
    protect,
)
from fd_keras.export.check import RADIUS_TOLERANCE
from fd_keras.export.runtimes import run_saved_model, run_tflite
from fd_keras.export.signatures import certified_layer, detect_endpoint, png_files

RGB, YCBCR = certified_table(2), certified_table(1, color_space="ycbcr")


def classifier(shape):
    inputs = keras.Input(shape)
    x = layers.GlobalMaxPooling2D()(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.Dense(3)(x))


def radii_of(outputs):
    return np.stack([outputs["linf_radius"], outputs["l2_radius"]])


@pytest.mark.parametrize(
    ("table", "size", "static"),
    [
        (RGB, (40, 48, 3), True),
        (YCBCR, (37, 51, 3), False),
    ],
    ids=["rgb", "ycbcr, odd"],
)
def test_every_runtime_certifies_and_keeps_the_image(photos, rng, tmp_path, table, size, static):
    """As `certify` does; and what is within the radius is distilled to the very same bits."""
    height, width, channels = size
    images = photos[:, 100 : 100 + height, 200 : 200 + width, :channels]
    encoded = encode(images, table) / np.float32(255)
    layer = FeatureDistillation(table, value_range=(0, 1))
    model = protect(classifier(size if static else (None, None, channels)), layer)
    expected = certify(encoded, table, value_range=(0, 1))
    radius = 0.999 * expected.linf_radius / 255
    signs = rng.choice([-1, 1], encoded.shape)
    attacked = np.float32(encoded + radius[:, np.newaxis, np.newaxis, np.newaxis] * signs)

    served = export_saved_model(model, tmp_path / "served", verify=False)
    requests = {
        "certify": {"images": encoded},
        "distill": {"images": np.concatenate([encoded, attacked])},
    }
    results = run_saved_model(served, requests)
    mobile = export_tflite(model, tmp_path / "model.tflite", verify=False).read_bytes()
    in_litert = run_tflite(mobile, encoded, signature="certify").outputs
    assert set(in_litert) == {"linf_radius", "l2_radius"}
    for outputs in (results["certify"].outputs, in_litert):
        np.testing.assert_allclose(radii_of(outputs), radii_of(vars(expected)), atol=2e-3)
    np.testing.assert_allclose(
        results["certify"].outputs["predictions"], model(encoded), rtol=1e-4, atol=1e-4
    )

    distil_in_litert = [
        run_tflite(mobile, x, signature="distill").outputs["distilled"] for x in (encoded, attacked)
    ]
    for untouched, touched in (
        (layer(encoded), layer(attacked)),
        np.split(results["distill"].outputs["distilled"], 2),
        distil_in_litert,
    ):
        np.testing.assert_array_equal(untouched, touched)


def test_another_layout(photos, tmp_path):
    """Channels first, grey levels from -1 to 1, and the layer alone, of any size."""
    layer = FeatureDistillation("certified:1", value_range=(-1, 1), data_format="channels_first")
    images = np.float32(encode(photos[:, 60:101, 90:140], "certified:1") / 127.5 - 1)
    loaded = tf.saved_model.load(str(export_saved_model(layer, tmp_path, verify=False)))
    turned = np.moveaxis(images, -1, 1)
    found = loaded.signatures["certify"](images=tf.constant(turned))
    expected = certify(images, "certified:1", value_range=(-1, 1))
    np.testing.assert_allclose(radii_of(found), radii_of(vars(expected)), atol=2e-3)
    np.testing.assert_allclose(found["distilled"], layer(turned), atol=1e-4)


def test_only_what_sees_its_images_through_the_layer_is_certified():
    layer, inputs = FeatureDistillation("certified:1"), keras.Input((16, 16, 3))
    beside = layers.Add()([layer(inputs), inputs])
    assert certified_layer(keras.Model(inputs, beside)) is None
    assert certified_layer(keras.Model(inputs, [layer(inputs), inputs])) is None
    assert certified_layer(DistillationDetector(classifier((16, 16, 3)), layer)) is None
    assert certified_layer(classifier((16, 16, 3))) is None
    soft = FeatureDistillation("soft8", value_range=(0, 255))
    assert certified_layer(keras.Model(inputs, soft(inputs))) is None
    assert certified_layer(protect(classifier((16, 16, 3)), layer)) is layer
    below = layers.Rescaling(2.0)(inputs)
    assert certified_layer(keras.Model(inputs, layer(below))) is None


def test_wrong_radii_are_no_proof(tmp_path, monkeypatch):
    model = protect(classifier((24, 16, 3)), FeatureDistillation("certified:2"))
    checks = []
    export_tflite(model, tmp_path / "right.tflite", on_check=checks.append)
    assert checks[0].runtimes[0].radius_difference < RADIUS_TOLERANCE / 5
    assert "radii differ by" in str(checks[0])
    monkeypatch.setattr(
        "fd_keras.export.signatures.radii", lambda pixels, _: 2 * (tf.ones(tf.shape(pixels)[0]),)
    )
    for export in (export_saved_model, export_tflite):
        with pytest.raises(ExportProofError, match="certified radii differ by"):
            export(model, tmp_path / export.__name__)


def test_quantised_bodies_certify_alike(photos, tmp_path):
    pytest.importorskip("litert_quantizer")
    images = np.float32(encode(photos[:, 100:132, 200:232], "certified:2"))
    model = protect(classifier((32, 32, 3)), FeatureDistillation("certified:2"))
    expected = certify(images, "certified:2")
    for quantize in ("dynamic", "int8"):
        data = images if quantize == "int8" else None
        path = export_tflite(
            *(model, tmp_path / f"{quantize}.tflite"),
            quantize=quantize,
            representative_data=data,
            verify=False,
        )
        found = run_tflite(path.read_bytes(), images, signature="certify").outputs
        np.testing.assert_allclose(radii_of(found), radii_of(vars(expected)), atol=2e-3)


def test_operations_are_builtins(tmp_path):
    model = protect(classifier((None, None, 3)), FeatureDistillation("certified:2:ycbcr"))
    path = export_tflite(model, tmp_path / "model.tflite", verify=False)
    from fd_keras.export.tflite_file import TFLiteFile

    operations = TFLiteFile(path.read_bytes()).operations()
    assert not [name for name in operations if name.startswith(("FLEX", "CUSTOM"))]


def test_a_tamper_detector_is_served_in_its_value_range(photos, tmp_path):
    """Its own pixels of 0..1 were decoded to 0..255, so that it flagged every file."""
    images = encode(photos[:, :16, :16], "certified:2")
    detector = TamperDetector("certified:2", value_range=(0, 1))
    detector.adapt(np.repeat(images, 10, axis=0) / 255)
    version = export_saved_model(detector, tmp_path, verify=False)
    files = png_files(np.float32(images), (0, 255))
    served = tf.saved_model.load(str(version)).signatures["serving_bytes"]
    assert not np.any(served(image_bytes=tf.constant(list(files)))["flag"])


def test_a_detector_of_another_value_range_is_refused(tmp_path):
    model = protect(classifier((16, 16, 3)), FeatureDistillation("liu2019", value_range=(0, 1)))
    with pytest.raises(ValueError, match="`detector` must take pixels in the range"):
        export_saved_model(model, tmp_path, detector=TamperDetector("certified:2"))


def test_an_unknown_value_range_is_said(tmp_path):
    model = classifier((16, 16, 3))
    with pytest.warns(UserWarning, match="`value_range` is unknown"):
        export_saved_model(model, tmp_path, verify=False)
    export_saved_model(model, tmp_path, value_range=(-1, 1), verify=False)
    protected = protect(model, FeatureDistillation("liu2019", value_range=(0, 1)))
    for write in (export_saved_model, export_tflite):
        with pytest.raises(ValueError, match="`value_range` must be that of the model's own"):
            write(protected, tmp_path / "other", value_range=(0, 255))
    grey = np.full((2, 16, 16, 3), 0.5, np.float32)
    with pytest.raises(ValueError, match="must be scaled to value_range"):
        export_tflite(model, tmp_path / "a.tflite", value_range=(0, 255), images=grey)


def test_detect_is_proven(tmp_path, monkeypatch):
    layer = FeatureDistillation("liu2019")
    alone = classifier((16, 16, 3))
    detector, checks = DistillationDetector(alone, layer), []
    write = functools.partial(export_saved_model, protect(alone, layer), detector=detector)
    write(tmp_path / "right", on_check=checks.append)
    assert [check.passed for check in checks] == [True, True]
    assert "detect" in checks[1].runtimes[0].runtime

    def wrong(model, detector):
        endpoint = detect_endpoint(model, detector)

        def flags_reversed(images):
            outputs = endpoint.function(images)
            return {**outputs, "flag": tf.logical_not(outputs["flag"])}

        return dataclasses.replace(endpoint, function=flags_reversed)

    monkeypatch.setattr("fd_keras.export.saved_model.detect_endpoint", wrong)
    with pytest.raises(ExportProofError, match="flag"):
        write(tmp_path / "wrong")
    assert not list((tmp_path / "wrong").iterdir())
