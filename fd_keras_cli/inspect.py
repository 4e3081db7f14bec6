"""``fd-keras inspect``: show a table, coefficient statistics or the table of a JPEG file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import check_target, echo, printable, quiet_libraries
from fd_keras_cli.options import (
    check_given,
    check_tables,
    path_argument,
    path_option,
)

if TYPE_CHECKING:
    from fd_keras import QuantizationTable
    from fd_keras.statistics import CoefficientStatistics


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A table.json, a statistics.json or a JPEG file; or a preset: liu2019, zigzag15, "
            "balanced, soft8, jpeg, jpeg:QUALITY, certified:EPSILON[:ycbcr].",
        ),
    ],
    plot: Annotated[
        Path | None,
        path_option("Write heat maps to this file, replacing it; its suffix names the format."),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            help="With a table and --plot: plot removal and distortion on these statistics."
        ),
    ] = None,
) -> None:
    """Show a quantisation table, coefficient statistics, or the table inside a JPEG file.

    Of a JPEG file, the header is read, and not its pixels.
    """
    if statistics is not None and plot is None:
        raise typer.BadParameter("it belongs to --plot", param_hint="--statistics")
    if plot is not None:
        check_target("--plot", plot, inputs={"FILE": file, "--statistics": statistics})
    check_tables("FILE", file)
    check_given("--statistics", statistics)
    with quiet_libraries() as console, console.status("Starting TensorFlow"):
        from fd_keras.statistics import CoefficientStatistics
    if plot is not None:
        _check_format(plot)
    content = _read(file)
    measured = None if statistics is None else _measured(statistics)
    if isinstance(content, CoefficientStatistics):
        if statistics is not None:
            raise typer.BadParameter("it belongs to a table", param_hint="--statistics")
        echo(repr(content))
    else:
        echo(content)
        echo(json.dumps(dict(content.provenance), indent=1))
    if plot is not None:
        figure = _figure(content, measured)
        _save(figure, plot)
        echo(f"Wrote {printable(plot)}")


def _read(name: str) -> QuantizationTable | CoefficientStatistics:
    from fd_keras import QuantizationTable
    from fd_keras.data.files import check_regular
    from fd_keras.jpeg import read_jpeg_table
    from fd_keras.presets import PRESETS, preset_table
    from fd_keras.statistics import CoefficientStatistics

    if name.partition(":")[0] in PRESETS:
        return preset_table(name)
    file = path_argument(name)
    if file.is_dir():
        raise ValueError(f"`FILE` must be one file, not a directory. Received: {name}")
    if not file.exists():
        raise ValueError(
            f"`FILE` must be an existing file or a preset ({', '.join(PRESETS)}, jpeg:QUALITY, "
            "certified:EPSILON[:ycbcr]). "
            f"Received: {name}"
        )
    check_regular(file)
    if file.suffix.lower() != ".json":
        return read_jpeg_table(file)
    if CoefficientStatistics.is_file(file):
        return CoefficientStatistics.load(file)
    return QuantizationTable.load(file)


def _measured(path: Path) -> CoefficientStatistics:
    from fd_keras.statistics import CoefficientStatistics

    if not CoefficientStatistics.is_file(path):
        raise ValueError(
            "`--statistics` must be a file that `fd-keras calibrate --statistics` wrote. "
            f"Received: {path}"
        )
    return CoefficientStatistics.load(path)


def _figure(content: Any, statistics: CoefficientStatistics | None) -> Any:
    from fd_keras.plots import plot_design, plot_statistics, plot_table
    from fd_keras.statistics import CoefficientStatistics

    if isinstance(content, CoefficientStatistics):
        return plot_statistics(content)
    if statistics is None:
        return plot_table(content)
    return plot_design(statistics, content)


def _check_format(path: Path) -> None:
    from fd_keras._extras import import_extra

    formats = import_extra("matplotlib.backend_bases", "evaluate").FigureCanvasBase.filetypes
    if path.suffix[1:].lower() not in formats:
        raise ValueError(
            f"`--plot` must end in one of .{', .'.join(sorted(formats))}. Received: --plot {path}"
        )


def _save(figure: Any, path: Path) -> None:
    from fd_keras._files import atomic_path

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
