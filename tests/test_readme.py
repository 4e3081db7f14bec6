"""The README's Python runs as it is written, and its commands exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(document, language):
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "export/README.md"])
def test_python_examples_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))  # where evaluations keep attacked images
    examples = blocks(document, "python")
    assert examples
    for example in examples:
        exec(compile(example, document, "exec"), {})


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for block in blocks("README.md", "sh")
        for target in re.findall(r"^make ([\w-]+)", block, re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets


def test_ci_runs_the_readmes_test_command():
    assert "make test\n" in (ROOT / ".ci" / "run").read_text()
    assert any(
        re.search(r"^make test\b", block, re.MULTILINE) for block in blocks("README.md", "sh")
    )
