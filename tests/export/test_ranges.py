"""Ranges of activations for int8 bodies: cut where that loses least."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from fd_keras import export_tflite, verify_export
from fd_keras.export import quantization
from fd_keras.export.check import ExportCheck, RuntimeCheck
from fd_keras.export.quantization import least_error_range

SIZE = 64


def stored(values, low, high):
    """An oracle: what a scale and a zero point make of floats, in TFLite's own terms."""
    scale = np.float64(high - low) / 255
    zero_point = int(np.rint(-128 - low / scale))
    codes = [min(127, max(-128, round(v / scale) + zero_point)) for v in np.ravel(values)]
    return scale * (np.array(codes) - zero_point)


def squared_error(values, low, high):
    return float(np.mean((stored(values, low, high) - np.ravel(values)) ** 2))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["laplace", "normal", "uniform", "standard_cauchy"]),
    st.floats(-3, 3),
)
def test_no_range_is_worse_than_the_extremes(seed, distribution, shift):
    values = getattr(np.random.default_rng(seed), distribution)(size=300) + shift
    extremes = min(values.min(), 0), max(values.max(), 0)
    low, high = least_error_range(values, values.min(), values.max())
    assert extremes[0] <= low <= 0 <= high <= extremes[1]
    assert squared_error(values, low, high) <= squared_error(values, *extremes) * (1 + 1e-9)


def test_few_far_values_are_cut_off_and_many_are_not():
    values = np.random.default_rng(2).standard_t(4, 100_000)
    extremes = values.min(), values.max()
    low, high = least_error_range(values, *extremes)
    assert -5 > low > 0.85 * extremes[0]
    assert 5 < high < 0.85 * extremes[1]
    assert squared_error(values, low, high) < 0.85 * squared_error(values, *extremes)
    uniform = np.linspace(-1, 3, 1000)
    assert least_error_range(uniform, -1, 3) == (-1, 3)


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_constants_have_a_range(value):
    low, high = least_error_range(np.full(5, value), value, value)
    assert (low, high) == (min(value, 0), max(value, 0))


def test_int8_predictions_come_closer(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_quantizer")
    keras.utils.set_random_seed(5)
    images = np.float32(np.random.default_rng(1).standard_t(3, (40, SIZE, SIZE, 1)))
    inputs = keras.Input((SIZE, SIZE, 1))
    # How far beyond 6 a value is makes no difference, the precision of all others does.
    x = layers.Conv2D(8, 1, activation="relu6", kernel_initializer="ones")(inputs)
    model = keras.Model(inputs, layers.Dense(5)(layers.Flatten()(layers.AveragePooling2D(8)(x))))
    errors = {}
    for name in ("cut", "extremes"):
        if name == "extremes":
            monkeypatch.setattr(quantization, "tightened", lambda ranges, *others: ranges)
        path = export_tflite(
            model,
            tmp_path / f"{name}.tflite",
            quantize="int8",
            representative_data=images[:20],
            int8_error=1,
            verify=False,
        )
        (run, *_) = verify_export(path, model, images[20:]).runtimes
        errors[name] = run.relative_error
    assert errors["cut"] < 0.8 * errors["extremes"]


@pytest.mark.parametrize(
    ("quantize", "images", "other", "passed"),
    [
        ("int8", 32, 1, True),  # 96.9 %, as half of all samples from 97 % are
        ("int8", 100, 6, True),
        ("int8", 100, 7, False),
        ("int8", 1000, 40, False),
        ("int8", 2, 2, False),
        ("none", 100, 3, True),
        ("none", 100, 4, False),
        ("none", 1000, 0, True),
    ],
)
def test_one_image_of_a_few_is_no_proof_of_a_wrong_class(quantize, images, other, passed):
    run = RuntimeCheck("LiteRT", 0, 0, 0.0, 1 - other / images, 0.0, True, 1.0)
    check = ExportCheck("model.tflite", "tflite", quantize, 1000, images, {}, (run,))
    assert check.passed is passed, check.problems
