"""Operations that lose most in eight bits stay in float32."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers
from tensorflow.lite.python.schema_py_generated import TensorType

from fd_keras import FeatureDistillation, export_tflite, verify_export
from fd_keras.export import quantization as sensitivity
from fd_keras.export.quantization import worst_operations
from fd_keras.export.tflite_file import TFLiteFile

SIZE = 8


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
    pytest.importorskip("ai_edge_quantizer")
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

    monkeypatch.setattr(sensitivity, "run_tflite", run)
    chosen = worst_operations(content, lambda name: name, images, [], error=0.01)
    assert chosen[:2] == [second, third]
    assert largest not in chosen
    assert worst_operations(content, lambda name: name, images, [], error=0.9) == [second]
    assert worst_operations(content, lambda name: name, images, [second], error=0.9) == [third]


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_zero_and_one(model, images, tmp_path, value):
    with pytest.raises(ValueError, match=r"`int8_error` must .* Received: int8_error="):
        export_tflite(model, tmp_path / "model.tflite", int8_error=value)
