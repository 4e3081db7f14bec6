"""The ART preprocessor compared with the layer, in estimators and under attacks."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from fd_keras import FeatureDistillation, QuantizationTable, protect
from fd_keras.evaluation import art_classifier
from fd_keras.evaluation.classifiers import LogOdds

pytest.importorskip("art", reason="ART is not installed")

from art.attacks.evasion import FastGradientMethod, HopSkipJump, ProjectedGradientDescent
from art.estimators.classification import BlackBoxClassifier, TensorFlowV2Classifier

from fd_keras.art import FeatureDistillationPreprocessor

CLASSES = 3
SHAPE = (20, 24, 3)  # rows that complete no block
ROUGH = {"gradient": "straight-through"}
SETTINGS = [
    {"quantization_table": "liu2019", **ROUGH},
    {"quantization_table": "liu2019", "color_space": "ycbcr", "cycle_spins": 4, **ROUGH},
    {"quantization_table": np.full((8, 8), 50.0), "value_range": (-1, 1), "gradient": "smooth"},
    {
        "quantization_table": QuantizationTable(np.full((3, 8, 8), 30.0)),
        "value_range": (0, 1),
        "gradient": "smooth",
    },
]


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(3)


def batch(value_range=(0, 255), count=6, shape=SHAPE):
    rng = np.random.default_rng(9)
    images = rng.uniform(*value_range, (count, *shape)).astype(np.float32)
    images[0, :9], images[1] = value_range  # a clipped edge and a clipped image
    return images, np.arange(count) % CLASSES


def network(value_range=(0, 255)):
    low, high = value_range
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Rescaling(1 / (high - low), -low / (high - low)),
            layers.Conv2D(6, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )


def with_preprocessor(model, preprocessor, value_range=(0, 255), **kwargs):
    return TensorFlowV2Classifier(
        model=model,
        nb_classes=CLASSES,
        input_shape=SHAPE,
        loss_object=LogOdds(),
        clip_values=value_range,
        preprocessing_defences=[preprocessor],
        **kwargs,
    )


def both_ways(settings):
    """The same defence as ART's preprocessor and as `protect` puts it there."""
    value_range = settings.get("value_range", (0, 255))
    model = network(value_range)
    preprocessor = FeatureDistillationPreprocessor(**settings, batch_size=4)
    protected = protect(model, FeatureDistillation(**settings))
    return (
        with_preprocessor(model, preprocessor, value_range),
        art_classifier(protected, value_range=value_range),
        value_range,
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_both_paths_compute_the_layer(settings):
    images, labels = batch(settings.get("value_range", (0, 255)))
    layer = FeatureDistillation(**settings)
    preprocessor = FeatureDistillationPreprocessor(**settings, batch_size=4)
    expected = layer(images).numpy()
    assert np.abs(expected - images).max() > 0.01
    array, same_labels = preprocessor(images, labels)
    tensor, same_tensor = preprocessor.forward(tf.constant(images), labels)
    assert array.dtype == np.float32
    assert same_labels is labels
    assert same_tensor is labels
    tolerance = 1e-4 * np.ptp(images)  # a batch's size changes the last bit of a product
    np.testing.assert_allclose(array, expected, atol=tolerance)
    np.testing.assert_allclose(tensor, expected, atol=tolerance)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7])
def test_batch_size_changes_nothing_but_memory(size, monkeypatch):
    images, _ = batch()
    whole, _ = FeatureDistillationPreprocessor()(images)
    preprocessor, seen = FeatureDistillationPreprocessor(batch_size=size), []
    original = FeatureDistillation.call

    def spy(self, inputs):
        seen.append(len(inputs))
        return original(self, inputs)

    monkeypatch.setattr(FeatureDistillation, "call", spy)
    np.testing.assert_allclose(preprocessor(images)[0], whole, atol=1e-3)
    np.testing.assert_allclose(preprocessor.forward(tf.constant(images))[0], whole, atol=1e-3)
    assert sum(seen) == 2 * len(images)
    assert max(seen) <= size
    assert min(seen) > 0


def test_forward_works_in_a_graph_of_unknown_batch():
    images, _ = batch()
    preprocessor = FeatureDistillationPreprocessor(batch_size=2)
    graph = tf.function(
        lambda x: preprocessor.forward(x)[0],
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)],
    )
    np.testing.assert_allclose(graph(images), preprocessor(images)[0], atol=1e-3)


@pytest.mark.parametrize("batch_size", [4, 64])
@pytest.mark.parametrize("settings", SETTINGS)
def test_gradient_is_the_layers(settings, batch_size, rng):
    """ART takes it from `forward` on TensorFlow, and from `estimate_gradient` elsewhere."""
    images, _ = batch(settings.get("value_range", (0, 255)))
    upstream = rng.normal(size=images.shape).astype(np.float32)
    preprocessor = FeatureDistillationPreprocessor(**settings, batch_size=batch_size)
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        distilled, _ = preprocessor.forward(x)
    differentiated = tape.gradient(distilled, x, output_gradients=upstream)
    if settings["gradient"] == "straight-through":
        np.testing.assert_allclose(differentiated, upstream, atol=1e-4)
    else:
        assert np.abs(differentiated - upstream).max() > 0.1
    estimated = preprocessor.estimate_gradient(images, upstream)
    np.testing.assert_allclose(estimated, differentiated, atol=1e-4)
    class_gradients = rng.normal(size=(len(images), CLASSES, *SHAPE)).astype(np.float32)
    by_class = preprocessor.estimate_gradient(images, class_gradients)
    for number in range(CLASSES):
        expected = preprocessor.estimate_gradient(images, class_gradients[:, number])
        np.testing.assert_allclose(by_class[:, number], expected, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
def test_attacks_equal_those_on_the_protected_model(settings):
    defended, protected, value_range = both_ways(settings)
    images, labels = batch(value_range)
    unit = np.ptp(value_range) / 255
    np.testing.assert_allclose(defended.predict(images), protected.predict(images), atol=1e-4)
    # Without labels, ART 1.20 leaves the preprocessor's gradient out.
    np.testing.assert_allclose(
        defended.class_gradient(images, labels),
        protected.class_gradient(images, labels),
        rtol=1e-3,
        atol=1e-6,
    )

    def attacked(classifier, attack, **kwargs):
        np.random.seed(11)  # what ART draws its random start from
        generated = attack(classifier, eps=8 * unit, **kwargs).generate(images, labels)
        assert np.abs(generated - images).max() > 4 * unit
        return generated

    pgd = {"eps_step": 2 * unit, "max_iter": 5, "num_random_init": 1, "verbose": False}
    for attack, kwargs in ((FastGradientMethod, {}), (ProjectedGradientDescent, pgd)):
        through_art = attacked(defended, attack, **kwargs)
        through_keras = attacked(protected, attack, **kwargs)
        np.testing.assert_allclose(through_art, through_keras, atol=1e-3 * unit)


def test_attack_on_the_bare_classifier_is_another():
    """The equality above would be empty if attacks did not see the defence."""
    defended, _, _ = both_ways(SETTINGS[2])
    bare = art_classifier(defended.model, value_range=(-1, 1))
    images, labels = batch((-1, 1))
    moved = [
        FastGradientMethod(classifier, eps=0.05).generate(images, labels)
        for classifier in (defended, bare)
    ]
    assert np.abs(moved[0] - moved[1]).max() > 0.05


def test_black_box_estimators_run_it_on_arrays():
    model, seen = network(), []
    images, _ = batch()

    def predict(x):
        seen.append(x)
        return model(x).numpy()

    classifier = BlackBoxClassifier(
        predict,
        SHAPE,
        CLASSES,
        clip_values=(0, 255),
        preprocessing_defences=FeatureDistillationPreprocessor("jpeg:30"),
    )
    expected = FeatureDistillation("jpeg:30")(images)
    np.testing.assert_allclose(classifier.predict(images), model(expected), atol=1e-4)
    np.testing.assert_allclose(seen[-1], expected, atol=1e-3)
    before = classifier.predict(images).argmax(axis=-1)
    attack = HopSkipJump(classifier, max_iter=1, max_eval=20, init_eval=5, verbose=False)
    attacked = attack.generate(images)
    # It searches on what it sees: changed decisions of the defended model, not of the bare one.
    distilled = FeatureDistillation("jpeg:30")(attacked)
    assert (model(distilled).numpy().argmax(axis=-1) != before).mean() > 0.5


def test_flags_say_when_it_is_applied():
    images, labels = batch()
    model = network()
    for apply_fit, apply_predict in [(True, False), (False, True)]:
        preprocessor = FeatureDistillationPreprocessor(
            "jpeg:20", apply_fit=apply_fit, apply_predict=apply_predict
        )
        assert preprocessor.is_fitted
        assert (preprocessor.apply_fit, preprocessor.apply_predict) == (apply_fit, apply_predict)
        classifier = with_preprocessor(model, preprocessor)
        distilled = FeatureDistillation("jpeg:20")(images).numpy()
        for fit, applied in ((True, apply_fit), (False, apply_predict)):
            processed, _ = classifier._apply_preprocessing(images, labels, fit=fit)
            np.testing.assert_allclose(processed, distilled if applied else images, atol=1e-3)


def test_channels_first():
    images, _ = batch()
    expected, _ = FeatureDistillationPreprocessor("jpeg")(images)
    first = FeatureDistillationPreprocessor("jpeg", channels_first=True, batch_size=4)
    distilled, _ = first(np.moveaxis(images, -1, 1))
    np.testing.assert_allclose(np.moveaxis(distilled, 1, -1), expected, atol=1e-3)


def test_images_of_different_sizes():
    """ART's object detectors pass arrays of arrays."""
    images = np.empty(2, dtype=object)
    images[:] = [batch(shape=(9, 16, 3))[0][2], batch(shape=(24, 8, 3))[0][3]]
    preprocessor, layer = FeatureDistillationPreprocessor(), FeatureDistillation("liu2019")
    distilled, _ = preprocessor(images)
    assert distilled.dtype == object
    for actual, image in zip(distilled, images):
        np.testing.assert_allclose(actual, layer(image), atol=1e-3)
    for gradient, image in zip(preprocessor.estimate_gradient(images, images), images):
        alone = preprocessor.estimate_gradient(image[np.newaxis], image[np.newaxis])[0]
        np.testing.assert_allclose(gradient, alone, atol=1e-3)


def test_integer_and_double_images():
    images = batch()[0].round()
    preprocessor = FeatureDistillationPreprocessor()
    expected, _ = preprocessor(images)
    for dtype in (np.uint8, np.float64):
        distilled, _ = preprocessor(images.astype(dtype))
        assert distilled.dtype == np.float32
        np.testing.assert_array_equal(distilled, expected)


def test_half_precision_policy_is_not_its_own():
    before = keras.mixed_precision.dtype_policy() if hasattr(keras, "dtype_policies") else None
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        distilled, _ = FeatureDistillationPreprocessor().forward(tf.constant(batch()[0]))
    finally:
        keras.mixed_precision.set_global_policy(before or "float32")
    assert distilled.dtype == tf.float32


def test_set_params_takes_effect():
    images, _ = batch()
    preprocessor = FeatureDistillationPreprocessor()
    preprocessor(images)
    preprocessor.set_params(quantization_table="jpeg:10", color_space="rgb")
    expected = FeatureDistillation("jpeg:10", "rgb")(images)
    np.testing.assert_allclose(preprocessor(images)[0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization_table": "mjpeg"}, "mjpeg"),
        ({"value_range": (1, 0)}, "`value_range` must be two finite numbers"),
        (
            {"batch_size": 0},
            "`batch_size` must be a whole number at least 1. Received: batch_size=0",
        ),
        ({"batch_size": 2.0}, "`batch_size` must be a whole number at least 1"),
        ({"batch_size": True}, "`batch_size` must be a whole number at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureDistillationPreprocessor(**arguments)


LAYER = {"value_range": (-1, 1), "cycle_spins": 2, "data_format": "channels_first"}


def test_a_layer_gives_its_settings():
    layer = FeatureDistillation("jpeg:10", "rgb", **LAYER, gradient="straight-through")
    images, _ = batch((-1, 1), shape=(3, 20, 24))
    preprocessor = FeatureDistillationPreprocessor(layer)
    np.testing.assert_allclose(preprocessor(images)[0], layer(images), atol=1e-5)
    same = FeatureDistillation("jpeg:10", "rgb", **LAYER, gradient="smooth")
    with tf.GradientTape() as tape:
        x = tf.Variable(images)
        loss = tf.reduce_sum(same(x) ** 2)
    upstream = 2 * same(images).numpy()
    np.testing.assert_allclose(
        preprocessor.estimate_gradient(images, upstream), tape.gradient(loss, x), atol=1e-3
    )


@pytest.mark.parametrize("setting", [{"value_range": (0, 255)}, {"channels_first": False}])
def test_settings_must_not_contradict_a_layer(setting):
    layer = FeatureDistillation("liu2019", **LAYER)
    (name,) = setting
    with pytest.raises(ValueError, match=f"`{name}` must be left to the layer, which has"):
        FeatureDistillationPreprocessor(layer, **setting)
    agreeing = {"value_range": (-1.0, 1.0), "channels_first": True}
    assert FeatureDistillationPreprocessor(layer, **agreeing) is not None


def test_no_images():
    assert FeatureDistillationPreprocessor()(np.zeros((0, 8, 8, 3)))[0].shape == (0, 8, 8, 3)


def test_missing_art_gives_the_hint():
    code = """
import sys
sys.modules["art"] = None  # importing it now raises
import fd_keras
try:
    import fd_keras.art
except ImportError as error:
    print(error)
"""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == 'art is not installed; run: pip install "fd-keras[evaluate]"\n', (
        done.stderr
    )


def test_soft_thresholding_has_its_own_gradient():
    images, _ = batch(shape=(16, 24, 3))
    layer = FeatureDistillation("jpeg:30", cycle_spins=2, quantizer="soft")
    upstream = np.random.default_rng(1).normal(size=images.shape).astype(np.float32)
    with tf.GradientTape() as tape:
        x = tf.Variable(images)
        out = layer(x)
    expected = tape.gradient(out, x, upstream)
    for preprocessor in (
        FeatureDistillationPreprocessor(layer),
        FeatureDistillationPreprocessor(layer.quantization_table, gradient="straight-through"),
        FeatureDistillationPreprocessor("jpeg:30", cycle_spins=2, quantizer="soft"),
    ):
        np.testing.assert_allclose(preprocessor(images)[0], out, atol=1e-3)
        found = preprocessor.estimate_gradient(images, upstream)
        np.testing.assert_allclose(found, expected, atol=1e-3)
