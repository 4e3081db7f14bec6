"""``make corpus``: commands over a folder of files, with counts per reason."""

import subprocess
import sys
from pathlib import Path

import corpus
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path, rng, monkeypatch):
    """Two images, three broken ones, two for the same reason, and another file."""
    monkeypatch.setattr(sys, "argv", [])  # which it sets
    for name in ("a.png", "b [1]: x.jpg"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / name)
    for name in ("c: d.png", "e.gif"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "f.jpg").write_bytes(b"\xff\xd8\xff\xd9")
    (tmp_path / "g.tif").touch()
    return tmp_path


def test_reasons_are_counted(folder, capsys):
    assert corpus.main(folder) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines.count("2 the file holds no PNG, JPEG, WebP, BMP or GIF image") == 3
    assert "1 the file holds a JPEG image that is broken, or not of N bits per sample" in lines
    assert "1 the file holds a broken JPEG image, without a scan" in lines
    assert lines.count("Left out: 1 of other kinds (1 .tif), g.tif") == 3
    assert [line[:7] for line in lines].count("2 of 5 ") == 2
    assert lines[-1] == "6 files, 0 tracebacks"


def test_traceback_is_shown_and_fails(folder, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise TypeError("a fault of ours")

    monkeypatch.setattr("fd_keras.jpeg._Header.of", fail)
    assert corpus.main(folder) == 1
    printed = capsys.readouterr().out
    assert "6 files, 2 tracebacks" in printed
    assert "TypeError: a fault of ours" in printed


@pytest.mark.parametrize("folder", ["", "no such folder"])
def test_usage(folder):
    process = subprocess.run(
        ["make", "-n", "corpus", f"DIR={folder}"], cwd=ROOT, capture_output=True, text=True
    )
    assert f'tests/helpers/corpus.py "{folder}"' in process.stdout
    with pytest.raises(SystemExit, match="Usage: .* DIR"):
        corpus.folder_of(["corpus.py", folder])
