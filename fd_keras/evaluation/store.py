"""Arrays on disk, each named by a hash of what it depends on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras._files import atomic_path


class ArrayStore:
    """A directory of arrays, each named by a hash of what it depends on.

    A killed process loses the array that it was computing and no other. Several processes may
    write to one directory at once.

    Args:
        directory: Created if missing.

    Example:
        >>> import tempfile
        >>> store = ArrayStore(tempfile.mkdtemp())
        >>> store.array({"sum of": [1, 2]}, lambda: np.array(3))
        array(3)
        >>> store.array({"sum of": [1, 2]}, lambda: 1 / 0)  # not computed again
        array(3)
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def array(
        self, parts: Mapping[str, Any], compute: Callable[[], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """Load an array, or compute and keep it if it is not there yet.

        Args:
            parts: Everything that the array depends on, as plain JSON types.
            compute: Returns the array.
        """
        name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        path = self.directory / name[:2] / f"{name}.npy"
        if path.exists():
            return np.asarray(np.load(path))
        array = compute()
        with atomic_path(path) as temporary:
            np.save(temporary, array)
        return array
