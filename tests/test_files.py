"""Atomic writing, directories of runs, and versioned JSON documents."""

import json
from pathlib import Path

import numpy as np
import pytest

from fd_keras import CoefficientStatistics, preset_table
from fd_keras._files import DocumentFormat, atomic_path, claim, default_cache_dir


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


def test_directory_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.json"
    claim(path, {"seed": 1, "limits": (1, 2)}, "a search")
    claim(path, {"seed": 1, "limits": [1, 2]}, "a search")
    with pytest.raises(ValueError, match=r"holds a search with other limits, seed; .*overwrite"):
        claim(path, {"seed": 2, "limits": [1]}, "a search")
    assert json.loads(path.read_text())["seed"] == 1


def test_cache_is_where_keras_keeps_its_files(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "fd_keras" / "evaluation"
    monkeypatch.delenv("KERAS_HOME")
    assert default_cache_dir() == Path.home() / ".keras" / "fd_keras" / "evaluation"


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
