"""The report of an evaluation: what it accepts, says and draws."""

import dataclasses
import html.parser
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import EPSILONS, full_report, minimal_report, row

from fd_keras import preset_table
from fd_keras._pages import environment, figure_uri
from fd_keras.evaluation import PROTOCOLS, EvaluationReport, plots
from fd_keras.evaluation.accuracies import (
    THREAT_MODELS,
    AccuracyGrid,
    accuracy_row,
    wilson_interval,
)
from fd_keras.evaluation.defences import distillation
from fd_keras.evaluation.page import page_fields

OURS = "feature distillation"
MODELS = ["gray-box", "adaptive", "black-box"]
NONE = ("none", "none")
MINE = ("mine", OURS)
BASELINE = ("JPEG q85", "JPEG")


@pytest.fixture(scope="module")
def full():
    return full_report()


# Intervals and rows


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_interval_is_where_the_score_test_rejects(count, share):
    """Its ends p solve |correct/n - p| = z sqrt(p (1 - p) / n), which is its definition."""
    correct = round(share * count)
    for end in wilson_interval(correct, count):
        assert 0 <= end <= 1
        away = abs(correct / count - end)
        assert away == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-6)


@pytest.mark.parametrize(("correct", "count"), [(-1, 5), (6, 5), (0, 0)])
def test_interval_needs_counts(correct, count):
    with pytest.raises(ValueError, match="`correct` must be from 0 to `count`"):
        wilson_interval(correct, count)


def test_row_counts():
    made = row(*MINE, "gray-box", "FGSM .03", 0.25, norm="inf", epsilon=0.03)
    assert (made["accuracy"], made["correct"], made["count"]) == (0.25, 50, 200)
    assert made["interval"] == pytest.approx([0.195, 0.314], abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threat_model": None}, "a threat_model of"),
        ({"threat_model": "white-box"}, "a threat_model of"),
        ({"threat_model": "gray-box"}, "attack 'none' exactly with threat_model 'benign'"),
        ({"attack": "FGSM"}, "attack 'none' exactly with threat_model 'benign'"),
        ({"defence": ""}, "a name as defence"),
        ({"family": 3}, "a name as family"),
        ({"attack_family": 3}, "attack_family as text"),
        ({"norm": "1"}, "norm 'inf', '2' or None"),
        ({"split": "validation"}, "split 'test'"),
        ({"accuracy": 0.91}, "accuracy equal to correct / count"),
        ({"accuracy": None}, "accuracy equal to correct / count"),
        ({"correct": 21.5}, "correct and count as whole numbers"),
        ({"count": 0}, "correct and count as whole numbers"),
        ({"interval": [0.95, 1.0]}, "an interval"),
        ({"interval": None}, "an interval"),
        ({"epsilon": 8}, "epsilon as a number on pixels from 0 to 1"),
        ({"epsilon": "8/255"}, "epsilon as a number on pixels from 0 to 1"),
    ],
)
def test_wrong_rows_are_refused(change, message):
    good = row(*NONE, "benign", "none", 0.9)
    with pytest.raises(ValueError, match=f"`rows\\[1\\]` must have {message}"):
        EvaluationReport([row(*MINE, "benign", "none", 0.9), {**good, **change}])


@pytest.mark.parametrize("key", sorted(row(*NONE, "benign", "none", 0.9)))
def test_rows_lack_nothing(key):
    incomplete = row(*NONE, "benign", "none", 0.9)
    del incomplete[key]
    with pytest.raises(ValueError, match=f"must have the keys \\['{key}'\\] too"):
        EvaluationReport([incomplete])


def test_a_figure_occurs_once():
    with pytest.raises(ValueError, match="each figure once"):
        EvaluationReport([row(*NONE, "benign", "none", share) for share in (0.9, 0.8)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checks": [{"name": "a", "passed": True, "detail": "b"}]}, "must have the keys"),
        (
            {"checks": [{"name": "a", "passed": 1, "detail": "b", "defence": "c"}]},
            "passed as True or False",
        ),
        ({"settings": {"seed": float("nan")}}, "`settings` must be writable as JSON"),
        ({"settings": {"model": object()}}, "object is no JSON type"),
        ({"rows": None}, "`rows` must be a list"),
        ({"defences": ["none"]}, "must be a dictionary"),
        ({"pictures": [{"attack": "a"}]}, "must have the keys"),
    ],
)
def test_wrong_entries_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EvaluationReport(**{"rows": [], **change})


@pytest.mark.parametrize(
    ("entries", "change", "message"),
    [
        ("detection", {"threat_model": "none"}, "a threat_model of"),
        ("detection", {"auc": 1.5}, "rates from 0 to 1"),
        ("detection", {"roc": {"fpr": [0, 1], "tpr": [0]}}, "as many fpr as tpr"),
        ("defences", {"ms_per_image": -1}, "ms_per_image"),
        ("defences", {"name": [1, 2]}, r"must have a text as name. Received: name=\[1, 2\]"),
        ("defences", {"family": None}, "must have a text as family. Received: family=None"),
        ("checks", {"defence": 3}, "must have a text as defence. Received: defence=3"),
        ("detection", {"attack": {}}, "must have a text as attack"),
        ("pictures", {"benign": np.zeros((4, 4, 3))}, "three uint8 arrays"),
        ("pictures", {"benign": np.zeros((4, 4, 3), np.uint8)}, "of one shape"),
        ("pictures", {"threat_model": ""}, "a threat_model of"),
    ],
)
def test_broken_entries_are_refused(full, entries, change, message):
    first, *others = getattr(full, entries)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(full, **{entries: [{**first, **change}, *others]})


# JSON


@pytest.mark.parametrize("make", [minimal_report, full_report, lambda: EvaluationReport([])])
def test_json_reads_back_equal(make, tmp_path):
    report = make()
    content = report.to_json(tmp_path / "report.json")
    for source in (content, tmp_path / "report.json", str(tmp_path / "report.json")):
        again = EvaluationReport.from_json(source)
        assert again == report
        assert again.to_json() == content
        assert again.verdict == report.verdict
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_json_is_plain_and_takes_numpy_numbers():
    def refuse(constant):
        raise AssertionError(constant)

    report = EvaluationReport([], settings={"epsilon": np.float32(0.5), "sizes": np.arange(2)})
    assert report.settings == {"epsilon": 0.5, "sizes": [0, 1]}
    data = json.loads(report.to_json(), parse_constant=refuse)
    assert data["settings"] == report.settings
    assert "pictures" not in data


def test_a_report_does_not_change_with_what_it_was_made_of():
    rows = [row(*NONE, "benign", "none", 0.9)]
    report = EvaluationReport(rows)
    rows[0]["accuracy"] = 1.0
    assert report.rows[0]["accuracy"] == 0.9


@pytest.mark.parametrize(
    "source",
    [
        "{}",
        '{"format": "fd_keras.evaluation_report", "version": 2}',
        '{"format": "fd_keras.evaluation_report", "version": 1}',
        "{",
        minimal_report().to_json().replace("0.9,", "NaN,"),
        minimal_report().to_json().replace('"threat_model": "benign", ', ""),
    ],
)
def test_other_json_is_refused(source):
    with pytest.raises(ValueError, match="`source` holds no evaluation report"):
        EvaluationReport.from_json(source)


# Verdict


def attacked(who, benign, left, model="gray-box", attack="BIM .004"):
    rows = [] if benign is None else [row(*who, "benign", "none", benign)]
    details = {"norm": "inf", "epsilon": float(attack.split()[-1])}
    return [*rows, row(*who, model, attack, left, **details)]


PASSED = {"name": "adaptive is no gentler", "passed": True, "detail": "", "defence": "mine"}


def test_verdict_of_a_win():
    rows = attacked(NONE, 1.0, 0.035) + attacked(MINE, 0.98, 0.55)
    rows += attacked(BASELINE, 0.985, 0.3) + attacked(("JPEG q50", "JPEG"), 0.86, 0.7)
    rows += attacked(MINE, None, 0.03, "adaptive")
    assert EvaluationReport(rows, checks=[PASSED]).verdict == (
        "mine raises accuracy under gray-box BIM .004 from 3.5 % to 55.0 % at a cost of "
        "2.0 points of benign accuracy. The best baseline at no less benign accuracy, JPEG q85, "
        "does worse: 30.0 % (gray-box). Where the attacker knows the defence, adaptive BIM .004 "
        "leaves 3.0 % of 200 images right. The sanity check passed."
    )


def test_verdict_of_a_loss_and_of_figures_too_close_to_call():
    rows = attacked(NONE, 1.0, 0.035) + attacked(MINE, 0.98, 0.3)
    lost = EvaluationReport(rows + attacked(BASELINE, 0.98, 0.55)).verdict
    assert "JPEG q85, does better: 55.0 % (gray-box)." in lost
    close = EvaluationReport(rows + attacked(BASELINE, 0.98, 0.32)).verdict
    assert "JPEG q85, does better, within the 95 % intervals: 32.0 % (gray-box)." in close
    equal = EvaluationReport(rows + attacked(BASELINE, 0.98, 0.3)).verdict
    assert "JPEG q85, does equally well: 30.0 % (gray-box)." in equal
    costly = EvaluationReport(rows + attacked(BASELINE, 0.9, 0.9)).verdict
    assert "No baseline that met the same attacks keeps as much benign accuracy." in costly


def test_verdict_compares_the_same_images():
    def few(rows):
        return [
            accuracy_row(**{**kept(r), "correct": r["correct"] // 20, "count": 10}) for r in rows
        ]

    def kept(r):
        return {key: value for key, value in r.items() if key not in ("accuracy", "interval")}

    rows = attacked(NONE, 1.0, 0.035) + attacked(MINE, 0.98, 0.3)
    better = few(attacked(("quilting", "quilting"), 1.0, 0.9))
    verdict = EvaluationReport(rows + attacked(BASELINE, 0.98, 0.2) + better).verdict
    assert "JPEG q85, does worse, within" in verdict or "JPEG q85, does worse: 20.0 %" in verdict
    verdict = EvaluationReport(rows + better).verdict
    assert (
        "No baseline at no less benign accuracy was evaluated on the same images: quilting keeps "
        "90.0 % of other ones (gray-box)."
    ) in verdict


def test_verdict_of_a_defence_that_does_not_help():
    rows = attacked(NONE, 1.0, 0.3) + attacked(MINE, 0.9, 0.2)
    assert EvaluationReport(rows).verdict.startswith(
        "mine does not raise accuracy under gray-box BIM .004: 20.0 % with it, 30.0 % without, "
        "at a cost of 10.0 points of benign accuracy."
    )


def test_verdict_says_what_was_not_done():
    rows = attacked(NONE, 1.0, 0.3) + attacked(MINE, 1.0, 0.8)
    verdict = EvaluationReport(rows).verdict
    assert "and costs no benign accuracy" in verdict
    assert "No baseline was evaluated beside it." in verdict
    assert "No adaptive attack was run" in verdict
    assert "No sanity check was run." in verdict
    assert "not evaluated" in EvaluationReport(attacked(MINE, 1.0, 0.8)).verdict
    assert "No attack was run" in minimal_report().verdict
    bare = EvaluationReport(attacked(NONE, 1.0, 0.3)).verdict
    assert "No feature distillation was evaluated." in bare
    assert "keeps 30.0 % under gray-box BIM .004" in bare
    assert "Nothing was evaluated" in EvaluationReport([]).verdict


def test_verdict_begins_with_a_failed_check():
    rows = attacked(NONE, 1.0, 0.3) + attacked(MINE, 1.0, 0.8)
    checks = [PASSED, {**PASSED, "passed": False}]
    assert EvaluationReport(rows, checks=checks).verdict.startswith(
        "1 of 2 sanity checks failed (mine: adaptive is no gentler): do not trust these figures."
    )


def test_verdict_takes_the_mean_over_attacks_and_says_that_it_chose_a_table():
    rows = attacked(NONE, 1.0, 0.1) + attacked(MINE, 0.9, 0.5)
    rows += attacked(("other", OURS), 0.98, 0.46)
    for who, left in ((NONE, 0.3), (MINE, 0.7), (("other", OURS), 0.66)):
        rows += attacked(who, None, left, attack="FGSM .008")
    rows += attacked(("other", OURS), None, 0.2, "adaptive", "FGSM .008")
    verdict = EvaluationReport(rows).verdict
    assert (
        "other, the best of 2 tables here, raises accuracy under 2 gray-box attacks "
        "(BIM .004, FGSM .008; mean) from 20.0 % to 56.0 %" in verdict
    )
    assert "knows the defence, adaptive FGSM .008 leaves 20.0 %" in verdict


def test_verdict_quotes_the_attacker_who_knows_at_his_strongest():
    """A weak adaptive attack beside a strong one; and none beyond the bound counts."""
    rows = attacked(NONE, 1.0, 0.1) + attacked(MINE, 0.9, 0.5)
    rows += attacked(MINE, None, 0.45, "adaptive")
    rows += attacked(MINE, None, 0.2, "adaptive", "PGD-40 .004")
    rows += attacked(MINE, None, 0.0, "adaptive", "PGD-40 .5")
    assert "adaptive PGD-40 .004 leaves 20.0 %" in EvaluationReport(rows).verdict
    rows += attacked(MINE, None, 0.1, "black-box", "Square .004")
    assert "black-box Square .004 leaves 10.0 %" in EvaluationReport(rows).verdict


def test_verdict_without_gray_box_rows_speaks_of_what_there_is():
    rows = attacked(NONE, 1.0, 0.1, "black-box") + attacked(MINE, 0.9, 0.5, "black-box")
    assert "under black-box BIM .004 from 10.0 % to 50.0 %" in EvaluationReport(rows).verdict


def test_verdict_names_what_got_worse_in_a_sentence_for_each_threat_model():
    rows = attacked(NONE, 1.0, 0.1) + attacked(MINE, 0.9, 0.5)
    rows += attacked(NONE, None, 0.3, attack="FGSM .004")
    rows += attacked(MINE, None, 0.2, attack="FGSM .004")
    rows += attacked(NONE, None, 0.4, "adaptive") + attacked(MINE, None, 0.1, "adaptive")
    # Without a bound every accuracy is 0; it says nothing about the defence.
    for who, left in ((NONE, 0.0), (MINE, 0.3)):
        rows += attacked(who, None, left, "adaptive", "PGD-20 .5")
        rows += attacked(who, None, 0.6, "black-box", "Square .004")
    verdict = EvaluationReport(rows).verdict
    for sentence in (
        "mine raises accuracy under 2 gray-box attacks (BIM .004, FGSM .004; mean) from 20.0 % to "
        "35.0 % at a cost of 10.0 points of benign accuracy, but is worse under FGSM .004 (20.0 % "
        "instead of 30.0 %).",
        "Under adaptive BIM .004, it makes accuracy worse: from 40.0 % to 10.0 %.",
        "Under black-box Square .004, it changes nothing: 60.0 %.",
    ):
        assert verdict.count(sentence) == 1, verdict
    assert "mine does not" not in verdict


def two_pass_report(rival, *, size=1500.0):
    """Ours certifies 86 % within 1/255 and nothing beyond; ``rival`` gives what 4 bits do."""
    rows = attacked(NONE, 0.9, 0.2, "two-pass gray-box") + attacked(
        MINE, 0.88, 0.95, "two-pass gray-box"
    )
    rows += attacked(("4 bits", "bit depth"), 0.89, 1.0, "two-pass gray-box")
    rows += attacked(MINE, None, 0.7, "two-pass adaptive")
    for who, shares in ((MINE, (0.86, 0.0)), (("4 bits", "bit depth"), rival)):
        rows += [
            row(*who, "certified", f"within {e}/255", share, norm="inf", epsilon=e / 255)
            for e, share in zip((1, 2), shares)
        ]
    stored = {"file": "", "images": 200, "right_once_encoded": 180}
    stored |= {"least_radius": None, "median_radius": 1.2}
    defences = [
        {
            **{"name": name, "family": family, "settings": {}, "ms_per_image": None},
            **{"chosen_from": [], "two_passes": {**stored, "bytes_per_image": bytes_each}},
        }
        for (name, family), bytes_each in (
            *((NONE, 2500.0), (MINE, 900.0)),
            (("4 bits", "bit depth"), size),
        )
    ]
    return EvaluationReport(rows, defences, [PASSED])


def test_verdict_of_two_passes_names_the_better_lattice_and_the_bytes():
    verdict = two_pass_report((0.89, 0.89)).verdict
    assert "from 20.0 % to 95.0 % at a cost of 2.0 points" in verdict
    assert "Where the attacker knows the defence, two-pass adaptive BIM .004 leaves 70.0 %" in (
        verdict
    )
    assert (
        "Certified for mine, whatever the attacker knows: 86.0 % within 1/255, 0.0 % within 2/255 "
        "of all images, at 900 bytes per image. Against L-inf, 4 bits is the better lattice: "
        "89.0 % within 1/255, 89.0 % within 2/255, at 1500 bytes per image. What mine has over it "
        "is the size of its files." in verdict
    )
    assert "size of its files" not in two_pass_report((0.89, 0.89), size=800.0).verdict
    assert "4 bits certifies as much, at 1500 bytes" in two_pass_report((0.86, 0.0)).verdict
    assert "4 bits, certifies less: 10.0 % within" in two_pass_report((0.1, 0.0)).verdict


def test_page_of_two_passes_draws_certificates_against_bytes(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    report = two_pass_report((0.89, 0.89))
    page = Page(report.to_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Certified accuracy against bytes per image" in page.headings
    # One trade-off, since a single defence met the adaptive attack, and two bounds.
    assert page.tags.count("img") == 1 + 2
    shown = " ".join(" ".join(page.words).split())
    assert "better lattice against changes that are bounded in every pixel" in shown
    for model in ("two-pass gray-box", "two-pass adaptive", "certified"):
        assert THREAT_MODELS[model][1:] in shown
    assert THREAT_MODELS["gray-box"][1:] not in shown
    assert "Only certified accuracy is a proof" in shown
    assert EvaluationReport.from_json(report.to_json()) == report


def test_entries_of_two_passes_are_whole():
    entry = {"name": "a", "family": "a", "settings": {}, "ms_per_image": 1.0, "chosen_from": []}
    with pytest.raises(ValueError, match="`defences` must have two_passes with"):
        EvaluationReport([], [{**entry, "two_passes": {"file": "PNG"}}])


# Tables


def test_text_table_names_a_threat_model_over_every_accuracy(full):
    seen = 0
    for block in full.table().split("\n\n")[:-1]:
        first, second, rule, *lines = block.split("\n")
        assert set(rule) == {"-"}
        for line in lines:
            name, *cells = re.finditer(r"\S+( \S+)*", line)
            for cell in cells:
                heads = [_words_ending_at(head, cell.end()) for head in (first, second)]
                model, attack = heads if heads[0] else (heads[1], "none")
                assert model in THREAT_MODELS
                if line is lines[-1]:
                    continue
                found = full.grid.row(name[0], model, attack)
                assert cell[0] == f"{100 * found['accuracy']:.1f}"
                seen += 1
    benign_repeats = sum(
        len([name for name in full.grid.defences if full.grid.attacks(model, name)])
        for model in MODELS[1:]
    )
    assert seen == len(full.rows) + benign_repeats


def test_the_last_row_of_a_table_counts_the_images_of_its_accuracies():
    def counted(defence, family, correct, count, model="benign", attack="none"):
        return accuracy_row(
            defence=defence,
            family=family,
            threat_model=model,
            attack=attack,
            correct=correct,
            count=count,
        )

    attacked = ("gray-box", "FGSM .03")
    report = EvaluationReport(
        [
            counted(*NONE, 9, 10),
            counted(*NONE, 4, 8, *attacked),
            counted("slow", "TVM", 9, 10),
            counted("slow", "TVM", 4, 6, *attacked),
        ]
    )
    assert report.grid.counts(*attacked, ["none"]) == "8"
    assert report.table().splitlines()[-1].split() == ["images", "10", "6-8"]
    assert re.search(r"^\| images +\| +10 \| +6-8 \|$", report.table("markdown"), re.MULTILINE)


def _words_ending_at(line, end):
    """The words, one space apart, that end at a column."""
    return re.search(r"(\S+( \S+)*)?$", line[:end])[0] if len(line) >= end else ""


def test_markdown_table_names_a_threat_model_over_every_accuracy(full):
    for block in full.table("markdown").split("\n\n")[:-1]:
        head, rule, *lines = [re.split(r" *\| *", line)[1:-1] for line in block.split("\n")]
        assert head[1] == "benign"
        assert all(cell.endswith("-:") for cell in rule[1:])
        for title in head[2:]:
            assert title.partition(": ")[0] in MODELS
        assert all(len(line) == len(head) for line in lines)
    with pytest.raises(ValueError, match="`format` must be 'text' or 'markdown'"):
        full.table("html")


def test_an_interval_follows_each_accuracy_where_it_is_asked_for(full):
    plain, wide = (full.table("markdown", intervals=asked) for asked in (False, True))
    assert re.sub(r" \[\d+-\d+\]", "", wide).split() != wide.split()

    def cells(table):
        return [re.split(r" *\| *", line)[1:-1] for line in table.split("\n")]

    for shown, expected in zip(cells(wide), cells(plain), strict=True):
        assert [re.sub(r" \[\d+-\d+\]$", "", cell) for cell in shown if "--" not in cell] == [
            cell for cell in expected if "--" not in cell
        ]
    found = full.grid.row("none", "benign", "none")
    low, high = (round(100 * end) for end in found["interval"])
    assert f"| {100 * found['accuracy']:.1f} [{low}-{high}] |" in wide


# Curves


@pytest.mark.parametrize(
    "effect",
    [
        {"success": 1.5, "mean_l2": 0.1, "mean_linf": 0.1},
        {"success": 0.5, "mean_l2": "0.1", "mean_linf": 0.1},
        {"success": 0.5},
    ],
)
def test_an_effect_is_a_share_and_two_norms(effect):
    with pytest.raises(ValueError, match="an effect of the numbers"):
        row("none", "none", "gray-box", "FGSM", 0.1, effect=effect)


def test_tables_and_page_say_what_each_attack_did(full, page):
    """Once, for the undefended classifier: it is what can be held against other papers."""
    text, markdown = full.table(), full.table("markdown")
    assert re.search(r"^CW-L2 next +99\.5 +0\.456 +0\.061$", text, re.MULTILINE)
    assert re.search(r"^\| CW-L2 next +\| +99\.5 \| +0\.456 \| +0\.061 \|$", markdown, re.MULTILINE)
    table = next(table for table in page.tables if table[0][1].strip() == "success")
    assert [cell.replace("\xa0", " ").strip() for cell in table[1]] == [
        *("CW-L2 next", "99.5 %", "0.456", "0.061")
    ]
    assert "success" not in minimal_report().table()


def test_curves_start_at_benign_and_keep_the_worst_of_one_strength(full):
    weak = row(
        *("liu2019", OURS, "gray-box", "PGD-100 2/255", 0.01),
        **{"attack_family": "PGD", "norm": "inf", "epsilon": 2 / 255},
    )
    report = EvaluationReport([*full.rows, weak])
    assert plots.swept_attacks(report.rows, "gray-box") == [("PGD", "inf")]
    curves = plots.epsilon_curves(report.grid, report.rows, "gray-box", ("PGD", "inf"))
    mine = next(curve for curve in curves if curve.defence == "liu2019")
    assert mine.epsilons == pytest.approx([0, 1, 2, 4, 8])
    assert mine.accuracy[0] == 0.92
    assert mine.accuracy[2] == 0.01
    families = [curve.family for curve in curves if curve.family != OURS]
    assert len(families) == len(set(families))
    assert {"liu2019", "zigzag15", "designed 4 grids"} <= {curve.defence for curve in curves}


def test_trade_offs_compare_the_same_attacks(full):
    extra = row("liu2019", OURS, "gray-box", "FGSM .1", 0.9)
    grid = EvaluationReport([*full.rows, extra]).grid
    points, attacks = plots.trade_offs(grid, "gray-box")
    assert "FGSM .1" not in attacks
    for point in points:
        shares = [grid.row(point.defence, "gray-box", name)["accuracy"] for name in attacks]
        assert point.attacked == pytest.approx(np.mean(shares))


# The page


class Page(html.parser.HTMLParser):
    """Text, tags and tables of a page."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, source):
        super().__init__()
        self.words, self.attributes, self.tags, self.open, self.headings = [], [], [], [], []
        self.tables = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if "style" not in self.open:
            if self.open and self.open[-1] in ("h2", "h3"):
                self.headings.append(data)
            if "td" in self.open or "th" in self.open:
                self.tables[-1][-1][-1] += f"{data} "


@pytest.fixture(scope="module")
def source(full, tmp_path_factory):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert full.to_html(path) == path
    assert [other.name for other in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_page_stands_alone_and_is_well_formed(source, page):
    assert page.open == []
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert loaded
    assert all(value.startswith("data:image/") for value in loaded)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    for forbidden in ("url(", "@import", "http://", "https://"):
        assert forbidden not in source


def test_every_picture_has_a_description_and_every_table_its_heads(page):
    assert page.tags.count("img") == len([a for a in page.attributes if a[1] == "alt" and a[2]])
    assert page.tags.count("th") == len([a for a in page.attributes if a[:2] == ("th", "scope")])
    # Three trade-offs, two sweeps, two ROC plots, the times, and five for each picture.
    assert page.tags.count("img") == 3 + 2 + 2 + 1 + 2 * 5


def test_page_names_a_threat_model_over_every_accuracy(full, page):
    cells = 0
    for model, table in zip(MODELS, page.tables):
        (_, benign, over), attacks, *lines, counts = table
        assert (benign.strip(), over.strip()) == ("benign", model)
        columns = [("benign", "none"), *((model, attack.strip()) for attack in attacks)]
        assert [each.strip() for each in counts] == [
            *("images", *(full.grid.counts(*column, full.grid.defences) for column in columns))
        ]
        for head, *values in lines:
            name = next(n for n in full.grid.defences if head.startswith(n))
            for value, column in zip(values, columns, strict=True):
                found = full.grid.row(name, *column)
                low, high = (100 * end for end in found["interval"])
                share = f"{100 * found['accuracy']:.1f}"
                assert value.split() == [share, f"{low:.1f}", "to", f"{high:.1f}"]
                cells += 1
    assert cells >= len(full.rows)
    shown = " ".join(" ".join(page.words).split())
    assert full.verdict in shown
    for name, definition in THREAT_MODELS.items():
        assert (definition[1:] in shown) == (name in ("benign", *MODELS))


def test_page_holds_what_is_needed_to_run_it_again(full, page):
    shown = " ".join(" ".join(page.words).split())
    assert full.settings["command"] in shown
    for phrase in ("iterations: 20", "seed 7", "2.21", "5400", full.settings["selection"]):
        assert phrase in shown
    assert "the fastest table: median 3x3 7, SHIELD SLQ 11, quilting 261, TVM 0.03 2323." in shown
    for entry in full.detection:
        assert f"{100 * entry['detection_rate']:.1f}" in shown


def test_failures_are_loud_and_come_first(source, page, tmp_path):
    assert source.index('role="alert"') < source.index('class="verdict"')
    assert page.headings[0] == "1 of 4 sanity checks failed: do not trust these figures"
    calm = full_report(failed=0).to_html(tmp_path / "calm.html").read_text(encoding="utf-8")
    assert 'role="alert"' not in calm
    assert "4 of 4 passed" in calm


@pytest.mark.parametrize("make", [minimal_report, lambda: EvaluationReport([])])
def test_sections_without_data_are_left_out(make, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    page = Page(make().to_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert set(page.headings) <= {"Accuracy", "benign", "Sanity checks", "Threat models"}
    assert "img" not in page.tags


def test_same_report_gives_the_same_page(full, source, tmp_path):
    again = EvaluationReport.from_json(full.to_json())
    again = dataclasses.replace(again, pictures=full.pictures)
    assert again.to_html(tmp_path / "page.html").read_text(encoding="utf-8") == source


ATTRIBUTES = {"charset", "name", "content", "lang", "class", "role", "style", "title", "tabindex"}
ATTRIBUTES |= {"scope", "rowspan", "colspan", "src", "alt", "aria-label"}
NASTY = "<script>alert('&\"$x$ 100 % \\frac')</script>"


def test_names_are_text_everywhere(tmp_path):
    """Whatever stands in a report is shown, and changes neither the page nor a plot."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")

    def spoilt(value, key=""):
        if isinstance(value, dict):
            return {name: spoilt(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoilt(item, key) for item in value]
        fixed = ("threat_model", "norm", "split")
        keep = key in fixed or (key in ("attack", "family") and value in ("none", OURS))
        return value + NASTY if isinstance(value, str) and not keep else value

    full = full_report()
    parts = {name: spoilt(getattr(full, name)) for name in ("rows", "defences", "checks")}
    parts |= {name: spoilt(getattr(full, name)) for name in ("detection", "settings", "pictures")}
    parts["settings"][f"file {NASTY}"] = [{f"name {NASTY}": 1}]
    page = Page(EvaluationReport(**parts).to_html(tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.open == []
    assert {name for _, name, _ in page.attributes} <= ATTRIBUTES
    shown = " ".join(" ".join(page.words).split())
    for name in ("liu2019", "FGSM .0078", "adaptive no gentler than gray-box", "sea lion", "2.21"):
        assert f"{name}{NASTY}" in shown
    assert shown.count(f"file {NASTY}") == shown.count(f"name {NASTY}") == 1
    assert ("img", "alt", f"sea lion{NASTY}, benign") in page.attributes


printable = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30)
json_values = st.recursive(
    printable | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
@settings(max_examples=60)
def test_settings_are_shown_as_text(value):
    page = Page(environment().get_template("macros.html.j2").module.tree(value))
    assert page.open == []
    assert set(page.tags) <= {"dl", "dt", "dd", "ul", "li"}
    assert page.attributes == []
    if isinstance(value, str):
        assert "".join(page.words) == value


def test_differences_are_amplified_as_said(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    grey = np.full((8, 8, 1), 100, np.uint8)
    names = ("defence", "attack", "threat_model", "true", "predicted_benign")
    example = dict.fromkeys((*names, "predicted_attacked", "predicted_distilled"), "gray-box")
    example |= {"benign": grey, "attacked": grey + 4, "distilled": grey + 99}
    report = EvaluationReport([], pictures=[example])
    page = report.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "attacked minus benign, amplified 16 times" in page
    assert "distilled minus benign, not amplified" in page


def test_figures_draw_at_their_limits():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    crowd = [row(f"table {n}", OURS, "benign", "none", 0.9) for n in range(30)]
    crowd += [row(f"table {n}", OURS, "gray-box", "FGSM", 0.5) for n in range(30)]
    points, _ = plots.trade_offs(EvaluationReport(crowd).grid, "gray-box")
    crowded = plots.plot_trade_off(points, "gray-box")
    figure_uri(crowded)
    # The first is named, none covers another.
    names = [note.get_text() for note in crowded.axes[0].texts]
    assert "table 0" in names
    assert len(names) < 30
    curve = plots.EpsilonCurve("none", "none", (0.0, 127.5), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    figure_uri(plots.plot_epsilons([curve], "adaptive"))
    roc = {"attack": "A", "roc": {"fpr": [0, 1], "tpr": [0, 1]}}
    figure_uri(plots.plot_roc([{**roc, "auc": 0.5, "detection_rate": 0, "false_positive_rate": 0}]))
    figure_uri(plots.plot_times([{"name": "x" * 99, "family": "new", "ms_per_image": 1e-6}]))


def test_row_helper_refuses_a_missing_threat_model():
    with pytest.raises(TypeError, match="threat_model"):
        accuracy_row(defence="none", family="none", correct=1, count=2)


def test_a_row_may_be_of_the_validation_split_but_not_in_a_report():
    arguments = {"defence": "none", "family": "none", "threat_model": "benign"}
    chosen_on = accuracy_row(**arguments, correct=1, count=2, split="validation")
    assert chosen_on["split"] == "validation"
    with pytest.raises(ValueError, match="split 'test'"):
        EvaluationReport([chosen_on])
    with pytest.raises(ValueError, match="split 'test' or 'validation'"):
        accuracy_row(**arguments, correct=1, count=2, split="report")


def test_the_epsilon_axis_ends_with_the_data_and_leaves_out_what_has_no_bound():
    rows = [row(*NONE, "benign", "none", 1.0)]
    for epsilon in (1, 2, 4, 127.5):
        about = {"attack_family": "PGD", "norm": "inf", "epsilon": epsilon / 255}
        rows.append(row(*NONE, "adaptive", f"PGD {epsilon}", 0.5, **about))
    grid = EvaluationReport(rows).grid
    assert plots.swept_attacks(rows, "adaptive") == [("PGD", "inf")]
    (curve,) = plots.epsilon_curves(grid, rows, "adaptive", ("PGD", "inf"))
    assert curve.epsilons == (0.0, 1.0, 2.0, 4.0)
    (axis,) = plots.plot_epsilons([curve], "adaptive").axes
    assert axis.get_xlim() == (0.0, 4.0)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "1", "2", "4"]


def test_a_page_draws_the_steps_of_tables_once_for_channels_that_share_them():
    table = preset_table("jpeg:50").to_dict()
    defences = [
        {
            "name": "mine",
            "family": OURS,
            "settings": {"table": table, "extra": 3},
            "ms_per_image": None,
            "chosen_from": [],
        },
    ]
    fields = page_fields(AccuracyGrid([]), [], defences, [], [])
    assert [plot.caption for plot in fields["tables"]] == [", Y", ", Cb, Cr"]
    assert fields["brief"] == {"mine": {"extra": 3, "color_space": "ycbcr", "cycle_spins": 1}}


def test_representations_are_short_and_notebooks_get_escaped_tables():
    report = full_report()
    assert repr(report).startswith("EvaluationReport(")
    assert len(repr(report)) < 200
    hostile = "<script>alert(1)</script>"
    shown = EvaluationReport(attacked((hostile, "JPEG"), 1.0, 0.5))._repr_html_()
    assert hostile not in shown
    assert "&lt;script&gt;" in shown
    assert "gray-box: BIM .004" in shown
    for thing in (distillation("jpeg:50"), PROTOCOLS["linf-sweep"], preset_table("jpeg:50")):
        assert len(repr(thing)) < 500


def test_tables_of_text_fit_80_columns_and_lose_no_figure():
    text = full_report().table()
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"{epsilon}/255" in text for epsilon in EPSILONS)
    assert full_report().table("markdown").count("PGD-20 8/255") == 2


def test_an_attack_without_a_bound_is_in_no_mean():
    """Nothing withstands it: it is a sanity check, and diluted means and plots."""
    rows = [row(*who, "benign", "none", 1.0) for who in (NONE, MINE, BASELINE)]
    for who, left in ((NONE, 0.2), (MINE, 0.6), (BASELINE, 0.4)):
        rows.append(row(*who, "adaptive", "PGD-20 4/255", left, norm="inf", epsilon=4 / 255))
        rows.append(row(*who, "adaptive", "PGD-20 .5", 0.0, norm="inf", epsilon=0.5))
    report = EvaluationReport(rows)
    assert "under adaptive PGD-20 4/255 from 20.0 % to 60.0 %" in report.verdict
    assert "JPEG q85, does worse: 40.0 % (adaptive)" in report.verdict
    points, attacks = plots.trade_offs(AccuracyGrid(rows), "adaptive")
    assert attacks == ["PGD-20 4/255"]
    assert [point.attacked for point in points] == [0.2, 0.6, 0.4]
