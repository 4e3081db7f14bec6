"""Pieces of HTML that the evaluation page is made of."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras.pages import figure_uri, picture_uri

# Images this narrow are enlarged with sharp pixels.
_SMALL = 100


def text(value: object) -> str:
    """Any value as text that HTML does not interpret.

    Args:
        value: Is turned into a string.

    Example:
        >>> text("<script>")
        '&lt;script&gt;'
    """
    return html.escape(str(value))


def section(title: str, body: str) -> str:
    """A part of the page under its title; nothing if it is empty.

    Args:
        title: Plain text.
        body: HTML.

    Example:
        >>> section("Time", "")
        ''
    """
    return f"<section><h2>{text(title)}</h2>\n{body}</section>" if body else ""


def plot(figure: Any, alt: str, caption: str) -> str:
    """A matplotlib figure with its caption.

    Args:
        figure: The figure.
        alt: Plain text for readers who do not see it.
        caption: HTML.

    Example:
        >>> from matplotlib.figure import Figure
        >>> plot(Figure(), "nothing", "<b>Nothing</b>")[:32]
        '<figure><img src="data:image/svg'
    """
    image = f'<img src="{figure_uri(figure)}" alt="{text(alt)}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def accuracy_cell(row: Mapping[str, Any] | None) -> str:
    """A table cell with an accuracy in percent and its interval.

    Args:
        row: The figure, or ``None`` where there is none.

    Example:
        >>> accuracy_cell({"accuracy": 0.5, "interval": [0.4, 0.6], "correct": 5, "count": 10})
        '<td style="--share:50.0%" title="5 of 10">50.0<small>40.0 to 60.0</small></td>'
    """
    if row is None:
        return '<td class="missing">not run</td>'
    percent = 100 * row["accuracy"]
    low, high = (100 * end for end in row["interval"])
    return (
        f'<td style="--share:{percent:.1f}%" title="{row["correct"]} of {row["count"]}">'
        f"{percent:.1f}<small>{low:.1f} to {high:.1f}</small></td>"
    )


def definition_list(value: Any) -> str:
    """JSON as nested lists.

    Args:
        value: Any JSON.

    Example:
        >>> definition_list({"batch_size": 32})
        '<dl><dt>batch size</dt><dd>32</dd></dl>'
        >>> definition_list([{"name": "FGSM", "epsilon": 0.0078}])
        '<ul><li>name: FGSM, epsilon: 0.0078</li></ul>'
    """
    if isinstance(value, Mapping):
        items = (
            f"<dt>{text(key).replace('_', ' ')}</dt><dd>{definition_list(item)}</dd>"
            for key, item in value.items()
        )
        return f"<dl>{''.join(items)}</dl>" if value else ""
    if isinstance(value, list):
        if any(isinstance(item, list | Mapping) for item in value):
            return f"<ul>{''.join(f'<li>{in_line(item)}</li>' for item in value)}</ul>"
        return text(", ".join(map(str, value)))
    return text("" if value is None else value)


def in_line(value: Any) -> str:
    """JSON in one line, for a table cell.

    Args:
        value: Any JSON.

    Example:
        >>> in_line({"cycle_spins": 4, "sizes": [1, 2]})
        'cycle spins: 4, sizes: [1, 2]'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{text(key).replace('_', ' ')}: {in_line(i)}" for key, i in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(in_line, value))}]"
    return text(value)


def example_strip(example: Mapping[str, Any]) -> str:
    """One image benign, attacked and distilled, and the differences to the benign one.

    Args:
        example: Entry of a report's ``pictures``.

    Example:
        >>> grey = dict.fromkeys(("benign", "attacked", "distilled"), np.zeros((2, 2, 1), "u1"))
        >>> names = ("predicted_benign", "predicted_attacked", "predicted_distilled", "true")
        >>> names += ("defence", "attack", "threat_model")
        >>> example_strip({**grey, **dict.fromkeys(names, "cat")}).count("<img")
        5
    """
    benign = np.asarray(example["benign"])
    cells = []
    for stage in ("benign", "attacked", "distilled"):
        read, true = str(example[f"predicted_{stage}"]), str(example["true"])
        mark, kind = ("✓", "right") if read == true else ("✗", "wrong")
        note = f'{stage}<br><span class="{kind}">{mark} {text(read)}</span>'
        cells.append((np.asarray(example[stage]), f"{true}, {stage}", note))
    for stage in ("attacked", "distilled"):
        pixels, gain = amplified_difference(benign, np.asarray(example[stage]))
        scale = f"amplified {gain} times" if gain > 1 else "not amplified"
        what = f"{stage} minus benign, {scale}"
        cells.append((pixels, what, text(what)))
    small = ' class="small"' if benign.shape[1] < _SMALL else ""
    strip = "".join(
        f'<div><img{small} src="{picture_uri(pixels)}" alt="{text(alt)}">{note}</div>'
        for pixels, alt, note in cells
    )
    caption = (
        f"<b>{text(example['true'])}</b>: {text(example['threat_model'])} "
        f"{text(example['attack'])}, {text(example['defence'])}"
    )
    return (
        f'<figure class="example"><figcaption>{caption}</figcaption>'
        f'<div class="strip">{strip}</div></figure>'
    )


def amplified_difference(
    before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float64], int]:
    """``after - before`` around mid-grey, as strong as 99 % of it fits.

    Args:
        before: Array ``(height, width, channels)``.
        after: Array of the same shape.

    Returns:
        Array from 0 to 255, and the factor, a power of two up to 64.

    Example:
        >>> pixels, gain = amplified_difference(np.array([[[9]]]), np.array([[[11]]]))
        >>> gain, pixels.item()
        (32, 192.0)
    """
    difference = after.astype(np.float64) - before
    size = float(np.percentile(np.abs(difference), 99))
    # At most a half of the way to black and white, so that most pixels keep their hue.
    gain = next((g for g in (64, 32, 16, 8, 4, 2) if g * size <= 64), 1)
    return np.clip(128 + gain * difference, 0, 255), gain
