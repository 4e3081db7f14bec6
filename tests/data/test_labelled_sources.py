"""Labelled images in class directories, npz files, TFRecord files and Keras' data sets."""

import io
import re

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


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog", "cat"], r"each subdirectory once. Received: \['cat'\] more than once"),
        (["cat", "e\u0301", "\u00e9", "dog"], r"once. Received: \['\u00e9'\] more than once"),
    ],
)
def test_class_names_that_are_not_distinct(folder, names, message):
    (folder / "\u00e9").mkdir()
    with pytest.raises(ValueError, match=message):
        open_labelled_images(folder, SHAPE, class_names=names)


def test_classes_without_a_folder_may_share_a_name(folder):
    """ImageNet has two cranes, the bird and the machine."""
    names = ["crane", "dog", "crane", "cat"]
    labels = [label for _, label in open_labelled_images(folder, SHAPE, class_names=names)]
    assert labels == [3, 3, 1]


def test_class_names_of_another_normal_form(folder):
    """File systems write accents in one or two characters."""
    (folder / "cat").rename(folder / "e\u0301cole")
    names = ["dog", "\u00e9cole"]
    labels = [label for _, label in open_labelled_images(folder, SHAPE, class_names=names)]
    assert labels == [0, 1, 1]
    (folder / "\u00e9cole").mkdir()
    with pytest.raises(ValueError, match="subdirectories of .* must differ"):
        open_labelled_images(folder, SHAPE, class_names=names)


@pytest.mark.parametrize("hidden", [True, False])
def test_hidden_folders_are_no_classes(folder, hidden):
    """They once shifted every label."""
    (folder / (".ipynb_checkpoints" if hidden else "bird")).mkdir()
    source = open_labelled_images(folder, SHAPE)
    assert [label for _, label in source] == ([0, 0, 1] if hidden else [1, 1, 2])
    assert ("1 hidden" in str(source.left_out)) == hidden


def test_folders_must_be_the_classes_of_the_model(folder):
    with pytest.raises(
        ValueError, match=r"each of the 3 classes.*class_names.*2: \['cat', 'dog'\]"
    ):
        open_labelled_images(folder, SHAPE, class_count=3)
    assert open_labelled_images(folder, SHAPE, class_count=2).count == 4
    names = ["bird", "dog", "cat"]
    assert open_labelled_images(folder, SHAPE, class_names=names, class_count=3).count == 4


def example(image, **features):
    """A record with an image and further features: integers, floats or bytes."""
    lists = {int: "int64_list", float: "float_list", bytes: "bytes_list"}
    types = {int: tf.train.Int64List, float: tf.train.FloatList, bytes: tf.train.BytesList}
    feature = {}
    if image is not None:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        features["image/encoded"] = [buffer.getvalue()]
    for name, values in features.items():
        kind = type(values[0])
        feature[name] = tf.train.Feature(**{lists[kind]: types[kind](value=values)})
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


@pytest.fixture
def write(tmp_path):
    """Write records to a file and return its path."""

    def write(*records, name="data.tfrecord", compression=""):
        with tf.io.TFRecordWriter(str(tmp_path / name), compression) as writer:
            for record in records:
                writer.write(record)
        return tmp_path / name

    return write


GREY = np.zeros((4, 4), np.uint8)


def labels_of(path, **options):
    return [label for _, label in open_labelled_images(path, SHAPE, **options)]


@pytest.mark.parametrize("kind", [int, float])
def test_one_hot_labels_of_records(write, kind):
    """Their first number was once taken as the class."""
    one_hot = [[kind(number == label) for number in range(3)] for label in (0, 2, 1)]
    assert labels_of(write(*(example(GREY, label=label) for label in one_hot))) == [0, 2, 1]


def test_whole_floats_are_labels(write, tmp_path):
    assert labels_of(write(*(example(GREY, label=[label]) for label in (2.0, 0.0)))) == [2, 0]
    np.savez(tmp_path / "data.npz", x=np.zeros((2, *SHAPE), np.uint8), y=np.float32([[2], [0]]))
    assert labels_of(tmp_path / "data.npz") == [2, 0]


@pytest.mark.parametrize(
    ("label", "received"),
    [
        ([1, 0, 1], r"holds integers.*#0 with \[1, 0, 1\]"),
        ([0, 0], r"#0 with \[0, 0\]"),
        ([0, 2], r"#0 with \[0, 2\]"),
        ([0.5, 0.5], r"holds floats"),
        ([2.5], r"holds floats.*#0 with \[2.5\]"),
        ([b"red"], r"holds bytes; convert it.*label_key.*#0 with \[b'red'\] and 1 more"),
        ([-1], r"lie between 0 and 2147483647. Received: .*#0 with -1"),
        ([2**40], r"lie between 0 and 2147483647. Received: .*#0 with 1099511627776"),
    ],
)
def test_labels_of_records_that_are_no_classes(write, label, received):
    source = open_labelled_images(write(*[example(GREY, label=label)] * 2), SHAPE)
    assert list(source) == []
    assert source.skipped_count == 2
    assert len(source.skipped) == 1
    assert re.search(received, source.skipped[0])


def test_labels_of_several_sizes_are_lists_of_classes(write):
    path = write(example(GREY, label=[0, 1]), example(GREY, label=[1]))
    with pytest.raises(ValueError, match=r"the same size.*#1 with 1 numbers, after .* with 2"):
        labels_of(path)


def test_keys_of_records_can_be_named(write):
    image = tf.io.encode_png(GREY[..., np.newaxis]).numpy()
    path = write(*[example(None, jpeg=[image], cls=[3])] * 5)
    source = open_labelled_images(path, SHAPE)
    assert list(source) == []
    (line,) = source.skipped
    assert re.search(r"a label .*; label_key names another.*\['cls', 'jpeg'\] and 4 more", line)
    (line,) = open_skipped(path, label_key="cls")
    assert re.search(r"an encoded image .*; image_key names .*\['cls', 'jpeg'\] and 4 more", line)
    (line,) = open_skipped(path, label_key="cls", image_key="cls")
    assert "'cls' holds integers" in line
    assert labels_of(path, label_key="cls", image_key="jpeg") == [3] * 5


def open_skipped(path, **options):
    source = open_labelled_images(path, SHAPE, **options)
    assert list(source) == []
    return source.skipped


@pytest.mark.parametrize("labels", [np.array([0, 2**63], np.uint64), np.array([-1, 0])])
def test_labels_of_arrays_that_are_no_classes(tmp_path, labels):
    np.savez(tmp_path / "data.NPZ", x=np.zeros((2, *SHAPE), np.uint8), y=labels)
    (tmp_path / "data.NPZ.npz").rename(tmp_path / "data.NPZ")
    with pytest.raises(ValueError, match=r"between 0 and 2147483647. Received: .* in .*data\.NPZ"):
        open_labelled_images(tmp_path / "data.NPZ", SHAPE)


def test_records(write, rng):
    pixels = rng.integers(0, 256, (2, *SHAPE), np.uint8)
    path = write(example(pixels[0], **{"image/class/label": [7]}), example(pixels[1]), b"garbage")
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
        ({"x": np.zeros((3, 4, 4, 3), np.uint8), "y": np.ones(3) / 2}, "one integer label"),
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


@pytest.mark.parametrize(("part", "label"), [("train", 1), ("test", 2)])
def test_training_and_test_images_of_one_file_are_kept_apart(tmp_path, monkeypatch, part, label):
    """A classifier was hardened on the images that it is then evaluated on."""
    split = {
        name: (np.zeros((3, 8, 8, 3), np.uint8), np.full(3, value))
        for name, value in (("train", 1), ("test", 2))
    }
    arrays = {f"{x}_{name}": split[name][i] for name in split for i, x in enumerate("xy")}
    np.savez(tmp_path / "both.npz", **arrays)
    monkeypatch.setattr(
        "fd_keras.data.labelled_sources.load_keras_dataset",
        lambda name: (split["train"], split["test"]),
    )
    for location in (tmp_path / "both.npz", "cifar10"):
        found = open_labelled_images(location, (8, 8, 3), part=part)
        assert {int(y) for _, y in found} == {label}
