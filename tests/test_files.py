"""Atomic writing, directories of runs, and versioned JSON documents."""

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fd_keras import CoefficientStatistics, QuantizationTable, preset_table
from fd_keras._files import DocumentFormat, atomic_path, default_cache_dir


@pytest.mark.parametrize("name", ["a.json", "a" * 250 + ".json", "a" * 255])
def test_names_of_any_length(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.suffix == (tmp_path / name).suffix
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_failure_leaves_nothing(tmp_path):
    (tmp_path / "a.json").write_text("before")

    def write():
        with atomic_path(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "before"


def write(path, text="after"):
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_replaced_files_keep_their_mode(tmp_path, mode):
    path = tmp_path / "a.json"
    path.write_text("before")
    path.chmod(mode)
    with atomic_path(path) as temporary:
        assert mode_of(temporary) & 0o077 == mode & 0o077  # while it is written, too
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert mode_of(path) == mode


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_new_files_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write(tmp_path / "a.json")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a.json") == 0o666 & ~mask


@pytest.mark.parametrize("exists", [True, False])
def test_links_stay_and_what_they_lead_to_is_written(tmp_path, exists):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    target = tmp_path / "there" / "a.json"
    if exists:
        target.write_text("before")
    (tmp_path / "middle").symlink_to(target)
    link = tmp_path / "here" / "a.json"
    link.symlink_to(Path("..") / "middle")
    write(link)
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]
    assert [path.name for path in link.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("kind", ["pipe", "directory", "loop", "link to a directory"])
def test_what_is_no_file_is_left_alone(tmp_path, kind):
    path = tmp_path / "a.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else tmp_path)
    before = os.lstat(path)
    with pytest.raises(OSError, match="a.json"):
        write(path)
    assert os.lstat(path).st_ino == before.st_ino
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def no_space(temporary):
    # As a write to a full disk fails: without the name of a file.
    raise OSError(errno.ENOSPC, "No space left on device")


def no_permission(temporary):
    raise PermissionError(errno.EACCES, "Permission denied", str(temporary))


@pytest.mark.parametrize(
    ("fail", "kind", "number"),
    [(no_space, OSError, errno.ENOSPC), (no_permission, PermissionError, errno.EACCES)],
)
def test_errors_of_the_system_name_the_file(tmp_path, fail, kind, number):
    with pytest.raises(kind) as error, atomic_path(tmp_path / "a.json") as temporary:
        fail(temporary)
    assert (error.value.errno, error.value.filename) == (number, str(tmp_path / "a.json"))
    assert list(tmp_path.iterdir()) == []


def test_errors_about_other_files_keep_their_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="other.npz"), atomic_path(tmp_path / "a.json"):
        (tmp_path / "other.npz").read_bytes()


def test_names_that_the_system_does_not_take(tmp_path):
    with pytest.raises(OSError, match="a" * 300):
        write(tmp_path / ("a" * 300))
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "a.json")
    for act in (write, QuantizationTable.load, CoefficientStatistics.load):
        with pytest.raises(ValueError, match=r"must not hold a null character.*b.json"):
            act(tmp_path / "a\0b.json")


def test_cache_is_where_keras_keeps_its_files(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "fd_keras" / "evaluation"
    monkeypatch.delenv("KERAS_HOME")
    assert default_cache_dir() == Path.home() / ".keras" / "fd_keras" / "evaluation"


def test_without_a_home_the_way_is_named(monkeypatch, tmp_path):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    with pytest.raises(ValueError, match="`cache_dir` is needed .* KERAS_HOME"):
        default_cache_dir()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert default_cache_dir().is_relative_to(tmp_path)


POINT = DocumentFormat("example.point", 2, "point")
CONTENT = {
    "name": "größer",
    "numbers": [0.1, 1e300, -3],
    "nested": {"a": [{"b": None}, True]},
    "rows": [[1, 2], [3, 4]],
    "empty": [],
}


def saved(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("rows", [[], ["rows"], ["rows", "empty", "numbers"]])
def test_round_trip(tmp_path, rows):
    path = tmp_path / "new" / "point.json"
    POINT.write(path, CONTENT, rows=rows)
    assert POINT.read(path, dict) == CONTENT
    assert POINT.parse(POINT.text(CONTENT, rows=rows)) == CONTENT
    assert json.loads(path.read_bytes())["version"] == 2
    assert path.read_text(encoding="utf-8").startswith('{\n "format": "example.point",\n')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"format": "other.thing", "version": 2}', "its format is 'other.thing', not 'example"),
        ('{"version": 2}', "its format is None"),
        ('{"format": "example.point", "version": 1}', "its version is 1, not 2; another fd_keras"),
        ('{"format": "example.point", "version": 3}', "its version is 3, not 2; a newer fd_keras"),
        ('{"format": "example.point", "version": "2"}', "its version is '2', not 2"),
        ("[1, 2]", "the top level is not an object"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ('{"format": "example.point", "version": 2, "x": NaN}', "NaN is not JSON"),
        ('{"format": "example.point", "version": 2, "x": -Infinity}', "-Infinity is not JSON"),
        ("[" * 100_000, "its entries are nested too deeply"),
    ],
)
def test_what_is_no_such_document_is_named(tmp_path, text, reason):
    path = saved(tmp_path / "point.json", text)
    with pytest.raises(ValueError, match=r"`path` holds no point \(.*point\.json") as error:
        POINT.read(path, dict)
    assert reason in str(error.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "point.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"`source` holds no point .*source='.*point\.json'"):
        POINT.read(tmp_path / "point.json", dict, argument="source")


@pytest.mark.parametrize(
    "build",
    [
        lambda content: content["missing"],
        lambda content: content["name"].missing,
        lambda content: int(content["name"]),
        lambda content: len(content["nested"], 1),
        lambda content: int(10 * content["numbers"][1] * content["numbers"][1]),
    ],
    ids=["KeyError", "AttributeError", "ValueError", "TypeError", "OverflowError"],
)
def test_entries_that_do_not_fit_name_the_file(tmp_path, build):
    POINT.write(tmp_path / "point.json", CONTENT)
    with pytest.raises(ValueError, match=r"`path` holds no point .*point\.json"):
        POINT.read(tmp_path / "point.json", build)


def test_reasons_are_short_whatever_the_file_holds(tmp_path):
    big = "x" * 10**6
    for content in ({big: 1}, {"x": big}):
        POINT.write(tmp_path / "point.json", content)
        with pytest.raises(ValueError, match="holds no point") as error:
            POINT.read(tmp_path / "point.json", lambda content: int(*content.values(), **content))
        assert len(str(error.value)) < 2000


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [[], ["rows"]])
def test_numbers_that_are_not_finite_are_never_written(tmp_path, number, rows):
    path = tmp_path / "point.json"
    POINT.write(path, CONTENT)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        POINT.write(path, {"rows": [[1.0, number]]}, rows=rows)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "recognised"),
    [
        ('{"format": "example.point", "version": 99}', True),
        ('{"format": "other.thing", "version": 2}', False),
        ("[]", False),
        ("no JSON", False),
        ("[" * 100_000, False),
    ],
)
def test_format_is_recognised_in_any_version(tmp_path, text, recognised):
    assert POINT.recognises(saved(tmp_path / "point.json", text)) == recognised


def test_missing_file_is_an_os_error(tmp_path):
    for read in (POINT.recognises, lambda path: POINT.read(path, dict)):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none.json")


def test_rows_layout():
    content = {"flat": [1, 2], "deep": [[[1, 2], [3, 4]]], "objects": [{"a": 1}, {"a": [2]}]}
    assert POINT.text(content, rows=list(content)).splitlines() == [
        "{",
        ' "format": "example.point",',
        ' "version": 2,',
        ' "flat": [',
        "  1,",
        "  2",
        " ],",
        ' "deep": [',
        "  [",
        "   [1, 2],",
        "   [3, 4]",
        "  ]",
        " ],",
        ' "objects": [',
        '  {"a": 1},',
        '  {"a": [2]}',
        " ]",
        "}",
    ]


def numbers_in(line):
    return len(line.strip(" [],").split(",")) if line.strip().startswith("[") else 0


def test_table_file_has_a_row_of_steps_on_a_line(tmp_path):
    preset_table("jpeg:50").save(tmp_path / "table.json")
    lines = (tmp_path / "table.json").read_text().splitlines()
    rows = [line for line in lines if numbers_in(line) == 8]
    assert len(rows) == 3 * 8
    assert [float(step) for step in rows[0].strip(" [],").split(",")] == [
        *(16, 11, 10, 16, 24, 40, 51, 61)
    ]
    assert len(lines) < 3 * 8 + 20


@pytest.mark.parametrize("count", [1, 20])
def test_statistics_file_does_not_grow_with_the_images(tmp_path, count):
    """Six moments of 24 rows, and not one of its 1,152 numbers on a line of its own."""
    images = np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), np.uint8)
    CoefficientStatistics.from_data(images).save(tmp_path / "statistics.json")
    lines = (tmp_path / "statistics.json").read_text().splitlines()
    assert sum(numbers_in(line) == 8 for line in lines) == 6 * 24
    assert len(lines) < 6 * (24 + 2 * 3 + 2) + 20
