"""Statistics of the DCT coefficients of benign images, band by band."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import check_pixels, layout_doubt, real_numbers, shown, validate_value_range
from fd_keras._files import DocumentFormat
from fd_keras.data.batches import described, image_batches, parts_of_batch
from fd_keras.data.shards import Shard, Shards, find_shards, reading_of
from fd_keras.data.sources import open_images
from fd_keras.dct import BLOCK_SIZE, ColorSpace, validate_color_space
from fd_keras.distribution import Outcome, ShardWarning, raise_error, spread
from fd_keras.kernels import coefficients, pad_to_blocks, to_grey_levels
from fd_keras.tables import frozen_json

if TYPE_CHECKING:
    from distributed import Client

FloatArray = npt.NDArray[np.float64]

FORMAT = DocumentFormat("fd_keras.coefficient_statistics", 1, "coefficient statistics")
_MOMENTS = ("count", "mean", "std", "mean_abs", "min", "max")

# Moments are measured in float32; they contradict each other by no more than this share of the
# largest coefficient, or this many grey levels.
_ROUNDING = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class CoefficientStatistics:
    """Moments of every DCT band over a set of images.

    The coefficients are those that ``FeatureDistillation`` quantises: orthonormal 8x8 DCT-II on
    the 0..255 pixel scale, in ``color_space``, with edges repeated to complete blocks.

    Args:
        count: Number of blocks, int ``(channels, 8, 8)``.
        mean: Mean coefficient, ``(channels, 8, 8)``, indexed by vertical, then horizontal
            frequency.
        std: Standard deviation (population).
        mean_abs: Mean absolute value.
        min: Smallest value.
        max: Largest value.
        color_space: Colour space of the coefficients.
        value_range: Lowest and highest pixel value of the images, which were scaled from it to
            0..255.
        provenance: Description of the data; any JSON-serialisable mapping.

    Raises:
        ValueError: The arrays do not fit each other, or hold impossible moments.

    Example:
        >>> images = np.random.default_rng(3).integers(0, 256, (10, 32, 32, 3))
        >>> statistics = CoefficientStatistics.from_data(images, color_space="ycbcr")
        >>> statistics.std.shape, int(statistics.count[0, 0, 0])
        ((3, 8, 8), 160)

    References:
        Liu et al., CVPR 2019, section 3.2: bands ranked by their standard deviation.
    """

    count: npt.NDArray[np.int64]
    mean: FloatArray
    std: FloatArray
    mean_abs: FloatArray
    min: FloatArray
    max: FloatArray
    color_space: ColorSpace = "rgb"
    value_range: tuple[float, float] = (0.0, 255.0)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = np.shape(self.mean)
        if len(shape) != 3 or shape[1:] != (BLOCK_SIZE, BLOCK_SIZE):
            raise ValueError(
                f"`mean` must have shape (channels, 8, 8). Received: mean of shape {shape}"
            )
        for name in _MOMENTS:
            array = np.array(real_numbers(name, getattr(self, name)))
            if array.shape != shape:
                raise ValueError(
                    f"`{name}` must have the shape of `mean`, {shape}. "
                    f"Received: {name} of shape {array.shape}"
                )
            _check_moment(name, array)
            array = array.astype(np.int64) if name == "count" else array
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        self._check_order()
        object.__setattr__(self, "value_range", validate_value_range(self.value_range))
        object.__setattr__(self, "color_space", validate_color_space(self.color_space))
        object.__setattr__(self, "provenance", frozen_json(self.provenance))

    @classmethod
    def from_data(
        cls,
        data: Any,
        *,
        color_space: ColorSpace = "rgb",
        value_range: Sequence[float] = (0, 255),
        batch_size: int = 32,
        steps: int | None = None,
        provenance: Mapping[str, Any] | None = None,
        client: Client | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> CoefficientStatistics:
        """Measure the coefficients of images, one batch at a time.

        Paths are measured in shards (see ``fd_keras.data.shards.find_shards``): one after another,
        or on the cluster of ``client``. The statistics are the same, whatever the number of
        workers. A shard that keeps failing on the cluster is named in a ``ShardWarning``, and the
        rest is kept.

        Args:
            data: An array of images, a ``tf.data.Dataset``, a ``PyDataset`` or an iterable of
                images of any sizes (see ``fd_keras.data.batches.image_batches``); labels are
                ignored. Or the path of a directory of image files, of an ``.npz`` or a TFRecord
                file (see ``fd_keras.data.sources.open_images``), or a list of such paths. An image
                there that cannot be read is an error; to skip it, pass ``open_images(path)``
                instead of the path.
            color_space: ``"rgb"`` (any number of channels) or ``"ycbcr"`` (1 or 3).
            value_range: Lowest and highest pixel value of the data.
            batch_size: Number of images in a batch, where ``data`` is not batched already.
            steps: Maximum number of batches; ``None``: all. Of arrays and files they are a random
                sample, spread over the labels or folders; of data sets and iterables, the first.
                Not for a list of paths, nor on a cluster.
            provenance: Description of the data, to which the number of images is added. Default:
                the name of a path.
            client: A ``distributed.Client``, whose workers see the same files; for paths only.
            directory: Where to keep what was measured of each shard, so that another call with
                the same ``directory`` goes on from there; for paths only.

        Raises:
            ValueError: There is no image, a pixel is outside ``value_range`` or NaN, the pixels
                are no integers or floats or almost certainly of another scale, or images differ
                in their channels.
            OSError: A path cannot be read.

        Example:
            See the class.
        """
        color_space = validate_color_space(color_space)
        value_range = validate_value_range(value_range)
        if steps is None and _are_paths(data):
            shards = find_shards(data)
            result = measure_shards(
                shards,
                client,
                color_space=color_space,
                value_range=value_range,
                batch_size=batch_size,
                options={"strict": True},
                directory=directory,
                on_shard=raise_error if client is None else lambda outcome: None,
            )
            for outcome in result.failed:
                warnings.warn(outcome.message, ShardWarning, stacklevel=2)
            return result.total(provenance or {"data": shards.found.name})
        if isinstance(data, (list, tuple)) and _are_paths(data):
            raise ValueError(
                "`steps` must be None for a list of paths, all of whose images are measured. "
                f"Received: steps={shown(steps)} with {len(data)} paths"
            )
        if client is not None or directory is not None:
            name, value = ("client", client) if client is not None else ("directory", directory)
            raise ValueError(
                f"`{name}` is for paths, all of whose images are measured. Received: "
                f"{name}={shown(value)} with steps={shown(steps)} and data={described(data)}"
            )
        if isinstance(data, (str, os.PathLike)):
            data = open_images(data, strict=True)
            provenance = provenance or {"data": data.name}
        total: CoefficientStatistics | None = None
        images = 0
        for batch in image_batches(data, batch_size=batch_size, steps=steps):
            check_pixels(batch, value_range)
            if doubt := layout_doubt(batch.shape, "channels_last"):
                warnings.warn(
                    f"`data` has images of shape {batch.shape[1:]}, which {doubt}; the channels "
                    "must be the last axis.",
                    stacklevel=2,
                )
            for part in parts_of_batch(batch):
                measured = cls._of_batch(part, color_space, value_range)
                total = measured if total is None else merged(total, measured)
            images += len(batch)
        if total is None:
            raise ValueError(f"`data` holds no image. Received: data={described(data)}")
        return total.with_provenance({**(provenance or {}), "images": images})

    @classmethod
    def _of_batch(
        cls, batch: npt.ArrayLike, color_space: ColorSpace, value_range: tuple[float, float]
    ) -> CoefficientStatistics:
        pixels = to_grey_levels(tf.cast(batch, tf.float32), *value_range)
        channels = int(pixels.shape[-1])
        if color_space == "ycbcr" and channels not in (1, 3):
            raise ValueError(
                "`color_space='ycbcr'` needs images with 1 or 3 channels. "
                f"Received: images with {channels} channels"
            )
        blocks, mean, *rest = _moments(color_space, channels)(pixels)
        mean, squares, absolutes, low, high = (_by_channel(x, channels) for x in (mean, *rest))
        n = int(blocks)
        return cls(
            count=np.full(mean.shape, n),
            mean=mean,
            std=np.sqrt(squares / n),
            mean_abs=absolutes / n,
            min=low,
            max=high,
            color_space=color_space,
            value_range=value_range,
        )

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.mean.shape[0])

    def merge(self, other: CoefficientStatistics) -> CoefficientStatistics:
        """Combine the statistics of two sets of images.

        Args:
            other: Statistics with the same colour space, value range and number of channels.

        Raises:
            ValueError: One of these differs.
            TypeError: ``other`` is something else.

        Example:
            >>> images = np.random.default_rng(3).integers(0, 256, (10, 32, 32, 3))
            >>> one, two = (CoefficientStatistics.from_data(x) for x in (images[:4], images[4:]))
            >>> whole = CoefficientStatistics.from_data(images)
            >>> bool(np.allclose(one.merge(two).std, whole.std))
            True

        References:
            Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing
            sample variances", 1979.
        """
        if not isinstance(other, CoefficientStatistics):
            raise TypeError(
                f"`other` must be CoefficientStatistics. Received: other={shown(other)}"
            )
        for name in ("color_space", "value_range", "channels"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(
                    f"`other` must have {name}={mine!r}, as these statistics. "
                    f"Received: {name}={shown(theirs)}"
                )
        count = self.count + other.count
        share = other.count / count
        difference = other.mean - self.mean
        # A weighted mean of variances, which loses no digits, unlike sums of squares.
        variance = (
            (1 - share) * self.std**2 + share * other.std**2 + share * (1 - share) * difference**2
        )
        return CoefficientStatistics(
            count=count,
            mean=self.mean + share * difference,
            std=np.sqrt(variance),
            mean_abs=self.mean_abs + share * (other.mean_abs - self.mean_abs),
            min=np.minimum(self.min, other.min),
            max=np.maximum(self.max, other.max),
            color_space=self.color_space,
            value_range=self.value_range,
            provenance=_merged_provenance(self.provenance, other.provenance),
        )

    def with_provenance(self, provenance: Mapping[str, Any]) -> CoefficientStatistics:
        """The same moments with another provenance.

        Args:
            provenance: JSON-serialisable mapping.

        Example:
            >>> images = np.zeros((1, 8, 8, 1))
            >>> CoefficientStatistics.from_data(images).with_provenance({"set": "x"}).provenance
            mappingproxy({'set': 'x'})
        """
        moments = {name: getattr(self, name) for name in _MOMENTS}
        return CoefficientStatistics(
            **moments,
            color_space=self.color_space,
            value_range=self.value_range,
            provenance=provenance,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics as JSON, replacing ``path`` atomically.

        Args:
            path: File to write.

        Raises:
            OSError: The file cannot be written.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> path = Path(tempfile.mkdtemp()) / "statistics.json"
            >>> statistics = CoefficientStatistics.from_data(np.zeros((2, 8, 8, 3)))
            >>> statistics.save(path)
            >>> int(CoefficientStatistics.load(path).count[0, 0, 0])
            2
        """
        FORMAT.write(path, self.to_dict(), rows=_MOMENTS)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types, from which the class can be called.

        Example:
            >>> statistics = CoefficientStatistics.from_data(np.zeros((2, 8, 8, 3)))
            >>> CoefficientStatistics(**statistics.to_dict()).channels
            3
        """
        return {
            "color_space": self.color_space,
            "value_range": list(self.value_range),
            "provenance": copy.deepcopy(dict(self.provenance)),
            **{name: getattr(self, name).tolist() for name in _MOMENTS},
        }

    @staticmethod
    def is_file(path: str | os.PathLike[str]) -> bool:
        """Whether the ``format`` entry of a JSON file is that of coefficient statistics.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be read.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> path = Path(tempfile.mkdtemp()) / "other.json"
            >>> _ = path.write_text("[]")
            >>> CoefficientStatistics.is_file(path)
            False
        """
        return FORMAT.recognises(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CoefficientStatistics:
        """Read statistics that ``save`` wrote.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds no statistics; the message names the file.

        Example:
            See ``save``.
        """
        return FORMAT.read(path, lambda content: cls(**content))

    def _check_order(self) -> None:
        """Refuse moments that no set of numbers has together."""
        largest = np.maximum(np.abs(self.min), np.abs(self.max))
        slack = _ROUNDING * (1 + largest)
        for rule, met in {
            "`min` must not exceed `max`": self.min <= self.max,
            "`mean` must lie between `min` and `max`": (
                (self.mean >= self.min - slack) & (self.mean <= self.max + slack)
            ),
            "`mean_abs` must lie between the size of `mean` and the largest value": (
                (self.mean_abs >= np.abs(self.mean) - slack) & (self.mean_abs <= largest + slack)
            ),
            "`std` must not exceed half of the distance of `min` and `max`": (
                self.std <= (self.max - self.min) / 2 + slack
            ),
        }.items():
            if not met.all():
                band = tuple(int(i) for i in np.argwhere(~met)[0])
                received = ", ".join(f"{n}={getattr(self, n)[band]:g}" for n in _MOMENTS[1:])
                raise ValueError(f"{rule}. Received: {received} at {band}")

    def __reduce__(self) -> tuple[Any, ...]:
        # A MappingProxyType can neither be pickled nor copied deeply.
        moments = (getattr(self, name) for name in _MOMENTS)
        settings = (self.color_space, self.value_range, dict(self.provenance))
        return CoefficientStatistics, (*moments, *settings)

    def __repr__(self) -> str:
        return (
            f"CoefficientStatistics({self.channels} channels, color_space={self.color_space!r}, "
            f"{int(self.count.flat[0])} blocks, provenance={dict(self.provenance)!r})"
        )


@dataclass(eq=False)
class MeasuredShards:
    """The statistics of shards, as far as they could be measured.

    Args:
        statistics: Of all shards; ``None`` where they hold no image that can be read.
        images: Number of images.
        failed: The outcomes of the others.
    """

    statistics: CoefficientStatistics | None
    images: int
    failed: Sequence[Outcome]

    def total(self, provenance: Mapping[str, Any]) -> CoefficientStatistics:
        """The statistics with a description of the data.

        Args:
            provenance: To which the numbers of images and of failed shards are added.

        Raises:
            ValueError: There are none.
        """
        if self.statistics is None:
            raise ValueError(f"no usable image in {provenance.get('data', 'the data')}")
        failed = {"failed_shards": len(self.failed)} if self.failed else {}
        return self.statistics.with_provenance({**provenance, "images": self.images, **failed})


def measure_shards(
    shards: Shards,
    client: Client | None = None,
    *,
    color_space: ColorSpace = "rgb",
    value_range: Sequence[float] = (0, 255),
    batch_size: int = 32,
    options: Mapping[str, Any] | None = None,
    directory: str | os.PathLike[str] | None = None,
    on_image: Callable[[int], None] = lambda count: None,
    on_shard: Callable[[Outcome], None] = lambda outcome: None,
) -> MeasuredShards:
    """Measure the coefficients of the images of shards, and gather what reading them found.

    Args:
        shards: The shards.
        client: See ``CoefficientStatistics.from_data``.
        color_space: See ``CoefficientStatistics.from_data``.
        value_range: See ``CoefficientStatistics.from_data``.
        batch_size: See ``CoefficientStatistics.from_data``.
        options: Of ``open_images``.
        directory: See ``CoefficientStatistics.from_data``.
        on_image: Called with the number of images that this process has just read.
        on_shard: Called with each outcome.

    Raises:
        ValueError: See ``fd_keras.distribution.spread``.
        OSError: See ``fd_keras.distribution.spread``.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/data.npz"
        >>> np.savez(path, x=np.zeros((5, 16, 16, 3), np.uint8))
        >>> measure_shards(find_shards(path)).images
        5
    """
    settings = {
        "work": "statistics",
        "color_space": validate_color_space(color_space),
        "value_range": list(validate_value_range(value_range)),
        "batch_size": batch_size,
        "options": dict(options or {}),
    }
    work = functools.partial(_measure_shard, settings)
    if client is None:
        work = functools.partial(_measure_shard, settings, on_image=on_image)
    results: dict[Shard, dict[str, Any]] = {}
    failed = []
    for outcome in spread(
        *(work, shards.shards, client),
        directory=directory,
        settings=settings,
        whole=_is_read_whole,
    ):
        on_shard(outcome)
        if outcome.result is None:
            failed.append(outcome)
        else:
            results[outcome.shard] = outcome.result
    # In the order of the shards, not in that in which workers finish: sums of floats depend on it.
    found = [results[shard] for shard in shards.shards if shard in results]
    for result in found:
        shards.gather(result)
    parts = [CoefficientStatistics(**part) for r in found if (part := r["statistics"])]
    whole = functools.reduce(merged, parts) if parts else None
    return MeasuredShards(whole, sum(result["images"] for result in found), failed)


def merged(one: CoefficientStatistics, other: CoefficientStatistics) -> CoefficientStatistics:
    """Merge the statistics of two parts of the same data.

    Args:
        one: Statistics of the images so far.
        other: Statistics of the next ones.

    Raises:
        ValueError: They have different numbers of channels.

    Example:
        >>> grey = CoefficientStatistics.from_data(np.zeros((1, 8, 8, 1)))
        >>> int(merged(grey, grey).count[0, 0, 0])
        2
    """
    if one.channels != other.channels:
        raise ValueError(
            "`data` must be images that all have as many channels. "
            f"Received: images with {one.channels}, then {other.channels} channels"
        )
    return one.merge(other)


def _is_read_whole(outcome: Outcome) -> bool:
    """Whether no image file was skipped; a large file is not read again for an image of it."""
    return len(outcome.shard.paths) == 1 or not (outcome.result and outcome.result["skipped"])


def _measure_shard(
    settings: Mapping[str, Any], shard: Shard, on_image: Callable[[int], None] = lambda count: None
) -> dict[str, Any]:
    """Statistics of a shard and what reading it found, as plain JSON types."""
    source = shard.open(settings["options"])

    def counted() -> Iterator[Any]:
        for image in source:
            yield image
            on_image(1)

    images = counted()
    first = next(images, None)
    measured = None
    if first is not None:
        statistics = CoefficientStatistics.from_data(
            itertools.chain([first], images),
            color_space=settings["color_space"],
            value_range=settings["value_range"],
            batch_size=settings["batch_size"],
        )
        measured = statistics.to_dict()
    count = 0 if measured is None else measured.pop("provenance")["images"]
    return {"statistics": measured, "images": count, **reading_of(source)}


def _are_paths(data: Any) -> bool:
    """Whether data are named by paths instead of given."""
    several = isinstance(data, (list, tuple)) and len(data) > 0
    return all(isinstance(part, (str, os.PathLike)) for part in (data if several else [data]))


@functools.cache
def _moments(color_space: ColorSpace, channels: int) -> Any:
    """A graph from images to blocks, mean, centred squares, magnitudes, minimum and maximum."""
    # All but the number of blocks are (8, 8 * channels); squares and magnitudes are sums. One
    # signature serves images of all sizes.

    def moments(pixels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        values = coefficients(pad_to_blocks(pixels), color_space)  # (rows, 8, columns, 8 * c)
        rows, _, columns, width = tf.unstack(tf.shape(values))
        flat = tf.reshape(values, (rows, -1))

        def per_band(sums: tf.Tensor, reduce: Any) -> tf.Tensor:
            return reduce(tf.reshape(sums, (BLOCK_SIZE, columns, width)), 1)

        def total(x: tf.Tensor) -> tf.Tensor:
            # A product with ones adds rows on all cores and is several times faster than a
            # reduction.
            return per_band(tf.matmul(tf.ones((1, rows)), x), tf.reduce_sum)

        blocks = rows * columns
        mean = total(flat) / tf.cast(blocks, tf.float32)
        centred = tf.reshape(values - mean[:, tf.newaxis], (rows, -1))
        return (
            blocks,
            mean,
            total(tf.square(centred)),
            total(tf.abs(flat)),
            per_band(tf.reduce_min(flat, 0), tf.reduce_min),
            per_band(tf.reduce_max(flat, 0), tf.reduce_max),
        )

    signature = tf.TensorSpec((None, None, None, channels), tf.float32)
    return tf.function(moments, input_signature=[signature])


def _check_moment(name: str, array: npt.NDArray[Any]) -> None:
    smallest = {"count": 1, "std": 0, "mean_abs": 0}.get(name, -np.inf)
    valid = np.isfinite(array) & (array >= smallest)
    if name == "count":
        valid &= (array == np.rint(array)) & (array < 2**63)
    if not valid.all():
        rule = "be finite" if smallest == -np.inf else f"be finite and at least {smallest}"
        rule += ", in whole numbers" if name == "count" else ""
        raise ValueError(f"`{name}` must {rule}. Received: {name}={array[~valid][0]}")


def _by_channel(bands: tf.Tensor, channels: int) -> FloatArray:
    """(8, 8 * channels), channel fastest, as float64 (channels, 8, 8)."""
    array = np.asarray(bands, np.float64).reshape(BLOCK_SIZE, BLOCK_SIZE, channels)
    return np.moveaxis(array, -1, 0)


def _merged_provenance(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    # A provenance is whatever its author wrote, also in these two places.
    sources = [{k: v for k, v in p.items() if k != "images"} for p in (one, other)]
    counts = [p.get("images", 0) for p in (one, other)]
    if sources[0] == sources[1] and all(isinstance(count, int) for count in counts):
        return {**sources[0], "images": sum(counts)} if sum(counts) else sources[0]
    listed = [p["parts"] if isinstance(p.get("parts"), list) else [dict(p)] for p in (one, other)]
    return {"parts": [*listed[0], *listed[1]]}
