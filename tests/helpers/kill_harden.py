"""Kill ``harden`` at moments of its work on files, and compare what a rerun ends with.

Run by hand for every moment: ``python tests/helpers/kill_harden.py DIRECTORY --kills 1000``.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from fd_keras import FeatureDistillation, HardenResult, harden
from fd_keras.hardening import Recipe, Training

# Audit events before a file is opened for writing, moved or removed.
WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def run(home, directory, epochs=3):
    """A training with all that has a state of its own; returns its result as a hash."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(3),
        ]
    )
    images = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 1))
    harden(
        model,
        FeatureDistillation("liu2019"),
        (images, images[:, 0, 0, 0] % 3),
        recipe=Recipe(epsilon=0, table_rate=1.0, averaging=0.5),
        training=Training(epochs, batch_size=8),
        max_benign_loss=1,
        directory=directory,
    ).save(home)
    return content(home)


def content(home):
    """All that a result holds, as a hash."""
    result = HardenResult.load(home)
    arrays = [np.ascontiguousarray(array).tobytes() for array in result.model.get_weights()]
    texts = [result.rows, result.history, result.best_epoch, result.table.to_dict()]
    return hashlib.sha256(b"".join([*arrays, json.dumps(texts).encode()])).hexdigest()


def files(home):
    """Names of all files; TensorBoard's are new in every run."""
    found = (path.relative_to(home) for path in home.rglob("*") if path.is_file())
    return sorted({str(path) for path in found if "tfevents" not in path.name})


def forked(work):
    """What a function returns in a process of its own; ``None`` if that is killed."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        code = 1
        try:
            os.write(writer, json.dumps(work()).encode())
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"a run ended with exit code {status}")
    return json.loads(text) if status == 0 else None


def killed_at(home, moment):
    """Run, and kill the process at a moment; else return what it did at each, and the result."""
    done = []

    def step(what):
        if len(done) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(what)

    def audit(event, arguments):
        if event not in WRITES or not str(arguments[0]).startswith(str(home)):
            return
        if event == "open" and not any(letter in str(arguments[1]) for letter in "wax+"):
            return
        step(f"{event} {Path(str(arguments[0])).relative_to(home)}")

    def write_array(file, array, **options):
        step("write an array")
        write(file, array, **options)

    def work():
        sys.addaudithook(audit)
        np.lib.format.write_array = write_array
        result = run(home, home / "training")
        return done, result

    write = np.lib.format.write_array
    return forked(work)


def rerun(home):
    """The result that a killed run left, and what the next one ends with."""
    left = content(home)
    return left, run(home, home / "training"), files(home)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="empty, or to be made")
    parser.add_argument("--kills", type=int, default=20, help="at so many moments or more")
    parser.add_argument("--at", action="append", help="at the middle one of those with this name")
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    earlier, undisturbed = directory / "earlier", directory / "undisturbed"
    old = forked(lambda: run(earlier, None, epochs=1))
    shutil.copytree(earlier, undisturbed)
    moments, new = killed_at(undisturbed, None)
    assert old != new
    # There are many arrays in each state.
    distinct = [i for i, name in enumerate(moments) if name != "write an array" or i % 15 == 0]
    chosen = distinct[:: max(1, len(distinct) // arguments.kills)]
    if arguments.at:
        named = [[i for i, name in enumerate(moments) if text in name] for text in arguments.at]
        chosen = [numbers[len(numbers) // 2] for numbers in named]
    faults = 0
    for moment in chosen:
        home = directory / str(moment)
        shutil.copytree(earlier, home)
        assert killed_at(home, moment) is None
        left, result, names = forked(lambda home=home: rerun(home))
        right = left in (old, new) and result == new and names == files(undisturbed)
        faults += not right
        print(f"{'ended as undisturbed' if right else 'FAULT'}: killed at {moments[moment]}")
        if right:
            shutil.rmtree(home)
    print(f"{faults} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
