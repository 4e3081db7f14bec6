"""Hardened ResNet-14 on CIFAR-10: recipes side by side, for the trade-off and the ablation.

Run: ``python -m experiments.harden_cifar10 --recipe fgsm-2 --recipe fgsm-4 ...``. It goes on where
it was stopped: trainings after their last whole epoch, attacks after their last part, both in
``--cache``. Results of earlier runs with other recipes stay in the JSON file. ``--publish NAME``
writes weights and table of a recipe, too. ``--fast`` leaves out DeepFool, CW-L2 and Square, which
take 20 of a recipe's 25 minutes under attack. With ``--smoke`` it takes a minute or two, is fast,
too, and its figures mean nothing.

It trains on the JPEG files of ``../shared``. Of the 2000 lossless images, the first 500 are the
validation split, which chooses the epoch; the others are the test split. An image counts as right
where the hardened classifier behind its layer gets both it and its attacked version right, among
the images that the *undefended* classifier gets right: ``fd_keras.evaluate`` would take those that
the hardened one gets right alone. Attacks, gradients and cache are those of ``evaluate``.
"""

import json
import platform
import time

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from experiments import cifar10
from experiments.harness import argument_parser, parsed, write_json, write_text
from experiments.shared_models import SHARED
from fd_keras import FeatureDistillation, QuantizationTable, harden, preset_table
from fd_keras._console import progress_bars, text_table
from fd_keras._files import atomic_path
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages
from fd_keras.evaluation import PROTOCOLS, pgd, square
from fd_keras.evaluation.accuracies import accuracy_row
from fd_keras.evaluation.defences import defence, no_defence
from fd_keras.evaluation.store import ArrayStore
from fd_keras.evaluation.workbench import AttackedImages, Workbench, correct
from fd_keras.hardening import Recipe, Training
from fd_keras.hardening.recipe import warm_up_cosine
from fd_keras.plots import NamedPoint, empty_figure, place_names

TRAINING = SHARED / "data" / "cifar10_train_jpeg.tfrecord.gz"
VALIDATION = 500
LEARNING_RATE = 0.05


def bands(low, high, chroma, spins=1):
    """A YCbCr table: luma in the 4x4 lowest bands, luma elsewhere, chroma."""
    steps = np.full((3, 8, 8), float(chroma))
    steps[0] = high
    steps[0, :4, :4] = low
    name = f"YCbCr {low}/{high}/{chroma}" + (f", {spins} grids" if spins > 1 else "")
    return QuantizationTable(steps, "ycbcr", spins, {"name": name})


# Steps so small that nothing is rounded: the same fine-tuning without the layer.
NO_TABLE = QuantizationTable(np.full((8, 8), 2.0**-7), provenance={"name": "no quantisation"})
STANDARD = bands(20, 40, 80)

# The table to train behind, and the arguments of ``Recipe``.
RECIPES = {
    "distilled": (STANDARD, {"epsilon": 0}),
    "fgsm-1": (STANDARD, {"epsilon": 1}),
    "fgsm-2": (STANDARD, {"epsilon": 2}),
    "fgsm-4": (STANDARD, {"epsilon": 4}),
    "fgsm-8": (STANDARD, {"epsilon": 8}),
    "fgsm-2-gentle": (bands(8, 16, 32), {"epsilon": 2}),
    "fgsm-2-gentle-4-grids": (bands(8, 16, 32, 4), {"epsilon": 2}),
    "fgsm-4-gentle": (bands(8, 16, 32), {"epsilon": 4}),
    "fgsm-4-4-grids": (bands(20, 40, 80, 4), {"epsilon": 4}),
    "fgsm-4-all": (STANDARD, {"epsilon": 4, "attacked_share": 1.0}),
    "pgd-2": (STANDARD, {"epsilon": 2, "attack_steps": 3}),
    "pgd-4": (STANDARD, {"epsilon": 4, "attack_steps": 3}),
    "soft-2": (STANDARD, {"epsilon": 2, "soft_labels": 0.5}),
    # Ablations of fgsm-2.
    "fgsm-2-no-layer": (NO_TABLE, {"epsilon": 2, "attack_gradient": "straight-through"}),
    "fgsm-2-identity": (STANDARD, {"epsilon": 2, "attack_gradient": "straight-through"}),
    "fgsm-2-learnt": (STANDARD, {"epsilon": 2, "table_rate": 0.3}),
    "fgsm-2-2-grids": (bands(20, 40, 80, 2), {"epsilon": 2}),
    "fgsm-2-4-grids": (bands(20, 40, 80, 4), {"epsilon": 2}),
    "fgsm-2-liu2019": (preset_table("liu2019"), {"epsilon": 2}),
}

GRAY_BOX = PROTOCOLS["evademl-cifar10"].gray_box
ADAPTIVE = tuple(pgd(level, 20) for level in (1, 2, 4, 8))
BLACK_BOX = (square(2),)
FAST = ("FGSM", "BIM", "PGD")
LIMITS = {"DeepFool": 48, "CW-L2": 32, "CW-Linf": 32, "Square": 48, "PGD": 300}


def training_images(count):
    """The first images as uint8, and their classes."""
    features = {
        "image/encoded": tf.io.FixedLenFeature((), tf.string),
        "image/class/label": tf.io.FixedLenFeature((), tf.int64),
    }

    def decode(record):
        example = tf.io.parse_single_example(record, features)
        image = tf.io.decode_jpeg(example["image/encoded"], 3)
        return tf.ensure_shape(image, (32, 32, 3)), example["image/class/label"]

    records = tf.data.TFRecordDataset(str(TRAINING), "GZIP").take(count or -1)
    images, labels = zip(*records.map(decode, 2).as_numpy_iterator())
    return np.stack(images), np.array(labels)


def flipped_and_shifted(images, seed):
    """Each image flipped or not, and shifted by up to four pixels over its repeated edge."""
    images = tf.image.stateless_random_flip_left_right(images, seed)
    count, size = tf.shape(images)[0], images.shape[1]
    shifts = tf.random.stateless_uniform((2, count, 1), seed, -4, 5, tf.int32)
    positions = tf.clip_by_value(tf.range(size) + shifts, 0, size - 1)
    images = tf.gather(images, positions[0], axis=1, batch_dims=1)
    return tf.gather(images, positions[1], axis=2, batch_dims=1)


def grey_level_model():
    """The classifier for images from 0 to 255, so that training images stay bytes."""
    classifier = cifar10.resnet14()
    inputs = keras.Input((32, 32, 3), name="image")
    outputs = classifier(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, outputs, name=classifier.name)


def optimizer(images, arguments):
    """SGD with a short warm-up and a cosine."""
    batches = images // arguments.batch_size * arguments.epochs
    schedule = warm_up_cosine(LEARNING_RATE, batches)
    return keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)


def hardened(name, data, validation, arguments, console):
    """The result of one recipe, and the seconds it took, 0 if it was there."""
    table, recipe = RECIPES[name]
    policy = None if arguments.policy == "float32" else arguments.policy
    home = arguments.cache / "hardening" / f"{name}-{arguments.epochs}-{arguments.policy}"
    if arguments.smoke:
        home = home.with_name(f"{home.name}-smoke")
    started = time.monotonic()
    result = harden(
        grey_level_model(),
        FeatureDistillation(table),
        data,
        validation,
        Recipe(**recipe),
        Training(
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            optimizer=optimizer(len(data[1]), arguments),
            augment=flipped_and_shifted,
            dtype_policy=policy,
        ),
        directory=home,
        verbose=console,
    )
    return result, time.monotonic() - started


class Reporter:
    """Attacks classifiers on the test split."""

    def __init__(self, images, labels, arguments, console):
        self._arguments = arguments
        self._console = console
        self._original = Classifier(grey_level_model(), value_range=(0, 255), from_logits=True)
        right = correct(self._original.logits(np.float32(images / 255)), labels)
        chosen = np.flatnonzero(right)[: arguments.images]
        self.seen = len(labels)
        self.undefended = float(right.mean())
        self._all = LabelledImages(images, labels, (0.0, 255.0))
        self._selection = self._all[chosen]

    def rows(self, name, model, table):
        """Every accuracy of a classifier behind its table, each with its threat model."""
        classifier = Classifier(model, value_range=(0, 255), from_logits=True)
        layer = no_defence() if table is None else defence(table)
        store = ArrayStore(self._arguments.cache)
        with progress_bars(self._console, unit="images") as progress:
            own, theirs = (
                Workbench(c, store, seed=1, eot_draws=1, progress=progress)
                for c in (classifier, self._original)
            )

            def right(images, bench):
                bench.generate(images)
                attacked = layer(255 * bench.pixels(images)) / 255
                return correct(classifier.logits(attacked), images.images.labels)

            benign = right(AttackedImages(self._selection), own)
            everything = right(AttackedImages(self._all), own)

            def row(images, bench, threat_model, source=""):
                images = images.first(self._limit(images.attack))
                count = len(images.images)
                kept = right(images, bench) & benign[:count]
                attack = images.attack
                return accuracy_row(
                    defence=name,
                    family="harden",
                    threat_model=threat_model,
                    correct=int(kept.sum()),
                    count=count,
                    attack=f"{attack.name}{source}",
                    attack_family=attack.family,
                    norm=attack.norm,
                    epsilon=attack.unit_epsilon,
                )

            rows = [
                accuracy_row(
                    defence=name,
                    family="harden",
                    threat_model="benign",
                    correct=int(everything.sum()),
                    count=self.seen,
                )
            ]
            for attack in self._attacks(GRAY_BOX):
                images = AttackedImages(self._selection, attack)
                rows.append(row(images, own, "gray-box", ", on this classifier"))
                rows.append(row(images, theirs, "gray-box", ", on the undefended one"))
            for threat_model, attacks in (("adaptive", ADAPTIVE), ("black-box", BLACK_BOX)):
                for attack in self._attacks(attacks):
                    images = AttackedImages(self._selection, attack, layer)
                    rows.append(row(images, own, threat_model))
        return rows

    def _attacks(self, attacks):
        return [a for a in attacks if not self._arguments.fast or a.family in FAST]

    def _limit(self, attack):
        return LIMITS.get(attack.family)


def page(results):
    """The results as Markdown."""
    about = results["about"]
    lines = [
        "# Hardened ResNet-14 on CIFAR-10",
        "",
        f"Fine-tuned on {about['training_images']} JPEG-compressed (quality 75) CIFAR-10 images "
        f"behind its table. The validation split of {about['validation_images']} lossless images "
        f"chose the epoch; the test split has {about['test_images']} others, of which the "
        f"undefended classifier gets {100 * about['undefended']:.1f} % right. Benign: accuracy on "
        "all of the test split. Under attack: of the images that the undefended classifier gets "
        "right, the share that the hardened one behind its table gets right both benign and "
        "attacked; counts and intervals are in the JSON file.",
        "",
        "Gray-box: attacks made without knowledge of the table, on this classifier / on the "
        "undefended one. Adaptive: PGD-20 through the table, with a smooth surrogate gradient of "
        "rounding and then the identity's (BPDA). Black-box: Square, 1000 queries. In %.",
        "",
        "![trade-off](harden_cifar10.png)",
        "",
    ]
    rows = [row for entry in results["recipes"].values() for row in entry["rows"]]
    made_on = (row["attack"].rpartition(", on ") for row in rows)
    gray_box = list(dict.fromkeys(attack for attack, found, _ in made_on if found))
    heads = ["recipe", "epochs", "benign", *gray_box]
    heads += [*(f"adaptive {a.name}" for a in ADAPTIVE), *(a.name for a in BLACK_BOX)]
    table = []
    for name, entry in results["recipes"].items():
        by_attack = {row["attack"]: f"{100 * row['accuracy']:.1f}" for row in entry["rows"]}
        cells = [name, str(entry.get("epochs", "")), by_attack["none"]]
        for attack in gray_box:
            sources = ("on this classifier", "on the undefended one")
            cells.append(" / ".join(by_attack.get(f"{attack}, {s}", "-") for s in sources))
        cells += [by_attack.get(attack.name, "-") for attack in (*ADAPTIVE, *BLACK_BOX)]
        table.append(cells)
    lines += [text_table(heads, table, markdown=True), ""]
    lines += ["Recipes, as arguments of `fd_keras.hardening.Recipe`:", ""]
    for name, entry in results["recipes"].items():
        if "table" in entry:
            settings = ", ".join(f"{k}={v!r}" for k, v in entry["arguments"].items())
            lines.append(
                f"* `{name}`: {entry['table']}; {settings}; {entry['policy']}, epoch "
                f"{entry['best_epoch']} of {entry['epochs']}"
            )
    return "\n".join([*lines, "", f"{about['machine']}; {about['versions']}.", ""])


# Axes of the figure: a title, and the attack's name.
DRAWN = {
    "gray-box, FGSM .0156": "FGSM .0156, on this classifier",
    "gray-box, BIM .008": "BIM .008, on this classifier",
    "adaptive, PGD-20 2/255": "PGD-20 2/255",
    "adaptive, PGD-20 4/255": "PGD-20 4/255",
}


def trade_off(results):
    """A figure of accuracy under attack over benign accuracy."""
    figure = empty_figure(9.6, 7.2)
    axes = figure.subplots(2, 2, sharex=True)
    names = {}
    for axis, (title, attack) in zip(axes.flat, DRAWN.items()):
        for number, (name, entry) in enumerate(results["recipes"].items()):
            accuracies = {row["attack"]: row for row in entry["rows"]}
            row, benign = accuracies[attack], 100 * accuracies["none"]["accuracy"]
            height = 100 * row["accuracy"]
            low, high = (100 * end for end in row["interval"])
            interval = [[height - low], [high - height]]
            axis.errorbar(benign, height, interval, fmt="o", color=f"C{number}", elinewidth=1)
            names.setdefault(axis, []).append(NamedPoint(name, benign, height))
        axis.set_title(title, fontsize=10)
        axis.grid(True, alpha=0.25, linewidth=0.6)
        axis.margins(x=0.25)
    figure.supxlabel("benign accuracy, %")
    figure.supylabel("right both benign and attacked, %, with 95 % intervals")
    for axis, points in names.items():
        place_names(figure, axis, points)
    return figure


def published(result, out):
    """Weights for the builder in ``../shared/models``, and the table."""
    (inner,) = [layer for layer in result.model.layers if isinstance(layer, keras.Model)]
    model = cifar10.resnet14()
    model.set_weights(inner.get_weights())
    model.save_weights(str(out / "harden_cifar10.weights.h5"))
    result.table.save(out / "harden_cifar10_table.json")


def main():
    parser = argument_parser(__doc__, smoke=True)
    parser.add_argument("--recipe", action="append", choices=list(RECIPES))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--policy", default="mixed_bfloat16", help="float32, or a Keras policy")
    parser.add_argument("--train-images", type=int, help="fewer of them")
    parser.add_argument("--images", type=int, default=500, help="test images under attack")
    parser.add_argument("--publish", choices=list(RECIPES))
    parser.add_argument("--fast", action="store_true", help="leave out the slow attacks")
    arguments = parsed(parser)
    names = list(dict.fromkeys([*(arguments.recipe or []), *filter(None, [arguments.publish])]))
    if arguments.smoke:
        arguments.epochs, arguments.train_images, arguments.images = 1, 256, 8
        arguments.fast = True
    images, labels = cifar10.images_and_labels()
    count = 64 if arguments.smoke else VALIDATION
    validation, test = slice(count), slice(count, 128 if arguments.smoke else None)
    data = training_images(arguments.train_images)
    console = Console(stderr=True)
    reporter = Reporter(images[test], labels[test], arguments, console)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "harden_cifar10.json"
    results = json.loads(path.read_text()) if path.exists() else {"recipes": {}}
    results["about"] = {
        "training_images": len(data[1]),
        "validation_images": count,
        "test_images": reporter.seen,
        "undefended": reporter.undefended,
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": f"tensorflow {tf.__version__}, keras {keras.__version__}",
    }

    def keep(name, entry):
        results["recipes"][name] = entry
        write_json(path, results)
        write_text(path.with_suffix(".md"), page(results))
        with atomic_path(path.with_suffix(".png")) as temporary:
            trade_off(results).savefig(temporary, dpi=110)

    original = grey_level_model()
    keep("undefended", {"rows": reporter.rows("undefended", original, None)})
    keep("layer only", {"rows": reporter.rows("layer only", original, STANDARD)})
    for name in names:
        validated = images[validation], labels[validation]
        result, seconds = hardened(name, data, validated, arguments, console)
        console.print(f"{name}\n{result}", highlight=False)
        keep(
            name,
            {
                "table": result.table.name,
                "arguments": RECIPES[name][1],
                "policy": arguments.policy,
                "epochs": arguments.epochs,
                "best_epoch": result.best_epoch,
                "within_benign_loss": result.within_benign_loss,
                "seconds": round(seconds),
                "validation_rows": list(result.rows),
                "history": list(result.history),
                "rows": reporter.rows(name, result.model, result.table),
            },
        )
        if name == arguments.publish:
            published(result, arguments.out)


if __name__ == "__main__":
    main()
