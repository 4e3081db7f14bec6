"""What the HTML pages share: each is one file that needs no network and no other file."""

from __future__ import annotations

import base64
import importlib.resources
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fd_keras._extras import import_extra
from fd_keras._files import atomic_path

# A plot that uses these colours gets the page's own, dark or light, in their place.
PAGE_INK = "#1a2732"
PAGE_SOFT = "#5b6876"
PAGE_PAPER = "#fefdfe"

# Their values are those of pages.css, which does not reach into an image.
_PLOT_STYLE = """<style>svg{--ink:#1b2733;--soft:#5a6875;--paper:#fff}
@media (prefers-color-scheme:dark){svg{--ink:#e4eaf0;--soft:#9dabb8;--paper:#12181f}}</style>"""
_PLOT_COLORS = {PAGE_INK: "var(--ink)", PAGE_SOFT: "var(--soft)", PAGE_PAPER: "var(--paper)"}


def write_page(
    path: str | os.PathLike[str], package: str, template: str, fields: dict[str, Any]
) -> None:
    """Fill a template and write it, replacing ``path`` atomically.

    Args:
        path: File to write.
        package: Package that holds the template.
        template: Its file name. ``$style`` in it stands for the style all pages share.
        fields: Its other fields, as HTML.

    Raises:
        KeyError: A field is missing.
        OSError: The file cannot be written.

    Example:
        >>> write_page("page.html", "fd_keras.evaluation", "page.html", {})  # doctest: +SKIP
    """
    text = importlib.resources.files(package).joinpath(template).read_text(encoding="utf-8")
    style = importlib.resources.files("fd_keras").joinpath("pages.css").read_text(encoding="utf-8")
    page = Template(text).substitute(fields, style=style)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def picture_uri(pixels: npt.NDArray[np.generic]) -> str:
    """An image as a data URI.

    Args:
        pixels: Array ``(height, width, channels)`` from 0 to 255; 1 channel for grey, 3 for RGB.

    Returns:
        ``data:image/png;base64,...``

    Example:
        >>> picture_uri(np.zeros((4, 4, 1), np.float32))[:22]
        'data:image/png;base64,'
    """
    levels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(buffer, "PNG")
    return _data_uri("image/png", buffer.getvalue())


@contextmanager
def page_colors() -> Iterator[None]:
    """Draw the plots of the block with text and axes in the page's colours.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> with page_colors():
        ...     axis = Figure().subplots()
        >>> axis.xaxis.label.get_color()
        '#1a2732'
    """
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with import_extra("matplotlib", "evaluate").rc_context(dict.fromkeys(names, PAGE_INK)):
        yield


def figure_uri(figure: Any) -> str:
    """A plot as a data URI that stays legible on a light and on a dark page.

    Args:
        figure: A matplotlib figure, drawn within ``page_colors``.

    Returns:
        ``data:image/svg+xml;base64,...``; the same for the same plot.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> figure_uri(Figure())[:26]
        'data:image/svg+xml;base64,'
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with import_extra("matplotlib", "evaluate").rc_context({"svg.hashsalt": "fd_keras"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue().replace("<defs>", f"{_PLOT_STYLE}<defs>", 1)
    for color, variable in _PLOT_COLORS.items():
        svg = svg.replace(color, variable)
    return _data_uri("image/svg+xml", svg.encode("utf-8"))


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
