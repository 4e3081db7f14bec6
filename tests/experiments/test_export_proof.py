"""The proof of the exports as it is committed."""

import json
from pathlib import Path

from experiments.export_proof import markdown

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_markdown_is_what_the_json_file_says():
    result = json.loads((RESULTS / "export_proof.json").read_text(encoding="utf-8"))
    assert markdown(result) == (RESULTS / "export_proof.md").read_text(encoding="utf-8")
