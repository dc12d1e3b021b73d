"""All notebooks below results/ run from their first cell to their last."""

import os
from pathlib import Path

import pytest
from chain import ROOT

pytestmark = pytest.mark.slow

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((ROOT / "results").glob("**/*.ipynb"))


def execute(path: Path, parameters: dict[str, object], timeout: int = 300):
    """Execute a notebook where it lies; `parameters` replace those of its tagged cell."""
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", []):
            lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
            notebook.cells.insert(number + 1, nbformat.v4.new_code_cell(lines))
            break
    client = nbclient.NotebookClient(
        notebook, timeout=timeout, resources={"metadata": {"path": str(path.parent)}}
    )
    return client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})


def printed(notebook) -> str:
    """What the cells printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, evaluated):
    parameters = {"RUN": str(evaluated), "DATA": str(evaluated / "survey.h5")}
    notebook = execute(path, parameters)
    assert not [c for c in notebook.cells if c.cell_type == "code" and c.execution_count is None]
    drawn = [o for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    assert any("image/png" in output["data"] for output in drawn)
    if path.stem == "compare_to_AstroNN":  # no catalogue of a mock survey: it says so
        assert "astroNN: None" in printed(notebook) and "baseline" in printed(notebook)
