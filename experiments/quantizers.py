"""Compare rounding and soft thresholding at equal benign accuracy, under all attackers.

Tables are flat in YCbCr, with steps for chroma twice those for luma. Of each family, the largest
step is taken that keeps a benign accuracy on the validation split, the first half of the images;
figures are of the test split, the second. Run: ``python -m experiments.quantizers
[--network cifar10] [--autoattack 200]``; what was run earlier of other networks stays in the
results, and what was computed in ``--cache``, so that a run that was stopped resumes where it was.
With ``--smoke`` it takes a minute, and its figures mean nothing.

Gray-box attacks are made on the classifier alone. Adaptive ones go through the layer: with the
true gradient of soft thresholding, and with either stand-in for that of rounding, of which an image
has to withstand both. They leave an image once it is misclassified.
"""

import functools
import json
import platform

import numpy as np
import tensorflow as tf

from experiments.harness import argument_parser, parsed, write_json, write_text
from experiments.networks import RUNS, classifier_and_data
from fd_keras import QuantizationTable, preset_table
from fd_keras._console import text_table
from fd_keras._files import atomic_path
from fd_keras.data.labelled import array_hash
from fd_keras.evaluation import PROTOCOLS
from fd_keras.evaluation.accuracies import wilson_interval
from fd_keras.evaluation.attacks import autoattack, pgd
from fd_keras.evaluation.classifiers import attackable
from fd_keras.evaluation.defences import distillation
from fd_keras.evaluation.store import ArrayStore
from fd_keras.kernels import GRADIENTS, clip_straight_through, distil
from fd_keras.plots import PALETTE, empty_axes

FILE = "quantizers"
TARGETS = (0.95, 0.97, 0.92, 0.99)  # benign accuracies, in the order in which they are run
# Grey levels of 255. MobileNetV2 alone withstands hardly anything from 1 on, hence the smaller one.
EPSILONS = {"cifar10": (1.0, 2.0), "imagenet": (0.5, 1.0, 2.0)}
PLOTTED = {"cifar10": 2.0, "imagenet": 0.5}
AUTOATTACK = 2.0
AUTOATTACKED = (0.95, 0.92, 1.0, None)  # what tables are chosen for; ``None``: the preset
# Hours on a processor; ``experiments.autoattack`` has them, from a GPU.
NOT_AUTOATTACKED = {"cifar10": ("soft, 16 grids",), "imagenet": ()}
ITERATIONS = 40
CHROMA = 2
# Steps to choose from, and those where even the smallest of them loses too much.
STEPS = tuple(float(step) for step in np.round(2 * 1.08 ** np.arange(60), 1))
SMALL_STEPS = tuple(float(step) for step in np.round(2 * 1.08 ** np.arange(-40.0, 0), 2))

NONE = "no layer"
FAMILIES = {
    "rounding": ("round", 1),
    "soft": ("soft", 1),
    "soft, 4 grids": ("soft", 4),
    "soft, 16 grids": ("soft", 16),
}
PRESET = "soft8"
COLORS = dict(zip(FAMILIES, ("blue", "ochre", "orange", "violet")))
BATCHES = {"cifar10": 50, "imagenet": 10}
SEED = 1


def table_of(family, step):
    """A flat table of a family."""
    quantizer, spins = FAMILIES[family]
    steps = np.full((3, 8, 8), step)
    steps[1:] *= CHROMA
    provenance = {"source": "experiments.quantizers", "name": f"{family} {step:g}"}
    return QuantizationTable(steps, "ycbcr", spins, provenance, quantizer)


class Subject:
    """A classifier with its validation and test split, and what was computed of them."""

    def __init__(self, network, classifier, data, cache, limit=None):
        self.classifier, self._store = classifier, ArrayStore(cache)
        self._batch = BATCHES[network]
        images, labels = data
        if limit:
            images, labels = images[:limit], labels[:limit]
        self.images, self.labels = images, labels
        right = np.flatnonzero(self._classes(images) == labels)
        self.chosen_on, self.reported = (
            right[(right >= len(images) // 2) == later] for later in (False, True)
        )

    def right(self, table, images, indices):
        """Which images are classified correctly behind a table."""
        return self._classes(images, table) == self.labels[indices]

    def gray_box(self, attack, indices):
        """Images attacked without a layer."""
        images, labels = self.images[indices], self.labels[indices]

        def attacked():
            return attack.generate(self._through(None), images, labels)

        return self.kept(["gray-box", attack.to_dict()], indices, None, attacked)

    def withstands_pgd(self, table, epsilon, indices):
        """Which images are still right after PGD through the table, with every gradient."""
        found = self.right(table, self.images[indices], indices)
        rounds = table is not None and table.quantizer == "round"
        for gradient in GRADIENTS[::-1] if rounds else GRADIENTS[:1]:
            for part in np.array_split(np.flatnonzero(found), -(-found.sum() // self._batch) or 1):
                if len(part):
                    found[part] = self._pgd(table, epsilon, gradient, indices[part])
        return found

    def withstands_autoattack(self, table, epsilon, indices):
        """Which images are still right after PGD and AutoAttack through the table.

        AutoAttack runs on those alone that withstood PGD, as its parts do one after the other.
        """
        found = self.withstands_pgd(table, epsilon, indices)
        left = indices[found]
        images, labels = self.images[left], self.labels[left]
        attack = autoattack(epsilon)

        def attacked():
            return attack.generate(self._through(table), images, labels)

        if len(left):
            pixels = self.kept(["adaptive", attack.to_dict()], left, table, attacked)
            found[found] = self.right(table, pixels, left)
        return found

    def _pgd(self, table, epsilon, gradient, indices):
        attack = pgd(epsilon, ITERATIONS)

        def withstood():
            images, labels = self.images[indices], self.labels[indices]
            through = self._through(table, gradient)
            attacked = attack.generate(through, images, labels, until_wrong=True)
            return self.right(table, attacked, indices)

        return self.kept([attack.to_dict(), "until wrong", gradient], indices, table, withstood)

    def _through(self, table, gradient="smooth"):
        """The classifier behind a table, for an attacker."""
        behind = None if table is None else distillation(table)
        return attackable(self.classifier, self.images.shape[1:], behind, gradient=gradient)

    def _classes(self, images, table=None):
        graph, steps = self._graph(_settings(table)), _steps(table)
        starts = range(0, len(images), self._batch)
        return np.concatenate(
            [graph(images[start : start + self._batch], steps) for start in starts]
        )

    @functools.cache  # noqa: B019
    def _graph(self, settings):
        @tf.function(reduce_retracing=True)
        def classes(images, steps):
            distilled = _distilled(images, steps, *settings) if settings else images
            return tf.argmax(self.classifier.unit_logits(distilled), -1)

        return classes

    def kept(self, what, indices, table, compute):
        origin = {
            "quantizers": what,
            "model": self.classifier.fingerprint,
            "images": array_hash(self.images[indices], self.labels[indices]),
            "table": table and [table.steps.tolist(), table.cycle_spins, table.quantizer],
            "seed": SEED,
        }
        return self._store.array(origin, compute)


def _settings(table):
    """What a graph is built for."""
    return table and (table.quantizer, table.cycle_spins)


def _steps(table):
    return tf.constant(np.ones((3, 8, 8)) if table is None else table.steps, tf.float32)


def _distilled(images, steps, quantizer, spins):
    pixels = distil(
        *(255 * images, steps),
        color_space="ycbcr",
        cycle_spins=spins,
        quantizer=quantizer,
    )
    return clip_straight_through(pixels / 255, 0.0, 1.0)


def chosen_step(subject, family, target):
    """The largest step that keeps the benign accuracy on the validation split, by bisection."""
    images = subject.images[subject.chosen_on]

    def kept(step):
        return subject.right(table_of(family, step), images, subject.chosen_on).mean() >= target

    def largest(steps):
        low, high = -1, len(steps)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if kept(steps[middle]) else (low, middle)
        return None if low < 0 else steps[low]

    def found():
        step = largest(STEPS) or largest(SMALL_STEPS)
        if step is None:
            raise ValueError(f"no step of {family} keeps {target} of the images")
        return np.array(step)

    what = ["largest step", FAMILIES[family], CHROMA, list(STEPS), target]
    return float(subject.kept(what, subject.chosen_on, None, found))


def figure(right):
    """Numbers of correct images and of all."""
    return [int(right.sum()), len(right)]


def row_of(subject, table, attacks, family, target, arguments):
    """All figures of a table of a family that was chosen for a benign accuracy."""
    reported = subject.reported
    first = reported[: arguments.images]
    found = {"benign": figure(subject.right(table, subject.images[reported], reported))}
    for attack in attacks:
        pixels = subject.gray_box(attack, first)
        found[f"gray-box {attack.name}"] = figure(subject.right(table, pixels, first))
    for epsilon in EPSILONS[arguments.network]:
        right = subject.withstands_pgd(table, epsilon, first)
        found[pgd_name(epsilon)] = figure(right)
    left_out = family in NOT_AUTOATTACKED[arguments.network]
    if arguments.autoattack and target in AUTOATTACKED and not left_out:
        right = subject.withstands_autoattack(table, AUTOATTACK, first[: arguments.autoattack])
        found[f"AutoAttack {AUTOATTACK:g}/255"] = figure(right)
    return found


def pgd_name(epsilon):
    return f"PGD-{ITERATIONS} {epsilon:g}/255"


def run(network, arguments):
    """Yield the rows of a network so far, after each table."""
    classifier, data = classifier_and_data(network)
    limit = 2 * arguments.images if arguments.smoke else None
    subject = Subject(network, classifier, data, arguments.cache, limit)
    protocol = PROTOCOLS[RUNS[network]["protocol"]]
    attacks = [a for a in protocol.gray_box if a.family in ("FGSM", "BIM")]
    families = dict(list(FAMILIES.items())[:2]) if arguments.smoke else FAMILIES
    alone = {"family": NONE, "target": 1.0, "step": None}
    rows = [{**alone, "figures": row_of(subject, None, attacks, NONE, 1.0, arguments)}]
    preset = row_of(subject, preset_table(PRESET), attacks, PRESET, None, arguments)
    rows.append({"family": PRESET, "target": None, "step": None, "figures": preset})
    for target in TARGETS[:1] if arguments.smoke else TARGETS:
        for family in families:
            step = chosen_step(subject, family, target)
            table = table_of(family, step)
            found = row_of(subject, table, attacks, family, target, arguments)
            rows.append({"family": family, "target": target, "step": step, "figures": found})
            print(rows[-1], flush=True)
            yield sorted(rows, key=lambda row: -(row["target"] or 0))


def share(figures, name):
    correct, count = figures[name]
    return correct / count


def gray_mean(figures):
    """Mean accuracy over the gray-box attacks."""
    return np.mean([share(figures, name) for name in figures if name.startswith("gray-box")])


def page(results):
    """The results as Markdown."""
    lines = [
        "# Rounding and soft thresholding",
        "",
        "Flat tables in YCbCr, steps for chroma twice those for luma (soft thresholds are half of "
        "the step), beside each other at equal benign accuracy: the largest step that keeps it on "
        "the first half of the images, the validation split. Accuracy in % on the test split, of "
        "images that the classifier gets right alone; in brackets 95 % intervals. Gray-box: mean "
        "of FGSM and BIM, made on the classifier alone. Adaptive: through the layer, with the true "
        "gradient of soft thresholding, and either stand-in for that of rounding. AutoAttack here "
        "is fd_keras' own; [autoattack.md](autoattack.md) has the standard version on more images.",
        "",
    ]
    for network, found in results.items():
        names = [n for n in found["rows"][0]["figures"] if not n.startswith(("benign", "gray"))]
        table = []
        for row in found["rows"]:
            figures = row["figures"]
            chosen = "" if row["step"] is None else row["target"]
            cells = [chosen, row["family"], row["step"] or ""]
            cells += [percent(figures["benign"]), f"{100 * gray_mean(figures):.1f}"]
            table.append(
                [str(c) for c in cells]
                + [percent(figures[name]) if name in figures else "" for name in names]
            )
        heads = ["chosen for", "layer", "luma step", "benign", "gray-box", *names]
        counts = found["rows"][0]["figures"]
        lines += [
            f"## {RUNS[network]['title']}",
            "",
            f"Benign: {counts['benign'][1]} images; attacks: {counts[names[0]][1]}"
            + "".join(f"; {n}: {counts[n][1]}" for n in names if n.startswith("Auto"))
            + f". {found['about']}.",
            "",
            text_table(heads, table, markdown=True),
            "",
            f"![{network}]({FILE}_{network}.png)",
            "",
        ]
    return "\n".join(lines)


def percent(counts):
    low, high = wilson_interval(*counts)
    return f"{100 * counts[0] / counts[1]:.1f} [{100 * low:.0f}-{100 * high:.0f}]"


def plot(rows, epsilon):
    """Accuracy under adaptive PGD and under gray-box attacks, by benign accuracy."""
    drawn, axes = empty_axes(7.0, 4.5)
    attack = pgd_name(epsilon)
    for family in FAMILIES:
        own = [row["figures"] for row in rows if row["family"] == family]
        own.sort(key=lambda figures: share(figures, "benign"))
        benign = [100 * share(figures, "benign") for figures in own]
        color = PALETTE[COLORS[family]]
        adaptive = [100 * share(figures, attack) for figures in own]
        axes.plot(benign, adaptive, "o-", color=color, label=family)
        axes.plot(benign, [100 * gray_mean(f) for f in own], "s:", color=color, markersize=4)
    alone = next(row["figures"] for row in rows if row["family"] == NONE)
    axes.axhline(100 * share(alone, attack), color=PALETTE["grey"], lw=1, label=NONE)
    axes.set_xlabel("benign accuracy, %")
    axes.set_ylabel("accuracy under attack, %")
    axes.set_title(f"Solid: adaptive, {attack}. Dotted: gray-box, FGSM and BIM.", fontsize=9)
    axes.legend(frameon=False)
    return drawn


def write(out, results):
    write_json(out / f"{FILE}.json", results)
    write_text(out / f"{FILE}.md", page(results))
    for network, found in results.items():
        with atomic_path(out / f"{FILE}_{network}.png") as temporary:
            plot(found["rows"], PLOTTED[network]).savefig(temporary, dpi=120, format="png")


def main():
    parser = argument_parser(__doc__, smoke=True)
    parser.add_argument("--network", choices=list(RUNS), default="cifar10")
    parser.add_argument("--images", type=int, default=300, help="that are attacked")
    parser.add_argument("--autoattack", type=int, default=0, help="images for AutoAttack (slow)")
    arguments = parsed(parser)
    if arguments.smoke:
        arguments.images = min(arguments.images, 12)
    path = arguments.out / f"{FILE}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    command = f"python -m experiments.quantizers --network {arguments.network}"
    command += f" --images {arguments.images} --autoattack {arguments.autoattack}"
    about = f"`{command}`; seed {SEED}, {platform.machine()}, TensorFlow {tf.__version__}"
    for rows in run(arguments.network, arguments):
        results[arguments.network] = {"about": about, "rows": rows}
        write(arguments.out, results)


if __name__ == "__main__":
    main()
