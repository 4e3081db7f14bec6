"""Console output, user errors and checks of output paths, for all commands.

Results go to standard output; progress and errors go to standard error.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from fd_keras._console import Advance

# Errors that the library raises on wrong arguments, unusable files and missing extras.
USER_ERRORS = (ValueError, OSError, ImportError)

# Exit code of a program that Ctrl-C ended.
_INTERRUPTED = 130

_RESUMABLE = "Interrupted; the same command goes on from here"


def print_error(error: object, console: Console | None = None) -> None:
    """Print one red line.

    Args:
        error: An exception or a text. Square brackets in it are not interpreted as markup, and
            line breaks become spaces.
        console: Console of a progress bar that is being shown. Default: standard error.

    Example:
        >>> print_error(ValueError("no such table"))
    """
    line = Text(" ".join(f"Error: {error}".split()), style="red")
    (console or Console(stderr=True)).print(line, soft_wrap=True)


@contextmanager
def quiet_libraries() -> Iterator[Console]:
    """Yield a console on standard error, and hide what native libraries write there.

    TensorFlow 2.21 logs before it reads ``TF_CPP_MIN_LOG_LEVEL``, LiteRT logs regardless of it,
    and both write to the file descriptor, in the middle of progress bars. Their output is shown
    only if the block ends with an error that is not one of ``USER_ERRORS``.

    Example:
        >>> with quiet_libraries() as console, console.status("Starting TensorFlow"):
        ...     import tensorflow
    """
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as real, tempfile.TemporaryFile("w+") as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            yield Console(file=real)
        except USER_ERRORS:
            raise
        except Exception:
            chatter.seek(0)
            real.write(chatter.read())
            raise
        finally:
            sys.stderr.flush()
            real.flush()
            os.dup2(real.fileno(), 2)


@contextmanager
def interruptible(message: str = _RESUMABLE) -> Iterator[None]:
    """End the command with one line and exit code 130 if Ctrl-C ends the block.

    Args:
        message: The line to print.

    Raises:
        typer.Exit: The block was interrupted.

    Example:
        >>> with interruptible():
        ...     pass
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(message, err=True)
        raise typer.Exit(_INTERRUPTED) from None


def report_skipped(messages: Sequence[str], console: Console | None = None) -> None:
    """Print why images were skipped, and how many.

    Args:
        messages: One reason for each image.
        console: As for ``print_error``.

    Example:
        >>> report_skipped([])
    """
    for message in messages:
        print_error(message, console)
    if messages:
        target = console or Console(stderr=True)
        target.print(f"{len(messages)} images were skipped", highlight=False, soft_wrap=True)


def parsed_limit(text: str) -> tuple[str, int]:
    """Parse the value of ``--limit``.

    Args:
        text: ``NAME=COUNT``.

    Raises:
        ValueError: ``text`` is anything else.

    Example:
        >>> parsed_limit("CW-L2=50")
        ('CW-L2', 50)
    """
    name, _, count = text.partition("=")
    if not count.isdigit():
        raise ValueError(f"`--limit` must be NAME=COUNT, such as CW-L2=50. Received: {text!r}")
    return name, int(count)


@contextmanager
def file_progress(text: str, count: int) -> Iterator[tuple[Advance, Console]]:
    """Show the progress of work on files on standard error; nothing for a single file.

    Args:
        text: What is being done.
        count: Number of files.

    Yields:
        A function that is called with the number of files just finished, and the console for
        messages.

    Example:
        >>> with file_progress("Distilling", 1) as (advance, console):
        ...     advance(1)
    """
    from fd_keras._console import bar, progress_bars

    console = Console(stderr=True)
    shown = console if count > 1 else None
    with progress_bars(shown, unit="images") as progress, bar(progress, text, count) as advance:
        yield advance, console


def check_target(option: str, target: Path) -> None:
    """Refuse an output file that cannot be written, before anything is computed.

    Args:
        option: Name of the option.
        target: The file.

    Raises:
        ValueError: ``target`` is a directory or a device, is below a file, or nothing can be
            written beside it.

    Example:
        >>> check_target("--out", Path("."))
        Traceback (most recent call last):
        ...
        ValueError: `--out` must be a file to write. Received: --out .
    """
    if target.exists() and not target.is_file():
        raise ValueError(f"`{option}` must be a file to write. Received: {option} {target}")
    # What a link leads to is written, beside which the file is made.
    _check_writable(option, target, Path(os.path.realpath(target)).parent, "a file to write")


def check_directory(out: Path) -> None:
    """Refuse an output directory that nothing can be written to, before anything is computed.

    Args:
        out: Value of ``--out``. It need not exist.

    Raises:
        ValueError: ``out`` is a file or below one, or nothing can be written to it.

    Example:
        >>> check_directory(Path("."))
    """
    _check_writable("--out", out, out, "a directory")


def _check_writable(option: str, target: Path, directory: Path, expected: str) -> None:
    """Make and remove a file in ``directory``, or in the directory that it will be made in."""
    home = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not home.is_dir():
        raise ValueError(f"`{option}` must be {expected}. Received: {option} {target}")
    try:
        handle, name = tempfile.mkstemp(prefix=".", dir=home)
    except OSError as error:
        raise ValueError(
            f"`{option}` must be {expected}, but {home} cannot be written to ({error.strerror}). "
            f"Received: {option} {target}"
        ) from error
    os.close(handle)
    os.unlink(name)


def checked_targets(sources: Sequence[Path], targets: list[Path], out: Path) -> list[Path]:
    """Return ``targets`` if writing them overwrites neither a source nor each other.

    Args:
        sources: Input files.
        targets: Output file of each input file.
        out: Value of ``--out``.

    Raises:
        ValueError: ``out`` is a file, two sources have the same target, or a target is a source.

    Example:
        >>> checked_targets([Path("a.png")], [Path("out/a.png")], Path("out"))
        [PosixPath('out/a.png')]
    """
    check_directory(out)
    read = {source.resolve() for source in sources}
    taken: dict[str, Path] = {}
    for source, target in zip(sources, targets):
        # Some file systems do not distinguish IMG.png from img.png.
        if other := taken.get(target.name.casefold()):
            raise ValueError(f"{other} and {source} would both be written to {target}")
        if target.resolve() in read:
            raise ValueError(f"{target} is one of the images; choose another --out")
        taken[target.name.casefold()] = source
    return targets
