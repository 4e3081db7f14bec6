"""HTML pages by Jinja2, each one file that needs no network and no other file."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
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
_VARIABLES = {PAGE_INK: "var(--ink)", PAGE_SOFT: "var(--soft)", PAGE_PAPER: "var(--paper)"}

_LIGHT = "--ink: #1b2733; --soft: #5a6875; --paper: #fff;"
_DARK = "--ink: #e4eaf0; --soft: #9dabb8; --paper: #12181f;"


def render_page(path: str | os.PathLike[str], template: str | Path, /, **fields: Any) -> None:
    """Render a template and write the page, replacing ``path`` atomically.

    What a field holds is shown as text: HTML in it is escaped. A template extends
    ``base.html.j2`` and fills its blocks ``title``, ``style`` and ``main``; the filter
    ``percent`` writes a share in %.

    Args:
        path: File to write.
        template: Name of a file in ``fd_keras/templates``, or the path of another file.
        **fields: What the template shows.

    Raises:
        ImportError: Jinja2 is not installed.
        jinja2.TemplateError: There is no such template, or it needs another field.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "hello.j2").write_text("<p>{{ name }}: {{ share | percent }} %</p>")
        >>> render_page(folder / "hello.html", folder / "hello.j2", name="R&D", share=0.5)
        >>> (folder / "hello.html").read_text()
        '<p>R&amp;D: 50.0 %</p>'
    """
    if isinstance(template, str):
        found = environment().get_template(template)
    else:
        found = environment().from_string(template.read_text(encoding="utf-8"))
    page = found.render(fields)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


@cache
def environment() -> Any:
    """The Jinja2 environment of all pages, which escapes what templates show.

    Raises:
        ImportError: Jinja2 is not installed.

    Example:
        >>> environment().from_string("{{ name }}").render(name="<script>")
        '&lt;script&gt;'
    """
    jinja2 = import_extra("jinja2", "evaluate")
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("fd_keras"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = lambda share: f"{100 * share:.1f}"
    made.globals["inks"] = _inks(":root")
    return made


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
    # The page's own style does not reach into an image.
    svg = buffer.getvalue().replace("<defs>", f"<style>{_inks('svg')}</style><defs>", 1)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return _data_uri("image/svg+xml", svg.encode("utf-8"))


def _inks(selector: str) -> str:
    dark = f"@media (prefers-color-scheme: dark) {{ {selector} {{ {_DARK} }} }}"
    return f"{selector} {{ {_LIGHT} }}\n{dark}\n"


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
