"""Time of one trial of a search, beside that of the model's own predictions.

Run: ``python -m benchmarks.refine_speed [--images 64] [--rounds 5]``
"""

import argparse
import itertools

import numpy as np

from benchmarks.interleaved import median_seconds
from experiments import imagenet
from fd_keras import QuantizationTable
from fd_keras._console import text_table
from fd_keras.classifier import Classifier
from fd_keras.refinement.scoring import TableScorer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    classifier = Classifier(imagenet.mobilenet(), value_range=(0, 1))
    images, labels = imagenet.images_and_labels()
    unit = np.float32(images[: arguments.images] / 255)
    sets = {"benign": unit, "attacked": unit}
    scorer = TableScorer(classifier, labels[: arguments.images], sets)
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
    alone = seconds["the model alone"]
    rows = [
        (name, f"{1e3 * value / (2 * len(unit)):.2f}", f"{100 * (value / alone - 1):+.1f}")
        for name, value in seconds.items()
    ]
    head = (f"MobileNetV2, {len(unit)} images twice", "ms per image", "overhead, %")
    print(text_table(head, rows))


if __name__ == "__main__":
    main()
