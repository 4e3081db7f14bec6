"""Open images by name: files, directories, npz and TFRecord files, Keras' data sets."""

from __future__ import annotations

import errno
import functools
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from google.protobuf.message import DecodeError

from fd_keras._checks import checked_whole
from fd_keras.data.files import READABLE_SUFFIXES, Tally, check_regular, read_image
from fd_keras.data.folders import image_files
from fd_keras.data.samples import Reservoir, spread_order

ImageArray = npt.NDArray[np.uint8]
# Typing alias: reads one image, uint8 (height, width, channels), or one with its label.
Loader = Callable[[], Any]

KERAS_DATASETS = ("cifar10", "cifar100", "fashion_mnist", "mnist")

_ENCODED_FEATURES = ("image/encoded", "image", "image_raw")

# x.tfrecord, x.tfrec.gz, x.record-00000-of-00001, train-00000-of-01024
_RECORD_NAME = re.compile(
    r".*(\.(tfrecords?|tfrec|records?)(\.gz)?(-\d+-of-\d+)?|-\d{4,}-of-\d{4,})(\.gz)?", re.I | re.S
)
_NAMED_FEATURES = 20
_RECORD_OVERHEAD = 16  # bytes of length and checksums around the data of a record


class UnusableSourceError(ValueError):
    """No image of a source can be used, as those that were read may be wrong."""


@dataclass(eq=False)
class ImageSource:
    """Images that are read one at a time, in a fixed order, any number of times.

    Args:
        name: Name of the source in provenance and messages.
        loaders: Called at the start of each iteration; returns functions that each read one image
            ``(height, width, channels)``, or one image and its label.
        count: Number of images, or ``None`` if it is only known after reading.
        strict: Stop at the first image that cannot be read, instead of skipping it.
        left_out: Files of a directory that are not among the images.
        remarks: What the latest iteration found in files beside their pixels.
        groups: Class or folder of each image as an integer, ``(count,)``; ``None`` where that is
            only known after reading.
        class_names: Names of the classes by label, where the source tells them.

    Example:
        >>> source = ImageSource("one", lambda: iter([lambda: np.zeros((8, 8, 3), np.uint8)]), 1)
        >>> [image.shape for image in source]
        [(8, 8, 3)]
    """

    name: str
    loaders: Callable[[], Iterator[Loader]]
    count: int | None
    strict: bool = False
    left_out: Tally = field(default_factory=Tally)
    remarks: Tally = field(default_factory=Tally)
    groups: npt.NDArray[np.integer] | None = None
    class_names: tuple[str, ...] | None = None
    # Reasons, with the number of images that the latest iteration skipped, and the first message.
    skips: Tally = field(default_factory=Tally, init=False)

    def __post_init__(self) -> None:
        # Names of files may hold bytes that no text file can.
        self.name = os.fsencode(self.name).decode("utf-8", "backslashreplace")

    def sampled(self, limit: int, seed: int) -> ImageSource:
        """The same images in an order whose first ``limit`` are a sample, spread over the groups.

        Where the groups are known, that holds for any number of images from the start, and no image
        is left out: those that cannot be read are replaced by later ones. Where they are not, all
        records are read for their labels, and twice as many as are wanted are kept.

        Args:
            limit: Number of images that are wanted.
            seed: Of the order.

        Raises:
            ValueError: ``limit`` is not positive.

        Example:
            >>> def loaders():
            ...     return iter([lambda i=i: i for i in range(40)])
            >>> source = ImageSource("numbers", loaders, 40, groups=np.repeat([0, 1], [10, 30]))
            >>> first = list(source.sampled(8, seed=1))[:8]
            >>> sum(number < 10 for number in first), first != sorted(first)
            (2, True)
        """
        checked_whole("limit", limit, 1)
        if self.groups is None:
            return self._reordered(lambda: self._of_unknown_groups(limit, seed), None)
        order = spread_order(self.groups, seed)

        def loaders() -> Iterator[Loader]:
            every = list(self.loaders())
            return (every[index] for index in order)

        return self._reordered(loaders, self.groups[order])

    def _reordered(
        self, loaders: Callable[[], Iterator[Loader]], groups: npt.NDArray[np.integer] | None
    ) -> ImageSource:
        other = replace(self, loaders=loaders, groups=groups)
        other.skips = self.skips  # either tells what could not be read
        return other

    def _of_unknown_groups(self, limit: int, seed: int) -> Iterator[Loader]:
        kept: Reservoir[Loader] = Reservoir(2 * limit, seed)  # some cannot be read
        for load in self.loaders():
            kept.add(load, getattr(load, "group", 0))
        return iter(kept.items())

    @property
    def skipped(self) -> list[str]:
        """Messages about the images that the latest iteration skipped, one for each reason."""
        return [
            f"{first}{f' and {count - 1} more' if count > 1 else ''}"
            for _, first, count in self.skips.entries()
        ]

    @property
    def skipped_count(self) -> int:
        """Number of images that the latest iteration skipped."""
        return sum(count for _, _, count in self.skips.entries())

    def __iter__(self) -> Iterator[Any]:
        self.skips.clear()
        self.remarks.clear()
        for load in self.loaders():
            try:
                image = load()
            except (OSError, ValueError) as error:
                if self.strict or isinstance(error, UnusableSourceError):
                    raise
                reason = error.reason if isinstance(error, RecordError) else str(error)
                self.skips.add(reason, error)
            else:
                yield image


class RecordError(ValueError):
    """A record cannot be used, for a reason that others of its file may share.

    Args:
        reason: The reason.
        record: Name of the record, and what it holds.
    """

    def __init__(self, reason: str, record: str) -> None:
        super().__init__(f"{reason}. Received: {record}")
        self.reason = reason


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of files and records.

    Args:
        channels: Of the images: 1 or 3.
        image_key: Feature of a record that is its image. Default: ``image/encoded``, ``image`` or
            ``image_raw``.
        max_pixels: See ``read_image``.
        remarks: Where ``read_image`` remarks on files.
    """

    channels: int
    image_key: str | None = None
    max_pixels: int | None = None
    remarks: Tally = field(default_factory=Tally)

    def file(self, path: Path) -> ImageArray:
        """Read a file.

        Args:
            path: The file.

        Raises:
            OSError: See ``read_image``.
            ValueError: See ``read_image``.
        """
        image = read_image(path, max_pixels=self.max_pixels, remark=self.remarks.add)
        return with_channels(image.pixels, self.channels)

    def record(self, feature: Any, name: str) -> ImageArray:
        """Read the image of a record.

        Args:
            feature: Its features, see ``example_features``.
            name: Its name in error messages.

        Raises:
            OSError: See ``read_image``.
            RecordError: There is no image, or it cannot be read.
        """
        keys = _ENCODED_FEATURES if self.image_key is None else (self.image_key,)
        key = found_key(feature, keys, "image_key", "an encoded image", name)
        if not (content := feature[key].bytes_list.value):
            raise RecordError(
                "`location` must hold records with an encoded image, and in these the feature "
                f"{key!r} holds {kind_of(feature[key])}; image_key names another",
                f"{name} with {names_of(feature)}",
            )
        try:
            image = read_image(
                content[0], name=name, max_pixels=self.max_pixels, remark=self.remarks.add
            )
        except ValueError as error:
            reason = str(error).rpartition(". Received: ")[0]
            raise RecordError(reason.replace("`path`", "`location`", 1), name) from error
        return with_channels(image.pixels, self.channels)


def open_images(
    location: str | os.PathLike[str],
    *,
    channels: Literal[1, 3] | None = None,
    strict: bool = False,
    image_key: str | None = None,
    max_pixels: int | None = None,
) -> ImageSource:
    """Open images by the path or the name of a data set.

    Args:
        location: An image file or a directory (searched recursively for PNG, JPEG, WebP, BMP and
            GIF files, see ``fd_keras.data.folders.image_files``), an ``.npz`` file (its only
            array of rank 4, or the one named ``x`` or ``images``), a TFRecord file of encoded
            images, compressed with gzip or not, or one of ``cifar10``, ``cifar100``,
            ``fashion_mnist``, ``mnist`` (the training images that ``keras.datasets`` downloads).
        channels: 3: grey images are repeated to RGB. 1: colours become luma. ``None``: 3 for
            image files, and the channels of the array for arrays.
        strict: Stop at the first image that cannot be read, instead of skipping it.
        image_key: Feature of a record that is its image. Default: ``image/encoded``, ``image`` or
            ``image_raw``.
        max_pixels: Largest number of pixels of an image file. Default:
            ``PIL.Image.MAX_IMAGE_PIXELS``.

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
    reader = ImageReader(channels or 3, image_key, max_pixels)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in READABLE_SUFFIXES):
        return _open_files(path, reader, strict)
    if is_record_file(path):
        check_regular(path, "location")
        return ImageSource(
            path.name,
            functools.partial(_record_loaders, path, reader),
            None,
            strict,
            remarks=reader.remarks,
        )
    if is_archive(path):
        array = _only_images(path)
    elif os.fspath(location) in KERAS_DATASETS:
        (array, _), _ = load_keras_dataset(os.fspath(location))
    else:
        raise unknown_location(location, "an image file, a directory of them, an .npz or")
    convert = functools.partial(with_channels, channels=channels)

    def loaders() -> Iterator[Loader]:
        return (functools.partial(convert, image) for image in array)

    groups = np.zeros(len(array), np.int64)
    return ImageSource(path.name, loaders, len(array), strict, groups=groups)


def unknown_location(location: str | os.PathLike[str], kinds: str) -> ValueError:
    """The error about a location of another kind.

    Args:
        location: The location.
        kinds: What it may be, before ``.tfrecord``.
    """
    what = "is of another kind" if Path(location).exists() else "does not exist"
    return ValueError(
        f"`location` must be {kinds} .tfrecord file or one of {KERAS_DATASETS}; it {what}. "
        f"Received: location={os.fspath(location)!r}"
    )


def no_images(path: Path, rule: str, left_out: Tally) -> ValueError:
    """The error about a directory without images.

    Args:
        path: The directory.
        rule: What it must hold, before the names of the suffixes.
        left_out: What it holds instead.
    """
    instead = f", with {left_out}" if left_out else ""
    return ValueError(
        f"`location` must hold {rule} ({', '.join(READABLE_SUFFIXES)}). "
        f"Received: location={os.fspath(path)!r}{instead}"
    )


def _open_files(path: Path, reader: ImageReader, strict: bool) -> ImageSource:
    files, left_out = image_files(path) if path.is_dir() else ([path], Tally())
    if not files:
        raise no_images(path, "image files", left_out)
    return ImageSource(
        path.resolve().name,
        lambda: (functools.partial(reader.file, file) for file in files),
        len(files),
        strict,
        left_out,
        reader.remarks,
        np.unique([os.fsencode(file.parent) for file in files], return_inverse=True)[1],
    )


def _record_loaders(path: Path, reader: ImageReader) -> Iterator[Loader]:
    def load(name: str, record: bytes) -> ImageArray:
        return reader.record(example_features(name, record), name)

    return (functools.partial(load, name, record) for name, record in read_records(path))


def found_key(feature: Any, keys: Sequence[str], argument: str, what: str, name: str) -> str:
    """The first of some keys that is among the features of a record.

    Args:
        feature: Features, see ``example_features``.
        keys: The keys.
        argument: The argument that names another key.
        what: What is stored under it.
        name: Name of the record in error messages.

    Raises:
        RecordError: There is none.
    """
    for key in keys:
        if key in feature:
            return key
    wanted = " or ".join(map(repr, keys))
    raise RecordError(
        f"`location` must hold records with {what} as the feature {wanted}; {argument} names "
        "another",
        f"{name} with {names_of(feature)}",
    )


def names_of(feature: Any) -> str:
    """The names of features, as far as an error message can hold them.

    Args:
        feature: Features, see ``example_features``.
    """
    names = sorted(feature)
    return f"{names[:_NAMED_FEATURES]}{' and others' if len(names) > _NAMED_FEATURES else ''}"


def kind_of(feature: Any) -> str:
    """What a feature holds, in words.

    Args:
        feature: One feature of an Example.
    """
    kind = feature.WhichOneof("kind")
    return {"bytes_list": "bytes", "float_list": "floats", "int64_list": "integers"}.get(
        kind, "nothing"
    )


def example_features(name: str, record: bytes) -> Any:
    """Parse the features of a serialised ``tf.train.Example``.

    Args:
        name: Name of the record in error messages.
        record: Its bytes.

    Raises:
        RecordError: The bytes are no Example.
    """
    try:
        return tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise RecordError("`location` must hold records of tf.train.Example", name) from error


def is_record_file(path: Path) -> bool:
    """Whether a file is named like a TFRecord file, or like one shard of several.

    Example:
        >>> names = "a.tfrecord.gz", "a.TFRec", "a.tfrecord-00000-of-00001", "train-00000-of-01024"
        >>> [is_record_file(Path(name)) for name in names]
        [True, True, True, True]
    """
    return _RECORD_NAME.fullmatch(path.name) is not None


def is_archive(path: Path) -> bool:
    """Whether a file is named like an archive of numpy arrays.

    Example:
        >>> is_archive(Path("data.NPZ"))
        True
    """
    return path.suffix.lower() == ".npz"


def read_records(path: Path) -> Iterator[tuple[str, bytes]]:
    """Iterate over the records of a TFRecord file, compressed with gzip or not.

    Args:
        path: The file.

    Yields:
        A name for error messages, ``path#index``, and the bytes of a record.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no intact TFRecord file.
    """
    with open(path, "rb") as file:  # what cannot be read is not an error of TensorFlow's
        compressed = file.read(3) == b"\x1f\x8b\x08"
        index = size = 0
        records = tf.data.TFRecordDataset(os.fsencode(path), "GZIP" if compressed else "")
        # There is nothing to tune, and a worker with one thread waits .3 s for the tuner to end.
        options = tf.data.Options()
        options.autotune.enabled = False
        records = records.with_options(options)
        try:
            for record in records.as_numpy_iterator():
                yield f"{path}#{index}", record
                index += 1
                size += len(record) + _RECORD_OVERHEAD
            # TensorFlow takes an incomplete header of a record for the end.
            intact = size == _content_size(file, compressed)
        except tf.errors.OpError:
            intact = False
    if not intact:
        raise ValueError(
            f"`location` is no TFRecord file, or is cut or damaged at record {index}. "
            f"Received: location={os.fspath(path)!r}"
        )


def _content_size(file: IO[bytes], compressed: bool) -> int:
    """Size of a file after decompression; -1 if it is damaged."""
    size = file.seek(0, os.SEEK_END)
    if compressed:
        file.seek(0)
        size = 0
        try:
            with gzip.open(file) as content:
                while part := content.read(2**20):
                    size += len(part)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return -1
    return size


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
        OSError: It cannot be read, or there is too little memory.
    """
    check_regular(path, "location")
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except MemoryError as error:
        raise OSError(errno.ENOMEM, "too little memory for its arrays", os.fspath(path)) from error
    # On a broken archive, or another file, numpy, zipfile and zlib raise many types; where one
    # leads to a place before its begin, the system refuses to go there.
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
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
    if channels not in (None, 1, 3):
        raise ValueError(f"`channels` must be 1 or 3, or None. Received: channels={channels}")
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
