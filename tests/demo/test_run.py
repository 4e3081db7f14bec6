"""A small run of the demo, and what it writes and prints."""

import dataclasses
import html
import re

import numpy as np
import pytest

import fd_keras
from fd_keras import demo
from fd_keras.demo import load_digits
from fd_keras.demo import run as demo_run

for module in ("art", "matplotlib", "ai_edge_litert"):
    pytest.importorskip(module, reason=f"{module} is not installed")

COUNT = 60


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def result(out):
    return demo.run_demo(out, epochs=8, test_images=COUNT)


def accuracies(report):
    """Accuracies by defence, threat model and attack."""
    return {
        (row["defence"], row["threat_model"], row["attack"]): row["accuracy"] for row in report.rows
    }


def test_every_preset_meets_every_attack(result):
    found = accuracies(result.report)
    attacks = [
        ("benign", "none"),
        *(("gray-box", f"{name} {level}/255") for level in (8, 16) for name in ("FGSM", "BIM")),
        *(("adaptive", f"PGD-20 {level}/255") for level in (8, 16)),
    ]
    defences = ["none", "liu2019", "zigzag15", "balanced", "soft8", "jpeg:75"]
    assert list(found) == [(defence, *attack) for defence in defences for attack in attacks]
    assert 0.85 * COUNT < result.report.settings["count"] <= COUNT
    assert found["none", "benign", "none"] == 1
    assert found["none", "gray-box", "FGSM 8/255"] < 0.75
    assert found["none", "gray-box", "BIM 8/255"] < 0.65
    assert found["liu2019", "benign", "none"] > 0.9
    with_layer = found["liu2019", "gray-box", "BIM 8/255"]
    assert with_layer > found["none", "gray-box", "BIM 8/255"]
    # The point of the adaptive attack: it undoes part of what the gray-box one suggests.
    assert found["liu2019", "adaptive", "PGD-20 8/255"] < with_layer


def test_two_passes_stand_beside_one(result):
    found = accuracies(result.two_passes)
    alone, encoded = found["none", "benign", "none"], found["certified:8", "benign", "none"]
    assert 0.8 < encoded <= alone < 1 or alone == 1
    # All that is right is certified, as the table was made for 8, and no attack disproves it.
    assert found["certified:8", "certified", "within 4/255"] == encoded
    ours, none = (found[n, "two-pass gray-box", "BIM 8/255"] for n in ("certified:8", "none"))
    assert ours > none + 0.3
    for attack in ("PGD-40 8/255", "Half-step-40 8/255"):
        assert (
            found["certified:8", "two-pass adaptive", attack]
            >= 0.9
            > found["liu2019", "two-pass adaptive", attack]
        )


def test_the_evaluation_trusts_itself(result):
    for report in (result.report, result.two_passes):
        assert report.checks
        assert all(check["passed"] for check in report.checks), report.checks


def test_exported_files_are_proven_on_attacked_images(result):
    assert [check.format for check in result.checks] == ["saved_model", "tflite"]
    for check in result.checks:
        assert check.passed
        assert check.threat_model == "gray-box BIM 8/255"
        assert check.images == result.report.settings["count"]
        for run in check.runtimes:
            assert run.pixels_beyond == 0
            assert run.accuracy == check.keras_accuracy
            assert run.accuracy == accuracies(result.report)["liu2019", "gray-box", "BIM 8/255"]
    # Otherwise a proof would only say that copies of the bare network agree.
    for check, operation in zip(result.checks, ("Round", "ROUND")):
        assert check.operations[operation] > 0


def test_the_files_hold_what_was_found(result, out):
    short, report, page, two_passes, two_passes_page, saved_model, tflite = result.files
    assert fd_keras.EvaluationReport.from_json(report) == result.report
    assert fd_keras.EvaluationReport.from_json(two_passes) == result.two_passes
    assert "two-pass gray-box" in two_passes_page.read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert text.lower().startswith("<!doctype html>")
    for shown in ("gray-box", "adaptive", "zigzag15", "handwritten digits"):
        assert shown in text
    assert (saved_model, tflite) == (out / "saved_model" / "1", out / "model.tflite")
    assert short.name == "demo.html"
    written = {path.name for path in result.files[:5]} | {"saved_model", tflite.name}
    assert {path.name for path in out.iterdir()} == written


def test_the_page_shows_one_pass_two_and_every_attacker(result):
    text = html.unescape(result.files[0].read_text(encoding="utf-8"))
    found = accuracies(result.report)
    for threat_model, attack in (("gray-box", "BIM 8/255"), ("adaptive", "PGD-20 8/255")):
        row = re.search(rf"<tr><th[^>]*>{threat_model} {attack}</th>(.*?)</tr>", text).group(1)
        shown = [float(share) for share in re.findall(r">([\d.]+)<small>", row)]
        defences = ("none", "liu2019", "zigzag15", "balanced", "soft8", "jpeg:75")
        expected = [round(100 * found[name, threat_model, attack], 1) for name in defences]
        assert shown == pytest.approx(expected)
    assert "two-pass adaptive PGD-40 8/255" in text
    one, two = re.findall(r"amplified 4 times<br>(.*?)</div>", text)
    assert one.startswith("up to")
    assert two == "nothing"
    assert result.ranking in text
    assert text.count('class="wrong"') >= 2  # both attacks, and perhaps what is distilled


def test_why_tables_rank_as_they_do_follows_from_what_was_measured(result):
    left, found = result.left, accuracies(result.report)
    assert list(left) == ["liu2019", "zigzag15", "balanced", "soft8", "jpeg:75"]
    for name in ("balanced", "jpeg:75"):
        assert f"{left[name]:.0%}" in result.ranking
        assert f"{found[name, 'gray-box', 'BIM 8/255']:.1%}" in result.ranking
    assert left["balanced"] > left["jpeg:75"] > 0.2
    same = dict.fromkeys(left, 0.5)
    assert "The less a table leaves" in dataclasses.replace(result, left=same).ranking
    against = {name: found[name, "gray-box", "BIM 8/255"] for name in left}
    assert "does not explain" in dataclasses.replace(result, left=against).ranking


def test_same_seed_gives_the_same_figures(result, tmp_path, monkeypatch):
    """With one table, as attacks through each take most of the time."""
    monkeypatch.setattr(demo_run, "PRESETS", ("liu2019",))
    again = demo.run_demo(tmp_path, epochs=8, test_images=COUNT)
    kept = [row for row in result.report.rows if row["defence"] in ("none", "liu2019")]
    assert again.report.rows == kept
    assert again.two_passes.rows == result.two_passes.rows
    assert again.left["liu2019"] == result.left["liu2019"]
    for check, other in zip(again.checks, result.checks):
        assert check.keras_accuracy == other.keras_accuracy


def test_command_line_prints_what_the_run_found(result, monkeypatch, run, tmp_path):
    seen = {}

    def run_demo(out, **options):
        seen.update(options, out=out)
        return result

    monkeypatch.setattr(demo, "run_demo", run_demo)
    code, printed, _ = run("demo", "--out", tmp_path, "--seed", 5)
    assert code == 0
    assert (seen["out"], seen["seed"]) == (tmp_path, 5)
    reports = result.report, result.two_passes
    shown = [part for report in reports for part in (report.table(), report.verdict)]
    for part in (*shown, result.ranking, *map(str, result.checks)):
        assert part in printed
    assert "gray-box" in printed
    assert "adaptive" in printed
    assert "proven" in printed
    for path in result.files:
        assert f"Wrote {path}\n" in printed


@pytest.mark.parametrize("count", [0, 501, 1.5])
def test_wrong_arguments_are_refused_before_work_starts(tmp_path, count):
    with pytest.raises(ValueError, match="`test_images` must be a whole number from 1 to 500"):
        demo.run_demo(tmp_path / "out", test_images=count)
    assert not (tmp_path / "out").exists()


def test_the_network_reads_the_digits_in_its_value_range(monkeypatch):
    """They were 255 times too bright, so that the page showed other answers."""
    images = load_digits(seed=3).test[:8]
    seen = []

    class Reader:
        def logits(self, pixels):
            seen.append(pixels)
            return np.eye(10, dtype=np.float32)[images.labels]

    batch = np.float32(images.images)
    passes = [demo_run._Pass("", "", batch, batch, batch, batch)] * 2
    demo_run._strips(Reader(), passes, images.labels)
    assert all(np.array_equal(pixels, batch / 255) for pixels in seen)
