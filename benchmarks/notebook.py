"""Runs docs/tutorial.ipynb from top to bottom and keeps what it shows.

    python benchmarks/notebook.py [--check]

With --check nothing is written. It runs in a temporary folder, so it finds no earlier work. Prints seconds and size.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
LARGEST = 200_000  # bytes, outputs included


def executed(folder: Path, timeout: int = 300) -> nbformat.NotebookNode:
    """The notebook with what its cells show when they run in a folder. Errors: CellExecutionError where one fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata = {}  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [slim(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def slim(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output in one form: the table or the picture, not their text as well."""
    kept = [kind for kind in ("text/html", "image/png", "text/plain") if kind in output.get("data", {})]
    if kept:
        output.data = {kept[0]: output.data[kept[0]]}
    return output


def main(arguments: list[str] | None = None) -> int:
    """Run it; 1 where it has become too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        text = nbformat.writes(executed(Path(folder))) + "\n"
    print(f"{time.perf_counter() - start:.0f} s, {len(text.encode()):,} bytes")
    if len(text.encode()) > LARGEST:
        print(f"above {LARGEST:,} bytes: show less")
        return 1
    if not options.check:
        NOTEBOOK.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
