"""Atomic writing, versioned JSON documents, and directories of runs that can be resumed."""

from __future__ import annotations

import errno
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fd_keras._checks import shortened, shown

Result = TypeVar("Result")

# Characters of an error that another one quotes.
_LONGEST_REASON = 1000

# Errors that constructors raise on entries that are missing, or of other types or sizes.
_INVALID = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that replaces it when the block succeeds.

    The temporary path has the suffix of ``target``, from which writers such as Pillow choose the
    format. If the block raises, the temporary file is removed and ``target`` stays unchanged. A
    file that is replaced keeps its mode, and a link stays a link: what it leads to is replaced.

    Args:
        target: The file to write. Missing parent directories are created.

    Raises:
        OSError: The file cannot be written, or ``target`` is a directory or a device; the error
            names ``target``.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "table.json") as temporary:
        ...     _ = temporary.write_text("{}")
        >>> [path.name for path in folder.iterdir()]
        ['table.json']
    """
    target = Path(target)
    final = Path(os.path.realpath(target)) if os.path.islink(target) else target
    with _naming(target, final):
        mode = _mode(final)
        final.parent.mkdir(parents=True, exist_ok=True)
    # Without the target's stem, which may already be as long as file names can be.
    temporary = final.with_name(f".{uuid.uuid4().hex}{final.suffix}")
    try:
        with _naming(target, temporary):
            if mode is not None:
                # From the start, so that nobody else can read what will be private.
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                _set_mode(temporary, mode | stat.S_IWUSR)
            yield temporary
            if mode is not None:
                _set_mode(temporary, mode)
            os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def _mode(path: Path) -> int | None:
    """Permissions of an existing file; ``None`` where there is none."""
    try:
        found = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(found):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found):
        raise OSError(errno.EINVAL, "Not a regular file")
    return stat.S_IMODE(found)


def _set_mode(path: Path, mode: int) -> None:
    with suppress(PermissionError):  # some file systems have no modes
        os.chmod(path, mode)


@contextmanager
def _naming(target: Path, written: Path) -> Iterator[None]:
    """Let errors of the operating system name the file that is written."""
    try:
        yield
    except OSError as error:
        # Where the disk is full, no file is named; else the one written, or another in the block.
        if error.filename not in (None, os.fspath(written)):
            raise
        if error.errno is None:
            if type(error) is not OSError:
                raise
            raise OSError(f"{error}: {os.fspath(target)!r}") from error
        raise OSError(error.errno, error.strerror, os.fspath(target)) from error
    except ValueError as error:
        if "\0" not in os.fspath(target):
            raise
        raise ValueError(
            f"a path must not hold a null character. Received: {shown(os.fspath(target))}"
        ) from error


def claim(path: str | os.PathLike[str], identity: Mapping[str, Any], kind: str) -> None:
    """Record which run a directory holds, and refuse the directory of another run.

    Args:
        path: JSON file in the directory of the run that holds its identity.
        identity: Settings that must be the same when the run is resumed, as plain JSON types.
        kind: Name of such a run in the error message, such as ``"a search"``.

    Raises:
        ValueError: The directory holds a run with another identity.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "search.json"
        >>> claim(path, {"seed": 1}, "a search")
        >>> claim(path, {"seed": 1}, "a search")
    """
    path, text = Path(path), json.dumps(identity, sort_keys=True)
    if path.exists():
        try:
            earlier, now = dict(json.loads(path.read_bytes())), json.loads(text)
        except _INVALID as error:
            raise ValueError(
                f"`directory` holds {kind} whose {path.name} is damaged ({error}); choose another "
                "one, or throw it away with overwrite=True. "
                f"Received: directory={os.fspath(path.parent)!r}"
            ) from error
        different = sorted(key for key in now if earlier.get(key) != now[key])
        if different:
            raise ValueError(
                f"`directory` holds {kind} with other {', '.join(different)}; choose another "
                "one, or throw it away with overwrite=True. "
                f"Received: directory={os.fspath(path.parent)!r}"
            )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class DocumentFormat:
    """A JSON document with a ``format`` and a ``version`` entry.

    Args:
        name: Value of ``format``, such as ``"fd_keras.quantization_table"``.
        version: Value of ``version``.
        title: Name of such a document in error messages.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "point.json"
        >>> point = DocumentFormat("example.point", 1, "point")
        >>> point.write(path, {"x": 1, "y": 2})
        >>> point.read(path, lambda content: content["x"])
        1
        >>> point.read(path, lambda content: content["z"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: `path` holds no point (KeyError('z')). Received: path='...point.json'
    """

    name: str
    version: int
    title: str

    def text(self, content: Mapping[str, Any], *, rows: Sequence[str] = ()) -> str:
        """Format a document as JSON text.

        Args:
            content: Its entries, plain JSON types.
            rows: Names of entries whose lists are written with one item, or one innermost list,
                per line.

        Raises:
            ValueError: A number is not finite.
        """
        entries = {"format": self.name, "version": self.version, **content}
        lines = [
            f" {json.dumps(key)}: " + (_rows(value) if key in rows else _indented(value))
            for key, value in entries.items()
        ]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def write(
        self,
        path: str | os.PathLike[str],
        content: Mapping[str, Any],
        *,
        rows: Sequence[str] = (),
    ) -> None:
        """Write a document, replacing ``path`` atomically.

        Args:
            path: File to write.
            content: As for ``text``.
            rows: As for ``text``.

        Raises:
            OSError: The file cannot be written.
            ValueError: A number is not finite.
        """
        with atomic_path(path) as temporary:
            temporary.write_text(self.text(content, rows=rows), encoding="utf-8")

    def parse(self, text: str | bytes) -> dict[str, Any]:
        """Parse a document into its entries, without format and version.

        Args:
            text: JSON text.

        Raises:
            ValueError: It is no JSON, or a document of another format or version.
        """
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except RecursionError as error:
            raise ValueError("its entries are nested too deeply") from error
        return self.content(data)

    def content(self, data: Any) -> dict[str, Any]:
        """Check format and version of parsed JSON, and return the other entries.

        Args:
            data: Parsed JSON.

        Raises:
            ValueError: It is a document of another format or version.
        """
        if not isinstance(data, Mapping):
            raise ValueError("the top level is not an object")
        if data.get("format") != self.name:
            raise ValueError(f"its format is {shown(data.get('format'))}, not {self.name!r}")
        version = data.get("version")
        if version != self.version:
            newer = isinstance(version, int) and version > self.version
            raise ValueError(
                f"its version is {shown(version)}, not {self.version}; "
                f"{'a newer' if newer else 'another'} fd_keras may read it"
            )
        return {key: value for key, value in data.items() if key not in ("format", "version")}

    def read(
        self,
        path: str | os.PathLike[str],
        build: Callable[[dict[str, Any]], Result],
        *,
        argument: str = "path",
    ) -> Result:
        """Read a document and build an object from its entries.

        Args:
            path: The file.
            build: Function from the entries to the object. Errors that it raises on invalid
                entries become errors that name the file.
            argument: Name of the caller's argument in error messages.

        Returns:
            What ``build`` returns.

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds no such document.
        """
        if "\0" in os.fspath(path):
            raise ValueError(
                f"`{argument}` must not hold a null character. "
                f"Received: {argument}={shown(os.fspath(path))}"
            )
        text = Path(path).read_bytes()
        try:
            return build(self.parse(text))
        except _INVALID as error:
            reason = str(error) if type(error) is ValueError else repr(error)
            raise ValueError(
                f"`{argument}` holds no {self.title} ({shortened(reason, _LONGEST_REASON)}). "
                f"Received: {argument}={os.fspath(path)!r}"
            ) from error

    def recognises(self, path: str | os.PathLike[str]) -> bool:
        """Whether the ``format`` entry of a file is this one, whatever its version.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be read.
        """
        try:
            data = json.loads(Path(path).read_bytes())
        except (ValueError, RecursionError):
            return False
        return isinstance(data, Mapping) and data.get("format") == self.name


def default_cache_dir() -> Path:
    """Default directory in which evaluations and searches keep intermediate results.

    It is below Keras' own directory, which the environment variable ``KERAS_HOME`` moves.

    Raises:
        ValueError: There is no home directory, and ``KERAS_HOME`` is not set.

    Example:
        >>> default_cache_dir().parts[-2:]
        ('fd_keras', 'evaluation')
    """
    try:
        keras_home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    except RuntimeError as error:
        raise ValueError(
            "`cache_dir` is needed where there is no home directory: pass one, or set the "
            "environment variable KERAS_HOME. Received: cache_dir=None"
        ) from error
    return keras_home / "fd_keras" / "evaluation"


def _indented(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False).replace("\n", "\n ")


def _rows(value: Any, indent: str = " ") -> str:
    """A list as JSON with one item per line; deeper lists with one innermost list per line."""
    if not value:
        return json.dumps(value)
    nested = all(
        isinstance(item, list) and any(isinstance(i, list) for i in item) for item in value
    )
    items = [
        f"{indent} {_rows(item, indent + ' ') if nested else json.dumps(item, allow_nan=False)}"
        for item in value
    ]
    return "[\n" + ",\n".join(items) + f"\n{indent}]"


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
