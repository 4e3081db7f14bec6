"""Searches: their images, trials and results."""

import shutil

import keras
import numpy as np
import pytest
import searches

import fd_keras
from fd_keras import FeatureDistillation, QuantizationTable, preset_table
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages
from fd_keras.demo import load_digits
from fd_keras.evaluation import Protocol, bim, fgsm, pgd, square
from fd_keras.refinement import Search
from fd_keras.refinement.experiment import Experiment, split

# Importing ART resets logging, which closes the stderr of the test that happens to do it.
pytest.importorskip("art.attacks.evasion")


@pytest.mark.parametrize("oracle", ["random", "bayesian"])
def test_the_same_seed_gives_the_same_result(search, oracle, tmp_path):
    # Three parameters: the first four trials of the Bayesian oracle are random.
    settings = {"oracle": oracle, "seed": 0, "max_trials": 6}
    one, other = (search(tmp_path / name, **settings) for name in ("a", "b"))
    assert searches.values_of(one) == searches.values_of(other)
    assert one.table == other.table
    third = search(tmp_path / "c", **{**settings, "seed": 1, "max_trials": 1})
    assert searches.values_of(third) != searches.values_of(one)[:1]


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband", "grid"])
def test_a_search_that_is_extended_ends_like_one_that_was_not(search, oracle, tmp_path):
    settings = {"oracle": oracle}
    whole = search(tmp_path / "whole", **settings, max_trials=11)
    first = search(tmp_path / "parts", **settings, max_trials=10)
    second = search(tmp_path / "parts", **settings, max_trials=11)
    assert searches.values_of(second) == searches.values_of(whole)
    assert len(first.trials) == 10
    assert [t.metrics for t in second.trials[:10]] == [t.metrics for t in first.trials]
    assert len(second.trials) == 11
    assert all(trial.status == "COMPLETED" for trial in second.trials)


def test_the_default_space_starts_near_the_presets(search, tmp_path):
    result = search(tmp_path, space=None, max_trials=2)
    liu = result.trials[0].table
    assert (liu.steps >= 20).all()
    assert (liu.steps <= 40).all()
    assert {"as_bands", "as_step", "delta", "dc_step", "cycle_spins"} == set(
        result.trials[0].values
    )


def test_the_winner_is_scored_on_images_that_it_was_not_chosen_on(digits, search, tmp_path):
    model, test = digits
    result = search(tmp_path, max_trials=3)
    right = model.predict(test.images, verbose=0).argmax(-1) == test.labels
    images, labels = test.images[right], test.labels[right]
    attacked = searches.noisy(test.images)[right]
    layer = FeatureDistillation(result.table)
    for accuracies, first in ((result.best.validation, 0), (result.best.test, 1)):
        for name, pixels in (("benign", images), ("noise", attacked)):
            classes = model.predict(np.asarray(layer(pixels[first::2])), verbose=0).argmax(-1)
            correct = int((classes == labels[first::2]).sum())
            assert accuracies.counts[name] == (correct, len(labels[first::2]))
    assert "gray-box" in str(result)
    assert "test split" in str(result)
    assert [baseline.name for baseline in result.baselines] == ["none", "liu2019"]


def test_another_search_is_refused_and_overwritten_only_when_asked(search, tmp_path):
    search(tmp_path, max_trials=2)
    with pytest.raises(ValueError, match="other max_benign_loss"):
        search(tmp_path, max_trials=2, max_benign_loss=0.5)
    assert len(search(tmp_path, max_trials=1).trials) == 2
    assert len(search(tmp_path, max_trials=1, overwrite=True).trials) == 1


def test_trials_are_logged_for_tensorboard(search, tmp_path):
    result = search(tmp_path, max_trials=2)
    assert len(list((tmp_path / "logs").glob("*/events.out.*"))) == 2
    metrics = result.trials[0].metrics
    assert {"benign_loss", "distortion", "bits_per_pixel", "accuracy noise"} <= set(metrics)


def test_an_attacker_who_knows_the_table_may_count(digits, tmp_path):
    model, test = digits
    result = fd_keras.refine(
        model,
        (test.images, test.labels),
        Protocol("one", "", (fgsm(8),)),
        Search(1, space=searches.small_space, adaptive=[bim(8, 2, 4)], adaptive_images=8),
        max_benign_loss=0.5,
        baselines=[],
        directory=tmp_path / "search",
        cache_dir=tmp_path / "cache",
    )
    assert result.best.test.counts["BIM 8/255, adaptive"][1] == 8
    accuracies = [result.trials[0].metrics[f"accuracy {n}"] for n in result.best.test.attacks]
    assert result.trials[0].metrics["score"] == pytest.approx(np.mean(accuracies))
    assert "adaptive:" in str(result)


def test_an_adaptive_objective_counts_what_goes_through_the_table(digits, tmp_path):
    """Gray-box accuracies neither count nor stop a trial."""

    def both(hp):
        quantizer = hp.Choice("quantizer", ["round", "soft"])
        return QuantizationTable(np.full((8, 8), 40.0), quantizer=quantizer)

    model, test = digits
    result = fd_keras.refine(
        model,
        (test.images, test.labels),
        Protocol("one", "", (fgsm(8),)),
        Search(2, "grid", both, adaptive=[bim(24, 8, 4)], adaptive_images=12, objective="adaptive"),
        max_benign_loss=1.0,
        baselines=[],
        directory=tmp_path / "search",
        cache_dir=tmp_path / "cache",
    )
    assert {trial.table.quantizer for trial in result.trials} == {"round", "soft"}
    for trial in result.trials:
        found = trial.validation
        assert trial.metrics["score"] == pytest.approx(found.adaptive)
        assert found.adaptive < found.gray_box
        assert ("bits_per_pixel" in trial.metrics) == (trial.table.quantizer == "round")
    best = max(result.trials, key=lambda trial: trial.validation.adaptive)
    assert result.best.validation.adaptive == best.validation.adaptive
    front = [point.validation.adaptive for point in result.front]
    assert front == sorted(front, reverse=True)
    assert result.table_within(1.0) == result.front[0].table


@pytest.mark.parametrize("stop_early", [True, False])
def test_the_table_that_loses_least_wins_where_none_is_feasible(digits, tmp_path, stop_early):
    """Trials are stopped after some images, so that their scores do not compare."""
    model, test = digits[0], load_digits(seed=3).test[:200]
    # On the first batch, which suffices to stop both, the first one is better.
    tables = [QuantizationTable(np.full((8, 8), step)) for step in (1100.0, 1000.0)]

    def coarse(hp):
        return tables[hp.Choice("table", [0, 1])]

    result = fd_keras.refine(
        model,
        LabelledImages(test.images, test.labels, (0, 255)),  # which keeps their order
        {"noise": searches.noisy(test.images)},
        Search(2, "grid", coarse, stop_early=stop_early),
        max_benign_loss=0.0,
        baselines=[],
        directory=tmp_path,
    )
    right = model.predict(test.images, verbose=0).argmax(-1) == test.labels
    images, labels = test.images[right][::2], test.labels[right][::2]

    def correct(table):
        pixels = np.asarray(FeatureDistillation(table)(images))
        return int((model.predict(pixels, verbose=0).argmax(-1) == labels).sum())

    counts = list(map(correct, tables))
    assert counts[0] < counts[1] < len(labels)
    assert not result.feasible
    assert result.table == tables[1]
    assert result.best.validation.counts["benign"] == (counts[1], len(labels))


def test_the_front_compares_tables_under_the_same_attacks(digits, tmp_path):
    """Tables that lose too much are not attacked adaptively."""

    def steps(hp):
        return QuantizationTable(np.full((8, 8), hp.Choice("step", [20.0, 900.0])))

    model, test = digits
    result = fd_keras.refine(
        model,
        (test.images, test.labels),
        Protocol("one", "", (fgsm(8),)),
        Search(2, "grid", steps, adaptive=[bim(24, 8, 4)], adaptive_images=8, stop_early=False),
        max_benign_loss=0.05,
        baselines=[],
        directory=tmp_path / "search",
        cache_dir=tmp_path / "cache",
    )
    attacks = {trial.table.steps.max(): len(trial.validation.counts) for trial in result.trials}
    assert attacks == {20.0: 3, 900.0: 2}
    assert [point.table.steps.max() for point in result.front] == [20.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "x"}, "`objective` must be one of"),
        ({"objective": "adaptive"}, "`objective` 'adaptive' needs attacks in `adaptive`"),
        ({"quantizers": ("hard",)}, "`quantizer` must be one of"),
        ({"quantizers": "soft"}, "`quantizers` must be a sequence"),
        ({"cycle_spins": ()}, "`cycle_spins` must be a sequence"),
        ({"oracle": "x"}, "`oracle` must be one of"),
        ({"max_trials": 0}, "`max_trials`"),
        ({"max_benign_loss": 2}, "`max_benign_loss`"),
        ({"adaptive_images": 0}, "`adaptive_images`"),
        ({"worker_timeout": 0}, "`worker_timeout`"),
        ({"max_images": 1}, "`max_images`"),
        ({"space": lambda hp: preset_table("liu2019")}, "`space` must ask"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_attacked(
    search, monkeypatch, tmp_path, settings, message
):
    monkeypatch.setattr(Experiment, "attack", lambda self: pytest.fail("images were attacked"))
    with pytest.raises(ValueError, match=message):
        search(tmp_path, **settings)


def test_another_search_is_refused_before_anything_is_attacked(search, monkeypatch, tmp_path):
    search(tmp_path, max_trials=1)
    monkeypatch.setattr(Experiment, "attack", lambda self: pytest.fail("images were attacked"))
    with pytest.raises(ValueError, match="other max_benign_loss"):
        search(tmp_path, max_trials=1, max_benign_loss=0.5)


# --- directories


@pytest.fixture(scope="module")
def ended(digits, tmp_path_factory):
    """The directory of a search of one trial, to be copied."""
    directory = tmp_path_factory.mktemp("ended")
    searches.search(*digits, directory, max_trials=1)
    return directory


@pytest.fixture
def home(ended, tmp_path):
    return shutil.copytree(ended, tmp_path / "search")


def times(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".fd_keras.lock"]
    return {path: path.stat().st_mtime_ns for path in files}


def refused(search, directory, message, monkeypatch, **options):
    """The search ends before images are attacked, and leaves every file as it is."""
    monkeypatch.setattr(Experiment, "attack", lambda self: pytest.fail("images were attacked"))
    before = times(directory)
    with pytest.raises(ValueError, match=message):
        search(directory, max_trials=2, **options)
    assert times(directory) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "search.json",
        "trials/oracle.json",
        "trials/trial_0/trial.json",
        "logs/0/events.out.tfevents.1",
    ],
)
def test_a_directory_of_other_origin_is_refused(search, monkeypatch, tmp_path, name, overwrite):
    """`overwrite` used to delete `trials` and `logs` of whatever directory it was given."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    refused(search, tmp_path, "`directory` holds", monkeypatch, overwrite=overwrite)


def test_overwriting_deletes_the_search_and_nothing_else(search, home):
    shutil.copytree(home / "trials" / "trial_0", home / "trials" / "trial_1")
    shutil.copytree(home / "logs" / "0", home / "logs" / "1")
    others = ["logs/train/events.out.tfevents.1", "logs/notes", "trials/notes", "trials/trial_0/a"]
    for name in others:
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).touch()
    result = search(home, max_trials=1, overwrite=True)
    assert len(result.trials) == 1
    assert not (home / "trials" / "trial_1").exists()
    assert not (home / "logs" / "1").exists()
    assert all((home / name).exists() for name in others)


@pytest.mark.parametrize("name", ["trials", "logs"])
def test_links_are_refused(search, monkeypatch, home, tmp_path, name):
    """Trials behind a link were not deleted, and counted as those of the new search."""
    elsewhere = tmp_path / "elsewhere"
    (home / name).rename(elsewhere)
    (home / name).symlink_to(elsewhere)
    before = times(elsewhere)
    refused(search, home, f"{name} is a link", monkeypatch, overwrite=True)
    assert times(elsewhere) == before


def test_two_searches_at_once_are_refused(search, monkeypatch, tmp_path):
    inner = []

    def space(hp):
        if (tmp_path / "search.json").exists() and not inner:
            inner.append(1)
            with pytest.raises(ValueError, match="`directory` is in use by another run"):
                search(tmp_path, max_trials=1)
        return searches.small_space(hp)

    search(tmp_path, max_trials=1, space=space)
    assert inner


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def changed(path):
    """Valid JSON of another result."""
    text = path.read_text()
    assert "COMPLETED" in text or "end_order" in text
    path.write_text(text.replace("COMPLETED", "FAILED").replace("end_order", "end order"))


@pytest.mark.parametrize(
    "damage",
    [cut, changed, lambda path: path.write_text("[1]"), lambda path: path.write_bytes(b"")],
)
@pytest.mark.parametrize("name", ["oracle.json", "trial_0/trial.json"])
def test_damaged_files_of_a_search_are_named(search, monkeypatch, home, name, damage):
    damage(home / "trials" / name)
    refused(search, home, f"a file that is damaged; .*trials/{name}", monkeypatch)


def test_a_missing_trial_is_named(search, monkeypatch, home):
    (home / "trials" / "trial_0" / "trial.json").unlink()
    refused(search, home, "a file that is missing; .*trial_0/trial.json", monkeypatch)


# --- images


# Images of one bright pixel, which is their class.
SPOTS = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1) / 2


def spot_classifier():
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    return Classifier(model, value_range=(0, 1))


def test_given_attacked_images_belong_to_the_copy_that_was_chosen(tmp_path):
    """Images used to be found again by their pixels: that took the attacked image of index 0."""
    picture, other = SPOTS[[5, 9]]
    images = np.stack([picture, picture, other])
    labels = np.array([6, 5, 9])  # the first copy is mislabelled, and so is not chosen
    attacked = np.stack([other, picture, other])
    result = fd_keras.refine(
        spot_classifier(),
        (images, labels),
        {"attack": attacked},
        Search(1, "random", searches.small_space),
        max_benign_loss=1,
        baselines=[],
        directory=tmp_path,
    )
    assert result.settings["images"] == {"validation": 1, "test": 1}
    assert result.best.validation.counts["attack"] == (1, 1)


def test_limits_of_the_protocol_are_images_of_each_split():
    images = SPOTS[:10]
    attacks = (fgsm(8), bim(8, 2, 4))
    limited = Protocol("one", "", attacks, limits={"BIM": 2})
    chosen = LabelledImages(images, np.arange(10), (0, 1))
    parts = split(spot_classifier(), chosen, {}, limited)
    assert [[count for _, count in part.attacks] for part in parts] == [[5, 2], [5, 2]]
    assert [part.images.indices.tolist() for part in parts] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    for limits in ({"Square": 2}, {"adaptive": 2}, {"BIM": 0}):
        unfit = Protocol("one", "", attacks, limits=limits)
        with pytest.raises(ValueError, match="`limits` of the protocol must map families"):
            split(spot_classifier(), chosen, {}, unfit)


def test_images_keep_their_value_range_where_attacked_ones_are_given(tmp_path):
    """They used to be taken for images of the classifier's."""
    images = LabelledImages(SPOTS[:10], np.arange(10), (0, 255))
    with pytest.raises(ValueError, match="value range"):
        fd_keras.refine(spot_classifier(), images, {"a": SPOTS[:10]}, directory=tmp_path)


def test_attacks_that_only_query_are_not_adaptive():
    with pytest.raises(ValueError, match="`adaptive` must hold attacks that follow.*Square-1000"):
        Search(adaptive=[pgd(4), square(4)])
