"""One-pass and two-pass pipelines, at the encoder and at the decoder."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fd_keras import Classifier, FeatureDistillation, QuantizationTable, certified_table, certify
from fd_keras.encoding import PIPELINES, encode, make_pipeline
from fd_keras.jpeg import rounded_table

TABLE = QuantizationTable(np.full((8, 8), 40.3), "ycbcr", 2)


@pytest.fixture
def image(photos):
    return photos[1, 100:164, 200:280]


def test_one_pass_is_the_layer(image):
    pipeline = make_pipeline("one-pass", TABLE)
    assert pipeline.encode(image) is image
    assert pipeline.layer().quantization_table == TABLE


def test_encoder_stores_what_the_layer_would_compute(image):
    pipeline = make_pipeline("one-pass-encoder", TABLE)
    assert pipeline.layer() is None
    expected = FeatureDistillation(rounded_table(TABLE))(image).numpy()
    assert (np.abs(pipeline.encode(image) - expected) > 2.5).mean() < 0.03


def test_second_pass_removes_what_came_after_the_first(image, rng):
    """One grey level of noise is far from half a step of 40 around a stored image."""
    noise = rng.choice([-1.0, 1.0], image.shape)
    layer = make_pipeline("two-pass", TABLE).layer()
    stored = make_pipeline("two-pass", TABLE).encode(image)
    untouched, attacked = (layer(x).numpy() for x in (stored, stored + noise))
    assert (np.abs(untouched - attacked) > 0.01).mean() < 0.02
    # In one pass, coefficients lie anywhere between the ties, and some of them jump.
    layer = make_pipeline("one-pass", rounded_table(TABLE)).layer()
    untouched, attacked = (layer(x).numpy() for x in (image.astype(float), image + noise))
    assert (np.abs(untouched - attacked) > 0.01).mean() > 0.2


def test_rgb_table(image):
    pipeline = make_pipeline("two-pass", "liu2019")
    assert pipeline.encode(image).shape == image.shape
    assert pipeline.encode(image[..., :1]).shape == image[..., :1].shape


def test_unknown_name():
    with pytest.raises(ValueError, match="name='three-pass'"):
        make_pipeline("three-pass")
    assert len(PIPELINES) == 3


@pytest.mark.parametrize("table", [np.ones((8, 8)), "jpeg:100", "jpeg:95", "zigzag15"])
def test_tables_without_a_radius_cost_no_contrast(image, table):
    """What could not be kept a distance from the borders of levels became flat."""
    np.testing.assert_array_equal(
        encode(image, table), FeatureDistillation(table, dtype="uint8")(image)
    )


@pytest.mark.parametrize(("color_space", "step"), [("ycbcr", 100), ("rgb", 100), ("rgb", 128)])
def test_two_lattices_of_brightness_meet(color_space, step):
    """Flat images that the encoder stored are nothing new to the layer."""
    table = QuantizationTable(np.full((8, 8), step), color_space)
    pipeline = make_pipeline("two-pass", table)
    layer = pipeline.layer()
    moved = []
    for grey in range(40, 216, 5):
        stored = pipeline.encode(np.full((8, 8, 3), grey, np.uint8))
        moved.append(np.abs(layer(stored).numpy() - stored).max())
    assert max(moved) <= 1


class TestGuidedByAClassifier:
    """Points of the lattice for which a classifier answers as for the image."""

    @pytest.fixture
    def classifier(self, images):
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((16, 24, 3)),
                layers.Conv2D(8, 3, activation="relu"),
                layers.Conv2D(8, 3, strides=2, activation="relu"),
                layers.Flatten(),
                layers.Dense(5),
            ]
        )
        classifier = Classifier(model, value_range=(-1, 1))
        # So that images differ in class, and a few grey levels matter.
        logits = classifier.logits(np.float32(images) / 255)
        *below, kernel, _ = model.get_weights()
        scale = 3 / logits.std(axis=0)
        model.set_weights([*below, kernel * scale, -logits.mean(axis=0) * scale])
        return classifier

    @pytest.fixture
    def images(self, photos):
        return np.stack([photos[1, y : y + 16, x : x + 24] for y in (0, 90, 170) for x in range(4)])

    @staticmethod
    def answers(classifier, images):
        return np.asarray(tf.nn.softmax(classifier.logits(np.float32(images) / 255)))

    @pytest.mark.parametrize("color_space", ["rgb", "ycbcr"])
    def test_answers_stay_and_so_does_the_radius(self, classifier, images, color_space):
        table = certified_table(4, color_space=color_space)
        layer = FeatureDistillation(table)
        wanted = self.answers(classifier, images)
        changes = []
        for guide in (None, classifier):
            encoded = encode(images, table, classifier=guide)
            assert encoded.dtype == np.uint8
            assert certify(encoded, table).holds(4).all()
            found = self.answers(classifier, layer(np.float32(encoded)))
            changes.append(np.abs(found - wanted).max(axis=1))
        assert changes[1].mean() < changes[0].mean() / 2
        assert np.abs(np.float32(encoded) - encode(images, table)).mean() < 8

    def test_where_the_answer_is_the_same_nothing_is_sought(self, images):
        constant = keras.Sequential(
            [keras.Input((16, 24, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
        )
        constant.set_weights([0 * weight for weight in constant.get_weights()])
        table = certified_table(2)
        guided = encode(images, table, classifier=constant)
        np.testing.assert_array_equal(guided, encode(images, table))

    def test_the_value_range_is_that_of_the_images(self, classifier, images):
        whole = encode(images, "certified:2", classifier=classifier)
        scaled = encode(
            images / np.float32(255), "certified:2", value_range=(0, 1), classifier=classifier
        )
        assert np.abs(scaled * 255 - whole).mean() < 1

    def test_a_model_takes_the_value_range_of_the_images(self, classifier, images):
        pixels, table = images / np.float32(127.5) - 1, certified_table(4)
        settings = {"value_range": (-1, 1), "classifier": classifier}
        expected = encode(pixels, table, **settings)
        assert (expected != encode(pixels, table, value_range=(-1, 1))).any()
        settings["classifier"] = classifier.model
        np.testing.assert_array_equal(encode(pixels, table, **settings), expected)

    def test_a_classifier_without_a_gradient_is_named(self, images):
        inputs = keras.Input((16, 24, 3))
        rounded = keras.layers.Lambda(lambda x: tf.stop_gradient(x[:, 3, 5]), output_shape=(3,))(
            inputs
        )
        with pytest.raises(ValueError, match="`classifier` must have a gradient"):
            encode(images, "certified:4", classifier=keras.Model(inputs, rounded))
