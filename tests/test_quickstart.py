"""docs/quickstart.ipynb runs from top to bottom."""

import os
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parents[1]


def test_quickstart_notebook_runs(monkeypatch):
    """With fewer training steps than its reader's."""
    # Messages between kernels and Jupyter clients are none of the project's warnings.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT)]))
    monkeypatch.setenv("MPLBACKEND", "agg")
    path = ROOT / "docs" / "quickstart.ipynb"
    notebook = nbformat.read(path, as_version=4)
    (training,) = (c for c in notebook.cells if "config.total_steps = 60" in c.source)
    training.source = training.source.replace("total_steps = 60", "total_steps = 3")
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    results = [o["data"]["text/plain"] for o in outputs if "data" in o]
    assert results[-1] == "True"
    assert any("(4, 64, 64)" in result for result in results)
