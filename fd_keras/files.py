"""Writing files so that a reader never meets a half-written one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that replaces it when the block succeeds.

    The temporary file keeps ``target``'s suffix, because writers such as Pillow choose the
    format by it. When the block raises, the temporary file is removed and ``target`` is
    left as it was.

    Args:
        target: The file to write. Missing parent directories are created.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "table.json") as temporary:
        ...     _ = temporary.write_text("{}")
        >>> [path.name for path in folder.iterdir()]
        ['table.json']
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Without the target's stem, which may be as long as a file name can be.
    temporary = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
