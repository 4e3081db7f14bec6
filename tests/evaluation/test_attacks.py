"""Attacks on small models whose answers can be worked out by hand."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fd_keras
from fd_keras.evaluation import (
    accuracy,
    art_classifier,
    autoattack,
    bim,
    carlini_wagner_l2,
    carlini_wagner_linf,
    deepfool,
    fgsm,
    half_step,
    pgd,
    predicted_classes,
    square,
)
from fd_keras.evaluation.classifiers import LogOdds
from fd_keras.evaluation.runners import Ascent, NearestBoundary, runner

pytest.importorskip("art", reason="ART is not installed")
pytest.importorskip("foolbox", reason="Foolbox is not installed")

REDUCTION = "none"

CLASSES = 2
VALUE_RANGES = [(0, 255), (0, 1), (-1, 1)]


@pytest.fixture
def weights():
    return np.random.default_rng(3).normal(size=(16 * 16 * 3, CLASSES)).astype(np.float32)


def linear_model(weights):
    """Logits linear in the pixels: the loss gradient's sign is known everywhere."""
    dense = keras.layers.Dense(CLASSES, use_bias=False)
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), dense])
    dense.set_weights([weights * 1e-4])
    return model


def linear_attack(weights, images, labels, change, value_range):
    """Towards the other class, by hand."""
    away = (weights[:, 1 - labels] - weights[:, labels]).T.reshape(images.shape)
    return np.clip(images + change * np.sign(away), *value_range)


def random_batch(value_range, count=5):
    rng = np.random.default_rng(5)
    images = rng.uniform(*value_range, (count, 16, 16, 3)).astype(np.float32)
    images[0] = value_range[0]
    images[1] = value_range[1]
    return images, rng.integers(0, CLASSES, count)


@pytest.mark.parametrize("value_range", VALUE_RANGES)
@pytest.mark.parametrize("protected", [False, True])
def test_both_attacks_follow_the_gradient(weights, value_range, protected):
    """The layer's straight-through gradient leaves a linear model's unchanged (BPDA)."""
    model = linear_model(weights)
    if protected:
        layer = fd_keras.FeatureDistillation("liu2019", value_range=value_range)
        model = fd_keras.protect(model, layer)
    images, labels = random_batch(value_range)
    unit = (value_range[1] - value_range[0]) / 255
    classifier = art_classifier(model, value_range=value_range)

    single = fgsm(8).generate(classifier, images, labels)
    repeated = bim(8, 3, 2).generate(classifier, images, labels)

    expected = linear_attack(weights, images, labels, 8 * unit, value_range)
    np.testing.assert_allclose(single, expected, atol=1e-4 * unit)
    expected = linear_attack(weights, images, labels, 6 * unit, value_range)
    np.testing.assert_allclose(repeated, expected, atol=1e-4 * unit)


def small_network():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("attack", [fgsm(16), bim(16, 4), pgd(16)])
def test_attack_on_a_protected_network_keeps_to_its_bounds_and_hurts(attack):
    model = small_network()
    protected = fd_keras.protect(model, fd_keras.FeatureDistillation("jpeg:50"))
    images = np.random.default_rng(4).integers(0, 256, (40, 16, 16, 1)).astype(np.float32)
    labels = predicted_classes(protected, images)
    classifier = art_classifier(protected)

    attacked = attack.generate(classifier, images, labels)

    assert attacked.shape == images.shape
    assert attacked.dtype == np.float32
    assert attacked.min() >= 0
    assert attacked.max() <= 255
    assert 15.9 < np.abs(attacked - images).max() <= 16 + 1e-3
    assert accuracy(protected, images, labels) == 1.0
    assert accuracy(protected, attacked, labels) < 0.5


def test_leaving_an_image_once_it_is_wrong_is_as_strong_as_all_steps():
    """BIM has no random start, so that what withstands must take the very steps of ART's."""
    model = small_network()
    images = np.random.default_rng(4).integers(0, 256, (40, 16, 16, 1)).astype(np.float32)
    labels = predicted_classes(model, images)
    classifier = art_classifier(model)
    attack = bim(4, 1, 8)

    whole = attack.generate(classifier, images, labels)
    short = attack.generate(classifier, images, labels, until_wrong=True)

    stands = predicted_classes(model, short) == labels
    assert 5 < stands.sum() < 35
    np.testing.assert_array_equal(stands, predicted_classes(model, whole) == labels)
    np.testing.assert_allclose(short[stands], whole[stands], atol=1e-3)
    sizes = [np.abs(attacked - images)[~stands].max(axis=(1, 2, 3)) for attacked in (short, whole)]
    assert sizes[0].mean() < 0.9 * sizes[1].mean()
    assert sizes[0].max() <= 4 + 1e-3


def test_random_starts_only_help_the_attacker():
    model = small_network()
    images = np.random.default_rng(4).integers(0, 256, (40, 16, 16, 1)).astype(np.float32)
    labels = predicted_classes(model, images)
    classifier = art_classifier(model)
    left = [
        accuracy(
            model,
            pgd(6, 2, step=3, restarts=restarts).generate(
                classifier, images, labels, until_wrong=True
            ),
            labels,
        )
        for restarts in (1, 5)
    ]
    assert 0 < left[1] <= left[0] < 1


def test_batches_and_their_size_make_no_difference(weights):
    images, labels = random_batch((0, 255), count=7)
    classifier = art_classifier(linear_model(weights))
    seen = []

    attack = fgsm(4)
    threes = dataclasses.replace(attack, batch_size=3)
    in_batches = threes.generate(classifier, images, labels, on_batch=seen.append)

    assert seen == [3, 3, 1]
    np.testing.assert_array_equal(in_batches, attack.generate(classifier, images, labels))


def test_images_are_left_as_they_are(weights):
    images, labels = random_batch((0, 255))
    original = images.copy()
    fgsm(4).generate(art_classifier(linear_model(weights)), images, labels)
    np.testing.assert_array_equal(images, original)


def test_uint8_images_can_be_attacked(weights):
    images, labels = random_batch((0, 255))
    images = images.astype(np.uint8)
    attacked = fgsm(4).generate(art_classifier(linear_model(weights)), images, labels)
    expected = linear_attack(weights, images.astype(np.float32), labels, 4, (0, 255))
    np.testing.assert_allclose(attacked, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "`labels` must be one integer class per image"),
        ([0.5, 1, 0, 1, 0], "`labels` must be one integer class per image"),
        (np.eye(5, 2, dtype=int), "`labels` must be one integer class per image"),
        ([0, 1, 2, 0, 0], "`labels` must lie from 0 to 1"),
        ([0, 1, -1, 0, 0], "`labels` must lie from 0 to 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(weights, labels, message):
    images, _ = random_batch((0, 255))
    with pytest.raises(ValueError, match=message):
        fgsm(4).generate(art_classifier(linear_model(weights)), images, np.asarray(labels))


@pytest.mark.parametrize("pixel", [-1.0, 256.0, np.nan])
def test_images_outside_the_value_range_are_refused(weights, pixel):
    images, labels = random_batch((0, 255))
    images[2, 3, 4, 0] = pixel
    with pytest.raises(ValueError, match="`images` must .* value_range, 0 to 255"):
        bim(4, 1).generate(art_classifier(linear_model(weights)), images, labels)


def test_images_of_another_scale_are_refused(weights):
    images, labels = random_batch((0, 255))
    with pytest.raises(ValueError, match="`images` must be scaled to value_range, 0 to 255"):
        bim(4, 1).generate(art_classifier(linear_model(weights)), images / 255, labels)


def test_accuracy_of_no_images_is_refused(weights):
    with pytest.raises(ValueError, match="at least one image"):
        accuracy(linear_model(weights), np.zeros((0, 16, 16, 3)), np.zeros(0, int))


def test_accuracy_counts():
    model = keras.Sequential([keras.Input((1, 3, 1)), keras.layers.Flatten()])
    images = np.array([[0, 1, 2], [5, 1, 2], [0, 7, 2], [0, 1, 2]], np.float32)
    images = images.reshape(4, 1, 3, 1)
    assert predicted_classes(model, images, batch_size=3).tolist() == [2, 0, 1, 2]
    assert accuracy(model, images, np.array([2, 0, 2, 2])) == 0.75


@pytest.mark.parametrize(
    "attack",
    [
        pgd(4, 5, restarts=2),
        deepfool(10),
        carlini_wagner_l2(iterations=20, search_steps=2),
        carlini_wagner_linf(iterations=20, initial_const=1.0),
        square(8, 30),
    ],
    ids=lambda attack: attack.family,
)
def test_every_family_runs_within_its_bound_and_repeats(weights, attack):
    """The same seed gives the same images, and NumPy's generator is left as it was."""
    model = linear_model(100 * weights)
    images, _ = random_batch((0, 1), count=4)
    labels = predicted_classes(model, images)
    classifier = art_classifier(model, value_range=(0, 1))
    np.random.seed(11)
    state = np.random.get_state()[1].copy()

    attacked = attack.generate(classifier, images, labels, seed=5)

    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.testing.assert_array_equal(attacked, attack.generate(classifier, images, labels, seed=5))
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    if attack.epsilon is not None:
        assert np.abs(attacked - images).max() <= attack.epsilon + 1e-6


def test_deepfool_finds_the_nearest_boundary(weights):
    """For a linear model, the distance to the plane between two classes is known."""
    model = linear_model(100 * weights)
    images = np.full((1, 16, 16, 3), 0.5, np.float32)
    labels = predicted_classes(model, images)
    attacked = deepfool(overshoot=0.0).generate(
        art_classifier(model, value_range=(0, 1)), images, labels
    )
    logits = model.predict(images, verbose=0)[0]
    difference = np.float64(weights[:, 0] - weights[:, 1]) * 0.01
    nearest = abs(float(logits[0] - logits[1])) / np.linalg.norm(difference)
    assert np.linalg.norm(attacked - images) == pytest.approx(nearest, rel=1e-3)


def test_deepfool_attacks_a_whole_batch_like_each_image_alone(weights):
    images, _ = random_batch((0, 1))
    model = linear_model(100 * weights)
    labels = predicted_classes(model, images)
    classifier = art_classifier(model, value_range=(0, 1))
    together = deepfool().generate(classifier, images, labels)
    alone = dataclasses.replace(deepfool(), batch_size=1).generate(classifier, images, labels)
    np.testing.assert_allclose(together, alone, atol=1e-5)


# Logits are pixels themselves: from .4 at the target and .6 elsewhere, they must meet at .5.
TARGETED = {
    "CW-L2": carlini_wagner_l2("least likely", 0.0, 60, search_steps=3, initial_const=0.1),
    "CW-Linf": carlini_wagner_linf("least likely", 0.0, 50, initial_const=1.0),
}


@pytest.mark.parametrize("value_range", VALUE_RANGES[::2])
@pytest.mark.parametrize("family", TARGETED)
def test_targeted_attacks_find_the_nearest_image_on_target(family, value_range):
    """Parameters mean the same in every value range; each image of a batch has its own target."""
    low, high = value_range
    unit = np.full((3, 1, 3, 1), 0.6)
    unit[range(3), 0, [2, 0, 1]] = 0.4
    images = np.float32(low + (high - low) * unit)
    scaled = keras.layers.Rescaling(1 / (high - low), -low / (high - low))
    model = keras.Sequential([keras.Input((1, 3, 1)), scaled, keras.layers.Flatten()])
    classifier = art_classifier(model, value_range=value_range)

    attacked = TARGETED[family].generate(classifier, images, np.array([0, 1, 2]))

    assert predicted_classes(model, attacked).tolist() == [2, 0, 1]
    change = (attacked - images) / (high - low)
    if family == "CW-Linf":
        # The bound falls by a tenth after each success, and the loss may be slightly above zero.
        assert np.all(
            (np.abs(change).max(axis=(1, 2, 3)) >= 0.0999) & (np.abs(change) < 0.112).all()
        )
    else:
        # The point of equal logits that is nearest: the target rises by 2/3 of .2.
        norms = np.linalg.norm(change.reshape(3, -1), axis=1)
        np.testing.assert_allclose(norms, 0.2 * np.sqrt(2 / 3), rtol=0.05)


@pytest.mark.parametrize(("target", "expected"), [("next", [1, 0]), ("least likely", [2, 0])])
def test_targets_follow_the_label_or_the_smallest_logit(target, expected):
    model = keras.Sequential([keras.Input((1, 3, 1)), keras.layers.Flatten()])
    images = np.float32([[0.6, 0.5, 0.4], [0.4, 0.5, 0.6]]).reshape(2, 1, 3, 1)
    attack = carlini_wagner_linf(target, 0.0, 80, initial_const=2.0)
    attacked = attack.generate(art_classifier(model, value_range=(0, 1)), images, np.array([0, 2]))
    assert predicted_classes(model, attacked).tolist() == expected


@pytest.mark.parametrize(
    "attack", [carlini_wagner_l2(iterations=10, search_steps=2), carlini_wagner_linf(iterations=5)]
)
def test_where_nothing_is_found_the_benign_image_is_returned(attack):
    """Foolbox returns a black image there, which a classifier would get wrong."""
    model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
    images = np.float32([[0.9, 0.1], [0.3, 0.2]]).reshape(2, 1, 2, 1)
    classifier = art_classifier(model, value_range=(0, 1))  # 5 of confidence are out of reach
    np.testing.assert_array_equal(attack.generate(classifier, images, np.array([0, 0])), images)


def test_there_must_be_a_target_of_that_name():
    with pytest.raises(ValueError, match="`target` must be one of .* Received: target='last'"):
        carlini_wagner_l2("last")


def test_loss_gradients_are_arts_own(weights):
    classifier = art_classifier(linear_model(weights), value_range=(0, 1))
    images, labels = random_batch((0, 1))
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    expected = super(type(classifier), classifier).loss_gradient(images, one_hot)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(classifier.loss_gradient(images, one_hot), expected, rtol=1e-5)


def test_attackers_do_not_wait_for_gradients_of_weights(weights):
    """What differentiates the model from outside gets the same gradient of the images."""
    model = linear_model(weights)
    classifier = art_classifier(model, value_range=(0, 1))
    images = tf.constant(random_batch((0, 1))[0], tf.float32)
    found = []
    for logits in (model, classifier.model):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(images)
            total = tf.reduce_sum(logits(images) ** 2)
        (kernel,) = tape.watched_variables()
        found.append((tape.gradient(total, images), tape.gradient(total, kernel)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] is not None
    assert found[1][1] is None


def test_class_gradients_of_each_image(weights):
    """One pass for all; ART's own would make one per class."""
    classifier = art_classifier(linear_model(weights), value_range=(0, 1))
    images, labels = random_batch((0, 1))
    gradients = classifier.class_gradient(images, labels)
    expected = (weights * 1e-4).T[labels].reshape(5, 1, 16, 16, 3)
    np.testing.assert_allclose(gradients, expected, rtol=1e-5)
    np.testing.assert_allclose(
        classifier.class_gradient(images, 1)[:, 0],
        np.broadcast_to((weights * 1e-4)[:, 1].reshape(16, 16, 3), images.shape),
        rtol=1e-5,
    )


@pytest.mark.parametrize("epsilon", [0, -0.1, 0.0078, 256, np.nan])
def test_epsilon_is_in_grey_levels(epsilon):
    with pytest.raises(ValueError, match="`epsilon` must be grey levels of 255"):
        fgsm(epsilon)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: bim(4, 1, 0), "iterations"),
        (lambda: pgd(4, 0), "iterations"),
        (lambda: pgd(4, 2.5), "iterations"),
        (lambda: pgd(4, -5), "iterations"),
        (lambda: pgd(4, restarts=0), "restarts"),
        (lambda: half_step(4, 0), "iterations"),
        (lambda: deepfool(0), "iterations"),
        (lambda: carlini_wagner_l2(iterations=0), "iterations"),
        (lambda: carlini_wagner_l2(search_steps=0), "search_steps"),
        (lambda: carlini_wagner_linf(iterations=0.5), "iterations"),
        (lambda: square(4, 0), "queries"),
    ],
)
def test_numbers_of_steps_are_whole_and_positive(make, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be a whole number at least 1"):
        make()


def test_a_step_stays_within_the_bound():
    with pytest.raises(ValueError, match="`step` must be at most `epsilon`"):
        bim(2, 4)


@pytest.mark.parametrize(
    ("attack", "step"),
    [(bim, 0.0078), (bim, -1), (bim, np.nan), (lambda e, s: pgd(e, step=s), 0.0078)],
)
def test_steps_are_in_grey_levels(attack, step):
    with pytest.raises(ValueError, match="`step` must be grey levels of 255"):
        attack(8, step)


def test_many_small_steps_are_fine():
    assert pgd(1, 100, step=0.02).parameters["eps_step"] == pytest.approx(0.02 / 255)


def test_names_tell_the_strength():
    assert [a.name for a in (fgsm(1.989), bim(2.04, 0.306), pgd(4, 40, restarts=3))] == [
        "FGSM .0078",
        "BIM .008",
        "PGD-40 x3 4/255",
    ]


def test_a_function_without_a_shape_needs_one():
    with pytest.raises(ValueError, match="`input_shape` must be the shape of one image"):
        art_classifier(lambda x: x)


@given(arrays(np.float32, (4, 5), elements=st.floats(-20, 20, width=32)))
def test_log_odds_are_what_cross_entropy_is_a_function_of(logits):
    labels = np.array([0, 4, 2, 2])
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=REDUCTION)(
        labels, logits
    )
    found = LogOdds(reduction=REDUCTION)(labels, logits)
    np.testing.assert_allclose(np.logaddexp(0, found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-2, 100])
def test_a_classifier_that_is_sure_still_shows_its_gradient(weights, scale):
    """Cross-entropy's gradient is rounded to 0 in float32 there, and looked like robustness."""
    model = linear_model(weights * scale / 1e-4)
    images, _ = random_batch((0, 1))
    labels = predicted_classes(model, images)
    attacked = fgsm(8).generate(art_classifier(model, value_range=(0, 1)), images, labels)
    expected = linear_attack(weights, images, labels, 8 / 255, (0, 1))
    np.testing.assert_allclose(attacked, expected, atol=1e-6)


class Part:
    """In place of ART's APGD: asks for the losses of images that it is told."""

    batch_size = 8

    def __init__(self, moved):
        self.moved, self.goals = list(moved), []

    def generate(self, x, y):
        self.goals.append(y.astype(int).tolist())
        self._estimator.compute_loss(self.moved[len(self.goals) - 1][: len(x)], y)
        self._estimator.compute_loss(x, y)  # where it ends


def test_autoattack_aims_at_the_likeliest_wrong_classes_in_turn():
    """Images that fell to one aim are not attacked again; the true class is no aim; what was
    misclassified on the way counts."""
    images = np.float32([[4, 1, 3, 2], [1, 2, 3, 4]]).reshape(2, 1, 4, 1)
    fallen = images.copy()
    fallen[0, 0, 2, 0] = 9.0  # only the first image falls
    part = Part([fallen, images[1:]])
    classifier = art_classifier(lambda x: x[:, 0, :, 0], input_shape=(1, 4, 1))
    attacked = Ascent(part, classifier, 2).generate(images, np.eye(4)[[0, 3]])
    assert part.goals == [[[1, 0, -1, 0], [0, 0, -1, 1]], [[0, -1, 0, 1]]]
    np.testing.assert_array_equal(attacked, [fallen[0], images[1]])


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_targeted_dlr_is_that_of_the_paper(classes):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5, classes)).astype(np.float32)
    labels, aims = np.arange(5) % classes, (np.arange(5) + 1) % classes
    goal = np.eye(classes)[labels] - np.eye(classes)[aims]
    model = art_classifier(lambda x: x[:, 0, :, 0], input_shape=(1, classes, 1))
    estimator = Ascent(Part([]), model, 1)._estimator
    estimator.start(goal)
    found = estimator.compute_loss(logits.reshape(5, 1, classes, 1), goal)
    highest = -np.sort(-logits, axis=1)
    rows = np.arange(5)
    expected = -(logits[rows, labels] - logits[rows, aims]) / (
        highest[:, 0] - highest[:, 2:4].mean(axis=1)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_apgd_asks_once_for_losses_and_gradients(weights):
    """ART's own asks three times at every step; what it does is the same."""
    from art.attacks.evasion import AutoProjectedGradientDescent

    images, _ = random_batch((0, 1), count=6)
    model = linear_model(weights)
    labels = predicted_classes(model, images)
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    asked = []

    def counted(x):
        tf.py_function(lambda rows: asked.append(int(rows)), [tf.shape(x)[0]], [])
        return model(x)

    def part():
        estimator = art_classifier(counted, input_shape=(16, 16, 3), value_range=(0, 1))
        arguments = {"eps": 2 / 255, "eps_step": 4 / 255, "max_iter": 20, "nb_random_init": 1}
        return estimator, AutoProjectedGradientDescent(estimator, verbose=False, **arguments)

    ends, counts = [], []
    for wrapped in (False, True):
        classifier, apgd = part()
        if wrapped:
            Ascent(apgd, classifier, None)._estimator.start(one_hot)
        seen = []
        compute = apgd.estimator.compute_loss

        def noted(x, y, reduction, seen=seen, compute=compute):
            seen.append(x.copy())
            return compute(x=x, y=y, reduction=reduction)

        apgd.estimator.compute_loss = noted
        asked.clear()
        np.random.seed(1)  # ART draws from the global generator
        apgd.generate(images, one_hot)
        ends.append(seen[-1])
        counts.append(sum(asked))
    np.testing.assert_allclose(*ends, atol=1e-6)
    assert counts[1] <= 22 * len(images) < 0.6 * counts[0]


def test_autoattack_has_the_parts_of_the_standard_version(weights):
    attack = autoattack(8)
    classifier = art_classifier(lambda x: x[:, 0, :, 0], input_shape=(1, 4, 1), value_range=(0, 1))
    generate = runner("AutoAttack", attack.parameters, classifier, batch_size=4)
    cross_entropy, targeted, deepfool_part, square_part = generate.__self__.attacks
    assert (cross_entropy.part.loss_type, cross_entropy.aims) == ("cross_entropy", None)
    assert (targeted.part.loss_type, targeted.aims) == ("difference_logits_ratio", 9)
    for part in (cross_entropy.part, targeted.part):
        assert (part.max_iter, part.nb_random_init) == (100, 1)
        assert part.eps_step == pytest.approx(2 * part.eps)
    assert (square_part.max_iter, square_part.nb_restarts) == (5000, 1)
    assert deepfool_part.name == "LinfDeepFoolAttack"


def test_an_autoattack_that_an_earlier_version_described_still_runs():
    parameters = {n: v for n, v in autoattack(8).parameters.items() if n != "boundary"}
    classifier = art_classifier(lambda x: x[:, 0, :, 0], input_shape=(1, 4, 1), value_range=(0, 1))
    parts = runner("AutoAttack", parameters, classifier, batch_size=4).__self__.attacks
    assert type(parts[2]).__name__ == "DeepFool"


@pytest.mark.parametrize("value_range", [(0, 1), (0, 255), (-1, 1)])
def test_autoattacks_deepfool_goes_to_the_nearest_boundary_in_linf(value_range):
    """Of a linear model, that is known: the lead of a class, divided by the L1 norm of the weights
    that take it away."""
    low, high = value_range
    weights = np.array([[2.0, -1.0], [0.5, 1.0]], np.float32)
    classifier = art_classifier(
        lambda x: tf.reshape((x - low) / (high - low), (-1, 2)) @ weights,
        input_shape=(1, 2, 1),
        value_range=value_range,
    )
    unit = np.float32([[0.6, 0.5], [0.3, 0.5]]).reshape(2, 1, 2, 1)
    logits = unit.reshape(2, 2) @ weights
    part = NearestBoundary("LinfDeepFoolAttack", classifier, 1)
    attacked = part.generate(low + (high - low) * unit, np.eye(2)[logits.argmax(axis=1)])
    moved = np.abs((attacked - low) / (high - low) - unit).max(axis=(1, 2, 3))
    distances = np.abs(np.diff(logits)[:, 0]) / np.abs(np.diff(weights)).sum()
    np.testing.assert_allclose(moved, 1.02 * distances, rtol=1e-3)  # Foolbox goes a little beyond
    assert (classifier.predict(attacked).argmax(axis=1) != logits.argmax(axis=1)).all()


def test_square_asks_once_for_what_arts_own_asks_for_three_times(weights):
    from art.attacks.evasion import SquareAttack

    images, _ = random_batch((0, 1), count=6)
    model = linear_model(100 * weights)
    labels = predicted_classes(model, images)
    asked = []

    def counted(x):
        tf.py_function(lambda rows: asked.append(int(rows)), [tf.shape(x)[0]], [])
        return model(x)

    def estimator():
        return art_classifier(counted, input_shape=(16, 16, 3), value_range=(0, 1))

    results, counts = [], []
    for make in (
        lambda: SquareAttack(estimator(), eps=2 / 255, max_iter=30, nb_restarts=1, verbose=False),
        lambda: (
            runner(
                "Square",
                {"eps": 2 / 255, "max_iter": 30, "nb_restarts": 1},
                estimator(),
                batch_size=128,
            ).__self__
        ),
    ):
        asked.clear()
        np.random.seed(1)  # ART draws from the global generator
        results.append(make().generate(images, labels))
        counts.append(sum(asked))
    np.testing.assert_array_equal(*results)
    assert counts[1] < 0.5 * counts[0]
