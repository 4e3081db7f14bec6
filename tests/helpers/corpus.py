"""Run commands over a folder of files and count why files were refused: corpus.py DIR.

Runs apply, compress and calibrate over the folder and inspect over each JPEG file in it, and writes
to a temporary folder. Ends with exit code 1 if a command ended with a traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import fd_keras_cli
from fd_keras_cli.console import printable


def run(*arguments: object) -> tuple[str, str | None]:
    """Run ``fd-keras``; return what it printed, and the traceback it ended with."""
    printed, failure = io.StringIO(), None
    sys.argv = ["fd-keras", *map(str, arguments)]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            fd_keras_cli.main()
        except SystemExit:
            pass
        except Exception:
            failure = traceback.format_exc()
    return printed.getvalue(), failure


def reason_of(line: str, names: set[str]) -> str:
    """An error without the names and numbers of its file."""
    parts = line.removeprefix("Error: ").partition(". Received: ")[0].split(": ")
    for count in range(len(parts) - 1, 0, -1):
        if ": ".join(parts[:count]) in names:
            parts = parts[count:]
            break
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'|b'[^']*'", "...", ": ".join(parts)))


def main(folder: Path) -> int:
    """Run the commands and print what they said, most frequent first."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {printable(path) for path in files}
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        runs = {
            "apply": [("apply", folder, "--out", out / "apply")],
            "compress": [("compress", folder, "--out", out / "compress")],
            "calibrate": [("calibrate", folder, "--epsilon", 2, "--out", out / "table.json")],
            "inspect": [("inspect", path) for path in files if begins_as_jpeg(path)],
        }
        for command, calls in runs.items():
            reasons: Counter[str] = Counter()
            others = []
            for call in calls:
                printed, failure = run(*call)
                failures += [] if failure is None else [f"{' '.join(map(str, call))}\n{failure}"]
                lines = printed.splitlines()
                errors = [line for line in lines if line.startswith("Error: ")]
                reasons.update(reason_of(line, names) for line in errors)
                if command != "inspect":
                    others += [line for line in lines if re.match("Note|Left out|\\d+ ", line)]
            print(f"\n{command}: {len(calls)} runs, {reasons.total()} errors")
            print("\n".join([f"{count:6} {reason}" for reason, count in reasons.most_common()]))
            print("\n".join(f"  {line}" for line in others))
    print(f"\n{len(files)} files, {len(failures)} tracebacks")
    print(*failures, sep="\n", end="")
    return min(1, len(failures))


def begins_as_jpeg(path: Path) -> bool:
    """Whether a file can be read and begins as JPEG files do."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(2) == b"\xff\xd8"
    return False


def folder_of(arguments: list[str]) -> Path:
    """The folder that the command line names."""
    if len(arguments) != 2 or not arguments[1] or not Path(arguments[1]).is_dir():
        sys.exit(f"Usage: {arguments[0]} DIR")
    return Path(arguments[1])


if __name__ == "__main__":
    sys.exit(main(folder_of(sys.argv)))
