"""What a result says, and what it refuses to load."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

from fd_keras import FeatureDistillation, HardenResult
from fd_keras.evaluation.accuracies import accuracy_row


@pytest.fixture
def result(digits, layer):
    rows = [
        accuracy_row(
            defence=name,
            family="harden",
            threat_model="benign",
            correct=n,
            count=100,
            split="validation",
        )
        for name, n in (("undefended", 95), ("layer only", 94), ("hardened", 90))
    ]
    return HardenResult(digits[0], layer, rows, [{}], 1, 0.05)


def test_it_says_when_no_epoch_keeps_the_benign_loss(result):
    assert result.within_benign_loss
    assert "No epoch" not in str(result)
    result = dataclasses.replace(result, max_benign_loss=0.04)
    assert not result.within_benign_loss
    assert "+5.0 points, MORE than the permitted 4\nNo epoch kept to it" in str(result)


def test_its_table_names_every_classifier(result):
    title, heads, _, *rows, _ = str(result).splitlines()
    assert title == "Accuracy on 100 validation images, in %"
    assert heads.split("  ")[0] == "classifier"
    assert [" ".join(row.split()) for row in rows] == [
        "undefended benign 95.0 88.8-97.8",
        "layer only benign 94.0 87.5-97.2",
        "hardened benign 90.0 82.6-94.5",
    ]


@pytest.mark.parametrize("name", ["result.json", "table.json", "model.keras"])
@pytest.mark.parametrize("content", [b"", b'{"format": "another"}'])
def test_a_broken_file_is_named(result, tmp_path, name, content):
    result.save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as raised:
        HardenResult.load(tmp_path)
    for other in {"result.json", "table.json", "model.keras"} - {name}:
        assert other not in str(raised.value)


@pytest.mark.parametrize("name", ["result.json", "table.json", "model.keras"])
def test_a_missing_file_is_an_os_error(result, tmp_path, name):
    result.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match=name):
        HardenResult.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"value_range": [1, 0]}, {"rows": [{}]}, {"rows": None}, {"settings": ...}],
)
def test_wrong_entries_name_the_file(result, tmp_path, change):
    result.save(tmp_path)
    path = tmp_path / "result.json"
    content = json.loads(path.read_text())
    content.update(change)
    content = {key: value for key, value in content.items() if value is not ...}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"no result of hardening .*result\.json"):
        HardenResult.load(tmp_path)


class Killed(BaseException):
    """Stands for the end of the process."""


def small_result(result, number):
    """A result whose model, table and settings hold a number."""
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.set_weights([np.full_like(weight, number) for weight in model.get_weights()])
    layer = FeatureDistillation(f"jpeg:{number}")
    return dataclasses.replace(result, model=model, layer=layer, max_benign_loss=number / 100)


def numbers_of(found):
    """The numbers of a loaded result: one, if it is not a mixture."""
    weights = {float(value) for weight in found.model.get_weights() for value in weight.ravel()}
    return weights | {float(found.table.name[5:]), round(100 * found.max_benign_loss)}


def test_a_result_is_the_old_or_the_new_one_wherever_saving_ends(result, tmp_path, monkeypatch):
    old, new = (small_result(result, number) for number in (40, 60))
    found = []
    for kill_at in itertools.count():
        old.save(tmp_path)
        steps = itertools.count()

        def dying(function, steps=steps, kill_at=kill_at):
            def call(*arguments, **options):
                if next(steps) == kill_at:
                    raise Killed
                returned = function(*arguments, **options)
                if next(steps) == kill_at:
                    raise Killed
                return returned

            return call

        with monkeypatch.context() as patch:
            for place, name in (
                *((os, "replace"), (os, "fsync"), (Path, "rename"), (Path, "rmdir")),
                *((Path, "mkdir"), (keras.Model, "save")),
            ):
                patch.setattr(place, name, dying(getattr(place, name)))
            # Nor does a killed process tidy up.
            patch.setattr("fd_keras.hardening.result.shutil.rmtree", lambda *_, **__: None)
            try:
                new.save(tmp_path)
                break
            except Killed:
                pass
        (number,) = numbers_of(HardenResult.load(tmp_path))
        found.append(number)
        new.save(tmp_path)
        assert numbers_of(HardenResult.load(tmp_path)) == {60}
        names = {"model.keras", "table.json", "result.json", ".fd_keras.lock"}
        assert set(os.listdir(tmp_path)) == names
    assert found == sorted(found)
    assert found.count(40) > 8
    assert found.count(60) > 8


def test_saving_without_room_leaves_the_old_result(result, tmp_path, monkeypatch):
    old, new = (small_result(result, number) for number in (40, 60))
    old.save(tmp_path)
    (tmp_path / "model.keras").chmod(0o600)
    before = set(os.listdir(tmp_path))

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        new.save(tmp_path)
    assert numbers_of(HardenResult.load(tmp_path)) == {40}
    assert set(os.listdir(tmp_path)) == before
    monkeypatch.undo()
    new.save(tmp_path)
    assert (tmp_path / "model.keras").stat().st_mode & 0o777 == 0o600


def test_a_loss_that_became_nan_can_be_saved(result, tmp_path):
    history = [{"loss": 0.5}, {"loss": np.nan}]
    dataclasses.replace(result, history=history).save(tmp_path)
    np.testing.assert_equal(HardenResult.load(tmp_path).history, history)


def test_a_result_that_is_replaced_while_it_is_read_is_read_again(result, tmp_path, monkeypatch):
    old, new = (small_result(result, number) for number in (40, 60))
    old.save(tmp_path)
    load = keras.models.load_model

    def slow(*arguments, **options):
        monkeypatch.undo()
        new.save(tmp_path)
        return load(*arguments, **options)

    monkeypatch.setattr(keras.models, "load_model", slow)
    assert numbers_of(HardenResult.load(tmp_path)) == {60}
