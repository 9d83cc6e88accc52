"""A labelled file found a year later names the version that made it, with a project at hand or without."""

import json
import sqlite3

import anndata
import pandas as pd
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from canal.annotation.output import Output
from canal.annotation.records import make_record
from canal.app.annotating import record_logger, who
from canal.app.models import provenance
from canal.app.origins import origin
from canal.cli import app
from canal.core.digests import canonical_json, file_digest
from canal.core.errors import CanalError, DataError
from tests.support.cells import make_adata, write_adata
from tests.support.formats import write_10x_v3
from tests.support.registry_made import two_stages


@pytest.fixture
def made(tmp_path):
    return two_stages(tmp_path / "project")


def label(made, path, wanted="2", log=True, **changes):
    """Write a file as `canal annotate` leaves it, and its line in the log."""
    version = made.project.store.version(wanted)
    cells = make_adata({"B": 3, "T": 2}, n_genes=5)
    cells.obs["canal_cell_type"] = pd.Categorical(["B", "B", "T", "T", "Unassigned"])
    source = write_adata(cells, path.with_name("given.h5ad"))
    facts = {
        **origin(source),
        "model": provenance(version),
        "options": {"layer": "X"},
        "cell_types": {"B": 2, "T": 2, "Unassigned": 1},
        "n_cells": 5,
    }
    record = canonical_json(make_record(facts) | changes)
    cells.uns["canal"] = record
    if log:
        record_logger(made.project, lambda message: pytest.fail(message))(record)
    return write_adata(cells, path)


def warned(path, root):
    said = CliRunner().invoke(app, ["who", str(path), "--root", str(root)], env={"COLUMNS": "200"})
    assert said.exit_code == 0, said.exception
    return [line for line in said.output.splitlines() if line.startswith("warning")], said.output


def test_the_file_names_its_version_and_the_registry_confirms_it(made, tmp_path):
    path = label(made, tmp_path / "out.h5ad")
    found = who(path, made.root)
    version = made.project.store.version("2")
    assert found["record"]["model"] == provenance(version)
    assert found["record"]["input"]["sha256"] == file_digest(tmp_path / "given.h5ad")
    assert found["genuine"]
    assert found["labels"]["as_written"]
    assert found["registry"] == {
        "model": "canal-annotator",
        "known": True,
        "version": 2,
        "same_number": True,
        "same_record": True,
        "aliases": ["candidate"],
        "retired": False,
        "erased": False,
        "champion": 1,
        "logged": True,
    }
    warnings, text = warned(path, made.root)
    assert warnings == []
    assert "canal-annotator 2 (second)" in text
    assert version.key in text.replace("\n", "")


def test_labels_under_several_keys_are_chosen_among(made, tmp_path):
    path = label(made, tmp_path / "out.h5ad")
    cells = anndata.read_h5ad(path)
    facts = json.loads(cells.uns["canal"]) | {"options": {"layer": "X", "key_added": "atlas"}}
    facts.pop("id")
    cells.uns["atlas"] = canonical_json(make_record(facts))
    cells.obs["atlas_cell_type"] = cells.obs["canal_cell_type"]
    write_adata(cells, path)
    for key, other in (("canal", "atlas"), ("atlas", "canal")):
        found = who(path, made.root, key)
        assert (found["key_added"], found["others"], found["genuine"]) == (key, [other], True)
        assert found["labels"]["as_written"]
    told = CliRunner().invoke(app, ["who", str(path), "--key-added", "atlas", "--root", str(made.root)])
    assert "under canal (--key-added)" in told.output
    with pytest.raises(DataError, match=r"no annotation record under 'none'.*under 'atlas', 'canal'"):
        who(path, made.root, "none")


def test_without_a_project_the_file_still_speaks(made, tmp_path, monkeypatch):
    path = label(made, tmp_path / "out.h5ad")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    found = who(path)
    assert found["record"]["model"]["version"] == 2
    assert found["registry"] is None
    assert "params.yaml not found" in found["not_checked"]
    said = CliRunner().invoke(app, ["who", str(path), "--json"])
    assert json.loads(said.stdout) == found
    assert "could not be checked" in CliRunner().invoke(app, ["who", str(path)]).output


def test_a_version_of_another_registry_is_unknown_here(made, tmp_path):
    path = label(made, tmp_path / "out.h5ad")
    with sqlite3.connect(made.root / "mlflow.db") as database:
        database.execute("UPDATE model_version_tags SET value = ? WHERE key = 'canal.key'", ("f" * 64,))
    database.close()
    assert not who(path, made.root)["registry"]["known"]
    assert "no version of canal-annotator has this key" in warned(path, made.root)[1]


def test_a_retired_version_is_warned_of(made, tmp_path):
    path = label(made, tmp_path / "out.h5ad")
    with sqlite3.connect(made.root / "mlflow.db") as database:
        row = ("default", "canal-annotator", 2, "canal.retired", "true")
        database.execute("INSERT INTO model_version_tags VALUES (?, ?, ?, ?, ?)", row)
    database.close()
    assert "was retired since" in warned(path, made.root)[0][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[:3].copy(), "the file holds 3 cells, 5 were labelled"),
        (lambda cells: relabelled(cells), "the number of cells differs for 2 types"),
        (lambda cells: without(cells), "obs has no column canal_cell_type any more"),
    ],
)
def test_labels_that_were_changed_since_are_told(made, tmp_path, change, message):
    path = label(made, tmp_path / "out.h5ad")
    write_adata(change(anndata.read_h5ad(path)), path)
    (warning,), _ = warned(path, made.root)
    assert message in warning


def test_an_edited_record_is_told(made, tmp_path):
    path = label(made, tmp_path / "out.h5ad", log=False, time="2020-01-01T00:00:00+00:00")
    warnings, _ = warned(path, made.root)
    assert any("edited after it was written" in one for one in warnings)
    assert any("annotations.jsonl does not know this record" in one for one in warnings)


def test_a_rebuilt_registry_knows_the_version_under_its_new_number(made, tmp_path):
    path = label(made, tmp_path / "out.h5ad")
    with sqlite3.connect(made.root / "mlflow.db") as database:
        for table in ("model_versions", "model_version_tags", "registered_model_aliases"):
            database.execute(f"UPDATE {table} SET version = 7 WHERE version = 2")
    database.close()
    assert who(path, made.root)["registry"]["version"] == 7
    assert any("under another number" in one for one in warned(path, made.root)[0])


def test_a_file_without_a_record_is_refused(tmp_path):
    path = write_adata(make_adata({"B": 3}, n_genes=5), tmp_path / "x.h5ad")
    with pytest.raises(DataError, match="uns holds no annotation record"):
        who(path)
    assert isinstance(CliRunner().invoke(app, ["who", str(path)]).exception, CanalError)


def test_where_the_log_cannot_be_written_the_file_alone_has_the_record(made):
    made.project.layout.annotations.mkdir()  # no file can be written under this name, not even by root
    told = []
    record_logger(made.project, told.append)("{}")
    assert "annotations.jsonl cannot be written" in told[0]


def test_each_annotation_is_one_line_of_the_log(made):
    log = record_logger(made.project, lambda message: pytest.fail(message))
    for number in range(3):
        log(f'{{"n": {number}}}')
    lines = made.project.layout.annotations.read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [0, 1, 2]


def relabelled(cells):
    cells.obs["canal_cell_type"] = pd.Categorical(["B", "B", "B", "T", "Unassigned"])
    return cells


def without(cells):
    del cells.obs["canal_cell_type"]
    return cells


SUFFIXES = (".h5ad", ".zarr", ".parquet", ".csv")


def write_as(made, folder, suffix):
    """Write labels as `canal annotate` does, in the format that the suffix names."""
    cells = make_adata({"B": 3, "T": 2}, n_genes=5)
    source = folder / ("in.zarr" if suffix == ".zarr" else "in.h5ad")
    (cells.write_zarr if suffix == ".zarr" else cells.write_h5ad)(source)
    facts = {
        **origin(source),
        "model": provenance(made.project.store.version("2")),
        "options": {},
        "cell_types": {"B": 2, "NA": 2, "Unassigned": 1},  # NA: a name that tables take for nothing
        "n_cells": 5,
    }
    columns = pd.DataFrame(
        {"canal_cell_type": pd.Categorical(["B", "B", "NA", "NA", "Unassigned"])}, index=cells.obs_names
    )
    log = record_logger(made.project, lambda message: pytest.fail(message))
    target = folder / f"out{suffix}"
    Output.find(source, target, only_obs=False).write(columns, canonical_json(make_record(facts)), log)
    return target


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whatever_annotate_writes_says_who(made, tmp_path, suffix):
    path = write_as(made, tmp_path, suffix)
    found = who(path, made.root)
    assert found["record"]["model"] == provenance(made.project.store.version("2"))
    assert found["genuine"]
    assert found["labels"] == {"as_written": True, "n_cells": 5, "why": ""}
    assert (found["registry"]["version"], found["registry"]["logged"]) == (2, True)
    assert warned(path, made.root)[0] == []


@pytest.mark.parametrize("suffix", [".parquet", ".zarr"])
def test_what_holds_its_record_speaks_without_a_project(made, tmp_path, monkeypatch, suffix):
    path = write_as(made, tmp_path, suffix)
    monkeypatch.chdir(tmp_path)
    found = who(path)
    assert found["record"]["model"]["version"] == 2
    assert "params.yaml not found" in found["not_checked"]


def test_a_csv_file_needs_the_log_that_names_it(made, tmp_path, monkeypatch):
    path = write_as(made, tmp_path, ".csv")
    assert who(path.rename(tmp_path / "elsewhere.csv"), made.root)["record"]["output"] == {
        "sha256": file_digest(tmp_path / "elsewhere.csv")
    }
    (tmp_path / "edited.csv").write_text((tmp_path / "elsewhere.csv").read_text().replace("B", "T", 1))
    with pytest.raises(DataError, match=r"none of the 1 records in annotations.jsonl names a CSV file with"):
        who(tmp_path / "edited.csv", made.root)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError,
        match=r"its annotations\.jsonl does: name the project with --root\. If a model's file .*no record "
        r"was kept: label again with -o labels\.parquet",
    ):
        who(tmp_path / "elsewhere.csv")


def test_a_parquet_table_that_was_changed_is_told(made, tmp_path):
    path = write_as(made, tmp_path, ".parquet")
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.slice(0, 3), path)
    assert "the file holds 3 cells, 5 were labelled" in warned(path, made.root)[0][0]
    pyarrow.parquet.write_table(table.drop_columns("canal_cell_type"), path)
    assert "the table has no column canal_cell_type" in warned(path, made.root)[0][0]
    pd.read_parquet(path).to_parquet(path)
    with pytest.raises(DataError, match="metadata hold no annotation record"):
        who(path, made.root)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"canal": "[]"}), path)
    with pytest.raises(DataError, match="is no annotation record: it lacks"):
        who(path, made.root)


@pytest.mark.parametrize("suffix", [".parquet", ".zarr", ".csv", ".h5ad"])
def test_what_cannot_be_read_is_refused(made, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(DataError, match="no such file"):
        who(path, made.root)
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match="cannot be read as Parquet|no readable|none of the 0 records"):
        who(path, made.root)


def test_a_file_of_counts_is_not_what_annotate_writes(made, tmp_path):
    path = write_10x_v3(make_adata({"B": 3}, n_genes=5), tmp_path)
    with pytest.raises(DataError, match="expected an output of `canal annotate`"):
        who(path, made.root)
