"""From novel to known: the cells of a type that no version knows become the next stage."""

from __future__ import annotations

import json

import anndata
import pandas as pd
import pytest
from typer.testing import CliRunner

from canal.annotation.records import make_record
from canal.cli import app
from canal.core.digests import canonical_json, file_digest
from canal.core.files import read_json
from tests.support.cells import make_adata, write_adata
from tests.support.labelled import call_novel
from tests.support.warm import environment

pytestmark = pytest.mark.pipeline


@pytest.fixture
def labelled(line, tmp_path):
    """A file that the project's candidate labelled; all dendritic cells are novel to it."""
    source = write_adata(make_adata({"B": 30, "DC": 60}, seed=5, batches=("d1", "d2")), tmp_path / "in.h5ad")
    line.canal("annotate", str(source), "-o", str(tmp_path / "out.h5ad"))
    return call_novel(tmp_path / "out.h5ad", "DC")


def refused(line, *arguments):
    """Run a command that is to be refused; return the message."""
    done = CliRunner().invoke(app, [*arguments, "--root", str(line.root)])
    assert done.exception is not None, done.output
    return str(done.exception)


def told(line, *arguments):
    """Run a command with --json; return what it printed, without the notices beside it."""
    done = CliRunner().invoke(app, [*arguments, "--json", "--root", str(line.root)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def fill(sheet, *names):
    """Give groups of a sheet their types, in order; the last name is that of all others."""
    table = pd.read_csv(sheet, dtype=str)
    table["cell_type"] = [names[min(i, len(names) - 1)] for i in range(len(table))]
    table.to_csv(sheet, index=False)


@pytest.mark.chaos
def test_novel_cells_become_the_next_stage_and_are_learned(line, labelled, tmp_path, monkeypatch):
    for name, value in environment(line.root).items():
        if name.startswith("GIT_"):
            monkeypatch.setenv(name, value)
    sheet = tmp_path / "sheet.csv"
    shown = told(line, "novel", str(labelled), "-o", str(sheet))
    assert (shown["n_novel"], shown["batch"]) == (60, "batch")
    fill(sheet, "DC")
    line.canal("stage", "add", "dendritic", "--from-novel", str(sheet), "--min-genes", "1", "--commit")
    assert line.run("git", "status", "--porcelain") == ""

    version = line.project().store.version("candidate")
    source = line.project().config.sources["dendritic"]
    assert (source.path, source.values, source.batch) == ("novel/dendritic.h5ad", "counts", "batch")
    assert source.sha256 == file_digest(line.root / "novel" / "dendritic.h5ad")
    for digest in (file_digest(sheet), file_digest(labelled), file_digest(tmp_path / "in.h5ad"), version.key):
        assert digest in source.citation
    about = json.loads(anndata.read_h5ad(line.root / "novel" / "dendritic.h5ad").uns["canal_novel"])
    assert about["model"]["key"] == version.key
    assert about["sheet"]["sha256"] == file_digest(sheet)

    printed = line.learn()
    assert "registered canal-annotator 3 (dendritic)" in printed
    learned = line.project().store.version("candidate")
    assert "DC" in read_json(line.project().store.artifacts(learned) / "model" / "labels.json")


def test_what_does_not_fit_is_refused_and_leaves_nothing(line, labelled, tmp_path):
    sheet, before = tmp_path / "sheet.csv", (line.root / "params.yaml").read_text()
    line.canal("novel", str(labelled), "-o", str(sheet))
    assert "exists already" in refused(line, "novel", str(labelled), "-o", str(sheet))
    add = ("stage", "add", "dendritic", "--from-novel", str(sheet), "--min-genes", "1")
    assert "groups was given a type" in refused(line, *add)
    fill(sheet, "unassigned")
    assert "leave cell_type empty" in refused(line, *add)
    fill(sheet, "N/A")
    assert "which is no cell type: leave cell_type empty" in refused(line, *add)
    fill(sheet, "DC\u202e")
    assert "characters that cannot be seen" in refused(line, *add)
    fill(sheet, "DC")
    assert "leave out --values" in refused(line, *add, "--values", "counts")
    assert "exists already" in refused(line, "stage", "add", "second", "--from-novel", str(sheet))
    assert "is not a name" in refused(line, "stage", "add", "../x", "--from-novel", str(sheet))
    assert "give one of the two" in refused(line, "stage", "add", "x")
    line.edit(lambda document: document["gate"].update(min_cells=500))
    assert "does not pass the gate" in refused(line, *add)
    line.edit(lambda document: document["gate"].update(min_cells=20))

    moved = labelled.rename(tmp_path / "moved.h5ad")
    assert "give its path with --file" in refused(line, *add)
    cells = anndata.read_h5ad(moved)
    cells.obs["mine"] = "x"
    cells.write_h5ad(labelled)
    assert "was changed since" in refused(line, *add)
    assert not list((line.root / "novel").glob("*"))
    line.run("git", "checkout", "--quiet", "params.yaml")
    assert (line.root / "params.yaml").read_text() == before

    record = json.loads(cells.uns["canal"]) | {"model": {"key": "f" * 64, "model": "m", "version": 9}}
    del record["id"], record["format"]
    cells.uns["canal"] = canonical_json(make_record(record))
    cells.write_h5ad(labelled)
    for command in ("novel", "explain"):
        assert "registry does not hold it, and no model on" in refused(line, command, str(labelled))
    assert told(line, "explain", str(moved))
