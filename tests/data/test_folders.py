"""Image files in folders, compared with what Keras finds there."""

import os

import keras
import numpy as np
import pytest
from PIL import Image

from fd_keras.data.folders import class_files, class_folders, image_files


@pytest.fixture
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def put(tmp_path, picture):
    """Put the picture under names in the folder of the test."""

    def put(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.read_bytes())

    return put


def relative(files, folder):
    return [os.path.relpath(file, folder) for file in files]


def test_classes_and_files_are_those_of_keras(tmp_path, put):
    put("top.png", "b/1.png", "b/2.JPG", "b/deep/er/3.bmp", "b/deep-er/4.gif", "b/deep.png")
    put("B/5.PnG", "a b/6.jpeg", "a-b/7.png", ".hidden/8.png", "elsewhere/9.png", "e\u0301/10.png")
    put("b/notes.txt", "b/x.png.part", "a/y.tif")
    put("b/.hidden.png", "b/.png", "a b/.ipynb_checkpoints/6-checkpoint.jpeg")
    for name in ("empty", ".ipynb_checkpoints", "z"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    (tmp_path / "z" / "inner").symlink_to(tmp_path / "a b")
    (tmp_path / "z" / "file.png").symlink_to(tmp_path / "top.png")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")

    expected = keras.utils.image_dataset_from_directory(
        tmp_path, image_size=(4, 4), shuffle=False, follow_links=True
    )
    names = class_folders(tmp_path)
    found, left_out = class_files(tmp_path, names)

    assert names == expected.class_names
    assert {"empty", "linked"} < set(names)
    assert [str(file) for file, _ in found] == list(expected.file_paths)
    labels = np.concatenate([labels for _, labels in expected])
    assert [names.index(name) for _, name in found] == labels.tolist()
    assert str(left_out) == (
        "2 hidden, such as .hidden; 1 broken or unreadable link(s), broken; 1 outside the class "
        "folders, top.png; 5 of other kinds (2 .txt, 2 .part, 1 .tif), such as a/y.tif"
    )


def test_cycles_of_links_end(tmp_path, put):
    put("a/1.png", "b/2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "again").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "loop").symlink_to("loop")
    files, left_out = image_files(tmp_path)
    assert relative(files, tmp_path) == ["a/1.png", "b/2.png"]
    assert str(left_out) == (
        "1 broken or unreadable link(s), b/loop; 3 link(s) to folders that are read already, such "
        "as again"
    )
    found, _ = class_files(tmp_path, class_folders(tmp_path))
    assert [name for _, name in found] == ["a", "again", "b"]


def test_all_readable_suffixes(tmp_path, put):
    put(*(f"x.{suffix}" for suffix in ("bmp", "gif", "JFIF", "jpe", "jpeg", "jpg", "png", "WebP")))
    files, left_out = image_files(tmp_path)
    assert len(files) == 8
    assert not left_out


def test_what_is_left_out_is_counted_by_reason(tmp_path, put, monkeypatch):
    put("1.png", ".2.png", "3.tif", "4.TIF", "5.txt", "README", "out/6.png", "locked/7.png")
    put(*(f"{suffix}.{suffix}" for suffix in "abcdef"))
    os.mkfifo(tmp_path / "pipe.png")
    listdir = os.listdir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    files, left_out = image_files(tmp_path, without=tmp_path / "out")
    assert relative(files, tmp_path) == ["1.png"]
    assert str(left_out) == (
        "1 hidden, .2.png; 1 pipe(s), socket(s) or device(s), pipe.png; 1 output folder, out; "
        "1 unreadable folder(s), locked; 10 of other kinds (2 .tif, 1 .txt, 1 without a suffix, "
        "1 .a, 1 .b, others), such as 3.tif"
    )
    with pytest.raises(PermissionError):
        image_files(tmp_path / "locked")
