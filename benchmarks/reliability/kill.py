"""Kill commands, fill their disks and run two at once, and compare what a rerun ends with.

Each run is a fork of a process that has imported everything, so that it takes seconds. Moments are
random by a seed: a share of the processor time of an undisturbed run, or one of its writes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.reliability.fuzz import LEDGER
from benchmarks.reliability.ledger import Ledger

# Arguments of each command, in a directory that holds the inputs; results are in `out`.
COMMANDS = {
    "calibrate": "images --epsilon 2 --out out/table.json --run out/run",
    "compress": "images --out out",
    "evaluate": "model.keras data.npz --attack fgsm --epsilon 4 --max-images 8 --logits --out out "
    "--cache out/cache --value-range 0,255",
    "refine": "model.keras data.npz --max-trials 3 --oracle random --cycle-spins 1 --max-images 12 "
    "--logits --out out --cache out/cache",
    "harden": "model.keras data.npz --epochs 2 --epsilon 2 --batch-size 8 --max-benign-loss 1 "
    "--logits --out out",
    "export": "model.keras --table liu2019 --out out",
}  # fmt: skip
# What a run imports, for the commands that need little and for the others.
MODULES = ("scipy", "fd_keras", "fd_keras.data.labelled_sources", "fd_keras_cli.app")
MORE_MODULES = (
    *("art", "foolbox", "keras_tuner", "matplotlib.figure", "jinja2", "sklearn"),
    *("fd_keras.evaluation.attacks", "fd_keras.evaluation.plots", "fd_keras.export.verification"),
    *("fd_keras.hardening", "fd_keras.refinement.refine", "fd_keras.refinement.plots"),
    *("fd_keras._pages", "fd_keras_cli.models"),
)
# Names of files that are being written.
TEMPORARY = re.compile(r"\..*")
# What a search's oracle remembers of runs that were killed.
_ORACLE_MEMORY = re.compile(r"/oracle\.json/(sha256|start_order/\d+)$")
# Audit events before a file is opened for writing, moved or removed.
WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
SECONDS = 900
ENDED = 97


def inputs(home: Path) -> None:
    """Write a small model, labelled images and image files."""
    import keras
    import numpy as np
    from PIL import Image

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    model.save(home / "model.keras")
    images = np.random.default_rng(1).integers(0, 256, (24, 16, 16, 1)).astype(np.uint8)
    np.savez(home / "data.npz", x=images, y=model.predict(images, verbose=0).argmax(-1))
    (home / "images").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(home / "images" / f"{number}.png")


def run_here(command: str, errors: Path, kill_at: int | None) -> int:
    """Run a command in this process, and kill it before a write; return how many there were."""
    import fd_keras_cli

    count = 0

    def audit(event, arguments):
        nonlocal count
        if event not in WRITES or "/out" not in os.path.abspath(os.fsdecode(_path(arguments))):
            return
        if event == "open" and not any(letter in str(arguments[1]) for letter in "wax+"):
            return
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    with errors.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
    sys.addaudithook(audit)
    sys.argv = ["fd-keras", *command.split()]
    try:
        fd_keras_cli.main()
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        if ended.code:
            raise
    return count


def _path(arguments):
    return arguments[0] if arguments and isinstance(arguments[0], (str, bytes, os.PathLike)) else ""


class Started:
    """A command in a process of its own, forked from this one."""

    def __init__(self, home: Path, command: str, kill_at: int | None = None, tag: str = ""):
        self.errors = home.parent / f"{home.name}{tag}.errors"
        reader, writer = os.pipe()
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            self._reader = reader
            return
        code = 1
        try:
            os.setsid()
            os.close(reader)
            os.chdir(home)
            os.write(writer, str(run_here(command, self.errors, kill_at)).encode())
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException as error:
            print(f"TRACEBACK {error!r}", file=sys.stderr, flush=True)
            code = ENDED
        finally:
            os._exit(code)

    def cpu(self) -> float:
        """Seconds of the processor that it has used."""
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def wait(self, kill_after: float | None = None) -> tuple[int, str, float]:
        """Its exit code, what it returned or printed, and its processor time."""
        used = 0.0
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            used = max(used, self.cpu())
            late = time.monotonic() - self.began > SECONDS
            if late or (kill_after is not None and used >= kill_after):
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started and left behind
        with open(self._reader, "rb") as file:
            text = file.read().decode()
        code = os.waitstatus_to_exitcode(status)
        return code, text if code == 0 else self.errors.read_text(errors="replace"), used


def flat(value, path="", level=0):
    """Leaves of plain JSON data by their paths."""
    if isinstance(value, dict):
        pairs = [(f"{path}/{key}", entry) for key, entry in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{path}/{number}", entry) for number, entry in enumerate(value)]
    else:
        return {path: value}
    return {name: leaf for below, entry in pairs for name, leaf in flat(entry, below).items()}


def parts_of(home: Path) -> dict[str, object]:
    """What the files in `out` hold, in parts that can differ alone; nothing of hidden files."""
    found: dict[str, object] = {}
    for path in sorted((home / "out").rglob("*")):
        name = str(path.relative_to(home))
        if not path.is_file() or is_temporary(path, home) or "tfevents" in name:
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            found |= {f"{name}{key}": leaf for key, leaf in flat(json.loads(content)).items()}
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                found |= {f"{name}:{info.filename}": info.CRC for info in archive.infolist()}
        elif path.suffix in (".html", ".md"):
            lines = content.decode().splitlines()
            found |= {f"{name}:{number}": line for number, line in enumerate(lines)}
        else:
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def is_temporary(path: Path, home: Path) -> bool:
    """Whether a file or a directory above it has the name of one that is being written."""
    return any(TEMPORARY.fullmatch(part) for part in path.relative_to(home).parts)


def broken_files(home: Path, known: dict[str, object]) -> list[str]:
    """Files under their final names that cannot be read, or are cut."""
    broken = []
    for path in (home / "out").rglob("*"):
        if not path.is_file() or is_temporary(path, home) or "tfevents" in path.name:
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix in (".keras", ".npz"):
                with zipfile.ZipFile(path) as archive:
                    assert archive.testzip() is None
            elif path.suffix in (".png", ".jpg"):
                from PIL import Image

                with Image.open(path) as picture:
                    picture.load()
            elif path.suffix == ".tflite":
                assert path.read_bytes()[4:8] == b"TFL3"
            elif path.suffix == ".pb" or "variables" in path.parts:
                version = path.parents[1] if "variables" in path.parts else path.parent
                assert (version / "saved_model.pb").stat().st_size
                assert (version / "variables" / "variables.index").stat().st_size
            elif path.suffix == ".html":
                assert path.read_bytes().rstrip().endswith(b"</html>")
        except Exception as error:
            broken.append(f"{path.relative_to(home)}: {error!r}")
    return broken


def leftovers(home: Path) -> list[str]:
    """Files that were being written and stayed."""
    return sorted(
        str(path.relative_to(home))
        for path in (home / "out").rglob("*")
        if path.is_file() and is_temporary(path, home) and path.name != ".fd_keras.lock"
    )


class Subject:
    """A command, its inputs and what undisturbed runs of it do.

    Args:
        name: Of the command.
        work: Directory to work in.
    """

    def __init__(self, name: str, work: Path) -> None:
        self.name, self.work = name, work
        self.command = f"{name} {COMMANDS[name]}"
        self.clean = work / "inputs"
        if not self.clean.exists():
            self.clean.mkdir(parents=True)
            child = os.fork()
            if not child:
                try:
                    inputs(self.clean)
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
        whole = []
        for number in range(2):
            home = self.fresh(f"whole{number}")
            code, text, self.cpu = Started(home, self.command).wait()
            if code:
                raise SystemExit(f"{self.command} ended with {code}: {text}")
            self.writes = int(text)
            whole.append(parts_of(home))
            self.size = sum(f.stat().st_size for f in (home / "out").rglob("*") if f.is_file())
            shutil.rmtree(home)
        one, other = whole
        self.names = set(one) & set(other)
        self.whole = {name: one[name] for name in self.names if one[name] == other[name]}

    def fresh(self, name: str) -> Path:
        """A directory with the inputs and nothing else."""
        home = self.work / f"{self.name}-{name}"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(self.clean, home)
        return home

    def faults_of_rerun(self, home: Path) -> list[str]:
        """What is wrong after the same command ran again."""
        code, text, _ = Started(home, self.command).wait()
        if code:
            return [f"the rerun ended with {code}: {text[-600:]}"]
        found = parts_of(home)
        # The state of a search's oracle may remember more of a run that was killed, such as that
        # it started a trial once more, which its checksum covers; its trials and its result may
        # not differ.
        changed = [
            name
            for name, part in self.whole.items()
            if found.get(name) != part and not _ORACLE_MEMORY.search(name)
        ]
        more = [name for name in found if name not in self.names and not _is_new(name)]
        faults = [f"differs: {changed[:5]}"] if changed else []
        return faults + ([f"not in an undisturbed run: {more[:5]}"] if more else [])

    def killed(self, rng: random.Random) -> tuple[str, bool, list[str], list[str]]:
        """Kill a run and run it again: when, whether it ended before, leftovers and faults."""
        home = self.fresh("killed")
        if rng.random() < 0.5:
            share = rng.random()
            moment = f"at {share:.3f} of the processor time"
            code, text, _ = Started(home, self.command).wait(share * self.cpu)
        else:
            write = rng.randrange(max(1, self.writes))
            moment = f"before write {write} of {self.writes}"
            code, text, _ = Started(home, self.command, kill_at=write).wait()
        faults = [] if code in (0, -signal.SIGKILL) else [f"ended with {code}: {text[-600:]}"]
        if (home / "out").exists():
            faults += broken_files(home, self.whole)
        faults += self.faults_of_rerun(home)
        left = leftovers(home)
        shutil.rmtree(home)
        return moment, code == 0, left, faults

    def disturbed(self, how: str, rng: random.Random) -> tuple[str, bool, list[str], list[str]]:
        """Run on a full or read-only file system or twice at once, and then undisturbed."""
        home = self.fresh(how.replace(" ", "-"))
        if how == "two at once":
            runs = [Started(home, self.command)]
            time.sleep(rng.random() * 2)
            runs.append(Started(home, self.command, tag="-second"))
            ends = [run.wait()[:2] for run in runs]
            faults = [] if any(code == 0 for code, _ in ends) else [f"neither ended well: {ends}"]
            refused = [text for code, text in ends if code]
            faults += [f"refused otherwise: {t[-400:]}" for t in refused if not _is_clear(t)]
            moment = how
        else:
            room = rng.randrange(1, max(2, self.size)) if how == "full disk" else 1 << 24
            moment = f"{how} of {room} bytes" if how == "full disk" else how
            with _mounted(home / "out", room, read_only=how == "read-only") as mounted:
                assert mounted
                before = parts_of(home)
                code, text, _ = Started(home, self.command).wait()
                refused = [text] if code else []
                faults = (
                    [f"ended with {code}: {text[-600:]}"] if code and not _is_clear(text) else []
                )
                if how == "read-only" and not code:
                    faults.append("it wrote nothing and said nothing")
                faults += broken_files(home, self.whole)
                kept = parts_of(home)
                faults += [f"lost {name}" for name in before if name not in kept]
                shutil.copytree(home / "out", home / "kept")
            shutil.rmtree(home / "out")
            (home / "kept").rename(home / "out")
        faults += self.faults_of_rerun(home)
        left = leftovers(home)
        shutil.rmtree(home)
        return moment, bool(refused), left, faults


def _is_new(name: str) -> bool:
    """Whether a part belongs to what each run adds: a version, a cached array."""
    return bool(re.match(r"out/(saved_model/\d+|cache|run|training|trials)", name))


def _is_clear(text: str) -> bool:
    """Whether what a refused command printed ends with an error and without a traceback."""
    said = [line for line in text.splitlines() if "Error: " in line]
    return bool(said) and "Traceback" not in text and "TRACEBACK" not in text


@contextlib.contextmanager
def _mounted(place: Path, size: int, read_only: bool):
    place.mkdir()
    if shutil.which("mount") is None:
        yield False
        return
    options = f"size={max(size, 4096)}" + (",ro" if read_only else "")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True
    )
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", place], check=True)


def can_mount() -> bool:
    """Whether file systems can be mounted, as root can; else none is filled or sealed."""
    with tempfile.TemporaryDirectory() as folder, _mounted(Path(folder, "m"), 4096, False) as done:
        return done


DISTURBANCES = ("full disk", "read-only", "two at once")


def main(arguments: list[str] | None = None) -> int:
    """Kill and disturb; the exit code says whether there is a fault in the ledger."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each command, in all")
    parser.add_argument("--disturbances", type=int, default=2, help="of each kind, in all")
    parser.add_argument("--command", action="append", choices=COMMANDS)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    options = parser.parse_args(arguments)
    names = options.command or list(COMMANDS)
    for module in (*MODULES, *(MORE_MODULES if set(names) - {"calibrate", "compress"} else ())):
        importlib.import_module(module)
    ledger = Ledger(options.ledger)
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            _try(Subject(name, Path(work)), ledger, options.kills, options.disturbances)
    faults = sum(len(e["faults"]) for s in ("kill", "disturb") for e in ledger.content[s].values())
    print(f"{faults} faults; see {options.ledger}")
    return min(1, faults)


def _try(subject: Subject, ledger: Ledger, kills: int, disturbances: int) -> None:
    plan = [("kill", subject.name, kills, subject.killed)]
    plan += [
        (
            "disturb",
            f"{subject.name}, {how}",
            disturbances,
            lambda rng, how=how: subject.disturbed(how, rng),
        )
        for how in DISTURBANCES
        if how == "two at once" or can_mount()
    ]
    for section, name, times, attempt in plan:
        entry = ledger.entry(section, name, tried=0, refused=0, left=0, faults=[])
        while entry["tried"] < times:
            rng = random.Random(f"{name} {entry['tried']}")
            moment, refused, left, faults = attempt(rng)
            print(f"{name} {moment}: {faults or 'as undisturbed'} {left or ''}", flush=True)
            entry["faults"] += [[entry["tried"], moment, fault] for fault in faults]
            entry["tried"] += 1
            entry["refused"] += refused
            entry["left"] += len(left)
            ledger.write()


if __name__ == "__main__":
    sys.exit(main())
