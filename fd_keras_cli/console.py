"""Console output, user errors and checks of output paths, for all commands.

Results go to standard output; progress and errors go to standard error.
"""

from __future__ import annotations

import mimetypes
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from fd_keras_cli.words import in_options

if TYPE_CHECKING:
    from fd_keras._console import Advance
    from fd_keras.data.files import Tally
    from fd_keras.data.sources import ImageSource
    from fd_keras.distribution import Outcome

# Errors that the library raises on wrong arguments, unusable files and missing extras, and what
# Python raises on images that are too large.
USER_ERRORS = (ValueError, OSError, ImportError, MemoryError)

# Exit codes of programs that Ctrl-C (SIGINT) and SIGTERM ended.
_INTERRUPTED, _TERMINATED = 130, 143

# Typing alias: values of --scheduler and --workers.
Cluster = tuple[str | None, int | None]

_RESUMABLE = "Interrupted; the same command{} goes on from here"

# What a terminal obeys instead of showing it, also bytes of file names that are no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, *, lines: bool = False) -> str:
    r"""Escape what a terminal would obey instead of showing it.

    Args:
        text: A text, or a path.
        lines: Whether line breaks and tabs stay as they are.

    Example:
        >>> print(printable("red\x1b[31m\n"))
        red\x1b[31m\n
    """
    return _UNPRINTABLE.sub(lambda found: _escaped(found[0], lines), str(text))


def _escaped(character: str, lines: bool) -> str:
    if lines and character in "\n\t":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that it could not decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def echo(text: object, *, err: bool = False) -> None:
    """Print text of one or more lines, control characters escaped.

    Args:
        text: The text. Paths in it go through ``printable``, if a line break in their name
            matters.
        err: Whether to print to standard error.

    Example:
        >>> echo("Wrote table.json")
        Wrote table.json
    """
    try:
        typer.echo(printable(text, lines=True), err=err)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        # What is still buffered would be written when Python ends, and fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def check_budget(kept: bool, sentence: str) -> None:
    """End a command whose result costs more benign accuracy than was permitted.

    Its files are written all the same: they may be what its user wants to look at.

    Args:
        kept: Whether the result keeps within the budget.
        sentence: What to say if not.

    Raises:
        typer.Exit: With code 1, if not.

    Example:
        >>> check_budget(True, "no table kept within --max-benign-loss 0.01")
    """
    if not kept:
        print_error(sentence)
        raise typer.Exit(1)


def print_next(*arguments: object) -> None:
    """Print the command that comes after the one that has ended.

    Args:
        *arguments: Its name, arguments and options. Words in capitals are for the user to replace.

    Example:
        >>> print_next("export", "my model.keras", "--value-range", 0.0, 1.0, "--out", "out")
        Next: fd-keras export 'my model.keras' --value-range 0 1 --out out
    """
    words = (f"{word:g}" if isinstance(word, float) else printable(word) for word in arguments)
    echo(f"Next: fd-keras {shlex.join(words)}")


def print_error(error: object, console: Console | None = None) -> None:
    """Print one red line.

    Args:
        error: An exception or a text. Square brackets in it are not interpreted as markup, line
            breaks become spaces, and Python's arguments become options.
        console: Console of a progress bar that is being shown. Default: standard error.

    Example:
        >>> print_error(ValueError("no such table"))
    """
    text = re.sub(r"\s*\n\s*", " ", f"Error: {in_options(message_of(error))}".strip())
    (console or Console(stderr=True)).print(Text(printable(text), style="red"), soft_wrap=True)


def message_of(error: object) -> str:
    """The text of an error; Python's own about memory often has none.

    Args:
        error: An exception or a text.

    Example:
        >>> message_of(MemoryError())
        'too little memory'
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        named = isinstance(error.filename, (str, bytes, os.PathLike))
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if named else error.strerror
    if isinstance(error, MemoryError):
        return f"too little memory ({text})" if text else "too little memory"
    return text


def print_note(text: str, console: Console | None = None) -> None:
    """Print one line to standard error.

    Args:
        text: The line, as for ``print_error``.
        console: As for ``print_error``.

    Example:
        >>> print_note("3 images were skipped")
    """
    (console or Console(stderr=True)).print(Text(printable(in_options(text))), soft_wrap=True)


@contextmanager
def quiet_libraries() -> Iterator[Console]:
    """Yield a console on standard error, and hide what native libraries write there.

    TensorFlow 2.21 logs before it reads ``TF_CPP_MIN_LOG_LEVEL``, LiteRT logs regardless of it,
    and both write to the file descriptor, in the middle of progress bars. Their output is shown
    only if the block ends with an error that is not one of ``USER_ERRORS``. Warnings of fd_keras'
    own kinds are printed.

    Example:
        >>> with quiet_libraries() as console, console.status("Starting TensorFlow"):
        ...     import tensorflow
    """
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as real, tempfile.TemporaryFile("w+") as chatter:
        os.dup2(chatter.fileno(), 2)
        console = Console(file=real)
        try:
            with _own_warnings(console):
                yield console
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


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does."""


@contextmanager
def _own_warnings(console: Console) -> Iterator[None]:
    """Print a warning of fd_keras' own kinds as one line."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Any, category: Any, *rest: Any, **options: Any) -> None:
            if category.__module__.startswith("fd_keras."):
                text = printable(f"Warning: {in_options(str(message))}")
                # What makes all figures worthless is as red as an error.
                style = "bold red" if category.__name__ == "ClassifierWarning" else "yellow"
                console.print(Text(text, style=style), soft_wrap=True)
            else:
                others(message, category, *rest, **options)

        warnings.showwarning = show
        yield


@contextmanager
def interruptible(message: str = _RESUMABLE.format("")) -> Iterator[None]:
    """End the command with one line if Ctrl-C or SIGTERM ends the block.

    What the block has to tidy up is tidied up, and the exit code is the one that a shell gives to
    programs that such a signal ended: 130 or 143.

    Args:
        message: The line to print.

    Raises:
        typer.Exit: The block was interrupted.

    Example:
        >>> with interruptible():
        ...     pass
    """
    # Another handler, or none at all, is the choice of who started this process. Python lets the
    # main thread alone set one.
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as error:
        echo(message, err=True)
        code = _TERMINATED if isinstance(error, Terminated) else _INTERRUPTED
        raise typer.Exit(code) from None
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def resumable(overwrite: bool) -> AbstractContextManager[None]:
    """``interruptible`` for a command that goes on where it was interrupted.

    Args:
        overwrite: Whether it was to throw away what was there, as the next should not.

    Example:
        >>> with resumable(overwrite=False):
        ...     pass
    """
    return interruptible(_RESUMABLE.format(" without --overwrite" if overwrite else ""))


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def report_source(source: ImageSource, console: Console | None = None) -> None:
    """Print which images of a source were not read, what is to be said of others, and how many.

    Args:
        source: The source, after it was read.
        console: As for ``print_error``.

    Example:
        >>> from fd_keras.data.sources import ImageSource
        >>> report_source(ImageSource("none", lambda: iter([]), 0))
    """
    for message in source.skipped:
        print_error(message, console)
    if source.skipped_count:
        print_note(f"{source.skipped_count} images were skipped", console)
    report_files(source.remarks, source.left_out, console)


def sampled(
    source: ImageSource, limit: int | None, seed: int, console: Console | None = None
) -> ImageSource:
    """The source in an order from whose start ``limit`` images are a sample, and a note of it.

    Args:
        source: The source.
        limit: Most images that will be used; ``None``: all.
        seed: Of the sample.
        console: As for ``print_error``.

    Example:
        >>> from fd_keras.data.sources import ImageSource
        >>> sampled(ImageSource("none", lambda: iter([]), 0), 5, 1).count
        0
    """
    if limit is None or (source.count is not None and source.count <= limit):
        return source
    if source.groups is None:
        said, over, most = f"the images in {source.name}", ", spread over their classes", "at most "
    else:
        said, most = f"{source.count} images in {source.name}", ""
        groups = len(set(source.groups.tolist()))
        over = f", spread over {groups} classes or folders" if groups > 1 else ""
    print_note(f"Of {said}, {most}{limit} are used: a random sample{over} (seed {seed})", console)
    return source.sampled(limit, seed)


def report_files(remarks: Tally, left_out: Tally, console: Console | None = None) -> None:
    """Print what is to be said of files that were read, and which files were left out.

    Args:
        remarks: Remarks on files.
        left_out: Reasons to leave files out, which are printed in one line.
        console: As for ``print_error``.

    Example:
        >>> from fd_keras.data.files import Tally
        >>> report_files(Tally(), Tally())
    """
    for line in remarks.lines():
        print_note(f"Note: {line}", console)
    if left_out:
        print_note(f"Left out: {left_out}", console)


def parsed_limits(texts: Iterable[str]) -> dict[str, int]:
    """Parse the values of ``--limit``.

    Args:
        texts: ``NAME=COUNT`` each.

    Raises:
        ValueError: One is anything else, or a name occurs twice.

    Example:
        >>> parsed_limits(["CW-L2=50", "Square=20"])
        {'CW-L2': 50, 'Square': 20}
    """
    limits: dict[str, int] = {}
    for text in texts:
        name, _, count = text.partition("=")
        if not count.isdigit():
            raise ValueError(f"`--limit` must be NAME=COUNT, such as CW-L2=50. Received: {text!r}")
        if name in limits:
            raise ValueError(
                f"`--limit` must be given once for a name. Received: {name}={limits[name]} and "
                f"{text}"
            )
        limits[name] = int(count)
    return limits


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


@dataclass
class ShardProgress:
    """Shows how far the work on shards is, and gathers messages about those that fail.

    Args:
        client: Of the cluster; ``None``: this process.
        advance: Moves the bar on.
        failed: The messages.
    """

    client: Any
    advance: Advance
    failed: list[str]

    def image(self, count: int) -> None:
        """Images were finished in this process.

        Args:
            count: Their number.
        """
        if self.client is None:
            self.advance(count)

    def shard(self, outcome: Outcome) -> None:
        """A shard has ended.

        Args:
            outcome: What became of it.
        """
        if outcome.error is not None:
            self.failed.append(outcome.message)
        if self.client is not None:
            self.advance(1)

    def strict_shard(self, outcome: Outcome) -> None:
        """A shard has ended, and must not have failed.

        Args:
            outcome: What became of it.

        Raises:
            Exception: It failed.
        """
        if outcome.error is not None:
            raise outcome.error
        self.shard(outcome)


@contextmanager
def shard_progress(
    text: str, shards: int, images: int | None, cluster: Cluster
) -> Iterator[ShardProgress]:
    """Connect to the cluster that options name, if any, and show the progress of work on shards.

    The bar counts shards on a cluster, and images in this process. Which shards failed is printed
    at the end, also of a block that is interrupted.

    Args:
        text: What is being done.
        shards: Number of shards.
        images: Number of images, if it is known.
        cluster: Values of ``--scheduler`` and ``--workers``.

    Raises:
        ValueError: See ``fd_keras.distribution.connected``.

    Example:
        >>> with shard_progress("Measuring", 0, 0, (None, None)) as progress:
        ...     progress.image(1)
    """
    from fd_keras._console import bar, progress_bars
    from fd_keras.distribution import connected

    failed: list[str] = []
    try:
        with quiet_libraries() as console, ExitStack() as stack:
            with console.status("Starting" if cluster == (None, None) else "Waiting for Dask"):
                client = stack.enter_context(connected(scheduler=cluster[0], workers=cluster[1]))
            unit, total = ("images", images) if client is None else ("shards", shards)
            progress = stack.enter_context(progress_bars(console, unit=unit))
            advance = stack.enter_context(bar(progress, text, total))
            yield ShardProgress(client, advance, failed)
    finally:
        for message in failed:
            print_error(message)


def check_target(
    option: str, target: Path, *, inputs: Mapping[str, str | Path | None] | None = None
) -> None:
    """Refuse an output file that cannot be written, before anything is computed.

    A file that the user names himself is replaced, whoever wrote it, but not what the command
    reads.

    Args:
        option: Name of the option.
        target: The file.
        inputs: What the command reads, and other files that it writes, by their options; ``None``
            for an option that was not given.

    Raises:
        ValueError: ``target`` is a directory or a device, is below a file, is one of ``inputs`` or
            an image in one, or nothing can be written beside it.

    Example:
        >>> check_target("--out", Path("."))
        Traceback (most recent call last):
        ...
        ValueError: `--out` must be a file to write. Received: --out .
    """
    if target.exists() and not target.is_file():
        raise ValueError(f"`{option}` must be a file to write. Received: {option} {target}")
    # What a link leads to is written, beside which the file is made.
    real = Path(os.path.realpath(target))
    image = (mimetypes.guess_type(real.name)[0] or "").startswith("image/") and real.exists()
    for name, given in (inputs or {}).items():
        if given is None:
            continue
        other = Path(os.path.realpath(given))
        if real == other or (image and other in real.parents):
            raise ValueError(
                f"`{option}` must be another file than {name}, which would be replaced. "
                f"Received: {option} {target}"
            )
    _check_writable(option, target, real.parent, "a file to write")


def check_directory(out: Path, *, option: str = "--out", for_tensorflow: bool = False) -> None:
    """Refuse an output directory that nothing can be written to, before anything is computed.

    Args:
        out: The directory. It need not exist.
        option: Name of the option.
        for_tensorflow: Whether TensorFlow writes there, which takes names in UTF-8 only.

    Raises:
        ValueError: ``out`` is a file or below one, nothing can be written to it, or its name is
            not UTF-8 text and should be.

    Example:
        >>> check_directory(Path("."))
    """
    if for_tensorflow and printable(out.absolute()).encode() != os.fsencode(out.absolute()):
        raise ValueError(
            f"`{option}` must have a name in UTF-8 without control characters, as TensorFlow "
            f"writes there. Received: {option} {out}"
        )
    _check_writable(option, out, out, "a directory")


def check_outputs(
    out: Path, ours: Mapping[str, Callable[[Path], bool]], *, overwrite: bool | None = None
) -> None:
    """Refuse to replace files in ``--out`` that others wrote, before anything is computed.

    Args:
        out: The directory.
        ours: What the command writes there, with a function that tells whether such a file was
            written by this command before.
        overwrite: Whether files of others are replaced; ``None``: the command has no such option.

    Raises:
        ValueError: A file is of others, or a directory is in its place.

    Example:
        >>> check_outputs(Path("."), {"no such file": lambda path: True})
    """
    for name, wrote in ours.items():
        path = out / name
        if path.exists() and not path.is_file():
            raise ValueError(f"`--out` must hold no directory {name}. Received: --out {out}")
        if overwrite or not os.path.lexists(path) or wrote(path):
            continue
        way = "choose another directory"
        if overwrite is not None:
            way = f"{way}, or replace it with --overwrite"
        raise ValueError(
            f"`--out` holds {name}, which this command did not write and would replace; {way}. "
            f"Received: --out {out}"
        )


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
