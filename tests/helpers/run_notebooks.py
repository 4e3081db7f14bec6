"""Running a notebook; as a program, run notebooks and keep their outputs.

``.venv/bin/python tests/helpers/run_notebooks.py notebooks/02_design.ipynb ...``
"""

import sys
import tempfile
from pathlib import Path


def run(notebook, folder):
    """Execute the cells of a notebook in order, in a folder, and fill in their outputs."""
    import nbclient

    resources = {"metadata": {"path": folder}}
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources=resources, record_timing=False, coalesce_streams=True
    )
    client.execute()


def without_stderr(notebook):
    """Drop what libraries wrote to stderr, in place."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def main():
    import nbformat

    for path in map(Path, sys.argv[1:]):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, folder)
        without_stderr(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
