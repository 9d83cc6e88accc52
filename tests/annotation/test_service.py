import threading
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from canal.annotation.annotate import annotate_adata
from canal.annotation.options import Options
from canal.annotation.service import answer
from canal.config.sections import Novelty
from canal.continual.novelty_choice import with_rule
from canal.core.errors import DataError
from tests.support.learning import make_cells
from tests.support.models import make_annotator, make_expression


def logarithms(n):
    values = np.round(np.random.default_rng(0).random((n, 20)), 3)
    return pd.DataFrame(values, columns=make_annotator().genes)


class Turns:
    """Counts how often it was taken, and never lets two in."""

    def __init__(self):
        self.taken, self._lock = 0, threading.Lock()

    def __enter__(self):
        assert self._lock.acquire(blocking=False)
        self.taken += 1

    def __exit__(self, *_):
        self._lock.release()


def test_a_large_request_lets_others_in_between_its_blocks(annotator):
    turns = Turns()
    assert len(answer(annotator, logarithms(600), turns)) == 600
    assert turns.taken == 3


def test_the_distance_leaves_out_genes_that_were_not_sent_as_annotate_does():
    known = make_cells(["B", "NK", "T"] * 20, expression=make_expression(60, seed=1), n_genes=20)
    annotator = make_annotator()
    scored = (annotator.gene_scores(known.expression), known.cell_types)
    judge = with_rule(annotator, scored, scored, Novelty(mixtures=50), seed=0)
    table = logarithms(30).drop(columns=list(judge.genes[:8]))
    answers = answer(judge, table, nullcontext())
    cells = AnnData(csr_matrix(table.to_numpy(np.float32)), var=pd.DataFrame(index=list(table.columns)))
    with pytest.warns(UserWarning, match="12 of the model's 20 genes"):
        wanted = annotate_adata(judge, cells, Options(values="log1p_10k"))
    np.testing.assert_allclose(answers["canal_novelty"], wanted["canal_novelty"], atol=1e-6)
    whole = logarithms(30).assign(**dict.fromkeys(judge.genes[:8], 0.0)).to_numpy(np.float32)
    assert not np.allclose(answers["canal_novelty"], judge.predict(whole).novelty, atol=1e-3)


def test_what_is_missing_is_none():
    alone = answer(make_annotator(labels=("B",)), logarithms(2), nullcontext())
    assert alone["canal_runner_up"].tolist() == [None, None]
    assert alone["canal_cell_type"].tolist() == ["B", "B"]


def test_ids_and_probabilities_are_given_where_there_are_any(annotator):
    named = annotator.with_ontology({"B": "CL:0000236"})
    answers = answer(named, logarithms(50), nullcontext(), probabilities=True)
    ids = np.where(answers["canal_cell_type"] == "B", "CL:0000236", "unknown")
    assert answers["cell_type_ontology_term_id"].tolist() == ids.tolist()
    shares = answers[[f"canal_p_{label}" for label in named.labels]]
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(shares.max(axis=1), answers["canal_confidence"], atol=1e-7)
    assert "cell_type_ontology_term_id" not in answer(annotator, logarithms(1), nullcontext())


def test_nothing_is_answered_where_anything_is_wrong(annotator):
    table, turns = logarithms(600), Turns()
    table.iloc[599, 3] = -1
    with pytest.raises(DataError, match="in cell 599"):
        answer(annotator, table, turns)
    assert turns.taken == 0
