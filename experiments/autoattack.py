"""Standard AutoAttack behind quantisers and on hardened classifiers, from a GPU.

1. ``python -m experiments.autoattack --pack DIRECTORY --trained TRAINED`` writes the cells: tables
   of ``experiments.quantizers``' results in front of the classifier as it is, and classifiers that
   ``experiments/harden_gpu.py`` has trained.
2. ``python experiments/autoattack_gpu.py DIRECTORY ATTACKED`` attacks them.
3. ``python -m experiments.autoattack --attacked ATTACKED --trained TRAINED`` counts the images that
   fd_keras' layer and Keras still get right, and writes the page. Earlier cells stay in the file.

Without ``--trained``, or where it lacks a recipe, the weights are those that are published, if any.

The images are the first 500 of the test split of ``experiments.quantizers``, among those that
the undefended classifier gets right. They chose neither tables nor epochs nor recipes.
"""

import collections
import json
import pathlib

import numpy as np
import tensorflow as tf

from experiments import cifar10, quantizers
from experiments.harden_cifar10 import weights_file
from experiments.harden_recipes import PLANS, TABLES, arrays_of, layer_of, load_arrays
from experiments.harness import CACHE, RESULTS, argument_parser, parsed, write_json, write_text
from experiments.networks import classifier_and_data
from fd_keras import FeatureDistillation, preset_table
from fd_keras._console import text_table

FILE = "autoattack"
IMAGES = 500
# A change of a pixel is kept in so many parts of epsilon, so that what comes back is small.
LEVELS = 127
UNTRAINED = 2.0  # epsilon of cells without training, grey levels of 255
EPSILONS = (2.0, 4.0, 1.0)  # of hardened classifiers, in the order in which they are run
RECIPES = (
    *("soft-4-eps2-long", "none-eps2-long", "soft-4-eps2-all", "none-eps2-all"),
    *("soft-4-eps2-half-transferred-teacher-long", "none-eps2-half-transferred-teacher-long"),
    *("soft-4-eps2-transferred-teacher-long", "none-eps2-transferred-teacher-long"),
    *("soft-4-eps4-transferred-teacher-long", "none-eps4-transferred-teacher-long"),
    "round-4-eps2",
)
UNDEFENDED = "undefended"
PARTS = ("APGD-CE, straight-through", "APGD-CE", "APGD-T", "FAB-T", "Square")


def data():
    """The images as uint8, and their classes."""
    classifier, everything = classifier_and_data("cifar10")
    reported = quantizers.Subject("cifar10", classifier, everything, CACHE).reported[:IMAGES]
    images, labels = cifar10.images_and_labels()
    return images[reported], labels[reported]


def untrained_cells():
    """Cells of tables in front of the classifier as it is."""
    rows = json.loads((RESULTS / f"{quantizers.FILE}.json").read_text())["cifar10"]["rows"]
    for row in rows:
        family, target = row["family"], row["target"]
        name = f"untrained-{family.replace(', ', '-').replace(' ', '-')}"
        if row["step"] is not None:
            name += f"-{target}"
        yield {
            "name": name,
            **{key: row[key] for key in ("family", "target", "step")},
            "table": layer_of(table_of(row)),
            "weights": weights_of(UNDEFENDED),
            "epsilon": UNTRAINED,
        }


def table_of(cell):
    """The table of a cell, or of a row of ``experiments.quantizers``; ``None`` for no layer."""
    if "recipe" in cell:
        table = None if cell["recipe"] == UNDEFENDED else TABLES[PLANS[cell["recipe"]].table]
        return None if table is TABLES["none"] else table
    if cell["family"] == quantizers.NONE:
        return None
    if cell["family"] == quantizers.PRESET:
        return preset_table(quantizers.PRESET)
    return quantizers.table_of(cell["family"], cell["step"])


def hardened_cells():
    """Cells of classifiers that were trained."""
    for epsilon in EPSILONS:
        alone = {"recipe": UNDEFENDED, "table": None, "weights": weights_of(UNDEFENDED)}
        if epsilon != UNTRAINED:  # that one is among the others
            yield {"name": f"undefended-at-{epsilon:g}", **alone, "epsilon": epsilon}
        for recipe in RECIPES:
            yield {
                "name": f"{recipe}-at-{epsilon:g}",
                "recipe": recipe,
                "table": layer_of(TABLES[PLANS[recipe].table]),
                "weights": weights_of(recipe),
                "epsilon": epsilon,
            }


def pack(directory, trained):
    """Write everything that the attacks need."""
    directory.mkdir(parents=True, exist_ok=True)
    images, labels = data()
    np.savez_compressed(directory / "images.npz", images=images, labels=labels)
    for recipe in (UNDEFENDED, *RECIPES):
        classifier = classifier_of(recipe, trained)
        if classifier is not None:
            np.savez(directory / weights_of(recipe), **arrays_of(classifier))
    cells = [{**cell, "levels": LEVELS} for cell in (*untrained_cells(), *hardened_cells())]
    write_json(directory / "cells.json", cells)


def weights_of(recipe):
    """The file of a recipe's weights."""
    return f"{recipe}.npz"


def classifier_of(recipe, trained):
    """The classifier of a recipe; ``None`` where its weights are neither trained nor published."""
    classifier = cifar10.resnet14()
    found = trained and trained / weights_of(recipe)
    published = weights_file(RESULTS, recipe)
    if recipe == UNDEFENDED:
        return classifier
    if found and found.exists():
        load_arrays(classifier, found)
    elif published.exists():
        classifier.load_weights(str(published))
    else:
        return None
    return classifier


def behind(cell, trained):
    """A cell's classifier behind its layer: a function from images in [0, 1] to classes."""
    classifier = classifier_of(cell.get("recipe", UNDEFENDED), trained)
    if classifier is None:
        raise SystemExit(f"--trained must hold {cell['weights']}, which was attacked.")
    table = table_of(cell)
    layer = FeatureDistillation(table, value_range=(0, 1)) if table else (lambda images: images)

    @tf.function
    def classes(images):
        return tf.argmax(classifier(layer(images)), -1)

    return lambda images: classes(tf.constant(images, tf.float32)).numpy()


def counted(cell, changes, images, labels, trained):
    """How many images are right, and how many are and stay so under attack."""
    classes = behind(cell, trained)
    benign = classes(images / 255) == labels
    step = cell["epsilon"] / 255 / cell["levels"]
    attacked = np.clip(images / 255 + step * changes, 0, 1)
    return int(benign.sum()), int((benign & (classes(attacked) == labels)).sum())


def results(attacked, trained):
    """All cells that are attacked here, by name."""
    images, labels = data()
    cells = {}
    for path in sorted(attacked.glob("*.json")):
        cell = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz")) as archive:
            changes = archive["changes"].astype(np.float64)
        count = len(changes)
        benign, right = counted(cell, changes, images[:count], labels[:count], trained)
        figures = {"images": count, "benign": benign, "right": right}
        cells[cell["name"]] = {**cell, **figures, "tensorflow": tf.__version__}
        print(cell["name"], cell["counts"], benign, right, flush=True)
    return cells


def page(found):
    """The results as Markdown."""
    cells = found["cells"]
    lines = [
        "# AutoAttack behind quantisers and on hardened classifiers",
        "",
        f"ResNet-14 on {cells[0]['images']} lossless CIFAR-10 images that chose nothing, all of "
        "which the undefended classifier gets right. AutoAttack in L-inf through the layer: APGD "
        "on cross-entropy and targeted APGD of 100 steps, targeted FAB of 100 and Square with 5000 "
        "queries, each on the images that withstood those before (torchattacks 3.5.1). The "
        "gradient of soft thresholding is the true one; that of rounding a smooth surrogate's, "
        "after APGD with the identity's (BPDA). Right under attack: right both benign and "
        "attacked. In %, in brackets 95 % intervals.",
        "",
        f"Attacked on {_devices(cells)} by `experiments/autoattack_gpu.py`; counted with "
        f"fd_keras' layer and Keras. {_square(cells)}",
        "",
        "## Nothing trained",
        "",
        "Tables of [quantizers.md](quantizers.md): the largest step that keeps a benign accuracy "
        "on other images.",
        "",
        _untrained_table(cells),
        "",
        "## Hardened classifiers",
        "",
        "Recipes of [harden_cifar10.md](harden_cifar10.md); that page leaves out "
        "`half-transferred`, where a quarter of each batch is attacked through the layer and half "
        "on the original classifier.",
        "",
        _hardened_table(cells),
        "",
        "## What each part leaves",
        "",
        "Images that are right after each part, as PyTorch counts them, and in the end as fd_keras "
        "does.",
        "",
        text_table(
            ["cell", "benign", *PARTS, "fd_keras"],
            [
                [
                    cell["name"],
                    *(str(cell["counts"].get(part, "")) for part in ("benign", *PARTS)),
                    str(cell["right"]),
                ]
                for cell in [*_untrained(cells), *(c for c in cells if "recipe" in c)]
            ],
            markdown=True,
        ),
        "",
        f"`python -m experiments.{FILE} --attacked ATTACKED --trained TRAINED`; "
        f"TensorFlow {', '.join(sorted({cell['tensorflow'] for cell in cells}))}.",
        "",
    ]
    return "\n".join(lines)


def _devices(cells):
    """Where the cells were attacked."""
    names = (cell["device"].replace("cpu", "CPU") for cell in cells)
    counts = collections.Counter(names)
    if len(counts) == 1:
        return f"one {next(iter(counts))}"
    return " and ".join(f"{name} ({count} cells)" for name, count in counts.items())


def _square(cells):
    """What is to be said of the last part where it is missing."""
    whole = [cell["counts"] for cell in cells if "Square" in cell["counts"]]
    if len(whole) == len(cells):
        return ""
    found = sum(counts["FAB-T"] - counts["Square"] for counts in whole)
    return (
        f"The machine's time ended before Square in {len(cells) - len(whole)} of {len(cells)} "
        f"cells, those without a number in its column. In the {len(whole)} others, it found "
        f"{found or 'no'} image{'' if found == 1 else 's'} that the parts before had not."
    )


def _untrained(cells):
    families = (quantizers.NONE, *quantizers.FAMILIES, quantizers.PRESET)

    def place(cell):
        return -(cell["target"] or 0), families.index(cell["family"])

    return sorted((cell for cell in cells if "family" in cell), key=place)


def _untrained_table(cells):
    rows = [
        [
            "" if cell["step"] is None else str(cell["target"]),
            cell["family"],
            str(cell["step"] or ""),
            _percent(cell, "benign"),
            _percent(cell, "right"),
        ]
        for cell in _untrained(cells)
    ]
    heads = ["chosen for", "layer", "luma step", "benign", f"AutoAttack {UNTRAINED:g}/255"]
    return text_table(heads, rows, markdown=True)


def _hardened_table(cells):
    by_recipe = {}
    for cell in cells:
        if "recipe" in cell or cell["family"] == quantizers.NONE:
            by_recipe.setdefault(cell.get("recipe", UNDEFENDED), {})[cell["epsilon"]] = cell
    epsilons = sorted({epsilon for found in by_recipe.values() for epsilon in found})
    rows = [
        [
            recipe,
            _percent(next(iter(found.values())), "benign"),
            *(_percent(found[e], "right") if e in found else "" for e in epsilons),
        ]
        for recipe, found in sorted(by_recipe.items(), key=lambda item: _place(item[0]))
    ]
    heads = ["recipe", "benign", *(f"AutoAttack {epsilon:g}/255" for epsilon in epsilons)]
    return text_table(heads, rows, markdown=True)


def _place(recipe):
    return (UNDEFENDED, *RECIPES).index(recipe)


def _percent(cell, what):
    return quantizers.percent([cell[what], cell["images"]])


def main():
    parser = argument_parser(__doc__, cache=None)
    parser.add_argument("--pack", type=pathlib.Path, help="where to write the cells")
    parser.add_argument("--attacked", type=pathlib.Path, help="what autoattack_gpu.py wrote")
    parser.add_argument("--trained", type=pathlib.Path, help="what harden_gpu.py wrote")
    arguments = parsed(parser)
    if arguments.pack:
        pack(arguments.pack, arguments.trained)
    if arguments.attacked:
        path = arguments.out / f"{FILE}.json"
        earlier = json.loads(path.read_text())["cells"] if path.exists() else []
        cells = {cell["name"]: cell for cell in earlier}
        cells |= results(arguments.attacked, arguments.trained)
        found = {"cells": list(cells.values())}
        write_json(path, found)
        write_text(arguments.out / f"{FILE}.md", page(found))


if __name__ == "__main__":
    main()
