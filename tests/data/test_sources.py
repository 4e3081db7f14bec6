"""Images in directories, npz files, TFRecord files and Keras' data sets."""

import gzip
import itertools
import os

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fd_keras.data.sources import ImageSource, open_images


@pytest.fixture
def folder(photos, tmp_path):
    """Images of mixed sizes and kinds in nested folders, one of them broken."""
    (tmp_path / "b").mkdir()
    Image.fromarray(photos[0, :40, :56]).save(tmp_path / "b" / "1.png")
    Image.fromarray(photos[1, :24, :24]).convert("L").save(tmp_path / "a.PNG")
    Image.fromarray(photos[1, :16, :32]).save(tmp_path / "c.jpg")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_directory(folder, photos):
    source = open_images(folder)
    images = list(source)
    assert source.count == 4
    assert [image.shape for image in images] == [(24, 24, 3), (40, 56, 3), (16, 32, 3)]
    np.testing.assert_array_equal(images[1], photos[0, :40, :56])
    assert len(source.skipped) == 1
    assert "broken.png" in source.skipped[0]
    assert len(list(source)) == 3, "a source can be read again"
    assert len(source.skipped) == 1


def test_strict_names_the_broken_file(folder):
    with pytest.raises(ValueError, match="broken.png"):
        list(open_images(folder, strict=True))


def test_grey(folder):
    assert {image.shape[-1] for image in open_images(folder, channels=1)} == {1}


def records(path, photos, compression):
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for size in (16, 24, None):
            content = b"junk"
            if size:
                content = tf.io.encode_png(photos[0, :size, :size]).numpy()
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
            label = tf.train.Feature(int64_list=tf.train.Int64List(value=[3]))
            features = tf.train.Features(
                feature={"image/encoded": feature, "image/class/label": label}
            )
            writer.write(tf.train.Example(features=features).SerializeToString())


@pytest.mark.parametrize(("name", "compression"), [("a.tfrecord", ""), ("a.tfrecord.gz", "GZIP")])
def test_records(name, compression, photos, tmp_path):
    records(tmp_path / name, photos, compression)
    source = open_images(tmp_path / name)
    images = list(source)
    assert [image.shape for image in images] == [(16, 16, 3), (24, 24, 3)]
    np.testing.assert_array_equal(images[0], photos[0, :16, :16])
    assert source.count is None
    assert f"{name}#2" in source.skipped[0]


@pytest.mark.parametrize(
    "name",
    [
        "x.TFRECORD",
        "x.tfrec",
        "x.record",
        "x-train.tfrecord-00000-of-00001",
        "train-00000-of-01024",
        "x.tfrecord-00000-of-00001.gz",
    ],
)
def test_names_of_record_files(name, photos, tmp_path):
    """Shards of TFDS and of ImageNet's script were refused."""
    records(tmp_path / name, photos, "")
    assert len(list(open_images(tmp_path / name))) == 2


def test_archive_in_upper_case(photos, tmp_path):
    with open(tmp_path / "A.NPZ", "wb") as file:
        np.savez(file, x=photos[:, :8, :8])
    assert open_images(tmp_path / "A.NPZ").count == 2


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("cut", [1, 11, 12, 13, 40])
def test_record_that_is_cut_is_named(compressed, cut, photos, tmp_path):
    """TensorFlow takes a cut within the header of a record for the end of the file."""
    records(tmp_path / "a.tfrecord", photos, "")
    content = (tmp_path / "a.tfrecord").read_bytes()
    second = 16 + int.from_bytes(content[:8], "little")
    content = content[: second + cut]
    (tmp_path / "a.tfrecord").write_bytes(gzip.compress(content) if compressed else content)
    images = iter(open_images(tmp_path / "a.tfrecord"))
    next(images)
    with pytest.raises(ValueError, match=r"cut or damaged at record 1.*a\.tfrecord") as error:
        next(images)
    assert "function_node" not in str(error.value)


@pytest.mark.parametrize("left", [1, 5, 11, 100, -4])
def test_compressed_records_that_are_cut(left, photos, tmp_path):
    records(tmp_path / "a.tfrecord", photos, "GZIP")
    content = (tmp_path / "a.tfrecord").read_bytes()
    (tmp_path / "a.tfrecord").write_bytes(content[:left])
    with pytest.raises(ValueError, match="cut or damaged at record"):
        list(open_images(tmp_path / "a.tfrecord"))


def test_record_file_that_may_not_be_read(photos, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied", "a.tfrecord")

    records(tmp_path / "a.tfrecord", photos, "")
    source = open_images(tmp_path / "a.tfrecord")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError):
        list(source)


@pytest.mark.parametrize("name", ["x.tfrecord", "x.npz", "x.png"])
def test_pipes_are_refused(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"(must be a regular file|of another kind).*{name}"):
        open_images(tmp_path / name)


def test_pipe_in_a_directory_is_left_out(folder):
    os.mkfifo(folder / "b" / "pipe.png")
    source = open_images(folder)
    assert len(list(source)) == 3
    assert "pipe(s), socket(s) or device(s), b/pipe.png" in str(source.left_out)


def test_image_file(folder):
    source = open_images(folder / "a.PNG")
    assert [image.shape for image in source] == [(24, 24, 3)]


def test_remarks_of_the_latest_iteration(folder, photos):
    frames = [Image.fromarray(photo[:8, :8]) for photo in photos]
    for name in ("x.gif", "y.gif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    source = open_images(folder)
    for _ in range(2):
        list(source)
        assert source.remarks.lines() == [
            f"{folder / 'x.gif'} and 1 more: an animation, of which the first frame was read"
        ]


def test_larger_images_can_be_allowed(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 24)
    source = open_images(folder)
    assert len(list(source)) == 2
    assert "more than 576 pixels" in source.skipped[0]
    assert len(list(open_images(folder, max_pixels=40 * 56))) == 3


def test_name_that_is_no_text(tmp_path, photos):
    """It went into reports, which could not be written after all attacks had run."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    Image.fromarray(photos[0, :8, :8]).save(folder / "x.png")
    source = open_images(folder)
    assert source.name == "caf\\xe9"
    assert len(list(source)) == 1
    records(tmp_path / "x.tfrecord", photos, "")
    (tmp_path / "x.tfrecord").rename(folder / "x.tfrecord")
    assert len(list(open_images(folder / "x.tfrecord"))) == 2


def test_directory_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "x.tif").touch()
    with pytest.raises(
        ValueError, match=r"must hold image files.*with 1 of other kinds \(1 \.tif\)"
    ):
        open_images(tmp_path)


def test_records_without_images(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(tf.train.Example().SerializeToString())
    source = open_images(tmp_path / "a.tfrecord")
    assert list(source) == []
    assert "image/encoded" in source.skipped[0]


@pytest.mark.parametrize("name", ["x", "anything"])
def test_npz(name, photos, tmp_path):
    np.savez(tmp_path / "a.npz", **{name: photos[:, :8, :8], "y": np.zeros(2)})
    np.testing.assert_array_equal(list(open_images(tmp_path / "a.npz")), photos[:, :8, :8])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3)}, "must hold one array"),
        ({"a": np.zeros((1, 8, 8, 3)), "b": np.zeros((1, 8, 8, 3))}, r"\['a', 'b'\]"),
        ({"x": np.zeros((1, 8, 8, 3))}, "float64"),
    ],
)
def test_npz_without_images(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "a.npz")


def test_keras_dataset_that_cannot_be_had(monkeypatch):
    def fail():
        raise Exception("URL fetch failure")

    monkeypatch.setattr("keras.datasets.mnist.load_data", fail)
    with pytest.raises(OSError, match="mnist.*URL fetch failure"):
        open_images("mnist")


def test_keras_dataset(monkeypatch):
    images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8)
    part = images, np.zeros(2, np.uint8)
    monkeypatch.setattr("keras.datasets.mnist.load_data", lambda: (part, part))
    assert [image.shape for image in open_images("mnist")] == [(8, 8, 1)] * 2
    assert [image.shape for image in open_images("mnist", channels=3)] == [(8, 8, 3)] * 2


@pytest.mark.parametrize("name", ["missing", "missing.npz", "missing.tfrecord", "some.txt"])
def test_other_locations(name, tmp_path):
    (tmp_path / "some.txt").write_text("text")
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        list(open_images(tmp_path / name))


def test_empty_directory(tmp_path):
    with pytest.raises(ValueError, match="must hold image files"):
        open_images(tmp_path)


def test_compressed_record_file_of_another_kind(tmp_path):
    with gzip.open(tmp_path / "a.tfrecord.gz", "wb") as file:
        file.write(b"no records " * 100)
    with pytest.raises(ValueError, match="a.tfrecord.gz"):
        list(open_images(tmp_path / "a.tfrecord.gz"))


def save_renamed_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros((2, 8, 8, 3), np.uint8))


def save_truncated(path):
    np.savez_compressed(path, x=np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3))
    content = bytearray(path.read_bytes())
    content[70:90] = b"\0" * 20
    path.write_bytes(content)


@pytest.mark.parametrize(
    "save",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 no archive"),
        save_renamed_array,
        save_truncated,
        lambda path: np.savez(path, x=np.array([{}, None])),
    ],
    ids=["empty", "no archive", "npy", "damaged", "objects"],
)
def test_broken_npz_is_named(save, tmp_path):
    save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="a.npz") as error:
        open_images(tmp_path / "a.npz")
    assert "allow_pickle" not in str(error.value)


def test_record_that_is_no_example(photos, tmp_path):
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"\xff\xff garbage")
        content = tf.io.encode_png(photos[0, :8, :8]).numpy()
        feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
        features = tf.train.Features(feature={"image": feature})
        writer.write(tf.train.Example(features=features).SerializeToString())
    source = open_images(path)
    assert len(list(source)) == 1
    assert len(source.skipped) == 1
    assert "a.tfrecord#0" in source.skipped[0]
    with pytest.raises(ValueError, match="a.tfrecord#0"):
        list(open_images(path, strict=True))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 9))
def test_the_beginning_of_a_sample_is_spread_over_the_groups(groups, seed):
    def loaders():
        return iter([lambda index=index: index for index in range(len(groups))])

    groups = np.array(groups)
    source = ImageSource("numbers", loaders, len(groups), groups=groups)
    order = list(source.sampled(len(groups), seed))
    assert sorted(order) == list(range(len(groups)))
    assert (
        list(source.sampled(len(groups), seed)) == order == list(source.sampled(len(groups), seed))
    )
    for group in range(5):
        met = np.cumsum(groups[order] == group)
        share = np.arange(1, len(groups) + 1) * np.mean(groups == group)
        # One for its own place, and one for that of each group.
        assert np.abs(met - share).max() <= 1 + len(np.unique(groups))
    assert len({tuple(source.sampled(len(groups), seed)) for seed in range(9)}) > (len(groups) > 3)


@pytest.mark.parametrize("groups", [np.zeros(3, np.int64), None])
def test_a_sample_replaces_what_cannot_be_read_and_its_source_says_so(groups):
    def broken():
        raise ValueError("damaged")

    source = ImageSource("some", lambda: iter([lambda: 1, broken, lambda: 3]), 3, groups=groups)
    assert sorted(itertools.islice(source.sampled(2, seed=1), 2)) == [1, 3]
    assert list(source.sampled(3, seed=1)) is not None
    assert source.skipped == ["damaged"]


def test_folders_of_images_are_groups(folder):
    assert open_images(folder).groups.tolist() == [0, 1, 0, 0]
    np.savez(folder / "data.npz", x=np.zeros((5, 8, 8, 3), np.uint8))
    assert open_images(folder / "data.npz").groups.tolist() == [0] * 5
