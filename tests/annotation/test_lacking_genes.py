"""A file that lacks genes of the model: whoever reads it again asks the model as labelling did."""

from dataclasses import replace

import anndata
import numpy as np
import pytest

from canal.annotation.annotate import annotate_h5ad
from canal.annotation.clusters import represent
from canal.annotation.labelled import open_labelled
from canal.annotation.markers import ExplainOptions, explain
from canal.annotation.naming import Naming
from canal.annotation.novel import GroupingOptions, group_novel
from canal.annotation.options import Options
from tests.support.cells import write_adata
from tests.support.models import LABELS, make_combined
from tests.support.sums import genes, make_cells, make_exact, make_sums

MODELS = {"combined": make_combined, "exact": lambda: make_exact(make_sums(), LABELS)}


@pytest.fixture(scope="module", params=MODELS)
def labelled(request, tmp_path_factory):
    """Give a model whose every cell is novel, and a file with 12 of its 20 genes that it labelled."""
    folder, model = tmp_path_factory.mktemp("lacking"), MODELS[request.param]()
    model = replace(model, novelty=replace(model.novelty, threshold=-1.0))
    expression, types = make_cells(LABELS, 20, stage="third", seed=5)
    cells = anndata.AnnData(expression * 0.4)
    cells.var_names, cells.obs["type"] = list(genes()), types
    source = write_adata(cells[:, :12].copy(), folder / "in.h5ad")
    annotate_h5ad(model, source, folder / "out.h5ad", Options(values="log1p_10k", force=True))
    return model, folder / "out.h5ad"


def test_novel_cells_are_grouped(labelled):
    model, path = labelled
    with open_labelled(path) as file:
        assert group_novel(model, file, GroupingOptions(min_cells=5), print).n_novel == 80


def test_types_are_explained_by_genes_that_are_there(labelled):
    model, path = labelled
    known = replace(model, novelty=replace(model.novelty, threshold=2.0))
    source, target = path.with_name("in.h5ad"), path.with_name("known.h5ad")
    annotate_h5ad(known, source, target, Options(values="log1p_10k", force=True))
    with open_labelled(target) as file:
        found = explain(known, file, ExplainOptions(), print)
    named = {gene.gene for one in found for gene in one.genes}
    assert named
    assert named <= set(genes()[:12])


def test_the_representation_gives_the_types_that_were_written(labelled):
    model, path = labelled
    with open_labelled(path) as file:
        reading, restricted = file.reading(model, Naming())
        every = np.ones(80, dtype=bool)
        cells = represent(restricted, reading, every, GroupingOptions().compute, lambda done, total: None)
        types = [model.labels[i] for i in cells.logits.argmax(axis=1)]
    assert types == anndata.read_h5ad(path).obs["canal_best_type"].tolist()
