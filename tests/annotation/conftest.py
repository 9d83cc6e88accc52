"""A model of twenty genes that calls some cells novel; one thread, which such small networks like best."""

import pytest

from canal.model.head import NoveltyRule
from tests.support.cells import gene_names, make_adata
from tests.support.models import make_annotator, make_expression


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def adata():
    """Cells with the model's twenty genes and ten others, fresh for each file of tests."""
    cells = make_adata({"B": 12, "NK": 9}, n_genes=30)
    cells.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(10))]
    return cells


@pytest.fixture(scope="session")
def annotator():
    import numpy as np

    model = make_annotator()
    rule = NoveltyRule(0.8, -3.0, 0.0, 0.5)
    scores = rule.score(model.predict(make_expression(100, seed=3)).logits)
    return model.with_novelty(NoveltyRule(0.8, -3.0, 0.0, float(np.quantile(scores, 0.7))))
