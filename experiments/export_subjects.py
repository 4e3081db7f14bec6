"""The classifiers, tables and images of ``experiments.export_proof``."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from experiments.imagenet import images_and_labels, mobilenet
from fd_keras import (
    CoefficientStatistics,
    QuantizationTable,
    design_table,
    preset_table,
    refine,
)
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages
from fd_keras.demo import load_digits, train_classifier
from fd_keras.evaluation import Attack, art_classifier, fgsm, predicted_classes
from fd_keras.refinement import Search

# Numbers of known images for the ranges of int8 bodies, and for the search.
REPRESENTATIVE = 100
SEARCHED_IMAGES = 64
TRIALS = 12
_PART = 50


@dataclass
class Subject:
    """A classifier and images that it gets right without the layer, in its value range."""

    name: str
    title: str
    model: keras.Model
    value_range: tuple
    attack: Attack
    known: np.ndarray
    known_labels: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    @property
    def threat_models(self):
        """The threat model of the images, by kind."""
        attacked = f"gray-box {self.attack.family} eps {self.attack.unit_epsilon:.4g}"
        return {"benign": "benign", "attacked": attacked}

    def attacked(self, images, labels):
        """The images after the attack on the classifier without the layer."""
        classifier = art_classifier(
            self.model, value_range=self.value_range, input_shape=self.images.shape[1:]
        )
        starts = range(0, len(images), _PART)
        parts = [(images[i : i + _PART], labels[i : i + _PART]) for i in starts]
        return np.concatenate([self.attack.generate(classifier, *part) for part in parts])

    def searched_table(self, folder):
        """The table of a small search, by way of its JSON file, as from ``fd-keras refine``."""
        images, labels = self.known[:SEARCHED_IMAGES], self.known_labels[:SEARCHED_IMAGES]
        result = refine(
            Classifier(self.model, value_range=self.value_range),
            LabelledImages(images, labels, self.value_range),
            {self.threat_models["attacked"]: self.attacked(images, labels)},
            Search(max_trials=TRIALS),
            max_benign_loss=0.05,
            baselines=[],
            directory=folder / "search",
        )
        result.table.save(folder / "table.json")
        return QuantizationTable.load(folder / "table.json")


def imagenet_subject():
    """MobileNetV2; every second image is for searching and int8 ranges, the others for proofs."""
    model = mobilenet()
    images, labels = images_and_labels()
    scaled = (images / 255).astype(np.float32)
    right = predicted_classes(model, scaled) == labels
    known, proving = right.copy(), right.copy()
    known[1::2] = proving[0::2] = False
    return Subject(
        "MobileNetV2",
        "MobileNetV2 1.0/224 on ImageNet images",
        model,
        (0, 1),
        fgsm(1.989),
        scaled[known],
        labels[known],
        scaled[proving],
        labels[proving],
    )


@keras.saving.register_keras_serializable("benchmarks")
class DigitsNetwork(keras.Model):
    """A classifier as a subclass of ``keras.Model``."""

    def __init__(self, width=16, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.scale = keras.layers.Rescaling(1 / 255)
        self.stem = keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="relu")
        self.left = keras.layers.Conv2D(2 * width, 3, strides=2, padding="same")
        self.right = keras.layers.Conv2D(2 * width, 1, strides=2, padding="same")
        self.norm = keras.layers.BatchNormalization(momentum=0.9)
        self.flatten = keras.layers.Flatten()
        self.head = keras.layers.Dense(10)

    def call(self, inputs, training=False):
        x = self.stem(self.scale(inputs))
        x = self.norm(self.left(x) + self.right(x), training=training)
        return self.head(self.flatten(keras.activations.relu(x)))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def digits_subject(folder):
    """A subclassed model, saved and loaded; the proofs are on test images."""
    keras.utils.set_random_seed(1)
    digits, path = load_digits(seed=1), folder / "digits.keras"
    trained = DigitsNetwork()
    train_classifier(trained, digits.train)
    trained.save(path)
    model = keras.models.load_model(path)
    right = [
        part[np.flatnonzero(predicted_classes(model, part.images) == part.labels)]
        for part in (digits.train, digits.test)
    ]
    return Subject(
        "subclassed",
        "a subclassed Keras model on handwritten digits",
        model,
        (0, 255),
        fgsm(8),
        right[0].images,
        right[0].labels,
        right[1].images,
        right[1].labels,
    )


def tables_of(subject, folder: Path):
    """Presets, for colour images a designed table too, and a searched one, by name."""
    tables = {name: preset_table(name) for name in ("liu2019", "zigzag15", "jpeg:75")}
    if subject.images.shape[-1] == 3:
        low, high = subject.value_range
        levels = np.rint((subject.known - low) * (255 / (high - low))).astype(np.uint8)
        statistics = CoefficientStatistics.from_data(levels, color_space="ycbcr")
        tables["balanced"] = preset_table("balanced")
        tables["designed for 2/255"] = design_table(statistics, 2.0, cycle_spins=1)
    return {**tables, "searched": subject.searched_table(folder)}
