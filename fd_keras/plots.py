"""Plots of tables, statistics and designs, and what all plots share: colours, axes, names.

Every function that plots returns a ``matplotlib.figure.Figure``. matplotlib comes with the extra
``evaluate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras._checks import printable, shown
from fd_keras._extras import import_extra
from fd_keras._pages import PAGE_INK, PAGE_PAPER, PAGE_SOFT
from fd_keras.dct import BLOCK_SIZE, ColorSpace, zigzag_rank
from fd_keras.design import band_distortion, band_removal, rank_bands
from fd_keras.statistics import CoefficientStatistics
from fd_keras.tables import QuantizationTable

# Middle tones, which stand out from white and from near-black.
PALETTE = {
    "orange": "#e0561b",
    "blue": "#2f7fd1",
    "green": "#2a9d6f",
    "violet": "#9a63d6",
    "ochre": "#b08a00",
    "pink": "#d14d8b",
    "grey": "#7f8b97",
    "teal": "#4aa3a8",
    "red": "#b3261e",
    "amber": "#e8a020",
    "brown": "#8a4b2a",
}
# Many points behind the others.
PALE = "#c9d3dc"

_FAMILIES = {
    "feature distillation": PALETTE["orange"],
    "none": PAGE_INK,
    "JPEG": PALETTE["blue"],
    "bit depth": PALETTE["grey"],
    "median": PALETTE["green"],
    "SLQ": PALETTE["violet"],
    "TVM": PALETTE["ochre"],
    "quilting": PALETTE["pink"],
}

# For numbers in light cells: unlike PAGE_INK, it does not turn light on a dark page.
_DARK_TEXT = "#1b2733"

# Epsilons, in grey levels, of the curves of removal probability.
_EPSILONS = (1.0, 2.0, 4.0, 8.0)


def color_of(subject: str | int) -> str:
    """The colour of a family of defences, or of one of several curves.

    Args:
        subject: Family of a defence, such as ``"JPEG"``, or number of a curve, from 0.

    Returns:
        A value of ``PALETTE``, or the page's ink for ``"none"``, no defence.

    Example:
        >>> color_of("JPEG") == color_of(1) == PALETTE["blue"]
        True
    """
    if isinstance(subject, int):
        return list(PALETTE.values())[subject % len(PALETTE)]
    return _FAMILIES.get(subject, PALETTE["teal"])


def plot_table(table: QuantizationTable) -> Any:
    """Heat maps of a table's steps, one for each channel, with the numbers in them.

    Args:
        table: The table.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> from fd_keras import preset_table
        >>> len(plot_table(preset_table("jpeg")).axes)
        3
    """
    figure, axes = _row_of_maps(table.channels)
    names = channel_names(table.channels, table.color_space)
    for axis, steps, name in zip(axes, table.steps, names):
        draw_steps(axis, steps, darkest=max(64.0, float(table.steps.max())))
        axis.set_title(f"{_before(name)}steps", fontsize=10)
    figure.suptitle(
        f"{short_name(table.name, 60)} ({table.color_space}, {table.cycle_spins} "
        f"{'grid' if table.cycle_spins == 1 else 'grids'}"
        f"{'' if table.quantizer == 'round' else ', soft thresholding'})"
    )
    return figure


def draw_steps(axis: Any, steps: npt.NDArray[np.float64], *, darkest: float = 64.0) -> None:
    """Draw quantisation steps as a heat map of the 64 bands, with the numbers in it.

    Args:
        axis: A matplotlib ``Axes``.
        steps: Array ``(8, 8)``.
        darkest: Step that gets the darkest colour.

    Example:
        >>> from matplotlib.figure import Figure
        >>> draw_steps(Figure().subplots(), np.full((8, 8), 30.0))
    """
    _draw_bands(axis, steps, "Blues", 0, darkest, [f"{step:.3g}" for step in steps.ravel()])


def plot_statistics(statistics: CoefficientStatistics) -> Any:
    """Heat maps of the bands' standard deviations, and of their ranks by them.

    Upper row: ``20 log10(std)`` of each band, in decibels. Lower row: its rank by standard
    deviation, with a dot where that is more than 5 places away from the zig-zag order.

    Args:
        statistics: Of benign images.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3))
        >>> len(plot_statistics(CoefficientStatistics.from_data(images)).axes)
        6
    """
    figure, axes = _row_of_maps(statistics.channels, rows=2)
    names = channel_names(statistics.channels, statistics.color_space)
    decibels = 20 * np.log10(np.maximum(statistics.std, 1e-3))
    ranks = rank_bands(statistics.std, "sigma")
    for column, name in enumerate(names):
        labels = [f"{value:.0f}" for value in np.rint(decibels[column]).ravel() + 0.0]
        top, bottom = axes[0][column], axes[1][column]
        _draw_bands(top, decibels[column], "viridis", decibels.min(), decibels.max(), labels)
        top.set_title(f"{_before(name)}sigma in dB", fontsize=10)
        moved = np.abs(ranks[column] - zigzag_rank()) > 5
        labels = [f"{r}{'·' if m else ''}" for r, m in zip(ranks[column].ravel(), moved.ravel())]
        _draw_bands(bottom, 63.0 - ranks[column], "Blues", 0, 63, labels)
        bottom.set_title(f"{_before(name)}rank by sigma", fontsize=10)
    return figure


def plot_design(
    statistics: CoefficientStatistics,
    table: QuantizationTable,
    *,
    epsilons: Sequence[float] = _EPSILONS,
) -> Any:
    """Predicted removal of perturbations and distortion of benign images, band by band.

    The model assumes independent signs of plus or minus epsilon at every pixel and channel, and
    one block grid; see ``fd_keras.design.band_removal`` for how well that holds. Bands are in the
    order of their standard deviation. Upper row: predicted probability that a perturbation of
    each size is rounded away, or that a coefficient stays in its dead zone. Lower row: predicted
    distortion of benign images, as root mean square in grey levels.

    Args:
        statistics: Of benign images, in the table's colour space.
        table: The table.
        epsilons: Largest perturbations of a pixel, in grey levels.

    Returns:
        A figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Table and statistics do not fit each other.

    Example:
        >>> images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3))
        >>> from fd_keras import preset_table
        >>> statistics = CoefficientStatistics.from_data(images)
        >>> len(plot_design(statistics, preset_table("liu2019")).axes)
        6

    References:
        The model: ``fd_keras.design.removal``.
    """
    if table.color_space != statistics.color_space:
        raise ValueError(
            f"`table` must be in the statistics' color_space={statistics.color_space!r}. "
            f"Received: table={shown(table)}"
        )
    steps = table.steps_for(statistics.channels)
    figure = empty_figure(1.2 + 3.2 * statistics.channels, 5)
    axes = figure.subplots(2, statistics.channels, squeeze=False, sharex=True, sharey="row")
    order = np.argsort(rank_bands(statistics.std, "sigma").reshape(-1, BLOCK_SIZE**2), axis=1)
    color_map = import_extra("matplotlib", "evaluate").colormaps["viridis_r"]
    for number, epsilon in enumerate(epsilons):
        removal = band_removal(statistics, steps, epsilon, quantizer=table.quantizer)
        color = color_map(0.2 + 0.8 * number / max(1, len(epsilons) - 1))
        for axis, values, bands in zip(axes[0], removal, order):
            axis.plot(values.ravel()[bands], color=color, label=f"{epsilon:g}/255")
    distortion = np.sqrt(band_distortion(statistics, steps, quantizer=table.quantizer))
    names = channel_names(statistics.channels, statistics.color_space)
    for column, name in enumerate(names):
        axes[0][column].set_title(name.strip(" :") or "image", fontsize=10)
        axes[1][column].plot(distortion[column].ravel()[order[column]], color=PAGE_INK)
        axes[1][column].set_xlabel("bands, widest spread first")
    axes[0][0].set(ylabel="predicted removal", ylim=(0, 1.02))
    axes[1][0].set(ylabel="benign error (RMS)", ylim=(0, None))
    axes[0][0].legend(title="epsilon", fontsize=8)
    figure.suptitle(
        f"{short_name(table.name, 60)}: removal and cost by band,\n"
        "modelled for independent changes of ±epsilon at every pixel and one block grid",
        fontsize=10,
    )
    return figure


def empty_figure(width: float, height: float) -> Any:
    """A figure whose layout fits its content.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> empty_figure(4, 3).axes
        []
    """
    # The Figure class, unlike pyplot, leaves the caller's backend and open figures alone.
    figure_class = import_extra("matplotlib.figure", "evaluate").Figure
    return figure_class(figsize=(width, height), layout="constrained")


def empty_axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure and its only axes, open at the top and on the right, over a faint grid.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> figure, axis = empty_axes(4, 3)
        >>> figure.axes == [axis]
        True
    """
    figure = empty_figure(width, height)
    axis = figure.subplots()
    axis.grid(True, color=PAGE_SOFT, alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _row_of_maps(columns: int, rows: int = 1) -> tuple[Any, Any]:
    figure = empty_figure(3.2 * columns, 3.2 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes[0] if rows == 1 else axes


def _draw_bands(
    axis: Any,
    values: npt.NDArray[np.float64],
    color_map: str,
    low: float,
    high: float,
    labels: Sequence[str],
) -> None:
    image = axis.imshow(values, cmap=color_map, vmin=low, vmax=max(high, low + 1e-9))
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        text = labels[row * BLOCK_SIZE + column]
        color = "white" if dark else _DARK_TEXT
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axis.set(
        xlabel="horizontal frequency",
        ylabel="vertical frequency",
        xticks=range(BLOCK_SIZE),
        yticks=range(BLOCK_SIZE),
    )
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def channel_names(channels: int, color_space: ColorSpace) -> list[str]:
    """What the channels of a table are called; a single one has no name.

    Args:
        channels: Number of channels.
        color_space: Of the table.

    Example:
        >>> channel_names(3, "ycbcr"), channel_names(1, "ycbcr")
        (['Y', 'Cb', 'Cr'], [''])
    """
    if channels == 1:
        return [""]
    if channels == 3:
        return ["Y", "Cb", "Cr"] if color_space == "ycbcr" else list("RGB")
    return [f"channel {index}" for index in range(channels)]


def _before(name: str) -> str:
    return f"{name}: " if name else ""


# Around a point: offset in points, and which side of the name it is that lies there.
_PLACES = (
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, 8, "center", "bottom"),
    (0, -8, "center", "top"),
    (6, 6, "left", "bottom"),
    (-6, 6, "right", "bottom"),
    (6, -6, "left", "top"),
    (-6, -6, "right", "top"),
)


@dataclass(frozen=True)
class NamedPoint:
    """A point of a plot.

    Args:
        name: What is written beside it.
        x: In the units of the axis.
        y: In the units of the axis.
        bold: Whether the name stands out.
        color: Of the name.

    Example:
        >>> NamedPoint("liu2019", 96.0, 35.0).bold
        False
    """

    name: str
    x: float
    y: float
    bold: bool = False
    color: str = PAGE_INK


def place_names(figure: Any, axis: Any, points: Sequence[NamedPoint]) -> None:
    """Write each name beside its point, at the first place where it covers nothing.

    A name without such a place is left out. Nothing may be drawn afterwards that changes the
    layout.

    Args:
        figure: A matplotlib figure that is complete but for the names.
        axis: One of its axes.
        points: Earlier ones are served first.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> figure = Figure()
        >>> axis = figure.subplots()
        >>> place_names(figure, axis, [NamedPoint("here", 0.5, 0.5)])
        >>> [text.get_text() for text in axis.texts]
        ['here']
    """
    agg = import_extra("matplotlib.backends.backend_agg", "evaluate")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # or the names would move what they were placed around
    renderer = agg.FigureCanvasAgg(figure).get_renderer()
    bbox = import_extra("matplotlib.transforms", "evaluate").Bbox
    effects = import_extra("matplotlib.patheffects", "evaluate")
    halo = [effects.withStroke(linewidth=2.5, foreground=PAGE_PAPER)]
    frame = axis.get_window_extent(renderer)
    centres = axis.transData.transform([(point.x, point.y) for point in points])
    taken = [bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in centres]
    for point in points:
        for x, y, across, up in _PLACES:
            name = axis.annotate(
                short_name(point.name),
                (point.x, point.y),
                **{"xytext": (x, y), "textcoords": "offset points", "ha": across, "va": up},
                **{"fontsize": 9 if point.bold else 7.5},
                fontweight="bold" if point.bold else "normal",
                color=point.color,
                path_effects=halo,
                zorder=6,
            )
            box = name.get_window_extent(renderer)
            inside = bool(frame.contains(*box.min) and frame.contains(*box.max))
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            name.remove()


def short_name(name: str, most: int = 24) -> str:
    """A name as one line of at most some length, which matplotlib takes for no formula.

    Args:
        name: Any text.
        most: Maximum number of characters.

    Example:
        >>> short_name("a" * 30, 5)
        'aaaa…'
    """
    name = printable(name)
    cut = name if len(name) <= most else f"{name[: most - 1]}…"
    # What stands between dollar signs would be read as a formula.
    return cut.replace("$", r"\$")
