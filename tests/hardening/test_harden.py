"""``harden``: its result, what resumes, what it refuses."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from fd_keras import FeatureDistillation, HardenResult, harden
from fd_keras.classifier import Classifier
from fd_keras.hardening import Recipe, Training
from fd_keras.hardening.record import rank


def test_result(hardened, tmp_path, digits):
    _, _, test = digits
    result = hardened({"averaging": 0.5}, {"epochs": 4}, directory=tmp_path / "run")
    assert result.within_benign_loss
    assert result.accuracy("hardened", "adaptive") > result.accuracy("layer only", "adaptive")
    best = max(result.history, key=lambda figures: rank(figures, 0)[1])
    assert result.accuracy("hardened", "adaptive") == pytest.approx(best["val_adaptive_accuracy"])
    assert "adaptive, PGD-10 16/255" in str(result)
    # Figures on images that the classifier was trained on once passed for held-out ones.
    told = "validation images were taken from the training data"
    for own in (True, False):
        settings = {**result.settings, "validation_from_train_data": own}
        assert (told in str(dataclasses.replace(result, settings=settings))) is own
    assert {row["split"] for row in result.rows} == {"validation"}
    assert list((tmp_path / "run" / "logs").rglob("events*"))
    outputs = result.protected.predict(test.images, verbose=0)
    assert np.mean(outputs.argmax(-1) == test.labels) == pytest.approx(result.accuracy("hardened"))
    result.save(tmp_path / "result")
    again = HardenResult.load(tmp_path / "result")
    assert (again.rows, again.history, again.settings) == (
        result.rows, result.history, json.loads(json.dumps(result.settings))
    )  # fmt: skip
    np.testing.assert_array_equal(again.protected.predict(test.images, verbose=0), outputs)


def test_a_validation_split_is_never_trained_on(digits, layer):
    model, train, _ = digits
    seen = set()

    def watched(images, seed):
        def note(batch):
            seen.update(image.tobytes() for image in batch)
            return batch

        return tf.numpy_function(note, [images], tf.float32)

    result = harden(
        model, layer, (train.images, train.labels), recipe=Recipe(epsilon=0),
        training=Training(epochs=2, batch_size=48, augment=watched), max_validation_images=60,
    )  # fmt: skip
    assert result.rows[0]["count"] == 48
    assert len({image.tobytes() for image in train.images}) == 240
    assert len(seen) == 240 - 48


def test_value_ranges_of_classifier_and_layer_must_agree(digits, layer):
    model, train, test = digits
    data = (train.images / 255, train.labels), (test.images / 255, test.labels)
    unit = FeatureDistillation("liu2019", value_range=(0, 1))
    inputs = keras.Input(model.input_shape[1:])
    scaled = keras.Model(inputs, model(keras.layers.Rescaling(255)(inputs)))
    training = Training(epochs=1, batch_size=60)
    result = harden(Classifier(scaled, value_range=(0, 1)), unit, *data, training=training)
    plain = harden(scaled, unit, *data, training=training)
    assert result.rows == plain.rows
    with pytest.raises(ValueError, match=r"\(0.0, 1.0\), layer with value_range=\(0.0, 255.0\)"):
        harden(Classifier(scaled, value_range=(0, 1)), layer, *data)


def test_mixed_precision_hands_back_the_models_own(hardened):
    result = hardened({}, {"dtype_policy": "mixed_float16", "epochs": 1})
    assert all(np.isfinite(weight).all() for weight in result.model.get_weights())
    assert result.model.layers[-1].compute_dtype == "float32"
    assert result.history[0]["loss"] < 3


def test_data_sets_optimisers_and_strategies_of_all_kinds(digits, layer):
    """A strategy with one replica runs the code that many would."""
    model, train, test = digits
    data = tf.data.Dataset.from_tensor_slices((train.images, train.labels)).batch(70)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        training = Training(
            epochs=1, optimizer=keras.optimizers.SGD(0.01, momentum=0.9, clipnorm=1.0),
            dtype_policy="mixed_bfloat16",
        )  # fmt: skip
        result = harden(model, layer, data, (test.images, test.labels), Recipe(epsilon=8), training)
    assert len(result.history) == 1


class _Killed(keras.callbacks.Callback):
    """Ends the third epoch in its middle."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 1):
            raise KeyboardInterrupt


def test_resumed_training_is_that_which_never_stopped(hardened, tmp_path):
    varied = {"table_rate": 1.0, "soft_labels": 0.2}
    whole = hardened(varied)
    with pytest.raises(KeyboardInterrupt):
        hardened(varied, {"callbacks": [_Killed()]}, directory=tmp_path)
    assert len(json.loads((tmp_path / "history.json").read_text())["epochs"]) == 2
    resumed = hardened(varied, directory=tmp_path)
    assert resumed.history == whole.history
    assert resumed.table == whole.table
    for found, expected in zip(resumed.model.get_weights(), whole.model.get_weights()):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="a training with other recipe"):
        hardened({**varied, "attack_steps": 2}, directory=tmp_path)


class _Never(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise AssertionError


def test_finished_training_is_not_run_again(hardened, tmp_path):
    first = hardened({}, {"epochs": 1}, directory=tmp_path)
    never = {"epochs": 1, "callbacks": [_Never()]}
    second = hardened({}, never, directory=tmp_path)
    assert second.rows == first.rows
    with pytest.raises(AssertionError):
        hardened({}, never, directory=tmp_path, overwrite=True, seed=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_benign_loss": 2}, "`max_benign_loss` must lie between"),
        ({"max_validation_images": 0}, "`max_validation_images` must be a whole number"),
        ({"seed": -1}, "`seed` must be a whole number"),
    ],
)
def test_bad_arguments(hardened, arguments, message):
    with pytest.raises(ValueError, match=message):
        hardened(**arguments)


def test_bad_types(digits, layer):
    model, train, _ = digits
    data = (train.images, train.labels)
    with pytest.raises(TypeError, match="`recipe` must be a Recipe"):
        harden(model, layer, data, recipe={"epsilon": 2})
    with pytest.raises(TypeError, match="`training` must be a Training"):
        harden(model, layer, data, training=5)


def test_bad_data(digits, layer):
    model, train, test = digits
    validation = (test.images, test.labels)
    with pytest.raises(ValueError, match="`validation_data` is needed"):
        harden(model, layer, tf.data.Dataset.from_tensor_slices(validation).batch(2))
    with pytest.raises(TypeError, match="`train_data` must be the arrays"):
        harden(model, layer, iter([validation]))
    with pytest.raises(ValueError, match="scaled to value_range"):
        harden(model, layer, (train.images / 255, train.labels), validation)
    with pytest.raises(ValueError, match="labels from 0 to 9"):
        harden(model, layer, (train.images, train.labels + 5), validation)
    with pytest.raises(ValueError, match="`train_data` holds no image"):
        harden(model, layer, (train.images[:0], train.labels[:0]), validation)
    with pytest.raises(ValueError, match="`validation_data` holds no image"):
        harden(model, layer, (train.images, train.labels), iter([]))
    hot = tf.data.Dataset.from_tensor_slices((train.images, np.eye(10)[train.labels])).batch(8)
    with pytest.raises(ValueError, match="integer labels"):
        harden(model, layer, hot, validation, training=Training(epochs=1))


@keras.saving.register_keras_serializable("fd_keras_tests_hardening")
class Subclassed(keras.Model):
    """A model whose shape Keras learns of only when it is called, and that can be built again."""

    def __init__(self, units=10, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.convolution = keras.layers.Conv2D(4, 3, strides=2, activation="relu")
        self.head = keras.layers.Dense(units)

    def call(self, inputs, training=None):
        return self.head(keras.layers.Flatten()(self.convolution(inputs / 255)))

    def get_config(self):
        return {"units": self.units}


class NeedsArgument(Subclassed):
    def __init__(self, units):
        super().__init__(units)

    def get_config(self):
        return {}


def test_subclassed_models_that_can_be_cloned_are_hardened(digits, layer, tmp_path):
    _, train, test = digits
    data = (train.images, train.labels), (test.images, test.labels)
    training = Training(epochs=1, batch_size=60)
    model = Subclassed()
    with pytest.raises(ValueError, match="call a subclassed model on one batch of images first"):
        harden(model, layer, *data, training=training)
    model(train.images[:2])
    with pytest.raises(ValueError, match="labels from 0 to 9, the classes of `classifier`"):
        harden(model, layer, (train.images, train.labels + 1), data[1], training=training)
    result = harden(model, layer, *data, training=training)
    assert result.history[0]["loss"] > 0
    result.save(tmp_path)
    loaded = HardenResult.load(tmp_path)
    np.testing.assert_allclose(
        loaded.protected(test.images[:4]), result.protected(test.images[:4]), atol=1e-4
    )
    other = NeedsArgument(10)
    other(train.images[:2])
    with pytest.raises(ValueError, match=r"have a get_config\(\) that builds it again") as refused:
        harden(other, layer, *data, training=training)
    assert "units" in str(refused.value)  # the reason as a whole


def test_bad_models(digits, layer):
    model, train, _ = digits
    data = (train.images, train.labels)
    with pytest.raises(TypeError, match="`layer` must be a FeatureDistillation"):
        harden(model, "liu2019", data)
    with pytest.raises(ValueError, match="channels last"):
        harden(model, FeatureDistillation("liu2019", data_format="channels_first"), data)
    with pytest.raises(ValueError, match="probabilities"):
        harden(Classifier(model, from_logits=False), layer, data)
    frozen = keras.models.clone_model(model)
    frozen.trainable = False
    with pytest.raises(ValueError, match="trainable weights"):
        harden(frozen, layer, data)
    whole = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="images of one size"):
        harden(whole, layer, data)


def test_a_directory_is_not_touched_before_the_validation_images_are_checked(
    digits, layer, tmp_path
):
    """With `overwrite`, an old training was deleted for an argument that did not fit."""
    model, train, test = digits
    data = train.images, train.labels
    recipe, training = Recipe(epsilon=0), Training(epochs=1)
    options = {"directory": tmp_path, "overwrite": True}
    harden(model, layer, data, (test.images, test.labels), recipe, training, **options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="`validation_data`"):
        harden(model, layer, data, (test.images, test.labels + 10), recipe, training, **options)
    assert {path: path.read_bytes() for path in before} == before


def test_another_augmentation_is_another_training(hardened, tmp_path):
    hardened({"epsilon": 0}, {"epochs": 1}, directory=tmp_path)
    training = {"epochs": 1, "augment": tf.image.stateless_random_flip_left_right}
    with pytest.raises(ValueError, match="a training with other augment"):
        hardened({"epsilon": 0}, training, directory=tmp_path)
