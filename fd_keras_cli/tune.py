"""``fd-keras tune``: search a table for a model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import path_argument, quiet_libraries

if TYPE_CHECKING:
    from fd_keras import RefineResult


class OracleName(str, Enum):
    """Choices of ``--oracle``."""

    BAYESIAN = "bayesian"
    RANDOM = "random"
    HYPERBAND = "hyperband"
    GRID = "grid"


def tune(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A .keras file: the classifier alone.")
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="An .npz file with images x (pixels 0..255) and classes y."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=path_argument, metavar="PATH", help="Directory to write to; made if missing."
        ),
    ],
    protocol: Annotated[
        str,
        typer.Option(help="Attacks: linf-sweep, evademl-imagenet, evademl-cifar10, autoattack."),
    ] = "linf-sweep",
    max_benign_loss: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the benign images a table may cost.")
    ] = 0.01,
    max_trials: Annotated[
        int, typer.Option(min=1, help="Tables to try, those of earlier runs included.")
    ] = 60,
    oracle: Annotated[
        OracleName, typer.Option(help="How tables are chosen.")
    ] = OracleName.BAYESIAN,
    low: Annotated[float, typer.Option(help="Value of a black pixel that the model takes.")] = 0,
    high: Annotated[float, typer.Option(help="Value of a white pixel that the model takes.")] = 255,
    logits: Annotated[
        bool, typer.Option("--logits/--probabilities", help="What the model returns.")
    ] = True,
    max_images: Annotated[
        int, typer.Option(min=2, help="Images: half select, half are held back.")
    ] = 1000,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="FAMILY=COUNT", help="Fewer images for a family of attacks."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search and of random attacks.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away the search in --out.")
    ] = False,
) -> None:
    """Search the quantisation table that keeps most accuracy under attack.

    Attacks are gray-box: they know the model, not the table. Interrupted or killed, the same
    command goes on where it was. OUT gets table.json, result.json, report.md, front.png,
    importance.png, trials.png, table.png, and TensorBoard's logs.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"`--out` must be a directory. Received: --out {out}")
    limits = dict(_limit(text) for text in limit or ())
    try:
        with quiet_libraries() as console:
            with console.status("Starting TensorFlow"):
                import fd_keras
            result = fd_keras.refine(
                _model(model),
                _scaled(data, low, high),
                protocol,
                max_benign_loss=max_benign_loss,
                max_trials=max_trials,
                oracle=oracle.value,
                value_range=(low, high),
                from_logits=logits,
                max_images=max_images,
                limits=limits,
                directory=out,
                overwrite=overwrite,
                seed=seed,
                console=console,
            )
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; the same command goes on with what is in {out}", err=True)
        raise typer.Exit(130) from None
    if result is None:
        typer.echo("This worker has ended; the chief writes the result")
        return
    typer.echo(str(result))
    for path in _written(result, out):
        typer.echo(f"Wrote {path}")


def _limit(text: str) -> tuple[str, int]:
    family, _, count = text.partition("=")
    if not count.isdecimal():
        raise typer.BadParameter(f"{text!r} is not FAMILY=COUNT", param_hint="--limit")
    return family, int(count)


def _model(path: Path) -> Any:
    import keras

    if not path.is_file():
        raise ValueError(f"`MODEL` must be a .keras file. Received: {path}")
    return keras.models.load_model(path, compile=False)


def _scaled(path: Path, low: float, high: float) -> tuple[Any, Any]:
    """Images in the model's range, and labels."""
    import numpy as np

    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many types on a broken file
        raise ValueError(f"`DATA` must be an intact .npz file. Received: {path}") from error
    if not {"x", "y"} <= set(arrays):
        raise ValueError(
            f"`DATA` must hold images x and classes y. Received: {path} with {sorted(arrays)}"
        )
    images = arrays["x"].astype(np.float32)
    if (low, high) != (0, 255):
        images = low + images * ((high - low) / 255)
    return images, arrays["y"]


def _written(result: RefineResult, out: Path) -> list[Path]:
    from fd_keras.files import atomic_path
    from fd_keras.plots import plot_table
    from fd_keras.refinement.figures import plot_front, plot_importance, plot_trials

    result.table.save(out / "table.json")
    result.save(out / "result.json")
    with atomic_path(out / "report.md") as temporary:
        temporary.write_text(result.to_markdown() + _pictures(), encoding="utf-8")
    figures = {
        "front": plot_front(result),
        "trials": plot_trials(result),
        "importance": plot_importance(result),
        "table": plot_table(result.table),
    }
    for name, figure in figures.items():
        with atomic_path(out / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=120)
    names = ["table.json", "result.json", "report.md", *(f"{name}.png" for name in figures)]
    return [out / name for name in names]


def _pictures() -> str:
    names = ("front", "trials", "importance", "table")
    return "\n" + "\n\n".join(f"![{name}]({name}.png)" for name in names) + "\n"
