"""`Classifier`: its arguments, its outputs and its fingerprint."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fd_keras.classifier import Classifier, as_logits
from fd_keras.evaluation import Protocol, evaluate


@pytest.fixture
def model():
    """Two outputs: the two pixels of an image."""
    return keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])


class Subclassed(keras.Model):
    """A model that does not tell its number of outputs before it is called."""

    def call(self, inputs, training=None):
        return tf.reshape(inputs, (-1, 2))


def pixels(*pairs):
    return np.array(pairs, np.float32).reshape(-1, 1, 2, 1)


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0, np.inf), (0, np.nan), (0, 1, 2), 255])
def test_value_range_must_be_a_range(model, value_range):
    with pytest.raises(ValueError, match="`value_range` must be two finite numbers"):
        Classifier(model, value_range=value_range)


@pytest.mark.parametrize("names", [["cat", "cat"], "cd", ["cat", 1]])
def test_class_names_must_be_distinct_texts(model, names):
    with pytest.raises(ValueError, match="`class_names` must be distinct texts"):
        Classifier(model, class_names=names)


@pytest.mark.parametrize("names", [[], ["cat"], ["cat", "dog", "fish"]])
def test_each_output_needs_one_class_name(model, names):
    message = f"one name for each of the 2 outputs of `model`. Received: {len(names)} names"
    with pytest.raises(ValueError, match=message):
        Classifier(model, class_names=names)


def test_class_names_are_counted_once_the_number_of_outputs_is_known():
    classifier = Classifier(Subclassed(), class_names=["cat"])
    with pytest.raises(ValueError, match="one name for each of the 2 outputs"):
        classifier.correct(pixels([3, 200]), np.array([1]))


def test_a_model_must_be_callable():
    with pytest.raises(TypeError, match="`model` must be a Keras model. Received: model='cat'"):
        Classifier("cat")


def test_of_keeps_a_classifier_and_wraps_a_model(model):
    classifier = Classifier(model, value_range=(-1, 1), from_logits=False, class_names=("a", "b"))
    assert Classifier.of(classifier) is classifier
    wrapped = Classifier.of(model)
    assert (wrapped.model, wrapped.value_range) == (model, (0.0, 255.0))
    assert wrapped.from_logits
    assert wrapped.class_names is None


def test_evaluate_takes_a_plain_model_for_a_classifier_with_default_arguments(model, tmp_path):
    pytest.importorskip("art", reason="ART is not installed")
    data, benign = (pixels([3, 200], [90, 5]), np.array([1, 0])), Protocol("benign", "")
    reports = [
        evaluate(classifier, data, ["none"], benign, cache_dir=tmp_path)
        for classifier in (model, Classifier(model))
    ]
    assert reports[0].rows == reports[1].rows
    assert reports[0].settings["model_sha256"] == reports[1].settings["model_sha256"]


def test_pixels_are_mapped_to_the_value_range(model):
    classifier = Classifier(model, value_range=(-1, 1))
    images = pixels([0, 0.75])
    np.testing.assert_allclose(classifier.outputs(tf.constant(images)), [[-1, 0.5]])
    np.testing.assert_allclose(classifier.logits(images), [[-1, 0.5]])


def test_probabilities_become_finite_logits(model):
    classifier = Classifier(model, value_range=(0, 1), from_logits=False)
    logits = classifier.logits(pixels([0, 1], [0.25, 0.75]))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(np.exp(logits), [[0, 1], [0.25, 0.75]], atol=1e-12)
    assert as_logits(tf.constant([[0.5, 2.0]], tf.float16), from_logits=True).dtype == tf.float32


def test_fingerprint_tells_models_apart_but_not_their_names():
    def build(activation="relu", seed=1):
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(3, activation=activation), keras.layers.Flatten()]
        return keras.Sequential([keras.Input((2, 2, 1)), *layers])

    def fingerprint(classifier, **options):
        return Classifier(classifier, **{"value_range": (0, 1), **options}).fingerprint

    first = fingerprint(build())
    assert first == fingerprint(build())  # Keras has counted on in the names
    assert first == fingerprint(build(), class_names=[f"class {n}" for n in range(12)])
    assert first != fingerprint(build(seed=2))
    assert first != fingerprint(build(activation="tanh"))
    assert first != fingerprint(build(), value_range=(0, 255))
    assert first != fingerprint(build(), from_logits=False)
