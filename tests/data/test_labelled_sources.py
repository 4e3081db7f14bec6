"""Labelled images in class directories, npz files, TFRecord files and Keras' data sets."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from fd_keras.data.labelled import batches_with_labels
from fd_keras.data.labelled_sources import open_labelled_images

SHAPE = (16, 16, 3)


@pytest.fixture
def folder(tmp_path, rng):
    """Two classes, three readable images, one of them of another size."""
    for name, size in (("cat/1.png", 16), ("cat/2.png", 32), ("dog/nested/3.png", 16)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(path)
    (tmp_path / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "notes.txt").write_text("no class")
    return tmp_path


def test_directory(folder):
    source = open_labelled_images(folder, SHAPE)
    pairs = list(source)
    assert [label for _, label in pairs] == [0, 0, 1]
    assert {image.shape for image, _ in pairs} == {SHAPE}
    np.testing.assert_array_equal(pairs[0][0], np.asarray(Image.open(folder / "cat" / "1.png")))
    assert len(source.skipped) == 1
    assert "broken.png" in source.skipped[0]


def test_other_sizes_are_scaled_to_cover_and_cropped(tmp_path):
    """Left half black, right half white, twice as wide as high: the middle is the edge."""
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 32:] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "wide.png")
    ((image, _),) = open_labelled_images(tmp_path, SHAPE)
    assert image[:, :7].max() == 0
    assert image[:, 9:].min() == 255


def test_class_names_give_the_order_of_the_model(folder):
    names = ["bird", "dog", "cat"]
    labels = [label for _, label in open_labelled_images(folder, SHAPE, class_names=names)]
    assert labels == [2, 2, 1]
    with pytest.raises(ValueError, match=r"`class_names` must name every.*without \['dog'\]"):
        open_labelled_images(folder, SHAPE, class_names=["cat"])


def test_strict_names_the_broken_file(folder):
    with pytest.raises(ValueError, match="broken.png"):
        list(open_labelled_images(folder, SHAPE, strict=True))


def test_records(tmp_path, rng):
    pixels = rng.integers(0, 256, (2, *SHAPE), np.uint8)
    path = tmp_path / "data.tfrecord"

    def example(image, label):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        feature = {
            "image/encoded": tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[buffer.getvalue()])
            )
        }
        if label is not None:
            feature["image/class/label"] = tf.train.Feature(
                int64_list=tf.train.Int64List(value=[label])
            )
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in (example(pixels[0], 7), example(pixels[1], None), b"garbage"):
            writer.write(record)
    source = open_labelled_images(path, SHAPE)
    ((image, label),) = source
    np.testing.assert_array_equal(image, pixels[0])
    assert label == 7
    assert "#1 with" in source.skipped[0]
    assert "#2" in source.skipped[1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 4, 4, 3), np.uint8)}, "`location` must hold images"),
        ({"x": np.zeros((3, 4, 4, 3)), "y": np.zeros(3, int)}, "uint8"),
        ({"x": np.zeros((3, 4, 4, 3), np.uint8), "y": np.zeros(2, int)}, "one integer label"),
        ({"x": np.zeros((3, 4, 4, 3), np.uint8), "y": np.zeros(3)}, "one integer label"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_labelled_images(tmp_path / "data.npz", SHAPE)


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_labelled_images(tmp_path / "nothing", SHAPE)
    with pytest.raises(ValueError, match="one subdirectory of image files"):
        open_labelled_images(tmp_path, SHAPE)


def test_batches_are_scaled(tmp_path, rng):
    pixels = rng.integers(0, 256, (5, *SHAPE), np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels, labels=np.arange(5)[:, np.newaxis])
    source = open_labelled_images(tmp_path / "data.npz", SHAPE, value_range=(-1, 1))
    batches = list(batches_with_labels(source, 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    joined = np.concatenate([images for images, _ in batches])
    assert joined.dtype == np.float32
    np.testing.assert_allclose(joined, pixels / 127.5 - 1, atol=1e-6)
    assert np.concatenate([labels for _, labels in batches]).tolist() == [0, 1, 2, 3, 4]
