"""The paper's table as it is committed."""

from pathlib import Path

from experiments.paper_table import kept, summary

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_markdown_is_what_the_json_file_says():
    """Written anew by ``python -m experiments.paper_table --page``."""
    markdown = (RESULTS / "paper_table.md").read_text(encoding="utf-8")
    assert summary(kept(RESULTS / "paper_table.json")) == markdown
