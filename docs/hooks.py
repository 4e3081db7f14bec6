"""What MkDocs cannot do by itself: pages made from other files, and equations.

* ``reference/cli.md`` holds what ``typer utils docs`` says of the command line.
* ``results/`` and ``changelog.md`` are files of the repository, and what else pages link to there
  is copied to ``repository/``. Pages link to all of them where they are in the repository, so that
  the links lead somewhere there, too.
* Equations between dollar signs become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"

_COMMANDS = "<!-- commands -->"
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_DISPLAYED = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"\$([^$\n]+)\$")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that other files are the source of."""
    docs = Path(config["docs_dir"])
    linked = {
        target
        for page in sorted(docs.rglob("*.md"))
        for match in _LINK.finditer(page.read_text(encoding="utf-8"))
        if (target := _target(page, match)).is_file() and not target.is_relative_to(docs)
    }
    shown = {path for path in RESULTS.iterdir() if path.suffix in (".md", ".png")}
    for path in sorted({*linked, *shown, ROOT / "CHANGELOG.md"}):
        files.append(File.generated(config, _uri(path), abs_src_path=str(path)))
    return files


def command_line() -> str:
    """The commands with their arguments and options, in Markdown."""
    command = [sys.executable, "-m", "typer", "fd_keras_cli.app", "utils", "docs"]
    command += ["--name", "fd-keras"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    text = process.stdout.partition("\n**Usage**:")[2]  # without the page's title
    text = text.partition("\n## `fd-keras tune`")[0]  # hidden: an old name, and last
    return re.sub(r"^\* `(?:tune|--(?:install|show)-completion)`.*\n", "", text, flags=re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to files of the repository to their pages, and draw equations."""
    docs = Path(config["docs_dir"])
    uri = page.file.src_uri
    if _COMMANDS in markdown:
        return markdown.replace(_COMMANDS, f"**Usage**:{command_line()}")

    def led(match: re.Match[str]) -> str:
        target = _target(docs / uri, match)
        if target.is_relative_to(docs) or not target.is_relative_to(ROOT):
            return match[0]
        relative = os.path.relpath(_uri(target), Path(uri).parent)
        return f"{match[1]}{relative}{match[3] or ''}"

    parts = _CODE.split(markdown)  # every second part is code
    for index in range(0, len(parts), 2):
        text = _DISPLAYED.sub(
            lambda m: f"<div>{convert(m[1], display='block')}</div>", parts[index]
        )
        parts[index] = _INLINE.sub(lambda m: f"<span>{convert(m[1])}</span>", text)
    return _LINK.sub(led, "".join(parts))  # together again: the text of a link may be code


def _target(page: Path, match: re.Match[str]) -> Path:
    """The file that a link leads to, whether there is one or not."""
    return Path(os.path.normpath(page.parent / match[2]))


def _uri(path: Path) -> str:
    """Where a file of the repository is among the pages."""
    if path == ROOT / "CHANGELOG.md":
        return "changelog.md"
    if path.parent == RESULTS and path.suffix in (".md", ".png"):
        return f"results/{path.name}"
    return f"repository/{path.relative_to(ROOT)}"
