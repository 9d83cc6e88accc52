"""A raw file without some cells, and a source of which only that is left."""

import anndata
import h5py
import numpy as np
import pytest

from canal.core.digests import file_digest
from canal.core.errors import DataError, SourceError
from canal.data.prepare import PrepareSettings, prepare, without_cells
from canal.data.sources import fetch
from tests.support.cells import make_adata, source_of, write_adata

TYPES = {"B": 6, "T": 6}


def cells_of(path, **changes):
    cells = make_adata(TYPES, 20, batches=("b1", "b2"))
    cells.obsm["X_umap"] = np.arange(24.0).reshape(12, 2)
    for name, value in changes.items():
        cells.uns[name] = value
    return write_adata(cells, path)


def test_rows_leave_every_table_of_the_file_and_the_others_stay_as_they_are(tmp_path):
    raw, left = cells_of(tmp_path / "raw.h5ad"), tmp_path / "left.h5ad"
    before = anndata.read_h5ad(raw)
    names = list(before.obs_names[:2])
    assert without_cells(raw, left, [("s", source_of(raw), {f"s:{one}" for one in names}, "b2")]) == 7
    after = anndata.read_h5ad(left)
    stays = [one for one in before.obs_names if one not in names and before.obs.loc[one, "batch"] != "b2"]
    assert list(after.obs_names) == stays
    assert (after.X != before[stays].X).nnz == 0
    assert np.array_equal(after.obsm["X_umap"], before[stays].obsm["X_umap"])
    assert "b2" not in left.read_bytes().decode("latin-1")  # not even as a category


def test_only_the_rows_that_a_source_reads_are_its_own(tmp_path):
    raw, left = cells_of(tmp_path / "raw.h5ad"), tmp_path / "left.h5ad"
    source = source_of(raw, where={"cell_type": ["B"]})
    assert without_cells(raw, left, [("s", source, (), "b1")]) == 3
    assert without_cells(raw, left, [("s", source, (), None)]) == 6
    assert set(anndata.read_h5ad(left).obs["cell_type"]) == {"T"}


def test_what_was_compressed_stays_so(tmp_path):
    raw = tmp_path / "raw.h5ad"
    make_adata(TYPES, 20).write_h5ad(raw, compression="gzip")
    without_cells(raw, tmp_path / "left.h5ad", [("s", source_of(raw), (), "b9")])
    with h5py.File(tmp_path / "left.h5ad") as file:
        assert file["X/data"].compression == "gzip"


@pytest.mark.parametrize("note", ["cell0-0001", ["cell0-0001"], {"of": {"cells": np.array(["cell0-0001"])}}])
def test_a_file_that_names_a_cell_elsewhere_is_refused(tmp_path, note):
    raw = cells_of(tmp_path / "raw.h5ad", first=note)
    with pytest.raises(DataError, match="uns names 1 of the cells that are to leave.*available: false"):
        without_cells(raw, tmp_path / "left.h5ad", [("s", source_of(raw), {"s:cell0-0001"}, None)])
    assert not (tmp_path / "left.h5ad").exists()


def test_a_source_of_which_cells_were_erased_is_read_from_what_is_left_alone(tmp_path):
    raw, left = cells_of(tmp_path / "raw.h5ad"), tmp_path / "data" / "s" / "cells.h5ad"
    left.parent.mkdir(parents=True)
    whole = source_of(raw)
    without_cells(raw, left, [("s", whole, (), "b1")])
    source = whole.model_copy(update={"rest": file_digest(left), "path": "raw.h5ad"})
    assert source.declaration() == whole.declaration()  # no request changes
    assert fetch("s", source, tmp_path, tmp_path, print, left) == left
    with pytest.raises(SourceError, match="cells were erased from its file, and no file here has the sha256"):
        fetch("s", source, tmp_path, tmp_path, print)
    settings = PrepareSettings(1, 100)
    about = prepare(left, "s", source, settings, tmp_path / "prepared")
    assert (about.n_cells, about.source_sha256) == (6, source.rest)
    with pytest.raises(SourceError, match="declares sha256"):
        prepare(raw, "s", source, settings, tmp_path / "other")
