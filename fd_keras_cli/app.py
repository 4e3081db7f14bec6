"""The program ``fd-keras``."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fd_keras_cli.apply import apply
from fd_keras_cli.calibrate import calibrate
from fd_keras_cli.certify import certify
from fd_keras_cli.compress import compress
from fd_keras_cli.console import USER_ERRORS, interruptible, print_error
from fd_keras_cli.demo import demo
from fd_keras_cli.evaluate import evaluate
from fd_keras_cli.export import export
from fd_keras_cli.harden import harden
from fd_keras_cli.inspect import inspect
from fd_keras_cli.options import Command
from fd_keras_cli.refine import refine
from fd_keras_cli.verify import verify
from fd_keras_cli.words import set_options

app = typer.Typer(
    help="Feature distillation: quantise images against adversarial perturbations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Rich's tables cut the names of options that they have no room for.
    rich_markup_mode=None,
)
# Commands that can go on where they were interrupted say so before this does.
_tidied = interruptible("Interrupted")

for command in (
    *(apply, calibrate, certify, compress, demo, evaluate, export),
    *(harden, inspect, refine, verify),
):
    app.command(cls=Command)(_tidied(command))
app.command(
    "tune",
    hidden=True,
    cls=Command,
    help="Old name of fd-keras refine, which does the same.",
)(_tidied(refine))


def main() -> None:
    """Run the command line; user errors are printed as one line and end with exit code 1."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    set_options(_options_of(sys.argv[1:2]))
    try:
        app()
    except USER_ERRORS as error:
        print_error(error)
        raise SystemExit(1) from None


def _options_of(arguments: Sequence[str]) -> dict[str, str]:
    """The parameters of the command that was called, as the command line writes them."""
    commands = getattr(typer.main.get_command(app), "commands", {})
    return {
        parameter.name: next(
            (name for name in parameter.opts if name.startswith("--")),
            parameter.metavar or parameter.name.upper(),
        )
        for name in arguments
        if name in commands
        for parameter in commands[name].params
    }


def _print_version(wanted: bool) -> None:
    if wanted:
        # Without importing the package, and of the code that runs, which metadata may not be of.
        package: Any = importlib.util.find_spec("fd_keras")
        file = Path(package.origin).with_name("_version.py")
        version = runpy.run_path(str(file))["__version__"]
        typer.echo(f"fd-keras {version}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None: ...
