"""Open images by name: directories, npz and TFRecord files, Keras' data sets."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from google.protobuf.message import DecodeError

from fd_keras.data.files import READABLE_SUFFIXES, read_image

ImageArray = npt.NDArray[np.uint8]
# Typing alias: reads one image, uint8 (height, width, channels), or one with its label.
Loader = Callable[[], Any]

KERAS_DATASETS = ("cifar10", "cifar100", "fashion_mnist", "mnist")

_TFRECORD_SUFFIXES = (".tfrecord", ".tfrecords", ".tfrecord.gz", ".tfrecords.gz")
_ENCODED_FEATURES = ("image/encoded", "image", "image_raw")


@dataclass(eq=False)
class ImageSource:
    """Images that are read one at a time, in a fixed order, any number of times.

    Args:
        name: Name of the source in provenance and messages.
        loaders: Called at the start of each iteration; returns functions that each read one image
            ``(height, width, channels)``, or one image and its label.
        count: Number of images, or ``None`` if it is only known after reading.
        strict: Stop at the first image that cannot be read, instead of skipping it.
        skipped: Messages about the images that the latest iteration skipped.

    Example:
        >>> source = ImageSource("one", lambda: iter([lambda: np.zeros((8, 8, 3), np.uint8)]), 1)
        >>> [image.shape for image in source]
        [(8, 8, 3)]
    """

    name: str
    loaders: Callable[[], Iterator[Loader]]
    count: int | None
    strict: bool = False
    skipped: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        self.skipped.clear()
        for load in self.loaders():
            try:
                yield load()
            except (OSError, ValueError) as error:
                if self.strict:
                    raise
                self.skipped.append(str(error))


def open_images(
    location: str | os.PathLike[str],
    *,
    channels: Literal[1, 3] | None = None,
    strict: bool = False,
) -> ImageSource:
    """Open images by the path or the name of a data set.

    Args:
        location: A directory (searched recursively for PNG, JPEG and WebP files), an
            ``.npz`` file (its only array of rank 4, or the one named ``x`` or ``images``), a
            TFRecord file of encoded images (feature ``image/encoded``, ``image`` or
            ``image_raw``; ``.gz`` for a compressed one), or one of ``cifar10``,
            ``cifar100``, ``fashion_mnist``, ``mnist`` (the training images that
            ``keras.datasets`` downloads).
        channels: 3: grey images are repeated to RGB. 1: colours become luma. ``None``: 3 for
            image files, and the channels of the array for arrays.
        strict: Stop at the first image that cannot be read, instead of skipping it.

    Returns:
        The source. Image files are read when it is iterated over, arrays at once.

    Raises:
        ValueError: ``location`` is of another kind, or holds no image.
        OSError: It cannot be read.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/data.npz"
        >>> np.savez(path, x=np.zeros((5, 16, 16, 3), np.uint8))
        >>> open_images(path).count
        5
    """
    if not os.fspath(location):
        raise ValueError("`location` must not be empty. Received: location=''")
    path = Path(location)
    convert = functools.partial(with_channels, channels=channels)
    if path.is_dir():
        return _open_directory(path, channels or 3, strict)
    if is_record_file(path):
        path.stat()  # a missing file is an OSError here, not a TensorFlow error later
        return ImageSource(
            path.name, functools.partial(_record_loaders, path, channels or 3), None, strict
        )
    if path.suffix == ".npz":
        array = _only_images(path)
    elif os.fspath(location) in KERAS_DATASETS:
        (array, _), _ = load_keras_dataset(os.fspath(location))
    else:
        kind = "does not exist" if not path.exists() else "is of another kind"
        raise ValueError(
            "`location` must be a directory of images, an .npz or .tfrecord file or one of "
            f"{KERAS_DATASETS}; it {kind}. Received: location={os.fspath(location)!r}"
        )

    def loaders() -> Iterator[Loader]:
        return (functools.partial(convert, image) for image in array)

    return ImageSource(path.name, loaders, len(array), strict)


def _open_directory(path: Path, channels: int, strict: bool) -> ImageSource:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in READABLE_SUFFIXES)
    if not files:
        raise ValueError(
            f"`location` must hold image files ({', '.join(READABLE_SUFFIXES)}). "
            f"Received: location={os.fspath(path)!r}"
        )

    def load(file: Path) -> ImageArray:
        return with_channels(read_image(file).pixels, channels)

    return ImageSource(
        path.resolve().name,
        lambda: (functools.partial(load, file) for file in files),
        len(files),
        strict,
    )


def _record_loaders(path: Path, channels: int) -> Iterator[Loader]:
    def load(name: str, record: bytes) -> ImageArray:
        return encoded_image(example_features(name, record), name, channels)

    return (functools.partial(load, name, record) for name, record in read_records(path))


def encoded_image(feature: Any, name: str, channels: int) -> ImageArray:
    """Decode the image in the features of a record.

    Args:
        feature: Features, see ``example_features``.
        name: Name of the record in error messages.
        channels: Of the image: 1 or 3.

    Raises:
        ValueError: There is no image, or it cannot be read.
    """
    for key in _ENCODED_FEATURES:
        if key in feature and feature[key].bytes_list.value:
            content = feature[key].bytes_list.value[0]
            return with_channels(read_image(content, name=name).pixels, channels)
    raise ValueError(
        f"`location` must hold records with one of the features {_ENCODED_FEATURES}. "
        f"Received: {name} with {sorted(feature)}"
    )


def example_features(name: str, record: bytes) -> Any:
    """Parse the features of a serialised ``tf.train.Example``.

    Args:
        name: Name of the record in error messages.
        record: Its bytes.

    Raises:
        ValueError: The bytes are no Example.
    """
    try:
        return tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(
            f"`location` must hold records of tf.train.Example ({error}). Received: {name}"
        ) from error


def is_record_file(path: Path) -> bool:
    """Whether a file is named like a TFRecord file.

    Example:
        >>> is_record_file(Path("train.tfrecord.gz"))
        True
    """
    return path.name.endswith(_TFRECORD_SUFFIXES)


def read_records(path: Path) -> Iterator[tuple[str, bytes]]:
    """Iterate over the records of a TFRecord file.

    Args:
        path: The file; compressed if it ends in ``.gz``.

    Yields:
        A name for error messages, ``path#index``, and the bytes of a record.

    Raises:
        ValueError: It is no intact TFRecord file.
    """
    compression = "GZIP" if path.suffix == ".gz" else ""
    records = tf.data.TFRecordDataset(os.fspath(path), compression).as_numpy_iterator()
    try:
        for index, record in enumerate(records):
            yield f"{path}#{index}", record
    except tf.errors.DataLossError as error:
        raise ValueError(
            f"`location` is no TFRecord file, or a broken one ({error.message}). "
            f"Received: location={os.fspath(path)!r}"
        ) from error


def _only_images(path: Path) -> npt.NDArray[Any]:
    arrays = read_arrays(path)
    candidates = [name for name, array in arrays.items() if array.ndim == 4]
    named = [name for name in candidates if name in ("x", "images")]
    if len(named or candidates) != 1:
        raise ValueError(
            "`location` must hold one array (n, height, width, channels), or one named 'x' "
            f"or 'images'. Received: {path} with {sorted(arrays)}"
        )
    array = arrays[(named or candidates)[0]]
    if array.dtype != np.uint8:
        raise ValueError(
            f"`location` must hold images as uint8. Received: {path} with {array.dtype}"
        )
    return array


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an ``.npz`` file by name.

    Args:
        path: The file.

    Raises:
        ValueError: The file is no intact archive of numeric arrays.
        OSError: It cannot be read.
    """
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError:
        raise
    # On a broken archive, or another file, numpy, zipfile and zlib raise many types.
    except Exception as error:
        raise ValueError(
            "`location` must be an intact .npz archive of numeric arrays. "
            f"Received: location={os.fspath(path)!r}"
        ) from error


def load_keras_dataset(name: str) -> Any:
    """Load a data set of Keras as ``(x, y), (x_test, y_test)``, images with a channel axis.

    Args:
        name: One of ``KERAS_DATASETS``.

    Raises:
        OSError: It could not be downloaded.
    """
    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # urllib's, or Keras' own bare Exception
        raise OSError(f"`location` {name!r} could not be downloaded: {error}") from error
    return [(x if x.ndim == 4 else x[..., np.newaxis], y) for x, y in (train, test)]


def with_channels(image: ImageArray, channels: int | None) -> ImageArray:
    """Convert an image to grey (1) or RGB (3).

    Args:
        image: uint8 ``(height, width, channels)``.
        channels: 3: grey is repeated. 1: colours become luma. ``None``: no conversion.

    Raises:
        ValueError: A conversion is needed, and the image has neither 1 nor 3 channels.

    Example:
        >>> with_channels(np.zeros((2, 2, 1), np.uint8), 3).shape
        (2, 2, 3)
    """
    if channels in (None, image.shape[-1]):
        return image
    if image.shape[-1] not in (1, 3):
        raise ValueError(
            f"`channels` can be chosen for grey and RGB images only. Received: "
            f"channels={channels} for images with {image.shape[-1]}"
        )
    if channels == 3:
        return np.repeat(image, 3, -1)
    return np.uint8(np.round(image @ np.array([0.299, 0.587, 0.114])))[..., np.newaxis]
