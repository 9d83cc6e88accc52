"""What canal does not take is refused by the name of its cause, with the way out."""

import gzip
import subprocess
import sys
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

import canal
from canal.annotation.annotate import annotate_adata, label_h5ad
from canal.core.errors import CanalError, DataError
from canal.io.h5ad import open_h5ad
from tests.support.cells import write_adata
from tests.support.formats import write_csr, write_dense, write_mtx, write_mtx_gz, write_zarr2, write_zarr3

LABEL = "canal_cell_type"


@pytest.fixture(scope="module")
def labels(annotator, adata):
    return annotate_adata(annotator, adata)[LABEL].tolist()


def labelled(annotator, path):
    return label_h5ad(annotator, path)[LABEL].tolist()


@pytest.mark.parametrize("name", ["Zstd", "Blosc", "Blosc2", "LZ4", "Bitshuffle", "BZip2"])
def test_compressions_that_hdf5_lacks_are_read(annotator, adata, labels, tmp_path, name):
    import hdf5plugin

    path = tmp_path / "a.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for key in ("X/data", "X/indices"):
            values = file[key][:]
            del file[key]
            file.create_dataset(key, data=values, chunks=(64,), **getattr(hdf5plugin, name)())
    assert labelled(annotator, path) == labels


def test_a_compression_that_nobody_has_is_named(annotator, adata, tmp_path):
    path = write_csr(adata, tmp_path)
    with h5py.File(path, "r+") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((64,))
        made.set_filter(32123, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((100,))
        h5py.h5d.create(file["obsm"].id, b"X_pca", h5py.h5t.NATIVE_FLOAT, space, made)
    with pytest.raises(DataError, match=r"'/obsm/X_pca' is compressed by HDF5 filter 32123 .*hdf5plugin"):
        label_h5ad(annotator, path)


def test_more_compressions_are_loaded_where_they_are_needed_alone(adata, tmp_path):
    path = write_csr(adata, tmp_path)
    code = (
        "import sys; from pathlib import Path; from canal.io.h5ad import open_h5ad\n"
        f"with open_h5ad(Path({str(path)!r})) as file: file.matrix('X').rows(0, 3)\n"
        "sys.exit('hdf5plugin' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_that_is_gzipped_as_a_whole(annotator, adata, tmp_path):
    path = tmp_path / "a.h5ad.gz"
    path.write_bytes(gzip.compress(write_csr(adata, tmp_path).read_bytes()))
    with pytest.raises(DataError, match="compressed by gzip as a whole: unpack it first, with gunzip"):
        label_h5ad(annotator, path)


@pytest.mark.parametrize(
    ("name", "content", "way"),
    [
        ("a.csv", b"cell,GENE1\nx,1\n", r"scanpy\.read_csv\(FILE\)"),
        ("a.tsv", b"", r"scanpy\.read_csv\(FILE\)"),
        ("a.RDS", gzip.compress(b"RDX3"), "zellkonverter::writeH5AD"),
    ],
)
def test_a_file_of_another_format_is_refused_with_the_way_to_h5ad(tmp_path, name, content, way):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is no h5ad file but .*{way}"), open_h5ad(tmp_path / name):
        pass


def test_the_end_of_a_name_does_not_decide_what_a_file_is(annotator, adata, tmp_path):
    path = write_csr(adata, tmp_path).rename(tmp_path / "cells.txt")
    assert label_h5ad(annotator, path).shape[0] == adata.n_obs


@pytest.mark.parametrize("write", [write_mtx, write_mtx_gz])
def test_a_matrix_without_its_folder(annotator, adata, tmp_path, write):
    path = next(write(adata, tmp_path).glob("matrix.mtx*"))
    with pytest.raises(DataError, match="matrix of a 10x folder alone: give the folder"):
        label_h5ad(annotator, path)


def test_a_folder_of_several_samples(annotator, adata, tmp_path):
    folder = write_mtx_gz(adata, tmp_path)
    for path in list(folder.iterdir()):
        path.rename(folder / f"GSM1_{path.name}")
    with pytest.raises(DataError, match=r"but there are 'GSM1_matrix\.mtx\.gz': put the files of one sample"):
        label_h5ad(annotator, folder)


def test_a_folder_that_r_wrote(annotator, adata, labels, tmp_path):
    folder = write_mtx(adata, tmp_path)
    for name in ("barcodes.tsv", "genes.tsv"):
        lines = (folder / name).read_text().splitlines()
        quoted = ["\t".join(f'"{field}"' for field in line.split("\t")) for line in lines]
        (folder / name).write_text("\n".join(quoted) + "\n")
    found = label_h5ad(annotator, folder)
    assert found[LABEL].tolist() == labels
    assert list(found.index) == list(adata.obs_names)
    text = (folder / "barcodes.tsv").read_text()
    (folder / "barcodes.tsv").write_text('"x"\n' + text)
    with pytest.raises(DataError, match="the first line of barcodes may name the columns"):
        label_h5ad(annotator, folder)


def test_a_transposed_10x_folder(annotator, adata, tmp_path):
    folder = write_mtx(adata, tmp_path)
    head, sizes, *lines = (folder / "matrix.mtx").read_text().replace("%metadata_json: {}\n", "").splitlines()
    turned = [
        " ".join((cell, gene, value)) for gene, cell, value in (line.split() for line in [sizes, *lines])
    ]
    (folder / "matrix.mtx").write_text("\n".join([head, *turned]) + "\n")
    with pytest.raises(DataError, match="the matrix is transposed, 21 cells by 30 features"):
        label_h5ad(annotator, folder)


def test_a_transposed_adata(annotator, adata, tmp_path):
    turned = anndata.AnnData(adata.X.T.tocsr())
    turned.obs_names, turned.var_names = adata.var_names, adata.obs_names
    message = (
        r"20 of them are names of its cells: the matrix is transposed \(genes by cells\); transpose it back"
    )
    with pytest.raises(DataError, match=message):
        annotate_adata(annotator, turned)
    with pytest.raises(DataError, match=message):
        label_h5ad(annotator, write_adata(turned, tmp_path / "a.h5ad"))


def test_a_matrix_that_lies_across_its_tables(annotator, adata, tmp_path):
    path = write_dense(adata, tmp_path)
    with h5py.File(path, "r+") as file:
        values = file["X"][:].T
        del file["X"]
        file["X"] = values
    with pytest.raises(DataError, match="30 genes by 21 cells: it is transposed"):
        label_h5ad(annotator, path)


def test_mudata_in_a_file(annotator, adata, tmp_path):
    from anndata.io import write_elem

    path = tmp_path / "a.h5mu"
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "MuData"
        for key in ("obs", "var"):
            write_elem(file, key, getattr(adata, key))
        file.create_group("mod")
        for name in ("prot", "rna"):
            write_elem(file, f"mod/{name}", adata)
    with pytest.raises(DataError, match=r"MuData, with the modalities 'prot', 'rna': .*\['rna'\]\.write"):
        label_h5ad(annotator, path)


@pytest.mark.parametrize("write", [write_zarr2, write_zarr3])
def test_chunks_of_zeros_that_zarr_does_not_store(annotator, adata, tmp_path, write):
    """Zarr's rule: what is not there is zero. Dense values, and indices of the first gene."""
    zeros = adata.copy()
    zeros.X[:, 10:20] = 0
    zeros.X.eliminate_zeros()
    wanted = annotate_adata(annotator, zeros)[LABEL].tolist()
    dense = zeros.copy()
    dense.X = dense.X.toarray()
    with anndata.settings.override(zarr_write_format=3 if write is write_zarr3 else 2):
        dense.write_zarr(tmp_path / "dense.zarr", chunks=(5, 10))
    assert labelled(annotator, tmp_path / "dense.zarr") == wanted


def test_indices_of_the_first_gene_alone(annotator, adata, tmp_path):
    """A chunk of them is zeros, which zarr does not store; one that was lost gives a cell two values."""
    import zarr

    first = adata.copy()
    first.X = csr_matrix(first.X.toarray() * (np.arange(30) == 0) + (np.arange(30) == 0))
    store = write_zarr3(first, tmp_path)
    group = zarr.open_group(store, mode="r+", use_consolidated=False)["X"]
    del group["indices"]
    group.create_array("indices", shape=(21,), dtype="int32", chunks=(3,))
    assert group["indices"].nchunks_initialized == 0
    assert len(labelled(annotator, store)) == 21
    spoilt = write_zarr3(adata, tmp_path / "spoilt")
    group = zarr.open_group(spoilt, mode="r+", use_consolidated=False)["X"]
    n = group["indices"].shape[0]
    del group["indices"]
    group.create_array("indices", shape=(n,), dtype="int32", chunks=(7,))
    with pytest.raises(DataError, match="chunks are not there"):
        label_h5ad(annotator, spoilt)


def test_values_in_mixed_units_are_told_in_few_digits(annotator, adata):
    mixed = adata.copy()
    mixed.X = csr_matrix(adata.X.toarray() + 0.25 * (adata.X.toarray() > 0))
    mixed.X.data[::3] = 345.5
    with pytest.raises(DataError) as refused:
        annotate_adata(annotator, mixed)
    assert "counts per 10,000" in str(refused.value)
    assert len(str(refused.value)) < 500


class Lazy:
    """What dask's arrays look like to who does not import it."""

    __module__ = "dask.array.core"
    shape, ndim, dtype = (21, 30), 2, np.dtype("f4")


def given(adata):
    named = adata.to_df()
    named["donor"] = "a"
    deep = adata.to_df()
    deep.columns = pd.MultiIndex.from_product([["gene"], deep.columns])
    return {
        "table": (named, r"found other values in 1 of 31 columns: 'donor \((object|str)\)': leave"),
        "levels": (deep, "one name for each cell and gene, found several levels"),
        "none of rna": (
            SimpleNamespace(mod={"prot": adata, "atac": adata}),
            "found 'prot', 'atac': give the one",
        ),
        "two of rna": (
            SimpleNamespace(mod={"rna": adata, "GEX": adata}),
            r"found 'rna', 'GEX': "
            r".*mdata\.mod\[NAME\]",
        ),
        "matrix": (
            adata.X,
            "found scipy.csr_matrix: give cells by genes as anndata.AnnData, a pandas DataFrame",
        ),
        "none": (None, "found builtins.NoneType"),
    }


@pytest.mark.parametrize("kind", ["table", "levels", "none of rna", "two of rna", "matrix", "none"])
def test_what_is_no_adata(adata, tmp_path, monkeypatch, kind):
    value, message = given(adata)[kind]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CanalError, match=message):
        canal.annotate(value)


def test_a_lazy_adata(annotator, adata, monkeypatch):
    lazy = adata.copy()
    monkeypatch.setattr(type(lazy), "X", property(lambda _: Lazy()))
    with pytest.raises(DataError, match=r"read lazily \(dask\): give adata\.to_memory\(\)"):
        annotate_adata(annotator, lazy)
    monkeypatch.undo()
    monkeypatch.setattr(type(lazy), "obs", property(lambda _: object()))
    with pytest.raises(DataError, match=r"read lazily: give adata\.to_memory\(\)"):
        annotate_adata(annotator, lazy)


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix])
@pytest.mark.parametrize("part", ["indices", "indptr"])
def test_a_sparse_matrix_that_contradicts_itself(annotator, adata, form, part):
    """scipy reads beyond its arrays, and the process may end."""
    broken = adata.copy()
    values = form(adata.X.copy())
    getattr(values, part)[3] = 10**8
    broken._X = values
    with pytest.raises(DataError, match="its sparse matrix of 21 x 30 is damaged"):
        annotate_adata(annotator, broken)


def test_a_backed_adata_gives_the_labels(annotator, adata, labels, tmp_path):
    for write in (write_csr, write_dense):
        backed = anndata.read_h5ad(write(adata, tmp_path), backed="r")
        assert annotate_adata(annotator, backed)[LABEL].tolist() == labels
        backed.file.close()
