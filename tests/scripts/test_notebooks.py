"""The notebooks: stored with their outputs, and they run from their first cell to their last."""

import os
import re

import pytest
from apogee_files import apstar_hdus
from chain import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

COMPARISON = ROOT / "results/real_spectra_finetune/compare_to_AstroNN.ipynb"
ALONE = [ROOT / "results/quickstart.ipynb", *sorted((ROOT / "docs/tutorials").glob("*.ipynb"))]
MOST_BYTES = 1_000_000


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(path, **parameters):
    """Execute a notebook where it lies; `parameters` replace those of its tagged cell."""
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", []):
            lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
            notebook.cells.insert(number + 1, nbformat.v4.new_code_cell(lines))
            break
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}
    )
    return client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})


def printed(notebook) -> str:
    """What the cells printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("path", [COMPARISON, *ALONE], ids=lambda path: path.stem)
def test_notebooks_are_stored_with_their_outputs(path):
    notebook, text = nbformat.read(path, as_version=4), path.read_text(encoding="utf-8")
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert all(cell.execution_count is not None for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    assert len(text.encode()) < MOST_BYTES
    # Nothing of the machine on which it was executed.
    assert not re.search(r"/(home|root|tmp|Users|work|usr|opt)/|site-packages", text)


@pytest.mark.slow
@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path):
    file = tmp_path / "apStar-dr17-2M00000000+0000000.fits"
    apstar_hdus().writeto(file)
    notebook = execute(path, FILE=str(file), FILES=[str(file)])
    assert all(cell.execution_count is not None for cell in code_cells(notebook))


@pytest.mark.slow
def test_the_comparison_runs(evaluated):
    notebook = execute(COMPARISON, RUN=str(evaluated), DATA=str(evaluated / "survey.h5"))
    # No catalogue of a mock survey: it says so.
    assert "astroNN: None" in printed(notebook) and "baseline" in printed(notebook)


@pytest.mark.slow
def test_the_comparison_says_what_is_missing(tmp_path):
    with pytest.raises(nbclient.exceptions.CellExecutionError) as error:
        execute(COMPARISON, RUN=str(tmp_path / "run"), DATA=str(tmp_path / "survey.h5"))
    message = str(error.value)
    assert "There is no" in message and "make reproduce PROFILE=laptop" in message
    assert "Traceback" not in message
