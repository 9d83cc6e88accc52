import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.core.errors import ModelError
from canal.model.annotator import Annotator, gene_vectors, with_genes
from canal.model.head import NoveltyRule
from tests.support.models import DEEP, TINY, make_annotator, make_expression

DIM = TINY.dim
PARENTS = {deep: make_annotator(config=DEEP if deep else TINY) for deep in (False, True)}
PARENT = PARENTS[True]


def vectors(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def names(n):
    return tuple(f"NEW{i}" for i in range(n))


@given(n=st.integers(1, 9), deep=st.booleans(), seed=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_every_old_value_keeps_its_bits_and_the_closing_position_stays_last(n, deep, seed):
    parent, new = PARENTS[deep], vectors(n, seed)
    grown = with_genes(parent, names(n), new)
    assert grown.genes == (*parent.genes, *names(n))
    assert grown.labels == parent.labels
    old, now = parent.network.state_dict(), grown.network.state_dict()
    assert list(old) == list(now)
    for name, value in old.items():
        if name == "backbone.pos_emb.weight":
            assert torch.equal(now[name][:20], value[:20])
            assert torch.equal(now[name][20:-1], torch.from_numpy(new))
            assert torch.equal(now[name][-1], value[-1])
        elif name == "head.to_manifold.weight":
            assert torch.equal(now[name][:, :20], value[:, :20])
            assert not now[name][:, 20:-1].any()
            assert torch.equal(now[name][:, -1], value[:, -1])
        else:
            assert torch.equal(now[name], value), name


def test_the_same_parameters_are_trained_as_before():
    grown = with_genes(PARENT, names(2), vectors(2))
    assert list(grown.network.trained()) == list(PARENT.network.trained())


def test_growth_shares_no_memory_with_the_parent():
    before = {name: value.clone() for name, value in PARENT.network.state_dict().items()}
    grown = with_genes(PARENT, names(2), vectors(2))
    with torch.no_grad():
        for value in grown.network.state_dict().values():
            value.fill_(7.0)
    assert all(torch.equal(value, before[name]) for name, value in PARENT.network.state_dict().items())


def test_without_weight_in_attention_the_answers_are_the_parents():
    """What changes answers is attention over more positions; the head alone adds nothing at first."""
    quiet = with_genes(PARENT, (), np.zeros((0, DIM), dtype=np.float32))
    with torch.no_grad():
        for block in quiet.network.backbone.blocks:
            block.attention.to_out.weight.zero_()
    grown = with_genes(quiet, names(3), vectors(3))
    cells = make_expression(5)
    wide = np.concatenate([cells, make_expression(5, 3, seed=1)], axis=1)
    assert grown.predict(wide).logits == pytest.approx(quiet.predict(cells).logits, abs=1e-5)


def test_a_grown_annotator_is_saved_and_read_back(tmp_path):
    grown = with_genes(PARENT, names(3), vectors(3))
    grown.save(tmp_path / "model")
    loaded, cells = Annotator.load(tmp_path / "model"), make_expression(4, 23)
    assert loaded.genes == grown.genes
    assert np.array_equal(loaded.predict(cells).logits, grown.predict(cells).logits)
    assert np.array_equal(gene_vectors(loaded)[20:], vectors(3))


def test_a_rule_for_other_genes_does_not_stay():
    parent = PARENT.with_novelty(NoveltyRule(0.8, -1.0, 1.0, 0.5)).with_temperature(2.0)
    grown = with_genes(parent, names(1), vectors(1))
    assert (grown.novelty, grown.centroids, grown.temperature) == (None, None, 1.0)


@pytest.mark.parametrize(
    ("genes", "found", "message"),
    [
        ((PARENT.genes[3],), vectors(1), "1 new genes are in the panel already"),
        (("A", "A"), vectors(2), "2 new genes have 1 names"),
        (("A", "B"), vectors(1), r"one finite vector of 16 values each, found \(1, 16\)"),
        (("A",), np.full((1, DIM), np.nan), "one finite vector"),
    ],
)
def test_genes_that_cannot_be_added_are_refused(genes, found, message):
    with pytest.raises(ModelError, match=message):
        with_genes(PARENT, genes, found)
