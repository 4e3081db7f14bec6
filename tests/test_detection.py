"""The detector: scores, thresholds, and the same outputs after saving and export."""

import io

import keras
import numpy as np
import pytest
import runtimes
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from fd_keras import (
    FeatureDistillation,
    TamperDetector,
    certify,
    encode,
    export_saved_model,
    export_tflite,
    preset_table,
    protect,
    wrap_saved_model,
)
from fd_keras.detection import DistillationDetector, PredictionShift, conformal_threshold
from fd_keras.export.runtimes import run_tflite
from fd_keras.jpeg import encode_jpeg

CLASSES = 3


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(1)


@pytest.fixture
def images(photos):
    # A column without chance ties in the rounding, see test_runtimes_agree.py.
    crops = [photos[:, 7:39, left : left + 32] for left in range(406, 566, 8)]
    return np.concatenate(crops).astype(np.float32)


@keras.saving.register_keras_serializable(package="fd_keras_tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(8, 3, strides=2)
        self.head = layers.Dense(CLASSES)

    def call(self, inputs):
        return self.head(tf.reduce_max(self.convolution(inputs / 255), (1, 2)))

    def get_config(self):
        return {"name": self.name}


def functional(shape=(32, 32, 3), activation=None, classes=CLASSES):
    inputs = keras.Input(shape, name="photo")
    x = layers.Conv2D(8, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    x = layers.BatchNormalization()(layers.GlobalMaxPooling2D()(x))
    return keras.Model(inputs, layers.Dense(classes, activation=activation)(x))


def called(model, images):
    model(images)
    return model


MODELS = {
    "functional": lambda images: functional(),
    "any size": lambda images: functional((None, None, 3)),
    "sequential": lambda images: called(
        keras.Sequential(
            [layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)]
        ),
        images,
    ),
    "subclassed": lambda images: called(Subclassed(), images),
}


def detector_of(model=None, table="liu2019", **kwargs):
    layer = FeatureDistillation(table)
    return DistillationDetector(model or functional(), layer, **kwargs)


def pixels(count, seed=0):
    """The images of a `toy` detector."""
    return np.random.default_rng(seed).uniform(0, 255, (count, 1, 2, 1)).astype(np.float32)


def toy():
    """A detector of two pixels that are the logits, so that scores are continuous."""
    model = keras.Sequential(
        [keras.Input((1, 2, 1)), layers.Rescaling(1 / 50), layers.Flatten(name="logits")]
    )
    return detector_of(model, np.full((8, 8), 40.0))


def expected_score(model, layer, images):
    raw, distilled = (softmax(np.float64(model(x)), axis=-1) for x in (images, layer(images)))
    return np.abs(raw - distilled).sum(axis=-1)


@pytest.mark.parametrize("name", MODELS)
def test_score_is_the_distance_between_two_softmaxes(name, images):
    model = MODELS[name](images)
    detector = detector_of(model)
    expected = expected_score(model, FeatureDistillation("liu2019"), images)
    assert expected.min() > 1e-4  # a detector without the layer shows
    outputs = detector(images)
    assert sorted(outputs) == ["flag", "logits", "score"]
    np.testing.assert_allclose(outputs["logits"], model(images), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["score"], expected, atol=1e-5)
    np.testing.assert_allclose(detector.score(images, batch_size=7), expected, atol=1e-5)
    assert outputs["flag"].dtype == tf.bool
    assert not outputs["flag"].numpy().any()


SEVERAL = ("liu2019", "jpeg:50", "soft8")


def test_the_score_of_several_layers_is_the_largest(images):
    model = functional()
    each = [FeatureDistillation(table) for table in SEVERAL]
    detector = DistillationDetector(model, each)
    expected = np.array([expected_score(model, layer, images) for layer in each])
    assert len(set(expected.argmax(axis=0))) > 1  # no layer alone has all of them
    np.testing.assert_allclose(detector.score(images), expected.max(axis=0), atol=1e-5)
    np.testing.assert_allclose(detector(images)["logits"], model(images), rtol=1e-4, atol=1e-5)


def test_a_detector_of_several_layers_is_saved_with_its_threshold(images, tmp_path):
    detector = DistillationDetector(functional(), list(SEVERAL), name="guard")
    detector.adapt(images, false_positive_rate=0.3)
    detector.save(tmp_path / "detector.keras")
    loaded = keras.models.load_model(tmp_path / "detector.keras")
    assert loaded.threshold == detector.threshold < 2
    np.testing.assert_array_equal(loaded.score(images), detector.score(images))
    assert 0 < loaded.detection_rate(images) < 1


def test_steps_in_a_list_are_one_table_and_not_several(images):
    model, steps = functional(), np.full((8, 8), 30.0)
    expected = DistillationDetector(model, steps).score(images)
    np.testing.assert_array_equal(
        DistillationDetector(model, steps.tolist()).score(images), expected
    )


def test_nan_of_one_layer_is_flagged():
    shift = PredictionShift(from_logits=False)
    one, nan = tf.constant([[1.0, 0.0]]), tf.constant([[np.nan, 0.0]])
    for predictions in ([one, nan, one], [one, one, nan]):
        outputs = shift(predictions)
        assert np.isnan(outputs["score"].numpy()).all()
        assert outputs["flag"].numpy().all()


def test_several_layers_take_the_same_pixels():
    each = [FeatureDistillation("liu2019", value_range=r) for r in ((0, 255), (0, 1))]
    with pytest.raises(ValueError, match="`layer` must be layers with one value_range"):
        DistillationDetector(functional(), each)


def test_score_has_the_gradient_that_an_adaptive_attacker_needs(images):
    model, layer = functional(), FeatureDistillation("liu2019")
    detector, inputs = detector_of(model), tf.constant(images)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        score = detector(inputs)["score"]
        raw, distilled = (tf.nn.softmax(model(x)) for x in (inputs, layer(inputs)))
        expected_score = tf.reduce_sum(tf.abs(raw - distilled), -1)
    gradient, expected = tape.gradient(score, inputs), tape.gradient(expected_score, inputs)
    largest = np.abs(expected).max()
    assert largest > 0
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * largest)


def test_a_soft_layer_beside_another_detects_and_is_exported(images, tmp_path):
    model, layer = functional(), FeatureDistillation("jpeg:50", cycle_spins=2, quantizer="soft")
    rounding = FeatureDistillation("liu2019")
    detector = DistillationDetector(model, [layer, rounding])
    expected = np.maximum(*(expected_score(model, one, images) for one in (layer, rounding)))
    np.testing.assert_allclose(detector.score(images), expected, atol=1e-5)
    path = export_tflite(detector, tmp_path / "detector.tflite", verify=False)
    assert_same_answers(runtimes.run_tflite(path, images), detector(images))


def test_a_model_that_was_never_called_needs_a_shape(images):
    with pytest.raises(ValueError, match="`input_shape` is needed"):
        detector_of(Subclassed())
    model = Subclassed()
    scores = detector_of(model, input_shape=(None, None, 3)).score(images)
    expected = expected_score(model, FeatureDistillation("liu2019"), images)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_probabilities_are_compared_as_they_are(images):
    model = functional(activation="softmax")
    layer = FeatureDistillation("liu2019")
    detector = DistillationDetector(model, layer, from_logits=False)
    expected = np.abs(model(images).numpy() - model(layer(images)).numpy()).sum(axis=-1)
    assert sorted(detector(images)) == ["flag", "probabilities", "score"]
    np.testing.assert_allclose(detector.score(images), expected, atol=1e-5)


def test_images_come_in_any_form(images):
    detector = detector_of(functional((None, None, 3)))
    expected = detector.score(images)
    bytes_ = images.astype(np.uint8)
    dataset = tf.data.Dataset.from_tensor_slices((bytes_, np.zeros(len(bytes_)))).batch(7)
    for data in (bytes_, dataset, list(images), (images, np.zeros(len(images)))):
        np.testing.assert_allclose(detector.score(data), expected, atol=1e-5)
    sizes = [images[0], images[1, :20], images[2, :, :9]]
    assert detector.score(sizes).shape == (3,)


def test_scores_are_in_float32_under_a_half_precision_policy(images):
    """Softmax in float16 rounds the score of a benign image to 0 or to 5e-4."""
    shift = PredictionShift(dtype="mixed_float16")
    raw, distilled = tf.constant([[1.0, 2.0]]), tf.constant([[1.0, 2.0001]])
    score = shift([raw, distilled])["score"]
    assert score.dtype == tf.float32
    expected = np.abs(softmax([1.0, 2.0]) - softmax([1.0, 2.0001])).sum()
    np.testing.assert_allclose(score, [expected], rtol=1e-2)


def test_a_score_that_is_no_number_is_flagged(images):
    detector = toy()
    detector.adapt(pixels(50))
    broken = np.array([np.nan, 3.0], np.float32).reshape(1, 1, 2, 1)
    assert np.isnan(detector(broken)["score"]).all()
    assert detector(broken)["flag"].numpy().all()


@given(st.lists(st.floats(0, 2, width=32), min_size=1, max_size=60), st.integers(1, 99))
def test_threshold_is_the_smallest_that_a_fresh_score_seldom_exceeds(scores, percent):
    """Of n + 1 exchangeable scores, the share above must not pass the rate."""
    most = (len(scores) + 1) * percent  # in hundredths, so that all is exact
    if most < 100:
        with pytest.raises(ValueError, match="`data` must hold at least"):
            conformal_threshold(np.array(scores), percent / 100)
        return
    threshold = conformal_threshold(np.array(scores), percent / 100)
    assert threshold in scores
    assert 100 * (sum(s > threshold for s in scores) + 1) <= most
    smaller = [s for s in scores if s < threshold]
    if smaller:
        assert 100 * (sum(s > max(smaller) for s in scores) + 1) > most


@pytest.mark.parametrize("rate", [0.29, 0.07, 0.57])
def test_threshold_takes_the_rate_as_the_decimal_it_is(rate):
    """0.29 * 100 is 28.999999999999996."""
    assert conformal_threshold(np.arange(1, 100), rate) == 100 - round(100 * rate)


@pytest.mark.parametrize(("count", "rate", "expected"), [(49, 0.1, 0.1), (45, 0.1, 4 / 46)])
def test_false_positive_rate_on_fresh_images(count, rate, expected):
    """Exact in expectation for continuous scores; one rank off would miss by .02."""
    detector, rng = toy(), np.random.default_rng(8)
    pool = pixels(20_000, seed=4)
    scores = detector.score(pool, batch_size=5000)
    rates = []
    for _ in range(300):
        detector.adapt(pool[rng.choice(len(pool), count)], rate, batch_size=count)
        rates.append(np.mean(scores > detector.threshold))
    error = np.std(rates) / np.sqrt(len(rates))
    assert 1e-3 < error < 3e-3
    assert abs(np.mean(rates) - expected) < 4 * error


def test_flag_and_detection_rate_follow_the_threshold():
    detector, benign, fresh = toy(), pixels(99), pixels(300, seed=1)
    with pytest.raises(ValueError, match="`adapt` must have set the threshold first"):
        detector.detection_rate(fresh)
    detector.adapt(benign, false_positive_rate=0.2)
    assert detector.threshold == np.sort(detector.score(benign, batch_size=99))[79]
    flags = detector.score(fresh) > detector.threshold
    assert 0 < flags.mean() < 1
    np.testing.assert_array_equal(detector.predict(fresh, verbose=0)["flag"], flags)
    assert detector.detection_rate(fresh) == flags.mean()


def test_steps_limits_what_is_read():
    detector, data = toy(), pixels(60)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(10)  # of arrays, it is a sample
    detector.adapt(batches, 0.1, steps=3)
    few = toy()
    few.adapt(data[:30], 0.1, batch_size=10)
    assert detector.threshold == few.threshold


def test_roc_is_that_of_the_scores(rng):
    detector, benign = toy(), pixels(200)
    # Nearly equal logits, which a small change of the pixels moves most.
    attacked = np.clip(benign[:, :, :1] + rng.normal(0, 15, benign.shape), 0, 255)
    false_positive, true_positive, auc = detector.roc(benign, attacked)
    scores = np.concatenate([detector.score(benign), detector.score(attacked)])
    expected = roc_auc_score(np.repeat([0, 1], 200), scores)
    assert 0.6 < expected < 0.95
    assert auc == pytest.approx(expected)
    assert (false_positive[0], true_positive[0]) == (0, 0)
    assert (false_positive[-1], true_positive[-1]) == (1, 1)
    assert (np.diff(false_positive) >= 0).all()
    swapped = detector.roc(attacked, benign)
    assert swapped.auc == pytest.approx(1 - expected)


@pytest.fixture(params=["functional", "sequential", "subclassed", "probabilities"])
def adapted(request, images):
    if request.param == "probabilities":
        detector = detector_of(functional(activation="softmax"), from_logits=False)
    else:
        detector = detector_of(MODELS[request.param](images), name="guard")
    detector.adapt(images[: len(images) // 2], false_positive_rate=0.3)
    flags = detector.predict(images, verbose=0)["flag"]
    assert 0 < flags.mean() < 1
    margin = np.abs(detector.score(images) - detector.threshold)
    # A calibration image is at the threshold itself, where runtimes may differ.
    return detector, images[margin > 1e-4]


def assert_same_answers(actual, expected):
    assert set(actual) == set(expected)
    for name in set(expected) - {"flag"}:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(actual["flag"], expected["flag"])


def test_keras_file_round_trip(adapted, images, tmp_path):
    detector, _ = adapted
    detector.save(tmp_path / "detector.keras")
    loaded = keras.models.load_model(tmp_path / "detector.keras")
    assert type(loaded) is DistillationDetector
    assert loaded.name == detector.name
    assert loaded.threshold == detector.threshold < 2
    actual, expected = loaded(images), detector(images)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])
    np.testing.assert_array_equal(loaded.score(images), detector.score(images))
    loaded.adapt(images[:10], 0.5)
    assert loaded.threshold == np.sort(detector.score(images[:10]))[5] != detector.threshold


def test_weights_round_trip(images, tmp_path):
    keras.utils.set_random_seed(1)
    detector = detector_of()
    detector.adapt(images)
    detector.save_weights(tmp_path / "detector.weights.h5")
    keras.utils.set_random_seed(2)
    other = detector_of()
    assert not np.allclose(other.score(images), detector.score(images))
    other.load_weights(tmp_path / "detector.weights.h5")
    assert other.threshold == detector.threshold
    np.testing.assert_array_equal(other.score(images), detector.score(images))


def test_saved_model_gives_the_same_answers(adapted, tmp_path):
    detector, images = adapted
    path = export_saved_model(detector, tmp_path, verify=False)
    loaded = tf.saved_model.load(str(path))
    served = loaded.signatures["serving_default"](images=tf.constant(images))
    assert_same_answers(served, detector(images))


def test_saved_model_needs_no_fd_keras(images, tmp_path):
    detector = detector_of()
    detector.adapt(images[:20], 0.3)
    path = export_saved_model(detector, tmp_path, verify=False)
    fresh = images[20:]
    assert_same_answers(runtimes.run_without_fd_keras(path, fresh, tmp_path), detector(fresh))


def test_tflite_gives_the_same_answers(adapted, tmp_path):
    detector, images = adapted
    path = export_tflite(detector, tmp_path / "detector.tflite", verify=False)
    assert not runtimes.tflite_operations(path) & {"CUSTOM", "DELEGATE"}
    assert_same_answers(runtimes.run_tflite(path, images), detector(images))


def test_exports_hold_the_weights_of_the_classifier_once(tmp_path):
    """The classifier runs twice; its file must not double."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Dense(60)(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Dense(CLASSES)(x))
    alone = export_tflite(
        protect(model, FeatureDistillation("liu2019")), tmp_path / "a.tflite", verify=False
    )
    both = export_tflite(detector_of(model), tmp_path / "b.tflite", verify=False)
    assert both.stat().st_size < 1.1 * alone.stat().st_size


def test_classifier_and_table_are_shared(images):
    model, layer = functional(), FeatureDistillation("liu2019")
    detector = DistillationDetector(model, layer)
    before = detector.score(images)
    layer.set_quantization_table(np.full((8, 8), 1e-3))
    assert detector.score(images).max() < before.min()
    model.set_weights([3 * weight for weight in model.get_weights()])
    np.testing.assert_allclose(detector(images)["logits"], model(images), rtol=1e-4, atol=1e-4)


def test_the_threshold_is_not_trained(images):
    detector = detector_of()
    detector.adapt(images)
    shared = {id(variable) for variable in detector.classifier.trainable_variables}
    assert {id(variable) for variable in detector.trainable_variables} == shared


def test_gradient_of_the_score_reaches_the_image():
    """Who evaluates an attacker that knows the detector needs it."""
    detector, images = toy(), tf.constant(pixels(4))
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = detector(images)["score"]
    assert np.abs(tape.gradient(score, images)).max() > 0


def test_logits_and_probabilities_are_not_confused(images):
    probabilities = detector_of(functional(activation="softmax"))
    logits = detector_of(functional(), from_logits=False)
    calls = (
        lambda d: d.adapt(images),
        lambda d: d.score(images),
        lambda d: d.roc(images, images),
    )
    for call in calls:
        with pytest.raises(ValueError, match="`model` must return logits.*from_logits=False"):
            call(probabilities)
        with pytest.raises(ValueError, match="`model` must return probabilities.*from_logits=True"):
            call(logits)
    assert probabilities.threshold == np.inf


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.1, 9), (0.3, 3), (0.01, 99)])
def test_too_few_benign_images_are_refused(rate, needed):
    detector = toy()
    with pytest.raises(ValueError, match=f"at least {needed} benign .* Received: {needed - 1} im"):
        detector.adapt(pixels(needed - 1), rate)
    assert detector.threshold == np.inf
    detector.adapt(pixels(needed), rate)
    assert detector.threshold == detector.score(pixels(needed)).max()


def test_images_of_another_scale_are_refused():
    with pytest.raises(ValueError, match="`data` must be scaled to value_range, 0 to 255"):
        toy().adapt(pixels(50) / 255)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="scores that are numbers.* Received: 1 scores"):
        conformal_threshold(np.array([0.1, np.nan, *np.ones(20)]), 0.1)


def test_a_table_is_enough_where_the_model_shows_its_range(images):
    detector = DistillationDetector(functional(), "jpeg:50")
    assert isinstance(detector.distillation, FeatureDistillation)
    with pytest.raises(ValueError, match="`layer` must say which pixels `model` takes"):
        DistillationDetector(called(Subclassed(), images), "jpeg:50")


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5, np.nan, "0.05", True, None, [0.1, 0.2], 0.1j])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(ValueError, match="`false_positive_rate` must lie between 0 and 1"):
        toy().adapt(pixels(50), rate)


@pytest.mark.parametrize("pixel", [-1, 256, np.nan])
def test_images_outside_the_value_range_are_refused(pixel):
    data = pixels(50)
    data[3, 0, 1] = pixel
    with pytest.raises(ValueError, match="`data` must be finite and lie within value_range, 0 to"):
        toy().adapt(data)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="`data` holds no image"):
        toy().adapt(pixels(0))


def test_a_broken_model_is_refused():
    detector = toy()
    detector.distillation.set_quantization_table(np.full((8, 8), 1e38))
    model = keras.Sequential(
        [keras.Input((1, 2, 1)), layers.Rescaling(1e38), layers.Rescaling(10), layers.Flatten()]
    )
    with pytest.raises(ValueError, match="`model` must return finite outputs"):
        detector_of(model).adapt(pixels(50))


@pytest.mark.parametrize(
    "model",
    [
        lambda: keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(3, 1)]),
        lambda: keras.Model(x := keras.Input((8, 8, 3)), {"a": x}),
    ],
    ids=["images", "dict of images"],
)
def test_models_that_do_not_classify_are_refused(model):
    with pytest.raises(ValueError, match=r"`model` must return .*\(batch, 1\) for two classes"):
        detector_of(model())


def test_the_output_that_classifies_is_chosen_by_name(images, tmp_path):
    inputs = keras.Input((32, 32, 3))
    features = layers.GlobalAveragePooling2D()(inputs)
    scores = layers.Dense(CLASSES)(features)
    single = detector_of(keras.Model(inputs, {"scores": scores}))
    expected = detector_of(keras.Model(inputs, scores)).score(images)
    np.testing.assert_allclose(single.score(images), expected, atol=1e-6)
    model = keras.Model(inputs, {"scores": scores, "features": features})
    with pytest.raises(ValueError, match=r"`output` must name one .*'features' \(None, 3\)"):
        detector_of(model)
    named = detector_of(model, output="scores")
    np.testing.assert_allclose(named.score(images), expected, atol=1e-6)
    named.save(tmp_path / "detector.keras")
    loaded = keras.models.load_model(tmp_path / "detector.keras")
    np.testing.assert_array_equal(loaded.score(images), named.score(images))


def test_a_wrapped_saved_model_is_watched(images, tmp_path):
    model = functional()
    version = export_saved_model(model, tmp_path, verify=False)
    np.testing.assert_allclose(
        detector_of(wrap_saved_model(version)).score(images),
        detector_of(model).score(images), atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_a_single_output_counts_for_two_classes(activation, images):
    """The score is that of the two columns that a softmax over the same model would have."""
    model = functional(classes=1, activation=activation)
    detector = detector_of(model, from_logits=activation is None)
    assert sorted(detector(images))[1:] == ["probabilities" if activation else "logits", "score"]
    p, q = (
        np.asarray(tf.sigmoid(model(x)) if activation is None else model(x))[:, 0]
        for x in (images, FeatureDistillation("liu2019")(images))
    )
    np.testing.assert_allclose(detector.score(images), 2 * np.abs(p - q), atol=1e-5)
    assert detector.score(images).max() > 0
    with pytest.raises(ValueError, match="`model` must return a .* Pass from_logits="):
        detector_of(model, from_logits=activation is not None).score(images)


def test_protect_checks_what_goes_in():
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    model = keras.Model(inputs, layers.Flatten()(layers.Rescaling(1 / 255)(inputs)))
    with pytest.raises(ValueError, match="`layer` must return the integers"):
        detector_of(model)
    detector = DistillationDetector(model, FeatureDistillation("liu2019", dtype="uint8"))
    data = np.random.default_rng(2).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    detector.adapt(data)
    assert 0 < detector.threshold < 2


class TestTampering:
    """Images that were changed since they were encoded."""

    TABLE = "certified:1:ycbcr"

    @pytest.fixture
    def stored(self, photos):
        crops = [
            photo[y : y + 32, x : x + 40]
            for photo in photos
            for y in (0, 96, 200, 333)
            for x in (8, 111, 222, 387, 455)
        ]
        return encode(np.stack(crops), self.TABLE)

    def test_the_score_is_the_size_of_the_change(self, stored, rng):
        detector = TamperDetector(self.TABLE)
        np.testing.assert_array_equal(detector.score(stored), 0)
        size = 0.9 * certify(stored, self.TABLE).linf_radius
        change = size[:, None, None, None] * rng.uniform(-1, 1, stored.shape)
        # What would leave 0..255 is no image.
        changed = np.clip(stored + change, 0, 255)
        expected = np.sqrt(np.mean((changed - stored) ** 2, axis=(1, 2, 3)))
        near = np.abs(changed - stored).max((1, 2, 3)) < 0.45
        np.testing.assert_allclose(detector.score(changed)[near], expected[near], rtol=1e-3)
        np.testing.assert_allclose(detector.score(changed), expected, rtol=0.3)

    def test_untouched_images_are_not_flagged_and_the_least_change_is(self, stored):
        detector = TamperDetector(self.TABLE)
        with pytest.raises(ValueError, match="`adapt` must have set"):
            detector.detection_rate(stored)
        detector.adapt(stored[::2], false_positive_rate=0.05)
        assert detector.detection_rate(stored[1::2]) == 0
        touched = stored.copy()
        touched[:, 5, 7, 1] ^= 1
        assert detector.detection_rate(touched) == 1
        assert detector.roc(stored, touched).auc == 1

    def test_decoded_files_set_a_threshold_of_their_own(self, stored, rng):
        """JPEG's decoder rounds again: small changes drown there, one level everywhere does not."""
        decoded = np.stack(
            [np.asarray(Image.open(io.BytesIO(encode_jpeg(x, self.TABLE)))) for x in stored]
        )
        detector = TamperDetector(self.TABLE)
        detector.adapt(decoded, false_positive_rate=0.1)
        assert 0.2 < detector.threshold < 1
        assert detector.detection_rate(decoded) <= 0.1
        noise = rng.choice([-1, 1], decoded.shape)
        assert detector.roc(decoded, np.clip(decoded + noise, 0, 255)).auc > 0.99

    def test_value_range_layout_and_edges(self, photos):
        """Whole levels from -1 to 1 in float32 are no change, at incomplete blocks either."""
        stored = encode(photos[:, 3:40, 5:56] / 127.5 - 1, "certified:2", value_range=(-1, 1))
        detector = TamperDetector("certified:2", value_range=(-1, 1), input_shape=(37, 51, 3))
        np.testing.assert_array_equal(detector.score(stored), 0)

    def test_saved_with_its_threshold(self, stored, tmp_path):
        detector = TamperDetector(self.TABLE, input_shape=(32, 40, 3), input_dtype="uint8")
        detector.adapt(stored, false_positive_rate=0.2)
        detector.save(tmp_path / "tamper.keras")
        loaded = keras.models.load_model(tmp_path / "tamper.keras")
        assert loaded.threshold == detector.threshold
        assert loaded.table == detector.table
        touched = stored ^ 1
        for name, output in loaded(touched).items():
            np.testing.assert_array_equal(output, detector(touched)[name])

    def test_no_number_is_flagged(self, stored):
        detector = TamperDetector(self.TABLE)
        detector.adapt(stored, false_positive_rate=0.2)
        images = np.float32(stored[:2])
        images[0, 0, 0, 0] = np.nan
        assert np.asarray(detector(images)["flag"]).tolist() == [True, False]

    @pytest.mark.parametrize(
        ("table", "options", "problem"),
        [
            (preset_table("liu2019").with_settings(cycle_spins=2), {}, "one block grid"),
            ("soft8", {}, "`table` must round"),
            (TABLE, {"input_shape": (8, 8, 4)}, "1 or 3 channels"),
            (TABLE, {"value_range": (1, 1)}, "`value_range`"),
        ],
    )
    def test_what_does_not_fit(self, table, options, problem):
        with pytest.raises(ValueError, match=problem):
            TamperDetector(table, **options)

    def test_served_beside_a_classifier(self, stored, tmp_path):
        """The signature `detect` of a SavedModel, and a TFLite file of its own."""
        inputs = keras.Input((32, 40, 3))
        model = protect(
            keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs))),
            FeatureDistillation(self.TABLE),
        )
        detector = TamperDetector(self.TABLE)
        detector.adapt(stored, false_positive_rate=0.2)
        served = export_saved_model(model, tmp_path / "served", detector=detector, verify=False)
        images = np.float32(np.concatenate([stored[:2], stored[:2] ^ 1]))
        loaded = tf.saved_model.load(str(served))
        found = loaded.signatures["detect"](images=tf.constant(images))
        alone = export_tflite(detector, tmp_path / "tamper.tflite", verify=False)
        in_litert = run_tflite(alone.read_bytes(), images).outputs
        for outputs in (found, in_litert):
            np.testing.assert_allclose(outputs["score"], detector(images)["score"], rtol=1e-3)
            assert np.asarray(outputs["flag"]).ravel().tolist() == [0, 0, 1, 1]
