"""The layer in Keras: shapes, dtypes, serialisation, tables, errors."""

import json
import re
import warnings
from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

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

    @given(
        st.tuples(st.integers(0, 2), *2 * [st.sampled_from([0, 0, 1, 8, 11])]),
        st.sampled_from([1, 2, 4]),
        st.sampled_from(["matmul", "signal"]),
        st.sampled_from(["rgb", "ycbcr"]),
        st.booleans(),
    )
    @settings(max_examples=40)
    def test_sizes_of_any_number(self, shape, spins, method, color_space, one):
        """Sizes of 0 once failed inside TensorFlow, by the block grids or the FFT."""
        layer = FeatureDistillation("liu2019", color_space, spins, dct_method=method)
        images = np.full((*shape, 3)[one:], 60.0, "float32")
        assert layer(images).shape == images.shape

    @pytest.mark.parametrize("method", ["matmul", "signal"])
    @pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
    def test_unknown_sizes_may_be_zero(self, method, data_format):
        layer = FeatureDistillation("jpeg", None, 2, dct_method=method, data_format=data_format)
        channel = 1 if data_format == "channels_first" else 3
        spec = [3 if axis == channel else None for axis in range(4)]
        anywhere = tf.function(layer, input_signature=[tf.TensorSpec(spec, tf.float32)])
        for sizes in [(0, 16, 16), (0, 9, 9), (2, 0, 9), (2, 9, 0), (0, 0, 0), (2, 9, 9)]:
            shape = list(np.insert(sizes, channel, 3))
            assert anywhere(np.zeros(shape, "float32")).shape == shape

    @pytest.mark.parametrize("shape", [(2, 8, 8, 0), (8, 8, 0)])
    def test_images_without_channels_are_refused(self, shape):
        with pytest.raises(ValueError, match="`inputs` must have a known number of channels"):
            FeatureDistillation()(np.zeros(shape, "float32"))

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

    @pytest.mark.parametrize(
        ("dtype", "value_range", "warned"),
        [
            ("float16", (0, 255), False),
            ("float16", (0, 1), True),
            ("float16", (-1, 1), True),
            ("bfloat16", (0, 255), False),
            ("bfloat16", (0, 1), True),
        ],
    )
    def test_pixels_that_16_bits_have_rounded_are_told_once(self, dtype, value_range, warned):
        layer = FeatureDistillation("liu2019", value_range=value_range)
        pixels = tf.cast(np.full((1, 8, 8, 3), value_range[1] / 2), dtype)
        with pytest.warns(UserWarning, match=f"dtype {dtype}") if warned else nullcontext():
            layer(pixels)
        layer(pixels)  # warnings are errors

    def test_rounded_pixels_are_told_while_a_graph_is_traced(self):
        layer = FeatureDistillation("liu2019", value_range=(0, 1))
        with pytest.warns(UserWarning, match="dtype float16"):
            tf.function(layer)(tf.zeros((1, 8, 8, 3), tf.float16))

    def test_a_model_that_casts_before_the_layer_is_told(self, images):
        class Outer(keras.Model):
            def __init__(self, **options):
                super().__init__(**options)
                self.layer = FeatureDistillation("liu2019", value_range=(0, 1), dtype="float32")

            def call(self, inputs):
                return self.layer(inputs)

        pixels = np.float32(images) / 255
        expected = FeatureDistillation("liu2019", value_range=(0, 1))(pixels)
        with pytest.warns(UserWarning, match="autocast=False"):
            Outer(dtype="mixed_bfloat16")(pixels)
        exact = Outer(dtype="mixed_bfloat16", autocast=False)(pixels)
        np.testing.assert_allclose(exact, expected, atol=1e-6)

    def test_integer_policy_rounds(self, images):
        out = FeatureDistillation(dtype="uint8")(images)
        assert out.dtype == tf.uint8
        np.testing.assert_array_equal(out, np.round(FeatureDistillation()(images).numpy()))

    @pytest.mark.parametrize("pixel", [np.nan, np.inf])
    def test_integers_hold_no_nan(self, pixel, images):
        """TensorFlow casts NaN to 0, or to another number on another machine."""
        images[1, 2, 3, 0] = pixel
        with pytest.raises(ValueError, match="`inputs` must be finite, because integers cannot"):
            FeatureDistillation(dtype="uint8")(images)

    @pytest.mark.parametrize("dtype", ["complex64", "bool", "string"])
    def test_policies_of_no_numbers_are_refused(self, dtype):
        with pytest.raises(ValueError, match=f"`dtype` must be one of floats or .*dtype='{dtype}'"):
            FeatureDistillation(dtype=dtype)

    @pytest.mark.parametrize(
        ("dtype", "value_range"), [("uint8", (0, 1)), ("uint8", (-1, 1)), ("int16", (0, 65535))]
    )
    def test_integer_policies_must_hold_the_grey_levels(self, dtype, value_range):
        with pytest.raises(ValueError, match="integers that hold the grey levels of value_range"):
            FeatureDistillation(value_range=value_range, dtype=dtype)
        assert FeatureDistillation(value_range=(-128, 127), dtype="int32") is not None


class TestInputs:
    """What is no dense array of numbers is refused by name, not by TensorFlow."""

    @pytest.mark.parametrize("dtype", [complex, bool, str, object, "M8[s]"])
    @pytest.mark.parametrize("built", [True, False])
    def test_other_dtypes(self, dtype, built, images):
        layer = FeatureDistillation()
        if built:
            layer(images)
        with pytest.raises(ValueError, match="^`inputs` must be floats or integers. Received: inp"):
            layer(images.astype(dtype))

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda x: list(x),
            lambda x: [x],
            lambda x: (x, x),
            lambda x: {"image": x},
            lambda x: x.tolist(),
            lambda x: None,
            lambda x: "photo.png",
            lambda x: 3.0,
        ],
    )
    def test_other_types(self, wrap, images):
        with pytest.raises(ValueError, match="^`inputs` must be one array or tensor .* np.stack"):
            FeatureDistillation()(wrap(images))

    @pytest.mark.skipif(keras.__version__.startswith("2."), reason="Keras 2 takes none")
    def test_arrays_of_other_libraries(self, images):
        class Foreign:
            shape, dtype = images.shape, "foreign.float32"

            def __array__(self, dtype=None, copy=None):
                return images

        layer = FeatureDistillation()
        np.testing.assert_array_equal(layer(Foreign()), layer(images))

    def test_sparse_and_ragged_tensors(self, images):
        layer = FeatureDistillation()
        sparse, ragged = tf.sparse.from_dense(images), tf.RaggedTensor.from_tensor(images)
        for call in (layer, layer.update_state):
            with pytest.raises(ValueError, match="`inputs` must be dense; use tf.sparse.to_dense"):
                call(sparse)
            with pytest.raises(ValueError, match="`inputs` must be dense; use a batch for each si"):
                call(ragged)

    def test_sparse_and_ragged_models(self):
        sparse = keras.Input((8, 8, 3), sparse=True)
        with pytest.raises(ValueError, match="`inputs` must be dense; use tf.sparse.to_dense"):
            FeatureDistillation()(sparse)

    def test_lists_of_images_are_measured_if_they_have_one_size(self, images):
        layer = FeatureDistillation()
        layer.update_state(list(images))
        with pytest.raises(ValueError, match="`data` must be one batch of images of one size"):
            layer.update_state([images[0], images[1, :8]])


class TestScale:
    """Pixels that were scaled to another range are told once, where the layer sees them."""

    @pytest.mark.parametrize(
        ("scale", "value_range"), [(1 / 255, (0, 255)), (1 / 255, (0, 1000)), (1, (0, 1))]
    )
    def test_another_scale_is_told_once(self, scale, value_range, images):
        layer = FeatureDistillation(value_range=value_range)
        with pytest.warns(UserWarning, match=r"`inputs` lie from .* value_range, 0 to"):
            layer(images * scale)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            layer(images * scale)

    @pytest.mark.parametrize(
        ("pixels", "value_range"),
        [
            (lambda x: x, (0, 255)),
            (lambda x: x.astype("uint8"), (0, 255)),
            (lambda x: 0 * x, (0, 255)),
            (lambda x: x // 200, (0, 255)),
            (lambda x: x / 255, (0, 1)),
            (lambda x: x / 127.5 - 1, (-1, 1)),
            (lambda x: x[:0], (0, 255)),
            (lambda x: x * np.nan, (0, 255)),
        ],
    )
    def test_legal_images_pass(self, pixels, value_range, images):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            FeatureDistillation(value_range=value_range)(pixels(images))

    def test_a_dark_beginning_is_no_scale(self, images):
        """A few numbers are looked at first; all of them count."""
        dark = np.concatenate([np.full((1, 160, 160, 3), 0.5), np.full((1, 160, 160, 3), 200)])
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            FeatureDistillation()(dark.astype("float32"))

    def test_graphs_hold_no_check(self, images):
        layer = FeatureDistillation()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            graph = tf.function(layer).get_concrete_function(tf.TensorSpec(images.shape)).graph
        layer(images)
        kinds = {operation.type for operation in graph.get_operations()}
        assert not kinds & {"Assert", "CheckNumerics", "EagerPyFunc", "PyFunc", "Max", "Min"}

    def test_adapt_refuses_it(self, images):
        with pytest.raises(ValueError, match="`data` must be scaled to value_range, 0 to 255"):
            FeatureDistillation().adapt(images / 255, epsilon=2)


class TestLayout:
    def test_channels_first_are_told(self):
        layer = FeatureDistillation()
        with pytest.warns(UserWarning, match="'channels_last', but look like .*'channels_first'"):
            layer(np.zeros((2, 3, 32, 32), "float32"))
        with pytest.warns(UserWarning, match="but look like data_format='channels_first'"):
            FeatureDistillation()(keras.Input((3, 224, 224)))

    def test_channels_last_are_told(self):
        layer = FeatureDistillation(data_format="channels_first")
        with pytest.warns(UserWarning, match="'channels_first', but look like .*'channels_last'"):
            layer.update_state(np.zeros((2, 32, 32, 3), "float32"))

    @pytest.mark.parametrize("table", ["liu2019", "jpeg"])
    def test_errors_tell_it_too(self, table, images):
        layer = FeatureDistillation(table)
        if table == "liu2019":
            layer(images)
        message = r"\(?32.*, which look like data_format='channels_first'"
        with pytest.raises(ValueError, match=message):
            layer(np.zeros((2, 3, 32, 32), "float32"))

    def test_a_table_for_that_many_channels_is_taken_at_its_word(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            layer = FeatureDistillation(np.full((32, 8, 8), 9.0))
            assert layer(np.zeros((2, 3, 32, 32), "float32")).shape == (2, 3, 32, 32)


class TestSerialisation:
    def test_config_round_trip(self, images):
        layer = FeatureDistillation(
            preset_table("jpeg", quality=60),
            cycle_spins=2,
            value_range=(-1, 1),
            dct_method="signal",
            gradient="smooth",
            quantizer="soft",
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

    def test_config_after_set_weights(self, images):
        """It once held the table that the layer had been made with."""
        layer = FeatureDistillation("liu2019")
        layer(images)
        layer.set_weights([np.full((3, 8, 8), 9.0)])
        copy = FeatureDistillation.from_config(json.loads(json.dumps(layer.get_config())))
        np.testing.assert_array_equal(copy(images), layer(images))
        assert copy.quantization_table.provenance == {"source": "layer weights"}

    def test_a_soft_layer_stays_soft(self, images, tmp_path):
        """Also where its table is read from weights, or replaced by steps alone."""
        inputs = keras.Input((None, None, 3))
        layer = FeatureDistillation("jpeg", quantizer="soft")
        model = keras.Model(inputs, layer(inputs))
        layer.set_quantization_table(np.full((3, 8, 8), 40.0))
        model.set_weights([np.full((3, 8, 8), 9.0)])
        assert layer.quantization_table.quantizer == "soft"
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded(images), model(images))
        assert loaded.layers[-1].quantization_table == layer.quantization_table

    def test_table_can_be_read_while_a_graph_is_traced(self, images):
        layer = FeatureDistillation("liu2019")
        layer(images)
        layer.set_weights([np.full((3, 8, 8), 9.0)])
        seen = []

        @tf.function
        def call(x):
            seen.append(layer.get_config()["quantization_table"]["steps"])
            return layer(x)

        call(images)
        assert np.max(seen) == 9

    @pytest.mark.parametrize("autocast", [True, False])
    def test_autocast_survives(self, autocast, images, tmp_path):
        inputs = keras.Input((None, None, 3))
        layer = FeatureDistillation("jpeg", dtype="mixed_float16", autocast=autocast)
        model = keras.Model(inputs, layer(inputs))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        copy = FeatureDistillation.from_config(json.loads(json.dumps(layer.get_config())))
        for other in (loaded.layers[-1], copy):
            kept = getattr(other, "autocast", None)  # of Keras 3
            assert (other._autocast if kept is None else kept) == autocast
            assert other.get_config() == layer.get_config()
        np.testing.assert_array_equal(loaded(images), model(images))

    def test_changing_a_config_leaves_the_layer_alone(self):
        table = QuantizationTable(np.ones((8, 8)), provenance={"epochs": [1]})
        layer = FeatureDistillation(table)
        layer.get_config()["quantization_table"]["provenance"]["epochs"].append(2)
        assert layer.quantization_table.provenance == {"epochs": [1]}

    def test_clone_model(self, images):
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, FeatureDistillation("jpeg")(inputs))
        np.testing.assert_array_equal(keras.models.clone_model(model)(images), model(images))


class TestTable:
    def test_files(self, images, tmp_path):
        table = QuantizationTable(np.full((8, 8), 7.0), "ycbcr", 2)
        table.save(tmp_path / "table.json")
        for path in (tmp_path / "table.json", str(tmp_path / "table.json")):
            assert FeatureDistillation(path).quantization_table == table
        layer = FeatureDistillation("jpeg", cycle_spins=2)
        layer.set_quantization_table(tmp_path / "table.json")
        assert layer.quantization_table == table
        (tmp_path / "table.json").write_text("{}")
        with pytest.raises(ValueError, match=r"holds no quantisation table .*table.json"):
            FeatureDistillation(tmp_path / "table.json")

    def test_explicit_settings_override_the_table(self):
        layer = FeatureDistillation("jpeg", color_space="rgb", cycle_spins=2, quantizer="soft")
        assert (layer.color_space, layer.cycle_spins, layer.quantizer) == ("rgb", 2, "soft")
        assert layer.quantization_table.color_space == "rgb"
        assert layer.quantization_table.quantizer == "soft"

    def test_none_takes_what_the_table_carries(self):
        table = QuantizationTable(np.ones((8, 8)), "ycbcr", 4, quantizer="soft")
        layer = FeatureDistillation(table)
        assert (layer.color_space, layer.cycle_spins, layer.quantizer) == ("ycbcr", 4, "soft")
        assert FeatureDistillation(table, quantizer="round").quantizer == "round"

    def test_config_from_before_there_were_quantisers(self, images):
        """It lacks the entry, and so does the table in it."""
        layer = FeatureDistillation("jpeg")
        config = layer.get_config()
        del config["quantizer"]
        np.testing.assert_array_equal(
            FeatureDistillation.from_config(config)(images), layer(images)
        )

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
        with pytest.raises(ValueError, match="quantizer='round'"):
            layer.set_quantization_table(layer.quantization_table.with_settings(quantizer="soft"))

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
        ({"quantization_table": "liu2020"}, "`table` must be a preset .* table='liu2020'"),
        ({"quantization_table": "no-such.json"}, "an existing JSON file. .*table='no-such.json'"),
        ({"quantization_table": FeatureDistillation()}, "pass layer.quantization_table"),
        ({"dct_method": np.array(["a", "b"])}, "`dct_method` must be one of"),
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
        ({"quantizer": "hard"}, "`quantizer` must be one of .* Received: quantizer='hard'"),
        ({"value_range": (0, 65535), "dtype": "float16"}, "`dtype` must hold .*dtype='float16'"),
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
        ("jpeg", (1, 8, 8, 4), "`color_space='ycbcr'` needs .* Received: images with 4 channels"),
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
