"""`protect`: a model behind the layer is the same model, fed with distilled images."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from fd_keras import (
    Classifier,
    DistillationDetector,
    FeatureDistillation,
    preset_table,
    protect,
    unprotect,
)

CLASSES = 3


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(1)


@pytest.fixture
def images(photos):
    return photos[:, :64, :96].reshape(-1, 32, 32, 3)[:8].astype(np.float32)


@pytest.fixture
def layer():
    return FeatureDistillation("liu2019")


class Subclassed(keras.Model):
    """A classifier whose input Keras learns of only when it is called."""

    def __init__(self):
        super().__init__()
        self.convolution = layers.Conv2D(4, 3, strides=2)
        self.normalization = layers.BatchNormalization()
        self.dropout = layers.Dropout(0.5)
        self.head = layers.Dense(CLASSES)

    def call(self, inputs, training=None):
        x = self.normalization(self.convolution(inputs / 255), training=training)
        return self.head(self.dropout(tf.reduce_mean(x, (1, 2)), training=training))


def functional(shape=(32, 32, 3), outputs=lambda x: x):
    inputs = keras.Input(shape, name="photo")
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    x = layers.Dropout(0.5)(layers.BatchNormalization()(layers.GlobalMaxPooling2D()(x)))
    return keras.Model(inputs, outputs(layers.Dense(CLASSES)(x)))


def sequential():
    return keras.Sequential(
        [layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(CLASSES)]
    )


def called(model, images):
    model(images)
    return model


def compiled(model):
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


MODELS = {
    "functional": lambda images: functional(),
    "any size": lambda images: functional((None, None, 3)),
    "sequential with input": lambda images: keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Flatten(), layers.Dense(CLASSES)]
    ),
    "sequential called": lambda images: called(sequential(), images),
    "subclassed": lambda images: called(Subclassed(), images),
}


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_those_of_distilled_images(name, images, layer):
    model = MODELS[name](images)
    protected = protect(model, layer)
    assert np.abs(model(layer(images)) - model(images)).max() > 1e-3  # a missing layer shows
    np.testing.assert_allclose(
        protected.predict(images, verbose=0), model(layer(images)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", MODELS)
def test_training_one_trains_the_other(name, images, layer):
    model = MODELS[name](images)
    protected, before = protect(model, layer), model(images)
    compiled(protected).fit(images, np.arange(len(images)) % CLASSES, verbose=0)
    assert np.abs(model(images) - before).max() > 1e-4
    np.testing.assert_allclose(
        protected.predict(images, verbose=0), model(layer(images)), rtol=1e-4, atol=1e-4
    )
    shared = {id(variable) for variable in model.trainable_variables}
    assert {id(variable) for variable in protected.trainable_variables} == shared


def test_training_behaviour_is_the_models_own(images, layer):
    protected = protect(functional(), layer)
    np.testing.assert_array_equal(protected(images, training=False), protected(images))
    assert np.abs(protected(images, training=True) - protected(images, training=False)).max() > 1e-3


def test_input_spec_is_kept(layer):
    (before,), (after,) = functional().inputs, protect(functional(), layer).inputs
    assert tuple(after.shape) == tuple(before.shape) == (None, 32, 32, 3)
    assert after.dtype == before.dtype
    assert after.name == before.name == "photo"


def test_fixed_batch_size_is_kept(images, layer):
    inputs = keras.Input(batch_shape=(8, 32, 32, 3))
    protected = protect(keras.Model(inputs, layers.Flatten()(inputs)), layer)
    assert tuple(protected.inputs[0].shape) == (8, 32, 32, 3)
    assert protected(images).shape == (8, 32 * 32 * 3)


def test_subclassed_model_needs_a_shape(layer):
    with pytest.raises(ValueError, match="`input_shape` is needed .* Received: model 'subclassed"):
        protect(Subclassed(), layer)


@pytest.mark.parametrize("shape", [(32, 32, 3), (None, None, 3)])
def test_input_shape_stands_in_for_a_call(shape, images, layer):
    model = Subclassed()
    protected = protect(model, layer, input_shape=shape)
    assert tuple(protected.inputs[0].shape) == (None, *shape)
    np.testing.assert_allclose(protected(images), model(layer(images)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 32, 3), (None, 32, 3)])
def test_input_shape_fixes_what_the_model_leaves_open(shape, images, layer):
    model = functional((None, None, 3))
    protected = protect(model, layer, input_shape=shape)
    assert protected.input_shape == (None, *shape)
    np.testing.assert_allclose(protected(images), model(layer(images)), rtol=1e-4, atol=1e-4)


def test_input_shape_must_not_contradict_the_model(layer):
    assert protect(functional(), layer, input_shape=(32, 32, 3)) is not None
    with pytest.raises(ValueError, match=r"`input_shape` must be .*Received: input_shape=\(32, 32"):
        protect(functional((None, None, 3)), layer, input_shape=(32, 32, 1))
    with pytest.raises(ValueError, match=r"`input_shape` must be .*\(32, 32, 3\).*\(64, 64, 3\)"):
        protect(functional(), layer, input_shape=(64, 64, 3))


def rescaled(scale, wrap=lambda x: x):
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Rescaling(scale), layers.Flatten(), layers.Dense(CLASSES)]
    )
    return wrap(model)


@pytest.mark.parametrize(
    "model",
    [
        lambda: rescaled(1 / 255),
        lambda: rescaled(1 / 127.5),
        functional,
        lambda: rescaled(1 / 255, lambda m: keras.Sequential([keras.Input((32, 32, 3)), m])),
    ],
    ids=["0..1", "-1..1", "functional", "nested"],
)
def test_a_table_is_enough_for_models_that_show_their_range(model, images):
    model = model()
    expected = model(FeatureDistillation("jpeg:50", value_range=(0, 255))(images))
    np.testing.assert_allclose(protect(model, "jpeg:50")(images), expected, rtol=1e-4, atol=1e-4)


def test_a_table_is_enough_for_models_of_bytes(photos):
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    model = keras.Model(inputs, layers.Rescaling(1 / 255)(inputs))
    protected = protect(model, preset_table("liu2019"))
    expected = model(FeatureDistillation("liu2019", dtype="uint8")(photos[:, :32, :32]))
    np.testing.assert_array_equal(protected(photos[:, :32, :32]), expected)


@pytest.mark.parametrize("table", ["liu2019", preset_table("jpeg"), [[8.0] * 8] * 8])
@pytest.mark.parametrize(
    "model", [lambda images: rescaled(2.0), lambda images: called(Subclassed(), images)]
)
def test_a_table_is_not_enough_for_models_of_any_range(model, table, images):
    with pytest.raises(ValueError, match=r"`layer` must say which pixels `model` takes: pass Fea"):
        protect(model(images), table)


def test_unknown_tables_are_refused():
    with pytest.raises(ValueError, match="`table` must be a preset .* table='liu2020'"):
        protect(functional(), "liu2020")


def test_unprotect_keeps_the_output_that_was_chosen(images, layer):
    several = functional(outputs=lambda x: {"a": x, "b": 2 * x})
    protected = protect(several, layer, output="b")
    alone, _ = unprotect(protected)
    assert len(alone.outputs) == 1
    np.testing.assert_allclose(alone(images), several(images)["b"], atol=1e-5)
    assert unprotect(protect(several, layer))[0] is several


@pytest.mark.parametrize("layer", [None, 3, FeatureDistillation])
def test_other_layers_are_refused(images, layer):
    with pytest.raises(TypeError, match="`layer` must be a Keras layer"):
        protect(keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()]), layer)


def test_other_models_are_refused(layer):
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        protect(lambda x: x, layer)


def test_several_inputs_are_refused(images, layer):
    class Pair(keras.Model):
        def call(self, inputs):
            first, second = inputs
            return first + second

    inputs = [keras.Input((32, 32, 3)), keras.Input((32, 32, 3))]
    with pytest.raises(ValueError, match="`model` must have one image input; .* 2 inputs"):
        protect(keras.Model(inputs, layers.Add()(inputs)), layer)
    with pytest.raises(ValueError, match="`input_shape` is needed"):
        protect(called(Pair(), [images, images]), layer)


@pytest.mark.parametrize("structure", ["list", "last of a list", "dict"])
def test_the_way_to_protect_one_of_several_inputs_can_be_followed(structure, images, layer):
    pictures, other = keras.Input((32, 32, 3), name="photo"), keras.Input((2,), name="where")
    head = layers.Dense(CLASSES)(layers.Concatenate()([layers.Flatten()(pictures), other]))
    order = [pictures, other] if structure == "list" else [other, pictures]
    model = keras.Model({"p": pictures, "w": other} if structure == "dict" else order, head)
    with pytest.raises(ValueError, match="must have one image input") as refused:
        protect(model, layer)
    first, second = re.search(r"your own: (.*); (.*)\. Received", str(refused.value)).groups()
    names = {"keras": keras, "model": model, "layer": layer}
    exec(first, names)
    protected = eval(second, names)
    where = np.ones((len(images), 2), np.float32)

    def data(x):
        if structure == "dict":
            return {"p": x, "w": where}
        return [x, where] if structure == "list" else [where, x]

    expected = model.predict(data(np.asarray(layer(images))), verbose=0)
    np.testing.assert_allclose(
        protected.predict(data(images), verbose=0), expected, rtol=1e-4, atol=1e-2
    )


class Task(keras.Model):
    """A classifier as KerasHub has them: `predict` preprocesses, and calling it does not."""

    def __init__(self, preprocessor):
        inputs = keras.Input((32, 32, 3))
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="tanh")(inputs))
        super().__init__(inputs, layers.Dense(CLASSES)(x))
        self.preprocessor = preprocessor


class OwnPreprocessor(Subclassed):
    """A model whose own `call` applies what it calls its preprocessor."""

    def __init__(self):
        super().__init__()
        self.preprocessor = layers.Rescaling(1 / 9)

    def call(self, inputs, training=None):
        return super().call(self.preprocessor(inputs), training)


def test_the_preprocessor_of_a_task_stays_behind_the_layer(images, layer, tmp_path):
    model = Task(layers.Rescaling(1 / 255))
    expected = model(model.preprocessor(layer(images)))
    assert np.abs(model(layer(images)) - expected).max() > 0.1
    np.testing.assert_allclose(protect(model, layer)(images), expected, rtol=1e-4, atol=1e-4)
    classifier = Classifier(model)
    np.testing.assert_allclose(
        classifier.logits(layer(images).numpy() / 255), expected, rtol=1e-4, atol=1e-4
    )
    detector = DistillationDetector(model, layer)
    np.testing.assert_allclose(
        detector(images)["logits"], model(model.preprocessor(images)), rtol=1e-4, atol=1e-4
    )
    own = called(OwnPreprocessor(), images)
    np.testing.assert_allclose(
        protect(own, layer)(images), own(layer(images)), rtol=1e-4, atol=1e-4
    )


def test_a_preprocessor_may_take_images_of_another_size(photos, layer):
    model = Task(keras.Sequential([layers.Resizing(32, 32), layers.Rescaling(1 / 255)]))
    images = photos[:, :64, :48].astype(np.float32)
    protected = protect(model, layer, input_shape=(64, 48, 3))
    expected = model(model.preprocessor(layer(images)))
    np.testing.assert_allclose(protected(images), expected, rtol=1e-4, atol=1e-4)


def test_a_preprocessor_that_cannot_be_kept_is_named(layer):
    class Tokenizer:
        def __call__(self, images):
            return np.asarray(images).astype(str)

    with pytest.raises(ValueError, match="carries a preprocessor, Tokenizer, that cannot be a par"):
        protect(Task(Tokenizer()), layer)


@pytest.mark.parametrize("structure", [dict, list])
def test_one_output_is_kept_by_name(structure, images, layer):
    several = {
        dict: lambda x: {"logits": x, "features": layers.ReLU()(x)},
        list: lambda x: [x, layers.ReLU()(x)],
    }[structure]
    model = functional(outputs=several)
    name = "features" if structure is dict else "output_1"
    expected = model(layer(images))["features" if structure is dict else 1]
    protected = protect(model, layer, output=name)
    np.testing.assert_allclose(protected(images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"`output` must name one of the outputs .*Received: outp"):
        protect(model, layer, output="other")


def test_inputs_that_are_no_batch_of_images_are_refused(layer):
    """A batch (None, 28, 28) once passed for one image of 28 channels and unknown height."""
    model = keras.Sequential([keras.Input((28, 28)), layers.Flatten()])
    with pytest.raises(ValueError, match=r"`model` must take batches.*\(None, 28, 28\)"):
        protect(model, layer)


def test_integer_models_need_an_integer_layer(photos):
    pixels = photos[:, :32, :32]
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    model = keras.Model(inputs, layers.Rescaling(1 / 255)(inputs))
    with pytest.raises(ValueError, match=r"`layer` must return the integers .* dtype='uint8'"):
        protect(model, FeatureDistillation("liu2019"))
    layer = FeatureDistillation("liu2019", dtype="uint8")
    protected = protect(model, layer)
    assert tf.as_dtype(protected.inputs[0].dtype) == tf.uint8
    distilled = layer(pixels)
    assert distilled.dtype == tf.uint8
    np.testing.assert_allclose(protected(pixels), distilled.numpy() / np.float32(255), atol=1e-6)


def test_models_of_floats_need_a_layer_of_floats(images):
    """A subclassed model once failed inside TensorFlow; others cast what they are given."""
    model = called(Subclassed(), images)
    for dtype in ("uint8", "int32"):
        with pytest.raises(ValueError, match=f"`layer` must return the floats .*dtype='{dtype}'"):
            protect(model, FeatureDistillation("liu2019", dtype=dtype))
    layer = FeatureDistillation("liu2019", dtype="uint8")
    expected = functional()
    np.testing.assert_allclose(
        protect(expected, layer)(images), expected(tf.cast(layer(images), tf.float32)), atol=1e-4
    )


@pytest.mark.parametrize(
    "outputs",
    [
        lambda x: {"logits": x, "positive": layers.ReLU()(x)},
        lambda x: [x, layers.ReLU()(x)],
    ],
    ids=["dict", "list"],
)
def test_outputs_keep_their_structure(outputs, images, layer):
    model = functional(outputs=outputs)
    expected, protected = model(layer(images)), protect(model, layer)
    for actual in (protected(images), protected.predict(images, verbose=0)):
        tf.nest.assert_same_structure(actual, expected)
        tf.nest.map_structure(
            lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4), actual, expected
        )


def test_keras_file_round_trip(tmp_path, images, layer):
    protected = protect(functional((None, None, 3)), layer)
    protected.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(reloaded(images), protected(images))
    (distillation,) = (x for x in reloaded.layers if isinstance(x, FeatureDistillation))
    assert distillation.quantization_table == layer.quantization_table


def test_a_layer_for_another_range_than_the_model_scales_from_is_refused():
    inputs = keras.Input((32, 32, 3))
    scaled = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(CLASSES)(scaled))
    with pytest.raises(ValueError, match="whose first layer scales pixels from 0 to 255"):
        protect(model, FeatureDistillation("liu2019", value_range=(0, 1)))
    protect(model, FeatureDistillation("liu2019"))
