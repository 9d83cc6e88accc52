"""The same cells give the same labels, whatever the format and however they are read."""

import json

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix

from canal.annotation.annotate import annotate_adata, annotate_h5ad, label_h5ad
from canal.annotation.options import Callbacks, Options
from canal.annotation.output import Output
from canal.core.errors import DataError
from canal.io import blocks, matrices
from canal.io.formats import format_of
from tests.support.cells import gene_names, make_adata
from tests.support.formats import H5AD, OTHERS, WRITERS, ZARR, write_10x_v3, write_csc, write_mtx, write_zarr3

LABELS = ["canal_cell_type", "canal_best_type", "canal_is_novel", "canal_low_quality"]
SCORES = ["canal_confidence", "canal_novelty"]


@pytest.fixture
def adata():
    cells = make_adata({"B": 30, "NK": 25}, n_genes=60)
    cells.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(40))]
    cells.obsm["X_umap"] = np.arange(110.0).reshape(55, 2)
    cells.layers["spliced"] = cells.X.copy()
    cells.uns["nested"] = {"colours": np.array(["red", "blue"]), "n": 3}
    return cells


@pytest.fixture
def small_buckets(monkeypatch):
    """So that gathering takes many blocks and buckets."""
    monkeypatch.setattr(blocks, "_BUCKET", 100)
    monkeypatch.setattr(matrices, "_BLOCK", 37)


def assert_same(found, wanted):
    pd.testing.assert_frame_equal(found[LABELS].astype(str), wanted[LABELS].astype(str))
    np.testing.assert_allclose(found[SCORES], wanted[SCORES], atol=1e-4)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.usefixtures("small_buckets")
def test_every_format_gives_the_same_labels(annotator, adata, tmp_path, write):
    wanted = annotate_adata(annotator, adata)
    source = write(adata, tmp_path)
    assert_same(label_h5ad(annotator, source, Options(chunk_cells=13)), wanted)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.usefixtures("small_buckets")
def test_blocks_of_a_matrix_by_gene_do_not_matter(annotator, adata, tmp_path, chunk):
    source = write_csc(adata, tmp_path)
    assert_same(label_h5ad(annotator, source, Options(chunk_cells=chunk)), annotate_adata(annotator, adata))


def test_order_and_neighbours_do_not_matter(annotator, adata):
    wanted = annotate_adata(annotator, adata)
    order = np.random.default_rng(1).permutation(adata.n_obs)[:40]
    assert_same(annotate_adata(annotator, adata[order].copy()), wanted.iloc[order])


def test_genes_in_another_order_do_not_matter(annotator, adata):
    order = np.random.default_rng(1).permutation(adata.n_vars)
    assert_same(annotate_adata(annotator, adata[:, order].copy()), annotate_adata(annotator, adata))


def test_threads_do_not_matter(annotator, adata):
    import torch

    wanted = annotate_adata(annotator, adata)
    torch.set_num_threads(2)
    try:
        assert_same(annotate_adata(annotator, adata), wanted)
    finally:
        torch.set_num_threads(1)


def test_an_adata_by_gene_is_the_same(annotator, adata):
    wanted = annotate_adata(annotator, adata)
    adata.X = csc_matrix(adata.X)
    before = adata.X.copy()
    assert_same(annotate_adata(annotator, adata), wanted)
    assert (before != adata.X).nnz == 0


def test_a_backed_adata_by_gene_is_the_same(annotator, adata, tmp_path):
    backed = anndata.read_h5ad(write_csc(adata, tmp_path), backed="r")
    assert_same(annotate_adata(annotator, backed), annotate_adata(annotator, adata))
    backed.file.close()


@pytest.mark.parametrize("write", [*H5AD, *ZARR])
def test_all_else_survives(annotator, adata, tmp_path, write):
    source = write(adata, tmp_path)
    target = tmp_path / f"out{source.suffix}"
    annotate_h5ad(annotator, source, target)
    read = anndata.read_zarr if source.suffix == ".zarr" else anndata.read_h5ad
    before, after = read(source), read(target)
    assert json.loads(after.uns.pop("canal"))["n_cells"] == 55
    assert_same(after.obs, annotate_adata(annotator, adata))
    assert type(after.X) is type(before.X)
    pd.testing.assert_frame_equal(after.obs[list(before.obs)], before.obs)
    pd.testing.assert_frame_equal(after.var, before.var)
    np.testing.assert_array_equal(after.obsm["X_umap"], before.obsm["X_umap"])
    assert (after.layers["spliced"] != before.layers["spliced"]).nnz == 0
    assert after.uns["nested"]["colours"].tolist() == ["red", "blue"]
    assert set(after.uns) == {*before.uns, "canal_cell_type_colors", "canal_best_type_colors"}


@pytest.mark.parametrize("write", OTHERS)
@pytest.mark.usefixtures("small_buckets")
def test_other_formats_become_h5ad(annotator, adata, tmp_path, write):
    annotate_h5ad(annotator, write(adata, tmp_path), tmp_path / "out.h5ad")
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(found.obs_names) == list(adata.obs_names)
    assert list(found.var_names) == list(adata.var_names)
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    assert_same(found.obs, annotate_adata(annotator, adata))
    assert json.loads(found.uns["canal"])["values"] == "counts"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_labels_alone(annotator, adata, tmp_path, suffix):
    target = tmp_path / f"out{suffix}"
    said = []
    source = write_zarr3(adata, tmp_path)
    annotate_h5ad(annotator, source, target, Options(only_obs=True), Callbacks(on_record=said.append))
    found = pd.read_csv(target, index_col=0) if suffix == ".csv" else pd.read_parquet(target)
    assert list(found.index) == list(adata.obs_names)
    assert found.index.name == "cell"
    wanted = annotate_adata(annotator, adata)
    wanted.index.name = "cell"
    assert_same(found, wanted)
    assert json.loads(said[0])["n_cells"] == 55
    if suffix == ".parquet":
        import pyarrow.parquet

        assert pyarrow.parquet.read_schema(target).metadata[b"canal"].decode() == said[0]


def test_a_name_that_fits_no_output_is_refused_before_any_work(annotator, adata, tmp_path):
    source, zarr = H5AD[0](adata, tmp_path), write_zarr3(adata, tmp_path)
    with pytest.raises(DataError, match=r"\.csv or \.parquet"):
        annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(only_obs=True))
    with pytest.raises(DataError, match=r"copy of a zarr input must be OUT\.zarr"):
        annotate_h5ad(annotator, zarr, tmp_path / "out.h5ad")
    with pytest.raises(DataError, match=r"copy of a h5ad input must be OUT\.h5ad"):
        annotate_h5ad(annotator, source, tmp_path / "out.zarr")
    with pytest.raises(DataError, match="is inside the input"):
        annotate_h5ad(annotator, zarr, zarr / "out.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a zarr store nor a 10x folder"):
        format_of(tmp_path / "empty")


def test_what_is_no_gene_counts_nowhere(annotator, adata, tmp_path):
    """Antibodies of CITE-seq have names of genes, and counts far above theirs."""
    wanted = annotate_adata(annotator, adata)
    extra = adata[:, :5].copy()
    extra.X = extra.X * 50
    both = anndata.concat([adata, extra], axis=1)
    path = write_10x_v3(both, tmp_path)
    with h5py.File(path, "r+") as file:
        kinds = ["Gene Expression"] * 60 + ["Antibody Capture"] * 5
        del file["matrix/features/feature_type"]
        file["matrix/features/feature_type"] = np.array(kinds, dtype="S")
    assert_same(label_h5ad(annotator, path), wanted)


def test_several_genomes_are_refused(tmp_path, adata, annotator):
    path = WRITERS[6](adata, tmp_path)
    with h5py.File(path, "r+") as file:
        file.copy("hg19", "mm10")
    with pytest.raises(DataError, match="matrices of 2 genomes, 'hg19', 'mm10'"):
        label_h5ad(annotator, path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("matrix.mtx", lambda text: text[: len(text) // 2].rsplit("\n", 1)[0] + "\n", "values are announced"),
        ("matrix.mtx", lambda text: text.replace("%%Matrix", "%Matrix", 1), "MatrixMarket"),
        ("matrix.mtx", lambda text: text.replace("integer", "complex", 1), "integer or real"),
        ("matrix.mtx", lambda text: text.rstrip("\n").rsplit("\n", 1)[0] + "\n999 1 1\n", "expected 1…60"),
        ("matrix.mtx", lambda text: text.rstrip("\n").rsplit("\n", 1)[0] + "\nx 1 1\n", "damaged"),
        ("barcodes.tsv", lambda text: text.split("\n", 1)[1], "60 features and 54 barcodes"),
    ],
)
def test_damaged_folders_are_refused(annotator, adata, tmp_path, name, change, message):
    folder = write_mtx(adata, tmp_path)
    (folder / name).write_text(change((folder / name).read_text()))
    with pytest.raises(DataError, match=message):
        label_h5ad(annotator, folder)


def test_a_folder_without_its_barcodes_is_refused(annotator, adata, tmp_path):
    folder = write_mtx(adata, tmp_path)
    (folder / "barcodes.tsv").unlink()
    with pytest.raises(DataError, match=r"expected one of barcodes\.tsv, barcodes\.tsv\.gz"):
        label_h5ad(annotator, folder)


def test_a_zarr_store_that_lost_a_chunk_is_refused(annotator, adata, tmp_path):
    """zarr reads a chunk that is not there as zeros."""
    store = write_zarr3(adata, tmp_path)
    files = [path for path in (store / "X" / "data").rglob("*") if path.is_file()]
    next(path for path in files if path.name != "zarr.json").unlink()
    with pytest.raises(DataError, match="chunks are not there"):
        label_h5ad(annotator, store)


@pytest.mark.parametrize("name", ["labels.tsv", "labels.CSV", "labels.loom", "labels.xlsx"])
def test_a_copy_in_hdf5_is_not_given_the_name_of_another_format(tmp_path, name):
    source = tmp_path / "in.h5ad"
    with h5py.File(source, "w") as file:
        file.create_group("obs")
    with pytest.raises(DataError, match=r"must be OUT.h5ad; give such a name, or OUT.csv"):
        Output.find(source, tmp_path / name, only_obs=False)
    assert not Output.find(source, tmp_path / "labelled.h5ad", only_obs=False).is_table
