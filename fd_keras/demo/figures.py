"""Pictures for the report, as data URIs that an HTML page can hold."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from fd_keras.extras import import_extra
from fd_keras.plots import draw_steps


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
    # The Figure class, unlike pyplot, leaves the caller's backend and open figures alone.
    figure = import_extra("matplotlib.figure", "evaluate").Figure(
        figsize=(3.4, 3.4), layout="constrained"
    )
    draw_steps(figure.subplots(), steps)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _data_uri("image/svg+xml", buffer.getvalue())


def picture(pixels: npt.NDArray[np.float32]) -> str:
    """A grey image.

    Args:
        pixels: Array ``(height, width, 1)`` from 0 to 255.

    Returns:
        ``data:image/png;base64,...``

    Example:
        >>> picture(np.zeros((4, 4, 1), np.float32))[:22]
        'data:image/png;base64,'
    """
    buffer = io.BytesIO()
    grey = np.clip(np.rint(pixels[..., 0]), 0, 255).astype(np.uint8)
    Image.fromarray(grey).save(buffer, "PNG")
    return _data_uri("image/png", buffer.getvalue())


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
    buffer = io.BytesIO()
    Image.fromarray(colors[..., :3].copy()).save(buffer, "PNG")
    return _data_uri("image/png", buffer.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
