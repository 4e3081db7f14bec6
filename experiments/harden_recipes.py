"""Recipes of ``experiments.harden_cifar10``, and what they are trained on.

Run: ``python -m experiments.harden_recipes DIRECTORY`` writes images, weights and recipes for
``experiments/harden_gpu.py``, which trains all of them on a GPU.
"""

import argparse
import pathlib
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from experiments import cifar10
from experiments.harness import write_json
from experiments.shared_models import SHARED
from fd_keras import QuantizationTable, preset_table
from fd_keras.dct import RGB_TO_YCBCR, grid_offsets, level_shift
from fd_keras.evaluation.workbench import correct
from fd_keras.hardening import Recipe

TRAINING = SHARED / "data" / "cifar10_train_jpeg.tfrecord.gz"
VALIDATION = 500  # the first of the lossless images
LEARNING_RATE = 0.05
DECAY = 5e-4
EPOCHS = 12
LONG = 36


def rounding(spins):
    """A YCbCr table: luma in the 4x4 lowest bands, luma elsewhere, chroma."""
    steps = np.full((3, 8, 8), 80.0)
    steps[0] = 40
    steps[0, :4, :4] = 20
    return QuantizationTable(steps, "ycbcr", spins, {"name": _name("YCbCr 20/40/80", spins)})


def soft(threshold, spins):
    """Soft thresholds for luma, and twice those for chroma."""
    steps = np.full((3, 8, 8), 2.0 * threshold)
    steps[1:] *= 2
    provenance = {"name": _name(f"soft {threshold:g}", spins)}
    return QuantizationTable(steps, "ycbcr", spins, provenance, "soft")


def _name(text, spins):
    return text + (f", {spins} grids" if spins > 1 else "")


TABLES = {
    # Steps so small that nothing is rounded: the same training without the layer.
    "none": QuantizationTable(np.full((8, 8), 2.0**-7), provenance={"name": "no layer"}),
    "round": rounding(1),
    "round-4": rounding(4),
    "soft": soft(8, 1),
    "soft-4": soft(8, 4),
    "soft-16": soft(8, 16),
    "gentle-4": soft(4, 4),
    "gentle-16": soft(4, 16),
    "certified-1": preset_table("certified:1"),
    "certified-2": preset_table("certified:2"),
}


@dataclass(frozen=True)
class Plan:
    """How one classifier is trained.

    ``trials`` are options that only the GPU's step has: ``wide``, N-FGSM instead of FGSM.
    """

    table: str
    options: dict
    epochs: int = EPOCHS
    decay: float = DECAY
    trials: dict | None = None

    @property
    def recipe(self):
        """What ``fd_keras.harden`` takes."""
        return Recipe(**self.options)

    def text(self):
        """All of it in a line."""
        settings = {**self.options, **(self.trials or {}), "weight_decay": self.decay}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _plans():
    plans = {}

    def add(table, epsilon, *suffixes, epochs=EPOCHS, decay=DECAY, trials=None, **options):
        plan = Plan(table, {"epsilon": epsilon, **options}, epochs, decay, trials)
        plans["-".join([table, f"eps{epsilon}", *suffixes])] = plan

    teacher, all_of_them = {"soft_labels": 0.5}, {"attacked_share": 1.0}
    wide, moved = {"wide": True}, {"transferred_share": 0.25}
    half = {"attacked_share": 0.25, "transferred_share": 0.5}
    for table in ("none", "soft-4"):
        for epsilon in (1, 2, 4):
            add(table, epsilon)
        add(table, 2, "all", **all_of_them)
        add(table, 2, "teacher", **teacher)
        add(table, 2, "long", epochs=LONG)
        add(table, 2, "n-fgsm", trials=wide)
        add(table, 2, "no-decay", decay=0)
        for epsilon in (2, 4):
            add(*(table, epsilon, "transferred-teacher-long"), epochs=LONG, **teacher, **moved)
        add(*(table, 2, "half-transferred-teacher-long"), epochs=LONG, **teacher, **half)
    for table in ("round", "round-4", "soft"):
        for epsilon in (2, 4):
            add(table, epsilon)
    for table in ("soft-16", "gentle-4", "gentle-16"):
        add(table, 2)
    add("none", 0)
    add("none", 0, "no-decay", decay=0)
    add("none", 0, "long", epochs=LONG)
    add("soft-4", 2, "no-average", averaging=0.0)
    add("soft-4", 2, "transferred", **moved)
    add("soft-4", 2, "n-fgsm-teacher-long", epochs=LONG, trials=wide, **teacher)
    for radius in (1, 2):
        add(f"certified-{radius}", 0, "teacher", **teacher)
    add("certified-2", 0)
    return plans


PLANS = _plans()


def training_files():
    """The JPEG files, and their classes."""
    features = {
        "image/encoded": tf.io.FixedLenFeature((), tf.string),
        "image/class/label": tf.io.FixedLenFeature((), tf.int64),
    }
    records = tf.data.TFRecordDataset(str(TRAINING), "GZIP")
    examples = records.map(lambda record: tf.io.parse_single_example(record, features))
    found = list(examples.as_numpy_iterator())
    return tuple([example[name] for example in found] for name in features)


def training_images(count=None):
    """The first images as uint8, and their classes."""
    files, labels = (part[:count] for part in training_files())
    return np.stack([tf.io.decode_jpeg(file, 3).numpy() for file in files]), np.array(labels)


def grey_level_model(classifier=None):
    """A classifier for images from 0 to 255, so that training images stay bytes."""
    classifier = classifier or cifar10.resnet14()
    inputs = keras.Input((32, 32, 3), name="image")
    outputs = classifier(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, outputs, name=classifier.name)


def named_variables(classifier):
    """The ResNet-14's variables by name, with convolutions in the order in which it has them."""

    def numbered(kind):
        layers = [layer for layer in classifier.layers if isinstance(layer, kind)]
        # conv2d, conv2d_1, ...: that of `layers` is another order.
        return sorted(layers, key=lambda layer: (len(layer.name), layer.name))

    kernels, norms = numbered(keras.layers.Conv2D), numbered(keras.layers.BatchNormalization)
    found = {}
    for number, (kernel, norm) in enumerate(zip(kernels, norms)):
        found[f"conv{number}"] = kernel.kernel
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            found[f"norm{number}_{part.removeprefix('moving_')}"] = getattr(norm, part)
    (dense,) = numbered(keras.layers.Dense)
    return {**found, "kernel": dense.kernel, "bias": dense.bias}


def arrays_of(classifier):
    """The ResNet-14's variables by name, as arrays."""
    return {name: np.asarray(value) for name, value in named_variables(classifier).items()}


def load_arrays(classifier, path):
    """Give a ResNet-14 the variables in an archive, as ``arrays_of`` names them."""
    with np.load(path) as archive:
        for name, value in named_variables(classifier).items():
            value.assign(archive[name])


def layer_of(table):
    """What ``harden_gpu.Layer`` is built from, in plain JSON types; ``None`` for no layer."""
    if table is None or table is TABLES["none"]:
        return None
    return {
        "steps": np.asarray(table.steps_for(3)).tolist(),
        "quantizer": table.quantizer,
        "offsets": grid_offsets(table.cycle_spins),
        "mix": (RGB_TO_YCBCR if table.color_space == "ycbcr" else np.eye(3)).tolist(),
        "shift": level_shift(table.color_space),
    }


def job(plan, benign):
    """A plan in plain JSON types, with the benign accuracy of the undefended classifier."""
    return {
        "recipe": {**plan.recipe.to_dict(), **(plan.trials or {})},
        "table": layer_of(TABLES[plan.table]),
        "epochs": plan.epochs,
        "learning_rate": LEARNING_RATE,
        "weight_decay": plan.decay,
        "benign": benign,
        "max_benign_loss": 0.01,
    }


def pack(directory):
    """Write everything that training needs."""
    directory.mkdir(parents=True, exist_ok=True)
    files, labels = training_files()
    np.savez_compressed(
        directory / "training.npz",
        files=np.frombuffer(b"".join(files), np.uint8),
        ends=np.cumsum([len(file) for file in files]),
        labels=np.array(labels),
    )
    images, classes = (part[:VALIDATION] for part in cifar10.images_and_labels())
    np.savez(directory / "validation.npz", images=images, labels=classes)
    model = cifar10.resnet14()
    np.savez(directory / "weights.npz", **arrays_of(model))
    right = correct(model.predict(np.float32(images / 255), verbose=0), classes)
    benign = float(right.mean())
    write_json(directory / "jobs.json", {name: job(plan, benign) for name, plan in PLANS.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    pack(parser.parse_args().directory)


if __name__ == "__main__":
    main()
