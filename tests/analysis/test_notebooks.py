"""On a finished run: the notebooks from top to bottom (also on a sweep of copies of it), and its rollouts."""

import io
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from mmrl import analysis

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
FIGURES = {"what_papo_changes": 5, "ablation_table": 3, "where_it_looks": 4}
LONGEST_S = 600  # a cell; on CI they take seconds


def executed(name: str, **environment: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    settings = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **environment}
    client = NotebookClient(
        notebook, timeout=LONGEST_S, resources={"metadata": {"path": str(NOTEBOOKS)}}, kernel_name="python3"
    )
    return client.execute(env={**os.environ, **settings})


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def test_there_are_no_others():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == FIGURES.keys()


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_is_kept_without_outputs(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert outputs(notebook) == []
    assert all(cell.get("execution_count") is None for cell in notebook.cells)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FIGURES)
def test_notebook_runs(name, smoke_run, sweep_folder):
    done = executed(name, MMRL_RUN=str(smoke_run), MMRL_SWEEP=str(sweep_folder))
    figures = [one for one in outputs(done) if "image/png" in one.get("data", {})]
    assert len(figures) == FIGURES[name]


@pytest.mark.exhaustive
def test_rollouts_of_a_run_are_shown_with_what_the_model_saw(smoke_run):
    run = analysis.load_run(smoke_run)
    shown = analysis.rollout_sample(run, 3)
    assert len({one.sample.id for one in shown}) == 3
    for one in shown:
        assert one.sample.id == one.row["id"]
        assert "".join(one.perception.pieces) == one.row["response"]
        assert one.perception.tokens.tolist() == one.row["tokens"]
        assert len(one.perception.exact) == len(one.row["tokens"])
        (seen,), (corrupted,) = (
            [Image.open(io.BytesIO(png)) for png in each] for each in (one.images, one.corrupted)
        )
        assert seen.size == corrupted.size
        assert seen.tobytes() != corrupted.tobytes()
    before = analysis.rollout_sample(run, 3, when="before")
    assert [one.row for one in before] == analysis.choose_evenly(run.before, 3)
    with pytest.raises(ValueError, match="no checkpoint of step 77"):
        analysis.rollout_sample(run, 1, step=77)
