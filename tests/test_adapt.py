"""`FeatureDistillation.adapt`: measuring benign images and designing the layer's table."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fd_keras import FeatureDistillation, QuantizationTable
from fd_keras.design import design_table
from fd_keras.statistics import CoefficientStatistics


@pytest.fixture
def crops(photos):
    return np.stack([photos[i % 2, 3 * i : 3 * i + 48, 5 * i : 5 * i + 64] for i in range(20)])


@pytest.fixture
def expected(crops):
    statistics = CoefficientStatistics.from_data(crops, color_space="ycbcr")
    return design_table(statistics, 2.0, cycle_spins=2)


def adapted(data, **options):
    layer = FeatureDistillation("jpeg", cycle_spins=2, **options)
    layer.adapt(data, epsilon=2)
    return layer


def test_installs_the_designed_table(crops, expected):
    table = adapted(crops).quantization_table
    assert table == expected
    assert table.provenance["statistics"]["images"] == 20


def test_value_range_and_data_format(crops, expected):
    scaled = np.moveaxis(crops / 255, -1, 1).astype("float32")
    layer = adapted(scaled, value_range=(0, 1), data_format="channels_first")
    np.testing.assert_allclose(layer.quantization_table.steps, expected.steps, atol=1)


def test_replaces_weights_without_retracing(crops, expected):
    layer = FeatureDistillation("jpeg", cycle_spins=2)
    layer(crops)
    call = tf.function(layer)
    call(tf.constant(crops))
    layer.adapt(tf.data.Dataset.from_tensor_slices(crops).batch(4), epsilon=2)
    np.testing.assert_allclose(
        call(tf.constant(crops)), FeatureDistillation(layer.quantization_table)(crops), atol=1e-3
    )
    assert layer.quantization_table == expected


def test_forgets_earlier_data(crops, expected):
    layer = FeatureDistillation("jpeg", cycle_spins=2)
    layer.adapt(255 - crops[:3], epsilon=8)
    layer.adapt(crops, epsilon=2)
    assert layer.quantization_table == expected


def test_in_parts(crops, expected):
    layer = FeatureDistillation("jpeg", cycle_spins=2)
    layer.reset_state()
    for start in range(0, 20, 5):
        layer.update_state(crops[start : start + 5])
    layer.finalize_state(2.0)
    assert layer.quantization_table == expected


def test_steps_limit_an_endless_dataset(crops, expected):
    layer = FeatureDistillation("jpeg", cycle_spins=2)
    layer.adapt(tf.data.Dataset.from_tensor_slices(crops).batch(5).repeat(), epsilon=2, steps=4)
    assert layer.quantization_table == expected


def test_survives_saving(crops, expected, tmp_path):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, adapted(crops)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].quantization_table == expected
    np.testing.assert_array_equal(loaded(crops), model(crops))


def test_design_arguments_reach_the_design(crops):
    layer = FeatureDistillation("liu2019")
    layer.adapt(crops, epsilon=2, as_bands=20, max_step=99)
    provenance = layer.quantization_table.provenance
    assert provenance["as_bands"] == [20] * 3
    assert provenance["step_range"] == [1, 99]


def test_failure_leaves_the_table(crops):
    layer = FeatureDistillation(QuantizationTable(np.full((8, 8), 7.0)))
    with pytest.raises(ValueError, match="no image"):
        layer.adapt([], epsilon=2)
    with pytest.raises(ValueError, match="`required_removal`"):
        layer.adapt(crops, epsilon=200, max_step=20)
    assert layer.quantization_table.steps.max() == 7


@pytest.mark.parametrize("epsilon", [0, -2, 0.0078, np.nan, "2/255", [2, 4]])
def test_epsilon_is_checked_before_data_is_read(epsilon):
    def images():
        raise AssertionError("was read")
        yield

    with pytest.raises(ValueError, match="`epsilon` must be one finite number of grey levels"):
        FeatureDistillation().adapt(images(), epsilon)


@pytest.mark.parametrize(
    ("design", "error", "message"),
    [
        ({"as_band": 4}, TypeError, "as_band"),
        ({"as_bands": 65}, ValueError, "`as_bands` must lie"),
        ({"as_bands": 1.5}, ValueError, "`as_bands` must be whole numbers"),
        ({"required_removal": 2}, ValueError, "`required_removal` must lie"),
        ({"distortion_budget": -1}, ValueError, "`distortion_budget` must be"),
        ({"min_step": 9, "max_step": 8}, ValueError, "min_step <= max_step"),
        ({"max_step": 2**64}, ValueError, "`max_step` must be whole numbers"),
        ({"ranking": "size"}, ValueError, "`ranking` must be one of"),
        ({"perturbation": "noise"}, ValueError, "`perturbation` must be one of"),
        ({"channel_correlation": [0.5, 0.5]}, ValueError, "`channel_correlation` must be one"),
    ],
)
def test_the_design_is_checked_before_data_is_read(design, error, message):
    def images():
        raise AssertionError("was read")
        yield

    with pytest.raises(error, match=message):
        FeatureDistillation().adapt(images(), 2, **design)


def test_failure_forgets_what_was_measured(crops):
    layer = FeatureDistillation()
    with pytest.raises(ValueError, match="value_range"):
        layer.adapt([crops[0], crops[0] - 1000.0], 2, batch_size=1)
    with pytest.raises(ValueError, match="`update_state` must"):
        layer.finalize_state(2)
    with pytest.raises(ValueError, match="images with 3, then 1 channels"):
        layer.adapt([crops[0], crops[0][..., :1]], 2)


def test_a_tuple_of_images_is_as_good_as_a_list(crops):
    layer = FeatureDistillation()
    layer.adapt(tuple(crops[:3]), 2)
    assert layer.quantization_table.provenance["statistics"]["images"] == 3


def test_cycle_spins_are_the_layers(crops):
    layer = FeatureDistillation(cycle_spins=2)
    for call in (lambda: layer.adapt(crops, 2, cycle_spins=4), lambda: finalised(layer, crops)):
        with pytest.raises(ValueError, match="`cycle_spins` must be left to the layer"):
            call()


def test_the_quantiser_is_the_layers(crops):
    layer = FeatureDistillation(color_space="ycbcr", cycle_spins=2, quantizer="soft")
    layer.adapt(crops, 2)
    statistics = CoefficientStatistics.from_data(crops, color_space="ycbcr")
    assert layer.quantization_table == design_table(statistics, 2, cycle_spins=2, quantizer="soft")
    with pytest.raises(ValueError, match="`quantizer` must be left to the layer"):
        layer.adapt(crops, 2, quantizer="round")


def finalised(layer, crops):
    layer.update_state(crops)
    layer.finalize_state(2, cycle_spins=4)


def test_one_block_grid_unless_asked_for_more(crops):
    layer = FeatureDistillation()
    layer.adapt(crops, epsilon=2)
    table = design_table(CoefficientStatistics.from_data(crops), epsilon=2)
    assert layer.quantization_table == table
    assert table.cycle_spins == 1


@pytest.mark.parametrize("color_space", ["rgb", "ycbcr"])
def test_images_of_other_channels_than_the_layers(crops, color_space):
    layer = FeatureDistillation(color_space=color_space)
    layer(crops)
    with pytest.raises(ValueError, match="the 3 channels the layer was built for"):
        layer.adapt(crops[..., :1], epsilon=2)


@pytest.mark.parametrize(
    ("pixels", "value_range"), [(255.0, (0, 1)), (1.0, (0, 255)), (np.nan, (0, 1))]
)
def test_pixels_of_another_range(crops, pixels, value_range):
    layer = FeatureDistillation(value_range=value_range)
    with pytest.raises(ValueError, match="value_range"):
        layer.adapt(crops / 255 * pixels, epsilon=2)


def test_grey_images_without_a_channel_axis(crops):
    with pytest.raises(ValueError, match=r"images\[..., np.newaxis\]"):
        FeatureDistillation().adapt(crops[..., 0], epsilon=2)


def test_single_images_with_channels_first(crops, expected):
    layer = FeatureDistillation("jpeg", cycle_spins=2, data_format="channels_first")
    layer.adapt([np.moveaxis(image, -1, 0) for image in crops], epsilon=2)
    assert layer.quantization_table == expected


def test_finalising_forgets_what_was_measured(crops):
    layer = FeatureDistillation()
    layer.adapt(crops, epsilon=2)
    with pytest.raises(ValueError, match="`update_state` must have measured"):
        layer.finalize_state(2)
