"""Cells of a CSR file are read in one pass, and nothing tells it from reading them by the book."""

import h5py
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from canal.annotation import reading
from canal.annotation.options import Options
from canal.annotation.query import query_file
from canal.annotation.reading import make_reading
from canal.core.errors import DataError
from canal.io.h5ad import open_h5ad
from tests.support.cells import make_adata, write_adata

PANEL = [f"GENE{i}" for i in (3, 50, 7, 120, 199)]


def cells(n=70, n_genes=200, largest=40):
    random = np.random.default_rng(0)
    counts = random.integers(1, largest, (n, n_genes)) * (random.random((n, n_genes)) < 0.3)
    counts[5] = 0
    adata = make_adata({"B": n}, n_genes=n_genes)
    adata.X = csr_matrix(counts.astype(np.float32))
    adata.var_names = [f"GENE{i}" for i in range(n_genes)]
    return adata


def read(path, size=16, start=0):
    """Return expression, values and totals of all cells, or what refuses them."""
    try:
        with open_h5ad(path) as file:
            reading = make_reading(query_file(file, "X", None), PANEL, Options())
            blocks = [(block.start, block.expression, block.empty) for block in reading.blocks(size, start)]
            values = [(first, block.toarray(), sums) for first, block, sums in reading.values(size, start)]
    except DataError as error:
        return str(error)
    assert [first for first, _, _ in blocks] == [first for first, _, _ in values]
    return [
        np.concatenate(part)
        for part in (*zip(*blocks, strict=True), *zip(*values, strict=True))
        if isinstance(part[0], np.ndarray)
    ]


def one_pass_and_by_the_book(path, monkeypatch, **how):
    passes = []

    def counted(self, rows, pick=reading.Picker.pick):
        passes.append(pick(self, rows) is not None)
        return pick(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(reading.Picker, "pick", counted)
        patch.setattr(reading, "_PORTION", 300)
        found = read(path, **how)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "_WORTH", np.inf)
        expected = read(path, **how)
    return found, expected, bool(passes) and all(passes)


def same(found, expected):
    if isinstance(expected, str):
        return found == expected
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


def change(path, **arrays):
    """Replace arrays of X, made of the ones that were there."""
    with h5py.File(path, "r+") as file:
        old = {name: file["X"][name][:] for name in ("data", "indices", "indptr")}
        for name, made in arrays.items():
            del file["X"][name]
            how = {"chunks": (64,)} if name != "indptr" else {}
            file["X"].create_dataset(name, data=made(old), **how)


KINDS = {
    "as anndata writes it": {},
    "int64 indices": {"indices": lambda old: old["indices"].astype(np.int64)},
    "uint64 indices": {"indices": lambda old: old["indices"].astype(np.uint64)},
    "big-endian indices": {"indices": lambda old: old["indices"].astype(">i4")},
    "uint16 values": {"data": lambda old: old["data"].astype(np.uint16)},
    "float64 values": {"data": lambda old: old["data"].astype(">f8")},
    "stored zeros": {"data": lambda old: np.where(np.arange(len(old["data"])) % 3, old["data"], 0)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, 16])
def test_sound_counts_are_read_in_one_pass(tmp_path, monkeypatch, kind, start):
    path = write_adata(cells(), tmp_path / "a.h5ad")
    change(path, **KINDS[kind])
    found, expected, once = one_pass_and_by_the_book(path, monkeypatch, start=start)
    assert once
    assert same(found, expected)
    assert len(found[0]) == 70 - start


def test_columns_of_one_gene_add_up_and_those_without_a_name_do_not_count(tmp_path, monkeypatch):
    adata = cells()
    names = adata.var_names.to_numpy(dtype=object).copy()
    names[[60, 61, 150]] = "GENE7"
    names[[10, 90]] = ""
    adata.var_names = names
    path = write_adata(adata, tmp_path / "a.h5ad")
    found, expected, once = one_pass_and_by_the_book(path, monkeypatch)
    assert once
    assert same(found, expected)


def test_the_book_adds_up_what_float32_cannot(tmp_path, monkeypatch):
    path = write_adata(cells(largest=2**23), tmp_path / "a.h5ad")
    found, expected, once = one_pass_and_by_the_book(path, monkeypatch)
    assert not once
    assert same(found, expected)
    assert found[-1].max() > 2**24


@pytest.mark.parametrize("logarithm", [np.log1p, lambda x: np.log2(1 + x)])
@pytest.mark.parametrize("depth", [1e4, 1e6])
def test_logarithms(tmp_path, monkeypatch, logarithm, depth):
    adata = cells()
    counts = adata.X.toarray().astype(np.float64)
    scaled = counts * (depth / np.maximum(1, counts.sum(axis=1, keepdims=True)))
    adata.X = csr_matrix(logarithm(scaled).astype(np.float32))
    path = write_adata(adata, tmp_path / "a.h5ad")
    found, expected, _ = one_pass_and_by_the_book(path, monkeypatch)
    assert same(found, expected)


def _with(position, value):
    def made(old):
        values = old["data"].astype(np.float32)
        values[position] = value
        return values

    return made


def _swapped(old):
    indices = old["indices"].copy()
    indices[[800, 801]] = indices[[801, 800]]
    return indices


def _twice(old):
    indices = old["indices"].copy()
    at = int(old["indptr"][40])
    indices[at + 1] = indices[at]
    return indices


WRONG = {
    "negative": {"data": _with(2000, -1)},
    "minus zero": {"data": _with(2000, -0.0)},
    "not a number": {"data": _with(2000, np.nan)},
    "infinite": {"data": lambda old: np.where(np.arange(len(old["data"])) == 2000, 1e300, old["data"])},
    "half": {"data": _with(2000, 0.5)},
    "out of order": {"indices": _swapped},
    "twice": {"indices": _twice},
    "beyond the genes": {
        "indices": lambda old: np.where(np.arange(len(old["indices"])) == 2000, 200, old["indices"])
    },
    "before the genes": {
        "indices": lambda old: np.where(np.arange(len(old["indices"])) == 2000, -1, old["indices"])
    },
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_unusual_is_read_or_refused_by_the_book(tmp_path, monkeypatch, wrong):
    path = write_adata(cells(), tmp_path / "a.h5ad")
    change(path, **WRONG[wrong])
    found, expected, once = one_pass_and_by_the_book(path, monkeypatch)
    assert not once
    assert isinstance(expected, str) == (wrong not in ("minus zero", "out of order", "twice"))
    assert same(found, expected)
