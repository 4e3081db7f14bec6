"""JPEG files with a given quantisation table: feature distillation at the encoder.

A JPEG file holds steps that are whole numbers from 1 to 255, and one block grid. ``encode_jpeg``
refuses other tables instead of rounding them silently; ``rounded_table`` rounds them. What it
writes is an encoded image (see ``fd_keras.encode``) for whoever decodes it with libjpeg.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn

from fd_keras._checks import shown
from fd_keras._files import atomic_path
from fd_keras.certification import nominal_radius
from fd_keras.data.files import check_regular, software_exif
from fd_keras.dct import BLOCK_SIZE, RGB_TO_YCBCR, TIE_OFFSET, zigzag_rank
from fd_keras.kernels import linf_gains
from fd_keras.lattice import Lattice
from fd_keras.presets import ROUNDING, TableLike, as_table
from fd_keras.tables import QuantizationTable, check_rounds

Subsampling = Literal["4:4:4", "4:2:0"]

# Typing alias.
_Blocks = npt.NDArray[np.float32]

_MAX_STEP = 255  # baseline JPEG stores steps in one byte
_MAX_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION

# A JPEG file holds a profile in up to 255 segments.
LARGEST_JPEG_PROFILE = 255 * 65_519

# Markers of a JPEG file, without stuffed zeros and restarts, and the few that are looked at.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_WITHOUT_SEGMENT = (0x01, 0xD8)
_END, _SCAN, _TABLES, _HIERARCHY, _APP0, _APP14 = 0xD9, 0xDA, 0xDB, 0xDE, 0xE0, 0xEE
_LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_RGB_IDENTIFIERS = (ord("R"), ord("G"), ord("B"))

# Pixels that are encoded at once: as float32 they take 400 kB, so that the steps from one array to
# the next stay within a processor's cache.
_PIXELS_AT_ONCE = 2**15

# Columns of a product of three rows at once. It and ``_times`` take parts for which BLAS starts no
# threads: for so little work, waiting for them takes several times longer than the work.
_COLUMNS_AT_ONCE = 2**14

# Bytes that Pillow's buffer has for each pixel of a file with optimised codes.
_OPTIMIZED_BYTES = 2

# Single blocks are decoded in one image of this many across.
_BLOCKS_ACROSS = 64

# By how much a coefficient in single precision differs from the exact one at most: 64 roundings of
# sums up to 1024 (4e-3), and those of the colour conversion and of the product with 1/q (9e-4).
_DOUBT = np.float32(0.005)

# libjpeg's integer DCT is off by about a tenth.
_INEXACT = np.float32(0.1)

# 64 pixels of a block times this matrix are its DCT, several times faster than `dctn` is.
_BLOCK_DCT = dctn(
    np.eye(BLOCK_SIZE**2).reshape(-1, BLOCK_SIZE, BLOCK_SIZE), axes=(-2, -1), norm="ortho"
).reshape(BLOCK_SIZE**2, BLOCK_SIZE**2)

# What a moved pixel gains is told apart to so small a part of a grey level, and is never more.
_GAIN_UNIT = 1024
_MOST_GAIN = np.float32(4096)


def rounded_table(table: TableLike) -> QuantizationTable:
    """Round a table to the nearest one that a baseline JPEG file can hold.

    Steps are rounded to whole numbers and limited to 1..255; cycle spins become 1.

    Args:
        table: What ``FeatureDistillation`` takes.

    Returns:
        The rounded table, with the size of the change in its provenance; or ``table`` itself if
        it needs no rounding.

    Raises:
        ValueError: ``table`` is invalid, or belongs to soft thresholding.

    Example:
        >>> rounded_table(QuantizationTable(np.full((8, 8), 300.5), "ycbcr", 4))
        QuantizationTable('custom', steps=255, channels=1, color_space='ycbcr', cycle_spins=1)
    """
    table = as_table(table)
    check_rounds(table)
    steps = np.clip(np.round(table.steps), 1, _MAX_STEP)
    if table.cycle_spins == 1 and np.array_equal(steps, table.steps):
        return table
    provenance = {
        **table.provenance,
        "rounded_for_jpeg": {
            "largest_change": float(np.abs(steps - table.steps).max()),
            "cycle_spins": table.cycle_spins,
        },
    }
    return QuantizationTable(steps, table.color_space, 1, provenance)


def encode_jpeg(
    image: npt.ArrayLike,
    table: TableLike,
    *,
    subsampling: Subsampling = "4:4:4",
    icc_profile: bytes | None = None,
) -> bytes:
    """Compress an image to baseline JPEG with the steps of ``table``.

    With 4:4:4, the file holds the image that ``encode`` makes of this one. Its blocks are chosen
    by what libjpeg decodes: those that would come out too near to the boundary of a level, since
    the decoder rounds Y, Cb and Cr before it makes RGB of them and clips them to 0..255, get
    another point of the lattice, with less contrast or another brightness. Nearly all files keep
    the radius that the table certifies when they are decoded; ``certify`` of the decoded image
    says what a file reaches. Tables with steps too small for any radius (such as ``"jpeg:75"``)
    give the coefficients that the layer computes, except for

    * some coefficients, by one step: those of blocks with high contrast whose distilled version
      leaves 0..255, and with steps of about 1 to 3 those of other blocks too;
    * incomplete blocks at the right and bottom edge, which are encoded without being moved.

    With 4:2:0, libjpeg quantises the original image.

    Args:
        image: uint8 ``(height, width)``, ``(height, width, 1)`` or ``(height, width, 3)``,
            with sides of 1 to 65,500 pixels.
        table: What ``FeatureDistillation`` takes, with whole steps from 1 to 255 and one cycle
            spin. An RGB table gives an RGB JPEG file, and a grey one of a grey image. As JPEG
            subtracts 128 from every pixel and the layer does not in RGB, its step of DC becomes
            the largest one that both lattices share: ``gcd(step, 1024)``.
        subsampling: Of chroma: ``"4:4:4"`` (none) or ``"4:2:0"`` (half the height and width).
        icc_profile: ICC colour profile of ``image``, of at most ``LARGEST_JPEG_PROFILE`` bytes.

    Returns:
        The content of the file.

    Raises:
        ValueError: The image, the table or the subsampling is invalid.

    Example:
        >>> from fd_keras import preset_table
        >>> image = np.zeros((16, 16, 3), np.uint8)
        >>> read_jpeg_table(encode_jpeg(image, preset_table("jpeg:50"))) == preset_table("jpeg:50")
        True

    References:
        ITU-T T.81; Liu et al., CVPR 2019, figure 2.
    """
    pixels, table = _validated_image(image), as_table(table)
    if rounded_table(table) != table:
        raise ValueError(
            "`table` must have whole steps from 1 to 255 and one cycle spin; "
            f"rounded_table(table) makes one. Received: table={shown(table)}"
        )
    if subsampling not in ("4:4:4", "4:2:0"):
        raise ValueError(
            f"`subsampling` must be '4:4:4' or '4:2:0'. Received: subsampling={shown(subsampling)}"
        )
    steps = table.steps_for(pixels.shape[-1])
    grey, ycbcr = pixels.shape[-1] == 1, table.color_space == "ycbcr"
    if subsampling == "4:2:0" and (grey or not ycbcr):
        raise ValueError(
            "`subsampling` of chroma needs a colour image and a YCbCr table. "
            f"Received: subsampling={shown(subsampling)}"
        )
    options: dict[str, Any] = {"icc_profile": icc_profile}
    if subsampling == "4:2:0":
        return _saved(Image.fromarray(pixels), steps, subsampling=subsampling, **options)
    if nominal_radius(table, pixels.shape[-1]) > 0:
        pixels = _fitted(pixels, table)
    return _file(pixels, table, **options)


def write_jpeg(
    path: str | os.PathLike[str],
    image: npt.ArrayLike,
    table: TableLike,
    *,
    subsampling: Subsampling = "4:4:4",
    icc_profile: bytes | None = None,
) -> int:
    """Write ``encode_jpeg`` of an image to a file, replacing it atomically.

    Args:
        path: File to write.
        image: See ``encode_jpeg``.
        table: See ``encode_jpeg``.
        subsampling: See ``encode_jpeg``.
        icc_profile: See ``encode_jpeg``.

    Returns:
        Size of the file in bytes.

    Raises:
        ValueError: See ``encode_jpeg``.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from fd_keras import preset_table
        >>> path = tempfile.mkdtemp() + "/image.jpg"
        >>> size = write_jpeg(path, np.zeros((64, 64), np.uint8), preset_table("jpeg:50"))
        >>> 64 * 64 / size > 10  # the compression ratio
        True
    """
    content = encode_jpeg(image, table, subsampling=subsampling, icc_profile=icc_profile)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def with_software(content: bytes, software: str) -> bytes:
    """Add EXIF data to a JPEG file that name the program that wrote it.

    Args:
        content: Content of the file, without EXIF data.
        software: Name of the program.

    Example:
        >>> content = with_software(encode_jpeg(np.zeros((8, 8), np.uint8), "jpeg"), "fd-keras")
        >>> Image.open(io.BytesIO(content)).getexif()[0x0131]
        'fd-keras'
    """
    exif = software_exif(software)
    position = 2
    if content[3] == _APP0:  # JFIF's segment is the first
        position += 2 + int.from_bytes(content[4:6], "big")
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    return content[:position] + segment + content[position:]


def read_jpeg_table(source: str | os.PathLike[str] | bytes) -> QuantizationTable:
    """Read the quantisation table of a JPEG file.

    Pixels are not decoded. For a phone's JPEG that holds previews (MPO), it is the table of the
    photo.

    Args:
        source: Path or content of the file.

    Returns:
        Steps for each component, in the colour space that libjpeg takes the file to have.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no JPEG file or a broken one, lacks a table, has a step of 0, is
            lossless or hierarchical, has other than 8 bits per sample, or a colour space other
            than grey, RGB and YCbCr, such as CMYK.

    Example:
        See ``encode_jpeg``.
    """
    if isinstance(source, bytes):
        name, content = f"content of {len(source)} bytes", source
    else:
        name = os.fspath(source)
        check_regular(source, "source")
        with open(source, "rb") as file:
            content = file.read(2)
            if content == b"\xff\xd8":
                content += file.read()
    try:
        header = _Header.of(content)
        steps = [header.steps_of(number) for number in range(len(header.components))]
    except _HeaderError as error:
        raise ValueError(f"`source` {error}. Received: source={name!r}") from None
    return QuantizationTable(
        np.stack(steps),
        header.color_space,
        provenance={"source": "JPEG file", "name": os.path.basename(name)},
    )


class _HeaderError(Exception):
    """Why a JPEG file has no table that can be shown."""


@dataclass(eq=False)
class _Header:
    """What a JPEG file says before and between its scans, as libjpeg reads it.

    Args:
        components: Identifier and number of the table of each component.
        tables: Steps in zig-zag order by the number of the table.
        used: By identifier, the table at the component's first scan.
        jfif: Whether there was a JFIF segment before the first scan.
        adobe: Colour transform of an Adobe segment there, or ``None``.
    """

    components: list[tuple[int, int]] = field(default_factory=list)
    tables: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)
    used: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)
    jfif: bool = False
    adobe: int | None = None

    @classmethod
    def of(cls, content: bytes) -> _Header:
        """Read up to the scan in which the last component begins."""
        if content[:2] != b"\xff\xd8":
            raise _HeaderError("holds no JPEG image")
        header, scanned = cls(), False
        for marker, data in _segments(content):
            if marker == _TABLES:
                header._read_tables(data)
            elif marker in _FRAMES or marker == _HIERARCHY:
                header._read_frame(marker, data)
            elif marker == _APP0 and not scanned:
                header.jfif |= data[:5] == b"JFIF\0" and len(data) >= 14
            elif marker == _APP14 and not scanned and data[:5] == b"Adobe" and len(data) >= 12:
                header.adobe = data[11]
            elif marker == _SCAN:
                scanned = True
                header._read_scan(data)
                if header.used.keys() >= dict(header.components).keys():
                    break
        if not scanned:
            raise _HeaderError("holds a broken JPEG image, without a scan")
        return header

    @property
    def color_space(self) -> Literal["rgb", "ycbcr"]:
        """By the rule of libjpeg's ``default_decompress_parms``."""
        if len(self.components) == 1 or self.jfif:
            return "ycbcr"
        if self.adobe is not None:
            return "rgb" if self.adobe == 0 else "ycbcr"
        identifiers = tuple(identifier for identifier, _ in self.components)
        return "rgb" if identifiers == _RGB_IDENTIFIERS else "ycbcr"

    def steps_of(self, number: int) -> npt.NDArray[np.float64]:
        """Steps ``(8, 8)`` of a component."""
        identifier, table = self.components[number]
        if identifier not in self.used:
            raise _HeaderError(
                f"does not hold quantisation table {table}, which component {number + 1} of its "
                "image needs"
            )
        steps = self.used[identifier]
        if not steps.all():
            raise _HeaderError(f"holds a broken JPEG image, with a step of 0 in table {table}")
        return steps[zigzag_rank()]

    def _read_tables(self, data: bytes) -> None:
        while data:
            size = 128 if data[0] >> 4 else 64
            if len(data) < 1 + size:
                raise _HeaderError("holds a broken JPEG image, with an incomplete table")
            values = np.frombuffer(data[1 : 1 + size], ">u2" if size == 128 else "u1")
            self.tables[data[0] & 15] = values.astype(np.float64)
            data = data[1 + size :]

    def _read_frame(self, marker: int, data: bytes) -> None:
        if marker in _LOSSLESS_FRAMES:
            raise _HeaderError("holds a lossless JPEG image, which has no quantisation table")
        if marker == _HIERARCHY:
            raise _HeaderError("holds a hierarchical JPEG image, which is not read")
        if len(data) < 6 or len(data) < 6 + 3 * data[5] or self.components:
            raise _HeaderError("holds a broken JPEG image, with a broken frame header")
        if data[0] != 8:
            raise _HeaderError(f"holds a JPEG image of {data[0]} bits per sample, not 8")
        if data[5] not in (1, 3):
            kind = ", such as CMYK," if data[5] == 4 else ""
            raise _HeaderError(
                f"must be a grey or colour JPEG file, and has {data[5]} components{kind} instead"
            )
        self.components = [(data[i], data[i + 2]) for i in range(6, 6 + 3 * data[5], 3)]

    def _read_scan(self, data: bytes) -> None:
        """Keep the tables as they are at the first scan of a component."""
        tables = dict(self.components)
        if not tables:
            raise _HeaderError("holds a broken JPEG image, with a scan before its frame")
        for identifier in data[1 : 1 + 2 * data[0] : 2] if data else b"":
            if tables.get(identifier) in self.tables:
                self.used.setdefault(identifier, self.tables[tables[identifier]])


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers with the data of their segments; the compressed data between are passed over."""
    position = 2
    while match := _MARKER.search(content, position):
        marker, position = match[1][0], match.end()
        if marker == _END:
            return
        if marker in _WITHOUT_SEGMENT:
            continue
        length = int.from_bytes(content[position : position + 2], "big")
        data = content[position + 2 : position + length]
        if length < 2 or len(data) != length - 2:
            raise _HeaderError("holds a broken JPEG image, which ends within its header")
        yield marker, data
        position += length


def _validated_image(image: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ValueError(
            "`image` must be uint8 of shape (height, width), (height, width, 1) or "
            f"(height, width, 3). Received: {pixels.dtype} of shape {np.shape(image)}"
        )
    if not all(1 <= side <= _MAX_SIDE for side in pixels.shape[:2]):
        raise ValueError(
            f"`image` must have sides of 1 to {_MAX_SIDE} pixels. "
            f"Received: image of shape {pixels.shape}"
        )
    return pixels


def _fitted(pixels: npt.NDArray[np.uint8], table: QuantizationTable) -> npt.NDArray[np.uint8]:
    """An image whose file, decoded, lies within the levels of the table as far as it certifies."""
    stored = functools.partial(_decoded, table=table)
    return Lattice.of(table, pixels.shape[-1]).fitted(pixels[np.newaxis], stored)[0]


def _decoded(images: _Blocks, table: QuantizationTable) -> _Blocks:
    """Images of whole pixel values, or many single blocks, as libjpeg decodes their file."""
    count, height, width, channels = images.shape
    across = min(count, _BLOCKS_ACROSS)
    # Several images, which are blocks, are laid side by side in one.
    spare = np.zeros((-count % across, height, width, channels), images.dtype)
    tiles = np.concatenate([images, spare]).reshape(-1, across, height, width, channels)
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(-1, across * width, channels)
    decoded = np.asarray(Image.open(io.BytesIO(_file(sheet.astype(np.uint8), table))))
    tiles = decoded.reshape(-1, height, across, width, channels).transpose(0, 2, 1, 3, 4)
    return np.asarray(tiles.reshape(-1, height, width, channels)[:count], np.float32)


def _file(pixels: npt.NDArray[np.uint8], table: QuantizationTable, **options: Any) -> bytes:
    """A JPEG file 4:4:4 with the coefficients that the layer computes."""
    grey, ycbcr = pixels.shape[-1] == 1, table.color_space == "ycbcr"
    steps = table.steps_for(pixels.shape[-1])
    if ycbcr:
        planes = np.concatenate([_reproducing_strip(strip, steps) for strip in _strips(pixels)])
    else:
        planes = np.concatenate([_with_exact_dc(strip, steps) for strip in _strips(pixels)])
        steps = steps.copy()
        steps[:, 0, 0] = np.gcd(steps[:, 0, 0].astype(int), 128 * BLOCK_SIZE)
    if grey:
        picture = Image.fromarray(planes[..., 0])
    else:
        picture = _as_ycbcr(planes) if ycbcr else Image.fromarray(planes)
    return _saved(picture, steps, subsampling="4:4:4", keep_rgb=not ycbcr and not grey, **options)


def _saved(picture: Image.Image, steps: npt.NDArray[np.float64], **options: Any) -> bytes:
    tables = [channel.astype(int).ravel().tolist() for channel in steps]

    def saved(optimize: bool) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", qtables=tables, optimize=optimize, **options)
        return buffer.getvalue()

    plain = saved(optimize=False)
    # To optimise codes, Pillow takes a buffer of this size, which noise at fine steps exceeds.
    if len(plain) < _OPTIMIZED_BYTES * picture.width * picture.height:
        with contextlib.suppress(OSError):  # that of Pillow 10 is smaller
            return saved(optimize=True)
    return plain


def _strips(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """An image as rows of blocks, so many at once as memory allows."""
    rows = max(1, _PIXELS_AT_ONCE // (BLOCK_SIZE * pixels.shape[1])) * BLOCK_SIZE
    return [pixels[top : top + rows] for top in range(0, len(pixels), rows)]


def _with_exact_dc(
    pixels: npt.NDArray[np.uint8], steps: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """Grey or RGB pixels, some of them moved by one so that each block's DC is a multiple.

    The file's step of DC is mostly 1, and would keep what whole pixel values are off by.
    """
    height, width, channels = pixels.shape
    whole_height, whole_width = (side // BLOCK_SIZE * BLOCK_SIZE for side in (height, width))
    whole = pixels[:whole_height, :whole_width]
    if not whole.size:
        return pixels
    blocks = _to_blocks(whole)
    sums = blocks.sum(-1, dtype=np.int64)
    dc_steps = steps[:, :1, 0] * BLOCK_SIZE
    missing = np.rint(np.round(sums / dc_steps + TIE_OFFSET) * dc_steps - sums)
    # What repeats its edge is repeated by the encoder too, and has to stay as it is.
    square = blocks.reshape(channels, -1, BLOCK_SIZE, BLOCK_SIZE)
    for axis in (2, 3):
        unequal = np.diff(square, axis=axis) != 0
        missing *= unequal.reshape(*missing.shape, -1).any(axis=-1)
    channel, block = np.nonzero(missing)
    changed = np.float32(blocks[channel, block])
    left = missing[channel, block]
    direction = np.float32(np.sign(left))[:, np.newaxis]
    movable = changed != np.where(direction > 0, np.float32(255), np.float32(0))
    # Single precision is enough to choose pixels by.
    by_block = np.float32(steps.reshape(channels, -1))[channel]
    gain = _distilled_blocks(changed, by_block)
    gain -= changed
    gain *= direction
    moved = _largest(np.where(movable, gain, -_MOST_GAIN))
    count = np.minimum(np.abs(left), movable.sum(1))
    row, rank = np.nonzero(np.arange(BLOCK_SIZE**2) < count[:, np.newaxis])
    changed[row, moved[row, rank]] += direction[row, 0]
    blocks[channel, block] = changed
    result = pixels.copy()
    result[:whole_height, :whole_width] = _from_blocks(blocks, whole.shape)
    return result


def _distilled_blocks(
    blocks: npt.NDArray[np.float32], steps: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Blocks ``(n, 64)`` after quantisation by steps of the same shape."""
    coefficients = _times(blocks, _BLOCK_DCT)
    coefficients /= steps
    coefficients += np.float32(TIE_OFFSET)
    np.rint(coefficients, out=coefficients)
    coefficients *= steps
    return _times(coefficients, _BLOCK_DCT.T)


def _largest(gains: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Pixels of each block by their gain, the largest first; of equal ones, the first first."""
    # Sorting whole numbers that hold the pixel takes a quarter of argsort's time, and has no ties.
    pixels = BLOCK_SIZE**2
    keys = np.rint(gains * -_GAIN_UNIT).astype(np.int32)
    keys *= pixels
    keys += np.arange(pixels, dtype=np.int32)
    keys.sort(axis=1)
    return keys % pixels


def _as_ycbcr(planes: npt.NDArray[np.uint8]) -> Image.Image:
    """A picture of Y, Cb and Cr planes, which Pillow encodes without conversion."""
    return Image.merge("YCbCr", [Image.fromarray(planes[..., i]) for i in range(3)])


def _reproducing_strip(
    pixels: npt.NDArray[np.uint8], steps: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """Grey or Y, Cb, Cr planes in whole numbers whose quantised DCT is that of the layer."""
    height, width, _ = pixels.shape
    bottom, right = -height % BLOCK_SIZE, -width % BLOCK_SIZE
    padded = np.pad(pixels, ((0, bottom), (0, right), (0, 0)), mode="edge")
    # Single precision, which takes a fifth of the time, is enough but for what is near a tie.
    blocks = np.float32(_to_blocks(padded))
    original = _as_components(blocks)
    single_steps = np.float32(steps.reshape(-1, 1, BLOCK_SIZE**2))
    scaled = _times(original, _BLOCK_DCT)
    scaled *= 1 / single_steps
    scaled += np.float32(TIE_OFFSET)
    coefficients = np.rint(scaled)
    scaled -= coefficients
    near = np.nonzero(np.abs(scaled, out=scaled) > 0.5 - _DOUBT / single_steps - np.float32(1e-6))
    if len(near[0]):
        coefficients[near] = _exact_levels(blocks, steps, *near)
    coefficients *= single_steps
    distilled = _times(coefficients, _BLOCK_DCT.T)
    # Every point between a block and its distilled version has the same quantised DCT, before it is
    # rounded to whole pixels. The nearer to the original, the less it leaves 0..255.
    whole = np.rint(distilled)
    result = np.clip(whole, -128, 127)
    # Rounding alone moves no coefficient of a large step as far as to another level.
    small = (single_steps / 2 - _INEXACT <= ROUNDING * linf_gains().ravel() + 2 * _DOUBT).any(
        (1, 2)
    )
    open_ = np.nonzero((result != whole).any(-1) | small[:, np.newaxis])
    steps_of = single_steps[open_[0], 0]
    misses = _misses(result[open_], coefficients[open_], steps_of)
    for share in (0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.0):
        missed = np.flatnonzero(misses)
        if not len(missed):
            break
        there = open_[0][missed], open_[1][missed]
        exact = _as_components(blocks[:, there[1]].astype(np.float64))
        start = np.float32(exact[there[0], np.arange(len(missed))])
        between = start + np.float32(share) * (distilled[there] - start)
        candidate = np.clip(np.rint(between), -128, 127)
        candidate_misses = _misses(candidate, coefficients[there], steps_of[missed])
        better = candidate_misses < misses[missed]
        result[there[0][better], there[1][better]] = candidate[better]
        misses[missed[better]] = candidate_misses[better]
    result += 128
    planes = _from_blocks(result.astype(np.uint8), padded.shape)
    # An encoder completes the last blocks by repeating the edge, and would repeat moved pixels too:
    # leave those blocks as they are.
    if bottom:
        planes[-BLOCK_SIZE:] = _as_planes(padded[-BLOCK_SIZE:])
    if right:
        planes[:, -BLOCK_SIZE:] = _as_planes(padded[:, -BLOCK_SIZE:])
    return planes[:height, :width]


def _as_components(blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Grey or R, G, B values ``(channels, ...)``, floats, as Y, Cb, Cr centred on 0."""
    if len(blocks) == 3:
        flat, matrix = blocks.reshape(3, -1), RGB_TO_YCBCR.astype(blocks.dtype)
        components = np.empty(blocks.shape, blocks.dtype)
        converted = components.reshape(3, -1)
        for start in range(0, flat.shape[1], _COLUMNS_AT_ONCE):
            part = slice(start, start + _COLUMNS_AT_ONCE)
            converted[:, part] = matrix @ flat[:, part]
    else:
        components = blocks.copy()
    components[0] -= 128
    return components


def _as_planes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The nearest grey or Y, Cb, Cr values."""
    components = _as_components(np.moveaxis(pixels, -1, 0).astype(np.float64))
    planes = np.clip(np.round(components), -128, 127) + 128
    return np.moveaxis(planes, 0, -1).astype(np.uint8)


def _exact_levels(
    blocks: _Blocks,
    steps: npt.NDArray[np.float64],
    channel: npt.NDArray[np.integer],
    block: npt.NDArray[np.integer],
    band: npt.NDArray[np.integer],
) -> npt.NDArray[np.float64]:
    """Levels of single coefficients in double precision."""
    values = blocks[:, block].astype(np.float64)
    components = _as_components(values)[channel, np.arange(len(block))]
    exact = (components * _BLOCK_DCT.T[band]).sum(-1)
    return np.asarray(
        np.round(exact / steps.reshape(len(steps), -1)[channel, band] + TIE_OFFSET), np.float64
    )


def _times(blocks: _Blocks, matrix: npt.NDArray[np.float64]) -> _Blocks:
    """Blocks ``(..., 64)`` times a matrix, in single precision."""
    rows, single = blocks.reshape(-1, BLOCK_SIZE**2), np.float32(matrix)
    result = np.empty(rows.shape, np.float32)
    whole = len(rows) // BLOCK_SIZE**2 * BLOCK_SIZE**2
    for part, target in ((rows[:whole], result[:whole]), (rows[whole:], result[whole:])):
        size = (-1, min(len(part), BLOCK_SIZE**2), BLOCK_SIZE**2)
        if len(part):
            np.matmul(part.reshape(size), single, out=target.reshape(size))
    return result.reshape(blocks.shape)


def _misses(blocks: _Blocks, coefficients: _Blocks, steps: _Blocks) -> _Blocks:
    """Sum of the squared steps of those coefficients that an encoder may round differently."""
    distance = np.abs(_times(blocks, _BLOCK_DCT) - coefficients)
    missed = distance > steps / 2 - _INEXACT
    return np.asarray((missed * steps**2).sum(-1))


def _to_blocks(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(h, w, c) to (c, blocks, 64), row of blocks by row."""
    _, width, channels = planes.shape
    split = planes.reshape(-1, BLOCK_SIZE, width // BLOCK_SIZE, BLOCK_SIZE, channels)
    return split.transpose(4, 0, 2, 1, 3).reshape(channels, -1, BLOCK_SIZE**2)


def _from_blocks(blocks: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The inverse of ``_to_blocks``, to planes of that shape."""
    _, width, channels = shape
    split = blocks.reshape(channels, -1, width // BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE)
    return split.transpose(1, 3, 2, 4, 0).reshape(shape)
