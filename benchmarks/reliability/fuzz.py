"""Fuzz calls and files: only results and errors that name what is wrong may come out.

A case is a kind and a number, from which all that is random in it follows. The work runs in a
process of its own, so that a crash of native code is a fault like others; what was done is kept,
and the next run goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import io
import json
import math
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).parents[2]
LEDGER = ROOT / "benchmarks" / "results" / "reliability.json"
CORPUS = Path(__file__).parent / "corpus.json"
# Calls of one kind before another one is taken up.
CHUNK = 1200
SECONDS = 60
_MOST_MEMORY = 16 << 30
_CURSOR = struct.Struct("<32sQ")

JUNK = [
    *(None, True, False, 0, -1, 1, 2, 3, 7.5, 8, 64, 255, 256, 1e-12, 1e38, 1e308, -1e308),
    *(10**20, 10**400, math.nan, math.inf, -math.inf, "", "a", "\0", "nan", "1e400", "\ud800"),
    *([], [[]], {}, [None], [1, 2], (0, 255), (255, 0), (0, 1), (-1, 1), (0, 0), (0, math.inf)),
    *({"a": 1}, b"", b"bytes", "../../etc/passwd", "/proc/self/mem", "liu2019", "jpeg:50"),
    *("jpeg:0", "jpeg:1e9", "certified:2", "soft8", "rgb", "ycbcr", "round", "soft", "matmul"),
    *(range(3), object(), print, complex(1, 1), 2**63, -(2**63), [0] * 64, [[1.0] * 8] * 8),
    *("channels_first", "é" * 300),
]  # fmt: skip


class FaultError(Exception):
    """Something else than a result or an error that names what is wrong."""


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Content with some bytes changed, left out, repeated or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 64))
        way = rng.randrange(6)
        if way == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[at : at + length] = rng.randbytes(length)
        elif way == 2:
            del data[at : at + length]
        elif way == 3:
            data[at:at] = data[max(0, at - length) : at]
        elif way == 4 and len(data) > 4:
            at = min(at, len(data) - 4)
            number = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(data)))
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        elif way == 5 and not rng.randrange(4):
            del data[at:]
    return bytes(data)


def changed_tree(value, rng: random.Random, depth: int = 0):
    """Plain JSON data with one entry changed, left out, doubled or given another name."""
    if isinstance(value, dict) and value and rng.random() > 0.15:
        key, way = rng.choice(list(value)), rng.randrange(12)
        rest = {name: entry for name, entry in value.items() if name != key}
        if way == 0:
            return rest
        if way == 1:
            return {**rest, f"{key}x": value[key]}
        return {**value, key: changed_tree(value[key], rng, depth + 1)}
    if isinstance(value, list) and value and rng.random() > 0.15:
        at, way = rng.randrange(len(value)), rng.randrange(12)
        if way == 0:
            return value[:at] + value[at + 1 :]
        if way == 1:
            return [*value, value[at]]
        return [*value[:at], changed_tree(value[at], rng, depth + 1), *value[at + 1 :]]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.3:
        return rng.choice((-value, value + 1, value * 10**6, -0.0))
    if not rng.randrange(20):
        return functools.reduce(lambda inner, _: [inner], range(rng.choice((3, 100, 2000))), 1)
    return rng.choice(_json_junk())


@functools.cache
def _json_junk():
    return [j for j in JUNK if _is_json(j)]


def _is_json(value) -> bool:
    return isinstance(value, (type(None), bool, int, float, str, list, dict))


def changed_json(text: str, rng: random.Random) -> bytes:
    """A JSON document with entries or bytes changed."""
    if rng.random() < 0.3:
        return changed_bytes(text.encode(), rng)
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = changed_tree(tree, rng)
    with contextlib.suppress(RecursionError, ValueError):
        return json.dumps(tree).encode()
    return b"[" * 5000


class Loads:
    """Cases that load a changed file.

    Args:
        name: Of the file.
        make: Returns the whole file's content, given a folder.
        load: Loads a path, and raises ``FaultError`` if what it loads cannot be.
        change: Changes the content.
    """

    def __init__(self, name, make, load, change=changed_bytes):
        self.name, self.load, self.change = name, load, change
        self._make = make

    @functools.cached_property
    def whole(self):
        with tempfile.TemporaryDirectory() as folder:
            return self._make(Path(folder))

    def __call__(self, rng, folder):
        path = folder / self.name
        path.write_bytes(self.change(self.whole, rng))
        self.load(path)


# ---------------------------------------------------------------- what is loaded


def _table(folder):
    import fd_keras

    table = fd_keras.preset_table("zigzag15").with_settings(cycle_spins=2)
    table.save(folder / "table.json")
    return (folder / "table.json").read_text()


def _load_table(path):
    import numpy as np

    import fd_keras

    table = fd_keras.QuantizationTable.load(path)
    if not (np.isfinite(table.steps).all() and (table.steps > 0).all()):
        raise FaultError(f"a table with the steps {table.steps}")
    if fd_keras.QuantizationTable.from_dict(table.to_dict()) != table:
        raise FaultError("a table that is not what it is saved as")


def _statistics(folder):
    import numpy as np

    import fd_keras

    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)).astype(np.float32)
    statistics = fd_keras.CoefficientStatistics.from_data(images)
    statistics.save(folder / "statistics.json")
    return (folder / "statistics.json").read_text()


def _load_statistics(path):
    import fd_keras

    statistics = fd_keras.CoefficientStatistics.load(path)
    statistics.merge(statistics)


def _report(folder):
    from report_samples import full_report

    return full_report().to_json()


def _load_report(path):
    from fd_keras.evaluation import EvaluationReport

    report = EvaluationReport.from_json(path)
    report.to_json()
    report.table()
    str(report.verdict)


def _array(folder):
    import numpy as np

    from fd_keras.evaluation.store import ArrayStore

    ArrayStore(folder).array({"a": 1}, lambda: np.arange(12.0).reshape(3, 4))
    (path,) = folder.rglob("*.npy")
    return path.name.encode() + path.read_bytes()


def _change_array(content, rng):
    return content[:68] + changed_bytes(content[68:], rng)


def _load_array(path):
    import numpy as np

    from fd_keras.evaluation.store import ArrayStore

    content = path.read_bytes()
    name = content[:68].decode()
    place = path.parent / "arrays" / name[:2] / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content[68:])
    array = ArrayStore(path.parent).array({"a": 1}, lambda: np.arange(12.0).reshape(3, 4))
    if not np.array_equal(array, np.arange(12.0).reshape(3, 4)):
        raise FaultError(f"the cache gave {array}")


def _trial(folder):
    from fd_keras.refinement.oracles import write_state

    state = {"trial_id": "00", "hyperparameters": {"space": [], "values": {"as": 10.0, "md": 40}}}
    write_state(folder / "trial.json", {**state, "score": 0.5, "status": "COMPLETED"})
    return (folder / "trial.json").read_text()


def _load_trial(path):
    from fd_keras.refinement.oracles import check_states, write_state

    home = path.parent / "search"
    (home / "trial_00").mkdir(parents=True, exist_ok=True)
    if not (home / "oracle.json").exists():
        write_state(home / "oracle.json", {"start_order": ["00"]})
    path.replace(home / "trial_00" / "trial.json")
    check_states(home)


def _oracle(folder):
    from fd_keras.refinement.oracles import write_state

    write_state(folder / "oracle.json", {"start_order": ["00"], "seed": 1, "tries": {"a": [1, 2]}})
    return (folder / "oracle.json").read_text()


def _load_oracle(path):
    from fd_keras.refinement.oracles import check_states

    home = path.parent / "oracle"
    home.mkdir(exist_ok=True)
    path.replace(home / "oracle.json")
    check_states(home)


def _search(folder):
    whole = json.loads((ROOT / "experiments" / "results" / "cifar10_front.json").read_text())
    whole["trials"], whole["front"] = whole["trials"][:3], whole["front"][:2]
    return json.dumps(whole)


def _load_search(path):
    from fd_keras.refinement import RefineResult

    result = RefineResult.load(path)
    result.to_markdown()
    str(result)


def _jpeg(folder):
    import numpy as np

    from fd_keras.jpeg import encode_jpeg

    pixels = np.random.default_rng(1).integers(0, 256, (24, 17, 3)).astype(np.uint8)
    return encode_jpeg(pixels, "liu2019")


def _load_jpeg_table(path):
    from fd_keras.jpeg import read_jpeg_table

    read_jpeg_table(path)


def _picture(suffix):
    def make(folder):
        import numpy as np
        from PIL import Image

        pixels = np.random.default_rng(1).integers(0, 256, (17, 23, 3)).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, suffix)
        return content.getvalue()

    return make


def _load_image(path):
    from fd_keras.data.files import read_image

    image = read_image(path, max_pixels=10**7)
    if image.pixels.ndim != 3:
        raise FaultError(f"an image of shape {image.pixels.shape}")


def _npz(folder):
    import numpy as np

    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    content = io.BytesIO()
    np.savez(content, x=images, y=np.arange(4) % 3)
    return content.getvalue()


def _load_npz(path):
    from fd_keras.data.labelled_sources import open_labelled_images
    from fd_keras.data.sources import open_images

    for image in open_images(str(path)):
        if image.ndim != 3:
            raise FaultError(f"an image of shape {image.shape}")
    list(open_labelled_images(str(path), (8, 8, 3), class_count=3))


def _tfrecord(folder):
    import tensorflow as tf

    def feature(**kind):
        return tf.train.Feature(**kind)

    picture = feature(bytes_list=tf.train.BytesList(value=[_picture("PNG")(folder)]))
    label = feature(int64_list=tf.train.Int64List(value=[1]))
    example = tf.train.Example(
        features=tf.train.Features(feature={"image/encoded": picture, "image/class/label": label})
    )
    with tf.io.TFRecordWriter(str(folder / "a.tfrecord")) as writer:
        for _ in range(3):
            writer.write(example.SerializeToString())
    return (folder / "a.tfrecord").read_bytes()


def _load_tfrecord(path):
    from fd_keras.data.sources import open_images

    list(open_images(str(path)))


def _tflite(folder):
    import fd_keras

    layer = fd_keras.FeatureDistillation("liu2019")
    path = fd_keras.export_tflite(layer, folder / "layer.tflite", verify=False)
    return path.read_bytes()


def _load_tflite(path):
    from fd_keras.export.tflite_file import TFLiteFile, is_export

    if is_export(path):
        file = TFLiteFile(path.read_bytes())
        file.to_bytes()


@functools.cache
def _layer_and_images():
    import numpy as np

    import fd_keras

    images = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3)).astype(np.float32)
    return fd_keras.FeatureDistillation("liu2019"), images


def _verify_tflite(path):
    import fd_keras

    fd_keras.verify_export(path, *_layer_and_images())


def _keras_file(folder):
    import keras

    import fd_keras

    model = keras.Sequential(
        [keras.Input((8, 8, 3)), fd_keras.FeatureDistillation("liu2019"), keras.layers.Flatten()]
    )
    model.save(folder / "model.keras")
    return (folder / "model.keras").read_bytes()


def _change_keras(content, rng):
    import zipfile

    if rng.random() < 0.3:
        return changed_bytes(content, rng)
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(changed, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            part = old.read(name)
            if name == chosen:
                change = changed_json if name.endswith("json") else changed_bytes
                part = change(part.decode() if name.endswith("json") else part, rng)
            new.writestr(name, part)
    return changed.getvalue()


def _load_keras(path):
    from fd_keras_cli.models import load_model

    load_model(path, [])


# ---------------------------------------------------------------- what is called


def _any(rng, *usual):
    return rng.choice(usual) if usual and rng.random() < 0.6 else rng.choice(JUNK)


_SHAPES = [
    *((), (0,), (8,), (8, 8), (3, 8, 8), (1, 8, 8), (8, 8, 3), (9, 7, 1), (1, 8, 8, 3)),
    *((2, 16, 9, 1), (0, 8, 8, 3), (1, 0, 8, 3), (1, 8, 8, 0), (1, 8, 8, 4), (1, 3, 8, 8)),
    *((1, 1, 8, 8, 3), (1, 1, 1, 3)),
]
_TYPES = [
    *("float32", "float32", "float32", "float64", "float16", "uint8", "uint8", "int32", "int64"),
    *("bool", "complex64", "O", "U3"),
]
_SUMMABLE = 1e30
_EXTREME = [math.nan, math.inf, -math.inf, 1e38, -1e300]


def _array_of(rng):
    """An array of any shape, type and content."""
    import numpy as np

    shape, kind = rng.choice(_SHAPES), rng.choice(_TYPES)
    generator = np.random.default_rng(rng.randrange(2**32))
    array = generator.uniform(-10, 300, shape)
    if array.size and rng.random() < 0.3:
        array.flat[rng.randrange(array.size)] = rng.choice(_EXTREME)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return array.astype(kind)


def make_table(rng, folder):
    """``QuantizationTable`` of any arguments."""
    import numpy as np

    import fd_keras

    options = {
        "color_space": lambda: _any(rng, "rgb", "ycbcr"),
        "cycle_spins": lambda: _any(rng, 1, 2, 4, 64),
        "quantizer": lambda: _any(rng, "round", "soft"),
        "provenance": lambda: _any(rng, {}, {"name": "a"}),
    }
    chosen = {name: value() for name, value in options.items() if rng.random() < 0.4}
    steps = rng.choice([_array_of(rng), np.full((8, 8), rng.choice((1, 30, 0.1))), _any(rng)])
    table = fd_keras.QuantizationTable(steps, **chosen)
    _check_table(table)
    table.steps_for(rng.choice((1, 2, 3, 4)))


def _check_table(table):
    import numpy as np

    if not (np.isfinite(table.steps).all() and (table.steps > 0).all()):
        raise FaultError(f"a table with the steps {table.steps}")
    json.dumps(table.to_dict(), allow_nan=False)


def name_table(rng, folder):
    """Names and settings of tables, as options give them."""
    from fd_keras.presets import table_from_argument

    known = ("liu2019", "jpeg", "jpeg:", "certified:", "zigzag15", "balanced:", "soft8", "")
    end = ("", "50", "-1", "1e9", "nan", "inf", "2:ycbcr", "2:rgb:1", ":", "\0", "é", "0", " ")
    name = rng.choice(known) + rng.choice(end)
    _check_table(table_from_argument(name))


@functools.cache
def _known_statistics():
    import numpy as np

    import fd_keras

    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)).astype(np.float32)
    return fd_keras.CoefficientStatistics.from_data(images)


def design(rng, folder):
    """``design_table`` and ``removal_probability`` of any arguments."""
    from fd_keras.design import design_table, removal_probability

    statistics = _known_statistics() if rng.random() < 0.9 else rng.choice(JUNK)
    if rng.random() < 0.5:
        _check_table(design_table(statistics, epsilon=_any(rng, 0.5, 2, 4, 8)))
    else:
        removal_probability(
            _any(rng, 10.0, 30.0, [1.0, 2.0]), _any(rng, 5.0, 20.0), _any(rng, 0.5, 2.0)
        )


@functools.cache
def _layers():
    import fd_keras

    tables = ("liu2019", "zigzag15", "soft8")
    return [
        fd_keras.FeatureDistillation(table, value_range=values)
        for table in tables
        for values in ((0, 255), (0, 1))
    ]


def call_layer(rng, folder):
    """A layer on arrays of any shape, type and content."""
    import numpy as np

    images = _array_of(rng) if rng.random() < 0.9 else rng.choice(JUNK)
    result = rng.choice(_layers())(images).numpy()
    if result.shape != np.shape(images):
        raise FaultError(f"{np.shape(images)} became {result.shape}")
    if np.issubdtype(np.asarray(images).dtype, np.number):
        # Beyond that the sums of the DCT overflow, and what is not a number is right.
        whole = (np.abs(np.asarray(images, np.float32)) < _SUMMABLE).all()
        if whole and not np.isfinite(result).all():
            raise FaultError("finite pixels became others")


def make_layer(rng, folder):
    """``FeatureDistillation`` of any arguments, its config, and one call."""
    import numpy as np

    import fd_keras

    usual = {
        "quantization_table": ("liu2019", "zigzag15", "jpeg:50"),
        "color_space": ("rgb", "ycbcr"),
        "cycle_spins": (1, 2, 4),
        "value_range": ((0, 255), (0, 1), (-1, 1)),
        "dct_method": ("matmul", "signal"),
        "data_format": ("channels_last", "channels_first"),
        "gradient": ("straight-through", "smooth"),
        "quantizer": ("round", "soft"),
    }
    chosen = {name: _any(rng, *usual[name]) for name in usual if rng.random() < 0.3}
    layer = fd_keras.FeatureDistillation(**chosen)
    fd_keras.FeatureDistillation.from_config(layer.get_config())
    if rng.random() < 0.1:
        shape = (1, 3, 8, 8) if layer.data_format == "channels_first" else (1, 8, 8, 3)
        low, high = layer.value_range
        images = np.random.default_rng(1).uniform(low, high, shape).astype(np.float32)
        if layer.cycle_spins <= 4 and not np.isfinite(layer(images)).all():
            raise FaultError(f"no finite pixels with {chosen!r}")


def certify(rng, folder):
    """``certify`` and ``encode`` of any arguments."""
    import fd_keras

    images = _array_of(rng) if rng.random() < 0.9 else rng.choice(JUNK)
    table = _any(rng, "liu2019", "zigzag15", "certified:2")
    rng.choice((fd_keras.certify, fd_keras.encode))(images, table)


def write_pixels(rng, folder):
    """JPEG files of arrays of any kind."""
    import numpy as np

    from fd_keras.jpeg import encode_jpeg, read_jpeg_table

    table = rng.choice(("liu2019", "jpeg:50", "zigzag15", *JUNK[:4]))
    pixels = _array_of(rng)
    if rng.random() < 0.5 and pixels.ndim == 3:
        pixels = np.random.default_rng(1).integers(0, 256, pixels.shape).astype(np.uint8)
    read_jpeg_table(encode_jpeg(pixels, table))


# Kind -> how often it is called for each time that `verify tflite` is, and the case.
KINDS = {
    "load table": (600, Loads("a.json", _table, _load_table, changed_json)),
    "load statistics": (10, Loads("a.json", _statistics, _load_statistics, changed_json)),
    "load report": (5, Loads("a.json", _report, _load_report, changed_json)),
    "load search result": (4, Loads("a.json", _search, _load_search, changed_json)),
    "load trial": (300, Loads("trial.json", _trial, _load_trial, changed_json)),
    "load search state": (500, Loads("oracle.json", _oracle, _load_oracle, changed_json)),
    "load cached array": (300, Loads("a.npy", _array, _load_array, _change_array)),
    "read table of JPEG": (200, Loads("a.jpg", _jpeg, _load_jpeg_table)),
    "read JPEG": (300, Loads("b.jpg", _jpeg, _load_image)),
    "read PNG": (400, Loads("a.png", _picture("PNG"), _load_image)),
    "read WebP": (400, Loads("a.webp", _picture("WebP"), _load_image)),
    "read BMP": (400, Loads("a.bmp", _picture("BMP"), _load_image)),
    "read GIF": (400, Loads("a.gif", _picture("GIF"), _load_image)),
    "read npz": (300, Loads("a.npz", _npz, _load_npz)),
    "read TFRecord": (1, Loads("a.tfrecord", _tfrecord, _load_tfrecord)),
    "read TFLite": (3, Loads("a.tflite", _tflite, _load_tflite)),
    "verify TFLite": (1, Loads("b.tflite", _tflite, _verify_tflite)),
    "load .keras": (1, Loads("a.keras", _keras_file, _load_keras, _change_keras)),
    "make table": (1200, make_table),
    "name table": (1200, name_table),
    "design table": (1, design),
    "make layer": (20, make_layer),
    "call layer": (30, call_layer),
    "certify, encode": (20, certify),
    "write JPEG": (200, write_pixels),
}  # fmt: skip


def is_named(error: BaseException) -> bool:
    """Whether an error says what is wrong with which argument or file."""
    if isinstance(error, OSError):
        return error.filename is not None or "`" in str(error)
    return isinstance(error, (ValueError, TypeError)) and "`" in str(error)


def attempt(kind: str, number: int, folder: Path) -> bool:
    """Run a case; return whether it was refused.

    Raises:
        FaultError: It ended otherwise.
    """
    rng = random.Random(f"{kind} {number}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind][1](rng, folder)
    except FaultError:
        raise
    except Exception as error:
        if not is_named(error):
            raise FaultError(f"{type(error).__name__}: {str(error)[:300]}") from error
        return True
    return False


def corpus() -> list[tuple[str, int]]:
    """Kinds and numbers of cases that once were faults."""
    return [(case["kind"], case["number"]) for case in json.loads(CORPUS.read_text())]


def _overdue(number, frame):
    raise FaultError(f"no end after {SECONDS} s of processor time")


def work(ledger, calls: int, kinds: list[str], cursor) -> None:
    """Fuzz until so many calls were made in all."""
    signal.signal(signal.SIGPROF, _overdue)
    shares = sum(KINDS[kind][0] for kind in kinds)
    written = time.monotonic()
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        while sum(entry["calls"] for entry in ledger.content["fuzz"].values()) < calls:
            done = {kind: _entry(ledger, kind)["calls"] for kind in kinds}
            kind = min(kinds, key=lambda kind: done[kind] * shares / KINDS[kind][0])
            entry = _entry(ledger, kind)
            for _ in range(max(1, min(CHUNK, KINDS[kind][0]))):
                number = entry["calls"]
                cursor[: _CURSOR.size] = _CURSOR.pack(kind.encode(), number)
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                try:
                    entry["refused"] += attempt(kind, number, Path(name))
                except FaultError as error:
                    entry["faults"].append([number, str(error)])
                signal.setitimer(signal.ITIMER_PROF, 0)
                entry["calls"] += 1
            if time.monotonic() - written > 5:
                ledger.write()
                written = time.monotonic()
    ledger.write()


def _entry(ledger, kind):
    return ledger.entry("fuzz", kind, calls=0, refused=0, faults=[])


def _memory():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def supervise(arguments) -> int:
    """Run the work in a process of its own, and go on behind each case that ends it."""
    with tempfile.NamedTemporaryFile() as place:
        place.write(bytes(_CURSOR.size))
        place.flush()
        while True:
            command = [sys.executable, "-m", "benchmarks.reliability.fuzz", *arguments]
            done = subprocess.run([*command, "--cursor", place.name])
            if done.returncode >= 0:
                return done.returncode
            from benchmarks.reliability.ledger import Ledger  # which imports TensorFlow

            kind, number = _CURSOR.unpack(Path(place.name).read_bytes())
            ledger = Ledger(parsed(arguments).ledger)
            entry = _entry(ledger, kind.rstrip(b"\0").decode())
            # Cases since the ledger was written are run again, but for this one.
            entry["faults"].append([number, f"the process ended with signal {-done.returncode}"])
            entry["calls"] = max(entry["calls"], number + 1)
            ledger.write()


def parsed(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--calls", type=int, default=1_000_000, help="number in all, earlier runs included"
    )
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--cursor", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Fuzz; the exit code says whether there is a fault in the ledger."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(arguments)
    if options.cursor is None:
        return supervise(arguments)
    from benchmarks.reliability.ledger import Ledger

    faulthandler.enable()
    # What would take all memory ends as an error, and not this machine.
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    ledger = Ledger(options.ledger)
    with open(options.cursor, "r+b") as file, mmap.mmap(file.fileno(), _CURSOR.size) as cursor:
        work(ledger, options.calls, options.kind or list(KINDS), cursor)
    faults = sum(len(entry["faults"]) for entry in ledger.content["fuzz"].values())
    print(f"{faults} faults; see {options.ledger}")
    return min(1, faults)


if __name__ == "__main__":
    sys.exit(main())
