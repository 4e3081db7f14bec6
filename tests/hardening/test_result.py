"""What a result says, and what it refuses to load."""

import dataclasses
import json

import pytest

from fd_keras import HardenResult
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
