"""Open labelled images by name: class directories, npz and TFRecord files, Keras' data sets."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fd_keras.data.files import READABLE_SUFFIXES, read_image
from fd_keras.data.sources import (
    KERAS_DATASETS,
    ImageArray,
    ImageSource,
    encoded_image,
    example_features,
    is_record_file,
    load_keras_dataset,
    read_arrays,
    read_records,
    with_channels,
)

_LABEL_FEATURES = ("image/class/label", "label")
_IMAGE_ARRAYS, _LABEL_ARRAYS = ("x", "images", "x_test"), ("y", "labels", "y_test")


def open_labelled_images(
    location: str | os.PathLike[str],
    image_shape: Sequence[int],
    *,
    value_range: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    strict: bool = False,
) -> ImageSource:
    """Open labelled images by the path or the name of a data set.

    Images of another size are scaled, keeping their proportions, until they cover ``image_shape``,
    and cropped to their centre. ``batches_with_labels`` makes batches of them.

    Args:
        location: A directory with one subdirectory of PNG, JPEG or WebP files per class; an
            ``.npz`` file with ``x`` or ``images``, uint8, and ``y`` or ``labels``; a TFRecord
            file with the features ``image/encoded`` and ``image/class/label`` (or ``image`` and
            ``label``); or ``cifar10``, ``cifar100``, ``fashion_mnist``, ``mnist`` (the test
            images that ``keras.datasets`` downloads).
        image_shape: ``(height, width, channels)`` of the resulting images.
        value_range: Values of black and white in the resulting images, which are then float32;
            ``None``: uint8 from 0 to 255.
        class_names: Names of the subdirectories in the order of the model's classes. Default:
            all subdirectories in alphabetical order, as Keras sorts them.
        strict: Stop at the first image that cannot be read, instead of skipping it.

    Returns:
        A source of pairs: an image of ``image_shape``, and its label.

    Raises:
        ValueError: ``location`` is of another kind, or holds no labelled image.
        OSError: It cannot be read.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/data.npz"
        >>> np.savez(path, x=np.zeros((5, 16, 16, 3), np.uint8), y=np.arange(5))
        >>> [label for _, label in open_labelled_images(path, (16, 16, 3))]
        [0, 1, 2, 3, 4]
    """
    path = Path(location)

    def finished(image: ImageArray, label: int) -> tuple[npt.NDArray[Any], int]:
        return _scaled(_fitted(image, image_shape), value_range), int(label)

    if path.is_dir():
        found = _files_and_labels(path, class_names)

        def read(file: Path, label: int) -> tuple[npt.NDArray[Any], int]:
            return finished(read_image(file).pixels, label)

        return ImageSource(
            path.resolve().name,
            lambda: (functools.partial(read, *pair) for pair in found),
            len(found),
            strict,
        )
    if is_record_file(path):
        path.stat()  # a missing file is an OSError here, not a TensorFlow error later

        def parse(name: str, record: bytes) -> tuple[npt.NDArray[Any], int]:
            return finished(*_image_and_label(name, record, image_shape[-1]))

        return ImageSource(
            path.name,
            lambda: (functools.partial(parse, *record) for record in read_records(path)),
            None,
            strict,
        )
    images, labels = _arrays(path, os.fspath(location))
    return ImageSource(
        path.name,
        lambda: (functools.partial(finished, *pair) for pair in zip(images, labels)),
        len(images),
        strict,
    )


def _scaled(image: ImageArray, value_range: Sequence[float] | None) -> npt.NDArray[Any]:
    if value_range is None:
        return image
    low, high = value_range
    return low + (high - low) / 255 * image.astype(np.float32)


def _files_and_labels(path: Path, class_names: Sequence[str] | None) -> list[tuple[Path, int]]:
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    names = folders if class_names is None else list(class_names)
    if unknown := sorted(set(folders) - set(names)):
        raise ValueError(
            f"`class_names` must name every subdirectory of {path}. Received: class_names "
            f"without {unknown[:5]}"
        )
    label_of = {name: label for label, name in enumerate(names)}
    found = [
        (file, label_of[folder])
        for folder in folders
        for file in sorted((path / folder).rglob("*"))
        if file.suffix.lower() in READABLE_SUFFIXES
    ]
    if not found:
        raise ValueError(
            "`location` must hold one subdirectory of image files "
            f"({', '.join(READABLE_SUFFIXES)}) per class. Received: location={os.fspath(path)!r}"
        )
    return found


def _image_and_label(name: str, record: bytes, channels: int) -> tuple[ImageArray, int]:
    feature = example_features(name, record)
    image = encoded_image(feature, name, channels)
    for key in _LABEL_FEATURES:
        if key in feature and feature[key].int64_list.value:
            return image, feature[key].int64_list.value[0]
    raise ValueError(
        f"`location` must hold records with one of the features {_LABEL_FEATURES}. "
        f"Received: {name} with {sorted(feature)}"
    )


def _arrays(path: Path, location: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if location in KERAS_DATASETS:
        images, labels = load_keras_dataset(location)[1]
        return images, labels.ravel()
    if path.suffix != ".npz":
        kind = "does not exist" if not path.exists() else "is of another kind"
        raise ValueError(
            "`location` must be a directory with a subdirectory of images per class, an .npz or "
            f".tfrecord file or one of {KERAS_DATASETS}; it {kind}. Received: "
            f"location={location!r}"
        )
    arrays = read_arrays(path)
    images, labels = (
        next((arrays[name] for name in names if name in arrays), None)
        for names in (_IMAGE_ARRAYS, _LABEL_ARRAYS)
    )
    if images is None or labels is None or images.ndim != 4 or images.dtype != np.uint8:
        shapes = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
        raise ValueError(
            "`location` must hold images (n, height, width, channels) as uint8, named 'x' or "
            f"'images', and labels, named 'y' or 'labels'. Received: {path} with {shapes}"
        )
    if labels.size != len(images) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`location` must hold one integer label per image. Received: {path} with "
            f"{len(images)} images and labels of shape {labels.shape}, {labels.dtype}"
        )
    return images, labels.ravel()


def _fitted(image: ImageArray, shape: Sequence[int]) -> ImageArray:
    height, width, channels = shape
    image = with_channels(image, channels)
    if image.shape == (height, width, channels):
        return image
    picture = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(height, width, channels)
