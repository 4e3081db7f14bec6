"""The names under which attacked images and logits are kept."""

import keras
import numpy as np
import pytest

from fd_keras import QuantizationTable
from fd_keras._console import progress_bars
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages
from fd_keras.evaluation import PROTOCOLS
from fd_keras.evaluation.defences import defence, distillation
from fd_keras.evaluation.store import ArrayStore
from fd_keras.evaluation.workbench import AttackedImages, Workbench, _gradients, _until_wrong
from fd_keras.kernels import GRADIENTS

art = pytest.importorskip("art", reason="ART is not installed")


@pytest.fixture
def classifier():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    return Classifier(model)


@pytest.fixture
def images():
    pixels = (np.arange(2 * 8 * 8 * 3) % 256).reshape(2, 8, 8, 3).astype(np.uint8)
    return LabelledImages(pixels, np.array([1, 3]), (0.0, 255.0))


# sha256 of all that decides the logits of benign images, those of images attacked without the
# defence and through it, and the attacked images themselves.
KEYS = {
    "030bf092a0618e12cec68752cb9a0fa2237979b5b8350df26c207d931e57cf18",
    "6a2fd1a1df0475a1e5019664e293561ec886877abb43427406bd42cd5ae58b37",
    "0d4370565aa1a026fbe8fc9c4948dc7abe5a6f374f08be43bc50fc384b56b5b2",
    "a520f692439e151e3748e78f484f203aaa80ee75082c76f18902dfd9d7143ca5",
    "11882b45f59929ae95193dca6c2728babc4c1e96a7940e3c3ed508cbfd652502",
}


def test_keys_are_those_of_earlier_versions(classifier, images, tmp_path, monkeypatch):
    """A change to any of them would make every published figure take hours again."""
    monkeypatch.setattr(art, "__version__", "1.20.1")
    attack, layer = PROTOCOLS["linf-sweep"].adaptive[0], defence("liu2019")
    with progress_bars(None) as progress:
        settings = {"seed": 1, "eot_draws": 4, "progress": progress}
        # The classifier's own depends on Keras' version.
        bench = Workbench(classifier, ArrayStore(tmp_path), **settings, identity="f" * 64)
        bench.logits(AttackedImages(images), defence("bits:5"))
        bench.logits(AttackedImages(images, attack), layer)
        bench.logits(AttackedImages(images, attack, layer), layer)
    assert {path.stem for path in tmp_path.rglob("*.npy")} == KEYS


@pytest.mark.parametrize(
    ("quantizer", "gradients"), [("round", GRADIENTS[::-1]), ("soft", GRADIENTS[:1])]
)
def test_soft_tables_are_attacked_once_by_their_own_gradient(images, quantizer, gradients):
    table = QuantizationTable(np.full((8, 8), 40.0), quantizer=quantizer)
    attack = PROTOCOLS["linf-sweep"].adaptive[0]
    assert _gradients(AttackedImages(images, attack, distillation(table))) == gradients


@pytest.mark.parametrize(
    ("through", "family", "expected"),
    [
        ("liu2019", "PGD", True),
        ("none", "PGD", True),
        (None, "PGD", False),  # images of gray-box attacks are distilled afterwards
        ("slq", "PGD", False),  # the defender makes another draw
        ("liu2019", "Square", False),
    ],
)
def test_attacks_stop_only_where_the_classifier_they_fool_is_the_one_that_counts(
    images, through, family, expected
):
    attack = next(a for a in PROTOCOLS["linf-sweep"].attacks if a.family == family)
    behind = None if through is None else defence(through)
    assert _until_wrong(AttackedImages(images, attack, behind)) is expected


def test_a_workbench_attacks_images_of_several_sizes(tmp_path):
    """A worker of a cluster keeps it from one evaluation to the next."""
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    with progress_bars(None) as progress:
        store = ArrayStore(tmp_path)
        bench = Workbench(Classifier(model), store, seed=1, eot_draws=1, progress=progress)
        for size in (8, 16):
            pixels = np.full((1, size, size, 3), 90, np.uint8)
            given = LabelledImages(pixels, np.array([1]), (0.0, 255.0))
            attacked = AttackedImages(given, PROTOCOLS["linf-sweep"].gray_box[0])
            assert bench.pixels(attacked).shape == (1, size, size, 3)
