"""Hardened ResNet-14 on CIFAR-10: recipes side by side, under attackers who know them or not.

Run: ``python -m experiments.harden_cifar10 --trained DIRECTORY [--plan NAME ...]`` reports on what
``experiments/harden_gpu.py`` has trained; without ``--trained``, ``fd_keras.harden`` trains each
plan of ``experiments.harden_recipes`` first, in five minutes an epoch on two cores. It goes on
where it was stopped, and rows of other plans stay in the JSON file. ``--publish`` writes the
weights and tables of ``PUBLISHED``. With ``--smoke`` it takes a minute or two, and its figures mean
nothing. AutoAttack is in ``experiments.autoattack``.

The first 500 of the 2000 lossless images are the validation split, which chooses each training's
epoch and the published recipes; the others are the test split. Under attack, an image counts as
right where the hardened classifier behind its layer gets both it and its attacked version right,
among the images that the *undefended* classifier gets right: ``fd_keras.evaluate`` would take those
that the hardened one gets right alone. Attacks, gradients and cache are those of ``evaluate``.
"""

import functools
import json
import pathlib
import platform

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from experiments import cifar10
from experiments.harden_recipes import (
    LEARNING_RATE,
    PLANS,
    TABLES,
    VALIDATION,
    grey_level_model,
    load_arrays,
    training_images,
)
from experiments.harness import argument_parser, parsed, write_json, write_text
from fd_keras import FeatureDistillation, encode, harden
from fd_keras._console import progress_bars, text_table
from fd_keras._files import atomic_path
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages
from fd_keras.evaluation import PROTOCOLS, pgd
from fd_keras.evaluation.accuracies import accuracy_row, wilson_interval
from fd_keras.evaluation.defences import defence, no_defence
from fd_keras.evaluation.store import ArrayStore
from fd_keras.evaluation.workbench import AttackedImages, Workbench, correct
from fd_keras.hardening import Training
from fd_keras.hardening.recipe import warm_up_cosine
from fd_keras.plots import PALETTE, NamedPoint, empty_figure, place_names

FILE = "harden_cifar10"
GRAY_BOX = tuple(a for a in PROTOCOLS["evademl-cifar10"].gray_box if a.family in ("FGSM", "BIM"))
ADAPTIVE = tuple(pgd(level, 40) for level in (1, 2, 4))
SOURCES = ("on this classifier", "on the undefended one")
UNDEFENDED, LAYER_ONLY = "undefended", "layer only, soft-4"
ADAPTIVE_IMAGES = 300
NAMED = ("none-eps2-all", "soft-4-eps2-all", "none-eps2-long", "soft-4-eps2-long")
# Behind soft thresholding, for one pass; behind a certified table, for two.
PUBLISHED = ("soft-4-eps2-long", "certified-2-eps0-teacher")


def flipped_and_shifted(images, seed):
    """Each image flipped or not, and shifted by up to four pixels over its repeated edge."""
    images = tf.image.stateless_random_flip_left_right(images, seed)
    count, size = tf.shape(images)[0], images.shape[1]
    shifts = tf.random.stateless_uniform((2, count, 1), seed, -4, 5, tf.int32)
    positions = tf.clip_by_value(tf.range(size) + shifts, 0, size - 1)
    images = tf.gather(images, positions[0], axis=1, batch_dims=1)
    return tf.gather(images, positions[1], axis=2, batch_dims=1)


@functools.cache
def training_data(count):
    """Images and classes, decoded once."""
    return training_images(count)


def trained_here(name, validation, arguments, console):
    """The classifier of a plan, trained by ``fd_keras.harden``, and what is known of it."""
    plan = PLANS[name]
    data = training_data(arguments.train_images)
    epochs = 1 if arguments.smoke else plan.epochs
    schedule = warm_up_cosine(LEARNING_RATE, len(data[1]) // 128 * epochs)
    training = Training(
        epochs=epochs,
        optimizer=keras.optimizers.SGD(schedule, 0.9, nesterov=True, weight_decay=plan.decay),
        augment=flipped_and_shifted,
        dtype_policy="mixed_bfloat16",
    )
    suffix = "-smoke" if arguments.smoke else ""
    result = harden(
        grey_level_model(),
        FeatureDistillation(TABLES[plan.table]),
        data,
        validation,
        plan.recipe,
        training,
        directory=arguments.cache / "hardening" / f"{name}{suffix}",
        verbose=console,
    )
    benign, adaptive = (result.rows[n]["accuracy"] for n in (-2, -1))
    about = {"trained_with": "fd_keras.harden", "best_epoch": result.best_epoch}
    about |= {"within_benign_loss": result.within_benign_loss}
    about |= {"validation": {"benign": benign, "adaptive": adaptive}}
    return result.model, about


def trained_elsewhere(name, directory):
    """The classifier of a plan as ``experiments/harden_gpu.py`` left it."""
    classifier = cifar10.resnet14()
    load_arrays(classifier, directory / f"{name}.npz")
    found = json.loads((directory / f"{name}.json").read_text())
    (best,) = (h for h in found["history"] if h["epoch"] == found["best_epoch"])
    about = {"trained_with": "experiments/harden_gpu.py", "device": found["device"]}
    about |= {key: found[key] for key in ("best_epoch", "within_benign_loss")}
    about["validation"] = {key: best[key] for key in ("benign", "adaptive")}
    return grey_level_model(classifier), about


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
        layer = no_defence() if table is TABLES["none"] else defence(table)
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
                count, attack = len(images.images), images.attack
                kept = right(images, bench) & benign[:count]
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
            for attack in (*GRAY_BOX, *ADAPTIVE):
                if attack in GRAY_BOX:
                    images = AttackedImages(self._selection, attack)
                    for bench, source in zip((own, theirs), SOURCES):
                        rows.append(row(images, bench, "gray-box", f", {source}"))
                else:
                    images = AttackedImages(self._selection, attack, layer).first(ADAPTIVE_IMAGES)
                    rows.append(row(images, own, "adaptive"))
        return rows

    def two_passes(self, model, table):
        """How many images of the test split are right once encoded: that many are certified."""
        classifier = Classifier(model, value_range=(0, 255), from_logits=True)
        encoded = encode(self._all.images, table)
        distilled = defence(table)(np.float32(encoded)) / 255
        right = correct(classifier.logits(distilled), self._all.labels)
        return [int(right.sum()), self.seen]


def _validated(entry):
    benign, adaptive = (100 * entry["validation"][key] for key in ("benign", "adaptive"))
    attacked = f", {adaptive:.1f} % under PGD-10 of that epsilon" if entry["epsilon"] else ""
    return f"{benign:.1f} % benign{attacked}"


def percent(count, total):
    """A share with its interval."""
    low, high = (100 * end for end in wilson_interval(count, total))
    return f"{100 * count / total:.1f} [{low:.0f}-{high:.0f}]"


def _cell(row):
    return percent(row["correct"], row["count"]) if row else "-"


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
        "attacked. In %, in brackets 95 % intervals.",
        "",
        f"Gray-box: attacks on {about['gray_box_images']} images, made without knowledge of the "
        "table, on this classifier and on the undefended one, which is the paper's gray-box. "
        f"Adaptive: PGD-40 through the table on {about['adaptive_images']} images, with the true "
        "gradient of soft thresholding, and for rounding a smooth surrogate gradient and then the "
        "identity's (BPDA).",
        "",
        "Recipes are named after the table, the epsilon of the attack in training, and what else "
        "differs from 12 epochs in which one step attacks half of each batch.",
        "",
        f"![benign accuracy and accuracy under attack]({FILE}.png)",
        "",
    ]
    gray = [f"{attack.name}, {source}" for attack in GRAY_BOX for source in SOURCES]
    heads = ["recipe", "epochs", "benign", *gray, *(attack.name for attack in ADAPTIVE)]
    rows = []
    for name, entry in results["recipes"].items():
        by_attack = {row["attack"]: row for row in entry["rows"]}
        cells = [name, str(entry.get("epochs", "")), _cell(by_attack["none"])]
        rows.append(cells + [_cell(by_attack.get(a)) for a in [*gray, *(a.name for a in ADAPTIVE)]])
    lines += [text_table(heads, rows, markdown=True), ""]
    lines += ["AutoAttack through the table: [autoattack.md](autoattack.md).", ""]
    lines += _two_passes(results["recipes"])
    lines += ["## Recipes", ""]
    for name, entry in results["recipes"].items():
        if "settings" in entry:
            lines.append(
                f"* `{name}`: {entry['table']}; {entry['settings']}; epoch {entry['best_epoch']} "
                f"of {entry['epochs']}; validation: {_validated(entry)}; trained with "
                f"`{entry['trained_with']}`"
            )
    lines += [
        "",
        "`fd_keras.harden` takes five minutes an epoch on two cores. These were "
        f"trained on one {about['device']} by `experiments/harden_gpu.py`, whose step in PyTorch "
        "is that of `fd_keras.harden` but for random numbers (a test holds one against the other); "
        "the weights were attacked and evaluated by fd_keras. Recipes with N-FGSM, which `harden` "
        "does not have, are left out: they won nothing on the validation split.",
        "",
        f"`python -m experiments.{FILE} --trained DIRECTORY`; {about['machine']}; "
        f"{about['versions']}.",
        "",
    ]
    return "\n".join(lines)


def _two_passes(entries):
    """Certified accuracy."""
    rows = [
        [name, entry["table"], percent(*entry["two_passes"])]
        for name, entry in entries.items()
        if "two_passes" in entry
    ]
    if not rows:
        return []
    heads = ["recipe", "encoded for", "right, and provably so within the radius"]
    text = (
        "Of all images of the test split: right once they are encoded, without a classifier to "
        "guide the encoder. Every image reaches the radius of its table."
    )
    return ["## Two passes", "", text, "", text_table(heads, rows, markdown=True), ""]


# Axes of the figure: a title, and the attack's name.
DRAWN = {
    "gray-box, FGSM .0156, on the undefended one": "FGSM .0156, on the undefended one",
    "gray-box, FGSM .0156, on this classifier": "FGSM .0156, on this classifier",
    "adaptive, PGD-40 2/255": "PGD-40 2/255",
    "adaptive, PGD-40 4/255": "PGD-40 4/255",
}
# Points of the figure, by their tables.
FAMILIES = {
    "no layer": ("none",),
    "soft thresholding": ("soft", "soft-4", "soft-16", "gentle-4", "gentle-16"),
    "rounding": ("round", "round-4"),
}


def trade_off(results):
    """A figure of accuracy under attack over benign accuracy, of classifiers that were attacked."""
    figure = empty_figure(9.6, 7.6)
    axes = figure.subplots(2, 2, sharex=True)
    for axis, (title, attack) in zip(axes.flat, DRAWN.items()):
        for color, (label, tables) in zip(("grey", "orange", "blue"), FAMILIES.items()):
            entries = [
                entry
                for name, entry in results["recipes"].items()
                if entry.get("epsilon") and PLANS[name].table in tables
            ]
            points = [_accuracies(entry, ("none", attack)) for entry in entries]
            rows = [row for entry in entries for row in entry["rows"] if row["attack"] == attack]
            if not points:
                continue
            across, up = zip(*points)
            ends = [[100 * abs(end - row["accuracy"]) for end in row["interval"]] for row in rows]
            style = {"color": PALETTE[color], "markersize": 5, "elinewidth": 0.5}
            axis.errorbar(across, up, list(zip(*ends)), fmt="o", label=label, **style)
        axis.set_title(title, fontsize=10)
        axis.grid(True, alpha=0.25, linewidth=0.6)
        axis.margins(x=0.15, y=0.15)
    axes[0, 0].legend(loc="lower left", fontsize=8)
    figure.supxlabel("benign accuracy on the test split, %")
    figure.supylabel("right both benign and attacked, %")
    for axis, attack in zip(axes.flat, DRAWN.values()):
        names = [name for name in NAMED if name in results["recipes"]]
        entries = [results["recipes"][name] for name in names]
        places = [_accuracies(entry, ("none", attack)) for entry in entries]
        place_names(figure, axis, [NamedPoint(n, *place) for n, place in zip(names, places)])
    return figure


def _accuracies(entry, attacks):
    rows = {row["attack"]: row for row in entry["rows"]}
    return tuple(100 * rows[attack]["accuracy"] for attack in attacks)


def weights_file(directory, name):
    """Where the weights of a published plan are."""
    return directory / f"{FILE}_{name}.weights.h5"


def published(name, model, out):
    """Weights for the builder in ``../shared/models``, and the table."""
    (inner,) = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    classifier = cifar10.resnet14()
    classifier.set_weights(inner.get_weights())
    classifier.save_weights(str(weights_file(out, name)))
    TABLES[PLANS[name].table].save(out / f"{FILE}_{name}_table.json")


def main():
    parser = argument_parser(__doc__, smoke=True)
    parser.add_argument(
        "--plan", action="append", choices=list(PLANS), help="default: all, or PUBLISHED to train"
    )
    parser.add_argument("--trained", type=pathlib.Path, help="what harden_gpu.py wrote")
    parser.add_argument("--train-images", type=int, help="fewer of them")
    parser.add_argument("--images", type=int, default=500, help="test images under attack")
    parser.add_argument("--publish", action="store_true", help="write the published weights")
    arguments = parsed(parser)
    names = arguments.plan or list(PLANS if arguments.trained else PUBLISHED)
    unknown = [name for name in names if PLANS[name].trials and not arguments.trained]
    if unknown:
        parser.error(f"only experiments/harden_gpu.py can train {', '.join(unknown)}")
    if arguments.smoke:
        arguments.train_images, arguments.images = 256, 8
        names = arguments.plan or ["soft-4-eps2"]
    images, labels = cifar10.images_and_labels()
    count = 64 if arguments.smoke else VALIDATION
    validation, test = slice(count), slice(count, 128 if arguments.smoke else None)
    console = Console(stderr=True)
    reporter = Reporter(images[test], labels[test], arguments, console)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{FILE}.json"
    results = json.loads(path.read_text()) if path.exists() else {"recipes": {}}
    results["about"] = {
        "training_images": arguments.train_images or 56000,
        "validation_images": count,
        "test_images": reporter.seen,
        "gray_box_images": arguments.images,
        "adaptive_images": min(ADAPTIVE_IMAGES, arguments.images),
        "undefended": reporter.undefended,
        "device": results.get("about", {}).get("device", "machine"),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": f"tensorflow {tf.__version__}, keras {keras.__version__}",
    }

    def keep(name, entry):
        results["recipes"][name] = {**results["recipes"].get(name, {}), **entry}
        write_json(path, results)
        write_text(path.with_suffix(".md"), page(results))
        with atomic_path(path.with_suffix(".png")) as temporary:
            trade_off(results).savefig(temporary, dpi=110)

    for name, table in ((UNDEFENDED, TABLES["none"]), (LAYER_ONLY, TABLES["soft-4"])):
        if name not in results["recipes"]:
            keep(name, {"rows": reporter.rows(name, grey_level_model(), table)})
    for name in names:
        if arguments.trained:
            model, about = trained_elsewhere(name, arguments.trained)
            results["about"]["device"] = about.pop("device")
        else:
            validated = images[validation], labels[validation]
            model, about = trained_here(name, validated, arguments, console)
        plan, table = PLANS[name], TABLES[PLANS[name].table]
        entry = {"table": table.name, "settings": plan.text(), "epsilon": plan.options["epsilon"]}
        entry |= {"epochs": plan.epochs, **about}
        entry["rows"] = reporter.rows(name, model, table)
        if name.startswith("certified"):
            entry["two_passes"] = reporter.two_passes(model, table)
        keep(name, entry)
        if arguments.publish and name in PUBLISHED:
            published(name, model, arguments.out)


if __name__ == "__main__":
    main()
