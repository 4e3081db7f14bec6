"""Int8 bodies: ranges are cut where that loses least, and the worst operations stay in float32."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from tensorflow.lite.python.schema_py_generated import TensorType

from fd_keras import FeatureDistillation, export_tflite, verify_export
from fd_keras.export import quantization
from fd_keras.export.quantization import least_error_range, worst_operations
from fd_keras.export.tflite_file import TFLiteFile

SIZE = 8


def stored(values, low, high):
    """An oracle: what a scale and a zero point make of floats, in TFLite's own terms."""
    scale = np.float64(high - low) / 255
    zero_point = int(np.rint(-128 - low / scale))
    codes = [min(127, max(-128, round(v / scale) + zero_point)) for v in np.ravel(values)]
    return scale * (np.array(codes) - zero_point)


def squared_error(values, low, high):
    return float(np.mean((stored(values, low, high) - np.ravel(values)) ** 2))


@settings(max_examples=50)
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
    pytest.importorskip("litert_quantizer")
    keras.utils.set_random_seed(5)
    images = np.float32(np.random.default_rng(1).standard_t(3, (40, 64, 64, 1)))
    inputs = keras.Input((64, 64, 1))
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


@pytest.fixture(scope="module")
def images():
    return np.float32(np.random.default_rng(1).integers(0, 256, (40, SIZE, SIZE, 1)))


@pytest.fixture(scope="module")
def model():
    """Its second convolution makes channels of very different sizes, and the third undoes it."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((SIZE, SIZE, 1))
    x = FeatureDistillation("liu2019")(inputs)
    x = layers.Conv2D(6, 3, activation="relu")(layers.Rescaling(1 / 255)(x))
    spread, joined = layers.Conv2D(6, 1, name="spread"), layers.Conv2D(6, 1, name="joined")
    x = joined(layers.ReLU()(spread(x)))
    model = keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))
    scales = np.float32(4.0 ** np.arange(6))
    spread.set_weights([np.float32(spread.get_weights()[0] * scales), np.zeros(6, np.float32)])
    kernel = joined.get_weights()[0] / scales[:, np.newaxis]
    joined.set_weights([np.float32(kernel), np.zeros(6, np.float32)])
    return model


def exported(model, images, path, **arguments):
    pytest.importorskip("litert_quantizer")
    return export_tflite(
        *(model, path),
        quantize="int8",
        representative_data=images[:20],
        verify=False,
        **arguments,
    )


def test_predictions_come_closer_and_the_distilled_image_stays(model, images, tmp_path):
    found = {}
    for error in (1, 0.3):
        path = exported(model, images, tmp_path / f"{error}.tflite", int8_error=error)
        check = verify_export(path, model, images[20:])
        assert check.runtimes, check.problems
        run = check.runtimes[0]
        assert run.largest_pixel_difference == 0
        found[error] = run.relative_error
    assert found[0.3] < 0.6 * found[1]


def test_one_quantises_everything_and_zero_nothing_small(model, images, tmp_path):
    def quantised(error):
        path = exported(model, images, tmp_path / f"{error}.tflite", int8_error=error)
        graph = TFLiteFile(path.read_bytes()).model.subgraphs[0]
        int8 = {i for i, tensor in enumerate(graph.tensors) if tensor.type == TensorType.INT8}
        return [op for op in graph.operators if int8 >= {op.inputs[0], op.outputs[0]}]

    # Three convolutions, a rectifier and the dense layer at least; of the dense layer's weights
    # there are too many for float32.
    assert len(quantised(1)) >= 5
    assert len(quantised(0)) == 1


def test_the_worst_come_first_and_large_ones_never(model, images, tmp_path, monkeypatch):
    content = export_tflite(model, tmp_path / "float.tflite", verify=False).read_bytes()
    weights = TFLiteFile(content).operation_weights()
    *_, third, second, largest = weights
    assert weights[largest] == max(weights.values())
    shifts = {second: 3.0, third: 2.0, largest: 2.5}

    def run(file, samples):
        """Predictions; stands for a file with one operation quantised, known by its name."""
        shift = shifts.get(file, 0.0)
        return SimpleNamespace(outputs={"predictions": np.linspace(-1, 1, 5) + shift})

    monkeypatch.setattr(quantization, "run_tflite", run)
    chosen = worst_operations(content, lambda name: name, images, [], error=0.01)
    assert chosen[:2] == [second, third]
    assert largest not in chosen
    assert worst_operations(content, lambda name: name, images, [], error=0.9) == [second]
    assert worst_operations(content, lambda name: name, images, [second], error=0.9) == [third]


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_zero_and_one(model, images, tmp_path, value):
    with pytest.raises(ValueError, match=r"`int8_error` must .* Received: int8_error="):
        export_tflite(model, tmp_path / "model.tflite", int8_error=value)
