"""What an exported file says about itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from fd_keras.export.distilled import distillation_layers

Labels = Sequence[str] | str | os.PathLike[str]


def export_details(model: keras.Model, labels: Labels | None, **more: Any) -> dict[str, Any]:
    """The value range, tables, labels and version that go into an exported file, as JSON types.

    Args:
        model: The model that is exported.
        labels: Names of the classes, or a text file with one on each line.
        **more: Further entries.

    Example:
        >>> from fd_keras import FeatureDistillation
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), FeatureDistillation("liu2019")])
        >>> export_details(model, ["cat", "dog"])["value_range"]
        [0.0, 255.0]
    """
    from fd_keras import __version__  # the package imports this module while it starts

    layers = distillation_layers(model)
    return {
        "fd_keras": __version__,
        "model": model.name,
        "value_range": list(layers[0].value_range) if layers else None,
        "tables": [layer.quantization_table.to_dict() for layer in layers],
        "labels": None if labels is None else label_names(labels),
        **more,
    }


def label_names(labels: Labels) -> list[str]:
    """Names of the classes in the order of the model's outputs.

    Args:
        labels: The names, or a text file with one on each line.

    Raises:
        ValueError: There is none, or one of them is no line of text.
        OSError: The file cannot be read.

    Example:
        >>> label_names(("cat", "dog"))
        ['cat', 'dog']
    """
    if isinstance(labels, (str, os.PathLike)):
        names = Path(labels).read_text(encoding="utf-8").splitlines()
    else:
        names = list(labels)
    if not names or any(not isinstance(n, str) or not n.strip() or "\n" in n for n in names):
        raise ValueError(
            f"`labels` must be one line of text for each class. Received: labels={labels!r}"
        )
    return names
