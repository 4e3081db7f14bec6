"""Searching tables: spaces, scores, objective, and what survives a killed process."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras_tuner
import numpy as np
import pytest
import searches
from hypothesis import given
from hypothesis import strategies as st

import fd_keras
from fd_keras import CoefficientStatistics, FeatureDistillation, QuantizationTable, preset_table
from fd_keras.classifier import Classifier
from fd_keras.refinement import RefineResult, band_space, parameter_importance
from fd_keras.refinement.oracles import make_oracle
from fd_keras.refinement.result import Figures, Trial, pareto_front
from fd_keras.refinement.scoring import (
    RUNGS,
    Halving,
    ScoredImages,
    TableScore,
    TableScorer,
    objective_value,
    trial_metrics,
)
from fd_keras.refinement.space import band_values, starting_points

# Importing ART resets logging, which closes the stderr of the test that happens to do it.
pytest.importorskip("art.attacks.evasion")


@pytest.fixture(scope="module")
def digits():
    return searches.digits_and_classifier()


@pytest.fixture(scope="module")
def scorer(digits):
    model, test = digits
    classifier = Classifier(model, value_range=(0, 255), from_logits=True)
    unit = {"benign": test.images / 255, "noise": searches.noisy(test.images) / 255}
    return TableScorer(classifier, ScoredImages(test.labels, unit), batch_size=16)


@pytest.fixture
def statistics(photos):
    return {
        name: CoefficientStatistics.from_data(photos, color_space=name) for name in ("ycbcr", "rgb")
    }


@pytest.fixture
def search(digits):
    return lambda directory, **settings: searches.search(*digits, directory, **settings)


def values_of(result):
    return [trial.values for trial in result.trials]


# --- spaces


def test_every_point_of_the_space_is_a_table_for_the_layer(statistics, rng):
    space = band_space(statistics)
    space(hp := keras_tuner.HyperParameters())
    seen = set()
    for seed in range(30):
        hp.values = {p.name: p.random_sample(97 * seed + i) for i, p in enumerate(hp.space)}
        table = space(hp)
        seen.add((table.color_space, table.cycle_spins))
        assert FeatureDistillation(table)(rng.random((1, 8, 8, 3))).shape == (1, 8, 8, 3)
    assert len(seen) == 6


def test_as_bands_are_those_of_the_largest_deviation(statistics):
    space = band_space(statistics["rgb"])
    space(hp := keras_tuner.HyperParameters())
    hp.values = {"as_bands": 9, "as_step": 5.0, "delta": 30.0, "dc_step": 5.0, "cycle_spins": 1}
    steps = space(hp).steps
    for std, channel in zip(statistics["rgb"].std, steps):
        assert (channel == 5).sum() == 9
        assert std[channel == 5].min() >= std[channel == 35].max()


def test_a_point_of_the_space_is_found_again_from_its_table(statistics):
    space = band_space(statistics)
    space(hp := keras_tuner.HyperParameters())
    hp.values = {
        **{"as_bands": 20, "as_step": 12.0, "delta": 31.0, "dc_step": 4.0, "chroma": 3.0},
        **{"color_space": "ycbcr", "cycle_spins": 2},
    }
    found = band_values(space(hp), statistics)
    numbers = [name for name in found if name != "color_space"]
    assert [found[n] for n in numbers] == pytest.approx([hp.values[n] for n in numbers], rel=0.05)
    assert found["color_space"] == "ycbcr"


def test_starting_points_are_inside_the_space(statistics):
    space = band_space(statistics)
    space(hp := keras_tuner.HyperParameters())
    for values in starting_points(statistics):
        assert set(values) == {p.name for p in hp.space}
        for p in hp.space:
            assert 0 <= p.value_to_prob(values[p.name]) <= 1
        hp.values = values
        space(hp)


# --- scores


def test_a_score_is_what_the_protected_model_gets_right(digits, scorer):
    model, test = digits
    for table in (preset_table("liu2019"), QuantizationTable(np.full((8, 8), 90.0), "ycbcr", 2)):
        layer = FeatureDistillation(table)
        score = scorer.score(table)
        for name, images in (("benign", test.images), ("noise", searches.noisy(test.images))):
            distilled = np.asarray(layer(images))
            right = model.predict(distilled, verbose=0).argmax(-1) == test.labels
            assert score.counts()[name] == (right.sum(), 60)
            if name == "benign":
                assert score.distortion == pytest.approx(((distilled - images) ** 2).mean(), 1e-4)
        assert score.complete


def test_a_new_table_is_not_traced_again(scorer):
    scorer.score(preset_table("liu2019"))
    _, graph = scorer._graph("rgb", 1)
    before = graph.experimental_get_tracing_count()
    scorer.score(QuantizationTable(np.full((8, 8), 7.0)))
    assert graph.experimental_get_tracing_count() == before == 1


def test_bits_per_pixel_fall_with_the_step_and_are_those_of_the_coefficients(digits, scorer):
    bits = [scorer.score(QuantizationTable(np.full((8, 8), q))).bits_per_pixel for q in (2, 9, 4e4)]
    assert bits[0] > bits[1] > bits[2] == 0


def test_a_trial_ends_when_too_many_benign_images_are_lost(scorer):
    useless = QuantizationTable(np.full((8, 8), 4e4))
    score = scorer.score(useless, max_benign_loss=0.05)
    assert not score.complete
    assert "noise" not in score.counts()
    assert len(score.right["benign"]) < 60
    assert scorer.score(useless).complete  # nothing is lost for ever


def test_parts_of_the_images_are_disjoint_and_add_up(scorer):
    parts = [scorer._part("noise", a, b) for a, b in ((0, 0.25), (0.25, 0.5), (0.5, 1))]
    assert sorted(np.concatenate(parts)) == list(range(60))
    stopped = scorer.score(preset_table("liu2019"), go_on=lambda score: len(score.rungs) < 2)
    assert len(stopped.right["noise"]) == 30
    assert not stopped.complete


# --- objective


@given(
    st.lists(st.booleans(), min_size=1),
    st.lists(st.booleans(), min_size=1),
    st.lists(st.booleans(), min_size=1),
    st.floats(0, 0.99),
)
def test_feasible_beats_infeasible_and_every_objective_is_finite(benign, one, other, allowed):
    first = TableScore({"benign": np.array(benign), "a": np.array(one)})
    second = TableScore({"benign": np.array([True]), "a": np.array(other)})
    values = [objective_value(score, allowed) for score in (first, second)]
    assert all(math.isfinite(value) for value in values)
    if first.benign_loss > allowed + 1e-6:
        assert values[0] < 0 <= values[1]


def test_halving_keeps_what_may_win_and_never_overrates_what_it_stops():
    def earlier(accuracy, at):
        return {"accuracy": accuracy, f"accuracy at {RUNGS[0]:g}": at, "score": accuracy}

    four = [earlier(0.6, 0.4), earlier(0.5, 0.7), earlier(0.4, 0.6), earlier(0.3, 0.5)]
    halving = Halving(four)
    # the best itself had 0.4 there, below the median
    assert halving(TableScore({}, rungs=(0.4,)))
    assert not halving(TableScore({}, rungs=(0.39,)))
    assert halving.estimate(TableScore({}, rungs=(0.3,))) == pytest.approx(0.5)
    assert Halving(four[:3])(TableScore({}, rungs=(0.0,)))


def test_metrics_are_finite_numbers():
    metrics = trial_metrics(TableScore({"benign": np.array([False])}, complete=False), -0.5)
    assert "distortion" not in metrics  # it was not measured
    assert metrics["score"] == -0.5


def test_front():
    class Point:
        def __init__(self, benign, attacked):
            self.selection = Figures({"benign": (benign, 100), "a": (attacked, 100)})

    points = [Point(*pair) for pair in ((99, 10), (95, 30), (95, 20), (90, 30), (80, 50))]
    found = [(p.selection.benign, p.selection.attacked) for p in pareto_front(points)]
    assert found == [(0.8, 0.5), (0.95, 0.3), (0.99, 0.1)]


# --- searches


@pytest.mark.parametrize("oracle", ["random", "bayesian"])
def test_the_same_seed_gives_the_same_result(search, oracle, tmp_path):
    # Three parameters: the first four trials of the Bayesian oracle are random.
    settings = {"oracle": oracle, "seed": 0, "max_trials": 6}
    one, other = (search(tmp_path / name, **settings) for name in ("a", "b"))
    assert values_of(one) == values_of(other)
    assert one.table == other.table
    third = search(tmp_path / "c", **{**settings, "seed": 1, "max_trials": 1})
    assert values_of(third) != values_of(one)[:1]


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband", "grid"])
def test_a_search_that_is_extended_ends_like_one_that_was_not(search, oracle, tmp_path):
    settings = {"oracle": oracle}
    whole = search(tmp_path / "whole", **settings, max_trials=11)
    first = search(tmp_path / "parts", **settings, max_trials=10)
    second = search(tmp_path / "parts", **settings, max_trials=11)
    assert values_of(second) == values_of(whole)
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


def test_the_winner_is_checked_on_images_that_did_not_select_it(digits, search, tmp_path):
    model, test = digits
    result = search(tmp_path, max_trials=3)
    right = model.predict(test.images, verbose=0).argmax(-1) == test.labels
    images, labels = test.images[right], test.labels[right]
    attacked = searches.noisy(test.images)[right]
    layer = FeatureDistillation(result.table)
    for figures, half in ((result.best.selection, 0), (result.best.held_back, 1)):
        for name, pixels in (("benign", images), ("noise", attacked)):
            classes = model.predict(np.asarray(layer(pixels[half::2])), verbose=0).argmax(-1)
            correct = int((classes == labels[half::2]).sum())
            assert figures.counts[name] == (correct, len(labels[half::2]))
    assert "gray-box" in str(result)
    assert "held-back" in str(result)
    assert [rival.name for rival in result.rivals] == ["none", "liu2019"]


def test_a_result_is_read_back_as_it_was(search, tmp_path):
    result = search(tmp_path / "search")
    result.save(tmp_path / "result.json")
    again = RefineResult.load(tmp_path / "result.json")
    assert again.table == result.table
    assert str(again) == str(result)
    assert again.to_markdown() == result.to_markdown()
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no result"):
        RefineResult.load(tmp_path / "result.json")


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
    from fd_keras.evaluation import Protocol, bim, fgsm

    model, test = digits
    result = fd_keras.refine(
        model,
        (test.images, test.labels),
        Protocol("one", "", (fgsm(8),)),
        adaptive=[bim(8, 2, 4)],
        adaptive_images=8,
        max_benign_loss=0.5,
        max_trials=1,
        space=searches.small_space,
        rivals=[],
        directory=tmp_path / "search",
        cache_dir=tmp_path / "cache",
    )
    assert result.best.held_back.counts["BIM 8/255, adaptive"][1] == 8
    accuracies = [result.trials[0].metrics[f"accuracy {n}"] for n in result.best.held_back.attacks]
    assert result.trials[0].metrics["score"] == pytest.approx(np.mean(accuracies))
    assert "adaptive:" in str(result)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"oracle": "x"}, "`oracle` must be one of"),
        ({"max_trials": 0}, "`max_trials`"),
        ({"max_benign_loss": 2}, "`max_benign_loss`"),
        ({"limits": {"FGSM": 3}}, "`limits`"),
        ({"space": lambda hp: preset_table("liu2019")}, "`space` must ask"),
    ],
)
def test_bad_arguments_are_refused(search, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        search(tmp_path, **settings)


def test_plots_of_a_search(search, tmp_path):
    from fd_keras.refinement import plots

    result = search(tmp_path, max_trials=8, rivals=["liu2019", "jpeg:90", "jpeg:50"])
    front = plots.plot_front(result).axes[0]
    drawn = {tuple(point) for line in front.lines for point in zip(*line.get_data())}
    for contender in (*result.front, *result.rivals):
        figure = contender.held_back
        assert (100 * figure.benign, 100 * figure.attacked) in drawn
    assert len(plots.plot_trials(result).axes[0].lines) >= 2
    plots.plot_importance(result).savefig(tmp_path / "importance.png")


def test_the_parameter_that_decides_is_the_important_one(rng):
    def trial(number):
        values = {"decides": rng.random(), "idle": rng.random(), "kind": "ab"[number % 2]}
        metrics = {"score": values["decides"] ** 2}
        return Trial(number, "COMPLETED", values, metrics, None, Figures({}))

    shares = parameter_importance([trial(number) for number in range(40)])
    assert next(iter(shares)) == "decides"
    assert shares["decides"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert parameter_importance([trial(0)] * 7) == {}


# --- the learnt table


def test_learning_descends_and_never_ends_worse_than_it_began(digits, tmp_path):
    model, test = digits
    data, attacked = (test.images, test.labels), {"noise": searches.noisy(test.images, 40)}
    # Steps so coarse that digits are lost: any sensible gradient makes them finer.
    coarse = QuantizationTable(np.full((8, 8), 1500.0))
    learnt = fd_keras.learn_table(
        model, data, attacked, coarse, max_benign_loss=0.1, epochs=4, learning_rate=0.2
    )
    before = 1 - learnt.started.selection.benign
    assert learnt.history[-1]["benign_loss"] < before
    assert learnt.table.steps.mean() < 1500
    assert learnt.table.steps.std() > 0
    assert learnt.learnt.selection.benign > learnt.started.selection.benign
    assert "held-back" in str(learnt)
    unchanged = fd_keras.learn_table(model, data, attacked, "liu2019", epochs=1, learning_rate=1e-9)
    assert unchanged.table == preset_table("liu2019")


def test_the_gradient_of_a_step_is_the_rounding_error_it_leaves():
    import tensorflow as tf

    from fd_keras.kernels import distil

    pixels = np.full((1, 8, 8, 1), 10.0, np.float32)  # DC is 80, every other band 0
    steps = tf.Variable(np.full((1, 8, 8), 30.0, np.float32))
    with tf.GradientTape() as tape:
        dc = tf.reduce_sum(distil(tf.constant(pixels), steps)) / 8
    gradient = tape.gradient(dc, steps).numpy()
    assert gradient[0, 0, 0] == pytest.approx(round(80 / 30) - 80 / 30, abs=1e-3)


# --- the command line


def test_tune_writes_a_table_that_everything_else_takes(digits, monkeypatch, run, tmp_path):
    model, test = digits
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=test.images[:24].astype(np.uint8), y=test.labels[:24])
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    out = tmp_path / "out"

    def tune(*more):
        arguments = [tmp_path / "model.keras", tmp_path / "data.npz", "--out", out]
        options = ["--max-trials", "2", "--oracle", "random", "--limit", "PGD=4"]
        return run("tune", *arguments, *options, *more)

    code, printed, errors = tune()
    assert code == 0, errors
    assert "gray-box" in printed
    table = QuantizationTable.load(out / "table.json")
    assert RefineResult.load(out / "result.json").table == table
    protected = fd_keras.protect(model, FeatureDistillation(table))
    fd_keras.export_tflite(protected, tmp_path / "model.tflite")
    fd_keras.jpeg.write_jpeg(tmp_path / "digit.jpg", np.uint8(test.images[0]), table)
    for name in ("report.md", "front.png", "importance.png", "trials.png", "table.png"):
        assert (out / name).stat().st_size > 0
    code, _, errors = tune("--max-benign-loss", "0.5")
    assert code == 1
    assert "overwrite" in errors


# --- processes that are killed


@pytest.fixture
def program(digits, tmp_path):
    """Start a process of a search; all are ended afterwards."""
    digits[0].save(tmp_path / "model.keras")
    started = []

    def start(max_trials, slow="", **environment):
        process = subprocess.Popen(
            [sys.executable, searches.__file__, str(tmp_path), str(max_trials), slow],
            env={**os.environ, **environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)


def test_a_search_that_was_killed_keeps_its_trials_and_goes_on(search, program, tmp_path):
    process = program(5, "slow")
    wait_for(tmp_path / "running-alone", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    files = sorted((tmp_path / "search" / "trials").glob("trial_*/trial.json"))
    kept = [json.loads(path.read_text()) for path in files]
    assert [trial["status"] for trial in kept] == ["COMPLETED", "COMPLETED", "RUNNING"]
    process = program(5)
    assert process.wait(timeout=120) == 0, process.stderr.read()
    result = RefineResult.load(tmp_path / "result.json")
    assert [trial.status for trial in result.trials] == ["COMPLETED"] * 5
    again = [json.loads(path.read_text()) for path in files[:2]]
    assert again == kept[:2]
    assert values_of(result) == values_of(search(tmp_path / "whole", max_trials=5))


def test_a_distributed_search_survives_the_death_of_a_worker(program, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    chief = program(6, **address, KERASTUNER_TUNER_ID="chief")
    doomed = program(6, "slow", **address, KERASTUNER_TUNER_ID="tuner0")
    wait_for(tmp_path / "running-tuner0", doomed)
    worker = program(6, **address, KERASTUNER_TUNER_ID="tuner1")
    wait_for(tmp_path / "search" / "trials" / "tuner1.json", worker)  # after its first trial
    doomed.send_signal(signal.SIGKILL)
    assert worker.wait(timeout=120) == 0, worker.stderr.read()
    assert chief.wait(timeout=60) == 0, chief.stderr.read()
    result = RefineResult.load(tmp_path / "result.json")
    assert [trial.status for trial in result.trials] == ["COMPLETED"] * 6


def test_a_chief_does_not_wait_for_ever_for_workers_that_are_lost():
    from fd_keras.refinement import chief

    _ = (hp := keras_tuner.HyperParameters()).Float("step", 1, 64)
    oracle = make_oracle("random", hp, max_trials=3, seed=1)
    oracle.last_heard = time.monotonic()
    with pytest.raises(RuntimeError, match="No worker is left; 0 of 3"):
        chief.serve_until_over(lambda: time.sleep(5), oracle, 0.1)

    def taken():
        raise OSError("port in use")

    with pytest.raises(OSError, match="port"):
        chief.serve_until_over(taken, oracle, 60)


def test_trials_of_lost_workers_go_to_others(tmp_path, monkeypatch):
    _ = (hp := keras_tuner.HyperParameters()).Float("step", 1, 64)
    oracle = make_oracle("random", hp, max_trials=1, seed=1, worker_timeout=10)
    oracle._set_project_dir(tmp_path, "x")
    oracle.verbose = 0
    clock = [100.0]
    monkeypatch.setattr("fd_keras.refinement.oracles.time.monotonic", lambda: clock[0])
    lost = oracle.create_trial("a")
    assert oracle.create_trial("b").status == "IDLE"  # not STOPPED: "a" may be lost
    clock[0] += 8
    oracle.get_trial(lost.trial_id)  # the heart of "a" beats
    clock[0] += 8
    assert oracle.create_trial("b").status == "IDLE"
    clock[0] += 8
    taken = oracle.create_trial("b")
    assert (taken.trial_id, taken.status) == (lost.trial_id, "RUNNING")
    oracle.update_trial(taken.trial_id, {"score": 0.5})
    taken.status = "COMPLETED"
    oracle.end_trial(taken)
    oracle.update_trial(lost.trial_id, {"score": 0.9})  # "a" was only slow
    oracle.end_trial(lost)
    assert oracle.trials[lost.trial_id].score == 0.5
    assert oracle.end_order == [lost.trial_id]
    assert oracle.create_trial("b").status == "STOPPED"
    assert oracle.over


def test_a_trial_that_ended_while_it_was_saved_is_not_run_again(tmp_path):
    _ = (hp := keras_tuner.HyperParameters()).Float("step", 1, 64)

    def oracle():
        made = make_oracle("random", hp, max_trials=2, seed=1)
        made._set_project_dir(tmp_path, "x")
        made.verbose = 0
        return made

    first = oracle()
    trial = first.create_trial("a")
    first.update_trial(trial.trial_id, {"score": 0.5})
    trial.status = "COMPLETED"
    first.end_trial(trial)
    # Keras Tuner saves before it takes the trial off its list of running ones.
    state = json.loads(Path(first._get_oracle_fname()).read_text())
    assert state["ongoing_trials"] == {"a": trial.trial_id}
    second = oracle()
    second.reload()
    assert second.create_trial("a").trial_id != trial.trial_id
