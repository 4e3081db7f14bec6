"""``evaluate`` and its kin as a new user meets them: a folder of photos and a small model."""

import sys

import keras
import numpy as np
import pytest
from PIL import Image

import fd_keras_cli
from fd_keras import (
    Classifier,
    FeatureDistillation,
    QuantizationTable,
    evaluate,
    export_saved_model,
    harden,
    protect,
    refine,
    unprotect,
)
from fd_keras.evaluation import EvaluationReport, Protocol, fgsm, protocols
from fd_keras.refinement import Search

pytest.importorskip("art", reason="ART is not installed")

CLASSES = {"blue": 2, "green": 1, "red": 0}
SHORT = ("--attack", "fgsm", "--epsilon", 4)
# Of every command that takes a classifier and labelled images.
COMMANDS = ("evaluate", "tune", "harden")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight images of each of three classes, of which the brightest channel tells."""
    folder, rng = tmp_path_factory.mktemp("user") / "photos", np.random.default_rng(0)
    for name, channel in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(60, 140, (16, 16, 3)).astype(np.uint8)
            pixels[..., channel] = rng.integers(90, 190, (16, 16))
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def model_of(classes=3, *, order=(0, 1, 2), activation=None, first=(), scale=0.1):
    """Classes in ``order`` of blue, green and red; others are never predicted."""
    inputs = images = keras.Input((16, 16, 3))
    for layer in first:
        images = layer(images)
    head = keras.layers.Dense(classes, activation=activation)
    model = keras.Model(inputs, head(keras.layers.GlobalAveragePooling2D()(images)))
    weights, bias = np.zeros((3, classes), np.float32), np.full(classes, -99.0, np.float32)
    weights[(2, 1, 0), order] = scale
    bias[list(order)] = 0
    head.set_weights([weights, bias])
    return model


@pytest.fixture
def user(capfd, photos, tmp_path, monkeypatch):
    """Run a command on a model and the photos; returns code, output, errors and the folder."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("COLUMNS", "80")

    def started(command, model, *options, data=photos):
        model.save(tmp_path / "model.keras")
        arguments = [command, tmp_path / "model.keras", *([data] if data else [])]
        words = ["fd-keras", *arguments, "--out", tmp_path / "out", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as ended:
            fd_keras_cli.main()
        shown = capfd.readouterr()
        return ended.value.code, shown.out, shown.err, tmp_path / "out"

    return started


def report_in(out):
    return EvaluationReport.from_json(out / "report.json")


@pytest.fixture
def arrays():
    """Sixty images in three classes, sorted by class, in the order of ``model_of()``."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], 20)
    images = rng.integers(60, 140, (60, 16, 16, 3))
    for image, label in zip(images, labels):
        image[..., 2 - label] = rng.integers(90, 190, (16, 16))
    return images.astype(np.float32), labels


ONE = Protocol("one", "", gray_box=(fgsm(4),))


# 1. Labels


def test_tables_of_one_name_are_told_apart_by_their_files(user, tmp_path):
    for name, step in (("a", 20.0), ("b", 30.0)):
        table = QuantizationTable(np.full((8, 8), step), provenance={"name": "designed"})
        table.save(tmp_path / f"{name}.json")
    tables = ("--table", tmp_path / "a.json", "--table", tmp_path / "b.json")
    twice = ("--table", "liu2019", "--table", "liu2019")
    code, out, errors, folder = user("evaluate", model_of(), *tables, *twice, *SHORT)
    assert code == 0, errors
    names = ["none", "designed (a)", "designed (b)", "liu2019", "liu2019 (2)"]
    assert [entry["name"] for entry in report_in(folder).defences] == names
    assert all(name in out for name in names)


def test_settings_chosen_from_a_family_hide_no_other_defence(arrays, tmp_path):
    tables = [QuantizationTable(np.full((8, 8), step)) for step in (20.0, 30.0)]
    report = evaluate(
        model_of(), arrays, [tables, tables[0], "JPEG", "jpeg:75"], ONE, cache_dir=tmp_path
    )
    names = [entry["name"] for entry in report.defences]
    assert len(names) == len(set(names)) >= 4
    assert {row["defence"] for row in report.rows} == set(names)


# 2. Classes and clean accuracy


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("outputs", ["one", "named"])
def test_another_number_of_classes_is_refused_unless_they_are_named(user, command, outputs):
    model = model_of(10)
    options = ()
    if outputs == "named":
        model = keras.Model(model.input, {"a": model.output, "b": model.input})
        options = ("--model-output", "a")
    code, _, errors, folder = user(command, model, *options)
    assert code == 1
    assert "one subdirectory for each of the 10 classes of the model; --classes says" in errors
    assert not folder.exists()


def test_named_classes_may_be_fewer_than_the_models(user, tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(["grey", "blue", "red", "green", *"efghij"]))
    model = model_of(10, order=(1, 3, 2))
    code, _, errors, folder = user("evaluate", model, "--classes", names, *SHORT)
    assert code == 0, errors
    assert report_in(folder).settings["clean_accuracy"] == {"right": 24, "seen": 24}


def test_export_refuses_another_number_of_classes(user, tmp_path):
    (tmp_path / "classes.txt").write_text("blue\ngreen\nred\n")
    for option in ("--labels", "--classes"):
        code, _, errors, _ = user(
            "export", model_of(10), option, tmp_path / "classes.txt", data=None
        )
        assert code == 1
        assert "must be one line of text for each of the 10 classes" in errors


@pytest.mark.parametrize("command", COMMANDS)
def test_clean_accuracy_is_printed_first_and_a_warning_near_chance(user, command):
    """Two of three classes are swapped, as where their order is not that of the folders."""
    options = {
        "evaluate": SHORT,
        "tune": ("--max-trials", 1, "--oracle", "random"),
        "harden": ("--epochs", 1, "--epsilon", 0, "--max-benign-loss", 1),
    }[command]
    code, out, errors, folder = user(command, model_of(order=(2, 1, 0)), *options)
    assert code == 0, errors
    flat = " ".join(errors.split())
    assert "Clean accuracy on all" in flat
    count = "4 images" if command == "harden" else "8 of 24 images (33.3 %)"
    assert count in flat
    assert "Check the order of the classes (--classes), the value range of the pixels" in flat
    assert "(--value-range) and whether the model returns logits or probabilities" in flat
    if command == "evaluate":
        assert flat.index("Clean accuracy") < flat.index("Done")
        report = report_in(folder)
        assert report.verdict.startswith("1 of")
        assert "the classifier is better than chance" in report.verdict
        page = (folder / "report.html").read_text()
        assert "Check the order of the classes" in page
        assert "clean accuracy: 8 of 24 images read, 33.3 %" in page
    assert out


# 3. Limits


def test_the_number_asked_for_is_the_number_reported_over_all_classes(arrays, tmp_path):
    images, labels = arrays
    images[:3] = images[-3:]  # three that the classifier gets wrong
    limited = Protocol("one", "", (fgsm(4),), limits={"FGSM": 6})
    report = evaluate(
        model_of(), (images, labels), ["liu2019"], limited, max_images=12, cache_dir=tmp_path
    )
    counts = {row["attack"]: row["count"] for row in report.rows}
    assert counts == {"none": 12, "FGSM 4/255": 6}
    settings = report.settings
    assert "random sample spread over 3 classes (seed 1)" in settings["sample"]
    assert "12 were asked for" in settings["selection"]
    every = evaluate(model_of(), (images, labels), ["liu2019"], ONE, cache_dir=tmp_path)
    assert every.settings["count"] == 57
    assert "All of these are used, though 1000 were asked for" in every.settings["selection"]


def test_a_limit_of_refine_is_a_sample_over_the_classes(arrays, tmp_path):
    result = refine(
        model_of(),
        arrays,
        ONE,
        Search(max_trials=1, oracle="random"),
        baselines=[],
        max_images=12,
        directory=tmp_path / "search",
        cache_dir=tmp_path,
    )
    assert result.settings["images"] == {"validation": 6, "test": 6}
    assert "spread over 3 classes" in result.settings["sample"]


# 4. Models that hold the layer


@pytest.mark.parametrize("command", [*COMMANDS, "export"])
def test_a_model_with_the_layer_is_not_taken_for_one_without(user, command):
    model = protect(model_of(), FeatureDistillation("zigzag15"))
    given = {"data": None} if command == "export" else {}
    own = ("--table", "liu2019") if command == "export" else ()
    code, _, errors, folder = user(command, model, *own, **given)
    assert code == 1
    assert "already; take it off with --strip-layer" in errors
    assert "with the table 'zigzag15'" in errors
    assert not folder.exists()


@pytest.mark.parametrize(("passes", "comes_next"), [("1", "export"), ("2", "apply")])
def test_stripped_of_its_layer_a_model_is_evaluated_with_its_own_table(
    user, next_command, passes, comes_next
):
    model = protect(model_of(), FeatureDistillation("zigzag15"))
    options = ("--strip-layer", "--passes", passes, *SHORT)
    code, out, errors, folder = user("evaluate", model, *options)
    assert code == 0, errors
    assert "Took the layer with the table 'zigzag15' off MODEL" in errors
    report = report_in(folder)
    assert [entry["name"] for entry in report.defences] == ["none", "zigzag15"]
    assert report.settings["model_sha256"] == Classifier(model_of()).fingerprint
    # The layer stays in the exported model, and images are encoded with what it has.
    arguments = next_command(out)
    assert f"Next: fd-keras {comes_next} " in out
    assert ("--strip-layer" in arguments, "--table" in arguments) == (False, comes_next == "apply")


def test_a_layer_is_taken_off_a_model(arrays):
    images, _ = arrays
    alone = model_of()
    layer = FeatureDistillation("liu2019")
    sequential = keras.Sequential([keras.Input((16, 16, 3)), layer, *alone.layers[1:]])
    middle = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Rescaling(1.0), layer, *alone.layers[1:]]
    )
    assert unprotect(protect(alone, layer))[0] is alone
    for model in (sequential, middle):
        found, taken = unprotect(model)
        assert taken is layer
        np.testing.assert_allclose(found.predict(images, verbose=0), alone(images), atol=1e-4)
    nested = keras.Sequential([keras.Input((16, 16, 3)), sequential])
    for wrong in (alone, nested):
        with pytest.raises(ValueError, match="with one feature distillation layer"):
            unprotect(wrong)


def test_python_refuses_a_model_with_the_layer_and_says_how_to_take_it_off(arrays, tmp_path):
    model, layer = protect(model_of(), FeatureDistillation("liu2019")), FeatureDistillation("jpeg")
    for call in (
        lambda: evaluate(model, arrays, ["liu2019"], ONE),
        lambda: refine(model, arrays, ONE, Search(max_trials=1)),
        lambda: harden(model, layer, arrays),
        lambda: export_saved_model(protect(model, layer), tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=r"already; take it off with fd_keras\.unprotect"):
            call()


# 5. Probabilities and value ranges


class Unknown(keras.Model):
    """Probabilities of which no graph tells."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, images, training=None):
        return self.model(images)


def test_probabilities_are_detected_and_the_assumption_is_said(user, arrays):
    soft = model_of(activation="softmax", scale=0.02)
    code, _, errors, folder = user("evaluate", soft, *SHORT)
    assert code == 0, errors
    said = "probabilities, as the last activation is softmax"
    assert f"Assumed: pixels from 0 to 255; outputs are {said}" in errors
    assert report_in(folder).settings["outputs"] == said
    classifier = Classifier(Unknown(soft))
    assert classifier.correct(*arrays).all()
    assert classifier.assumption == "probabilities, as they lie from 0 to 1 and sum to 1"
    assert not classifier.from_logits
    logits = Classifier(model_of())
    assert logits.from_logits
    assert logits.assumption == "logits, as the last activation is linear"
    # What is said explicitly is checked, and not replaced.
    assert Classifier(soft, from_logits=False).assumption == "probabilities, as was said"
    with pytest.raises(ValueError, match="Pass from_logits=False"):
        Classifier(soft, from_logits=True).correct(*arrays)


@pytest.mark.parametrize("given", [("0,1",), ("0", "1"), ("0 1",)])
def test_a_value_range_is_two_numbers_with_a_comma_or_without(user, given):
    model = model_of(scale=20.0)
    code, _, errors, folder = user("evaluate", model, "--value-range", *given, *SHORT)
    assert code == 0, errors
    assert report_in(folder).settings["value_range"] == [0, 1]


def test_a_value_range_that_does_not_fit_is_asked_about_with_the_fix(user, arrays):
    model = model_of(first=[keras.layers.Rescaling(1 / 255)], scale=20.0)
    code, _, errors, _ = user("evaluate", model, "--value-range=0,1", *SHORT)
    assert code == 1
    assert "first layer scales pixels from 0 to 255: give --value-range 0,255" in errors
    images, labels = arrays
    with pytest.raises(ValueError, match="give layer and classifier the `value_range`"):
        evaluate(model, (images / 255, labels), ["liu2019"], ONE)


# 6. Refusals before the first attack


@pytest.mark.parametrize(
    ("defences", "options", "message"),
    [
        (["liu2019", "jpge:75"], {}, "`spec` must be one of"),
        (["liu2019", "quilting:5,1"], {}, "`background` must hold"),
        ([QuantizationTable(np.full((2, 8, 8), 9.0), color_space="rgb")], {}, "2 channels"),
        (["liu2019"], {"false_positive_rate": 2}, "`false_positive_rate`"),
        (["liu2019"], {"verbose": "yes"}, "`verbose` must be 0, 1 or a rich console"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_attack(
    arrays, monkeypatch, defences, options, message
):
    def attacked(*arguments, **settings):
        raise AssertionError("an attack was made")

    monkeypatch.setattr("fd_keras.evaluation.attacks.Attack.generate", attacked)
    with pytest.raises(ValueError, match=message):
        evaluate(model_of(), arrays, defences, ONE, **options)


def test_a_changed_budget_is_refused_before_the_first_attack(arrays, tmp_path, monkeypatch):
    def searched(loss, baselines=()):
        return refine(
            model_of(),
            arrays,
            ONE,
            Search(max_trials=1, oracle="random"),
            max_benign_loss=loss,
            baselines=baselines,
            directory=tmp_path / "search",
            cache_dir=tmp_path,
        )

    searched(0.01)

    def attacked(*arguments, **settings):
        raise AssertionError("an attack was made")

    monkeypatch.setattr("fd_keras.evaluation.workbench.Workbench.generate", attacked)
    with pytest.raises(ValueError, match="holds a search with other max_benign_loss"):
        searched(0.02)
    with pytest.raises(ValueError, match="`spec` must be one of"):
        searched(0.01, ["jpge:75"])


# 8. The terminal


def test_attacks_by_name_instead_of_a_protocol_or_beside_one(user, monkeypatch):
    monkeypatch.setitem(protocols.PROTOCOLS, "one", ONE)
    monkeypatch.setattr("fd_keras_cli.evaluate.PROTOCOL_NAMES", ("one",))
    code, _, errors, folder = user("evaluate", model_of(), "--attack", "pgd", "--epsilon", 4)
    assert code == 0, errors
    names = {row["attack"] for row in report_in(folder).rows}
    assert names == {"none", "PGD-20 4/255", "PGD-20 .5"}
    code, _, errors, folder = user("evaluate", model_of(), "--protocol", "one", *SHORT)
    assert code == 0, errors
    beside = ("--protocol", "one", "--attack", "pgd", "--epsilon", 1, "--epsilon", 2)
    code, _, errors, folder = user("evaluate", model_of(), *beside)
    assert code == 0, errors
    names = {row["attack"] for row in report_in(folder).rows if row["threat_model"] == "gray-box"}
    assert names == {"FGSM 4/255", "PGD-20 1/255", "PGD-20 2/255"}
    for wrong, message in (
        (("--attack", "pgd"), "`--epsilon` is needed"),
        (("--epsilon", 4), "`--epsilon` is the bound of an --attack"),
        (("--attack", "gdp", "--epsilon", 4), "`--attack` must be one of"),
    ):
        code, _, errors, _ = user("evaluate", model_of(), *wrong)
        assert code == 1
        assert message in " ".join(errors.split())


def test_eighty_columns_suffice_and_no_line_is_repeated(user):
    code, out, errors, _ = user(
        "evaluate",
        model_of(),
        "--attack",
        "pgd",
        *(x for e in (1, 2, 4, 8) for x in ("--epsilon", e)),
        "--baseline",
        "bits:5",
        "--max-images",
        6,
        "--seed",
        2,
        "--baseline",
        "jpeg:75",
    )
    assert code == 0, errors
    assert "Used: 6 images, as a random sample spread over 3 classes (seed 2)" in errors
    table, _, _ = out.rpartition("\n\n")  # the verdict is a paragraph of its own
    assert max(map(len, table.splitlines())) <= 80
    bars = [line for line in errors.splitlines() if "%" in line and "━" in line]
    assert len(bars) == 1
    assert max(map(len, bars)) <= 80
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == len(set(lines))


def test_verbose_shows_in_python_what_the_command_shows(arrays, tmp_path, capsys):
    evaluate(model_of(), arrays, ["liu2019"], ONE, cache_dir=tmp_path)
    assert capsys.readouterr().err == ""
    evaluate(model_of(), arrays, ["liu2019"], ONE, cache_dir=tmp_path, verbose=1)
    shown = capsys.readouterr().err
    assert "Clean accuracy on all images read: 60 of 60 images (100.0 %)" in shown
    assert "100%" in shown


# 9. Pages


def test_pages_show_class_names_and_tables_as_pictures(user):
    code, _, errors, folder = user("evaluate", model_of(), "--attack", "fgsm", "--epsilon", 60)
    assert code == 0, errors
    page = (folder / "report.html").read_text()
    assert "<b>blue</b>" in page or "<b>green</b>" in page or "<b>red</b>" in page
    assert 'alt="Quantisation steps of liu2019' in page
    assert "provenance" not in page
    assert "steps: [" not in page
