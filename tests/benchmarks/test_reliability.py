"""Short slices of `make fuzz`, `make kill` and `make soak`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability import fuzz, kill
from benchmarks.reliability.ledger import Ledger

ROOT = Path(__file__).parents[2]
# The others take a tenth of a second for the first call alone.
CHEAP = [kind for kind, (weight, _) in fuzz.KINDS.items() if weight >= 20]


@pytest.mark.parametrize("kind", CHEAP)
def test_only_named_errors_come_out(kind, tmp_path):
    refused = sum(fuzz.attempt(kind, number, tmp_path) for number in range(15))
    assert refused > 0 or kind == "load cached array"


@pytest.mark.parametrize(("kind", "number"), fuzz.corpus())
def test_what_was_once_a_fault(kind, number, tmp_path):
    fuzz.attempt(kind, number, tmp_path)


def test_a_fault_is_one(tmp_path, monkeypatch):
    def unnamed(rng, folder):
        raise KeyError("x")

    def named(rng, folder):
        raise ValueError("`x` must be y. Received: x=1")

    monkeypatch.setitem(fuzz.KINDS, "unnamed", (1, unnamed))
    monkeypatch.setitem(fuzz.KINDS, "named", (1, named))
    assert fuzz.attempt("named", 1, tmp_path)
    with pytest.raises(fuzz.FaultError, match="KeyError"):
        fuzz.attempt("unnamed", 1, tmp_path)


def test_a_ledger_goes_on_where_it_was(tmp_path):
    ledger = Ledger(tmp_path / "a.json")
    entry = ledger.entry("fuzz", "load table", calls=2, refused=1, faults=[])
    entry["calls"] += 1
    ledger.write()
    again = Ledger(tmp_path / "a.json").entry("fuzz", "load table", calls=0, refused=0, faults=[])
    assert again["calls"] == 3
    assert "load table" in (tmp_path / "a.md").read_text(encoding="utf-8")


def test_the_committed_ledger_says_that_nothing_was_lost():
    ledger = Ledger(fuzz.LEDGER)
    entries = [entry for section in ledger.content.values() for entry in section.values()]
    assert entries
    assert not [entry["faults"] for entry in entries if entry["faults"]]
    assert fuzz.LEDGER.with_suffix(".md").read_text(encoding="utf-8") == ledger.page()


def test_threads_neither_grow_nor_change_results():
    """In a process of its own: memory and traces are those of all that runs there."""
    script = "import json; from benchmarks.reliability import soak; print(json.dumps(soak.soak(1)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] == []
    assert found["calls"].count(" 0") == 0


def test_killed_and_disturbed_commands_end_as_undisturbed(tmp_path):
    """In a process that has used no TensorFlow: it forks."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.reliability.kill", "--command", "compress"),
            *("--kills", "1", "--disturbances", "1", "--ledger", tmp_path / "ledger.json"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    assert ledger["kill"]["compress"]["tried"] == 1
    assert len(ledger["disturb"]) == (3 if kill.can_mount() else 1)
