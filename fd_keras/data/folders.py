"""Find image files in folders, as ``keras.utils.image_dataset_from_directory`` does."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fd_keras.data.files import READABLE_SUFFIXES, Tally

# Kinds of other files that are named.
_NAMED_KINDS = 5


def image_files(
    folder: str | os.PathLike[str], *, without: str | os.PathLike[str] | None = None
) -> tuple[list[Path], Tally]:
    """Find the image files in a folder and in the folders below it.

    Links are followed, but no folder is read twice. Files and folders whose name begins with a dot
    are left out.

    Args:
        folder: Where to look.
        without: A folder that is left out.

    Returns:
        The files, sorted, and what was left out.

    Raises:
        OSError: ``folder`` cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("1.PNG", "2.tif", ".3.png"):
        ...     (folder / name).touch()
        >>> files, left_out = image_files(folder)
        >>> [file.name for file in files], str(left_out)
        (['1.PNG'], '1 hidden, .3.png; 1 of other kinds (1 .tif), 2.tif')
    """
    os.listdir(folder)  # that it cannot be read is an error, unlike below it
    walk = _Walk(Path(folder))
    if without is not None and os.path.isdir(without):
        walk.output = _identity(without)
    return sorted(walk.files_below(Path(folder))), walk.finished()


def class_folders(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the folders that Keras takes as classes, in the order of their labels.

    Args:
        folder: The folder of the data set.

    Raises:
        OSError: ``folder`` cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("dog", "cat", ".ipynb_checkpoints"):
        ...     (folder / name).mkdir()
        >>> class_folders(folder)
        ['cat', 'dog']
    """
    return sorted(
        name
        for name in os.listdir(folder)
        if not name.startswith(".") and os.path.isdir(os.path.join(folder, name))
    )


def class_files(
    folder: str | os.PathLike[str], classes: Sequence[str]
) -> tuple[list[tuple[Path, str]], Tally]:
    """Find the image files of classes: all that Keras finds, hidden ones in class folders too.

    Args:
        folder: The folder of the data set.
        classes: What ``class_folders`` returns.

    Returns:
        Files with the names of their classes, in Keras' order, and what was left out.

    Raises:
        OSError: ``folder`` cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "cat").mkdir()
        >>> (folder / "cat" / "1.png").touch()
        >>> [(file.name, name) for file, name in class_files(folder, ["cat"])[0]]
        [('1.png', 'cat')]
    """
    walk = _Walk(Path(folder))
    for path in walk.entries(Path(folder))[0]:
        walk.left_out.add("outside the class folders", path.name)
    walk.takes_hidden = True
    found = [(file, name) for name in classes for file in walk.files_below(Path(folder) / name)]
    return found, walk.finished()


class _Walk:
    """Walks through folders, and counts what it leaves out."""

    def __init__(self, top: Path) -> None:
        self.left_out = Tally()
        self.takes_hidden = False
        self.output: tuple[int, int] | None = None
        self._top = top
        self._kinds: Counter[str] = Counter()
        self._first_of_kinds = ""

    def files_below(self, folder: Path) -> list[Path]:
        """Image files below a folder, sorted by folder and then by name."""
        found: list[Path] = []
        seen = {_identity(self._top)} - {_identity(folder)}
        folders, links = [folder], list[Path]()
        while folders or links:  # links last, so that files are known by their own folders
            here = folders.pop() if folders else links.pop(0)
            identity = _identity(here)
            if identity == self.output:
                self.left_out.add("output folder", self._name(here))
            elif identity in seen:
                self.left_out.add("link(s) to folders that are read already", self._name(here))
            else:
                seen.add(identity)
                files, below = self.entries(here)
                found += files
                for path in below:
                    (links if path.is_symlink() else folders).append(path)
        return sorted(found, key=lambda file: (str(file.parent), file.name))

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Image files and folders in a folder."""
        files, folders = [], []
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            self.left_out.add("unreadable folder(s)", self._name(folder))
            return [], []
        for name in names:
            path = folder / name
            if name.startswith(".") and not self.takes_hidden:
                self.left_out.add("hidden", self._name(path))
                continue
            try:
                mode = path.stat().st_mode
            except OSError:  # a link to nothing or to itself, or what may not be looked at
                self.left_out.add("broken or unreadable link(s)", self._name(path))
                continue
            if stat.S_ISDIR(mode):
                folders.append(path)
            elif not stat.S_ISREG(mode):
                self.left_out.add("pipe(s), socket(s) or device(s)", self._name(path))
            elif name.lower().endswith(READABLE_SUFFIXES):
                files.append(path)
            else:
                self._first_of_kinds = self._first_of_kinds or self._name(path)
                self._kinds[path.suffix.lower() or "without a suffix"] += 1
        return files, folders

    def finished(self) -> Tally:
        """What was left out."""
        if self._kinds:
            named = [f"{count} {kind}" for kind, count in self._kinds.most_common(_NAMED_KINDS)]
            named += ["others"] * (len(self._kinds) > _NAMED_KINDS)
            reason = f"of other kinds ({', '.join(named)})"
            self.left_out.add(reason, self._first_of_kinds, self._kinds.total())
        return self.left_out

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self._top)


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
