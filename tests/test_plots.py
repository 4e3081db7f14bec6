"""What plots say of themselves; the command line's tests draw them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_keras import CoefficientStatistics, QuantizationTable, preset_table

pytest.importorskip("matplotlib")

from fd_keras.plots import plot_design, plot_table, short_name


def test_design_states_what_it_assumes(photos):
    figure = plot_design(CoefficientStatistics.from_data(photos), preset_table("liu2019"))
    title = figure.get_suptitle()
    assert "liu2019" in title
    assert "independent" in title
    assert "one block grid" in title


def test_design_of_soft_thresholding_leaves_dc_alone(photos):
    table = preset_table("soft8")
    figure = plot_design(CoefficientStatistics.from_data(photos, color_space="ycbcr"), table)
    for axis in figure.axes:  # bands by their spread: DC is the first
        assert all(line.get_ydata()[0] == 0 for line in axis.lines)
        assert all(line.get_ydata()[1:].min() > 0 for line in axis.lines)
    assert "soft thresholding" in plot_table(table).get_suptitle()


NAMES = st.text(max_size=40) | st.text("$\\_^{}%&#~a", max_size=40)


@pytest.mark.parametrize(
    "name", [r"$\foo$", "a$b$c", "\x1b[31mred", "two\nlines", "a\u2028b", "$" * 99]
)
def test_any_name_is_drawn_as_text(name, photos):
    table = QuantizationTable(np.full((8, 8), 30.0), provenance={"name": name})
    for figure in (plot_table(table), plot_design(CoefficientStatistics.from_data(photos), table)):
        figure.draw_without_rendering()
        (title,) = [text for text in figure.texts if text.get_text() == figure.get_suptitle()]
        assert not title._preprocess_math(title.get_text())[1]
        assert len(title.get_text().splitlines()) <= 2


@given(NAMES)
@settings(max_examples=50)
def test_short_names_hold_no_formula_and_no_line_break(name):
    from matplotlib.text import Text

    text, is_math = Text()._preprocess_math(short_name(name))
    assert not is_math
    assert len(text.splitlines()) <= 1
