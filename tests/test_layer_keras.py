"""The layer in Keras: shapes, dtypes, serialisation, tables, errors."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from fd_keras import FeatureDistillation, QuantizationTable, preset_table


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (2, 19, 26, 3)).astype("float32")


class TestShapes:
    @pytest.mark.parametrize(
        "shape", [(None, None, None, 3), (None, 32, 32, 1), (4, None, 20, 3), (2, 9, 9, 3)]
    )
    def test_symbolic_call_keeps_the_shape(self, shape):
        output = FeatureDistillation("jpeg")(keras.Input(batch_shape=shape))
        assert tuple(output.shape) == shape
        assert FeatureDistillation("jpeg").compute_output_shape(shape) == shape

    def test_symbolic_call_with_channels_first(self):
        layer = FeatureDistillation("jpeg", data_format="channels_first")
        assert tuple(layer(keras.Input((3, None, None))).shape) == (None, 3, None, None)

    def test_one_image_is_a_batch_of_one(self, images):
        layer = FeatureDistillation("liu2019")
        np.testing.assert_array_equal(layer(images[0]), layer(images)[0])

    def test_unknown_sizes_equal_known_ones(self, images):
        layer = FeatureDistillation("jpeg", cycle_spins=4)
        anywhere = tf.function(
            layer, input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)]
        )
        np.testing.assert_allclose(anywhere(images), layer(images), atol=1e-4)

    def test_empty_batch(self, images):
        assert FeatureDistillation()(images[:0]).shape == (0, 19, 26, 3)

    def test_data_format_follows_keras(self):
        before = keras.backend.image_data_format()
        keras.backend.set_image_data_format("channels_first")
        try:
            assert FeatureDistillation().data_format == "channels_first"
        finally:
            keras.backend.set_image_data_format(before)


class TestDtypes:
    @pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float64"])
    def test_input_dtype_does_not_matter(self, dtype, images):
        expected = FeatureDistillation()(images)
        actual = FeatureDistillation()(images.astype(dtype))
        assert actual.dtype == tf.float32
        np.testing.assert_array_equal(actual, expected)

    @pytest.mark.parametrize(
        ("policy", "compute", "tolerance"),
        [("mixed_float16", "float16", 0.07), ("mixed_bfloat16", "bfloat16", 0.51)],
    )
    def test_mixed_precision_computes_in_float32(self, policy, compute, tolerance, images):
        """Only the result is cast: its error is half a unit of the compute dtype at 255."""
        layer = FeatureDistillation("liu2019", dtype=policy)
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, layer(inputs))
        out = model(images)
        assert tf.as_dtype(out.dtype) == compute
        assert layer.steps.dtype == "float32"
        expected = FeatureDistillation("liu2019")(images)
        np.testing.assert_allclose(tf.cast(out, tf.float32), expected, atol=tolerance)

    def test_global_policy(self, images):
        keras.mixed_precision.set_global_policy("mixed_float16")
        try:
            assert FeatureDistillation()(images).dtype == tf.float16
        finally:
            keras.mixed_precision.set_global_policy("float32")

    def test_integer_policy_rounds(self, images):
        out = FeatureDistillation(dtype="uint8")(images)
        assert out.dtype == tf.uint8
        np.testing.assert_array_equal(out, np.round(FeatureDistillation()(images).numpy()))


class TestSerialisation:
    def test_config_round_trip(self, images):
        layer = FeatureDistillation(
            preset_table("jpeg", quality=60),
            cycle_spins=2,
            value_range=(-1, 1),
            dct_method="signal",
            gradient="smooth",
            name="fd",
            dtype="mixed_bfloat16",
        )
        config = json.loads(json.dumps(layer.get_config()))
        copy = FeatureDistillation.from_config(config)
        assert copy.get_config() == layer.get_config()
        assert copy.quantization_table.provenance == layer.quantization_table.provenance
        np.testing.assert_array_equal(
            tf.cast(copy(images / 255), tf.float32), tf.cast(layer(images / 255), tf.float32)
        )

    def test_keras_file(self, images, tmp_path):
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, FeatureDistillation("jpeg:40", cycle_spins=2)(inputs))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded(images), model(images))
        assert loaded.layers[-1].quantization_table == preset_table("jpeg:40").with_settings(
            cycle_spins=2
        )

    def test_keras_file_keeps_a_table_installed_later(self, images, tmp_path):
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, FeatureDistillation("liu2019")(inputs))
        model.layers[-1].set_quantization_table(np.full((3, 8, 8), 13.0))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded(images), model(images))
        assert loaded.layers[-1].quantization_table.steps.max() == 13

    def test_weights_file(self, images, tmp_path):
        def build(table):
            inputs = keras.Input((None, None, 3))
            return keras.Model(inputs, FeatureDistillation(table)(inputs))

        one, other = build("liu2019"), build(np.full((8, 8), 9.0))
        one.save_weights(tmp_path / "model.weights.h5")
        other.load_weights(tmp_path / "model.weights.h5")
        np.testing.assert_array_equal(other(images), one(images))
        table = other.layers[-1].quantization_table
        np.testing.assert_array_equal(table.steps, preset_table("liu2019").steps_for(3))
        assert table.provenance == {"source": "layer weights"}

    def test_set_weights(self, images):
        """Keras 2's set_weights calls finalize_state, which once wanted an argument."""
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, FeatureDistillation("liu2019")(inputs))
        model.set_weights([np.full((3, 8, 8), 9.0)])
        np.testing.assert_array_equal(model(images), FeatureDistillation([[9.0] * 8] * 8)(images))

    def test_clone_model(self, images):
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, FeatureDistillation("jpeg")(inputs))
        np.testing.assert_array_equal(keras.models.clone_model(model)(images), model(images))


class TestTable:
    def test_explicit_settings_override_the_table(self):
        layer = FeatureDistillation("jpeg", color_space="rgb", cycle_spins=2)
        assert (layer.color_space, layer.cycle_spins) == ("rgb", 2)
        assert layer.quantization_table.color_space == "rgb"

    def test_none_takes_what_the_table_carries(self):
        layer = FeatureDistillation(QuantizationTable(np.ones((8, 8)), "ycbcr", 4))
        assert (layer.color_space, layer.cycle_spins) == ("ycbcr", 4)

    def test_new_table_needs_no_retracing(self, images):
        layer = FeatureDistillation("liu2019")
        layer(images)
        traces = 0

        @tf.function
        def call(x):
            nonlocal traces
            traces += 1
            return layer(x)

        call(images)
        layer.set_quantization_table(np.full((8, 8), 60.0))
        np.testing.assert_array_equal(call(images), FeatureDistillation([[60.0] * 8] * 8)(images))
        assert traces == 1

    def test_new_table_before_build(self, images):
        layer = FeatureDistillation("liu2019")
        layer.set_quantization_table(np.full((8, 8), 60.0))
        np.testing.assert_array_equal(layer(images), FeatureDistillation([[60.0] * 8] * 8)(images))

    def test_steps_are_the_only_weight_and_not_trainable(self, images):
        layer = FeatureDistillation()
        layer(images)
        assert [tuple(w.shape) for w in layer.weights] == [(3, 8, 8)]
        assert not layer.trainable_weights

    def test_table_for_another_graph_is_refused(self):
        layer = FeatureDistillation("liu2019")
        with pytest.raises(ValueError, match="color_space='rgb'"):
            layer.set_quantization_table("jpeg")
        with pytest.raises(ValueError, match="cycle_spins=1"):
            layer.set_quantization_table(QuantizationTable(np.ones((8, 8)), cycle_spins=2))

    def test_table_for_other_channels_is_refused(self, images):
        layer = FeatureDistillation()
        layer(images)
        with pytest.raises(ValueError, match="steps for 5 channels"):
            layer.set_quantization_table(np.ones((5, 8, 8)))
        np.testing.assert_array_equal(layer.quantization_table.steps.max(), 30)


class TestInGraph:
    def test_training_makes_no_difference(self, images):
        layer = FeatureDistillation()
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, layer(inputs))
        np.testing.assert_array_equal(model(images, training=True), model(images, training=False))

    def test_unbuilt_layer_in_tf_data(self, images):
        dataset = tf.data.Dataset.from_tensor_slices(images).map(FeatureDistillation()).batch(2)
        np.testing.assert_array_equal(next(iter(dataset)), FeatureDistillation()(images))

    def test_unbuilt_layer_in_tf_function(self, images):
        layer = FeatureDistillation("jpeg")
        np.testing.assert_array_equal(
            tf.function(layer)(images), FeatureDistillation("jpeg")(images)
        )

    def test_fit_through_the_layer(self, images):
        model = keras.Sequential(
            [
                keras.Input((19, 26, 3)),
                keras.layers.Conv2D(3, 3, padding="same"),
                FeatureDistillation(),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(2),
            ]
        )
        before = model.layers[0].get_weights()[0].copy()
        model.compile("sgd", "mse")
        model.fit(images, np.zeros((2, 2)), epochs=1, verbose=0)
        assert np.abs(model.layers[0].get_weights()[0] - before).max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization_table": "liu2020"}, "`name` must be one of .* Received: name='liu2020'"),
        ({"quantization_table": "jpeg:0"}, "`quality` must be .* Received: quality=0"),
        ({"quantization_table": np.ones((3, 8))}, r"`steps` must have shape .*\(3, 8\)"),
        ({"quantization_table": np.zeros((8, 8))}, r"positive.*Received: steps\[0, 0, 0\]=0.0"),
        ({"quantization_table": np.full((8, 8), np.nan)}, "positive and finite.*nan"),
        ({"color_space": "hsv"}, "`color_space` must be one of .* Received: color_space='hsv'"),
        ({"cycle_spins": 0}, "`cycle_spins` must be .* Received: cycle_spins=0"),
        ({"cycle_spins": 65}, "Received: cycle_spins=65"),
        ({"cycle_spins": 1.5}, "Received: cycle_spins=1.5"),
        ({"cycle_spins": True}, "Received: cycle_spins=True"),
        ({"value_range": (1, 0)}, r"`value_range` must be .* Received: value_range=\(1, 0\)"),
        ({"value_range": (0, np.inf)}, "`value_range`"),
        ({"value_range": 255}, "Received: value_range=255"),
        ({"dct_method": "fft"}, "`dct_method` must be one of .* Received: dct_method='fft'"),
        ({"gradient": "true"}, "`gradient` must be one of .* Received: gradient='true'"),
        ({"data_format": "NHWC"}, "`data_format` must be .* Received: data_format='NHWC'"),
        (
            {"quantization_table": np.ones((5, 8, 8)), "color_space": "ycbcr"},
            "`steps` of a YCbCr table must have 1 or 3 channels",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureDistillation(**arguments)


@pytest.mark.parametrize(
    ("table", "shape", "message"),
    [
        ("liu2019", (8, 8), "`inputs` must be one image .*Received: inputs of shape (8, 8)"),
        ("liu2019", (1, 1, 8, 8, 3), "Received: inputs of shape (1, 1, 8, 8, 3)"),
        ("jpeg", (1, 8, 8, 4), "color_space='ycbcr' needs .* Received: images with 4 channels"),
        ("rgb2", (1, 8, 8, 3), "steps for 2 channels. Received: images with 3 channels"),
    ],
)
def test_bad_inputs_are_refused(table, shape, message):
    layer = FeatureDistillation(np.ones((2, 8, 8)) if table == "rgb2" else table)
    pattern = re.escape(message).replace(r"\ \.\*", ".*").replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=pattern):
        layer(np.zeros(shape, "float32"))


def test_unknown_channels_are_refused():
    with pytest.raises(ValueError, match="known number of channels"):
        FeatureDistillation()(keras.Input((8, 8, None)))


def test_unknown_rank_is_refused():
    layer = FeatureDistillation()
    layer(np.zeros((1, 8, 8, 3), "float32"))
    call = tf.function(layer, input_signature=[tf.TensorSpec(None, tf.float32)])
    with pytest.raises(ValueError, match="known rank"):
        call(np.zeros((1, 8, 8, 3), "float32"))


def test_other_channels_after_build_are_refused():
    layer = FeatureDistillation()
    layer(np.zeros((1, 8, 8, 3), "float32"))
    with pytest.raises(ValueError, match="must have the 3 channels the layer was built for"):
        layer(np.zeros((1, 8, 8, 1), "float32"))
