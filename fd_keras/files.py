"""Writing files so that a reader never meets a half-written one."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def claim(path: str | os.PathLike[str], identity: Mapping[str, Any], kind: str) -> None:
    """Write what decides a run that can be resumed, or refuse a directory that holds another.

    Args:
        path: The JSON file of the identity, in the directory of the run.
        identity: All that must be the same, as plain JSON types.
        kind: What the run is called, such as ``"a search"``.

    Raises:
        ValueError: There is another run in the directory.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "search.json"
        >>> claim(path, {"seed": 1}, "a search")
        >>> claim(path, {"seed": 1}, "a search")
    """
    path, text = Path(path), json.dumps(identity, sort_keys=True)
    if path.exists():
        earlier, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        different = sorted(key for key in now if earlier.get(key) != now[key])
        if different:
            raise ValueError(
                f"`directory` holds {kind} with other {', '.join(different)}; choose another "
                "one, or throw it away with overwrite=True. "
                f"Received: directory={os.fspath(path.parent)!r}"
            )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
