import time

import anndata
import h5py
import numpy as np
import pytest

from canal.continual.cells import StoredCells, load_cells, save_cells
from canal.core.digests import file_digest
from canal.core.errors import ModelError
from tests.support.learning import make_cells

GENES = ("CD4", "CD14", "LYZ")


def stored(n=6):
    return StoredCells(
        make_cells(["A", "B"] * (n // 2), batches=["b1", "b2"] * (n // 2)),
        GENES,
        np.arange(1, n + 1),
        ("first",),
    )


@pytest.fixture
def path(tmp_path):
    save_cells(tmp_path / "cells.h5ad", stored())
    return tmp_path / "cells.h5ad"


def test_equal_content_gives_equal_bytes_at_any_time_and_place(path, tmp_path):
    time.sleep(1.1)  # HDF5 counts times in seconds
    other = tmp_path / "elsewhere" / "other name.h5ad"
    save_cells(other, stored())
    assert file_digest(other) == file_digest(path)


def test_anndata_reads_it(path):
    adata = anndata.read_h5ad(path)
    assert list(adata.obs.columns) == ["cell_id", "cell_type", "stage", "source", "batch", "rank"]
    assert list(adata.var_names) == list(GENES)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), stored().cells.expression)


def test_no_cells_come_back_as_no_cells(tmp_path):
    save_cells(tmp_path / "none.h5ad", stored(0))
    assert len(load_cells(tmp_path / "none.h5ad", GENES, ranked=True).cells) == 0


def test_another_panel_is_refused(path):
    with pytest.raises(ModelError, match="lacks NKG7"):
        load_cells(path, ("CD4", "CD14", "NKG7"), ranked=True)
    with pytest.raises(ModelError, match="order differs"):
        load_cells(path, ("CD14", "CD4", "LYZ"), ranked=True)


def test_a_name_a_column_is_needed(tmp_path):
    cells = StoredCells(make_cells(["A"]), ("CD4",), None, ("first",))
    with pytest.raises(ModelError, match="1 names for 3 columns"):
        save_cells(tmp_path / "cells.h5ad", cells)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        load_cells(tmp_path / "none.h5ad", GENES, ranked=True)


def test_a_file_cut_short_is_refused(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="damaged"):
        load_cells(path, GENES, ranked=True)


@pytest.mark.parametrize("key", ["X/data", "X/indices", "obs/rank", "obs/cell_type", "obs/batch"])
def test_a_changed_value_is_refused(path, key):
    with h5py.File(path, "r+") as file:
        values = file[key][:]
        values[[0, 1]] = values[[1, 0]]
        file[key][:] = values
    with pytest.raises(ModelError, match="digest|damaged") as caught:
        load_cells(path, GENES, ranked=True)
    assert str(path) in str(caught.value)


def test_an_unknown_format_is_refused(path):
    with h5py.File(path, "r+") as file:
        note = file["uns/canal"][()].decode().replace('"format":1', '"format":9')
        del file["uns/canal"]
        file["uns/canal"] = note
    with pytest.raises(ModelError, match="format 9"):
        load_cells(path, GENES, ranked=True)


def test_a_note_that_is_no_object_is_refused(path):
    with h5py.File(path, "r+") as file:
        del file["uns/canal"]
        file["uns/canal"] = "[1]"
    with pytest.raises(ModelError, match="damaged"):
        load_cells(path, GENES, ranked=True)


def test_no_byte_can_change_unseen(path):
    """Flip bytes all over the file: it is refused, or still holds what was written."""
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            again = load_cells(path, GENES, ranked=True)
        except ModelError:
            continue
        np.testing.assert_array_equal(again.cells.expression, stored().cells.expression)
        assert again.cells.cell_ids == stored().cells.cell_ids
