"""What certified tables cost and hold: the pages agree with the JSON files."""

import json

from experiments import around_radius, certified_front, guided_encoding
from experiments.harness import RESULTS


def test_pages_agree_with_their_json_files():
    for experiment in (certified_front, guided_encoding):
        rows = json.loads((RESULTS / experiment.FILE).read_text())["rows"]
        page = RESULTS / experiment.FILE.replace(".json", ".md")
        assert page.read_text(encoding="utf-8") == experiment.page(rows)


def test_every_row_reaches_its_radius():
    for row in json.loads((RESULTS / certified_front.FILE).read_text())["rows"]:
        assert row["least_radius"] >= row["radius"]
    for row in json.loads((RESULTS / guided_encoding.FILE).read_text())["rows"]:
        radius = float(row["table"].split(":")[1])
        assert min(row[kind]["radius"] for kind in ("unguided", "guided")) >= radius


def test_no_attack_wins_within_the_radius():
    results = json.loads((RESULTS / f"{around_radius.FILE}.json").read_text())
    assert (RESULTS / f"{around_radius.FILE}.md").read_text() == around_radius.page(results)
    for rows in results.values():
        for row in rows.values():
            within = [counts for name, counts in row.items() if name.endswith(" within")]
            assert sum(count for _, count in within) > 0
            assert all(kept == count for kept, count in within)
