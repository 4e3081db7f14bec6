"""``fd-keras inspect``: show a table, coefficient statistics or the table of a JPEG file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import check_target, quiet_libraries
from fd_keras_cli.options import path_option

if TYPE_CHECKING:
    from fd_keras import QuantizationTable
    from fd_keras.statistics import CoefficientStatistics


def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A table.json, a statistics.json or a JPEG file.")
    ],
    plot: Annotated[
        Path | None, path_option("Write heat maps to this file; its suffix names the format.")
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            help="With a table and --plot: plot removal and distortion on these statistics."
        ),
    ] = None,
) -> None:
    """Show a quantisation table, coefficient statistics, or the table inside a JPEG file."""
    if statistics is not None and plot is None:
        raise typer.BadParameter("it belongs to --plot", param_hint="--statistics")
    if plot is not None:
        check_target("--plot", plot)
    with quiet_libraries() as console, console.status("Starting TensorFlow"):
        from fd_keras.statistics import CoefficientStatistics
    content = _read(file)
    if isinstance(content, CoefficientStatistics):
        if statistics is not None:
            raise typer.BadParameter("it belongs to a table", param_hint="--statistics")
        typer.echo(repr(content))
    else:
        typer.echo(str(content))
        typer.echo(json.dumps(dict(content.provenance), indent=1))
    if plot is not None:
        figure = _figure(content, statistics)
        _save(figure, plot)
        typer.echo(f"Wrote {plot}")


def _read(file: Path) -> QuantizationTable | CoefficientStatistics:
    from fd_keras import QuantizationTable
    from fd_keras.jpeg import read_jpeg_table
    from fd_keras.statistics import CoefficientStatistics

    if file.suffix.lower() != ".json":
        return read_jpeg_table(file)
    if CoefficientStatistics.is_file(file):
        return CoefficientStatistics.load(file)
    return QuantizationTable.load(file)


def _figure(content: Any, statistics: Path | None) -> Any:
    from fd_keras.plots import plot_design, plot_statistics, plot_table
    from fd_keras.statistics import CoefficientStatistics

    if isinstance(content, CoefficientStatistics):
        return plot_statistics(content)
    if statistics is None:
        return plot_table(content)
    return plot_design(CoefficientStatistics.load(statistics), content)


def _save(figure: Any, path: Path) -> None:
    from fd_keras._files import atomic_path

    formats = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(
            f"`--plot` must end in one of .{', .'.join(sorted(formats))}. Received: --plot {path}"
        )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
