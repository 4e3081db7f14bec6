"""Open labelled images by name: class directories, npz and TFRecord files, Keras' data sets."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fd_keras._checks import whole_numbers
from fd_keras.data.files import Tally, check_regular
from fd_keras.data.folders import class_files, class_folders
from fd_keras.data.labelled import LARGEST_LABEL, checked_classes
from fd_keras.data.sources import (
    KERAS_DATASETS,
    ImageArray,
    ImageReader,
    ImageSource,
    RecordError,
    UnusableSourceError,
    example_features,
    found_key,
    is_archive,
    is_record_file,
    kind_of,
    load_keras_dataset,
    no_images,
    read_arrays,
    read_records,
    unknown_location,
    with_channels,
)

_LABEL_FEATURES = ("image/class/label", "label")
_IMAGE_ARRAYS, _LABEL_ARRAYS = ("x", "images", "x_{}"), ("y", "labels", "y_{}")

# Typing alias: which part of a Keras data set, or of a file that holds both.
Part = Literal["train", "test"]


def open_labelled_images(
    location: str | os.PathLike[str],
    image_shape: Sequence[int],
    *,
    value_range: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    class_count: int | None = None,
    strict: bool = False,
    image_key: str | None = None,
    label_key: str | None = None,
    max_pixels: int | None = None,
    part: Part = "test",
) -> ImageSource:
    """Open labelled images by the path or the name of a data set.

    Images of another size are scaled, keeping their proportions, until they cover ``image_shape``,
    and cropped to their centre. ``batches_with_labels`` makes batches of them.

    Args:
        location: A directory with one subdirectory of PNG, JPEG, WebP, BMP or GIF files per class,
            which are those that ``keras.utils.image_dataset_from_directory`` takes; an
            ``.npz`` file with ``x`` or ``images``, uint8, and ``y`` or ``labels``; a TFRecord
            file with the features ``image/encoded`` and ``image/class/label`` (or ``image`` and
            ``label``), a label being an integer or one-hot; or ``cifar10``, ``cifar100``,
            ``fashion_mnist``, ``mnist``, which ``keras.datasets`` downloads.
        image_shape: ``(height, width, channels)`` of the resulting images.
        value_range: Values of black and white in the resulting images, which are then float32;
            ``None``: uint8 from 0 to 255.
        class_names: Names of the subdirectories in the order of the model's classes, whatever
            their Unicode normal form. Default: all subdirectories in alphabetical order, as Keras
            sorts them.
        class_count: Number of the model's classes. Where ``class_names`` are not given, a
            directory must have as many subdirectories.
        strict: Stop at the first image that cannot be read, instead of skipping it.
        image_key: Feature of a record that is its image, if it is another one.
        label_key: Feature of a record that is its label, if it is another one.
        max_pixels: Largest number of pixels of an image file. Default:
            ``PIL.Image.MAX_IMAGE_PIXELS``.
        part: Of a Keras data set, and of an ``.npz`` file with ``x_train`` and ``x_test``.

    Returns:
        A source of pairs: an image of ``image_shape``, and its label.

    Raises:
        ValueError: ``location`` is of another kind, or holds no labelled image, or its
            subdirectories are not the classes.
        OSError: It cannot be read.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/data.npz"
        >>> np.savez(path, x=np.zeros((5, 16, 16, 3), np.uint8), y=np.arange(5))
        >>> [label for _, label in open_labelled_images(path, (16, 16, 3))]
        [0, 1, 2, 3, 4]
    """
    if not os.fspath(location):
        raise ValueError("`location` must not be empty. Received: location=''")
    path = Path(location)
    reader = ImageReader(image_shape[-1], image_key, max_pixels)

    def finished(image: ImageArray, label: int) -> tuple[npt.NDArray[Any], int]:
        return _scaled(_fitted(image, image_shape), value_range), int(label)

    if path.is_dir():
        found, left_out = _files_and_labels(path, class_names, class_count)

        def read(file: Path, label: int) -> tuple[npt.NDArray[Any], int]:
            return finished(reader.file(file), label)

        return ImageSource(
            path.resolve().name,
            lambda: (functools.partial(read, *pair) for pair in found),
            len(found),
            strict,
            left_out,
            reader.remarks,
            np.array([label for _, label in found]),
            tuple(class_names if class_names is not None else class_folders(path)),
        )
    if is_record_file(path):
        check_regular(path, "location")
        labels_of = _RecordLabels(label_key)

        def parse(feature: Any, name: str) -> tuple[npt.NDArray[Any], int]:
            label = labels_of(feature, name)
            return finished(reader.record(feature, name), label)

        return ImageSource(
            path.name,
            lambda: (_Record(*record, parse, labels_of) for record in read_records(path)),
            None,
            strict,
            remarks=reader.remarks,
        )
    images, labels = _arrays(path, os.fspath(location), part)
    return ImageSource(
        path.name,
        lambda: (functools.partial(finished, *pair) for pair in zip(images, labels)),
        len(images),
        strict,
        groups=labels,
    )


def _scaled(image: ImageArray, value_range: Sequence[float] | None) -> npt.NDArray[Any]:
    if value_range is None:
        return image
    low, high = value_range
    return low + (high - low) / 255 * image.astype(np.float32)


def _files_and_labels(
    path: Path, class_names: Sequence[str] | None, class_count: int | None
) -> tuple[list[tuple[Path, int]], Tally]:
    folders = class_folders(path)
    found, left_out = class_files(path, folders)
    if not found:
        raise no_images(path, "one subdirectory of image files per class", left_out)
    if class_names is not None:
        label_of = _labels_by_folder(path, folders, class_names)
    elif class_count in (None, len(folders)):
        label_of = {name: label for label, name in enumerate(folders)}
    else:
        raise ValueError(
            f"`location` must have one subdirectory for each of the {class_count} classes of the "
            "model; class_names says which of them it has. "
            f"Received: {path} with {len(folders)}: {_first(folders)}"
        )
    return [(file, label_of[folder]) for file, folder in found], left_out


def _labels_by_folder(
    path: Path, folders: Sequence[str], class_names: Sequence[str]
) -> dict[str, int]:
    label_of = {_normal(name): label for label, name in enumerate(class_names)}
    there = set(map(_normal, folders))
    rules = (
        (class_names, "`class_names` must name each subdirectory once."),
        (folders, f"subdirectories of {path} must differ."),
    )
    for names, rule in rules:
        counts = Counter(map(_normal, names))
        # Other classes may share a name, as two of ImageNet's do.
        if twice := sorted(name for name, count in counts.items() if count > 1 and name in there):
            raise ValueError(f"{rule} Received: {_first(twice)} more than once")
    if unknown := [name for name in folders if _normal(name) not in label_of]:
        raise ValueError(
            f"`class_names` must name every subdirectory of {path}. Received: class_names "
            f"without {_first(unknown)}"
        )
    return {folder: label_of[_normal(folder)] for folder in folders}


def _normal(name: str) -> str:
    """A name in Unicode's normal form C: file systems differ in theirs."""
    return unicodedata.normalize("NFC", name)


def _first(names: Sequence[str]) -> str:
    return f"{list(names[:5])}{' and others' if len(names) > 5 else ''}"


class _RecordLabels:
    """Reads the labels of the records of one file, which are all integers or all one-hot."""

    def __init__(self, label_key: str | None) -> None:
        self._keys = _LABEL_FEATURES if label_key is None else (label_key,)
        self._size: int | None = None

    def __call__(self, feature: Any, name: str) -> int:
        key = found_key(feature, self._keys, "label_key", "a label", name)
        values = _numbers(feature[key])
        if self._size is None and values:
            self._size = len(values)
        if values and len(values) != self._size:
            # A list of classes may look like a one-hot label.
            raise UnusableSourceError(
                f"`location` must hold records whose labels have the same size, and those "
                f"of {key!r} do not. Received: {name} with {len(values)} numbers, after records "
                f"with {self._size}"
            )
        if len(values) == 1 and float(values[0]).is_integer():
            label = int(values[0])
        elif len(values) > 1 and sorted(values) == [0] * (len(values) - 1) + [1]:
            label = values.index(1)
        else:
            raise RecordError(
                f"`location` must hold records whose label is one integer or one-hot, and {key!r} "
                f"holds {kind_of(feature[key])}; convert it, or name another by label_key",
                f"{name} with {_shown(feature[key])}",
            )
        if not 0 <= label <= LARGEST_LABEL:
            raise RecordError(
                f"`location` must hold records whose labels lie between 0 and {LARGEST_LABEL}",
                f"{name} with {label}",
            )
        return label


@dataclass(frozen=True)
class _Record:
    """Reads one record, and tells its class before its image is decoded."""

    name: str
    content: bytes
    parse: Callable[[Any, str], tuple[npt.NDArray[Any], int]]
    labels_of: _RecordLabels

    def __call__(self) -> tuple[npt.NDArray[Any], int]:
        return self.parse(example_features(self.name, self.content), self.name)

    @property
    def group(self) -> int:
        try:
            return self.labels_of(example_features(self.name, self.content), self.name)
        except ValueError:  # said when it is read
            return -1


def _numbers(feature: Any) -> list[int | float]:
    return list(feature.int64_list.value) or list(feature.float_list.value)


def _shown(feature: Any) -> str:
    values = _numbers(feature) or list(feature.bytes_list.value)
    return f"{[value if isinstance(value, (int, float)) else value[:20] for value in values[:5]]}"


def _arrays(path: Path, location: str, part: Part) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if location in KERAS_DATASETS:
        images, labels = load_keras_dataset(location)[part == "test"]
        return images, labels.ravel()
    if not is_archive(path):
        raise unknown_location(
            location, "a directory with a subdirectory of images per class, an .npz or"
        )
    arrays = read_arrays(path)
    images, labels = (
        next((arrays[n] for n in (name.format(part) for name in names) if n in arrays), None)
        for names in (_IMAGE_ARRAYS, _LABEL_ARRAYS)
    )
    if images is None or labels is None or images.ndim != 4 or images.dtype != np.uint8:
        shapes = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
        raise ValueError(
            "`location` must hold images (n, height, width, channels) as uint8, named 'x' or "
            f"'images', and labels, named 'y' or 'labels'. Received: {path} with {shapes}"
        )
    whole = whole_numbers(labels)
    if labels.size != len(images) or whole is None:
        raise ValueError(
            f"`location` must hold one integer label per image. Received: {path} with "
            f"{len(images)} images and labels of shape {labels.shape}, {labels.dtype}"
        )
    checked_classes(whole, os.fspath(path))
    return images, whole.ravel()


def _fitted(image: ImageArray, shape: Sequence[int]) -> ImageArray:
    height, width, channels = shape
    image = with_channels(image, channels)
    if image.shape == (height, width, channels):
        return image
    picture = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(height, width, channels)
