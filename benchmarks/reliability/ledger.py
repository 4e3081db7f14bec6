"""What was tried, how often, and what went wrong: kept between runs, each of which goes on."""

from __future__ import annotations

import copy
from pathlib import Path

from fd_keras._console import text_table
from fd_keras._files import DocumentFormat, atomic_path

DOCUMENT = DocumentFormat("fd_keras.reliability", 1, "reliability ledger")
SECTIONS = ("fuzz", "kill", "disturb", "soak")


class Ledger:
    """Counts by section and name, written atomically as JSON and, beside it, as a page.

    Args:
        path: The JSON file; it need not exist.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.content = {section: {} for section in SECTIONS}
        if self.path.exists():
            self.content.update(DOCUMENT.read(self.path, copy.deepcopy))

    def entry(self, section, name, **first):
        """Counts of a name, which begin as ``first``."""
        return self.content[section].setdefault(name, first)

    def write(self):
        """Write both files."""
        DOCUMENT.write(self.path, self.content)
        with atomic_path(self.path.with_suffix(".md")) as temporary:
            temporary.write_text(self.page(), encoding="utf-8")

    def page(self):
        """All counts in Markdown."""
        parts = [_HEAD]
        fuzz = self.content["fuzz"]
        if fuzz:
            rows = [
                [name, f"{entry['calls']:,}", f"{entry['refused']:,}", _faults(entry)]
                for name, entry in sorted(fuzz.items())
            ]
            calls, refused = (sum(e[key] for e in fuzz.values()) for key in ("calls", "refused"))
            faults = sum(len(entry["faults"]) for entry in fuzz.values())
            rows.append(["all", f"{calls:,}", f"{refused:,}", str(faults)])
            heads = ["kind", "calls", "refused", "faults"]
            parts.append(_FUZZ + text_table(heads, rows, markdown=True))
        for section, text in (("kill", _KILL), ("disturb", _DISTURB)):
            rows = [
                [name, *(str(entry[key]) for key in ("tried", "refused", "left")), _faults(entry)]
                for name, entry in sorted(self.content[section].items())
            ]
            if rows:
                heads = ["command", "tried", "ended by itself" if section == "kill" else "refused"]
                heads += ["temporary files left", "faults"]
                parts.append(text + text_table(heads, rows, markdown=True))
        if self.content["soak"]:
            rows = [
                [name, *(str(entry[key]) for key in _SOAK_KEYS), _faults(entry)]
                for name, entry in sorted(self.content["soak"].items())
            ]
            parts.append(_SOAK + text_table(["run", *_SOAK_HEADS, "faults"], rows, markdown=True))
        return "\n\n".join(parts) + "\n"


_SOAK_KEYS = ("minutes", "calls", "shapes", "traces", "memory_start_mb", "memory_end_mb")
_SOAK_HEADS = ("minutes", "calls", "shapes", "traces", "MB after warming up", "MB at the end")

_HEAD = """# Reliability

What was tried to make fd_keras lose work, load half a file, crash or grow, and how often. A
fault is anything but the result of an undisturbed run or an error that names what is wrong. Each
command below goes on where it was left, and adds to these counts.

The goals are a million calls, twenty kills of each command, two of each disturbance and an hour
of threads; the tables say what was reached so far."""
_FUZZ = """## Fuzzed calls and files

`make fuzz`: arguments, shapes, types and numbers that are not finite; tables, statistics,
reports, caches, trials, states, images, archives and TFLite files with bytes and entries
changed. *Refused* with an error of type ValueError, TypeError or OSError that names the argument
or the file; the others were harmless. Seeds that once found a fault are in
`benchmarks/reliability/corpus.json`, and the tests run them.

"""
_KILL = """## Killed commands

`make kill`: SIGKILL at random moments, half of them of the processor time, half of the writes of
files. Then no half-written file may load, and the same command must end with the files of a run
that was not disturbed.

"""
_DISTURB = """## Full disks, directories that are read-only, and two runs at once

`make kill`, too: each command on a file system that is full after a random number of bytes, on
one that is read-only, and twice at once in one directory. Refusals must be one line that names
the place, what was there must stay, and afterwards the same command must end with the files of a
run that was not disturbed.

"""
_SOAK = """## Four threads

`make soak`: layer, `predict`, detector and LiteRT at once, with images of changing sizes. Every
result must be the one from before, bit for bit; *traces* of the layer may not grow with the
calls.

"""


def _faults(entry):
    return str(len(entry["faults"]))
