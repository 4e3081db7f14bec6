"""Names of points in a plot, where they cover nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fd_keras.extras import import_extra
from fd_keras.pages import PAGE_PAPER

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

    Example:
        >>> NamedPoint("liu2019", 96.0, 35.0).bold
        False
    """

    name: str
    x: float
    y: float
    bold: bool = False


def place_names(figure: Any, axis: Any, points: Sequence[NamedPoint]) -> None:
    """Write each name at the first place around its point where nothing else stands.

    A name that finds no place is left out. Nothing may be drawn afterwards that changes the
    layout.

    Args:
        figure: A matplotlib figure whose plots are complete.
        axis: One of its axes.
        points: Earlier ones choose first.

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
    """A name of bounded length as matplotlib shows it.

    Args:
        name: Any text.
        most: Number of characters.

    Example:
        >>> short_name("a" * 30, 5)
        'aaaa…'
    """
    cut = name if len(name) <= most else f"{name[: most - 1]}…"
    # What stands between dollar signs would be read as a formula.
    return cut.replace("$", r"\$")
