"""Where the time of each step of a pipeline goes: codecs, layer, model, anything else."""

import contextlib
import io
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.performance import cases as c
from benchmarks.performance.stacks import StackSampler
from benchmarks.performance.tflite import network as network_for
from fd_keras import FeatureDistillation, evaluate, refine
from fd_keras._extras import import_extra
from fd_keras.classifier import Classifier
from fd_keras.evaluation import Protocol, bim, fgsm
from fd_keras.refinement import Search
from fd_keras_cli.app import app

FILES, COMPUTING = "files and codecs", "layer and model"
INSIDE = (FILES, COMPUTING)

# Patterns of "file:function" and the places they stand for, tried from the innermost frame on.
# ``None``: the module itself is the place.
_PLACES = [
    (re.compile(pattern), place)
    for pattern, place in (
        (r"/PIL/|/zipfile|/shutil\.py|/fd_keras/(_files|data/(files|\w*sources))\.py", FILES),
        (r"/tensorflow/python/framework/(func_graph|op_def_library)\.py:", "tracing graphs"),
        (r"/tensorflow/python/(eager/(execute|context)|ops/gen_\w+)\.py:", COMPUTING),
        (r"/fd_keras/(layer|kernels|_compat)\.py:", COMPUTING),
        (r"/keras/.*trainer\.py:predict", COMPUTING),
        (r"/art/", "ART"),
        (r"/keras_tuner/|/sklearn/", "Keras Tuner"),
        (r"/matplotlib/", "plots"),
        (r"/rich/", "progress bars"),
        (r"/tensorboard|/tensorflow/python/summary/", "logs"),
        (r"<frozen importlib", "imports"),
        (r"/(fd_keras(?:_cli)?/[\w/]+)\.py:", None),
    )
]


def measure(scale):
    """A row for each step: seconds, share of each place, and share outside of ``INSIDE``."""
    missing = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [_profiled(step, run, scale) for step, run in _quick_steps(folder, scale).items()]
        try:
            import_extra("art.attacks.evasion", "evaluate")
            steps = _model_steps(folder, scale)
            rows += [_profiled(step, run, scale) for step, run in steps.items()]
        except ImportError as error:
            missing.append({"what": "evaluate, tune", "reason": str(error)})
    return {"rows": rows, "not_run": missing}


def _profiled(step, run, scale):
    """Profile the second of two runs, for the first one imports modules."""
    if scale.rounds > 1:
        run("warm-up")
    sampler = StackSampler(place_of)
    start = time.perf_counter()
    with sampler.watching():
        run("measured")
    seconds = time.perf_counter() - start
    total = sum(sampler.seconds.values()) or 1
    shares = {place: value / total for place, value in sampler.seconds.most_common()}
    return {
        "step": step,
        "seconds": seconds,
        "shares": shares,
        "outside": 1 - sum(shares.get(place, 0) for place in INSIDE) if shares else 0,
    }


def place_of(file, function):
    """The place of a frame; ``None`` where no pattern fits."""
    for pattern, place in _PLACES:
        found = pattern.search(f"{file}:{function}")
        if found:
            return place or found[1]
    return None


def _quick_steps(folder, scale):
    """Steps without a model, on images whose files have the size of photos' files."""
    images = _smooth_images(scale.statistics, scale.size)
    photos = folder / "photos"
    photos.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(photos / f"{number}.jpg", quality=92)
    files = sorted(map(str, photos.iterdir()))[: scale.images]
    table = str(folder / "table.json")
    return {
        "adapt": lambda _: FeatureDistillation(color_space="ycbcr").adapt(images, 2),
        "calibrate": lambda _: _command("calibrate", photos, "--epsilon", 2, "--out", table),
        "compress": lambda run: _command("compress", *files, "--out", folder / f"{run}-jpegs"),
        "apply": lambda run: _command("apply", *files, "--out", folder / f"{run}-pngs"),
    }


def _model_steps(folder, scale):
    """Evaluation with a tiny network, and a search with MobileNetV2."""
    from fd_keras.demo import build_classifier, load_digits, train_classifier

    digits = load_digits(seed=1)
    network = build_classifier()
    train_classifier(network, digits.train[: 10 * scale.images], epochs=3)
    data = _as_seen(network, digits.test[: 2 * scale.images].images)
    attacks = {"gray_box": (fgsm(8),), "adaptive": (bim(8, 2, 10),)}
    protocol = Protocol("pipeline", "FGSM, and BIM that knows the table", **attacks)
    one = Protocol("search", "FGSM", gray_box=attacks["gray_box"])
    searched = network_for(scale)
    photos = np.float32(_smooth_images(scale.images, scale.size) / 255)
    photos_as_seen = _as_seen(searched, photos)
    return {
        "evaluate": lambda run: evaluate(
            network, data, ["liu2019", "jpeg:75"], protocol, cache_dir=folder / f"{run}-cache"
        ),
        "tune": lambda run: refine(
            *(Classifier(searched, value_range=(0, 1)), photos_as_seen, one),
            Search(max_trials=scale.trials),
            directory=folder / f"{run}-search",
            cache_dir=folder / f"{run}-search-cache",
        ),
    }


def _as_seen(network, images):
    """Images labelled with the network's own predictions, so that all of them count as correct."""
    return images, network.predict(images, verbose=0).argmax(-1)


def _command(*arguments):
    """Run the command line in this process, without output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        app([str(argument) for argument in arguments], standalone_mode=False)


def _smooth_images(count, size):
    """Blurred noise, for files of a photo's size."""
    coarse = c.random_images(count, max(4, size // 8))
    blurred = [Image.fromarray(image).resize((size, size)) for image in coarse]
    return np.stack([np.asarray(image) for image in blurred])
