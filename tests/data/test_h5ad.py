import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix, vstack

from canal.core.errors import DataError
from canal.io import heaps, matrices
from canal.io.h5ad import H5adFile, open_h5ad
from canal.io.hdf5 import open_hdf5_stream
from tests.support import layouts
from tests.support.cells import make_adata, write_adata


@pytest.fixture
def adata():
    return make_adata({"B": 20, "NK": 15}, n_genes=30)


def dense(matrix, size):
    return vstack([block for _, block in matrix.chunks(size)]).toarray()


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, lambda x: x.toarray()], ids=["csr", "csc", "dense"])
@pytest.mark.parametrize("size", [1, 7, 35, 100])
def test_streams_every_form_in_blocks_of_any_size(tmp_path, adata, form, size, monkeypatch):
    monkeypatch.setattr(matrices, "_BLOCK", 11)  # so that a CSC matrix is turned in many steps
    wanted = adata.X.toarray()
    adata.X = form(adata.X)
    with open_h5ad(write_adata(adata, tmp_path / "a.h5ad")) as file:
        matrix = file.matrix("X")
        starts = [start for start, _ in matrix.chunks(size)]
        np.testing.assert_array_equal(dense(matrix, size), wanted)
    assert starts == list(range(0, 35, size))


def test_reads_layers_and_raw_with_their_own_genes(tmp_path, adata):
    adata.raw = adata
    small = adata[:, :10].copy()
    small.layers["twice"] = small.X * 2
    with open_h5ad(write_adata(small, tmp_path / "a.h5ad")) as file:
        assert file.layers == ["X", "raw", "twice"]
        np.testing.assert_array_equal(dense(file.matrix("twice"), 9), 2 * small.X.toarray())
        np.testing.assert_array_equal(dense(file.matrix("raw"), 9), adata.X.toarray())
        assert file.var_names("raw") == list(adata.var_names)
        assert file.var_names("twice") == list(small.var_names)


def test_columns_come_as_text_with_nulls_empty(tmp_path, adata):
    n = adata.n_obs
    adata.obs["category"] = pd.Categorical(["x", None] + ["y"] * (n - 2))
    adata.obs["number"] = [1.5, np.nan] + [2.0] * (n - 2)
    adata.obs["whole"] = np.arange(n)
    adata.obs["nullable"] = pd.array([1, None] + [3] * (n - 2), dtype="Int64")
    adata.obs["truth"] = [True, False] * (n // 2) + [True]
    with open_h5ad(write_adata(adata, tmp_path / "a.h5ad")) as file:
        heads = {name: file.obs_column(name).tolist()[:3] for name in file.obs_columns[2:]}
        assert file.obs_names() == list(adata.obs_names)
    assert heads == {
        "category": ["x", "", "y"],
        "number": ["1.5", "", "2.0"],
        "whole": ["0", "1", "2"],
        "nullable": ["1", "", "3"],
        "truth": ["True", "False", "True"],
    }


@pytest.mark.parametrize("write", [layouts.write_pre_07, layouts.write_07])
def test_reads_the_layouts_of_the_past(tmp_path, write):
    with open_h5ad(write(tmp_path / "old.h5ad")) as file:
        assert file.n_cells == 3
        assert file.obs_names() == layouts.NAMES
        assert file.obs_column("label").tolist() == layouts.LABELS
        assert file.var_names("X") == layouts.GENES
        np.testing.assert_array_equal(dense(file.matrix("X"), 2), layouts.SCALED)
        np.testing.assert_array_equal(dense(file.matrix("raw"), 2), layouts.RAW.toarray())


def test_raw_of_the_oldest_layout_has_a_table_of_its_own(tmp_path):
    with open_h5ad(layouts.write_pre_07(tmp_path / "old.h5ad")) as file:
        assert file.var_names("raw") == ["E1", "E2", "E3"]
        assert file.var_column("raw", "symbol").tolist() == layouts.GENES
        assert file.var_columns("raw") == ["symbol"]
        assert file.obs_column("depth").tolist() == ["1.5", "", "2.0"]


def test_what_is_missing_is_answered_with_what_there_is(tmp_path, adata):
    with open_h5ad(write_adata(adata, tmp_path / "a.h5ad")) as file:
        with pytest.raises(DataError, match=r"a\.h5ad: obs has no column 'lbl'; it has 'cell_type', 'batch'"):
            file.obs_column("lbl")
        with pytest.raises(DataError, match="no matrix 'counts'; there are 'X'"):
            file.matrix("counts")
        with pytest.raises(DataError, match="no matrix 'raw'"):
            file.var_names("raw")
        with pytest.raises(DataError, match="var has no column 'symbol'; it has none"):
            file.var_column("X", "symbol")
        with pytest.raises(DataError, match="uns/canal"):
            file.note("canal")


def test_refuses_what_is_no_h5ad(tmp_path):
    with pytest.raises(DataError, match="no such file"), open_h5ad(tmp_path / "none.h5ad"):
        pass
    (tmp_path / "text.h5ad").write_text("gene,cell\n")
    with pytest.raises(DataError, match="no readable h5ad file"), open_h5ad(tmp_path / "text.h5ad"):
        pass
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["weights"] = [1.0]
    with pytest.raises(DataError, match="no 'obs'.*'weights'"), open_h5ad(tmp_path / "other.h5ad"):
        pass


@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_file_that_was_cut_short_is_refused(tmp_path, adata, kept):
    path = write_adata(adata, tmp_path / "a.h5ad")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"a\.h5ad"), open_h5ad(path) as file:
        dense(file.matrix("X"), 10)


def edited(path, adata, change):
    write_adata(adata, path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def read_all(path):
    with open_h5ad(path) as file:
        dense(file.matrix("X"), 10)
        file.obs_column("cell_type")


def set_value(key, index, value):
    def change(file):
        file[key][index] = value

    return change


def set_shape(file):
    file["X"].attrs["shape"] = np.array([36, 30])


def as_text(file):
    del file["X/data"]
    file["X/data"] = np.array([b"x"] * len(file["X/indices"]))


def unknown_form(file):
    file["X"].attrs["encoding-type"] = "coo_matrix"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("X/indices", 3, 30), "indices reach from"),
        (set_value("X/indices", 3, -1), "indices reach from -1"),
        (set_value("X/indptr", 3, 10**6), "indptr does not fit"),
        (set_shape, "36 x 30, but there are 35 cells and 30 genes"),
        (as_text, "expected numbers"),
        (unknown_form, "neither dense nor CSR nor CSC"),
        (set_value("obs/cell_type/codes", 0, 7), "points behind the last of 2 categories"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, adata, change, message):
    path = edited(tmp_path / "a.h5ad", adata, change)
    with pytest.raises(DataError, match=message):
        read_all(path)


def test_a_heap_that_the_library_would_never_leave_is_refused(tmp_path, adata, monkeypatch):
    """An object of no number and no size: HDF5 looks for the next one in the same place, for ever."""
    path = write_adata(adata, tmp_path / "a.h5ad")
    data = bytearray(path.read_bytes())
    monkeypatch.setattr(heaps, "_CPU_SECONDS", 1)
    heap = data.index(b"GCOL\x01")
    data[heap + 16 : heap + 32] = bytes(16)
    path.write_bytes(data)
    with pytest.raises(DataError, match="texts cannot be read"), open_h5ad(path) as file:
        file.obs_names()
    # as of an object in a store, whose bytes are looked at when they are fetched
    refused = pytest.raises(DataError, match="a heap of its texts seems to be")
    with path.open("rb") as stream, refused, open_hdf5_stream(stream, path) as file:
        H5adFile(file, path).obs_names()


def test_heaps_that_were_written_and_deleted_many_times_are_read(tmp_path, adata):
    path = write_adata(adata, tmp_path / "a.h5ad")
    for n in (5, 100, 20):
        with h5py.File(path, "r+") as file:
            for key in ("one", "other"):
                if key in file["uns"]:
                    del file[f"uns/{key}"]
                file[f"uns/{key}"] = np.array([f"{key} of {n} " * n] * n, dtype=object)
    with open_h5ad(path) as file:
        assert file.obs_names() == list(adata.obs_names)
    with path.open("rb") as stream, open_hdf5_stream(stream, path) as file:
        assert H5adFile(file, path).obs_names() == list(adata.obs_names)
        assert file["uns/one"][3] == b"one of 20 " * 20


def test_a_matrix_of_another_size_than_its_tables_is_refused(tmp_path, adata):
    def replace(file):
        del file["X"]
        file["X"] = np.zeros((4, 30), dtype=np.float32)

    path = edited(tmp_path / "a.h5ad", adata, replace)
    with pytest.raises(DataError, match="'X' is 4 x 30, but there are 35 cells"), open_h5ad(path) as file:
        file.matrix("X")


def test_unsorted_and_repeated_entries_come_out_canonical(tmp_path, adata):
    def replace(file):
        data, indices = file["X/data"], file["X/indices"]
        data[:2], indices[:2] = [2, 3], [9, 9]
        if file["X/indptr"][1] > 2:
            indices[2] = 1

    path = edited(tmp_path / "a.h5ad", adata, replace)
    with open_h5ad(path) as file:
        block = file.matrix("X").rows(0, 5)
    assert block.has_canonical_format
    assert block[0, 9] >= 5


@pytest.mark.parametrize("key", ["layers", "mod"])
def test_an_array_where_a_group_of_matrices_is_expected(tmp_path, adata, key):
    path = write_adata(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file.pop(key, None)
        file[key] = np.zeros(3)
    with open_h5ad(path) as file, pytest.raises(DataError, match="expected a group|no matrix 'counts'"):
        file.matrix("counts")
