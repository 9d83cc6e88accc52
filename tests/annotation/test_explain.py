"""What carries a type, on a network that looks at one gene alone."""

import csv

import numpy as np
import pytest
import torch

from canal.annotation.annotate import annotate_h5ad
from canal.annotation.labelled import open_labelled
from canal.annotation.markers import ExplainOptions, explain, write_explanations
from canal.core.errors import DataError
from canal.model.attribution import attributions
from canal.model.head import NoveltyRule
from tests.support.cells import gene_names, make_adata, write_adata
from tests.support.models import DEEP, make_annotator, make_expression

MARKERS = {"B": 3, "T": 11}


def telling():
    """An annotator of two types; each of them hangs on the expression of its one marker."""
    model = make_annotator(tuple(MARKERS), config=DEEP)
    head = model.network.head
    low, high = np.zeros((1, 20), dtype=np.float32), np.full((1, 20), 4.5, dtype=np.float32)
    with torch.no_grad():
        scores = [model.gene_scores(cells)[0] for cells in (low, high)]
        if (scores[1] - scores[0])[:20].mean() < 0:  # expression lowers the filter: look from the other side
            head.filter.weight.neg_()
        head.filter.bias.fill_(3.0)
        for layer in (head.to_manifold, head.to_representation, head.prototypes):
            layer.weight.zero_()
            layer.bias.zero_()
        for unit, (name, gene) in enumerate(MARKERS.items()):
            head.to_manifold.weight[unit, gene] = 1.0
            head.to_representation.weight[unit, unit] = 1.0
            head.prototypes.weight[list(MARKERS).index(name), unit] = 5.0
    return model


def cells_of(gene, n=30):
    """Cells that express a gene strongly, and others as it happens."""
    expression = make_expression(n, seed=gene)
    expression[:, list(MARKERS.values())] = 0.0
    expression[:, gene] = 5.5
    return expression


def test_the_one_gene_that_a_type_hangs_on_carries_it():
    model = telling()
    for position, gene in enumerate(MARKERS.values()):
        cells = cells_of(gene)
        found = attributions(model, cells, np.full(len(cells), position)).mean(axis=0)
        assert found.argmax() == gene
        assert found[gene] > 3 * np.abs(np.delete(found, gene)).max()


def test_a_gene_that_is_not_expressed_counts_nothing_and_batches_do_not_matter():
    model = telling()
    cells = cells_of(3)
    found = attributions(model, cells, np.zeros(len(cells), dtype=np.int64))
    assert (found[cells < 1] == 0).all()
    alone = np.concatenate(
        [attributions(model, cells[i : i + 1], np.zeros(1, dtype=np.int64)) for i in range(5)]
    )
    np.testing.assert_allclose(found[:5], alone, atol=1e-5)


@pytest.fixture
def labelled(tmp_path):
    """A file whose cells of two types each express their marker; one in six is novel."""
    cells = make_adata({"B": 40, "T": 20}, n_genes=20)
    cells.var_names = gene_names(20)
    values = cells.X.toarray()
    values[:, list(MARKERS.values())] = 0.0
    for name, gene in MARKERS.items():
        values[cells.obs["cell_type"] == name, gene] = 40.0
    cells.X = values
    model = telling().with_novelty(NoveltyRule(0.8, -3.0, 0.0, 2.0))
    annotate_h5ad(model, write_adata(cells, tmp_path / "in.h5ad"), tmp_path / "out.h5ad")
    return model, tmp_path / "out.h5ad"


def test_a_labelled_file_is_explained_type_by_type(labelled, tmp_path):
    model, path = labelled
    with open_labelled(path) as opened:
        found = explain(model, opened, ExplainOptions(cells=10, top=3, chunk_cells=7), lambda said: None)
        again = explain(model, opened, ExplainOptions(cells=10, top=3), lambda said: None)
    assert [(one.cell_type, one.n_cells, one.genes[0].gene, one.genes[0].expressed) for one in found] == [
        (name, 10, gene_names(20)[gene], 1.0) for name, gene in MARKERS.items()
    ]
    assert [one.genes[0] for one in found] == [one.genes[0] for one in again]
    write_explanations(tmp_path / "genes.csv", found)
    with (tmp_path / "genes.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rank"] for row in rows if row["cell_type"] == "B"] == ["1", "2", "3"][: len(found[0].genes)]
    assert rows[0]["gene"] == gene_names(20)[MARKERS["B"]]


def test_without_a_type_there_is_nothing_to_explain(labelled):
    model, path = labelled
    with open_labelled(path) as opened:
        opened.types[:] = "Unassigned"
        with pytest.raises(DataError, match="none of its 60 cells has a cell type"):
            explain(model, opened, ExplainOptions(), lambda said: None)
