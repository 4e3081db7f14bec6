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
from fd_keras.evaluation.workbench import AttackedImages, Workbench, _gradients
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
    "bde732f41534af914db561c9349125165527f9ef1b0553a325533300f9579ed7",
    "c7f523414d685be5f5bbd11a155470fb9214205e17e7ede043216cf3d4445a1e",
}


def test_keys_are_those_of_earlier_versions(classifier, images, tmp_path, monkeypatch):
    """A change to any of them would make every published figure take hours again."""
    monkeypatch.setattr(art, "__version__", "1.20.1")
    monkeypatch.setitem(vars(classifier), "fingerprint", "f" * 64)  # depends on Keras' version
    attack, layer = PROTOCOLS["linf-sweep"].adaptive[0], defence("liu2019")
    with progress_bars(None) as progress:
        bench = Workbench(classifier, ArrayStore(tmp_path), seed=1, eot_draws=4, progress=progress)
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
