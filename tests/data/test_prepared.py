import numpy as np
import pytest

from canal.core.errors import DataError
from canal.data import prepared as module
from canal.data.prepare import PrepareSettings, prepare
from canal.data.prepared import PreparedCells
from tests.support.cells import make_adata, source_of, write_adata


def canonical(tmp_path, values="counts"):
    adata = make_adata({"B": 12, "NK": 9}, n_genes=30, values=values)
    path = write_adata(adata, tmp_path / "raw.h5ad")
    prepare(path, "s", source_of(path, values=values), PrepareSettings(0, 8), tmp_path / "out")
    return adata, PreparedCells(tmp_path / "out" / "cells.h5ad")


@pytest.mark.parametrize("values", ["counts", "log1p_10k", "log2p_10k"])
def test_every_unit_gives_the_same_expression(tmp_path, values, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_CELLS", 5)
    _, cells = canonical(tmp_path, values)
    counts = make_adata({"B": 12, "NK": 9}, n_genes=30).X.toarray()
    wanted = np.log2(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))
    ids = list(cells.obs.index)
    np.testing.assert_allclose(cells.expression(ids, cells.genes), wanted, rtol=1e-5)
    np.testing.assert_allclose(cells.expression_csr(ids).toarray(), wanted, rtol=1e-5)
    assert cells.values == values


def test_the_order_asked_for_is_the_order_given(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_CELLS", 4)
    _, cells = canonical(tmp_path)
    whole = cells.expression(list(cells.obs.index), cells.genes)
    order = [20, 0, 7, 7, 13]
    ids = [cells.obs.index[i] for i in order]
    genes = [cells.genes[4], "NOT-THERE", cells.genes[0]]
    found = cells.expression(ids, genes)
    np.testing.assert_array_equal(found[:, [0, 2]], whole[order][:, [4, 0]])
    assert not found[:, 1].any()
    np.testing.assert_array_equal(cells.expression_csr(ids).toarray(), whole[order])


def test_no_cells_asked_for(tmp_path):
    _, cells = canonical(tmp_path)
    assert cells.expression([], cells.genes).shape == (0, 30)
    assert cells.expression_csr([]).shape == (0, 30)


def test_the_table_is_text_indexed_by_cell_id(tmp_path):
    adata, cells = canonical(tmp_path)
    assert list(cells.obs.index) == [f"s:{name}" for name in adata.obs_names]
    assert cells.obs.index.name is None
    assert list(cells.obs["cell_type"]) == list(adata.obs["cell_type"])
    assert all(isinstance(value, str) for value in cells.obs.to_numpy().ravel())


def test_an_unknown_cell_is_refused(tmp_path):
    _, cells = canonical(tmp_path)
    with pytest.raises(DataError, match="1 of 2 cells are not in this file, such as 's:nobody'"):
        cells.expression([cells.obs.index[0], "s:nobody"], cells.genes)


def test_a_file_that_prepare_did_not_write_is_refused(tmp_path):
    path = write_adata(make_adata({"B": 5}), tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="no column 'cell_id'"):
        _ = PreparedCells(path).obs
    with pytest.raises(DataError, match="uns/canal"):
        _ = PreparedCells(path).values
