"""The notebook runs from top to bottom, on the default model, and its cells print what the text around them says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


@pytest.fixture(name="printed", scope="module")
def run(tmp_path_factory):
    """What each code cell prints, by its id."""
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    folder = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    NotebookClient(notebook, timeout=80, kernel_name="python3", resources=folder).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return {cell.id: "".join(each.get("text", "") for each in cell.outputs if each.get("name") == "stdout") for cell in cells}


def test_it_is_kept_without_what_it_printed():
    for cell in nbformat.read(PATH, as_version=4).cells:
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None


@pytest.mark.real
def test_it_runs_from_top_to_bottom(printed):
    assert "written=3" in printed["write"]
    assert "3 unchanged" in printed["write"]
    modes = {line.split()[0]: line for line in printed["ask"].splitlines()}
    assert set(modes) == {"memory", "text", "none"}
    assert "Ada Brennan" in modes["memory"]
    assert "Ada Brennan" not in modes["none"]
    assert int(modes["text"].split()[1]) > int(modes["memory"].split()[1])
    assert "guide/bridge.md" in printed["cite"].splitlines()[0]
    event, plant = printed["where"].splitlines()
    assert "guide/fair.md" in event
    assert plant.split("  |  ")[1] == "[]"
    assert "plant" in plant.split("  |  ")[3]
    assert "smollm2-135m-instruct@holm" in printed["serve"]
    assert "Ada Brennan" in printed["chat"]
    assert "<- guide/bridge.md" in printed["chat"]
    assert len(printed["many"].splitlines()) == 3
    assert "June" in printed["many"]
