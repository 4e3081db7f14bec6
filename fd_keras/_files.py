"""Atomic writing, versioned JSON documents, and directories of runs that can be resumed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock, Timeout

from fd_keras._checks import shortened, shown

Result = TypeVar("Result")

_LOCK = ".fd_keras.lock"
# Directories that ``held`` holds in this thread.
_HELD: ContextVar[frozenset[Path]] = ContextVar("_HELD", default=frozenset())
# Files that ``atomic_path`` was writing when its process was killed.
_TEMPORARY = "." + "[0-9a-f]" * 32 + "*"

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
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not text: {error.reason} at byte {error.start}") from error
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
        with _naming(Path(path), Path(path)):
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


@contextmanager
def locked(
    directory: str | os.PathLike[str], *, argument: str = "directory", lasting: bool = True
) -> Iterator[None]:
    """Keep other runs out of a directory while the block runs.

    The system takes the lock back when the process ends, however it ends.

    Args:
        directory: Made if missing.
        argument: Name of the caller's argument in error messages.
        lasting: Whether the lock's empty hidden file stays.

    Raises:
        ValueError: It is a file, or another run holds it.
        OSError: It cannot be written to.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with locked(folder), locked(folder):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
        ...
        ValueError: `directory` is in use by another run; wait until it has ended, or choose ...
    """
    home = Path(directory)
    received = f"Received: {argument}={os.fspath(home)!r}"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"`{argument}` must not be a file. {received}") from error
    lock = FileLock(home / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"`{argument}` is in use by another run; wait until it has ended, or choose another "
            f"directory. {received}"
        ) from error
    try:
        yield
    finally:
        if not lasting:
            (home / _LOCK).unlink(missing_ok=True)  # while it is ours
        lock.release()


@contextmanager
def held(
    directory: str | os.PathLike[str], *, leftovers: str | None = None, argument: str = "directory"
) -> Iterator[None]:
    r"""Keep other runs out of a directory, and remove what killed ones left there.

    The block may hold the directory again, unlike with ``locked``, and no file of the lock stays.

    Args:
        directory: Made if missing.
        leftovers: Regular expression of the names under which such a run writes before it renames.
        argument: Name of the caller's argument in error messages.

    Raises:
        ValueError: ``directory`` is a file, or another run holds it.
        OSError: It cannot be written to.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".1.abc").mkdir()
        >>> with held(folder), held(folder, leftovers=r"\.1\.[a-f]+"):
        ...     (folder / ".1.abc").exists()
        False
    """
    home = Path(os.path.realpath(directory))
    if home in _HELD.get():
        _remove_leftovers(home, leftovers)
        yield
        return
    with locked(directory, argument=argument, lasting=False):
        token = _HELD.set(_HELD.get() | {home})
        try:
            _remove_leftovers(home, leftovers)
            yield
        finally:
            _HELD.reset(token)


def _remove_leftovers(home: Path, leftovers: str | None) -> None:
    for path in list(home.iterdir()) if leftovers else []:
        if not re.fullmatch(str(leftovers), path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a file that replaces ``target`` when the block succeeds, in a locked directory.

    Unlike that of ``atomic_path``, its temporary name is always the same, ``target``'s with a dot
    before it: what a killed process leaves is overwritten by the next. The content is on the disk
    before it replaces the old one.

    Args:
        target: The file to write.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.txt"
        >>> with replacing(path) as file:
        ...     _ = file.write(b"epoch 1")
        >>> path.read_bytes()
        b'epoch 1'
    """
    target = Path(target)
    temporary = target.with_name(f".{target.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunDirectory:
    """A kind of directory that holds a run which can be resumed, such as a search.

    A JSON file with the run's identity marks a directory as ours. Whatever else the directory
    holds is never deleted, and files of a run in a directory without the mark are not taken for
    ours. Links in their places are refused: what they point to belongs to somebody else.

    Args:
        document: Format of the mark.
        mark: Its file name.
        files: Patterns of the files that such a run writes, relative to the directory;
            ``*``, ``?`` and ``[...]`` match within one name.
        replaceable: Whether users can ask for another run in the place of one.

    Example:
        >>> import tempfile
        >>> document = DocumentFormat("example.walk", 1, "walk")
        >>> walks = RunDirectory(document, "walk.json", ("steps/*.txt",))
        >>> folder = tempfile.mkdtemp()
        >>> with walks.claimed(folder, {"seed": 1}) as home:
        ...     _ = (home / "notes.txt").write_text("mine")
        >>> with walks.claimed(folder, {"seed": 2}):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
        ...
        ValueError: `directory` holds a walk with other seed; choose another directory, or ...
        >>> with walks.claimed(folder, {"seed": 2}, overwrite=True) as home:
        ...     (home / "notes.txt").read_text()
        'mine'
    """

    document: DocumentFormat
    mark: str
    files: tuple[str, ...]
    replaceable: bool = True

    @contextmanager
    def claimed(
        self,
        directory: str | os.PathLike[str],
        identity: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> Iterator[Path]:
        """Keep a directory for one run while the block runs.

        Args:
            directory: New, or that of the same run; made if missing.
            identity: Settings that must be the same when the run is resumed, as plain JSON types.
            overwrite: Whether to delete the files of the run that the directory holds.

        Yields:
            The directory.

        Raises:
            ValueError: The directory holds another run, files of other origin or links in the
                places of a run's files, or another run holds it.
            OSError: It cannot be read or written to.
        """
        home = Path(directory)
        if not (home / _LOCK).exists():
            self._identity(home)  # so that a directory which is not ours gets no lock
        with locked(home):
            earlier = self._identity(home)
            now = json.loads(json.dumps(identity))
            if earlier is not None and not overwrite:
                self._check_same(home, earlier, now)
            else:
                if earlier is not None:
                    self._write(home, {})  # killed from here on, it is no run to be resumed
                    self._delete(home)
                self._write(home, now)
            yield home

    def _identity(self, home: Path) -> dict[str, Any] | None:
        """The identity in the mark; ``None`` in a directory without any file of a run."""
        received = f"Received: directory={os.fspath(home)!r}"
        title = self.document.title
        places = (self.mark, f".{self.mark}", *self.files)
        found = [path for pattern in places for path in _matches(home, pattern)]
        for path in found:
            if path.is_symlink():
                raise ValueError(
                    f"`directory` must hold the files of a {title} themselves, and "
                    f"{path.relative_to(home)} is a link; choose another directory. {received}"
                )
        mark = home / self.mark
        if mark in found:
            try:
                return self.document.read(mark, lambda content: dict(content["identity"]))
            except ValueError as error:
                reason = str(error).rpartition(". Received: ")[0].removeprefix("`path` ")
                raise ValueError(
                    f"`directory` holds a {self.mark} that marks no {title} of this version of "
                    f"fd_keras (it {reason}); choose another directory. {received}"
                ) from error
        files = [path for path in self._files(home) if not fnmatchcase(path.name, _TEMPORARY)]
        if files:
            raise ValueError(
                f"`directory` holds {files[0].relative_to(home)}, and no {self.mark} says that it "
                f"belongs to a {title} of fd_keras; choose another directory. {received}"
            )
        return None

    def _check_same(self, home: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        different = sorted(key for key in {*earlier, *now} if earlier.get(key) != now.get(key))
        if different:
            title = self.document.title
            held = (
                f"a {title} with other {', '.join(different)}"
                if earlier
                else f"what is left of a {title} that was being deleted"
            )
            throw = f", or throw the {title} away with overwrite=True" if self.replaceable else ""
            raise ValueError(
                f"`directory` holds {held}; choose another directory{throw}. "
                f"Received: directory={os.fspath(home)!r}"
            )

    def _write(self, home: Path, identity: Mapping[str, Any]) -> None:
        with replacing(home / self.mark) as file:
            file.write(self.document.text({"identity": identity}).encode())

    def _files(self, home: Path) -> list[Path]:
        """The files of a run, and temporary ones that a killed process left beside them."""
        folders = {p.as_posix() for pattern in self.files for p in Path(pattern).parents}
        patterns = {*self.files, *(f"{folder}/{_TEMPORARY}" for folder in folders - {"."})}
        found = {path for pattern in patterns for path in _matches(home, pattern, last=True)}
        return sorted(path for path in found if path.is_file())

    def _delete(self, home: Path) -> None:
        files = self._files(home)
        for path in files:
            path.unlink()
        folders = {parent for path in files for parent in path.parents if home in parent.parents}
        for folder in sorted(folders, reverse=True):
            with suppress(OSError):  # it holds something else
                folder.rmdir()


def _matches(home: Path, pattern: str, *, last: bool = False) -> Iterator[Path]:
    """Paths that match a pattern, with the folders on the way, but not through links."""
    level = [home]
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        folders = [
            folder
            for folder in level
            if folder.is_dir() and (folder == home or not folder.is_symlink())
        ]
        level = [
            folder / name
            for folder in folders
            for name in sorted(os.listdir(folder))
            if fnmatchcase(name, part)
        ]
        if not last or number == len(parts) - 1:
            yield from level


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
