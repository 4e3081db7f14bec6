"""``fd-keras refine``, and its old name."""

import numpy as np
import pytest
import searches

import fd_keras
from fd_keras import FeatureDistillation, QuantizationTable
from fd_keras.refinement import RefineResult

# Importing ART resets logging, which closes the stderr of the test that happens to do it.
pytest.importorskip("art.attacks.evasion")


@pytest.fixture(scope="module")
def digits():
    return searches.digits_and_classifier()


@pytest.fixture
def files(digits, monkeypatch, tmp_path):
    """Arguments of the command: a model, data for it and a directory."""
    model, test = digits
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=test.images[:24].astype(np.uint8), y=test.labels[:24])
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return [tmp_path / "model.keras", tmp_path / "data.npz", "--out", tmp_path / "out"]


def test_a_table_that_everything_else_takes_is_written(digits, files, run, tmp_path, next_command):
    model, test = digits
    out = tmp_path / "out"
    arguments = [*files, "--max-trials", "2", "--oracle", "random", "--limit", "PGD=4"]

    code, printed, errors = run("refine", *arguments)
    assert code == 0, errors
    assert "gray-box" in printed
    assert str(out / "table.json") in next_command(printed)
    table = QuantizationTable.load(out / "table.json")
    result = RefineResult.load(out / "result.json")
    assert result.table == table
    assert {result.best.test.counts[name][1] for name in result.best.test.attacks} == {4}
    protected = fd_keras.protect(model, FeatureDistillation(table))
    fd_keras.export_tflite(protected, tmp_path / "model.tflite")
    fd_keras.jpeg.write_jpeg(tmp_path / "digit.jpg", np.uint8(test.images[0]), table)
    for name in ("report.md", "front.png", "importance.png", "trials.png", "table.png"):
        assert (out / name).stat().st_size > 0

    # The old name of the command finds this search, and refuses to mix it with another.
    code, _, errors = run("tune", *arguments, "--max-benign-loss", "0.5")
    assert code == 1
    assert "overwrite" in errors


def test_search_for_a_soft_table_against_an_attacker_who_knows_it(files, run, tmp_path):
    arguments = ["--max-trials", "1", "--oracle", "random", "--limit", "PGD=2"]
    arguments += ["--quantizer", "soft", "--cycle-spins", "2", "--max-benign-loss", "1"]
    arguments += ["--adaptive", "4", "--adaptive-images", "3"]
    code, printed, errors = run("refine", *files, *arguments)
    assert code == 0, errors
    table = QuantizationTable.load(tmp_path / "out" / "table.json")
    assert (table.quantizer, table.cycle_spins) == ("soft", 2)
    result = RefineResult.load(tmp_path / "out" / "result.json")
    assert result.best.test.counts["PGD-20 4/255, adaptive"][1] == 3
    assert result.settings["objective"] == "adaptive"
    assert "adaptive:" in printed


def test_a_search_over_its_budget_is_written_and_fails(files, monkeypatch, run, tmp_path):
    monkeypatch.setattr(RefineResult, "feasible", False)
    arguments = ["--max-trials", "1", "--oracle", "random", "--limit", "PGD=2"]
    code, _, errors = run("refine", *files, *arguments)
    assert code == 1
    assert "Error: no table kept within --max-benign-loss 0.01: the result is the one" in errors
    assert (tmp_path / "out" / "table.json").exists()


@pytest.mark.parametrize("command", ["refine", "tune"])
@pytest.mark.parametrize(
    "name", ["trials/oracle.json", "logs/0/events.out.tfevents.1", "table.json"]
)
def test_files_of_other_origin_are_not_overwritten(files, run, tmp_path, command, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    code, _, errors = run(command, *files, "--max-trials", "1", "--overwrite")
    assert code == 1
    assert f"holds {name}" in errors
    assert "choose another directory" in errors
    assert path.read_text() == "mine"
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Interrupted; the same command goes on from here"),
        (["--overwrite"], "Interrupted; the same command without --overwrite goes on from here"),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(files, run, monkeypatch, options, message):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fd_keras.refinement.refine", interrupted)
    code, _, errors = run("refine", *files, *options)
    assert code == 130
    assert message in errors


def test_tune_is_a_hidden_old_name(monkeypatch, run):
    monkeypatch.setenv("COLUMNS", "200")
    assert not [line for line in run("--help")[1].splitlines() if line.split()[1:2] == ["tune"]]
    texts = [run(name, "--help")[1] for name in ("refine", "tune")]
    assert "Old name of fd-keras refine" in texts[1]
    new, old = (text[text.index("Arguments") :] for text in texts)
    assert old == new


def test_limits_are_for_gray_box_attacks(files, run):
    code, _, errors = run("refine", *files, "--limit", "adaptive=4")
    assert code == 1
    assert "`--limit` of the protocol must map families" in errors
