"""A classifier of digits and its images, for all tests of hardening."""

import keras
import pytest

from fd_keras import FeatureDistillation, harden
from fd_keras.demo import build_classifier, load_digits, train_classifier
from fd_keras.hardening import Recipe, Training

# Strong attacks, and averages that follow the weights of a short training.
RECIPE = {"epsilon": 16, "averaging": 0.8}


@pytest.fixture(scope="session")
def digits():
    """A weak but real classifier, 240 images to train on and 60 others."""
    keras.utils.set_random_seed(3)
    found = load_digits(seed=3)
    model = build_classifier()
    train_classifier(model, found.train[:600], epochs=3)
    return model, found.train[600:840], found.test[:60]


@pytest.fixture
def layer():
    return FeatureDistillation("liu2019")


@pytest.fixture
def hardened(digits, layer):
    """Call ``harden`` on the digits; recipe and training are given as dictionaries."""
    model, train, test = digits

    def run(recipe=(), training=(), **options):
        return harden(
            model,
            layer,
            (train.images, train.labels),
            (test.images, test.labels),
            Recipe(**{**RECIPE, **dict(recipe)}),
            Training(**{"epochs": 3, "batch_size": 60, **dict(training)}),
            **{"max_benign_loss": 0.1, **options},
        )

    return run
