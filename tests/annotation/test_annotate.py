import json
import tracemalloc

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from canal.annotation.annotate import annotate_adata, annotate_h5ad
from canal.annotation.options import Callbacks, Options
from canal.core.digests import file_digest
from canal.core.errors import DataError, ModelError
from tests.support.cells import gene_names, make_adata, write_adata

COLUMNS = ["canal_cell_type", "canal_best_type", "canal_confidence", "canal_runner_up", "canal_margin"]
COLUMNS += ["canal_novelty", "canal_is_novel", "canal_low_quality"]


@pytest.fixture
def adata():
    """Counts of the model's twenty genes among sixty."""
    cells = make_adata({"B": 30, "NK": 25}, n_genes=60)
    cells.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(40))]
    return cells


@pytest.fixture
def source(adata, tmp_path):
    return write_adata(adata, tmp_path / "in.h5ad")


def expected(annotator, adata):
    """What the model says of log2(1 + counts per 10,000 of all genes)."""
    totals = np.asarray(adata.X.sum(axis=1))
    scaled = np.log2(1 + adata.X.toarray() / totals * 1e4).astype(np.float32)
    return annotator.predict(scaled[:, [list(adata.var_names).index(gene) for gene in annotator.genes]])


def test_a_file_is_labelled_by_expression_of_the_whole_transcriptome(annotator, adata, source, tmp_path):
    summary = annotate_h5ad(annotator, source, tmp_path / "out.h5ad")
    obs = anndata.read_h5ad(tmp_path / "out.h5ad").obs
    answer = expected(annotator, adata)
    assert list(obs) == ["cell_type", "batch", *COLUMNS]
    assert obs["canal_best_type"].tolist() == answer.labels
    np.testing.assert_allclose(obs["canal_confidence"], answer.confidence, atol=1e-5)
    np.testing.assert_allclose(obs["canal_novelty"], answer.novelty, atol=1e-5)
    assert obs["canal_is_novel"].tolist() == answer.is_novel.tolist()
    novel = obs["canal_is_novel"].to_numpy()
    assert 0 < novel.sum() < len(novel)
    assert set(obs["canal_cell_type"][novel]) == {"Unassigned"}
    assert obs["canal_cell_type"][~novel].tolist() == obs["canal_best_type"][~novel].tolist()
    assert summary.unassigned == novel.sum()
    assert sum(summary.counts.values()) == summary.n_cells == 55


@pytest.mark.parametrize("chunk", [1, 7, 55, 1000])
def test_the_size_of_blocks_does_not_matter(annotator, source, tmp_path, chunk):
    annotate_h5ad(annotator, source, tmp_path / "one.h5ad", Options(chunk_cells=20))
    annotate_h5ad(annotator, source, tmp_path / "two.h5ad", Options(chunk_cells=chunk))
    one, two = (anndata.read_h5ad(tmp_path / f"{name}.h5ad").obs for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-5, atol=1e-6)


def test_the_same_command_writes_the_same_bytes(annotator, source, tmp_path):
    options = Options(model_name={"version": 3})
    for name in ("one", "two"):
        annotate_h5ad(annotator, source, tmp_path / name / "out.h5ad", options)
    assert file_digest(tmp_path / "one" / "out.h5ad") == file_digest(tmp_path / "two" / "out.h5ad")


def test_the_note_tells_model_options_and_summary(annotator, source, tmp_path):
    options = Options(model_name={"version": 3, "key": "abc"})
    summary = annotate_h5ad(annotator, source, tmp_path / "out.h5ad", options)
    note = json.loads(anndata.read_h5ad(tmp_path / "out.h5ad").uns["canal"])
    assert note["model"] == {"version": 3, "key": "abc"}
    asked = {"layer": "X", "values": "auto", "gene_column": None, "min_coverage": 0.4, "dtype": "float32"}
    assert note["options"] == asked
    assert note["values"] == "counts"
    assert note["values_detected"] is True
    assert note["genes"] == {"found": 20, "panel": 20, "missing": []}
    assert note["cell_types"] == summary.counts
    assert note["labels"] == list(annotator.labels)
    assert str(tmp_path) not in json.dumps(note)


def test_bfloat16_is_told_and_changes_hardly_a_label(annotator, source, tmp_path):
    annotate_h5ad(annotator, source, tmp_path / "exact.h5ad")
    annotate_h5ad(annotator, source, tmp_path / "rough.h5ad", Options(dtype="bfloat16"))
    exact, rough = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("exact", "rough"))
    assert json.loads(rough.uns["canal"])["options"]["dtype"] == "bfloat16"
    same = exact.obs["canal_best_type"].astype(str) == rough.obs["canal_best_type"].astype(str)
    assert same.mean() > 0.9
    assert abs(exact.obs["canal_confidence"] - rough.obs["canal_confidence"]).max() > 0


def test_a_gpu_that_is_not_there_is_refused(annotator, source, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees no GPU"):
        annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(device="cuda"))
    assert not (tmp_path / "out.h5ad").exists()


def test_the_input_is_never_changed(annotator, source, tmp_path):
    before = file_digest(source)
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad")
    with pytest.raises(DataError, match="the input itself"):
        annotate_h5ad(annotator, source, source, Options(overwrite=True))
    assert file_digest(source) == before


def test_an_output_that_is_there_is_replaced_only_on_demand(annotator, source, tmp_path):
    target = tmp_path / "out.h5ad"
    target.write_text("precious")
    with pytest.raises(DataError, match="--overwrite"):
        annotate_h5ad(annotator, source, target)
    assert target.read_text() == "precious"
    annotate_h5ad(annotator, source, target, Options(overwrite=True))
    assert anndata.read_h5ad(target).n_obs == 55


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, lambda matrix: matrix.toarray()])
@pytest.mark.parametrize("values", ["counts", "log1p_10k", "log2p_10k"])
def test_layout_and_units_change_no_label(annotator, adata, tmp_path, form, values):
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    wanted = annotate_adata(annotator, adata)
    logarithm = {"counts": lambda v: v, "log1p_10k": np.log1p, "log2p_10k": lambda v: np.log2(1 + v)}[values]
    factor = 1.0 if values == "counts" else np.repeat(1e4 / totals, np.diff(adata.X.indptr))
    adata.X.data = logarithm(adata.X.data * factor).astype(np.float32)
    adata.X = form(adata.X)
    summary = annotate_h5ad(annotator, write_adata(adata, tmp_path / "in.h5ad"), tmp_path / "out.h5ad")
    assert summary.values == values
    obs = anndata.read_h5ad(tmp_path / "out.h5ad").obs
    pd.testing.assert_frame_equal(obs[COLUMNS], wanted, atol=1e-4)
    pd.testing.assert_frame_equal(annotate_adata(annotator, adata), wanted, atol=1e-4)


@pytest.mark.parametrize("layer", ["raw", "spliced"])
def test_another_matrix_can_be_asked(annotator, adata, tmp_path, layer):
    wanted = annotate_adata(annotator, adata)
    adata.raw = adata.copy()
    adata.layers["spliced"] = adata.X.copy()
    adata.X = adata.X.toarray() - 1
    found = annotate_adata(annotator, adata, Options(layer=layer))
    pd.testing.assert_frame_equal(found, wanted, atol=1e-6)
    source = write_adata(adata, tmp_path / "in.h5ad")
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(layer=layer))
    obs = anndata.read_h5ad(tmp_path / "out.h5ad").obs
    assert obs["canal_cell_type"].tolist() == wanted["canal_cell_type"].tolist()
    with pytest.raises(DataError, match="no matrix 'none'; there are 'X', 'raw', 'spliced'"):
        annotate_adata(annotator, adata, Options(layer="none"))


def test_symbols_from_a_column(annotator, adata, tmp_path):
    wanted = annotate_adata(annotator, adata)
    adata.var["called"] = adata.var_names.to_numpy()
    adata.var_names = [f"ENSG{i:011d}" for i in range(60)]
    found = annotate_adata(annotator, adata, Options(gene_column="called"))
    pd.testing.assert_frame_equal(found, wanted)
    source = write_adata(adata, tmp_path / "in.h5ad")
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(gene_column="called"))
    with pytest.raises(DataError, match="--gene-column called"):
        annotate_h5ad(annotator, source, tmp_path / "other.h5ad")
    with pytest.raises(DataError, match="no column 'name'; it has 'called'"):
        annotate_adata(annotator, adata, Options(gene_column="name"))
    assert not (tmp_path / "other.h5ad").exists()


def test_the_callers_adata_stays_as_it_was(annotator, adata):
    adata.X.indices[:2] = adata.X.indices[:2][::-1].copy()  # unsorted, as some files are
    adata.X.has_sorted_indices = False
    before = adata.copy()
    annotate_adata(annotator, adata)
    assert list(adata.obs) == list(before.obs)
    assert not adata.uns
    np.testing.assert_array_equal(adata.X.indices, before.X.indices)
    np.testing.assert_array_equal(adata.X.data, before.X.data)


def test_a_view_and_an_open_file_are_labelled_as_their_cells_are(annotator, adata, source):
    wanted = annotate_adata(annotator, adata)
    pd.testing.assert_frame_equal(
        annotate_adata(annotator, adata[10:20]).astype(str), wanted[10:20].astype(str)
    )
    backed = anndata.read_h5ad(source, backed="r")
    pd.testing.assert_frame_equal(annotate_adata(annotator, backed), wanted)
    backed.file.close()


def test_names_that_are_there_twice_are_told_where_rows_cannot_be_joined(annotator, adata, tmp_path):
    adata = adata.copy()
    adata.obs_names = [adata.obs_names[1], *adata.obs_names[1:]]
    told: list[str] = []
    source = write_adata(adata, tmp_path / "in.h5ad")
    annotate_h5ad(annotator, source, tmp_path / "out.csv", callbacks=Callbacks(told.append))
    assert [one for one in told if "stand again in the file (1): the rows of out.csv" in one]
    told.clear()
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad", callbacks=Callbacks(told.append))
    assert not [one for one in told if "stand again" in one]


def test_columns_of_one_gene_add_up_for_counts_and_are_told(annotator, adata):
    first = adata.var_names[0]
    split = adata.copy()
    split.var_names = [*adata.var_names[:59], first]
    merged = adata.copy()
    values = merged.X.toarray()
    values[:, 0] += values[:, 59]
    values[:, 59] = 0
    merged.X = csr_matrix(values)
    with pytest.warns(UserWarning, match="1 gene has more than one column"):
        found = annotate_adata(annotator, split)
    pd.testing.assert_frame_equal(found, annotate_adata(annotator, merged), atol=1e-6)


def test_few_genes_are_a_warning_in_summary_and_table(annotator, adata, tmp_path):
    few = adata[:, [*range(12), *range(20, 60)]].copy()
    summary = annotate_h5ad(annotator, write_adata(few, tmp_path / "in.h5ad"), tmp_path / "out.h5ad")
    assert summary.coverage.found == 12
    assert "12 of the model's 20 genes" in summary.warnings[0]
    with pytest.warns(UserWarning, match="12 of the model's 20 genes"):
        table = annotate_adata(annotator, few)
    assert table.attrs["canal"]["warnings"] == list(summary.warnings)


def test_no_cells_are_refused(annotator, adata, tmp_path):
    with pytest.raises(DataError, match="no cells"):
        annotate_adata(annotator, adata[:0].copy())
    with pytest.raises(DataError, match="no cells"):
        annotate_h5ad(annotator, write_adata(adata[:0].copy(), tmp_path / "in.h5ad"), tmp_path / "out.h5ad")


def test_a_cell_without_counts_is_labelled_too(annotator, adata):
    values = adata.X.toarray()
    values[3] = 0
    adata.X = csr_matrix(values)
    table = annotate_adata(annotator, adata)
    assert np.isfinite(table["canal_confidence"]).all()


def test_a_wrong_value_anywhere_leaves_nothing(annotator, tmp_path):
    adata = make_adata({"B": 500}, n_genes=20)
    adata.X.data[adata.X.indptr[41]] = np.nan  # in none of the cells that are looked at first
    with pytest.raises(DataError, match="first in cell 41 "):
        annotate_h5ad(annotator, write_adata(adata, tmp_path / "in.h5ad"), tmp_path / "out.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]


def test_a_short_job_tells_no_progress(annotator, source, tmp_path):
    said = []
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(chunk_cells=1), Callbacks(said.append))
    assert said == []


def test_memory_does_not_grow_with_cells(annotator, tmp_path):
    def peak(n_cells):
        path = tmp_path / f"{n_cells}.h5ad"
        if not path.exists():
            write_adata(make_adata({"B": n_cells}, n_genes=400), path)
        tracemalloc.start()
        annotate_h5ad(annotator, path, tmp_path / "out.h5ad", Options(chunk_cells=50, overwrite=True))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)  # imports
    matrix = 1600 * 400 * 8
    assert peak(1600) - peak(200) < 0.2 * matrix


def test_missing_and_foreign_files_are_named(annotator, tmp_path):
    with pytest.raises(DataError, match=r"none\.h5ad: no such file"):
        annotate_h5ad(annotator, tmp_path / "none.h5ad", tmp_path / "out.h5ad")
    (tmp_path / "text.h5ad").write_text("cells")
    with pytest.raises(DataError, match="no readable h5ad"):
        annotate_h5ad(annotator, tmp_path / "text.h5ad", tmp_path / "out.h5ad")
