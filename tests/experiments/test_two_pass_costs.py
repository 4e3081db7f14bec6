"""What certified tables cost: the pages agree with the JSON files."""

import json

from experiments import certified_front, guided_encoding
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
