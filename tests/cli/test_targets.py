"""Outputs that cannot be written are refused before the work, in the command line's words."""

import os
from pathlib import Path

import pytest

from fd_keras_cli.console import check_directory, check_target

# A directory in which nobody can make a file, not even root.
SEALED = Path("/proc")


@pytest.fixture
def picture(tmp_path):
    """No image: whoever reads it says so."""
    (tmp_path / "a.png").write_bytes(b"no image")
    return tmp_path / "a.png"


needs_sealed = pytest.mark.skipif(not SEALED.is_dir(), reason="there is no /proc")


@needs_sealed
@pytest.mark.parametrize("command", ["calibrate", "apply", "compress"])
def test_directories_that_cannot_be_written_to(run, picture, command):
    out = SEALED / ("table.json" if command == "calibrate" else "new")
    epsilon = ["--epsilon", "2"] if command == "calibrate" else []
    data = picture.parent if command == "calibrate" else picture
    code, _, errors = run(command, data, *epsilon, "--out", out)
    assert code == 1
    assert f"{SEALED} cannot be written to" in errors
    assert f"Received: --out {out}" in errors
    assert "a.png" not in errors


@pytest.mark.parametrize("check", [lambda path: check_target("--out", path), check_directory])
def test_checks_leave_nothing_behind(tmp_path, check):
    check(tmp_path / "new" / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="`--out` must be a .*file/out"):
        check(tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_pipes_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(ValueError, match="`--out` must be a file to write"):
            check_target("--out", target)


@needs_sealed
def test_links_are_checked_where_they_lead(tmp_path):
    (tmp_path / "good").symlink_to(tmp_path / "there.json")
    check_target("--out", tmp_path / "good")
    (tmp_path / "bad").symlink_to(SEALED / "there.json")
    with pytest.raises(ValueError, match=f"{SEALED} cannot be written to"):
        check_target("--out", tmp_path / "bad")
