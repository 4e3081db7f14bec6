"""A table of soft thresholds for attackers who know it, without training.

Images of ``../shared``; those that ResNet-14 alone gets right are split alternately into a
validation and a test split by ``refine``. Keras Tuner searches thresholds, split and grids by the
accuracy under PGD through the table. Run: ``python -m experiments.adaptive_table``; finished parts
stay in the JSON file and in ``--cache``. ``--smoke`` takes a minute, and its figures mean nothing.
"""

import dataclasses
import json

import numpy as np
from rich.console import Console

from experiments.harness import argument_parser, parsed, write_json, write_text
from experiments.networks import classifier_and_data, in_order
from experiments.quantizers import Subject, percent, table_of
from fd_keras import QuantizationTable, refine
from fd_keras._console import text_table
from fd_keras.evaluation import Protocol, fgsm, pgd
from fd_keras.evaluation.selection import select
from fd_keras.refinement import Search

FILE = "adaptive_table"
EPSILON = 2.0
ITERATIONS = 10  # while choosing; figures are of experiments.quantizers' PGD
# Of images that are right without a table. With those that become right behind it, it comes to
# less than 3 points of accuracy on all images.
MAX_BENIGN_LOSS = 0.05
GRIDS = 16
FLAT = 14.0  # luma step of the table beside it
IMAGES = 2000
TRIALS = 16


def searched(classifier, sample, trials, arguments, console):
    """The best table that Keras Tuner finds."""
    result = refine(
        classifier,
        sample,
        Protocol("fgsm", "One attack; the objective does not count it.", gray_box=(fgsm(EPSILON),)),
        Search(
            max_trials=trials,
            cycle_spins=(4, GRIDS),
            quantizers=("soft",),
            adaptive=[pgd(EPSILON, ITERATIONS)],
            adaptive_images=arguments.images,
            objective="adaptive",
        ),
        max_benign_loss=MAX_BENIGN_LOSS,
        baselines=(),
        max_images=arguments.images,
        directory=arguments.cache / FILE,
        cache_dir=arguments.cache,
        verbose=console,
    )
    return result.table


def figures(subject, table, test, wrong):
    """Counts of the test split, and of the images that are wrong without a table."""
    images, labels = subject.images, subject.labels
    kept = subject.right(table, images[test], test)
    gained = subject.right(table, images[wrong], wrong)
    withstood = subject.withstands_pgd(table, EPSILON, test)
    before = 1 - len(wrong) / len(labels)
    after = before * kept.mean() + gained.sum() / len(labels)
    return {
        "benign": [int(kept.sum()), len(kept)],
        "PGD-40": [int(withstood.sum()), len(withstood)],
        "accuracy": [before, after],
    }


def page(results):
    """The results as Markdown."""
    rows = [
        [
            name,
            percent(found["benign"]),
            f"{100 * (found['accuracy'][1] - found['accuracy'][0]):+.1f}",
            percent(found["PGD-40"]),
        ]
        for name, found in results.items()
    ]
    heads = ["table", "benign", "accuracy on all images, points", "PGD-40 2/255"]
    count = next(iter(results.values()))["benign"][1]
    return "\n".join(
        [
            "# A table for attackers who know it, without training",
            "",
            f"ResNet-14 on lossless CIFAR-10 images; {count} images of the test split, which chose "
            "nothing and which the classifier gets right alone; accuracy in %, in brackets 95 % "
            "intervals. PGD-40 at 2/255 through the table, with the true gradient. Accuracy on all "
            "images: the benign column, weighted with the classifier's accuracy, and those that "
            "are right behind the table alone, as a change in points. Searched: the best of Keras "
            f"Tuner's {TRIALS} trials, by all images of the validation split under PGD-10.",
            "",
            text_table(heads, rows, markdown=True),
            "",
            f"`python -m experiments.{FILE}`",
            "",
        ]
    )


def main():
    parser = argument_parser(__doc__, smoke=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--trials", type=int, default=TRIALS)
    arguments = parsed(parser)
    trials = 2 if arguments.smoke else arguments.trials
    if arguments.smoke:
        arguments.images = min(arguments.images, 40)
    console = Console(stderr=True)
    classifier, data = classifier_and_data("cifar10")
    subject = Subject("cifar10", classifier, data, arguments.cache)
    sample = in_order(data)
    used = select(classifier, sample, max_images=arguments.images, batch_size=100).indices
    test = used[1::2]
    wrong = np.setdiff1d(
        np.arange(len(data[1])), np.concatenate([subject.chosen_on, subject.reported])
    )
    flat = dataclasses.replace(table_of("soft, 16 grids", FLAT), cycle_spins=GRIDS)
    target = arguments.out / f"{FILE}.json"
    results = json.loads(target.read_text()) if target.exists() else {}

    def keep(name, make):
        if name not in results:
            table = make()
            results[name] = {**figures(subject, table, test, wrong), "table": table.to_dict()}
            write_json(target, results)
            write_text(arguments.out / f"{FILE}.md", page(results))
            print(name, results[name]["benign"], results[name]["PGD-40"], flush=True)
        return QuantizationTable.from_dict(results[name]["table"])

    keep(f"flat, luma {FLAT:g}, {GRIDS} grids", lambda: flat)
    keep("searched", lambda: searched(classifier, sample, trials, arguments, console))


if __name__ == "__main__":
    main()
