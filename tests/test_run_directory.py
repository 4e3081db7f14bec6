"""Directories of runs: whose they are, what is deleted in them, and who works there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fd_keras._files import DocumentFormat, RunDirectory, locked

WALKS = RunDirectory(
    DocumentFormat("example.walk", 1, "walk"),
    "walk.json",
    ("state.json", "steps/step_*/step.json", "logs/*.txt"),
)
SEED = {"seed": 1, "limits": (1, 2)}


def run_in(directory, identity=SEED, **options):
    """A run that writes all of its files."""
    with WALKS.claimed(directory, identity, **options) as home:
        for name in (
            "state.json",
            "steps/step_0/step.json",
            "steps/step_1/step.json",
            "logs/0.txt",
        ):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(str(identity))


def contents(folder):
    """Everything below a folder, links unread."""
    return {
        str(path.relative_to(folder)): "link"
        if path.is_symlink()
        else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def filled(folder, **texts):
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_run_is_resumed_and_another_one_refused(tmp_path):
    run_in(tmp_path / "run")
    run_in(tmp_path / "run", {"limits": [1, 2], "seed": 1})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds a walk with other limits, seed; .*overwrite=True"):
        run_in(tmp_path / "run", {"seed": 2})
    assert contents(tmp_path) == before
    assert json.loads((tmp_path / "run" / "walk.json").read_text())["format"] == "example.walk"


FOREIGN = {
    "files of a run without a mark": {"state.json": "mine"},
    "files in folders without a mark": {"steps__step_7__step.json": "mine"},
    "a mark of other origin": {"walk.json": "{}", "logs__a.txt": "mine"},
    "a mark of another format": {"walk.json": '{"format": "x", "version": 1}'},
    "a mark without identity": {"walk.json": '{"format": "example.walk", "version": 1}'},
    "a mark that was cut": {"walk.json": '{"format": "example.walk", "vers'},
    "an empty mark": {"walk.json": ""},
    "a mark that is no object": {"walk.json": "[1]"},
    "a mark that is nested too deeply": {"walk.json": "[" * 100_000},
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("texts", FOREIGN.values(), ids=FOREIGN)
def test_files_of_other_origin_are_refused_and_stay(tmp_path, texts, overwrite):
    filled(tmp_path, **texts)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"`directory` holds .* Received: directory="):
        run_in(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_other_files_are_no_obstacle(tmp_path):
    filled(tmp_path, **{"notes.txt": "mine", "logs__train__events": "mine"})
    run_in(tmp_path)
    run_in(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "logs" / "train" / "events").read_text() == "mine"


def test_only_what_a_run_wrote_is_deleted(tmp_path):
    run_in(tmp_path)
    others = {"notes.txt": "mine", "steps__notes.txt": "mine", "steps__step_1__a.npy": "mine"}
    filled(tmp_path, **others, **{f"steps__.{'0f' * 16}.json": "killed", "logs__9.txt": "a log"})
    with WALKS.claimed(tmp_path, {"seed": 2}, overwrite=True):
        left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
        assert left == {*(n.replace("__", "/") for n in others), "walk.json", ".fd_keras.lock"}
        assert not (tmp_path / "logs").exists()
        assert not (tmp_path / "steps" / "step_0").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["steps", "logs", "steps/step_1", "logs/0.txt", "walk.json"])
def test_links_in_the_places_of_a_run_are_refused(tmp_path, place, overwrite):
    run_in(tmp_path / "run")
    path, elsewhere = tmp_path / "run" / place, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"and {place} is a link; choose another directory"):
        run_in(tmp_path / "run", overwrite=overwrite)
    assert contents(tmp_path) == before


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    (tmp_path / "logs").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="logs is a link"):
        run_in(tmp_path)


def test_what_a_killed_deletion_left_is_not_resumed(tmp_path, monkeypatch):
    run_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted_at(2, Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="what is left of a walk that was being deleted"):
        run_in(tmp_path)
    run_in(tmp_path, overwrite=True)


def interrupted_at(call, function):
    calls = []

    def interrupted(*arguments, **options):
        # ``atomic_path`` unlinks, too, what is no longer there.
        calls.extend([1] * (not options))
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return interrupted


def test_two_runs_at_once(tmp_path):
    run_in(tmp_path)
    with WALKS.claimed(tmp_path, SEED):
        for options in ({}, {"overwrite": True}):
            with pytest.raises(ValueError, match="`directory` is in use by another run"):
                run_in(tmp_path, **options)
    run_in(tmp_path)


def test_a_killed_process_holds_nothing(tmp_path):
    script = (
        "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1])\n"
        "with lock: print(flush=True); time.sleep(60)"
    )
    lock = str(tmp_path / ".fd_keras.lock")
    holder = subprocess.Popen([sys.executable, "-c", script, lock], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(ValueError, match="in use by another run"), locked(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_no_directory(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`directory` must not be a file"):
        run_in(tmp_path / name)
