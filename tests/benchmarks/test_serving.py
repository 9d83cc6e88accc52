"""A real server, started as a person starts it, and 32 clients who do not all know what they do."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from served import champion_of, right_questions, serving, wrong_questions
from serving import load

from canal.annotation.annotate import annotate_adata
from canal.annotation.options import Options
from canal.model.head import NoveltyRule
from tests.support.cells import gene_names, make_adata
from tests.support.models import make_annotator, make_expression

DOCS = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
CLIENTS, MIB = 32, 1 << 20


@pytest.fixture
def annotator():
    """A model of twenty genes that calls a third of the cells novel and knows an id."""
    model = make_annotator().with_ontology({"B": "CL:0000236"})
    rule = NoveltyRule(0.8, -3.0, 0.0, 0.5)
    scores = rule.score(model.predict(make_expression(100, seed=3)).logits)
    return model.with_novelty(NoveltyRule(0.8, -3.0, 0.0, float(np.quantile(scores, 0.7))))


@pytest.mark.chaos
def test_a_served_champion_answers_right_under_load_and_stays_as_large(annotator, tmp_path):
    champion_of(tmp_path, annotator)
    right, wrong = right_questions(annotator, (1, 40, 500)), wrong_questions(annotator, megabytes=2)
    assert 0 < right[-1].wanted["canal_is_novel"].sum() < 500
    with serving(tmp_path, tmp_path / "server.log") as server:
        for question in (*right, *wrong):
            assert question.complaint(server.ask(question.body)) == ""
        first = load(server, [*right, *wrong], CLIENTS, each=1)
        before = server.memory
        second = load(server, [*right, *wrong], CLIENTS, each=2)
        grown = server.memory - before
        cells = _cells(annotator)
        labels = _documented(f"{server.url}/invocations")(cells, annotator.genes, cells_at_a_time=40)
    assert first.complaints == second.complaints == []
    assert (first.answered, second.answered) == (CLIENTS, 2 * CLIENTS)
    assert grown < 150 * MIB
    wanted = annotate_adata(annotator, cells, Options(device="cpu"))
    pd.testing.assert_frame_equal(
        labels, wanted, check_dtype=False, check_categorical=False, rtol=0, atol=1e-4
    )


def _documented(url):
    """Return the client that docs/serving.md shows."""
    names = {}
    exec(re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[-1], names)
    names["URL"] = url
    return names["label"]


def _cells(annotator):
    """Return cells whose file lacks two of the model's genes."""
    cells = make_adata({"B": 30, "NK": 25}, n_genes=60)
    cells.var_names = [*gene_names(20)[2:], *(f"OTHER{i}" for i in range(42))]
    return cells
