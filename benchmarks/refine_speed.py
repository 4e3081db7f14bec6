"""Time of a search's trial beside the model's own prediction of the same images.

Run: ``python -m benchmarks.refine_speed [--images 64] [--rounds 5]``
"""

import argparse
import itertools

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.interleaved import median_seconds
from experiments import imagenet
from fd_keras import QuantizationTable
from fd_keras.classifier import Classifier
from fd_keras.refinement.scoring import ScoredImages, TableScorer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    classifier = Classifier(imagenet.mobilenet(), value_range=(0, 1), from_logits=True)
    images, labels = imagenet.images_and_labels()
    unit = np.float32(images[: arguments.images] / 255)
    sets = {"benign": unit, "attacked": unit}
    scorer = TableScorer(classifier, ScoredImages(labels[: arguments.images], sets))
    steps = itertools.cycle((20.0, 30.0, 40.0))  # a new table for every trial

    def trial(spins):
        table = np.full((8, 8), next(steps))
        return lambda: scorer.score(QuantizationTable(table, "ycbcr", spins))

    seconds = median_seconds(
        {
            "the model alone": lambda: [classifier.logits(unit) for _ in sets],
            **{f"a trial, {spins} grids": trial(spins) for spins in (1, 2, 4)},
        },
        arguments.rounds,
    )
    table = Table("", "ms per image", "overhead, %", title=f"MobileNetV2, {len(unit)} images twice")
    alone = seconds["the model alone"]
    for name, value in seconds.items():
        per_image = 1e3 * value / (2 * len(unit))
        table.add_row(name, f"{per_image:.2f}", f"{100 * (value / alone - 1):+.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
