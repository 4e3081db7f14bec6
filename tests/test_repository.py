"""What is committed: small files, no paths of one machine, links that lead somewhere."""

import json
import re
import subprocess
from pathlib import Path

import pytest

import fd_keras

ROOT = Path(__file__).parents[1]
LARGEST = 500_000  # bytes
LARGEST_WEIGHTS = 3_000_000
MACHINE_PATH = re.compile(r"(?<![\w.~$})-])/(?:home|root|tmp|work|Users|mnt)/[\w.-]+")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def tracked():
    """Every tracked file, relative to the root."""
    command = ["git", "ls-files", "-z"]
    try:
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the files are no git checkout")
    paths = map(Path, filter(None, process.stdout.split("\0")))
    return [path for path in paths if (ROOT / path).exists()]


def prose(path, text):
    """The text of a document; of a notebook, that of its Markdown cells."""
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def texts(paths):
    """Paths and texts of those that are UTF-8."""
    for path in paths:
        try:
            yield path, (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_files_are_small(tracked):
    sizes = {path: (ROOT / path).stat().st_size for path in tracked}
    weights = {path for path in tracked if path.name.endswith(".weights.h5")}
    assert not {p: size for p, size in sizes.items() if size > LARGEST and p not in weights}
    assert all(sizes[path] <= LARGEST_WEIGHTS for path in weights)


def test_results_hold_no_pages(tracked):
    """The commands under ``experiments`` and ``benchmarks`` write pages anew."""
    pages = [path for path in tracked if path.suffix == ".html" and "results" in path.parts]
    assert not pages


def test_no_text_names_a_path_of_one_machine(tracked):
    found = {path: MACHINE_PATH.findall(text) for path, text in texts(tracked)}
    assert not {path: names for path, names in found.items() if names}


def test_links_lead_to_committed_files(tracked):
    """Relative links of Markdown files and notebooks; pages that are only made do not count."""
    targets = {*tracked, *(parent for path in tracked for parent in path.parents)}
    documents = [path for path in tracked if path.suffix in (".md", ".ipynb")]
    broken = []
    for path, text in texts(documents):
        for link in LINK.findall(prose(path, text)):
            file = link.partition("#")[0]
            if not file or re.match(r"[a-z]+:", file):
                continue
            target = (ROOT / path.parent / file).resolve()
            if not target.is_relative_to(ROOT) or target.relative_to(ROOT) not in targets:
                broken.append(f"{path}: {link}")
    assert not broken


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w.-]+\.(?:py|toml|cfg|md|yaml))`", text)
    assert len(names) > 30
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_citation_names_the_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {fd_keras.__version__}\n" in citation


def test_a_source_distribution_holds_the_repository(tracked):
    """`make package` builds one and looks into it; this needs no building."""
    rules = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    included = {name for verb, *names in filter(None, rules) if verb == "include" for name in names}
    grafted = {name for verb, *names in filter(None, rules) if verb == "graft" for name in names}
    by_setuptools = {"pyproject.toml", "setup.cfg"}
    assert all((ROOT / name).is_dir() for name in grafted)
    left_out = [
        path
        for path in tracked
        if path.parts[0] not in {*grafted, "fd_keras", "fd_keras_cli"}
        and path.as_posix() not in included | by_setuptools
    ]
    assert not left_out
