"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def path_argument(value: str) -> Path:
    """Convert a command-line argument to a path.

    Args:
        value: The argument. ``Path`` itself would convert an empty one to the current directory.

    Raises:
        ValueError: ``value`` is empty.

    Example:
        >>> path_argument("out")
        PosixPath('out')
    """
    if not str(value):
        raise ValueError("a path must not be empty")
    return Path(value)


def path_option(text: str) -> Any:
    """Declare an option that takes a path.

    Args:
        text: Help text.

    Example:
        >>> Report = Annotated[Path, path_option("Where the report is written.")]
    """
    return typer.Option(parser=path_argument, metavar="PATH", help=text)


def model_argument(text: str) -> Any:
    """Declare the argument ``MODEL``.

    Args:
        text: Help text.

    Example:
        >>> Model = Annotated[Path, model_argument("A .keras file.")]
    """
    return typer.Argument(parser=path_argument, metavar="MODEL", help=text)


Images = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="PNG, JPEG or WebP files.")]

LabelledData = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Labelled images: a directory with a subdirectory per class, an .npz file with "
        "x and y, a .tfrecord(.gz) file, or cifar10, cifar100, mnist, fashion_mnist.",
    ),
]

OutDirectory = Annotated[Path, path_option("Directory to write to; made if missing.")]

TableName = Annotated[
    str,
    typer.Option(help="liu2019, zigzag15, balanced, jpeg, jpeg:QUALITY, or a table's JSON file."),
]

ProtocolName = Annotated[
    str, typer.Option(help="evademl-imagenet, evademl-cifar10, linf-sweep or autoattack.")
]

ValueRange = Annotated[
    tuple[float, float], typer.Option(help="Lowest and highest pixel value that the model takes.")
]

Probabilities = Annotated[bool, typer.Option(help="The model returns probabilities, not logits.")]

ModelOutput = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The output that classifies, of a model with several: its name."
    ),
]

ImageSize = Annotated[
    tuple[int, int] | None,
    typer.Option(
        metavar="HEIGHT WIDTH", help="Size of the images, of a model that takes any size."
    ),
]

Modules = Annotated[
    list[str] | None,
    typer.Option("--import", help="Python module that registers the model's own classes."),
]

Strict = Annotated[bool, typer.Option(help="Stop at the first unreadable image.")]
