import hashlib
import json
import time
import tracemalloc

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, random

from canal.core.digests import file_digest, json_digest
from canal.core.errors import DataError, SourceError
from canal.data.prepare import PrepareSettings, cell_digests, prepare, prepare_absent
from canal.data.prepared import PreparedCells
from tests.support import layouts
from tests.support.cells import make_adata, source_of, write_adata

SETTINGS = PrepareSettings(min_genes=0, chunk_cells=8)


@pytest.fixture
def adata():
    return make_adata({"B": 12, "NK": 9}, n_genes=30, batches=("b1", "b2", "b3"))


def prepared(tmp_path, adata, settings=SETTINGS, name="s", **declared):
    path = write_adata(adata, tmp_path / "raw.h5ad")
    result = prepare(path, name, source_of(path, **declared), settings, tmp_path / "out")
    return result, anndata.read_h5ad(tmp_path / "out" / "cells.h5ad")


def test_the_canonical_file(tmp_path, adata):
    result, cells = prepared(tmp_path, adata)
    np.testing.assert_array_equal(cells.X.toarray(), adata.X.toarray())
    assert isinstance(cells.X, csr_matrix)
    assert cells.X.dtype == np.float32
    assert list(cells.var_names) == list(adata.var_names)
    assert list(cells.obs_names) == [f"s:{name}" for name in adata.obs_names] == list(cells.obs["cell_id"])
    assert list(cells.obs["cell_type"]) == list(adata.obs["cell_type"])
    assert list(cells.obs["cell_type_original"]) == list(adata.obs["cell_type"])
    assert list(cells.obs["batch"]) == list(adata.obs["batch"])
    assert set(cells.obs["source"]) == {"s"}
    about = json.loads(cells.uns["canal"])
    assert about == {"format": 1, "source": "s", "values": "counts", "repairs": {}}
    assert result.n_cells == 21


def test_a_file_without_labels(tmp_path, adata):
    del adata.obs["cell_type"]
    result, cells = prepared(tmp_path, adata, label=None)
    assert result.n_cells == 21
    assert set(cells.obs["cell_type"]) == set(cells.obs["cell_type_original"]) == {""}
    with pytest.raises(DataError, match="cell_type"):
        prepared(tmp_path, adata)


def test_the_summary_names_the_bytes(tmp_path, adata):
    path = write_adata(adata, tmp_path / "raw.h5ad")
    source = source_of(path)
    prepare(path, "s", source, SETTINGS, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert summary == {
        "source": "s",
        "available": True,
        "declaration_digest": json_digest(source.declaration()),
        "source_sha256": source.sha256,
        "sha256": file_digest(tmp_path / "out" / "cells.h5ad"),
        "n_cells": 21,
        "n_genes": 30,
        "repairs": {},
    }


def test_an_absent_source_leaves_a_summary_only(tmp_path, adata):
    source = source_of(write_adata(adata, tmp_path / "raw.h5ad"), available=False)
    prepare_absent("s", source, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["prepared.json"]
    summary = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert summary["available"] is False
    assert "sha256" not in summary


def test_a_rerun_gives_the_same_bytes(tmp_path, adata):
    prepared(tmp_path, adata)
    first = (tmp_path / "out" / "cells.h5ad").read_bytes()
    time.sleep(1.1)  # HDF5 can store times, in whole seconds
    prepared(tmp_path, adata)
    assert (tmp_path / "out" / "cells.h5ad").read_bytes() == first


def test_the_size_of_chunks_changes_no_cell(tmp_path, adata):
    _, small = prepared(tmp_path, adata, PrepareSettings(0, 1))
    _, large = prepared(tmp_path, adata, PrepareSettings(0, 1000))
    assert small.obs.equals(large.obs)
    assert (small.X != large.X).nnz == 0


def test_blanks_at_the_ends_of_labels_go_where_the_map_has_the_label_without(tmp_path, adata):
    labels = adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    labels[:3] = [f"{label} " for label in labels[:3]]
    adata.obs["cell_type"] = labels
    result, cells = prepared(tmp_path, adata, label_map={"B": "B cell", "NK": "NK"})
    assert set(cells.obs["cell_type_original"]) == {"B", "NK"}
    assert set(cells.obs["cell_type"]) == {"B cell", "NK"}
    told = sorted({label for label in labels if label.endswith(" ")})
    assert result.repairs["labels_with_blanks"] == {"n": len(told), "examples": told}


@pytest.mark.parametrize("label_map", [None, {"B": "B", "NK": "NK", "B ": "B", "NK ": "NK"}])
def test_labels_with_blanks_that_may_have_been_learned_stay(tmp_path, adata, label_map):
    labels = [f"{label} " for label in adata.obs["cell_type"].astype(str)]
    adata.obs["cell_type"] = labels
    result, cells = prepared(tmp_path, adata, label_map=label_map)
    assert list(cells.obs["cell_type_original"]) == labels
    assert "labels_with_blanks" not in result.repairs


def test_labels_are_mapped_dropped_or_left_to_the_gate(tmp_path, adata):
    adata.obs["cell_type"] = pd.Categorical((["B", "NK", "odd", "gone"] * 6)[:20] + [None])
    result, cells = prepared(tmp_path, adata, label_map={"B": "B cell", "NK": "NK", "gone": None})
    assert set(cells.obs["cell_type"]) == {"B cell", "NK", "odd", ""}
    assert set(cells.obs["cell_type_original"]) == {"B", "NK", "odd", ""}
    assert result.repairs == {"dropped_by_label_map": {"n": 5}}


def test_where_and_exclude_drop_cells(tmp_path, adata):
    exclude = {"cells": ["cell0-0000", "cell0-9999"], "batches": ["b2"]}
    result, cells = prepared(tmp_path, adata, where={"cell_type": ["B"]}, exclude=exclude)
    expected = adata.obs[
        (adata.obs["cell_type"] == "B") & (adata.obs["batch"] != "b2") & (adata.obs_names != "cell0-0000")
    ]
    assert list(cells.obs_names) == [f"s:{name}" for name in expected.index]
    assert result.repairs["dropped_by_where_cell_type"] == {"n": 9}
    assert result.repairs["exclude_cells_not_found"] == {"n": 1, "examples": ["cell0-9999"]}


def test_poor_cells_are_dropped(tmp_path, adata):
    adata.X = csr_matrix(np.vstack([np.zeros((3, 30)), np.eye(18, 30) + 1]).astype(np.float32))
    result, cells = prepared(tmp_path, adata, PrepareSettings(30, 4))
    assert cells.n_obs == 18
    assert result.repairs == {"dropped_by_min_genes": {"n": 3, "min_genes": 30}}
    assert list(cells.obs_names) == [f"s:{name}" for name in adata.obs_names[3:]]


def test_repeated_cell_names_become_unique(tmp_path, adata):
    adata.obs_names = ["x", "x"] + list(adata.obs_names[2:])
    result, cells = prepared(tmp_path, adata)
    assert list(cells.obs_names[:2]) == ["s:x", "s:x-1"]
    assert result.repairs == {"duplicated_cell_ids": {"n": 1, "examples": ["x"]}}


def test_repeated_genes_are_summed_where_declared(tmp_path, adata):
    adata.var_names = ["TWICE", "TWICE"] + list(adata.var_names[2:])
    result, cells = prepared(tmp_path, adata, duplicates="sum")
    np.testing.assert_array_equal(cells[:, "TWICE"].X.toarray().ravel(), adata.X[:, :2].toarray().sum(axis=1))
    assert result.n_genes == 29
    assert result.repairs["duplicated_genes"]["done"] == "summed"


def test_symbols_come_from_the_declared_column(tmp_path, adata):
    symbols = list(adata.var_names)
    adata.var["symbol"] = symbols
    adata.var_names = [f"ENSG{i:011d}" for i in range(30)]
    _, cells = prepared(tmp_path, adata, gene_column="symbol")
    assert list(cells.var_names) == symbols


def test_cells_without_a_batch_get_the_name_of_the_source(tmp_path, adata):
    _, cells = prepared(tmp_path, adata, batch=None)
    assert set(cells.obs["batch"]) == {"s"}
    adata.obs["batch"] = pd.Categorical([None] + ["b1"] * 20)
    result, cells = prepared(tmp_path, adata)
    assert list(cells.obs["batch"][:2]) == ["s", "b1"]
    assert result.repairs["cells_without_batch"]["n"] == 1


def test_values_are_not_judged(tmp_path, adata):
    adata.X = adata.X.toarray()
    adata.X[0, :3] = [np.nan, -1, np.inf]
    _, cells = prepared(tmp_path, adata)
    np.testing.assert_array_equal(cells.X[0, :3].toarray().ravel(), [np.nan, -1, np.inf])


def test_nothing_left_is_written_as_an_empty_file(tmp_path, adata):
    result, cells = prepared(tmp_path, adata, where={"cell_type": ["nobody"]})
    assert cells.shape == (0, 30)
    assert result.n_cells == 0
    assert PreparedCells(tmp_path / "out" / "cells.h5ad").obs.empty


def test_raw_of_the_oldest_layout(tmp_path):
    path = layouts.write_pre_07(tmp_path / "old.h5ad")
    source = source_of(path, label="label", batch=None, layer="raw", gene_column="symbol", values="log1p_10k")
    prepare(path, "old", source, SETTINGS, tmp_path / "out")
    cells = anndata.read_h5ad(tmp_path / "out" / "cells.h5ad")
    np.testing.assert_array_equal(cells.X.toarray(), layouts.RAW.toarray())
    assert list(cells.obs["cell_type"]) == layouts.LABELS


@pytest.mark.parametrize(
    "declared",
    [
        {"label": "lbl"},
        {"batch": "lbl"},
        {"where": {"lbl": ["x"]}},
        {"layer": "lbl"},
        {"gene_column": "lbl"},
    ],
)
def test_what_the_declaration_names_must_be_there(tmp_path, adata, declared):
    with pytest.raises(DataError, match="'lbl'"):
        prepared(tmp_path, adata, **declared)
    assert not (tmp_path / "out").exists()


def test_other_bytes_than_declared_are_refused(tmp_path, adata):
    path = write_adata(adata, tmp_path / "raw.h5ad")
    with pytest.raises(SourceError, match="declares sha256 0000"):
        prepare(path, "s", source_of(path, sha256="0" * 64), SETTINGS, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["raw.h5ad"]


def test_a_digest_knows_content_and_nothing_else():
    cell = csr_matrix(np.array([[0, 1.5, 0, 2]], dtype=np.float32))
    content = b"A\nB\n\n" + np.array([2, 1.5], dtype="<f4").tobytes()
    wanted = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert cell_digests(cell, ["X", "B", "Y", "A"]) == [wanted]
    assert cell_digests(cell[:, [3, 1]], ["A", "B"]) == [wanted]
    assert cell_digests(cell, ["X", "C", "Y", "A"]) != [wanted]
    assert cell_digests(cell * 2, ["X", "B", "Y", "A"]) != [wanted]


def test_memory_does_not_grow_with_cells(tmp_path):
    peaks = {}
    for n in (400, 4000):
        matrix = random(n, 500, density=0.4, format="csr", dtype=np.float32, random_state=0)
        obs = pd.DataFrame({"cell_type": ["B"] * n}, index=[f"c{i}" for i in range(n)])
        path = write_adata(anndata.AnnData(matrix, obs=obs), tmp_path / f"{n}.h5ad")
        source = source_of(path, batch=None)
        del matrix
        tracemalloc.start()
        prepare(path, "s", source, PrepareSettings(0, 100), tmp_path / "out")
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # 3,600 more cells are 5.8 MB of values; what may grow is their names and digests, under 1 KB a cell.
    assert peaks[4000] - peaks[400] < 3600 * 1024
