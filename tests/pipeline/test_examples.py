"""The example scripts, run on a learned project as a reader would run them."""

from __future__ import annotations

import io
import json
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import anndata
import numpy as np
import pytest
from typer.testing import CliRunner

from canal.cli import app
from tests.pipeline.conftest import Line
from tests.support.warm import REPOSITORY

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("examples")]

EXAMPLES = REPOSITORY / "examples"


def run(script: str, *words: str | Path, cwd: Path, expect: int = 0) -> str:
    """Run an example in this process, which has imported what it needs; return what it printed."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [script, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    message = ended.value.code if isinstance(ended.value.code, str) else ""
    code = 1 if message else ended.value.code or 0
    assert code == expect, f"{script} {words} ended with {code}:\n{said.getvalue()[-4000:]}{message}"
    return said.getvalue() + message


@pytest.fixture(scope="module")
def handed(learned, tmp_path_factory) -> tuple[Line, Path, str]:
    """Hand the newest version over: the project, the other laboratory's folder, and what was said."""
    line, _ = learned
    folder = tmp_path_factory.mktemp("elsewhere")
    elsewhere, cells = folder / "lab", folder / "cells.h5ad"
    adata = anndata.read_h5ad(line.root / "raw" / "third.h5ad")
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))  # umap-learn takes seconds
    adata.write_h5ad(cells)
    said = run(
        *("hand_over.py", "candidate", "--project", line.root, "--cells", cells, "--elsewhere", elsewhere),
        cwd=line.root,
    )
    return line, elsewhere, said


@pytest.mark.chaos
def test_a_version_is_handed_over_proven_and_labels_where_no_project_is(handed):
    line, elsewhere, said = handed
    assert not (elsewhere / "params.yaml").exists()
    assert "proven: canal-annotator 2 (second)" in said
    version = line.project().store.version("candidate")
    assert f"labelled by the version with key {version.key[:12]}..." in said
    labelled = anndata.read_h5ad(elsewhere / "labelled.h5ad")
    assert labelled.n_obs == 70
    assert "canal_cell_type" in labelled.obs


def test_cells_are_labelled_and_drawn_by_the_file_that_was_handed_over(handed):
    _, elsewhere, _ = handed
    words = ["cells.h5ad", "--model", "handed-over.zip", "--own-labels", "cell_type", "--out", "figures"]
    said = run("label_and_plot.py", *words, cwd=elsewhere)
    assert "wrote figures" in said
    for name in ("umap.png", "dotplot.png"):
        assert (elsewhere / "figures" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = anndata.read_h5ad(elsewhere / "figures" / "labelled.h5ad")
    beside = anndata.read_h5ad(elsewhere / "labelled.h5ad")
    assert list(found.obs["canal_cell_type"]) == list(beside.obs["canal_cell_type"])
    assert found.obsm["X_umap"].shape == (70, 2)
    again = run("label_and_plot.py", *words, cwd=elsewhere, expect=1)
    assert "exists already: name another folder" in again


def test_what_carries_each_type_is_told_of_the_file_alone(handed):
    _, elsewhere, _ = handed
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        done = CliRunner().invoke(app, ["markers", "handed-over.zip", "--top", "3", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    labelled = anndata.read_h5ad(elsewhere / "labelled.h5ad")
    assert document["model"]["stage"] == "second"
    labels = json.loads(labelled.uns["canal"])["labels"]
    assert [one["cell_type"] for one in document["cell_types"]] == labels
    assert all(len(one["genes"]) == 3 for one in document["cell_types"])


def test_a_refusal_is_one_message(handed, tmp_path, capfd):
    _, elsewhere, _ = handed
    said = run("label_and_plot.py", elsewhere / "cells.h5ad", "--model", "gone.zip", cwd=tmp_path, expect=1)
    assert "gone.zip: no such file" in said
    words = ["champion", "--cells", elsewhere / "cells.h5ad", "--elsewhere"]
    assert "is not empty" in run("hand_over.py", *words, elsewhere, cwd=tmp_path, expect=1)
    run("hand_over.py", *words, tmp_path / "new", cwd=tmp_path, expect=1)
    assert "params.yaml not found" in capfd.readouterr().err  # canal's own words


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_help_tells_what_is_run(script, tmp_path):
    said = run(script, "--help", cwd=tmp_path)
    assert f"python examples/{script}" in said
