"""Whatever is wrong with an input or the disk: a clean refusal, nothing half-written, or right answers."""

import resource
import shutil
from contextlib import contextmanager

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from canal.annotation.annotate import annotate_adata, annotate_h5ad, label_h5ad
from canal.annotation.options import Callbacks, Options
from canal.core.errors import CanalError, DataError
from tests.faults.mutations import edit, flip
from tests.support.cells import gene_names, make_adata, write_adata
from tests.support.formats import WRITERS, write_10x_v3, write_csc, write_csr, write_mtx, write_zarr3


@pytest.fixture
def adata():
    cells = make_adata({"B": 30, "NK": 25}, n_genes=30)
    cells.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(10))]
    return cells


@contextmanager
def largest_file(size):
    """Files may not grow beyond ``size`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix])
def test_an_empty_cell_is_unassigned_and_of_low_quality(annotator, adata, form):
    values = adata.X.toarray()
    values[[0, 7]] = 0
    adata.X = form(values)
    with pytest.warns(UserWarning, match="2 cells express none of the model's genes"):
        table = annotate_adata(annotator, adata)
    low = table["canal_low_quality"].to_numpy()
    assert np.flatnonzero(low).tolist() == [0, 7]
    assert set(table["canal_cell_type"][low]) == {"Unassigned"}
    assert np.isfinite(table["canal_confidence"]).all()


def test_cells_of_one_name_keep_it(annotator, adata, tmp_path):
    adata.obs_names = ["twice"] * 55
    source = write_adata(adata, tmp_path / "in.h5ad")
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad")
    assert list(anndata.read_h5ad(tmp_path / "out.h5ad").obs_names) == ["twice"] * 55
    annotate_h5ad(annotator, source, tmp_path / "out.csv")
    assert pd.read_csv(tmp_path / "out.csv")["cell"].tolist() == ["twice"] * 55


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.5])
@pytest.mark.parametrize("form", [csr_matrix, csc_matrix])
def test_one_wrong_value_anywhere_is_refused(annotator, value, form):
    adata = make_adata({"B": 500}, n_genes=20)
    adata.X.data[adata.X.indptr[41]] = value  # in none of the cells that are looked at first
    adata.X = form(adata.X)
    with pytest.raises(DataError, match="first in cell 41 "):
        annotate_adata(annotator, adata)


@pytest.mark.parametrize("write", WRITERS)
def test_no_cells_and_no_genes_are_refused(annotator, adata, tmp_path, write):
    for part, folder in ((adata[:0].copy(), "cells"), (adata[:, :0].copy(), "genes")):
        (tmp_path / folder).mkdir()
        with pytest.raises(DataError):
            label_h5ad(annotator, write(part, tmp_path / folder))


@pytest.mark.parametrize("write", [write_csr, write_zarr3, write_10x_v3, write_mtx])
@pytest.mark.parametrize("suffix", [".h5ad", ".csv", ".parquet"])
def test_a_full_disk_leaves_nothing(annotator, adata, tmp_path, write, suffix):
    source = write(adata, tmp_path)
    target = tmp_path / f"out{'.zarr' if source.suffix == '.zarr' and suffix == '.h5ad' else suffix}"
    before = names(tmp_path)
    with largest_file(500), pytest.raises(DataError, match="cannot be written|has no space for"):
        annotate_h5ad(annotator, source, target)
    assert names(tmp_path) == before
    annotate_h5ad(annotator, source, target)


def test_a_full_temporary_folder_is_told(annotator, adata, tmp_path):
    source = write_csc(adata, tmp_path)
    with largest_file(100), pytest.raises(DataError, match="name another folder with TMPDIR"):
        annotate_h5ad(annotator, source, tmp_path / "out.h5ad")
    assert names(tmp_path) == ["csc.h5ad"]


@pytest.mark.parametrize("write", [write_csr, write_zarr3])
def test_an_input_that_changes_meanwhile_is_refused(annotator, adata, tmp_path, write):
    source = write(adata, tmp_path)
    inner = source if source.is_file() else source / "zarr.json"

    def meddle(done, total):
        if done == total:
            inner.write_bytes(inner.read_bytes() + b" ")

    with pytest.raises(DataError, match="changed while it was read"):
        annotate_h5ad(
            annotator, source, tmp_path / f"out{source.suffix}", callbacks=Callbacks(on_cells=meddle)
        )
    assert names(tmp_path) == [source.name]


def test_an_input_that_is_replaced_while_it_is_copied_is_refused(annotator, adata, tmp_path, monkeypatch):
    source = write_csr(adata, tmp_path)
    copy = shutil.copyfile

    def slow(one, two):
        copy(one, two)
        other = tmp_path / "other"
        copy(one, other)
        other.replace(one)

    monkeypatch.setattr("canal.annotation.output.shutil.copyfile", slow)
    with pytest.raises(DataError, match="changed while it was read"):
        annotate_h5ad(annotator, source, tmp_path / "out.h5ad")
    assert names(tmp_path) == ["csr.h5ad"]


@pytest.mark.parametrize("suffix", [".zarr", ".csv"])
def test_cells_whose_names_are_damaged_are_not_labelled(annotator, adata, tmp_path, suffix):
    source = write_zarr3(adata, tmp_path)
    chunk = next(path for path in (source / "obs" / "_index").rglob("*") if path.name == "0")
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DataError, match="obs/_index"):
        annotate_h5ad(annotator, source, tmp_path / f"out{suffix}")
    assert names(tmp_path) == [source.name]


def test_codes_behind_the_last_category_are_refused(annotator, adata, tmp_path):
    adata.var["feature_name"] = pd.Categorical(list(adata.var_names))
    adata.var_names = [f"ENSG{i:011d}" for i in range(30)]
    source = write_adata(adata, tmp_path / "in.h5ad")
    with h5py.File(source, "r+") as file:
        file["var/feature_name/codes"][3] = 99
    with pytest.raises(DataError, match="points behind the last of 30 categories"):
        label_h5ad(annotator, source)


# --- fuzz: valid files, mutated -------------------------------------------------------------------------

VARIANTS = 60
FLIPS = 15


def judged(annotator, source, target):
    """Return whether a mutated file was labelled, None where it was refused; all else is an error."""
    try:
        annotate_h5ad(annotator, source, target, Options(overwrite=True, chunk_cells=50))
    except CanalError:
        return None
    return pd.read_csv(target, index_col=0)


@pytest.mark.parametrize("mutate", [edit, flip])
@pytest.mark.parametrize("write", [write_csr, write_csc, write_10x_v3, WRITERS[-1]])
@pytest.mark.filterwarnings("ignore")
def test_mutated_files_are_refused_or_labelled(annotator, adata, tmp_path, write, mutate):
    """4 formats x (60 + 15) variants: labels that are given are of the file's own cells and finite."""
    valid = write(adata, tmp_path)
    source, target = tmp_path / f"fuzzed{valid.suffix}", tmp_path / "out.csv"
    rng = np.random.default_rng(WRITERS.index(write))
    refused = 0
    for _ in range(VARIANTS if mutate is edit else FLIPS):
        shutil.copyfile(valid, source)
        mutate(source, rng)
        found = judged(annotator, source, target)
        refused += found is None
        if found is not None:
            assert set(found["canal_best_type"]) <= set(annotator.labels)
            assert np.isfinite(found[["canal_confidence", "canal_novelty"]].to_numpy()).all()
        assert {valid.name, source.name} <= set(names(tmp_path)) <= {valid.name, source.name, target.name}
    assert refused
