"""The ImageNet sample and MobileNetV2 of ``../shared``, attacked once and kept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from experiments.shared_models import SHARED, load_builder
from fd_keras.data.files import read_image
from fd_keras.evaluation import art_classifier, bim, fgsm, predicted_classes

# Attacks take minutes; the file holds 800 MB.
CACHE = Path(__file__).parents[1] / ".cache" / "attacked-imagenet.npz"

# The strengths of Liu et al. and of Feature Squeezing, for pixels from 0 to 1.
ATTACKS = {attack.name: attack for attack in (fgsm(1.989), bim(1.02, 0.51, 10))}


@dataclass
class AttackedImages:
    """Images that the undefended model gets right, float32 in [0, 1], and their attacks."""

    labels: np.ndarray
    sets: dict  # "benign" and the names of ATTACKS -> (n, 224, 224, 3)

    def half(self, number):
        """Every second image: 0 to tune on, 1 to report on."""
        return AttackedImages(
            self.labels[number::2], {name: x[number::2] for name, x in self.sets.items()}
        )


def mobilenet():
    """The classifier: RGB in [0, 1] to 1000 logits."""
    build = load_builder("mobilenet_v2").build_mobilenet_v2
    return build(SHARED / "models" / "mobilenet_v2_imagenet_weights.npz")


def images_and_labels():
    """All images as uint8, and their classes."""
    folders = sorted(path for path in (SHARED / "data" / "imagenet-sample").iterdir())
    # One image of every second class, in the order of all thousand.
    pairs = [(path, 2 * i) for i, folder in enumerate(folders) for path in folder.glob("*.png")]
    images = np.stack([read_image(path).pixels for path, _ in pairs])
    return images, np.array([label for _, label in pairs])


def attacked_images(model, cache):
    """Gray-box attacks on the images the model gets right; read from ``cache`` if there."""
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
