"""The README's Python runs as it is written, and its commands exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


# What the table and the list promise, and the files that each figure is in.
FIGURES = {
    "paper_table.md": ("63.7", "40.0", "39.5", "9.5", "88.8", "90.9", "91.6", "1007", "816"),
    "quantizers.md": ("48.3", "39.0"),
    "harden_cifar10.md": (
        *("75.3", "31.7", "89.6", "89.5", "90.8", "89.7", "68.2", "57.6", "90.1"),
        *("11.3", "41.0", "87.7", "88.8"),
    ),
    "autoattack.md": ("45.4", "33.8", "4.6", "77.8", "77.0", "79.6", "81.8", "74.8", "78.2"),
}


def blocks(document, language):
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_it_is_short():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 130


def test_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = blocks("README.md", "python")
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


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


def test_figures_are_those_of_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, figures in FIGURES.items():
        results = (ROOT / "experiments" / "results" / name).read_text(encoding="utf-8")
        for figure in figures:
            for text in (readme, results):
                assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]*\d)", text), (
                    name,
                    figure,
                )
