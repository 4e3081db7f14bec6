"""`evaluate` on a small network that classifies scikit-learn's digits."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import fd_keras
from fd_keras.classifier import Classifier
from fd_keras.demo import build_classifier, load_digits, train_classifier
from fd_keras.evaluation import (
    Attack,
    Protocol,
    accuracy,
    art_classifier,
    bim,
    evaluate,
    fgsm,
    pgd,
    predicted_classes,
    protocol_named,
    square,
)
from fd_keras.evaluation.classifiers import attackable
from fd_keras.evaluation.defences import Defence, defence, jpeg_compression
from fd_keras.evaluation.workbench import Workbench

pytest.importorskip("art", reason="ART is not installed")

SMALL = Protocol(
    "small",
    "Two strengths, gray-box and adaptive.",
    gray_box=(fgsm(8), bim(8, 2)),
    adaptive=(pgd(8, 10),),
)


@pytest.fixture(scope="module")
def digits():
    keras.utils.set_random_seed(1)
    return load_digits(1)


@pytest.fixture(scope="module")
def model(digits):
    """The demo's network after a short training."""
    classifier = build_classifier()
    train_classifier(classifier, digits.train, epochs=4)
    return classifier


@pytest.fixture(scope="module")
def data(digits):
    return digits.test.images[:60], digits.test.labels[:60]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def report(model, data, cache):
    return evaluate(model, data, ["liu2019", "bits:3"], SMALL, cache_dir=cache)


def figure(report, defence_name, threat_model, attack="none"):
    (row,) = (
        row
        for row in report.rows
        if (row["defence"], row["threat_model"], row["attack"])
        == (defence_name, threat_model, attack)
    )
    return row


def test_figures_are_those_of_the_protected_model(report, model, data):
    """Attacks and predictions by hand, in the model's own range."""
    images, labels = data
    right = predicted_classes(model, images) == labels
    images, labels = images[right], labels[right]
    protected = fd_keras.protect(model, fd_keras.FeatureDistillation("liu2019"))
    single = fgsm(8).generate(art_classifier(model), images, labels)

    assert figure(report, "none", "benign")["accuracy"] == 1.0
    assert figure(report, "none", "benign")["count"] == len(images)
    for name, classifier in (("none", model), ("liu2019", protected)):
        row = figure(report, name, "gray-box", "FGSM 8/255")
        assert row["correct"] == round(accuracy(classifier, single, labels) * len(labels))
        effect = row["effect"]  # of the attack, so the same whatever the defence
        fooled = predicted_classes(model, single) != labels
        assert effect["success"] == pytest.approx(fooled.mean())
        change = np.abs(single - images)[fooled].reshape(fooled.sum(), -1) / 255
        assert effect["mean_l2"] == pytest.approx(np.linalg.norm(change, axis=1).mean(), rel=1e-4)
        assert effect["mean_linf"] == pytest.approx(change.max(axis=1).mean(), rel=1e-4)
    benign = figure(report, "liu2019", "benign")
    assert benign["correct"] == round(accuracy(protected, images, labels) * len(labels))


def test_adaptive_attacks_go_through_the_defence(report, model, data):
    """They are made on the protected model: on the bare one they would be weaker."""
    images, labels = data
    right = predicted_classes(model, images) == labels
    images, labels = images[right], labels[right]
    layer = fd_keras.FeatureDistillation("liu2019", gradient="smooth")
    protected = fd_keras.protect(model, layer)
    attacked = pgd(8, 10).generate(art_classifier(protected), images, labels)
    by_hand = accuracy(protected, attacked, labels)
    found = figure(report, "liu2019", "adaptive", "PGD-10 8/255")["accuracy"]
    assert abs(found - by_hand) <= 0.08  # another random start, and a second gradient
    assert found < figure(report, "liu2019", "gray-box", "FGSM 8/255")["accuracy"]


@pytest.mark.parametrize("spec", ["liu2019", "jpeg:30", "slq", "median:3"])
def test_adaptive_attacks_follow_what_rounding_is_about_to_do(model, data, cache, spec):
    """Made with the identity's gradient alone they are weaker."""
    images, labels = data
    right = predicted_classes(model, images) == labels
    images, labels = np.float32(images[right] / 255), labels[right]
    classifier = Classifier(model)
    attack, protection = pgd(10, 5), defence(spec)
    rough = attackable(classifier, images.shape[1:], protection, gradient="straight-through")
    attacked = attack.generate(rough, images, labels)
    kept = classifier.logits(protection(255 * attacked) / 255).argmax(-1) == labels
    protocol = Protocol("p", "", adaptive=(attack,), eot_draws=1)
    report = evaluate(model, data, [protection], protocol, cache_dir=cache)
    found = figure(report, protection.name, "adaptive", attack.name)
    assert found["correct"] < kept.sum()


def test_report_says_how_to_get_it_again(report):
    settings = report.settings
    assert settings["protocol"] == "small"
    assert settings["seed"] == 1
    assert settings["versions"]["tensorflow"] == tf.__version__
    assert [attack["name"] for attack in settings["attacks"]["adaptive"]] == ["PGD-10 8/255"]
    assert {entry["name"] for entry in report.defences} == {"none", "liu2019", "3 bits"}
    assert all(entry["ms_per_image"] > 0 for entry in report.defences)
    assert "the classifier alone gets" in settings["selection"]
    assert f"{settings['count']} were asked for" not in settings["selection"]
    assert settings["outputs"] == "logits, as the last activation is linear"


def test_pictures_and_detection_are_gray_box(report):
    assert {entry["threat_model"] for entry in report.detection} == {"gray-box"}
    assert {entry["defence"] for entry in report.detection} == {"liu2019"}
    for picture in report.pictures:
        assert picture["true"] != picture["predicted_attacked"]
        change = picture["attacked"].astype(int) - picture["benign"]
        assert 0 < np.abs(change).max() <= 8


def test_pictures_are_of_images_that_were_evaluated(model, data, cache, report, monkeypatch):
    """Each was attacked anew, with those before it alone, and came out another one."""
    monkeypatch.setattr(Attack, "generate", None)
    again = evaluate(model, data, ["liu2019", "bits:3"], SMALL, cache_dir=cache)
    for one, other in zip(again.pictures, report.pictures, strict=True):
        np.testing.assert_array_equal(one["attacked"], other["attacked"])


def test_tables_detect_together_what_a_detector_of_both_does(model, data, cache):
    images, labels = data
    right = predicted_classes(model, images) == labels
    images, labels = images[right], labels[right]
    one = Protocol("one", "", gray_box=(fgsm(8),))
    report = evaluate(
        model, (images, labels), ["liu2019", "soft8"], one, cache_dir=cache, false_positive_rate=0.2
    )
    attacked = fgsm(8).generate(art_classifier(model), images, labels)
    fooled = attacked[predicted_classes(model, attacked) != labels]
    detector = fd_keras.DistillationDetector(model, ["liu2019", "soft8"])
    found = {entry["defence"]: entry["auc"] for entry in report.detection}
    assert list(found) == ["liu2019", "soft8", "largest score of 2 tables"]
    expected = detector.roc(images[1::2], fooled).auc
    assert found["largest score of 2 tables"] == pytest.approx(expected, abs=0.01)


def test_nothing_is_computed_twice(report, model, data, cache, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("attacked again")

    monkeypatch.setattr(Attack, "generate", refuse)
    again = evaluate(model, data, ["liu2019", "bits:3"], SMALL, cache_dir=cache)
    assert again.rows == report.rows
    assert again.checks == report.checks
    assert again.detection == report.detection


def test_other_seeds_and_images_are_not_taken_from_the_cache(model, data, cache, monkeypatch):
    """The hash must cover whatever decides an attack."""
    generated = []
    original = Attack.generate

    def count(self, classifier, images, *rest, **options):
        generated.append(len(images))
        return original(self, classifier, images, *rest, **options)

    monkeypatch.setattr(Attack, "generate", count)
    one = Protocol("one", "", gray_box=(fgsm(8),))
    images, labels = data
    evaluate(model, (images, labels), ["none"], one, cache_dir=cache)
    assert generated == []
    evaluate(model, (images, labels), ["none"], one, seed=2, cache_dir=cache)
    assert generated
    generated.clear()
    evaluate(model, (0.9 * images, labels), ["none"], one, cache_dir=cache)
    assert generated


def test_settings_are_chosen_on_the_validation_split_alone(model, data, cache):
    """It is every second image; figures come from the others, the test split."""
    images, labels = data
    candidates = ["bits:1", "bits:4", "jpeg:5"]
    protocol = protocol_named(SMALL, {"adaptive": 4})
    report = evaluate(model, (images, labels), [candidates], protocol, cache_dir=cache)
    right = np.flatnonzero(predicted_classes(model, images) == labels)
    test = right[1::2]
    chosen = report.defences[1]
    assert chosen["chosen_from"] == ["1 bit", "4 bits", "JPEG q5"]
    assert report.settings["count"] == len(test)
    assert f"({len(right[::2])}) belongs to the validation split" in report.settings["selection"]
    picked = next(d for d in map(defence, candidates) if d.name == chosen["name"])
    expected = accuracy(model, picked(images[test]), labels[test])
    assert figure(report, picked.name, "benign")["accuracy"] == pytest.approx(expected)
    assert figure(report, picked.name, "adaptive", "PGD-10 8/255")["count"] == 4


def test_limits_apply_to_attacks_defences_and_threat_models(model, data, cache):
    limits = {"BIM": 7, "median": 9, "black-box": 0}
    protocol = Protocol(
        "p", "", gray_box=(fgsm(8), bim(8, 2)), black_box=(square(8, 5),), limits=limits
    )
    report = evaluate(model, data, ["median:3"], protocol, cache_dir=cache)
    assert report.settings["limits"] == limits
    assert figure(report, "none", "gray-box", "BIM 8/255")["count"] == 7
    assert figure(report, "median 3x3", "gray-box", "BIM 8/255")["count"] == 7
    assert figure(report, "median 3x3", "gray-box", "FGSM 8/255")["count"] == 9
    assert figure(report, "none", "gray-box", "FGSM 8/255")["count"] > 40
    assert not [row for row in report.rows if row["threat_model"] == "black-box"]


def test_limits_apply_where_settings_are_chosen(model, data, cache, monkeypatch):
    attacked = []
    generate = Workbench.generate
    monkeypatch.setattr(
        Workbench,
        "generate",
        lambda self, images: (attacked.append(images), generate(self, images)),
    )
    protocol = Protocol("p", "", gray_box=(fgsm(7),), limits={"gray-box": 3})
    evaluate(model, data, [["bits:1", "bits:4"]], protocol, cache_dir=cache)
    assert {len(images.images) for images in attacked if images.attack} == {3}
    with pytest.raises(ValueError, match="`protocol` must have a gray-box attack without a limit"):
        evaluate(
            *(model, data, [["bits:1", "bits:4"]], protocol_named(protocol, {"gray-box": 0})),
            cache_dir=cache,
        )


def test_images_of_other_channels_are_reported_without_pictures(rng, tmp_path):
    """The report refused them, after all attacks."""
    flat = [keras.Input((8, 8, 4)), keras.layers.Flatten(), keras.layers.Dense(2)]
    classifier = Classifier(keras.Sequential(flat))
    images = np.float32(rng.integers(0, 256, (12, 8, 8, 4)))
    labels = classifier.logits(images / 255).argmax(-1)
    found = evaluate(classifier, (images, labels), ["liu2019"], SMALL, cache_dir=tmp_path)
    assert not found.pictures
    assert figure(found, "none", "benign")["count"] == 12


def test_classes_of_one_name_are_told_apart_in_pictures(model, data, cache):
    names = ["crane", "crane", *map(str, range(2, 10))]
    found = evaluate(
        Classifier(model, class_names=names), data, ["liu2019"], SMALL, cache_dir=cache
    )
    for picture in found.pictures:
        shown = {picture[key] for key in ("true", "predicted_attacked")}
        assert len(shown) == 2  # the attack fools the classifier
        assert "crane" not in shown


def test_packages_without_metadata_do_not_fail_the_report(model, data, cache, monkeypatch):
    def version(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", version)
    found = evaluate(model, data, ["none"], SMALL, cache_dir=cache)
    assert found.settings["versions"]["tensorflow"] == "unknown"


def test_weights_that_change_are_evaluated_anew(model, data, tmp_path):
    own = keras.models.clone_model(model)
    own.set_weights(model.get_weights())
    classifier = Classifier(own)
    first = evaluate(classifier, data, ["none"], SMALL, cache_dir=tmp_path)
    own.set_weights([weight * 1.3 for weight in own.get_weights()])
    second = evaluate(classifier, data, ["none"], SMALL, cache_dir=tmp_path)
    fresh = evaluate(Classifier(own), data, ["none"], SMALL, cache_dir=tmp_path / "other")
    assert second.rows == fresh.rows
    assert second.settings["model_sha256"] != first.settings["model_sha256"]


def test_values_and_data_sets_make_no_difference(model, data, report, cache):
    """The same images in [-1, 1], from tf.data, before a model that takes them so."""
    images, labels = data
    scaled = keras.Sequential(
        [keras.Input(images.shape[1:]), keras.layers.Rescaling(127.5, 127.5), model]
    )
    batches = tf.data.Dataset.from_tensor_slices(((images / 127.5 - 1), labels)).batch(7)
    one = Protocol("one", "", gray_box=(fgsm(8),))
    classifier = Classifier(scaled, value_range=(-1, 1))
    found = evaluate(classifier, batches, ["liu2019"], one, cache_dir=cache)
    expected = figure(report, "liu2019", "gray-box", "FGSM 8/255")["correct"]
    assert abs(figure(found, "liu2019", "gray-box", "FGSM 8/255")["correct"] - expected) <= 1


def test_probabilities_are_turned_into_logits(model, data, report, cache):
    """Softmax probabilities that are not saturated lead to the same attack."""
    soft = keras.Sequential([model, keras.layers.Softmax()])
    soft.build((None, *data[0].shape[1:]))
    one = Protocol("one", "", gray_box=(fgsm(8),))
    classifier = Classifier(soft, from_logits=False)
    found = evaluate(classifier, data, ["liu2019"], one, cache_dir=cache)
    for name in ("none", "liu2019"):
        expected = figure(report, name, "gray-box", "FGSM 8/255")["correct"]
        assert abs(figure(found, name, "gray-box", "FGSM 8/255")["correct"] - expected) <= 1


@keras.saving.register_keras_serializable(package="test_evaluate")
class Masking(keras.layers.Layer):
    """Coarse rounding with a gradient that points nowhere: gradient attacks fail behind it."""

    def call(self, inputs):
        pattern = tf.random.stateless_normal(tf.shape(inputs)[1:], [1, 2])
        masked = inputs * pattern
        return tf.round(inputs / 32) * 32 + 1e-6 * (masked - tf.stop_gradient(masked))


class Rounding(keras.layers.Layer):
    """Rounding as TensorFlow differentiates it."""

    def call(self, inputs):
        return 16 * tf.round(inputs / 16)


class ZeroGradient(keras.layers.Layer):
    def call(self, inputs):
        return 0.0 * inputs + tf.stop_gradient(inputs)


class Labels(keras.layers.Layer):
    """The logits of a label; an integer has no gradient."""

    def call(self, inputs):
        return tf.one_hot(tf.argmax(inputs, axis=-1), 10, on_value=5.0, off_value=-5.0)


class Outside(keras.layers.Layer):
    """A step that TensorFlow cannot differentiate."""

    def call(self, inputs):
        return tf.ensure_shape(tf.numpy_function(lambda x: x, [inputs], tf.float32), inputs.shape)


def masked(model, place):
    parts = [model, place] if isinstance(place, Labels) else [place, model]
    return keras.Sequential([keras.Input(model.input_shape[1:]), *parts])


def masked_softmax(model):
    """Probabilities that float32 rounds to 0 and 1."""
    scaled = keras.layers.Rescaling(1e4)
    return keras.Sequential(
        [keras.Input(model.input_shape[1:]), model, scaled, keras.layers.Softmax()]
    )


@pytest.mark.parametrize("layer", [Rounding, ZeroGradient, Labels, Outside])
@pytest.mark.parametrize("function", [evaluate, fd_keras.refine, fd_keras.learn_table])
def test_a_classifier_without_gradient_is_named(
    model, data, tmp_path, monkeypatch, function, layer
):
    monkeypatch.setattr(Attack, "generate", lambda *_, **__: pytest.fail("images were attacked"))
    with pytest.raises(ValueError, match="must have a gradient .*(round|argmax)") as error:
        function(masked(model, layer()), data, protocol=SMALL, cache_dir=tmp_path)
    assert "Received: classifier='sequential" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_saturated_probabilities_are_named(model, data, tmp_path):
    classifier = Classifier(masked_softmax(model), from_logits=False)
    with pytest.raises(ValueError, match="zero on all of the first 16 .*from_logits=True"):
        evaluate(classifier, data, ["none"], SMALL, cache_dir=tmp_path)


def test_images_with_saturated_probabilities_are_counted(model, data, tmp_path):
    """Attacks leave them as they are, and look weaker than they are."""
    scale = 60 / np.abs(np.diff(np.sort(model.predict(data[0], verbose=0))[:, -2:])).max()
    sure = keras.layers.Rescaling(4 * scale)
    steep = keras.Sequential(
        [keras.Input(model.input_shape[1:]), model, sure, keras.layers.Softmax()]
    )
    classifier = Classifier(steep, value_range=(0, 255), from_logits=False)
    with pytest.warns(UserWarning, match="no gradient on [0-9]+ of the first 16 images.*too high"):
        evaluate(classifier, data, ["none"], SMALL, cache_dir=tmp_path)


def test_attacks_by_queries_need_no_gradient(model, data, tmp_path):
    blind = Protocol("blind", "", black_box=(square(8, 2),), limits={"Square": 2})
    report = evaluate(masked(model, Rounding()), data, ["none"], blind, cache_dir=tmp_path)
    assert figure(report, "none", "black-box", "Square-2 8/255")["count"] == 2


def test_a_masked_gradient_is_caught(model, data, cache):
    masked = keras.Sequential([keras.Input(data[0].shape[1:]), Masking(), model])
    protocol = Protocol(
        "masked",
        "",
        gray_box=(fgsm(16),),
        adaptive=(pgd(32, 5), pgd(127.5, 10)),
        black_box=(square(32, 200),),
        limits={"Square": 20},
    )
    report = evaluate(masked, data, ["none"], protocol, cache_dir=cache)
    failed = {check["name"] for check in report.checks if not check["passed"]}
    assert "accuracy falls to about 0 without a bound" in failed
    assert "black-box is not stronger than adaptive" in failed
    assert "failed" in report.verdict


def test_a_masking_defence_is_caught(model, data, cache):
    """A defence with a gradient that points nowhere; gray-box attacks then hurt more."""
    honest = jpeg_compression(90)
    useless = Defence("useless", "example", lambda batch, _: honest(batch), {"quality": 90})
    weak = Protocol("weak", "", gray_box=(pgd(16, 20),), adaptive=(pgd(16, 1, step=1),))
    report = evaluate(model, data, [useless], weak, cache_dir=cache)
    failed = [check for check in report.checks if not check["passed"]]
    assert {check["name"] for check in failed} == {"adaptive is never gentler than gray-box"}


def test_random_defences_are_attacked_through_their_expectation(model, data, cache):
    """Twice the same figures, and an attacker who does not know the draw."""
    protocol = Protocol("eot", "", adaptive=(pgd(16, 3),), limits={"adaptive": 8})
    with pytest.warns(FutureWarning, match="`eot_draws` is now an argument of `Protocol`"):
        first = evaluate(model, data, ["slq"], protocol, eot_draws=2, cache_dir=cache)
    assert first.settings["eot_draws"] == 2
    assert "random" not in str(first.rows)
    protocol = replace(protocol, eot_draws=2)
    again = evaluate(model, data, ["slq"], protocol, cache_dir=cache / "other")
    assert first.rows == again.rows


ONLY_LIMITED = {
    "defences": ["bit depth"],
    "protocol": Protocol("p", "", gray_box=(fgsm(8),), limits={"FGSM": 5}),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": 10}, "`data` must have labels from 0 to 9"),
        ({"labels": -1}, "`labels` must lie between 0 and"),
        ({"images": 300.0}, "`data` must be finite and lie within value_range, 0 to 255"),
        ({"images": np.nan}, "`data` must be finite and lie within value_range, 0 to 255"),
        ({"classifier": {"value_range": (0, 1)}}, "`value_range` does not fit the model"),
        ({"classifier": {"from_logits": False}}, "must return probabilities"),
        ({"options": {"protocol": "nips"}}, "`protocol` must be a Protocol or one of"),
        ({"options": {"defences": ["nothing"]}}, "must be one of none"),
        ({"options": {"defences": ["quilting:5,1"]}}, "`background` must hold benign images"),
        (
            {
                "options": {
                    "defences": ["quilting:5,1"],
                    "background": np.eye(32)[None, ..., None] / 2,
                }
            },
            "`background` must be scaled to value_range, 0 to 255",
        ),
        ({"options": {"defences": [["bits:1", "bits:2"]], "max_images": 1}}, "test split"),
        ({"options": ONLY_LIMITED}, "`protocol` must have a gray-box attack without a limit"),
        ({"shape": (12, 12, 1)}, "which `model` takes. Received: images of shape"),
    ],
)
def test_what_does_not_fit_is_refused(model, data, cache, change, message):
    images, labels = data[0][:10].copy(), data[1][:10].copy()
    if "labels" in change:
        labels[3] = change["labels"]
    if "images" in change:
        images[2, 0, 0, 0] = change["images"]
    if "shape" in change:
        images = np.zeros((10, *change["shape"]), np.float32)
    options = {"defences": ["none"], "protocol": SMALL, **change.get("options", {})}
    settings = change.get("classifier", {})
    with pytest.raises(ValueError, match=message):
        evaluate(Classifier(model, **settings), (images, labels), cache_dir=cache, **options)


def test_logits_announced_and_probabilities_returned(model, data, cache):
    soft = keras.Sequential([model, keras.layers.Softmax()])
    soft.build((None, *data[0].shape[1:]))
    with pytest.raises(ValueError, match="from_logits=False"):
        evaluate(Classifier(soft, from_logits=True), data, ["none"], SMALL, cache_dir=cache)


def test_no_image_classified_correctly(model, data, cache):
    images, _ = data
    wrong = (predicted_classes(model, images) + 1) % 10
    with pytest.raises(ValueError, match="it gets none of the 60 right"):
        evaluate(model, (images, wrong), ["none"], SMALL, cache_dir=cache)


def test_data_of_other_kinds(model, cache):
    with pytest.raises(TypeError, match=r"`data` must be \(images, labels\)"):
        evaluate(model, 3, ["none"], SMALL, cache_dir=cache)
    with pytest.raises(TypeError, match=r"`data` must be \(images, labels\)"):
        evaluate(model, [np.zeros((2, 8, 8, 1))], ["none"], SMALL, cache_dir=cache)


_SCRIPT = """
import sys, keras, numpy as np
from fd_keras.demo.digits import load_digits
from fd_keras.evaluation import Protocol, bim, evaluate, pgd
model = keras.saving.load_model(sys.argv[1])
test = load_digits(1).test
report = evaluate(
    model,
    (test.images[:40], test.labels[:40]),
    ["liu2019", ["bits:2", "bits:4"], "slq"],
    Protocol("p", "", (bim(8, 2, 5),), (pgd(8, 5),)),
    eot_draws=2,
    cache_dir=sys.argv[2],
)
report.to_json(sys.argv[3])
"""


def test_killed_and_started_again_gives_the_same_report(model, tmp_path):
    """SIGKILL once some results are kept; the second run must not begin again."""
    model.save(tmp_path / "model.keras")

    def start(cache, out):
        command = [sys.executable, "-c", _SCRIPT, str(tmp_path / "model.keras"), cache, out]
        environment = {**os.environ, "PYTHONPATH": str(Path(fd_keras.__file__).parents[1])}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)

    killed = start(tmp_path / "killed", tmp_path / "killed.json")
    deadline = time.monotonic() + 120
    while len(kept := list((tmp_path / "killed").rglob("[!.]*.npy"))) < 4:  # not being written
        assert killed.poll() is None, killed.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed.json").exists()
    before = {path: path.stat().st_mtime_ns for path in kept}

    names = ("killed", "undisturbed")
    for process in [start(tmp_path / name, tmp_path / f"{name}.json") for name in names]:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()

    assert {path: path.stat().st_mtime_ns for path in kept} == before
    resumed, undisturbed = (
        fd_keras.EvaluationReport.from_json(tmp_path / f"{name}.json") for name in names
    )
    assert resumed.rows == undisturbed.rows
    assert resumed.checks == undisturbed.checks
    assert resumed.detection == undisturbed.detection


@pytest.mark.parametrize(
    ("defences", "settings", "message"),
    [
        (["liu2019"], {"false_positive_rate": 1}, "`false_positive_rate` must lie"),
        (["liu2019"], {"false_positive_rate": 0}, "`false_positive_rate` must lie"),
        (["median:3"], {"passes": 2}, "`passes` must be 1 for defences without an encoder"),
        ([[]], {}, "`defences` must hold families of at least one setting"),
        (
            [Defence("mine", "mine", lambda batch, _: batch)],
            {},
            "a Defence with `settings`",
        ),
    ],
)
def test_what_would_fail_in_the_end_is_refused_first(
    model, data, tmp_path, defences, settings, message
):
    def unread():
        raise AssertionError("was read")
        yield

    with pytest.raises(ValueError, match=message):
        evaluate(model, unread(), defences, SMALL, cache_dir=tmp_path, **settings)
    assert not list(tmp_path.rglob("*.npy"))
