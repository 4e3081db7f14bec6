"""Searches whose processes are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import searches

from fd_keras.refinement import RefineResult


@pytest.fixture
def program(digits, tmp_path):
    """Start a process of a search; all are ended afterwards."""
    digits[0].save(tmp_path / "model.keras")
    started = []

    def start(max_trials, slow="", **environment):
        process = subprocess.Popen(
            [sys.executable, searches.__file__, str(tmp_path), str(max_trials), slow],
            env={**os.environ, **environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)


def test_a_search_that_was_killed_keeps_its_trials_and_goes_on(search, program, tmp_path):
    process = program(5, "slow")
    wait_for(tmp_path / "running-alone", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    files = sorted((tmp_path / "search" / "trials").glob("trial_*/trial.json"))
    kept = [json.loads(path.read_text()) for path in files]
    assert [trial["status"] for trial in kept] == ["COMPLETED", "COMPLETED", "RUNNING"]
    process = program(5)
    assert process.wait(timeout=120) == 0, process.stderr.read()
    result = RefineResult.load(tmp_path / "result.json")
    assert [trial.status for trial in result.trials] == ["COMPLETED"] * 5
    again = [json.loads(path.read_text()) for path in files[:2]]
    assert again == kept[:2]
    whole = search(tmp_path / "whole", max_trials=5)
    assert searches.values_of(result) == searches.values_of(whole)


def test_a_distributed_search_survives_the_death_of_a_worker(program, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    chief = program(6, **address, KERASTUNER_TUNER_ID="chief")
    doomed = program(6, "slow", **address, KERASTUNER_TUNER_ID="tuner0")
    wait_for(tmp_path / "running-tuner0", doomed)
    worker = program(6, **address, KERASTUNER_TUNER_ID="tuner1")
    wait_for(tmp_path / "search" / "trials" / "tuner1.json", worker)  # after its first trial
    doomed.send_signal(signal.SIGKILL)
    assert worker.wait(timeout=120) == 0, worker.stderr.read()
    assert chief.wait(timeout=60) == 0, chief.stderr.read()
    result = RefineResult.load(tmp_path / "result.json")
    assert [trial.status for trial in result.trials] == ["COMPLETED"] * 6
