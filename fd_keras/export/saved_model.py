"""SavedModel for TF Serving."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import keras

from fd_keras.export.archive import write_archive


def export_saved_model(
    model: keras.Model, directory: str | os.PathLike[str], *, version: int | None = None
) -> Path:
    """Write a model as a version that TF Serving picks up by itself.

    The graph holds the whole model, distillation included: a server needs no Python, no
    custom op and no fd_keras. The version appears in one rename, so that a server that polls
    ``directory`` never loads half of it.

    Args:
        model: A built Keras model with one input, such as ``protect`` returns.
        directory: Base directory of the served model; made if missing.
        version: Version number. Default: one more than the highest in ``directory``.

    Returns:
        ``directory/<version>``. Its signature ``serving_default`` takes ``images``, a batch of
        any size, and returns ``predictions`` (or the names of a model with several outputs).

    Raises:
        FileExistsError: The version exists already.
        ValueError: ``version`` is not a positive integer, or ``model`` is not built.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> export_saved_model(model, tempfile.mkdtemp()).name
        '1'
    """
    base = Path(directory)
    if version is None:
        version = 1 + max((int(p.name) for p in _versions(base)), default=0)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"`version` must be a positive integer. Received: version={version!r}")
    target = base / str(version)
    if target.exists():
        raise FileExistsError(f"`version` exists already; choose another. Received: {target}")
    base.mkdir(parents=True, exist_ok=True)
    temporary = base / f".{version}.{uuid.uuid4().hex}"  # not a number: servers pass over it
    try:
        write_archive(model, temporary)
        # Renaming onto a directory that somebody filled meanwhile fails, as it should.
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _versions(base: Path) -> list[Path]:
    return [path for path in base.glob("*") if path.name.isdecimal()]
