"""Convert image files to files of other names: plan the outputs, keep what is there, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fd_keras_cli.console import (
    USER_ERRORS,
    check_directory,
    echo,
    file_progress,
    message_of,
    print_error,
    printable,
    report_files,
)

if TYPE_CHECKING:
    from fd_keras.data.files import DecodedImage, Tally

# Typing alias: converts one file to another, and remarks on it.
Convert = Callable[[Path, Path, "Tally"], None]


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
    ) -> None:
        from fd_keras.data.files import Tally

        check_directory(out)
        self.targets: dict[Path, Path] = {}
        self._command = command
        self._out = out
        self._max_pixels = max_pixels
        self._left_out = Tally()
        self._errors: list[str] = []
        found = found_images(images, self._errors, self._left_out, without=out)
        self._count = len(found) + len(self._errors)
        self._plan({image: out / below / name(image) for image, below in found.items()}, overwrite)

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
        report_files(remarks, self._left_out)
        echo(f"{written} of {self._count} images written to {printable(self._out)}")
        return written

    def finish(self, written: int) -> None:
        """End the command with exit code 1 unless all files were written.

        Args:
            written: What ``run`` returned.

        Raises:
            typer.Exit: A file is missing.
        """
        if written < self._count:
            raise typer.Exit(1)

    def mark(self, image: DecodedImage) -> str:
        """What this command writes as the software into a file with this image.

        Args:
            image: As it is read from the file.
        """
        import numpy as np

        from fd_keras.data.labelled import array_hash

        # Formats without grey repeat it, and some drop an alpha channel that is opaque.
        parts = [np.broadcast_to(image.pixels, (*image.pixels.shape[:2], 3))]
        if image.alpha is not None and image.alpha.min() < 255:
            parts.append(image.alpha)
        return f"fd-keras {self._command} {array_hash(*parts)}"

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
        from fd_keras.data.files import read_image

        if target.is_symlink():
            return False
        try:
            image = read_image(target, max_pixels=self._max_pixels, remark=lambda text, name: None)
        except USER_ERRORS:
            return False
        return image.software == self.mark(image)


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
