"""Folders, command-line arguments and output files that experiments share."""

import argparse
import json
from pathlib import Path

from fd_keras._files import atomic_path

# Attacked images, searches and trainings, so that an experiment resumes where it was stopped.
CACHE = Path(__file__).parents[1] / ".cache" / "evaluation"
RESULTS = Path("experiments/results")


def argument_parser(description, *, cache=CACHE, smoke=False, out=RESULTS):
    """A parser with ``--out``, with ``--cache`` unless it is ``None``, and with ``--smoke``."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, default=out, help="folder for the results")
    if cache is not None:
        parser.add_argument("--cache", type=Path, default=cache, help="what was computed before")
    if smoke:
        text = "a quick test; its figures mean nothing"
        parser.add_argument("--smoke", action="store_true", help=text)
    return parser


def parsed(parser):
    """The arguments; a smoke run may not overwrite published results."""
    arguments = parser.parse_args()
    if getattr(arguments, "smoke", False) and arguments.out == parser.get_default("out"):
        parser.error("--smoke needs another --out: its figures are not to be kept")
    return arguments


def write_text(path, text):
    """Write a file, replacing it atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, results):
    """Write results as JSON, replacing the file atomically."""
    write_text(path, json.dumps(results, indent=1) + "\n")
