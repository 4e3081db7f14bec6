"""Attacks on a Dask cluster of two processes: the report is that of one process."""

import pickle

import cloudpickle
import keras
import numpy as np
import pytest

from fd_keras.classifier import Classifier
from fd_keras.distribution import connected
from fd_keras.evaluation import Protocol, evaluate, fgsm, pgd, workbench
from fd_keras.evaluation.defences import CANDIDATES, defence
from fd_keras.evaluation.store import ArrayStore

pytest.importorskip("art", reason="ART is not installed")

PROTOCOL = Protocol("small", "", gray_box=(fgsm(8),), adaptive=(pgd(8, 3),))
DEFENCES = ["soft8"]


@pytest.fixture(autouse=True)
def chunks_of_sixteen(monkeypatch):
    """Images this small would be attacked all at once."""
    monkeypatch.setattr(workbench, "_CHUNKS", (16, 16))


@pytest.fixture(scope="module")
def client():
    with connected(workers=2) as client:
        yield client


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(1)
    layers = [keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    return Classifier(keras.Sequential(layers), value_range=(0, 1))


@pytest.fixture(scope="module")
def data(classifier):
    """40 images, three chunks of 16 and fewer, that the classifier gets right."""
    images = np.random.default_rng(1).random((40, 16, 16, 3), np.float32)
    return images, classifier.logits(images).argmax(-1)


def test_the_report_is_that_of_one_process(client, classifier, data, tmp_path, monkeypatch):
    def report(name, client=None):
        cache = tmp_path / name
        return evaluate(classifier, data, DEFENCES, PROTOCOL, cache_dir=cache, client=client)

    alone = report("alone")
    assert not (tmp_path / "alone" / "models").exists()
    # Nothing is left to attack here: in this process, attacks would fail.
    monkeypatch.setattr("fd_keras.evaluation.workbench.Workbench._attacked", None)
    spread = report("spread", client)
    assert spread.rows == alone.rows
    assert report("spread").rows == alone.rows
    arrays = [{p.name for p in (tmp_path / n).rglob("*.npy")} for n in ("alone", "spread")]
    assert arrays[0] == arrays[1]


def test_workers_that_do_not_see_the_cache_are_named(
    client, classifier, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(ArrayStore, "keeps", lambda *_: False)
    with pytest.raises(RuntimeError, match="3 of 3 parts .* FGSM 8/255, part .: it is not in"):
        evaluate(classifier, data, ["liu2019"], PROTOCOL, cache_dir=tmp_path, client=client)


def test_a_part_that_fails_is_named_and_the_others_are_kept(
    client, classifier, data, tmp_path, monkeypatch
):
    def generate(*_, **__):
        raise ValueError("out of luck")

    def unlucky(*arguments):
        """An attack that does not reach the workers whole."""
        attack = fgsm(*arguments)
        object.__setattr__(attack, "generate", generate)
        return attack

    protocol = Protocol("small", "", gray_box=(fgsm(4), unlucky(8)))
    with pytest.raises(RuntimeError, match="3 of 3 parts .* FGSM 8/255, part .: out of luck"):
        evaluate(classifier, data, ["liu2019"], protocol, cache_dir=tmp_path, client=client)
    kept = {path.name for path in tmp_path.rglob("*.npy")}
    assert len(kept) == 3


def test_a_model_that_cannot_be_saved_is_named(client, data, tmp_path):
    class Unsaved(keras.Sequential):
        def save(self, *_, **__):
            raise RuntimeError("no way")

    model = Unsaved([keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    classifier = Classifier(model, value_range=(0, 1))
    images = data[0], classifier.logits(data[0]).argmax(-1)
    with pytest.raises(ValueError, match="`classifier` must be a model that Keras can save"):
        evaluate(classifier, images, [], PROTOCOL, cache_dir=tmp_path, client=client)


# Of the others, none is attacked through.
SENT = ["none", "liu2019", "soft8"]
SENT += [found[0] for family, found in CANDIDATES.items() if family not in ("TVM", "quilting")]


@pytest.mark.parametrize("setting", SENT)
def test_defences_reach_workers_as_they_are(setting):
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
    own = defence(setting)
    expected = own(images)
    # After a call: graphs that it built must not travel.
    again = pickle.loads(cloudpickle.dumps(own))
    np.testing.assert_array_equal(again(images), expected)
    assert (again.name, again.settings, again.seed) == (own.name, own.settings, own.seed)
