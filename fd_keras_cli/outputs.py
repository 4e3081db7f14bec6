"""Convert image files to files of other names: plan the outputs, keep what is there, report."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fd_keras_cli.console import (
    USER_ERRORS,
    Cluster,
    check_directory,
    echo,
    file_progress,
    message_of,
    print_error,
    printable,
    report_files,
    shard_progress,
)

if TYPE_CHECKING:
    from fd_keras.data.files import DecodedImage, Tally
    from fd_keras.data.shards import Shard
    from fd_keras.distribution import Outcome

# Typing alias: converts one file to another, and remarks on it.
Convert = Callable[[Path, Path, "Tally"], None]

# Typing alias: works on one file, and remarks on it; returns plain JSON types.
FileWork = Callable[[Path, Any, "Tally"], Any]


class FileBatch:
    """Image files with a file to write for each.

    Files that exist are replaced only if this command wrote them, which it knows by a hash of
    their pixels in their EXIF data: whoever edits such a file makes it his own.

    Args:
        command: Name of the command.
        images: Files, and directories that are searched for image files.
        out: Directory to write to; files of a directory keep their folders in it.
        name: Function from an image file to the name of the file to write.
        overwrite: Whether files that this command did not write are replaced.
        max_pixels: See ``fd_keras.data.files.read_image``.
        spread: Whether files that exist are looked at with the work, as ``run_spread`` does, which
            takes as long as to read them.

    Raises:
        ValueError: ``out`` is a file.

    Example:
        >>> FileBatch("apply", [Path("a.bmp")], Path("out"), lambda path: "a.png").targets
        {PosixPath('a.bmp'): PosixPath('out/a.png')}
    """

    def __init__(
        self,
        command: str,
        images: Sequence[Path],
        out: Path,
        name: Callable[[Path], str],
        *,
        overwrite: bool = False,
        max_pixels: int | None = None,
        spread: bool = False,
    ) -> None:
        from fd_keras.data.files import Tally

        check_directory(out)
        self._overwrite = overwrite
        self.targets: dict[Path, Path] = {}
        self._command = command
        self._out = out
        self._max_pixels = max_pixels
        self._left_out = Tally()
        self._errors: list[str] = []
        found = found_images(images, self._errors, self._left_out, without=out)
        self._count = len(found) + len(self._errors)
        self._plan(
            {image: out / below / name(image) for image, below in found.items()},
            overwrite or spread,
        )

    def run(self, text: str, convert: Convert) -> int:
        """Convert the files, and print what is to be said of them.

        Args:
            text: What is being done.
            convert: Converts one file. Its errors are printed, and the next file is converted.

        Returns:
            The number of files written.
        """
        from fd_keras.data.files import Tally

        written, remarks = 0, Tally()
        with file_progress(text, len(self.targets)) as (advance, console):
            for error in self._errors:
                print_error(error, console)
            for source, target in self.targets.items():
                try:
                    convert(source, target, remarks)
                    written += 1
                except USER_ERRORS as error:
                    print_error(f"{printable(source)}: {message_of(error)}", console)
                advance(1)
        self._report(written, remarks)
        return written

    def run_spread(
        self,
        text: str,
        work: FileWork,
        *,
        settings: Mapping[str, Any],
        cluster: Cluster,
        run: Path | None,
    ) -> list[Any]:
        """Convert the files in shards, and print what is to be said of them.

        Args:
            text: What is being done.
            work: See ``spread_files``. It is not called on files of others.
            settings: See ``spread_files``.
            cluster: See ``spread_files``.
            run: See ``spread_files``.

        Returns:
            What ``work`` returned of each file that was written.
        """
        guarded = functools.partial(
            _unless_of_others, work, self._command, self._overwrite, self._max_pixels
        )
        for error in self._errors:
            print_error(error)
        found, remarks = spread_files(
            text, self.targets, guarded, settings=settings, cluster=cluster, run=run
        )
        self._report(len(found), remarks)
        return list(found.values())

    def _report(self, written: int, remarks: Tally) -> None:
        report_files(remarks, self._left_out)
        echo(f"{written} of {self._count} images written to {printable(self._out)}")

    def finish(self, written: int) -> None:
        """End the command with exit code 1 unless all files were written.

        Args:
            written: What ``run`` returned.

        Raises:
            typer.Exit: A file is missing.
        """
        if written < self._count:
            raise typer.Exit(1)

    def _plan(self, targets: dict[Path, Path], overwrite: bool) -> None:
        """Keep the outputs that replace neither an input, nor each other, nor others' files."""
        read = {os.path.realpath(image) for image in targets}
        sources: dict[str, list[Path]] = {}
        for image, target in targets.items():
            # Some file systems do not distinguish IMG.png from img.png.
            sources.setdefault(str(target).casefold(), []).append(image)
        for images in sources.values():
            target = targets[images[0]]
            if len(images) > 1:
                names = f"{', '.join(map(str, images[:-1]))} and {images[-1]}"
                self._errors.append(f"{names} would {_all(images)} be written to {target}")
            elif os.path.realpath(target) in read:
                self._errors.append(f"{target} is one of the images; choose another --out")
            elif os.path.isdir(target):
                self._errors.append(f"{target} is a directory; choose another --out")
            elif not overwrite and os.path.lexists(target) and not self._wrote(target):
                self._errors.append(
                    f"{images[0]}: {target} exists, and this command did not write it; "
                    "--overwrite replaces it"
                )
            else:
                self.targets[images[0]] = target

    def _wrote(self, target: Path) -> bool:
        return _wrote(self._command, target, self._max_pixels)


def mark(command: str, image: DecodedImage) -> str:
    """What a command writes as the software into a file with an image.

    Args:
        command: Its name.
        image: As it is read from the file.
    """
    import numpy as np

    from fd_keras.data.labelled import array_hash

    # Formats without grey repeat it, and some drop an alpha channel that is opaque.
    parts = [np.broadcast_to(image.pixels, (*image.pixels.shape[:2], 3))]
    if image.alpha is not None and image.alpha.min() < 255:
        parts.append(image.alpha)
    return f"fd-keras {command} {array_hash(*parts)}"


def _wrote(command: str, target: Path, max_pixels: int | None) -> bool:
    from fd_keras.data.files import read_image

    if target.is_symlink():
        return False
    try:
        image = read_image(target, max_pixels=max_pixels, remark=lambda text, name: None)
    except USER_ERRORS:
        return False
    return image.software == mark(command, image)


def _unless_of_others(
    work: FileWork,
    command: str,
    overwrite: bool,
    max_pixels: int | None,
    source: Path,
    target: Path,
    remarks: Tally,
) -> Any:
    """Work on a file unless its target exists and another program wrote it."""
    if not overwrite and os.path.lexists(target) and not _wrote(command, target, max_pixels):
        raise ValueError(
            f"{target} exists, and this command did not write it; --overwrite replaces it"
        )
    return work(source, target, remarks)


def spread_files(
    text: str,
    files: Mapping[Path, Path | None],
    work: FileWork,
    *,
    settings: Mapping[str, Any],
    cluster: Cluster,
    run: Path | None,
) -> tuple[dict[Path, Any], Tally]:
    """Work on image files in shards of 64, on a cluster if there is one, and print errors.

    Args:
        text: What is being done.
        files: Image files, each with the file that is written.
        work: Function from a file, the one to write and a tally for remarks to plain JSON types.
        settings: All that its results depend on besides the files.
        cluster: Values of ``--scheduler`` and ``--workers``.
        run: Value of ``--run``.

    Returns:
        What ``work`` returned of each file, in the order of the files, and the remarks.

    Raises:
        ValueError: See ``fd_keras.distribution.spread`` and ``connected``.
        OSError: See ``fd_keras.distribution.spread``.

    Example:
        >>> spread_files(
        ...     "Working", {}, print, settings={}, cluster=(None, None), run=None
        ... )[0]
        {}
    """
    from fd_keras.data.files import Tally
    from fd_keras.data.shards import FILES_IN_SHARD, Shard
    from fd_keras.distribution import spread

    given: dict[str, Path] = {}
    for file in files:
        if (path := os.path.abspath(file)) in given:
            raise ValueError(
                f"{printable(given[path])} and {printable(file)} are the same file; name it once "
                "with --run, --workers and --scheduler"
            )
        given[path] = file
    targets = {
        path: os.path.abspath(target) for path, file in given.items() if (target := files[file])
    }
    paths = list(given)
    shards = []
    for start in range(0, len(paths), FILES_IN_SHARD):
        some = tuple(paths[start : start + FILES_IN_SHARD])
        shards.append(Shard(some, tuple(targets[path] for path in some if path in targets)))
    found: dict[str, Any] = {}
    errors: dict[str, str] = {}
    remarks = Tally()
    with shard_progress(text, len(shards), len(paths), cluster) as progress:
        each = functools.partial(_each, work)
        for outcome in spread(
            *(each, shards, progress.client),
            directory=run,
            settings=settings,
            whole=_is_done,
        ):
            progress.shard(outcome)
            progress.image(len(outcome.shard.paths))
            if outcome.result is not None:
                found.update(outcome.result["found"])
                errors.update(outcome.result["errors"])
                for reason, first, count in outcome.result["remarks"]:
                    remarks.add(reason, first, count)
    for path in paths:
        if path in errors:
            print_error(f"{printable(given[path])}: {errors[path]}")
    return {given[path]: found[path] for path in paths if path in found}, remarks


def _is_done(outcome: Outcome) -> bool:
    return outcome.result is not None and not outcome.result["errors"]


def _each(work: FileWork, shard: Shard) -> dict[str, Any]:
    """Work on the files of a shard; one that cannot be read does not stop the others."""
    from fd_keras.data.files import Tally

    found, errors, remarks = {}, {}, Tally()
    for path, target in zip(shard.paths, shard.outputs or [None] * len(shard.paths)):
        try:
            found[path] = work(Path(path), None if target is None else Path(target), remarks)
        except USER_ERRORS as error:
            errors[path] = message_of(error)
    return {"found": found, "errors": errors, "remarks": remarks.entries()}


def found_images(
    images: Sequence[Path], errors: list[str], left_out: Tally, *, without: Path | None = None
) -> dict[Path, Path]:
    """Image files, each with its folder below the directory that was given.

    Args:
        images: Files, and directories that are searched for image files.
        errors: Takes what is wrong with a directory.
        left_out: Takes which files of directories are no images.
        without: Directory that is not searched.

    Example:
        >>> from fd_keras.data.files import Tally
        >>> found_images([Path("a.bmp")], [], Tally())
        {PosixPath('a.bmp'): PosixPath('.')}
    """
    from fd_keras.data.folders import image_files

    found: dict[Path, Path] = {}
    for image in images:
        if not os.path.isdir(image):
            found[image] = Path()
            continue
        try:
            files, others = image_files(image, without=without)
        except OSError as error:
            errors.append(str(error))
            continue
        if not files:
            errors.append(f"{image}: the directory holds no image files")
        found.update((file, file.parent.relative_to(image)) for file in files)
        left_out.update(others)
    return found


def _all(images: Sequence[Path]) -> str:
    return "both" if len(images) == 2 else "all"
