"""Draw the README's picture: one digit, attacked, and distilled in one pass and in two.

The images and the classifier are those of the demo. The digit is the first of the test images that
the classifier gets right, encoded or not, and that the attack changes to another digit both times:
how often the layer gives the right digit back is another question, which the demo's report answers.

Run: python -m experiments.overview_picture
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure

from fd_keras import FeatureDistillation, certified_table, encode
from fd_keras._files import atomic_path
from fd_keras.demo import build_classifier, load_digits, train_classifier
from fd_keras.evaluation import art_classifier, bim
from fd_keras.plots import PALETTE
from fd_keras.tables import QuantizationTable

OUT = Path("docs/assets/overview.png")
SEED = 1
EPSILON = 8
CANDIDATES = 40
AMPLIFIED = 4


class Pass(NamedTuple):
    """A row of the picture for each candidate; images ``(n, 32, 32, 1)`` from 0 to 255."""

    title: str
    before: np.ndarray
    attacked: np.ndarray
    distilled: np.ndarray
    left: np.ndarray  # of the perturbation, once distilled


def answers(model: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The digit that the classifier names for each image, and its probability."""
    probabilities = keras.ops.softmax(model.predict(images, verbose=0)).numpy()
    return probabilities.argmax(-1), probabilities.max(-1)


def attacked_pass(
    model: keras.Model, title: str, before: np.ndarray, labels: np.ndarray, table: QuantizationTable
) -> Pass:
    """Attack images without knowledge of the layer, and distil them."""
    attack = bim(EPSILON, EPSILON / 4)
    attacked = attack.generate(art_classifier(model), before, labels)
    layer = FeatureDistillation(table)
    distilled, untouched = np.asarray(layer(attacked)), np.asarray(layer(before))
    return Pass(title, before, attacked, distilled, distilled - untouched)


def picture(model: keras.Model, rows: list[Pass], index: int, digit: int) -> Figure:
    """Two rows of four images with the classifier's answers."""
    figure = Figure(figsize=(8.4, 4.9), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    for number, row in enumerate(rows):
        panels = {
            ("stored" if number else "benign"): row.before[index],
            f"attacked, {EPSILON}/255": row.attacked[index],
            "distilled": row.distilled[index],
            f"left of the attack, x{AMPLIFIED}": 128 + AMPLIFIED * row.left[index],
        }
        for place, (title, image) in enumerate(panels.items()):
            axes = figure.add_subplot(2, 4, 4 * number + place + 1)
            axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=10)
            if place == 0:
                axes.set_ylabel(row.title, fontsize=11)
            if place < 3:
                (named,), (probability,) = answers(model, image[np.newaxis])
                color = PALETTE["green"] if named == digit else PALETTE["red"]
                text = f"“{named}”, {probability:.0%}"
                axes.set_xlabel(text, fontsize=11, color=color, weight="bold")
            else:
                largest = np.abs(row.left[index]).max()
                text = f"up to {largest:.0f} grey levels" if largest else "nothing"
                axes.set_xlabel(text, fontsize=11)
    return figure


def main() -> None:
    """Train, attack and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(SEED)
    digits = load_digits(SEED)
    model = build_classifier()
    train_classifier(model, digits.train)
    images, labels = digits.test.images[:CANDIDATES], digits.test.labels[:CANDIDATES]
    certified = certified_table(EPSILON)
    one = attacked_pass(model, "one pass", images, labels, FeatureDistillation().quantization_table)
    stored = np.asarray(encode(images, certified), np.float32)
    two = attacked_pass(model, "two passes", stored, labels, certified)
    rows = [one, two]
    right = np.all([answers(model, row.before)[0] == labels for row in rows], axis=0)
    fooled = np.all([answers(model, row.attacked)[0] != labels for row in rows], axis=0)
    index = int(np.flatnonzero(right & fooled)[0])
    for row in rows:
        back = (answers(model, row.distilled)[0] == labels)[right & fooled]
        print(f"{row.title}: {back.sum()} of {back.size} digits are right again once distilled")
    with atomic_path(arguments.out) as temporary:
        picture(model, rows, index, labels[index]).savefig(temporary, format="png", dpi=110)
    print(f"test image {index}: {arguments.out}")


if __name__ == "__main__":
    main()
