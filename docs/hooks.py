"""What MkDocs cannot do by itself: pages made from other files, and equations.

* ``reference/cli.md`` is what ``typer utils docs`` says of the command line.
* ``results/`` and ``changelog.md`` are the files of the repository. Pages link to them where they
  are in the repository, so that these links lead somewhere there too.
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

_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_DISPLAYED = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"\$([^$\n]+)\$")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that other files are the source of."""
    made = {"reference/cli.md": command_line(), "changelog.md": ROOT / "CHANGELOG.md"}
    for path in sorted(RESULTS.iterdir()):
        if path.suffix in (".md", ".png"):
            made[f"results/{path.name}"] = path
    for name, source in made.items():
        given = {"content": source} if isinstance(source, str) else {"abs_src_path": str(source)}
        files.append(File.generated(config, name, **given))
    return files


def command_line() -> str:
    """The commands with their arguments and options, in Markdown."""
    command = [sys.executable, "-m", "typer", "fd_keras_cli.app", "utils", "docs"]
    command += ["--name", "fd-keras", "--title", "Command line"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    # MkDocs would take list[Path] in angle brackets for a tag of HTML only outside of code.
    return re.sub(r"^\* `--(?:install|show)-completion`.*\n", "", process.stdout, flags=re.M)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to files of the repository to their pages, and draw equations."""
    here = Path(config["docs_dir"]) / page.file.src_uri

    def led(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(here.parent / match[2]))
        if target == ROOT / "CHANGELOG.md":
            page_uri = "changelog.md"
        elif target.parent == RESULTS and target.suffix in (".md", ".png"):
            page_uri = f"results/{target.name}"
        else:
            return match[0]
        relative = os.path.relpath(page_uri, Path(page.file.src_uri).parent)
        return f"{match[1]}{relative}{match[3] or ''}"

    parts = _CODE.split(markdown)  # every second part is code
    for index in range(0, len(parts), 2):
        text = _DISPLAYED.sub(lambda m: convert(m[1], display="block"), parts[index])
        parts[index] = _LINK.sub(led, _INLINE.sub(lambda m: convert(m[1]), text))
    return "".join(parts)
