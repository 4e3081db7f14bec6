"""Atomic writing."""

import pytest

from fd_keras._files import atomic_path


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
