"""Runs notebooks and keeps what they print and draw: ``python docs/run_notebooks.py [NOTEBOOK ...]``."""
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

for path in map(Path, sys.argv[1:] or sorted((Path(__file__).parent / "notebooks").glob("*.ipynb"))):
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()  # not cells tagged skip-execution
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # progress bars
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, path)
