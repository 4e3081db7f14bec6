"""What the commands share: where they print, and which errors are the user's.

Results go to standard output; progress and errors go to standard error.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

# What the library raises on wrong arguments, unusable files and missing extras.
USER_ERRORS = (ValueError, OSError, ImportError)

# What a shell says of a program that Ctrl-C ended.
_INTERRUPTED = 130

_RESUMABLE = "Interrupted; the same command goes on from here"


def print_error(error: object, console: Console | None = None) -> None:
    """Print one red line.

    Args:
        error: Anything whose text says what is wrong. Square brackets in it are no markup,
            and line breaks become spaces.
        console: The console of a progress bar that is being shown. Default: standard error.

    Example:
        >>> print_error(ValueError("no such table"))
    """
    line = Text(" ".join(f"Error: {error}".split()), style="red")
    (console or Console(stderr=True)).print(line, soft_wrap=True)


@contextmanager
def quiet_libraries() -> Iterator[Console]:
    """Yield a console on standard error, and keep native libraries from writing there too.

    TensorFlow 2.21 logs before it reads ``TF_CPP_MIN_LOG_LEVEL``, LiteRT logs regardless, and
    both write past ``sys.stderr``, through any progress bar. What they wrote is shown only
    when the block ends in an error that is not the user's.

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
    """End the command with one line, and a shell's exit code, when Ctrl-C ends the block.

    Args:
        message: The line.

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
    """Name the images that were passed over, and count them.

    Args:
        messages: Why each of them could not be read.
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
    """Name and count of one ``--limit``.

    Args:
        text: ``NAME=COUNT``.

    Raises:
        ValueError: It is something else.

    Example:
        >>> parsed_limit("CW-L2=50")
        ('CW-L2', 50)
    """
    name, _, count = text.partition("=")
    if not count.isdigit():
        raise ValueError(f"`--limit` must be NAME=COUNT, such as CW-L2=50. Received: {text!r}")
    return name, int(count)


def file_progress(count: int) -> Progress:
    """A progress bar over files, on standard error; none for a single one.

    Args:
        count: Number of files.

    Example:
        >>> with file_progress(1) as progress:
        ...     list(progress.track([1], description="Distilling"))
        [1]
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=count < 2,
    )


def check_target(option: str, target: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Args:
        option: The option that names it.
        target: The file.

    Raises:
        ValueError: It is a directory, or lies below a file.

    Example:
        >>> check_target("--out", Path("."))
        Traceback (most recent call last):
        ...
        ValueError: `--out` must be a file to write. Received: --out .
    """
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if target.is_dir() or not above.is_dir():
        raise ValueError(f"`{option}` must be a file to write. Received: {option} {target}")


def check_directory(out: Path) -> None:
    """Refuse a directory that is none, before anything is computed.

    Args:
        out: What ``--out`` names. It need not exist.

    Raises:
        ValueError: It is a file.

    Example:
        >>> check_directory(Path("."))
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"`--out` must be a directory. Received: --out {out}")


def checked_targets(sources: Sequence[Path], targets: list[Path], out: Path) -> list[Path]:
    """Return ``targets`` when no file would be lost by writing them.

    Args:
        sources: Files that are read.
        targets: Where each of them goes.
        out: The directory that ``--out`` names.

    Raises:
        ValueError: ``out`` is a file, two sources go to one target, or a target is a source.

    Example:
        >>> checked_targets([Path("a.png")], [Path("out/a.png")], Path("out"))
        [PosixPath('out/a.png')]
    """
    check_directory(out)
    read = {source.resolve() for source in sources}
    taken: dict[str, Path] = {}
    for source, target in zip(sources, targets):
        # Not every file system tells IMG.png from img.png.
        if other := taken.get(target.name.casefold()):
            raise ValueError(f"{other} and {source} would both be written to {target}")
        if target.resolve() in read:
            raise ValueError(f"{target} is one of the images; choose another --out")
        taken[target.name.casefold()] = source
    return targets
