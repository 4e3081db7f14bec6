"""The comparison of quantisers as it is committed, and what it compares."""

import json

import numpy as np
import pytest

from experiments import adaptive_table
from experiments.harness import RESULTS
from experiments.quantizers import FAMILIES, page, table_of


def test_the_page_agrees_with_the_json_file():
    results = json.loads((RESULTS / "quantizers.json").read_text())
    assert (RESULTS / "quantizers.md").read_text(encoding="utf-8") == page(results)


def test_the_page_of_tables_for_attackers_who_know_them_agrees_with_its_json_file():
    results = json.loads((RESULTS / "adaptive_table.json").read_text())
    written = (RESULTS / "adaptive_table.md").read_text(encoding="utf-8")
    assert written == adaptive_table.page(results)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_differ_in_quantiser_and_grids_alone(family):
    table = table_of(family, 12.0)
    assert (table.quantizer, table.cycle_spins) == FAMILIES[family]
    np.testing.assert_array_equal(table.steps, table_of("rounding", 12.0).steps)
    assert table.color_space == "ycbcr"
