"""Two processes on this machine that train together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from fd_keras._compat import trains_on_several_machines
from fd_keras.hardening.team import Team

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("train_together.py")
SECONDS = 300

needs_keras_2 = pytest.mark.skipif(
    not trains_on_several_machines(), reason="Keras 3 cannot train on several machines"
)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def started(directory, out, cluster=None, index=0, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if cluster:
        task = {"type": "worker", "index": index}
        environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    command = [sys.executable, str(SCRIPT), str(directory), str(out), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def together(tmp_path, directories, *arguments):
    """Exit codes, outputs and results of two processes; arguments are for the second."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    outs = [tmp_path / f"{number}.json" for number in range(2)]
    for out in outs:
        out.unlink(missing_ok=True)
    processes = [
        started(directories[number], outs[number], cluster, number, *(arguments if number else ()))
        for number in range(2)
    ]
    try:
        if arguments:  # the other one waits for it
            processes[1].communicate(timeout=SECONDS)
            processes[0].kill()
        texts = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    results = [json.loads(out.read_text()) if out.exists() else None for out in outs]
    return [process.returncode for process in processes], texts, results


def assert_same(found, expected):
    for ours, theirs in zip(found["history"], expected["history"]):
        assert ours == pytest.approx(theirs, rel=1e-4)
    np.testing.assert_allclose(found["weights"], expected["weights"], rtol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    process = started(folder / "run", folder / "out.json")
    text, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, text
    return json.loads((folder / "out.json").read_text())


@needs_keras_2
def test_two_processes_train_as_one_does_with_the_same_batches(alone, tmp_path):
    codes, texts, results = together(tmp_path, [tmp_path / "run"] * 2)
    assert codes == [0, 0], texts
    for result in results:
        assert_same(result, alone)
    assert len(alone["history"]) == 3


@needs_keras_2
def test_a_killed_process_goes_on_from_the_last_epoch(alone, tmp_path):
    codes, texts, _ = together(tmp_path, [tmp_path / "run"] * 2, "killed")
    assert codes[1] == 9, texts
    kept = json.loads((tmp_path / "run" / "history.json").read_text())
    assert len(kept["epochs"]) == 1
    codes, texts, results = together(tmp_path, [tmp_path / "run"] * 2)
    assert codes == [0, 0], texts
    for result in results:
        assert_same(result, alone)


@needs_keras_2
def test_processes_that_do_not_share_a_directory_are_refused(tmp_path):
    codes, texts, _ = together(tmp_path, [tmp_path / "run"] * 2, "killed")
    codes, texts, _ = together(tmp_path, [tmp_path / "run", tmp_path / "elsewhere"])
    assert 0 not in codes, texts
    # The other one may end with it, before it can say so.
    assert any("`directory` must be the same place" in text for text in texts), texts


@pytest.mark.skipif(trains_on_several_machines(), reason="Keras 2 trains on several machines")
def test_keras_3_is_refused_before_anything_is_trained(monkeypatch):
    """With the report of Keras' fault, in place of what its `fit` ends with."""
    cluster = {"worker": ["a:1", "b:1"]}
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), task_type="worker", task_id=0
    )
    strategy = SimpleNamespace(cluster_resolver=resolver)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)
    with pytest.raises(ValueError, match="issues/20585.* Received: a strategy of 2 processes"):
        Team.current()
