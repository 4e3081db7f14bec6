"""Adaptive attacks on two passes, within the certified radius and above it.

Images of ``../shared`` are encoded; those that the classifier gets right then are attacked by
PGD through the layer, with the identity's gradient for rounding, a smooth one, and one that aims
coefficients at their half step. An image has to withstand all three. Run: ``python -m
experiments.around_radius``; finished figures stay in the JSON file. ``--smoke`` takes a few images.
"""

import json

import numpy as np

from experiments.harness import argument_parser, parsed, write_json, write_text
from experiments.networks import RUNS, classifier_and_data
from fd_keras import certify, encode
from fd_keras._console import text_table
from fd_keras._files import atomic_path
from fd_keras.evaluation.accuracies import wilson_interval
from fd_keras.evaluation.attacks import pgd
from fd_keras.evaluation.classifiers import attackable
from fd_keras.evaluation.defences import defence
from fd_keras.plots import PALETTE, empty_axes

FILE = "around_radius"
TABLES = {
    "cifar10": ("liu2019", "certified:1", "certified:2"),
    "imagenet": ("certified:1", "certified:2"),
}
IMAGES = {"cifar10": 112, "imagenet": 30}
EPSILONS = {"cifar10": (1.0, 2.0, 3.0, 4.0, 8.0), "imagenet": (1.0, 2.0, 4.0)}
GRADIENTS = ("straight-through", "smooth", "half-step")
ITERATIONS = 40
SEED = 1
COLORS = {"liu2019": "ochre", "certified:1": "blue", "certified:2": "violet"}


def withstood(classifier, table, images, labels, epsilon):
    """Which images keep their class under every attack."""
    attack, right = pgd(epsilon, ITERATIONS), np.ones(len(images), bool)
    for gradient in GRADIENTS:
        through = attackable(classifier, images.shape[1:], defence(table), gradient=gradient)
        left = np.flatnonzero(right)
        if not len(left):
            break
        attacked = attack.generate(through, images[left], labels[left], seed=SEED, until_wrong=True)
        right[left] = through.predict(attacked).argmax(-1) == labels[left]
    return right


def rows_of(classifier, table, scaled, labels, epsilons, row):
    """Yield the row of a table, radius and accuracy by the strength of the attack, as it grows."""
    stored = encode(np.uint8(np.rint(255 * scaled)), table)
    radius = certify(stored, table).linf_radius
    images = np.float32(stored / 255)
    behind = attackable(classifier, images.shape[1:], defence(table))
    right = behind.predict(images).argmax(-1) == labels
    row = {**row, "least_radius": float(radius.min()), "benign": [int(right.sum()), len(right)]}
    for epsilon in epsilons:
        if f"{epsilon:g}" in row:
            continue
        kept = withstood(classifier, table, images[right], labels[right], epsilon)
        row[f"{epsilon:g}"] = [int(kept.sum()), len(kept)]
        inside = radius[right] >= epsilon
        row[f"{epsilon:g} within"] = [int(kept[inside].sum()), int(inside.sum())]
        print(table, epsilon, row[f"{epsilon:g}"], row[f"{epsilon:g} within"], flush=True)
        yield row


def page(results):
    """The results as Markdown."""
    lines = [
        "# Adaptive attacks on two passes around the certified radius",
        "",
        "Images that chose nothing, encoded with a table. Benign: those that are right once "
        f"encoded. Attacked: those, by PGD-{ITERATIONS} through the layer with three stand-ins "
        "for the gradient of rounding (identity, smooth, aimed at the half step), of which an "
        "image has to withstand all; accuracy in % of the images attacked, in brackets 95 % "
        "intervals. Within: of the images whose certified radius is no smaller than the "
        "perturbation. Perturbations in grey levels of 255 (L-inf).",
        "",
    ]
    for network, rows in results.items():
        epsilons = [f"{epsilon:g}" for epsilon in EPSILONS[network]]
        epsilons = [key for key in epsilons if key in next(iter(rows.values()))]
        heads = ["table", "least radius", "benign", *epsilons, "within the radius"]
        table = []
        for name, row in rows.items():
            within = np.sum([row[f"{epsilon} within"] for epsilon in epsilons], axis=0)
            counts = f"{within[0]} of {within[1]}" if within[1] else "-"
            cells = [name, f"{row['least_radius']:.2f}", percent(row["benign"])]
            table.append([*cells, *(percent(row[epsilon]) for epsilon in epsilons), counts])
        count = next(iter(rows.values()))["benign"][1]
        lines += [f"## {RUNS[network]['title']}, {count} images", ""]
        lines += [text_table(heads, table, markdown=True), ""]
        lines += [f"![{network}]({FILE}_{network}.png)", ""]
    return "\n".join([*lines, f"`python -m experiments.{FILE}`, seed {SEED}", ""])


def percent(counts):
    low, high = wilson_interval(*counts)
    return f"{100 * counts[0] / counts[1]:.1f} [{100 * low:.0f}-{100 * high:.0f}]"


def plot(rows):
    """Accuracy by the strength of the attack, with the radii."""
    drawn, axes = empty_axes(6.0, 4.0)
    for name, row in rows.items():
        epsilons = sorted((key for key in row if key.replace(".", "").isdigit()), key=float)
        shares = [100 * row[key][0] / row[key][1] for key in epsilons]
        color = PALETTE[COLORS[name]]
        axes.plot([float(key) for key in epsilons], shares, "o-", color=color, label=name)
        axes.axvline(row["least_radius"], color=color, linestyle=":", linewidth=1)
    axes.set_xlabel("perturbation, grey levels of 255; dotted: certified radius")
    axes.set_ylabel("accuracy under adaptive attack, %")
    axes.set_ylim(-3, 103)
    axes.legend(frameon=False)
    return drawn


def main():
    parser = argument_parser(__doc__, cache=None, smoke=True)
    parser.add_argument("--only", choices=list(RUNS), help="run this network alone")
    arguments = parsed(parser)
    target = arguments.out / f"{FILE}.json"
    results = json.loads(target.read_text()) if target.exists() else {}
    for name in [arguments.only] if arguments.only else list(RUNS):
        classifier, (scaled, labels) = classifier_and_data(name)
        count = 8 if arguments.smoke else IMAGES[name]
        chosen = np.linspace(0, len(scaled) - 1, count).astype(int)
        found = results.setdefault(name, {})
        for table in TABLES[name][:1] if arguments.smoke else TABLES[name]:
            epsilons = EPSILONS[name][: 2 if arguments.smoke else None]
            images = scaled[chosen], labels[chosen]
            for row in rows_of(classifier, table, *images, epsilons, found.get(table, {})):
                found[table] = row
                write_json(target, results)
        with atomic_path(arguments.out / f"{FILE}_{name}.png") as temporary:
            plot(found).savefig(temporary, dpi=120, format="png")
        write_text(arguments.out / f"{FILE}.md", page(results))


if __name__ == "__main__":
    main()
