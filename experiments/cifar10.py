"""The lossless CIFAR-10 images and the ResNet-14 of ``../shared``."""

import numpy as np

from experiments.shared_models import SHARED, load_builder


def resnet14():
    """The classifier: RGB in [0, 1] to 10 logits."""
    build = load_builder("cifar10_resnet14").build_cifar10_resnet14
    return build(SHARED / "models" / "cifar10_resnet14_weights.npz")


def images_and_labels():
    """All images as uint8, and their classes."""
    with np.load(SHARED / "data" / "cifar10_lossless_2000.npz") as archive:
        return archive["x"], archive["y"].astype(np.int64).ravel()
