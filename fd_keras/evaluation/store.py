"""Arrays on disk, each named by a hash of what it depends on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras._checks import callers_level
from fd_keras._files import atomic_path

_CHECKSUM_SIZE = hashlib.sha256().digest_size
_FOLDER = "arrays"


class CacheWarning(UserWarning):
    """A file of the cache is damaged, and its array is computed again.

    Example:
        >>> issubclass(CacheWarning, UserWarning)  # to be silenced, or made an error
        True
    """


class ArrayStore:
    """A directory of arrays, each named by a hash of what it depends on.

    A killed process loses the array that it was computing and no other. Several processes may
    write to one directory at once. A file is NumPy's format and a checksum: one that is damaged or
    of other origin is named in a ``CacheWarning`` and computed again.

    Args:
        directory: Created if missing. Files are in ``arrays`` below it.

    Example:
        >>> import tempfile
        >>> store = ArrayStore(tempfile.mkdtemp())
        >>> store.array({"sum of": [1, 2]}, lambda: np.array(3))
        array(3)
        >>> store.array({"sum of": [1, 2]}, lambda: 1 / 0)  # not computed again
        array(3)
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory) / _FOLDER

    def array(
        self, parts: Mapping[str, Any], compute: Callable[[], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """Load an array, or compute and keep it if it is not there yet.

        Args:
            parts: Everything that the array depends on, as plain JSON types.
            compute: Returns the array.

        Raises:
            OSError: The file cannot be written.
        """
        path = self._path(parts)
        if (kept := _read(path)) is not None:
            return kept
        array = compute()
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.unlink()  # of other origin; a link would be followed, a pipe not replaced
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.write(content.getbuffer())
            file.write(_checksum(path, content.getbuffer()))
        return array

    def keeps(self, parts: Mapping[str, Any]) -> bool:
        """Whether there is a file of an array, which may be damaged.

        Args:
            parts: Everything that the array depends on, as plain JSON types.
        """
        return self._path(parts).is_file()

    def _path(self, parts: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return self.directory / name[:2] / f"{name}.npy"


def _read(path: Path) -> npt.NDArray[Any] | None:
    """The array in a file; ``None`` where there is none that can be trusted."""
    if not os.path.lexists(path):
        return None
    try:
        # Before it is opened: opening a named pipe waits for ever.
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        content = b""
    data, checksum = content[:-_CHECKSUM_SIZE], content[-_CHECKSUM_SIZE:]
    if checksum == _checksum(path, data):
        # The checksum covers type and shape, which precede the numbers.
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    warnings.warn(
        f"{path} is damaged or of other origin; it is computed again and replaced",
        CacheWarning,
        stacklevel=callers_level(),
    )
    return None


def _checksum(path: Path, data: bytes | memoryview) -> bytes:
    """Of the file's name, too: an array under another name is another array."""
    digest = hashlib.sha256(path.name.encode())
    digest.update(data)
    return digest.digest()
