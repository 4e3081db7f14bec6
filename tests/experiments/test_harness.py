"""The arguments that experiments share."""

import sys
from pathlib import Path

import pytest

from experiments.harness import CACHE, argument_parser, parsed


def parse(monkeypatch, *arguments, **options):
    monkeypatch.setattr(sys, "argv", ["experiment", *arguments])
    return parsed(argument_parser("An experiment.\n\nIn detail.", **options))


def test_defaults(monkeypatch):
    arguments = parse(monkeypatch)
    assert vars(arguments) == {"out": Path("experiments/results"), "cache": CACHE}


def test_a_smoke_run_may_not_overwrite_published_results(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        parse(monkeypatch, "--smoke", smoke=True)
    assert "--smoke needs another --out" in capsys.readouterr().err
    assert parse(monkeypatch, "--smoke", "--out", "elsewhere", smoke=True).smoke
