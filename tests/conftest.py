"""Images and folders that several test modules use."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest


@pytest.fixture(scope="session")
def photos():
    """Two photographs of scikit-learn, uint8 (2, 427, 640, 3)."""
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)


@pytest.fixture(scope="session")
def shared():
    """The folder of development data that stands beside a checkout, where there is one."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the development data in ../shared is not here")
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)
