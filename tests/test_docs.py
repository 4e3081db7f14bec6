"""The documentation: its Python runs, its commands exist, and its links lead somewhere.

Everything that is run shares one folder, which holds what the pages ask their readers for:
``model.keras``, ``photos`` and arrays of the same images, of which the digits of the demo are made.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import typer
from PIL import Image

from fd_keras.demo import load_digits
from fd_keras_cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = sorted(NAMES)
IMAGES = {"train": 200, "val": 120}

# Of the images of the ten minutes' evaluation, so that the test is short.
FEWER = {"50": "3", "adaptive=16": "adaptive=0", "black-box=4": "black-box=0"}

# What a block of commands may begin with, beside fd-keras, make and scripts of this repository.
OTHER_PROGRAMS = (
    "cd",
    "cp",
    "docker",
    "npm",
    "pip",
    ".",
    "python3 -m venv",
    "python -m http.server",
)
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        re.sub(rf"^{indent}", "", text, flags=re.M) for indent, of, text in found if of == language
    ]


def commands(page):
    """The command lines of a page, joined where a backslash breaks them."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def with_blocks(language):
    return [page.relative_to(DOCS).as_posix() for page in PAGES if blocks(page, language)]


def classifier():
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(8, 3, strides=4, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(len(CLASSES), activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a softmax classifier of pixels from 0 to 1, and its images."""
    folder = tmp_path_factory.mktemp("docs")
    keras.utils.set_random_seed(1)
    digits = load_digits(1)
    for part, data in (("train", digits.train), ("val", digits.test)):
        data = data[: IMAGES[part]]
        labels = np.array([CLASSES.index(NAMES[label]) for label in data.labels])
        images = np.repeat(data.images, 3, axis=-1)
        np.savez(folder / f"{part}.npz", images=images / 255, labels=labels)
        for index, (image, label) in enumerate(zip(images, labels)):
            file = folder / "photos" / part / CLASSES[label] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(file)
    model = classifier()
    with np.load(folder / "train.npz") as train:
        model.fit(train["images"], train["labels"], epochs=20, verbose=0)
    model.save(folder / "model.keras")
    return folder


@pytest.fixture
def work(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KERAS_HOME", str(folder))  # where evaluations keep attacked images
    return folder


@pytest.mark.parametrize("page", with_blocks("python"))
def test_python_runs(page, work):
    names = {}
    for block in blocks(DOCS / page, "python"):
        exec(compile(block, page, "exec"), names)


# All in one process, because importing TensorFlow takes longer than most of them.
COMMANDS_IN_ORDER = """
import json, sys
import fd_keras_cli
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        fd_keras_cli.main()
    except SystemExit as ended:
        assert not ended.code, words
"""


def test_the_ten_minutes_hold_what_they_promise(work):
    ours = [words for words in commands(DOCS / "ten-minutes.md") if words[0] == "fd-keras"]
    assert [words[1] for words in ours] == ["calibrate", "evaluate", "export", "verify"]
    fewer = [[FEWER.get(word, word) for word in words] for words in ours]
    script = [sys.executable, "-c", COMMANDS_IN_ORDER, json.dumps(fewer)]
    process = subprocess.run(
        script, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    written = ("report/report.html", "out/saved_model/1/saved_model.pb", "out/model.tflite")
    assert all((work / name).is_file() for name in written)


@pytest.mark.parametrize("page", with_blocks("sh"))
def test_commands_exist(page):
    """Their options are parsed as the command line does it; nothing is run."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(DOCS / page):
        line = shlex.join(words)
        if words[0] == "fd-keras":
            command = typer.main.get_command(app).commands[words[1]]
            command.make_context(words[1], words[2:])
        elif words[0] == "make":
            assert words[1] in targets, line
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line
        else:
            assert line.startswith(OTHER_PROGRAMS), line


def anchors(page):
    """The anchors of a page's headings, as Python-Markdown makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    slugs = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", slug) for slug in slugs}


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_lead_to_files_and_headings(page):
    path, broken = ROOT / page, []
    for file, _, anchor in re.findall(
        r"\]\((?![a-z]+:)([^)#\s]*)(#?)([^)\s]*)\)", path.read_text()
    ):
        target = (path.parent / file).resolve() if file else path
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(f"{file}#{anchor}")
    assert not broken


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(DOCS).as_posix() for page in PAGES]
    pages += [f"results/{page.name}" for page in (ROOT / "experiments" / "results").glob("*.md")]
    assert not [page for page in pages if f" {page}\n" not in navigation]


def test_every_public_name_is_in_the_reference():
    import fd_keras

    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")]
    named = set(re.findall(r"^::: fd_keras[\w.]*\.(\w+)$", "\n".join(pages), re.MULTILINE))
    # A module, and a tuple whose names the pages list.
    assert set(fd_keras.__all__) - named <= {"jpeg", "PRESETS"}
