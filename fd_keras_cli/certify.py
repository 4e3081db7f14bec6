"""``fd-keras certify``: say how large a perturbation each image file provably withstands."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import (
    USER_ERRORS,
    check_directory,
    echo,
    file_progress,
    message_of,
    print_error,
    printable,
    quiet_libraries,
    report_files,
)
from fd_keras_cli.options import (
    Images,
    MaxPixels,
    RunDirectoryPath,
    Scheduler,
    TableName,
    Workers,
    check_images,
    check_tables,
)
from fd_keras_cli.outputs import found_images, spread_files

if TYPE_CHECKING:
    from fd_keras import QuantizationTable
    from fd_keras.data.files import Tally


def certify(
    images: Images,
    table: TableName = "certified",
    epsilon: Annotated[
        float | None,
        typer.Option(min=0.1, help="Radius in grey levels of 255 that every file has to reach."),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of a line for each file.")
    ] = False,
    max_pixels: MaxPixels = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    run: RunDirectoryPath = None,
) -> None:
    """Say how large a change each image file provably withstands behind a layer with TABLE.

    For each file: the L-inf radius (the largest change per pixel) and the L2 radius in grey levels
    within which no change of its pixels can change the distilled image; the block, channel and
    band that limit it; and whether the file is encoded with that table at all, by the root mean
    square distance of its coefficients from the table's lattice. Files are encoded with
    `fd-keras apply --encode` or `fd-keras compress`.

    The exit code is 0 if every file was read, is encoded with the table, and reaches EPSILON;
    otherwise it is 1.
    """
    check_images(images)
    check_tables("--table", table)
    with quiet_libraries() as console, console.status("Starting TensorFlow"):
        from fd_keras.data.files import Tally
        from fd_keras.presets import table_from_argument
        from fd_keras.tables import check_rounds
    chosen, errors = table_from_argument(table), list[str]()
    check_rounds(chosen)
    remarks, left_out, found = Tally(), Tally(), list[dict[str, Any]]()
    files = found_images(images, errors, left_out)
    if (scheduler, workers, run) != (None, None, None):
        if run is not None:
            check_directory(run, option="--run")
        for error in errors:
            print_error(error)
        certificates, remarks = spread_files(
            "Certifying",
            dict.fromkeys(files),
            functools.partial(_certified, chosen, max_pixels),
            settings={"work": "certify", "table": chosen.to_dict(), "max_pixels": max_pixels},
            cluster=(scheduler, workers),
            run=run,
        )
        found = [{**value, "file": str(file)} for file, value in certificates.items()]
        for certificate in [] if json_output else found:
            echo(_line(certificate))
    else:
        with file_progress("Certifying", len(files)) as (advance, console):
            for error in errors:
                print_error(error, console)
            for file in files:
                try:
                    found.append(_certified(chosen, max_pixels, file, None, remarks))
                    if not json_output:
                        echo(_line(found[-1]))
                except USER_ERRORS as error:
                    print_error(f"{printable(file)}: {message_of(error)}", console)
                advance(1)
    report_files(remarks, left_out)
    if json_output:
        echo(json.dumps(found, indent=1))
    whole = not errors and len(found) == len(files)
    if not whole or any(not x["encoded"] or x["linf_radius"] < (epsilon or 0) for x in found):
        raise typer.Exit(1)


def _certified(
    table: QuantizationTable, max_pixels: int | None, file: Path, target: None, remarks: Tally
) -> dict[str, Any]:
    """What is certified of one file, as JSON types."""
    from fd_keras.certification import certify
    from fd_keras.data.files import read_image

    image = read_image(file, max_pixels=max_pixels, remark=remarks.add)
    certificate = certify(image.pixels, table)
    at = certificate.limiting[0]
    return {
        "file": str(file),
        "table": table.name,
        "linf_radius": float(certificate.linf_radius[0]),
        "l2_radius": float(certificate.l2_radius[0]),
        "limiting": {
            "block": [at.row, at.column],
            "channel": at.channel,
            "band": list(at.band),
            "offset": list(at.offset),
        },
        "residual": float(certificate.residual[0]),
        "encoded": bool(certificate.encoded[0]),
    }


def _line(found: dict[str, Any]) -> str:
    at = found["limiting"]
    block, band = (", ".join(map(str, at[key])) for key in ("block", "band"))
    encoded = "encoded with" if found["encoded"] else "not encoded with"
    return (
        f"{printable(found['file'])}: radius {found['linf_radius']:.3f} (L-inf), "
        f"{found['l2_radius']:.2f} (L2) grey levels, limited by block ({block}), channel "
        f"{at['channel']}, band ({band}); {encoded} {found['table']} "
        f"(residual {found['residual']:.2f})"
    )
