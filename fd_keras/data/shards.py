"""Images in shards: parts that can be read apart from each other, on one machine or several."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fd_keras.data.files import READABLE_SUFFIXES, Tally, check_regular
from fd_keras.data.folders import image_files
from fd_keras.data.sources import (
    KERAS_DATASETS,
    ImageReader,
    ImageSource,
    Loader,
    is_archive,
    is_record_file,
    no_images,
    open_images,
    unknown_location,
)

# Two batches of statistics. Always as many, so that nothing depends on the number of workers.
FILES_IN_SHARD = 64


@dataclass(frozen=True)
class Shard:
    """Images that are read by one worker: some image files, or one file of many images.

    Args:
        paths: Absolute paths of image files; or of one ``.npz`` or TFRecord file, or the name of a
            data set of Keras, alone.
        outputs: Absolute paths of files that are written, one for each image file.

    Example:
        >>> str(Shard(("/data/1.png", "/data/2.png")))
        '/data/1.png ... /data/2.png'
    """

    paths: tuple[str, ...]
    outputs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ... ".join(dict.fromkeys((self.paths[0], self.paths[-1])))

    @property
    def key(self) -> str:
        """A hash of the paths, and of the sizes and times of change of the files that are read."""
        states = [os.stat(path) if os.path.exists(path) else None for path in self.paths]
        parts = [
            [os.fsencode(path).hex(), state and [state.st_size, state.st_mtime_ns]]
            for path, state in zip(self.paths, states)
        ] + [[os.fsencode(path).hex()] for path in self.outputs]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def open(self, options: Mapping[str, Any]) -> ImageSource:
        """Open the images.

        Args:
            options: Options of ``open_images``.

        Raises:
            ValueError: See ``open_images``.
            OSError: See ``open_images``.
        """
        if not self.paths[0].lower().endswith(READABLE_SUFFIXES):
            return open_images(self.paths[0], **options)
        given = {"channels": None, "image_key": None, "max_pixels": None, **options}
        reader = ImageReader(given["channels"] or 3, given["image_key"], given["max_pixels"])

        def loaders() -> Iterator[Loader]:
            return (functools.partial(reader.file, Path(path)) for path in self.paths)

        strict = bool(given.get("strict", False))
        return ImageSource(
            str(self), loaders, len(self.paths), strict=strict, remarks=reader.remarks
        )


@dataclass(eq=False)
class Shards:
    """The shards of a set of images, and what was found in them.

    Args:
        shards: The shards.
        found: A source without images, in which what is to be said of those of all shards is
            gathered. Its name is that of the set.

    Example:
        See ``find_shards``.
    """

    shards: Sequence[Shard]
    found: ImageSource

    def gather(self, reading: Mapping[str, Any]) -> None:
        """Take over what reading a shard found.

        Args:
            reading: What ``reading_of`` returned, perhaps on another machine.
        """
        for name, tally in (("skipped", self.found.skips), ("remarks", self.found.remarks)):
            for reason, first, count in reading[name]:
                tally.add(reason, first, count)


def reading_of(source: ImageSource) -> dict[str, Any]:
    """What reading a source found beside its images, as plain JSON types.

    Args:
        source: The source, after it was read.

    Example:
        >>> reading_of(ImageSource("none", lambda: iter([]), 0))
        {'skipped': [], 'remarks': []}
    """
    return {"skipped": source.skips.entries(), "remarks": source.remarks.entries()}


def find_shards(locations: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Shards:
    """Find the shards of images, without reading them.

    Image files, of directories too, are shards of 64; each TFRecord or ``.npz`` file is one.

    Args:
        locations: One or more of what ``open_images`` takes.

    Raises:
        ValueError: One of them is of another kind, or a directory holds no image file.
        OSError: One of them cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for number in range(100):
        ...     (folder / f"{number}.png").touch()
        >>> [len(shard.paths) for shard in find_shards(folder).shards]
        [64, 36]
    """
    if isinstance(locations, (str, os.PathLike)):
        locations = [locations]
    if not locations:
        raise ValueError("`location` must not be empty. Received: location=[]")
    files: list[str] = []
    others: list[str] = []
    left_out = Tally()
    for location in locations:
        found = _found(location, left_out)
        (files if found[0].lower().endswith(READABLE_SUFFIXES) else others).extend(found)
    files, others = (list(dict.fromkeys(paths)) for paths in (files, others))
    starts = range(0, len(files), FILES_IN_SHARD)
    shards = [Shard(tuple(files[start : start + FILES_IN_SHARD])) for start in starts]
    name = Path(locations[0]).resolve().name
    if len(locations) > 1:
        name = f"{name} and {len(locations) - 1} more"
    source = ImageSource(name, lambda: iter(()), None if others else len(files), left_out=left_out)
    return Shards([*shards, *(Shard((path,)) for path in others)], source)


def _found(location: str | os.PathLike[str], left_out: Tally) -> list[str]:
    """Absolute paths of the files of a location; of all that exists, workers have the same."""
    if not os.fspath(location):
        raise ValueError("`location` must not be empty. Received: location=''")
    path = Path(location)
    if path.is_dir():
        files, others = image_files(path)
        if not files:
            raise no_images(path, "image files", others)
        left_out.update(others)
        return [os.path.abspath(file) for file in files]
    if path.is_file() and path.suffix.lower() in READABLE_SUFFIXES:
        return [os.path.abspath(path)]
    if is_record_file(path) or is_archive(path):
        check_regular(path, "location")
        return [os.path.abspath(path)]
    if os.fspath(location) in KERAS_DATASETS:
        return [os.fspath(location)]
    raise unknown_location(location, "an image file, a directory of them, an .npz or")
