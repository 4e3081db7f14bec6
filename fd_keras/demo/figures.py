"""Pictures for the report, as data URIs that an HTML page can hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fd_keras._extras import import_extra
from fd_keras._pages import figure_uri, page_colors, picture_uri
from fd_keras.plots import draw_steps, empty_figure


def heat_map(steps: npt.NDArray[np.float64]) -> str:
    """Quantisation steps as a map of the 64 bands, with the numbers written into it.

    Args:
        steps: Array ``(8, 8)``.

    Returns:
        ``data:image/svg+xml;base64,...``

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> heat_map(np.full((8, 8), 30.0))[:26]
        'data:image/svg+xml;base64,'
    """
    with page_colors():
        figure = empty_figure(3.4, 3.4)
        draw_steps(figure.subplots(), steps)
        return figure_uri(figure)


def difference_picture(difference: npt.NDArray[np.float32], full_scale: float) -> str:
    """A signed difference: blue where it is negative, white at zero, red where positive.

    Args:
        difference: Array ``(height, width, 1)`` in grey levels.
        full_scale: Difference that gets the full colour.

    Returns:
        ``data:image/png;base64,...``

    Example:
        >>> difference_picture(np.zeros((4, 4, 1), np.float32), full_scale=8)[:22]
        'data:image/png;base64,'
    """
    color_map = import_extra("matplotlib", "evaluate").colormaps["RdBu_r"]
    colors = color_map(np.clip(0.5 + difference[..., 0] / (2 * full_scale), 0, 1), bytes=True)
    return picture_uri(colors[..., :3])
