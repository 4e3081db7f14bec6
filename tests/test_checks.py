"""Arguments that are no numbers, names or pixels, and the length of what errors show."""

import decimal
import fractions
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import fd_keras
from fd_keras import (
    FeatureDistillation,
    QuantizationTable,
    export_saved_model,
    export_tflite,
    make_pipeline,
    preset_table,
    protect,
)
from fd_keras._checks import (
    check_pixels,
    check_range,
    checked_choice,
    layout_doubt,
    of_another_scale,
    printable,
    real_numbers,
    shown,
    validate_epsilon,
    validate_value_range,
)
from fd_keras.classifier import Classifier
from fd_keras.data.batches import image_batches
from fd_keras.design import design_table, perturbation_profile, rank_bands
from fd_keras.evaluation.attacks import Attack
from fd_keras.evaluation.defences import defence
from fd_keras.hardening import Training

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS | arrays(np.float32, array_shapes(max_dims=3, max_side=30)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(VALUES)
def test_shown_is_one_bounded_repr(value):
    assert len(shown(value)) <= 200


@pytest.mark.parametrize("value", [(1, 0), "liu2020", None, 0.5, [1, "a"], {"a": 1}, np.zeros(2)])
def test_short_values_are_shown_as_they_are(value):
    assert shown(value) == repr(value)


BIG = "x" * 10**6
SMALL = keras.Sequential([keras.Input((1, 2, 3)), keras.layers.Flatten()])
BIG_ARGUMENTS = {
    "table": lambda: FeatureDistillation(BIG),
    "steps": lambda: FeatureDistillation([BIG] * 64),
    "value_range": lambda: FeatureDistillation(value_range=[0] * 10**6),
    "gradient": lambda: FeatureDistillation(gradient=BIG),
    "color_space": lambda: QuantizationTable(np.ones((8, 8)), [BIG]),
    "cycle_spins": lambda: QuantizationTable(np.ones((8, 8)), "rgb", [1] * 10**6),
    "provenance": lambda: QuantizationTable(np.ones((8, 8)), provenance={"a": [BIG, object()]}),
    "preset": lambda: preset_table(BIG),
    "pipeline": lambda: make_pipeline(BIG),
    "layer": lambda: protect(None, [BIG] * 64),
    "epsilon": lambda: validate_epsilon([0.5] * 10**6),
    "ranking": lambda: rank_bands(np.ones((8, 8)), BIG),
    "statistics": lambda: design_table(BIG, 2),
    "document": lambda: QuantizationTable.from_dict({"format": BIG}),
    "model": lambda: Classifier(BIG),
    "output": lambda: Classifier(SMALL, output=BIG),
    "class_names": lambda: Classifier(SMALL, class_names=[1] * 10**6),
    "labels": lambda: export_tflite(SMALL, "x.tflite", labels=[BIG, "a\nb"]),
    "quantize": lambda: export_tflite(SMALL, "x.tflite", quantize=BIG),
    "version": lambda: export_saved_model(SMALL, "x", version=BIG),
    "resize": lambda: export_saved_model(SMALL, "x", resize=BIG),
    "optimizer": lambda: Training(optimizer=BIG),
    "family": lambda: Attack("a", BIG, "inf", 2),
    "defence": lambda: defence(BIG),
    "data": lambda: list(image_batches(BIG)),
    "inputs": lambda: FeatureDistillation()([np.zeros((256, 256, 3))] * 100),
}


@pytest.mark.parametrize("argument", BIG_ARGUMENTS)
def test_errors_are_short_whatever_was_passed(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError)) as error:
        BIG_ARGUMENTS[argument]()
    assert len(str(error.value)) < 700


def test_errors_show_arguments_by_a_bounded_repr():
    """Messages of 100 MB were made of what was passed."""
    found = [
        f"{path.name}: {match[0]}"
        for path in Path(fd_keras.__file__).parent.rglob("*.py")
        for match in re.finditer(r"\b(\w+)=\{\1!r\}", path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "value",
    [
        *("30", ["1", "2"], b"1", True, [True, False], 1j, np.ones(2, complex), None),
        *({1, 2}, {1: 2}, [object()], [[1], [1, 2]], [10**400], np.datetime64(1, "s")),
    ],
)
def test_what_is_no_real_number(value):
    with pytest.raises(ValueError, match="`steps` must be numbers. Received: steps="):
        real_numbers("steps", value)


@pytest.mark.parametrize(
    "value",
    [
        *(1, 1.5, np.float16(1), np.uint8([1, 2]), tf.constant([1, 2]), tf.ones(2, tf.bfloat16)),
        *([], fractions.Fraction(1, 2), [10**30]),
    ],
)
def test_what_are_real_numbers(value):
    assert real_numbers("steps", value).dtype == np.float64


def test_decimals_are_refused_by_name():
    """They are no `numbers.Real`; numpy would convert them, as it would text."""
    with pytest.raises(ValueError, match="`steps` must be numbers"):
        real_numbers("steps", decimal.Decimal("1.5"))


@pytest.mark.parametrize(
    "value_range",
    ["01", ("0", "255"), b"01", (False, True), {0, 255}, {0: 1, 1: 2}, (0, 1j), iter((0, 1))],
)
def test_ranges_of_other_types(value_range):
    with pytest.raises(ValueError, match="`value_range` must be two finite numbers, the lower"):
        validate_value_range(value_range)


@pytest.mark.parametrize(
    "value_range", [(0, 1e-45), (0, 1e-36), (0, 1e39), (-3e38, 3e38), (1e9, 1e9 + 1), (1, 1 + 1e-6)]
)
def test_ranges_that_float32_cannot_hold(value_range):
    with pytest.raises(ValueError, match="`value_range` must be a range whose 255 grey levels"):
        validate_value_range(value_range)


@given(st.floats(-1e6, 1e6), st.floats(1e-30, 1e30))
def test_permitted_ranges_give_finite_images(low, width):
    try:
        low, high = validate_value_range((low, low + width))
    except ValueError:
        return
    image = np.linspace(low, high, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    out = FeatureDistillation(np.ones((8, 8)), value_range=(low, high))(image).numpy()
    assert np.abs(out - image).max() <= (high - low) / 100


@pytest.mark.parametrize("value", ["2", True, [2.0, 4.0], [2.0], 2j, None, np.nan])
def test_epsilons_of_other_types(value):
    with pytest.raises(ValueError, match="`epsilon` must be one finite number of grey levels"):
        validate_epsilon(value)


@pytest.mark.parametrize("value", [np.array(["rgb", "ycbcr"]), ["rgb"], None, 3, "RGB"])
def test_choices(value):
    with pytest.raises(ValueError, match="`a` must be one of .*'rgb', 'ycbcr'.*Received: a="):
        checked_choice("a", value, ("rgb", "ycbcr"))


@pytest.mark.parametrize("dtype", [complex, bool, str, object, "S3"])
def test_pixels_of_other_types(dtype):
    with pytest.raises(ValueError, match="`data` must hold pixels as integers or floats. Received"):
        check_pixels(np.zeros((1, 8, 8, 3)).astype(dtype), (0.0, 255.0))


def test_perturbations_of_other_types():
    images = np.full((1, 8, 8, 3), 3)
    with pytest.raises(ValueError, match="`adversarial` must hold pixels as integers or floats"):
        perturbation_profile(images, images + 2j)


UNIT = np.linspace(0, 1, 100)


@pytest.mark.parametrize(
    ("pixels", "value_range", "expected"),
    [
        (UNIT, (0, 255), True),
        (2 * UNIT - 1, (0, 255), True),
        ((UNIT - 0.45) / 0.225, (0, 255), True),  # as networks of PyTorch take them
        (255 * UNIT - 123, (0, 255), True),  # as networks of Caffe take them
        (255 * UNIT, (0, 1), True),
        (255 * UNIT, (-1, 1), True),
        (255 * UNIT, (0, 255), False),
        (UNIT, (0, 1), False),
        (UNIT, (-1, 1), False),
        (np.zeros(9), (0, 255), False),
        (np.array([0, 1, 1, 0]), (0, 255), False),
        (280 * UNIT - 12, (0, 255), False),  # bicubic interpolation overshoots
        (np.array([np.nan, 0.5]), (0, 255), False),
        (np.array([np.inf, 0.5]), (0, 255), False),
    ],
)
def test_pixels_of_another_scale(pixels, value_range, expected):
    assert of_another_scale(pixels, value_range) == expected


@pytest.mark.parametrize(
    ("shape", "data_format", "expected"),
    [
        ((2, 3, 32, 32), "channels_last", "channels_first"),
        ((None, 3, None, 224), "channels_last", "channels_first"),
        ((2, 32, 32, 3), "channels_first", "channels_last"),
        ((1, 28, 28), "channels_last", "channels_first"),
        ((60, 28, 28), "channels_last", "without a channel axis"),
        ((2, 32, 32, 3), "channels_last", ""),
        ((2, 3, 32, 32), "channels_first", ""),
        ((2, 3, 3, 3), "channels_last", ""),
        ((2, 3, 640, 4), "channels_last", ""),
        ((2, 32, 32, 16), "channels_last", ""),
        ((2, 32, 32, None), "channels_last", ""),
    ],
)
def test_layouts(shape, data_format, expected):
    doubt = layout_doubt(shape, data_format)
    assert expected in doubt
    assert bool(doubt) == bool(expected)


@given(st.text())
def test_printable_names_are_one_line(text):
    name = printable(text)
    assert name.isprintable()
    assert len(name.splitlines()) <= 1
    assert printable(name) == name


def test_pixels_after_preprocess_input_are_refused_with_the_way(rng):
    pixels = rng.integers(0, 256, (4, 8, 8, 3))
    for mode in ("caffe", "torch", "tf"):
        images = keras.applications.imagenet_utils.preprocess_input(
            pixels.astype(np.float32), mode=mode
        )
        with pytest.raises(ValueError, match=r"`images`.*preprocess_input belongs inside the mod"):
            check_range("images", images, (0.0, 255.0))
    with pytest.raises(ValueError, match="must be scaled to value_range, 0 to 255; give layer"):
        check_range("images", pixels / 255, (0.0, 255.0))
    check_range("images", pixels, (0.0, 255.0))
