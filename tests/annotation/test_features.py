"""Antibodies, guides and spike-ins count nowhere, in any format: not in labelling, the gate or prepare."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from canal.annotation.annotate import annotate_adata, annotate_h5ad, label_h5ad
from canal.annotation.labelled import open_labelled
from canal.annotation.naming import Naming
from canal.annotation.options import Options
from canal.core.digests import file_digest
from canal.data.prepare import PrepareSettings, prepare
from canal.io.h5ad import not_genes
from tests.support.cases import TYPES, StageCase, failed
from tests.support.cells import gene_names, make_adata, source_of, write_adata
from tests.support.formats import write_csc, write_csr, write_dense, write_zarr2, write_zarr3

COLUMNS = {
    "feature_types": ("Gene Expression", "Antibody Capture"),
    "feature_type": ("protein_coding", "synthetic"),
    "feature_biotype": ("gene", "spike-in"),
}


@pytest.fixture
def genes():
    cells = make_adata({"B": 30, "NK": 25}, n_genes=60)
    cells.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(40))]
    return cells


def with_others(genes, column, values=lambda counts: 50 * counts + 7):
    """Five features that are none of genes, called as genes are, with far more counts."""
    others = genes[:, :5].copy()
    others.X = csr_matrix(values(others.X.toarray()).astype(np.float32))
    both = anndata.concat([genes, others], axis=1)
    both.obs = genes.obs
    gene, none = COLUMNS[column]
    both.var = pd.DataFrame({column: [gene] * 60 + [none] * 5}, index=both.var_names)
    return both


def same(found, wanted):
    assert found["canal_cell_type"].astype(str).tolist() == wanted["canal_cell_type"].astype(str).tolist()
    np.testing.assert_allclose(found["canal_confidence"], wanted["canal_confidence"], atol=1e-4)


@pytest.mark.parametrize(
    ("column", "write"),
    [
        *((column, write_csr) for column in COLUMNS),
        *(("feature_types", write) for write in (write_csc, write_dense, write_zarr2, write_zarr3)),
    ],
)
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_they_count_in_no_format(annotator, genes, tmp_path, column, write):
    both = with_others(genes, column)
    same(label_h5ad(annotator, write(both, tmp_path)), annotate_adata(annotator, genes))


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix])
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_they_are_told_and_may_be_in_units_of_their_own(annotator, genes, form):
    both = with_others(genes, "feature_types", lambda counts: np.log1p(counts) - 1)
    both.X = form(both.X)
    with pytest.warns(UserWarning, match="5 of 65 features are no genes and count nowhere: 5 Anti"):
        found = annotate_adata(annotator, both)
    same(found, annotate_adata(annotator, genes))
    assert found.attrs["canal"]["values"] == "counts"


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_raw_has_features_of_its_own(annotator, genes, tmp_path):
    both = with_others(genes, "feature_types")
    raw = genes.copy()
    raw.raw = both
    path = write_adata(raw, tmp_path / "a.h5ad")
    same(label_h5ad(annotator, path, Options(layer="raw")), annotate_adata(annotator, genes))


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_a_labelled_file_is_read_again_as_it_was_labelled(annotator, genes, tmp_path):
    source = write_adata(with_others(genes, "feature_types"), tmp_path / "a.h5ad")
    options = Options(model_name={"model": "m", "version": 2, "key": "k" * 64})
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad", options)
    with open_labelled(tmp_path / "out.h5ad") as file:
        blocks = list(file.reading(annotator, Naming())[0].blocks(100))
        types = [annotator.labels[i] for i in annotator.predict(blocks[0].expression).logits.argmax(axis=1)]
        file.check_types(np.arange(len(types)), types)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_prepare_leaves_them_out_and_says_so(genes, tmp_path):
    source = write_adata(with_others(genes, "feature_types"), tmp_path / "both.h5ad")
    alone = write_adata(genes, tmp_path / "alone.h5ad")
    for path in (source, alone):
        prepare(path, "a", source_of(path), PrepareSettings(1, 20), tmp_path / path.stem)
    both, wanted = (anndata.read_h5ad(tmp_path / name / "cells.h5ad") for name in ("both", "alone"))
    assert list(both.var_names) == list(wanted.var_names)
    assert (both.X != wanted.X).nnz == 0
    assert both.obs["cell_digest"].tolist() == wanted.obs["cell_digest"].tolist()
    repairs = json.loads((tmp_path / "both" / "prepared.json").read_text())["repairs"]
    wanted = {"n": 5, "kinds": {"Antibody Capture": 5}, "done": "left out"}
    assert repairs == {"features_that_are_no_genes": wanted}


def test_a_column_that_calls_all_features_genes_changes_no_byte(genes, tmp_path):
    """What was prepared before stays as it is."""
    digests = set()
    for name, column in (("bare", None), ("told", "Gene Expression")):
        cells = genes.copy()
        if column:
            cells.var["feature_types"] = column
        path = write_adata(cells, tmp_path / f"{name}.h5ad")
        prepare(path, "a", source_of(path), PrepareSettings(1, 20), tmp_path / name)
        digests.add(file_digest(tmp_path / name / "cells.h5ad"))
    assert len(digests) == 1


@pytest.mark.xdist_group("gate")
def test_the_gate_warns_of_them_and_judges_the_genes_alone(tmp_path):
    case = StageCase()
    genes = case.adata
    others = anndata.AnnData(X=csr_matrix(np.full((genes.n_obs, 3), -0.5, dtype=np.float32)), obs=genes.obs)
    others.var_names = ["CD3_TotalSeqB", "CD4_TotalSeqB", "CD8_TotalSeqB"]
    both = anndata.concat([genes, others], axis=1)
    both.obs = genes.obs
    both.var["feature_types"] = ["Gene Expression"] * genes.n_vars + ["Antibody Capture"] * 3
    assert sum(TYPES.values()) == both.n_obs
    alone = case.judged(tmp_path / "alone")
    case.adata = both
    verdict = case.judged(tmp_path / "both")
    assert [name for name in failed(verdict) if name not in failed(alone)] == ["features_are_genes"]
    rule = next(rule for rule in verdict.rules if rule.rule == "features_are_genes")
    assert rule.severity == "warning"
    assert rule.examples == ("Antibody Capture (3 features)",)
    assert verdict.passed
    assert "features_are_genes" not in [rule.rule for rule in alone.rules]


@pytest.mark.parametrize(
    ("column", "values", "kept"),
    [
        ("feature_types", ["Gene Expression", "Custom", ""], [True, False, True]),
        ("feature_types", ["Antibody Capture", "CRISPR Guide Capture"], [False, False]),
        ("feature_type", ["protein_coding", "lncRNA", "synthetic"], [True, True, False]),
        ("feature_biotype", ["gene", "spike-in"], [True, False]),
        ("feature_types", ["gene_expression", "Multiplexing Capture"], [True, False]),
        ("modality", ["Antibody Capture"], [True]),
    ],
)
def test_what_a_column_says(column, values, kept):
    found = not_genes(len(values), {column: lambda: values})
    assert found.is_gene.tolist() == kept
    assert found.n == kept.count(False)
