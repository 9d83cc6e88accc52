"""A small file that announces a large one is refused by arithmetic, before memory or time are spent on it."""

import gzip
import json

import h5py
import numpy as np
import pytest
from scipy.sparse import csc_matrix

from canal.annotation.annotate import annotate_h5ad, label_h5ad
from canal.annotation.labelled import read_back
from canal.core.errors import DataError
from canal.io.arrays import whole
from canal.io.h5ad import open_h5ad
from tests.support.cells import write_adata
from tests.support.formats import (
    write_10x_v3,
    write_csr,
    write_loom,
    write_mtx,
    write_mtx_gz,
    write_zarr2,
    write_zarr3,
)

BILLION = 10**9
FULL = "the memory"


def empty(file, key, size, dtype, **layout):
    """An array of which nothing is stored."""
    del file[key]
    shape = size if isinstance(size, tuple) else (size,)
    file.create_dataset(key, shape, dtype=dtype, chunks=layout.pop("chunks", (1 << 16,)), **layout)


def rows(file):
    empty(file, "obs/_index", BILLION, h5py.string_dtype())


def fixed_rows(file):
    empty(file, "obs/_index", BILLION, "S10")


def wide_rows(file):
    empty(file, "obs/_index", 21, f"S{BILLION // 2}", chunks=(1,))


def columns(file):
    empty(file, "var/_index", BILLION, "S10")


def pointers(file):
    empty(file, "X/indptr", BILLION, "i8")


def stored(file):
    for name in ("data", "indices"):
        empty(file, f"X/{name}", 10**12, "i8")
    del file["X/indptr"]
    file["X/indptr"] = np.array([0] * 21 + [10**12])


def categories(file):
    empty(file, "obs/cell_type/categories", BILLION, "i8")


def codes(file):
    empty(file, "obs/cell_type/codes", BILLION, "i1")


def chunk(file):
    del file["X"]
    file.create_dataset("X", (21, 30), "f4", maxshape=(None, None), chunks=(30_000, 30_000))


def longer(file):
    values = file["X/data"][:]
    del file["X/data"]
    file["X/data"] = np.append(values, 1)


def crowded(file):
    """As many values as there are places, all of them of one cell."""
    n = len(file["X/data"])
    file["X/indptr"][1:] = n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rows, FULL),
        (fixed_rows, FULL),
        (columns, FULL),
        (pointers, r"indptr has the shape \(1000000000,\), expected 22 values"),
        (stored, "1,000,000,000,000 values are stored, and 21 x 30 have a place"),
        (chunk, FULL),
        (longer, "data has the shape"),
        (crowded, "values to a cell, and there are 30 genes"),
    ],
)
def test_an_h5ad_file(annotator, adata, tmp_path, change, message):
    path = write_csr(adata, tmp_path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=message):
        annotate_h5ad(annotator, path, tmp_path / "out.h5ad")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("change", "message"), [(categories, FULL), (codes, "expected 21 values")])
def test_a_column_of_an_h5ad_file(adata, tmp_path, change, message):
    adata = adata.copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")
    path = write_adata(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        change(file)
    with open_h5ad(path) as file, pytest.raises(DataError, match=message):
        file.obs_column("cell_type")


def test_names_that_are_far_too_long(adata, tmp_path):
    path = write_adata(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        wide_rows(file)
    with open_h5ad(path) as file, pytest.raises(DataError, match=FULL):
        file.obs_names()


def test_values_that_have_a_place_but_are_not_stored(tmp_path):
    """300 million values, all of them zero, in a file of a few kilobytes."""
    path = tmp_path / "a.h5ad"
    with h5py.File(path, "w") as file:
        for key, n in (("obs", 3000), ("var", 100_000)):
            file.create_group(key).attrs["_index"] = "_index"
            file[key].create_dataset("_index", (n,), "S8", chunks=(1000,))
        group = file.create_group("X")
        group.attrs["encoding-type"], group.attrs["shape"] = "csr_matrix", (3000, 100_000)
        group["indptr"] = np.arange(3001, dtype=np.int64) * 100_000
        for name in ("data", "indices"):
            group.create_dataset(name, (300_000_000,), "i4", chunks=(1 << 20,))
    with open_h5ad(path) as file, pytest.raises(DataError, match=FULL):
        file.matrix("X")


@pytest.mark.parametrize("chunks", [None, (100_000,)])
def test_one_long_text_that_stands_a_hundred_thousand_times(tmp_path, chunks):
    """HDF5 stores a text once, however many values point at it."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        names = np.array(["x" * 200_000, *["y"] * 99_999], dtype=object)
        file.create_dataset("names", data=names, dtype=h5py.string_dtype(), chunks=chunks)
        node = file["names"].id
        place = node.get_chunk_info(0).byte_offset if chunks else node.get_offset()
    data = bytearray(path.read_bytes())
    data[place : place + 16 * 100_000] = data[place : place + 16] * 100_000
    path.write_bytes(data)
    with h5py.File(path) as file, pytest.raises(DataError, match="the texts of names take more than"):
        whole(file["names"], path, "names")


def test_a_text_that_says_it_is_longer_than_the_file(adata, tmp_path):
    """HDF5 takes 4 GB for it, before it looks into the heap."""
    path = write_adata(adata, tmp_path / "a.h5ad")
    with h5py.File(path) as file:
        place = file["var/_index"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[place + 16 : place + 20] = b"\xff\xff\xff\xfe"
    path.write_bytes(data)
    with open_h5ad(path) as file, pytest.raises(DataError, match="the texts of var/_index take more than"):
        file.var_names("X")


@pytest.mark.parametrize("chunks", [None, (5000,)])
@pytest.mark.parametrize("userblock", [0, 512])
def test_texts_are_read_as_they_are(tmp_path, chunks, userblock):
    names = np.array([f"cell{i}" for i in range(5000)], dtype=object)
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=userblock) as file:
        file.create_dataset("names", data=names, dtype=h5py.string_dtype(), chunks=chunks)
        assert [one.decode() for one in whole(file["names"], tmp_path / "a.h5", "names")] == names.tolist()


@pytest.mark.parametrize("write", [write_zarr2, write_zarr3])
@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("X/indptr", {"shape": [BILLION]}, "expected 22 values"),
        ("X/data", {"shape": [10**12]}, "data has the shape"),
        ("obs/_index", {"shape": [BILLION]}, FULL),
        ("obs/_index", {"shape": [10**15]}, FULL),
    ],
)
def test_a_zarr_store(annotator, adata, tmp_path, write, key, change, message):
    store = write(adata, tmp_path)
    described = next(store / key / name for name in (".zarray", "zarr.json") if (store / key / name).exists())
    described.write_text(json.dumps(json.loads(described.read_text()) | change))
    with pytest.raises(DataError, match=message):
        label_h5ad(annotator, store)


def test_a_zarr_store_of_many_chunks_that_are_not_there(annotator, adata, tmp_path):
    dense = adata.copy()
    dense.X = dense.X.toarray()
    store = write_zarr2(dense, tmp_path)
    for key, shape in (("X", [21, 50_000_000]), ("var/_index", [50_000_000])):
        described = store / key / ".zarray"
        changed = {"shape": shape, "chunks": [1] * len(shape)}
        described.write_text(json.dumps(json.loads(described.read_text()) | changed))
    with pytest.raises(DataError, match="the memory|for ever"):
        label_h5ad(annotator, store)


@pytest.mark.parametrize("write", [write_10x_v3, write_loom])
def test_other_hdf5_files(annotator, adata, tmp_path, write):
    path = write(adata, tmp_path)
    with h5py.File(path, "r+") as file:
        if "matrix/barcodes" in file:
            empty(file, "matrix/barcodes", BILLION, "S18")
        else:
            empty(file, "matrix", (30, BILLION), "f4", chunks=(30, 1000))
    with pytest.raises(DataError, match=FULL):
        label_h5ad(annotator, path)


@pytest.mark.parametrize("name", ["matrix.mtx", "features.tsv", "barcodes.tsv"])
def test_one_line_without_an_end(annotator, adata, tmp_path, name):
    folder = write_mtx_gz(adata, tmp_path)
    whole = gzip.decompress((folder / f"{name}.gz").read_bytes())
    (folder / f"{name}.gz").write_bytes(gzip.compress(whole + b"7" * 10**7, 1))
    with pytest.raises(DataError, match="a line of more than"):
        label_h5ad(annotator, folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("30 21 ", "1000000000000 21 ", "there are 30 features and 21 barcodes"),
        ("30 21 ", "30 21 9", "values are announced, and 30 features of 21 cells have places for 630"),
        ("\n30 21 ", "\n" + "%\n" * 20_000 + "30 21 ", "lines of comments"),
        ("30 21 ", "30 -21 ", "negative sizes"),
        ("30 21 ", "30 " + "9" * 5000 + " ", "its head"),
    ],
)
def test_the_sizes_of_a_10x_folder(annotator, adata, tmp_path, old, new, message):
    folder = write_mtx(adata, tmp_path)
    text = (folder / "matrix.mtx").read_text()
    assert text.count(old) >= 1
    (folder / "matrix.mtx").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        label_h5ad(annotator, folder)


def test_more_lines_than_announced_are_not_read_to_their_end(annotator, adata, tmp_path):
    folder = write_mtx(adata, tmp_path)
    with (folder / "matrix.mtx").open("a") as stream:
        stream.write("1 1 1\n" * 1_000_000)
    with pytest.raises(DataError, match="more are there|far more text than"):
        label_h5ad(annotator, folder)
    (tmp_path / "other").mkdir()
    folder = write_mtx(adata, tmp_path / "other")
    with (folder / "matrix.mtx").open("a") as stream:
        stream.write("\n" * 10_000_000)
    with pytest.raises(DataError, match="far more text than"):
        label_h5ad(annotator, folder)


def test_a_fourth_number_in_a_line_is_no_row_name(annotator, adata, tmp_path):
    """pandas would take the first number for the row's name, and the others for the three."""
    folder = write_mtx(adata, tmp_path)
    head, lines = (folder / "matrix.mtx").read_text().split("\n30 21 ", 1)
    n, *values = lines.rstrip("\n").split("\n")
    (folder / "matrix.mtx").write_text(f"{head}\n30 21 {n}\n" + "".join(f"1 {line}\n" for line in values))
    with pytest.raises(DataError, match="three numbers a line"):
        label_h5ad(annotator, folder)


def test_a_csc_matrix_with_more_values_than_cells_in_a_gene_is_refused(adata, tmp_path):
    turned = adata.copy()
    turned.X = csc_matrix(turned.X)
    path = write_adata(turned, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["X/indptr"][1:] = len(file["X/data"])
    with open_h5ad(path) as file, pytest.raises(DataError, match="values to a gene, and there are 21 cells"):
        file.matrix("X")


def test_a_note_that_is_no_text_is_refused(adata, tmp_path):
    path = write_adata(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file.create_dataset("uns/canal", (BILLION,), "S10", chunks=(1000,))
    with pytest.raises(DataError, match="no annotation record|expected one text"):
        read_back(path)
