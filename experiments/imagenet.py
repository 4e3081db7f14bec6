"""The ImageNet sample and MobileNetV2 of ``../shared``, and a cache of attacked images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from experiments.shared_models import SHARED, load_builder
from fd_keras.data.files import read_image
from fd_keras.evaluation import art_classifier, bim, fgsm, predicted_classes

# Attacks take minutes; the file holds 800 MB.
CACHE = Path(__file__).parents[1] / ".cache" / "attacked-imagenet.npz"

# The strengths of Liu et al. and of Feature Squeezing, .0078 and .004 of pixels from 0 to 1.
ATTACKS = {attack.name: attack for attack in (fgsm(1.989), bim(1.02, 0.51, 10))}


@dataclass
class AttackedImages:
    """Images that the undefended model classifies correctly, benign and attacked, in [0, 1]."""

    labels: np.ndarray
    sets: dict  # "benign" and the names of ATTACKS -> float32 (n, 224, 224, 3)

    def split(self, name):
        """The "validation" or the "test" split: images with even or with odd positions."""
        part = slice({"validation": 0, "test": 1}[name], None, 2)
        return AttackedImages(self.labels[part], {name: x[part] for name, x in self.sets.items()})


def mobilenet():
    """The classifier: RGB in [0, 1] to 1000 logits."""
    build = load_builder("mobilenet_v2").build_mobilenet_v2
    return build(SHARED / "models" / "mobilenet_v2_imagenet_weights.npz")


def images_and_labels():
    """All images as uint8, and their classes."""
    folders = sorted(path for path in (SHARED / "data" / "imagenet-sample").iterdir())
    # One image of every second class of the thousand.
    pairs = [(path, 2 * i) for i, folder in enumerate(folders) for path in folder.glob("*.png")]
    images = np.stack([read_image(path).pixels for path, _ in pairs])
    return images, np.array([label for _, label in pairs])


def attacked_images(model, cache):
    """Gray-box attacks on the correctly classified images; read from ``cache`` if it exists."""
    cache = Path(cache)
    if cache.exists():
        with np.load(cache) as archive:
            stored = dict(archive)
        return AttackedImages(stored.pop("labels"), stored)
    images, labels = images_and_labels()
    scaled = (images / 255).astype("float32")
    right = predicted_classes(model, scaled) == labels
    scaled, labels = scaled[right], labels[right]
    classifier = art_classifier(model, value_range=(0, 1))
    sets = {"benign": scaled}
    for name, attack in ATTACKS.items():
        parts = [
            attack.generate(classifier, scaled[i : i + 50], labels[i : i + 50])
            for i in track(range(0, len(scaled), 50), description=name)
        ]
        sets[name] = np.concatenate(parts)
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_suffix(".part.npz")
    np.savez(temporary, labels=labels, **sets)
    temporary.replace(cache)
    return AttackedImages(labels, sets)
