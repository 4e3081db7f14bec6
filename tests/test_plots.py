"""What plots say of themselves; the command line's tests draw them."""

import pytest

from fd_keras import CoefficientStatistics, preset_table

pytest.importorskip("matplotlib")

from fd_keras.plots import plot_design


def test_design_states_what_it_assumes(photos):
    figure = plot_design(CoefficientStatistics.from_data(photos), preset_table("liu2019"))
    title = figure.get_suptitle()
    assert "liu2019" in title
    assert "independent" in title
    assert "one block grid" in title
