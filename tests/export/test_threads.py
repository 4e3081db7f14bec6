"""Exporting a model that other threads use, and several exports at once."""

import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from fd_keras import FeatureDistillation, export_saved_model, export_tflite, protect, verify_export


@pytest.fixture(scope="module")
def model():
    body = [layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(3)]
    return protect(
        keras.Sequential([keras.Input((16, 16, 3)), *body]), FeatureDistillation("jpeg:50")
    )


@pytest.fixture(scope="module")
def images(photos):
    return photos[:, 7:23, 406:422].astype(np.float32)


def test_exports_do_not_disturb_other_threads_or_each_other(model, images, tmp_path):
    printed = sys.stdout, sys.stderr
    level, shown = tf.get_logger().level, list(tf.get_logger().filters)
    expected, layer = model.predict(images, verbose=0), model.layers[1]
    distilled, finished, calls = layer(images), threading.Event(), []

    def use():
        while not finished.is_set():
            np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-5)
            np.testing.assert_allclose(layer(images), distilled)
            calls.append(1)

    def export(number):
        folder = tmp_path / str(number)
        served = export_saved_model(model, folder / "served", verify=False)
        return served, export_tflite(model, folder / "model.tflite", verify=False)

    with ThreadPoolExecutor(3) as threads:
        user = threads.submit(use)
        try:
            paths = list(threads.map(export, range(2)))
        finally:
            finished.set()
        user.result()
    assert len(calls) > 1
    for served, file in paths:
        assert verify_export(file, model, images).passed
        signatures = tf.saved_model.load(str(served)).signatures
        np.testing.assert_allclose(
            signatures["distill"](images=tf.constant(images))["distilled"], distilled
        )
    assert (sys.stdout, sys.stderr) == printed
    assert (tf.get_logger().level, tf.get_logger().filters) == (level, shown)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_nothing_of_the_process_is_replaced_meanwhile(
    quantize, model, images, tmp_path, monkeypatch, capsys
):
    """What others print and warn during an export is theirs; the export itself is silent."""
    pytest.importorskip("litert_quantizer")
    printed, call = (sys.stdout, sys.stderr, warnings.showwarning), type(model.layers[1]).call
    seen = []

    def watch(frame, event, argument):
        if event == "call" and "fd_keras/export" in frame.f_code.co_filename:
            seen.append((sys.stdout, sys.stderr, warnings.showwarning) == printed)
            seen.append(getattr(model.layers[1].call, "__func__", None) is call)

    sys.setprofile(watch)
    try:
        export_tflite(
            model,
            tmp_path / "model.tflite",
            quantize=quantize,
            representative_data=images,
            verify=False,
        )
    finally:
        sys.setprofile(None)
    assert len(seen) > 10
    assert all(seen)
    assert capsys.readouterr() == ("", "")
