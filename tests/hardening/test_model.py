"""The training step, what it leaves alone, and the averaged weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fd_keras
from fd_keras import FeatureDistillation
from fd_keras.classifier import Classifier
from fd_keras.hardening import AverageWeights, HardeningModel, Recipe


def fitted(digits, layer, recipe, epochs=1, optimizer="sgd"):
    model, train, _ = digits
    training = HardeningModel(model, layer, recipe)
    training.compile(optimizer)
    history = training.fit(
        train.images, train.labels, batch_size=60, epochs=epochs, verbose=0, shuffle=False,
        callbacks=[AverageWeights()],
    )  # fmt: skip
    return training, history.history


RECIPES = {
    "distilled": {"epsilon": 0},
    "fgsm": {},
    "pgd": {"attack_steps": 2, "attack_gradient": "straight-through"},
    "all attacked": {"attacked_share": 1.0, "soft_labels": 0.5},
    "transferred": {"epsilon": 0, "transferred_share": 0.5},
    "both": {"transferred_share": 0.25, "transferred_epsilon": 8},
}


@pytest.mark.parametrize("name", RECIPES)
def test_loss_falls(digits, layer, name):
    recipe = Recipe(**{"epsilon": 16, "averaging": 0.5, **RECIPES[name]})
    training, history = fitted(digits, layer, recipe, 4, keras.optimizers.Adam(2e-3))
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert ("adaptive_accuracy" in history) == recipe.attacks
    assert ("benign_accuracy" in history) == recipe.keeps_benign
    train = digits[1]
    found = training.evaluate(train.images, train.labels, verbose=0, return_dict=True)
    assert found["benign_accuracy"] > 0.8
    assert history.get("benign_accuracy", [1])[-1] > 0.8


def test_attack_leaves_no_trace(digits, layer):
    """Attacking a batch must not count for batch normalisation."""
    model, train, _ = digits
    training = HardeningModel(model, layer, Recipe(epsilon=64, attack_steps=2))
    training.compile("sgd")
    images, labels = tf.constant(train.images[:20]), tf.constant(train.labels[:20])
    attacked = training._attacked(
        training.classifier, images, labels, steps=2, gradient="smooth", seed=tf.constant([1, 2])
    )
    assert np.abs(attacked - images).max() > 60
    for before, after in zip(model.get_weights(), training.classifier.get_weights()):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("known", [True, False], ids=["batch known", "batch unknown"])
def test_parts_of_a_batch_are_attacked_on_their_own_classifiers(digits, layer, monkeypatch, known):
    """The first through the layer, on the classifier in training; the next on the original alone;
    the rest stays benign."""
    model, train, _ = digits
    recipe = Recipe(epsilon=2, transferred_share=0.25, transferred_epsilon=8)
    training = HardeningModel(model, layer, recipe)
    training.compile(keras.optimizers.SGD(0.0))
    images, labels = train.images[:20].astype(np.float32), train.labels[:20]
    seen = []
    distil = training.distillation.call

    def noted(x, **kwargs):
        if not kwargs:
            seen.append(x)
        return distil(x, **kwargs)

    monkeypatch.setattr(training.distillation, "call", noted)
    # Without a gradient, its attack stays where it starts.
    *others, kernel, bias = model.get_weights()
    training.classifier.set_weights([*others, 0 * kernel, 0 * bias])

    @tf.function(input_signature=[tf.TensorSpec((20 if known else None, *images.shape[1:]))])
    def step(batch):
        training.train_step((batch, tf.constant(labels)[: tf.shape(batch)[0]]))
        return seen[-1]

    moved = np.abs(step(images).numpy() - images).max(axis=(1, 2, 3))
    assert (moved[:10] > 1.5).all()
    assert (moved[:10] < 2.001).all()
    assert (moved[10:15] > 7.99).all()
    assert (moved[10:15] < 8.01).all()
    assert not moved[15:].any()


def test_batch_statistics_become_those_of_the_distilled_images(digits, layer):
    _, train, _ = digits
    recipe = Recipe(epsilon=0, averaging=0.0)
    training, _ = fitted(digits, layer, recipe, 30, keras.optimizers.SGD(0.0))
    (first, *_) = (
        found for found in training.classifier.layers
        if isinstance(found, keras.layers.BatchNormalization)
    )  # fmt: skip
    convolution = next(
        found for found in training.classifier.layers if isinstance(found, keras.layers.Conv2D)
    )
    activations = np.asarray(convolution(layer(train.images) / 255))
    np.testing.assert_allclose(first.moving_mean, activations.mean((0, 1, 2)), rtol=0.05, atol=0.02)
    np.testing.assert_allclose(first.moving_variance, activations.var((0, 1, 2)), rtol=0.2)
    np.testing.assert_allclose(training.averaged_weights()[3], first.moving_mean, rtol=1e-5)


def test_weights_are_averaged(digits, layer):
    model, train, _ = digits
    training = HardeningModel(model, layer, Recipe(averaging=0.9))
    training.compile(keras.optimizers.SGD(0.1))
    seen = [model.get_weights()]

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(training.classifier.get_weights())

    training.fit(
        train.images, train.labels, batch_size=60, verbose=0, callbacks=[AverageWeights(), Watch()]
    )
    expected = seen[0]
    for number, weights in enumerate(seen[1:], 1):
        kept = min(0.9, (1 + number) / (10 + number))
        expected = [kept * old + (1 - kept) * new for old, new in zip(expected, weights)]
    for found, value in zip(training.averaged_weights(), expected):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        training.predict(train.images[:4], verbose=0),
        training.averaged(layer(train.images[:4])), rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_original_and_its_layer_stay_as_they_are(digits, layer):
    """As a teacher too, the original is no part of the model that is trained and saved."""
    model, *_ = digits
    before = model.get_weights()
    training, _ = fitted(digits, layer, Recipe(table_rate=1.0, soft_labels=0.5), 1, "adam")
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)
    assert layer.quantization_table == fd_keras.preset_table("liu2019")
    assert not {id(weight) for weight in model.weights} & {id(w) for w in training.weights}


def test_table_learns_where_it_may(digits, layer):
    fixed, _ = fitted(digits, layer, Recipe(), 1, "adam")
    learnt, _ = fitted(digits, layer, Recipe(table_rate=10.0), 1, "adam")
    assert fixed.distillation.table() == layer.quantization_table
    steps = learnt.distillation.table().steps
    assert np.abs(np.log(steps / layer.quantization_table.steps)).max() > 0.01
    restored = FeatureDistillation(learnt.distillation.table())
    images = digits[1].images[:4]
    np.testing.assert_allclose(restored(images), learnt.distillation(images), atol=1e-3)


def test_probabilities_train_as_their_logits_do(digits, layer):
    model, train, _ = digits
    inputs = keras.Input(model.input_shape[1:])
    softmax = keras.Model(inputs, keras.layers.Softmax()(model(inputs)))
    losses = []
    for classifier in (model, Classifier(softmax, from_logits=False)):
        training = HardeningModel(classifier, layer, Recipe(attack_steps=2))
        training.compile(keras.optimizers.SGD(0.0))
        history = training.fit(
            train.images, train.labels, batch_size=60, verbose=0, shuffle=False
        ).history
        losses.append(history["loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_whole_floats_are_labels(digits, layer):
    _, train, _ = digits
    recipe = Recipe(epsilon=0)
    columns = np.float32(train.labels)[:, np.newaxis]
    weights = []
    for labels in (train.labels, columns, columns + 0.5):
        training = HardeningModel(digits[0], layer, recipe)
        training.compile("sgd")
        if labels[0] % 1:
            with pytest.raises(tf.errors.InvalidArgumentError, match="labels that are whole numb"):
                training.fit(train.images, labels, batch_size=60, verbose=0)
        else:
            training.fit(train.images, labels, batch_size=60, verbose=0, shuffle=False)
            weights.append(training.get_weights())
    for one, other in zip(*weights):
        np.testing.assert_array_equal(one, other)


def test_labels_of_later_batches_must_be_classes(digits, layer):
    """A target of zeros has no loss, so that nothing was learnt from it."""
    model, train, _ = digits
    training = HardeningModel(model, layer, Recipe(epsilon=0))
    training.compile("sgd")
    labels = np.where(np.arange(len(train.labels)) < 60, train.labels, train.labels + 10)
    with pytest.raises(tf.errors.InvalidArgumentError, match="yield labels from 0 to 9"):
        training.fit(train.images, labels, batch_size=60, verbose=0, shuffle=False)


@pytest.mark.skipif(keras.__version__ < "3", reason="Keras 2 does not accumulate gradients")
def test_accumulated_batches_draw_anew(digits, layer):
    model, train, _ = digits
    seeds = []

    def seen(images, seed):
        tf.py_function(lambda value: seeds.append(tuple(value.numpy())), [seed], [])
        return images

    training = HardeningModel(model, layer, Recipe(epsilon=0), augment=seen)
    training.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    training.fit(train.images[:240], train.labels[:240], batch_size=60, verbose=0)
    assert len(set(seeds)) == len(seeds) == 4
