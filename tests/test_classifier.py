"""`Classifier`: its arguments, its outputs and its fingerprint."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import fd_keras
from fd_keras import FeatureDistillation
from fd_keras.classifier import Classifier, as_logits
from fd_keras.evaluation import (
    Protocol,
    accuracy,
    art_classifier,
    evaluate,
    fgsm,
    predicted_classes,
)
from fd_keras.hardening import Recipe, Training
from fd_keras.refinement import Search


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


@pytest.mark.parametrize("names", ["cd", ["cat", 1]])
def test_class_names_must_be_texts(model, names):
    with pytest.raises(ValueError, match="`class_names` must be texts"):
        Classifier(model, class_names=names)


def test_two_classes_may_have_one_name(model):
    """As two of ImageNet's have, which were refused."""
    assert Classifier(model, class_names=["crane", "crane"]).class_names == ("crane", "crane")


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


def test_fingerprint_follows_the_weights(model):
    dense = keras.Sequential([keras.Input((1, 2, 1)), layers.Flatten(), layers.Dense(2)])
    classifier = Classifier(dense)
    before = classifier.fingerprint
    dense.set_weights([weight + 1 for weight in dense.get_weights()])
    assert classifier.fingerprint != before


def test_a_layer_may_be_called_what_its_activation_is():
    def named(activation):
        steps = [layers.Activation(activation, name=activation), layers.Flatten()]
        return Classifier(keras.Sequential([keras.Input((1, 2, 1)), *steps])).fingerprint

    assert named("relu") != named("tanh")


class Mapped(keras.Model):
    """Its configuration tells nothing of the function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs, training=None):
        return self.function(tf.reshape(inputs, (-1, 2)))


def test_identity_tells_apart_what_configurations_do_not(rng, model):
    images = rng.random((6, 1, 2, 1), np.float32)
    one, same, other = (
        Classifier(Mapped(function)) for function in (tf.abs, tf.abs, lambda x: tf.sqrt(x) * 3)
    )
    assert one.fingerprint == other.fingerprint
    assert one.identity(images) == same.identity(images) != other.identity(images)
    random = Classifier(Mapped(lambda x: x + tf.random.normal(tf.shape(x), stddev=100.0)))
    assert random.identity(images) == random.identity(images) == random.fingerprint
    assert Classifier(model).identity(images) == Classifier(model).fingerprint


# One number for each image: the mean of its pixels, less a half.
HEADS = ("logit", "probability", "two logits", "two probabilities")


def brightness_model(head, outputs=lambda x: x):
    """Tells bright from dark images, pixels from 0 to 1; the same function with each head."""
    images = keras.Input((8, 8, 1))
    mean = layers.GlobalAveragePooling2D()(layers.Rescaling(16, -8)(images))
    dense = layers.Dense(
        2 if head.startswith("two") else 1,
        activation={"probability": "sigmoid", "two probabilities": "softmax"}.get(head),
    )
    model = keras.Model(images, outputs(dense(mean)))
    dense.set_weights([np.array([[0.0, 1.0][-dense.units :]]), np.zeros(dense.units)])
    return model


def brightness(head):
    model = brightness_model(head)
    return Classifier(model, value_range=(0, 1), from_logits="logit" in head)


@pytest.fixture
def bright_and_dark(rng):
    """Images on both sides of the threshold, some of them within 8/255 of it."""
    images = np.float32(np.linspace(0.4, 0.6, 24)[:, None, None, None] * np.ones((8, 8, 1)))
    return images + np.float32(rng.normal(0, 0.01, images.shape)), (np.arange(24) > 11).astype(int)


@pytest.mark.parametrize("head", HEADS)
def test_a_single_output_is_seen_as_two_classes(head, bright_and_dark):
    images, labels = bright_and_dark
    classifier = brightness(head)
    z = 16 * images.mean((1, 2, 3)) - 8
    found = classifier.logits(images)
    assert classifier.classes == found.shape[1] == 2
    np.testing.assert_allclose(found[:, 1] - found[:, 0], z, atol=1e-4)
    np.testing.assert_array_equal(classifier.correct(images, labels), (z > 0) == labels)
    with pytest.raises(ValueError, match="labels from 0 to 1, the classes of `model`"):
        classifier.correct(images, labels + 1)
    with pytest.raises(ValueError, match="one name for each of the 2"):
        Classifier(classifier.model, from_logits=classifier.from_logits, class_names=["dark"])


@pytest.mark.parametrize("head", HEADS[:2])
def test_evaluate_refine_and_harden_agree_with_two_outputs(head, bright_and_dark, tmp_path):
    pytest.importorskip("art", reason="ART is not installed")
    data = bright_and_dark
    protocol = Protocol("one", "", gray_box=(fgsm(4),), adaptive=(fgsm(4),))
    layer = FeatureDistillation("liu2019", value_range=(0, 1))
    reports, refined, hardened = [], [], []
    for kind in (head, HEADS[HEADS.index(head) + 2]):
        classifier = brightness(kind)
        report = evaluate(classifier, data, ["liu2019"], protocol, cache_dir=tmp_path)
        reports.append([(row["threat_model"], row["accuracy"]) for row in report.rows])
        result = fd_keras.refine(
            classifier, data, {"darker": np.maximum(data[0] - 0.05, 0)},
            Search(max_trials=2, oracle="random"), baselines=[], directory=tmp_path / kind,
        )  # fmt: skip
        refined.append([trial.metrics["score"] for trial in result.trials])
        recipe = Recipe(epsilon=4, soft_labels=0.2)
        training = Training(epochs=1, batch_size=8, optimizer=keras.optimizers.SGD(0.0))
        result = fd_keras.harden(classifier, layer, data, data, recipe, training)
        hardened.append([row["accuracy"] for row in result.rows])
    assert reports[0] == reports[1]
    assert {accuracy for _, accuracy in reports[0]} > {1.0}  # the attack does something
    assert refined[0] == refined[1]
    assert hardened[0] == hardened[1]
    assert 0 < hardened[0][-1] < hardened[0][0]


@pytest.mark.parametrize("head", HEADS)
def test_classes_and_accuracy_of_a_single_output(head, bright_and_dark):
    images, labels = bright_and_dark
    classifier = brightness(head)
    right = classifier.correct(images, labels)
    assert accuracy(classifier.model, images, labels) == right.mean()
    found = predicted_classes(classifier.model, images)
    np.testing.assert_array_equal(found == labels, right)


class Squashed(keras.Model):
    """A single probability, of which no activation is known."""

    def call(self, inputs, training=None):
        return tf.sigmoid(tf.reduce_mean(inputs, (1, 2)))


def test_a_sigmoid_is_not_taken_for_a_logit(bright_and_dark):
    model = brightness("probability").model
    mixed = keras.Model(model.input, layers.Activation("linear", dtype="float32")(model.output))
    for head in (model, keras.Model(model.input, mixed(model.input))):
        with pytest.raises(ValueError, match="must return a logit.*Pass from_logits=False"):
            Classifier(head, from_logits=True)
        told = Classifier(head, value_range=(0, 1))
        assert not told.from_logits
        assert told.assumption == "probabilities, as the last activation is sigmoid"
    with pytest.raises(ValueError, match="must return a probability.*Pass from_logits=True"):
        Classifier(brightness("logit").model, value_range=(0, 1), from_logits=False).correct(
            *bright_and_dark
        )
    with pytest.raises(ValueError, match="must return a logit.*Pass from_logits=False"):
        Classifier(Squashed(), value_range=(0, 1)).correct(*bright_and_dark)
    kept = Classifier(Squashed(), value_range=(0, 1), from_logits=False)
    assert kept.correct(*bright_and_dark).sum() == 12
    # Two logits that lie from 0 to 1 by chance are no proof.
    few = [part[-2:] for part in bright_and_dark]
    assert Classifier(brightness("logit").model, value_range=(0, 1)).correct(*few).all()


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_one_of_several_outputs_is_chosen_by_name(structure, bright_and_dark):
    several = {"dict": lambda x: {"scores": x, "twice": 2 * x}, "list": lambda x: [x, 2 * x]}
    name = {"dict": "twice", "list": "output_1"}[structure]
    model = brightness_model("two logits", several[structure])
    plain = brightness("two logits")
    with pytest.raises(ValueError, match=rf"`output` must name one .* {name!r} \(None, 2\)"):
        Classifier(model)
    with pytest.raises(ValueError, match="Received: output='other'"):
        Classifier(model, output="other")
    chosen = Classifier(model, value_range=(0, 1), output=name)
    images, labels = bright_and_dark
    np.testing.assert_allclose(chosen.logits(images), 2 * plain.logits(images), atol=1e-5)
    assert (chosen.classes, chosen.correct(images, labels).sum()) == (2, 24)
    first = "scores" if structure == "dict" else "output_0"
    assert chosen.fingerprint != Classifier(model, value_range=(0, 1), output=first).fingerprint


def test_the_only_output_of_a_dictionary_is_taken(bright_and_dark):
    only = Classifier(brightness_model("logit", lambda x: {"z": x}), value_range=(0, 1))
    np.testing.assert_array_equal(
        only.logits(bright_and_dark[0]), brightness("logit").logits(bright_and_dark[0])
    )


def test_a_wrapped_saved_model_is_a_classifier(bright_and_dark, tmp_path):
    """Its outputs are a dictionary, and its weights are none of Keras' own."""
    pytest.importorskip("art", reason="ART is not installed")
    plain = brightness("two logits")
    version = fd_keras.export_saved_model(plain.model, tmp_path / "served", verify=False)
    wrapped = Classifier(fd_keras.wrap_saved_model(version), value_range=(0, 1))
    protocol = Protocol("one", "", gray_box=(fgsm(4),))
    rows = [
        evaluate(classifier, bright_and_dark, ["none"], protocol, cache_dir=tmp_path).rows
        for classifier in (plain, wrapped)
    ]
    assert rows[0] == rows[1]
    plain.model.layers[-1].set_weights([np.array([[1.0, 0.0]]), np.zeros(2)])
    (version / "moved").mkdir()
    other = fd_keras.export_saved_model(plain.model, tmp_path / "other", verify=False)
    for part in ("saved_model.pb", "variables"):
        (version / part).rename(version / "moved" / part)
        (other / part).rename(version / part)
    replaced = Classifier(fd_keras.wrap_saved_model(version), value_range=(0, 1))
    assert replaced.fingerprint != wrapped.fingerprint


def test_models_that_do_not_classify_images_are_refused_at_once():
    images, other = keras.Input((8, 8, 1)), keras.Input((3,))
    flat = layers.Flatten()(images)
    with pytest.raises(ValueError, match=r"\(batch, classes\), or \(batch, 1\) for two classes"):
        Classifier(keras.Model(images, layers.Conv2D(3, 1)(images)))
    with pytest.raises(ValueError, match="`model` must have one image input; apply the layer to"):
        Classifier(keras.Model([images, other], layers.Concatenate()([flat, other])))


def test_art_sees_two_classes_in_a_single_logit(bright_and_dark):
    pytest.importorskip("art", reason="ART is not installed")
    images, labels = bright_and_dark
    models = [brightness_model(head, lambda x: {"z": x}) for head in ("logit", "two logits")]
    attackers = [art_classifier(model, value_range=(0, 1)) for model in models]
    assert [attacker.nb_classes for attacker in attackers] == [2, 2]
    one, two = (fgsm(4).generate(attacker, images, labels) for attacker in attackers)
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - images).max() > 0.01
