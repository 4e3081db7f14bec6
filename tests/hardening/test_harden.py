"""Hardening: the training step, what it leaves alone, what is kept, and what resumes."""

import dataclasses
import functools
import json
import math

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import fd_keras
from fd_keras import FeatureDistillation, HardenResult, QuantizationTable, harden
from fd_keras.demo import build_classifier, load_digits, train_classifier
from fd_keras.evaluation.accuracies import accuracy_row
from fd_keras.hardening import AverageWeights, HardeningModel, Recipe
from fd_keras.hardening.data import LabelledImages, shuffled_batches
from fd_keras.hardening.layer import STEP_RANGE, TrainingDistillation
from fd_keras.hardening.objective import cross_entropy, divergence, perturbed, targets
from fd_keras.hardening.record import Record, rank
from fd_keras.hardening.views import View, on_shifted_grid, random_view

SETTINGS = {"attack_budget": 16, "averaging": 0.8, "epochs": 3, "max_benign_loss": 0.1}


@pytest.fixture(scope="module")
def digits():
    """A weak but real classifier, and its images: 240 to train on and 60 others."""
    keras.utils.set_random_seed(3)
    found = load_digits(seed=3)
    model = build_classifier()
    train_classifier(model, found.train[:600], epochs=3)
    return model, found.train[600:840], found.test[:60]


@pytest.fixture
def layer():
    return FeatureDistillation("liu2019")


@pytest.fixture
def hardened(digits, layer):
    """Call ``harden`` on the digits."""
    model, train, test = digits

    def run(**options):
        given = {**SETTINGS, "batch_size": 60, **options}
        data = (train.images, train.labels)
        return harden(model, layer, data, (test.images, test.labels), **given)

    return run


def fitted(digits, layer, recipe, epochs=1, optimizer="sgd"):
    model, train, _ = digits
    training = HardeningModel(model, layer, recipe)
    training.compile(optimizer)
    history = training.fit(
        train.images, train.labels, batch_size=60, epochs=epochs, verbose=0, shuffle=False,
        callbacks=[AverageWeights()],
    )  # fmt: skip
    return training, history.history


# --- parts


def test_attack_reaches_the_worst_corner_of_a_linear_classifier(rng):
    """For a linear classifier the best L-inf attack is known: every pixel goes to its bound."""
    images = rng.uniform(20, 235, (5, 4, 4, 1)).astype(np.float32)
    weights = rng.normal(size=(16, 2)).astype(np.float32)
    labels = np.array([0, 1, 0, 1, 0])
    for steps in (1, 10):
        attacked = perturbed(
            tf.constant(images), tf.constant(labels),
            lambda x: tf.reshape(x, (-1, 16)) @ weights,
            budget=3.0, steps=steps, step_size=7.0, value_range=(0, 255), seed=tf.constant([1, 2]),
        ).numpy()  # fmt: skip
        wrong = (weights[:, 1] - weights[:, 0]).reshape(4, 4, 1)
        sign = np.where(labels == 0, 1, -1)[:, None, None, None]
        np.testing.assert_allclose(attacked, images + 3 * sign * np.sign(wrong), atol=1e-4)


def test_attack_stays_in_budget_and_range(rng):
    images = tf.constant(rng.uniform(0, 1, (3, 4, 4, 1)), tf.float32)
    attacked = perturbed(
        images, tf.constant([0, 1, 2]), lambda x: tf.reshape(x, (3, -1))[:, :3] ** 2,
        budget=0.1, steps=3, step_size=0.09, value_range=(0, 1), seed=tf.constant([1, 2]),
    )  # fmt: skip
    assert float(tf.reduce_max(tf.abs(attacked - images))) <= 0.1 + 1e-6
    assert 0 <= float(tf.reduce_min(attacked)) <= float(tf.reduce_max(attacked)) <= 1


@pytest.mark.parametrize("offset", [(0, 0), (3, 7), (4, 4)])
@pytest.mark.parametrize("size", [(16, 24), (13, 9)])
def test_shifted_grid_is_that_of_the_oracle(rng, offset, size):
    """Shifting the grid is distilling an image that continues beyond its edges."""
    image = rng.integers(0, 256, (1, *size, 1)).astype(np.float32)
    steps = np.full((8, 8), 40.0)
    training = TrainingDistillation(FeatureDistillation(QuantizationTable(steps)), 1)
    found = training.distil(tf.constant(image), View(offset=tf.constant(offset))).numpy()
    expected, distance = oracle.distil_plane(image[0, ..., 0].astype(float), steps, offset)
    close = np.abs(found[0, ..., 0] - np.clip(expected, 0, 255))
    assert close[distance > 0.01].max() < 1e-2


def test_view_without_variation_is_the_layer(rng):
    images = tf.constant(rng.integers(0, 256, (2, 16, 16, 3)), tf.float32)
    layer = FeatureDistillation("zigzag15", cycle_spins=2)
    np.testing.assert_array_equal(TrainingDistillation(layer, 3)(images), layer(images))


def test_views_differ_and_stay_near():
    first, second = (
        random_view(tf.constant([1, n]), 3, step_jitter=0.2, random_grids=True) for n in (1, 2)
    )
    assert not np.array_equal(first.factors, second.factors)
    assert np.abs(np.log(first.factors)).max() <= 0.2 + 1e-6
    assert first.offset.shape == (2,)
    image = tf.ones((1, 8, 8, 3))
    np.testing.assert_array_equal(on_shifted_grid(image, first.offset, tf.identity), image)


@given(moves=st.lists(st.floats(-1e6, 1e6), min_size=64, max_size=64), rate=st.floats(0.01, 10))
@settings(max_examples=20, deadline=None)
def test_learnt_steps_stay_positive_whatever_moves_them(moves, rate):
    training = TrainingDistillation(FeatureDistillation("liu2019"), 1, rate=rate)
    constrained = training.moves.constraint(tf.constant(moves, tf.float32, (1, 8, 8)))
    training.moves.assign(constrained)
    steps = training.table().steps
    low, high = STEP_RANGE
    assert low * 0.999 <= steps.min() <= steps.max() <= high * 1.001


def test_losses_are_those_of_their_formulas(rng):
    logits, other = rng.normal(size=(2, 6, 4)).astype(np.float32)
    labels = np.array([0, 3, 1, 2, 2, 0])

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    p, q = softmax(logits), softmax(other)
    wanted = 0.7 * np.eye(4)[labels] + 0.3 * q
    np.testing.assert_allclose(
        cross_entropy(targets(tf.constant(labels), tf.constant(other), 0.3, 4), logits),
        -(wanted * np.log(p)).sum(-1).mean(), rtol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(
        divergence(logits, other), (p * np.log(p / q)).sum(-1).mean(), rtol=1e-4
    )
    assert float(divergence(tf.zeros((0, 4)), tf.zeros((0, 4)))) == 0


def test_each_epoch_has_every_image_in_an_order_of_its_own():
    epoch = tf.Variable(0)
    data = LabelledImages(np.zeros((10, 8, 8, 1)), np.arange(10))
    batches = shuffled_batches(data, 5, 1, epoch)

    def order():
        return np.concatenate([labels for _, labels in batches.as_numpy_iterator()])

    first = order()
    assert sorted(first) == list(range(10))
    epoch.assign(1)
    second = order()
    assert not np.array_equal(first, second)
    epoch.assign(0)
    np.testing.assert_array_equal(order(), first)


def test_epochs_within_the_benign_loss_come_first():
    figures = [(0.80, 0.9), (0.95, 0.3), (0.91, 0.5), (0.90, 0.4)]
    ranks = [
        rank({"val_benign_accuracy": benign, "val_adaptive_accuracy": adaptive}, 0.9)
        for benign, adaptive in figures
    ]
    assert sorted(range(4), key=ranks.__getitem__) == [0, 1, 3, 2]
    assert rank({"val_benign_accuracy": 0.9}, 0.9)[:2] == (True, 0.9)


@pytest.mark.parametrize("allowed", [0.8, 0.9])
def test_of_equal_epochs_the_other_accuracy_decides(allowed):
    def ranked(benign, adaptive):
        figures = {"val_benign_accuracy": benign, "val_adaptive_accuracy": adaptive}
        return rank(figures, allowed)

    assert ranked(0.85, 0.5) > ranked(0.85, 0.4)
    assert ranked(0.86, 0.4) > ranked(0.85, 0.4)


# --- the training step


RECIPES = {
    "distilled": {"attack_budget": 0},
    "fgsm": {},
    "pgd, random": {
        "attack_steps": 2, "attack_gradient": "random", "step_jitter": 0.2, "random_grids": True
    },
    "trades": {"trades": 3.0, "attacked_share": 1.0, "consistency": 0.5, "soft_labels": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_loss_falls(digits, layer, name):
    recipe = Recipe(**{"attack_budget": 16, "averaging": 0.5, **RECIPES[name]})
    _, history = fitted(digits, layer, recipe, 4, keras.optimizers.Adam(2e-3))
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert ("adaptive_accuracy" in history) == recipe.attacks
    assert history["benign_accuracy"][-1] > 0.8


def test_attack_leaves_no_trace(digits, layer):
    """Attacking a batch must not count for batch normalisation."""
    model, train, _ = digits
    training = HardeningModel(model, layer, Recipe(attack_budget=64, attack_steps=2))
    training.compile("sgd")
    images, labels = tf.constant(train.images[:20]), tf.constant(train.labels[:20])
    attacked = training._attacked(images, labels, View(), training._seeds())
    assert np.abs(attacked - images).max() > 60
    for before, after in zip(model.get_weights(), training.classifier.get_weights()):
        np.testing.assert_array_equal(before, after)


def test_batch_statistics_become_those_of_the_distilled_images(digits, layer):
    _, train, _ = digits
    recipe = Recipe(attack_budget=0, averaging=0.0)
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
    model, *_ = digits
    before = model.get_weights()
    fitted(digits, layer, Recipe(table_rate=1.0, soft_labels=0.5), 1, "adam")
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)
    assert layer.quantization_table == fd_keras.preset_table("liu2019")


def test_table_learns_where_it_may(digits, layer):
    fixed, _ = fitted(digits, layer, Recipe(), 1, "adam")
    learnt, _ = fitted(digits, layer, Recipe(table_rate=10.0), 1, "adam")
    assert fixed.distillation.table() == layer.quantization_table
    steps = learnt.distillation.table().steps
    assert np.abs(np.log(steps / layer.quantization_table.steps)).max() > 0.01
    restored = FeatureDistillation(learnt.distillation.table())
    images = digits[1].images[:4]
    np.testing.assert_allclose(restored(images), learnt.distillation(images), atol=1e-3)


def test_mixed_precision_hands_back_the_models_own(hardened):
    result = hardened(dtype_policy="mixed_float16", epochs=1)
    assert all(np.isfinite(weight).all() for weight in result.model.get_weights())
    assert result.model.layers[-1].compute_dtype == "float32"
    assert result.history[0]["loss"] < 3


def test_data_sets_optimisers_and_strategies_of_all_kinds(digits, layer):
    """A strategy with one replica runs the code that many would."""
    model, train, test = digits
    data = tf.data.Dataset.from_tensor_slices((train.images, train.labels)).batch(70)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        result = harden(
            model, layer, data, (test.images, test.labels), attack_budget=8, epochs=1,
            optimizer=keras.optimizers.SGD(0.01, momentum=0.9, clipnorm=1.0),
            dtype_policy="mixed_bfloat16",
        )  # fmt: skip
    assert len(result.history) == 1


# --- harden


def test_result(hardened, tmp_path, layer, digits):
    _, _, test = digits
    result = hardened(directory=tmp_path / "run", epochs=4, averaging=0.5)
    assert result.within_benign_loss
    assert result.accuracy("hardened", "adaptive") > result.accuracy("layer only", "adaptive")
    best = max(result.history, key=lambda figures: rank(figures, 0)[1])
    assert result.accuracy("hardened", "adaptive") == pytest.approx(best["val_adaptive_accuracy"])
    assert "adaptive, PGD-10 16/255" in str(result)
    assert list((tmp_path / "run" / "logs").rglob("events*"))
    outputs = result.protected.predict(test.images, verbose=0)
    assert np.mean(outputs.argmax(-1) == test.labels) == pytest.approx(result.accuracy("hardened"))
    result.save(tmp_path / "result")
    again = HardenResult.load(tmp_path / "result")
    assert (again.rows, again.history, again.settings) == (
        result.rows, result.history, json.loads(json.dumps(result.settings))
    )  # fmt: skip
    np.testing.assert_array_equal(again.protected.predict(test.images, verbose=0), outputs)


def test_result_says_when_no_epoch_keeps_the_benign_loss(digits, layer):
    rows = [
        accuracy_row(defence=name, family="harden", threat_model="benign", correct=n, count=100)
        for name, n in (("undefended", 95), ("layer only", 94), ("hardened", 90))
    ]
    result = HardenResult(digits[0], layer, rows, [{}], 1, 0.05)
    assert result.within_benign_loss
    assert "No epoch" not in str(result)
    result = dataclasses.replace(result, max_benign_loss=0.04)
    assert not result.within_benign_loss
    assert "+5.0 points, MORE than the permitted 4\nNo epoch kept to it" in str(result)


class _Killed(keras.callbacks.Callback):
    """Ends the third epoch in its middle."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 1):
            raise KeyboardInterrupt


def test_resumed_training_is_that_which_never_stopped(hardened, tmp_path):
    varied = {"step_jitter": 0.1, "random_grids": True, "table_rate": 1.0}
    whole = hardened(**varied)
    with pytest.raises(KeyboardInterrupt):
        hardened(directory=tmp_path, callbacks=[_Killed()], **varied)
    assert len(Record(tmp_path, 0).epochs) == 2
    resumed = hardened(directory=tmp_path, **varied)
    assert resumed.history == whole.history
    assert resumed.table == whole.table
    for found, expected in zip(resumed.model.get_weights(), whole.model.get_weights()):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="a training with other recipe"):
        hardened(directory=tmp_path, attack_steps=2, **varied)


def test_finished_training_is_not_run_again(hardened, tmp_path):
    first = hardened(directory=tmp_path, epochs=1)
    second = hardened(directory=tmp_path, epochs=1, callbacks=[_Never()])
    assert second.rows == first.rows
    with pytest.raises(AssertionError):
        hardened(directory=tmp_path, epochs=1, callbacks=[_Never()], overwrite=True, seed=2)


class _Never(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise AssertionError


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack_budget": 4 / 255}, "grey levels from 0.1"),
        ({"attack_budget": math.nan}, "`attack_budget` must be 0"),
        ({"attack_steps": 0}, "`attack_steps` must be a whole number"),
        ({"attack_gradient": "none"}, "`attack_gradient` must be one of"),
        ({"attacked_share": 1.5}, "`attacked_share` must lie between 0 and 1"),
        ({"trades": -1}, "`trades` must"),
        ({"trades": 1, "attack_budget": 0}, "`trades` needs attacked images"),
        ({"consistency": 1, "attacked_share": 1}, "`consistency` compares benign images"),
        ({"averaging": 1}, "`averaging` must be below 1"),
        ({"max_benign_loss": 2}, "`max_benign_loss` must lie between"),
        ({"epochs": 0}, "`epochs` must be a whole number"),
        ({"batch_size": 0}, "`batch_size` must be a whole number"),
        ({"from_logits": False}, "probabilities"),
    ],
)
def test_bad_arguments(hardened, arguments, message):
    with pytest.raises(ValueError, match=message):
        hardened(**arguments)


def test_bad_data(digits, layer):
    model, train, test = digits
    held = (test.images, test.labels)
    with pytest.raises(ValueError, match="`validation_data` is needed"):
        harden(model, layer, tf.data.Dataset.from_tensor_slices(held).batch(2))
    with pytest.raises(TypeError, match="`train_data` must be the arrays"):
        harden(model, layer, iter([held]))
    with pytest.raises(ValueError, match="scaled to value_range"):
        harden(model, layer, (train.images / 255, train.labels), held)
    with pytest.raises(ValueError, match="labels from 0 to 9"):
        harden(model, layer, (train.images, train.labels + 5), held)
    with pytest.raises(ValueError, match="`validation_data` holds no image"):
        harden(model, layer, (train.images, train.labels), iter([]))
    hot = tf.data.Dataset.from_tensor_slices((train.images, np.eye(10)[train.labels])).batch(8)
    with pytest.raises(ValueError, match="integer labels"):
        harden(model, layer, hot, held, epochs=1)


def test_bad_models(digits, layer):
    model, train, _ = digits
    data = (train.images, train.labels)
    with pytest.raises(TypeError, match="`layer` must be a FeatureDistillation"):
        harden(model, "liu2019", data)
    with pytest.raises(ValueError, match="channels last"):
        harden(model, FeatureDistillation("liu2019", data_format="channels_first"), data)
    frozen = keras.models.clone_model(model)
    frozen.trainable = False
    with pytest.raises(ValueError, match="trainable weights"):
        harden(frozen, layer, data)
    whole = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="images of one size"):
        harden(whole, layer, data)


# --- the command


@pytest.fixture
def run(run):
    return functools.partial(run, "harden")


def test_command(run, digits, tmp_path):
    model, train, _ = digits
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "train.npz", x=train.images.astype(np.uint8), y=train.labels)
    arguments = [
        tmp_path / "model.keras", tmp_path / "train.npz", "--out", tmp_path / "out",
        "--epsilon", "8", "--epochs", "1", "--max-benign-loss", "0.2", "--table", "jpeg:75",
        "--learning-rate", "0.001",
    ]  # fmt: skip
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "adaptive, PGD-10 8/255" in out
    result = HardenResult.load(tmp_path / "out")
    assert result.table.name == "jpeg:75"
    assert result.settings["recipe"]["attack_budget"] == 8
    again = run(*arguments)
    assert again[:2] == (0, out)
    code, _, err = run(*arguments, "--attack-steps", "3")
    assert code == 1
    assert "a training with other recipe" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none.keras", "data.npz", "--out", "out"], "none.keras"),
        (["none.keras", "data.npz", "--out", "data.npz"], "`--out` must be a directory"),
    ],
)
def test_command_errors_are_one_line(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.npz").touch()
    code, _, err = run(*options)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
