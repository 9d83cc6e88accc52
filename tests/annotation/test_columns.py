import anndata
import numpy as np
import pandas as pd
import pytest

from canal.annotation.annotate import annotate_adata, annotate_h5ad
from canal.annotation.columns import columns_of, join_blocks, split_obsm
from canal.annotation.options import Options
from tests.support import formats
from tests.support.cells import gene_names, make_adata, write_adata
from tests.support.models import make_annotator, make_expression

LABELS = ("B", "NK", "T")


@pytest.fixture
def answer(annotator):
    return annotator.predict(make_expression(30, seed=4))


@pytest.fixture
def adata():
    cells = make_adata({"B": 12, "NK": 9}, n_genes=40)
    cells.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(20))]
    return cells


def test_the_runner_up_is_the_second_likeliest_type(answer):
    table = columns_of(answer, np.zeros(30, dtype=bool), LABELS)
    order = np.argsort(-answer.probabilities, axis=1)
    rows = np.arange(30)
    assert table["canal_runner_up"].tolist() == [LABELS[i] for i in order[:, 1]]
    margin = answer.probabilities[rows, order[:, 0]] - answer.probabilities[rows, order[:, 1]]
    np.testing.assert_allclose(table["canal_margin"], margin, atol=1e-6)
    assert (table["canal_runner_up"] != table["canal_best_type"]).all()


def test_a_model_of_one_type_has_no_runner_up():
    model = make_annotator(("B",))
    table = join_blocks([columns_of(model.predict(make_expression(5)), np.zeros(5, dtype=bool), ("B",))], {})
    assert table["canal_runner_up"].isna().all()
    assert table["canal_margin"].tolist() == [1.0] * 5


def test_confidence_follows_the_temperature_and_labels_do_not(annotator, adata):
    cold = annotate_adata(annotator.with_temperature(0.3), adata)
    warm = annotate_adata(annotator, adata)
    same = ["canal_cell_type", "canal_best_type", "canal_runner_up", "canal_novelty", "canal_is_novel"]
    pd.testing.assert_frame_equal(cold[same], warm[same])
    assert (cold["canal_confidence"] > warm["canal_confidence"]).all()
    assert cold.attrs["canal"]["temperature"] == 0.3


def test_ids_stand_beside_types_and_unknown_beside_the_others(annotator, adata):
    table = annotate_adata(annotator.with_ontology({"B": "CL:0000236", "DC": "CL:0000451"}), adata)
    is_b = table["canal_cell_type"] == "B"
    assert set(table["cell_type_ontology_term_id"][is_b]) <= {"CL:0000236"}
    assert set(table["cell_type_ontology_term_id"][~is_b]) == {"unknown"}
    assert "cell_type_ontology_term_id" not in annotate_adata(annotator, adata)


@pytest.mark.parametrize("write", [formats.write_csr, formats.write_zarr3, formats.write_10x_v3])
def test_all_probabilities_stand_in_obsm_of_every_output(annotator, adata, write, tmp_path):
    source = write(adata, tmp_path)
    target = tmp_path / ("out.zarr" if source.is_dir() else "out.h5ad")
    annotate_h5ad(annotator, source, target, Options(probabilities=True))
    read = anndata.read_zarr if source.is_dir() else anndata.read_h5ad
    found = read(target)
    every = found.obsm["canal_probabilities"]
    assert every.shape == (21, 3)
    np.testing.assert_allclose(every.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(every.max(axis=1), found.obs["canal_confidence"], atol=1e-6)
    assert [LABELS[i] for i in every.argmax(axis=1)] == found.obs["canal_best_type"].tolist()
    assert not [name for name in found.obs if name.startswith("canal_p_")]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_all_probabilities_are_columns_of_a_table(annotator, adata, suffix, tmp_path):
    source = write_adata(adata, tmp_path / "in.h5ad")
    annotate_h5ad(annotator, source, tmp_path / f"out{suffix}", Options(probabilities=True))
    table = (pd.read_csv if suffix == ".csv" else pd.read_parquet)(tmp_path / f"out{suffix}")
    every = table[[f"canal_p_{name}" for name in LABELS]]
    np.testing.assert_allclose(every.max(axis=1), table["canal_confidence"], atol=1e-6)


def test_a_table_without_probabilities_is_left_whole(answer):
    table = columns_of(answer, np.zeros(30, dtype=bool), LABELS)
    columns, matrices = split_obsm(table)
    assert columns is table
    assert matrices == {}
