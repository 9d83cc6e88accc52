"""Profiles of stages, and drift between them."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from canal.core.digests import json_digest
from canal.core.errors import GateError
from canal.data.expression import tokenize
from canal.data.prepare import PrepareSettings, prepare
from canal.data.prepared import PreparedCells
from canal.quality.verdict import Profile, chance_index, profile_of, stability_index
from tests.support.cells import make_adata, source_of, write_adata

COUNTS = arrays(np.int64, (4, 6), elements=st.integers(0, 500))


@pytest.fixture
def prepared(tmp_path):
    raw = write_adata(make_adata({"B": 20, "NK": 20}), tmp_path / "raw.h5ad")
    prepare(raw, "first", source_of(raw), PrepareSettings(0, 16), tmp_path / "prepared")
    return PreparedCells(tmp_path / "prepared" / "cells.h5ad")


def test_a_profile_counts_tokens_of_the_panel(prepared):
    panel, cells = ["CD3D", "NOT-THERE", "GENE002"], list(prepared.obs.index[:25])
    profile = profile_of(prepared, cells, panel)
    expression = prepared.expression(cells, panel)
    expected = [np.bincount(tokenize(expression)[:, gene], minlength=6).tolist() for gene in (0, 2)]
    assert [list(row) for row in profile.tokens] == [expected[0], [0] * 6, expected[1]]
    assert profile.n_cells == 25
    assert profile.median_genes == np.median((expression > 0).sum(axis=1))
    assert profile.depth == profile.median_genes / 2


def test_a_profile_survives_json(prepared):
    profile = profile_of(prepared, list(prepared.obs.index), prepared.genes)
    assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_no_cells_and_no_panel_have_a_profile(prepared):
    assert profile_of(prepared, [], ["CD3D"]) == Profile(json_digest(["CD3D"]), 0, 0.0, ((0,) * 6,))
    assert profile_of(prepared, list(prepared.obs.index), []).depth == 0


@pytest.mark.parametrize("tokens", [None, [[1, 2]], [["many"] * 6]])
def test_what_is_no_profile_is_refused(tokens):
    with pytest.raises(GateError, match="run the stage's gate again"):
        Profile.from_json({"panel_digest": "", "n_cells": 1, "median_genes": 2, "tokens": tokens})


def test_the_index_of_a_hand_computed_case():
    before = np.array([[79, 19, 0, 0, 0, 0]])
    now = np.array([[59, 39, 0, 0, 0, 0]])
    p, q = (59.5 / 99, 39.5 / 99), (79.5 / 99, 19.5 / 99)
    expected = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert stability_index(before, now)[0] == pytest.approx(expected)


@given(one=COUNTS, other=COUNTS)
@settings(max_examples=50, deadline=None)
def test_the_index_is_symmetric_not_negative_and_missing_only_without_cells(one, other):
    index = stability_index(one, other)
    np.testing.assert_allclose(index, stability_index(other, one))
    missing = (one.sum(axis=1) == 0) | (other.sum(axis=1) == 0)
    np.testing.assert_array_equal(np.isnan(index), missing)
    assert (index[~missing] >= 0).all()
    np.testing.assert_array_equal(np.isnan(chance_index(one, other)), missing)


def test_equal_tokens_have_not_drifted():
    counts = np.array([[40, 30, 20, 5, 5, 0]])
    assert stability_index(counts, counts)[0] == 0


def test_chance_alone_seldom_exceeds_its_bound():
    generator = np.random.default_rng(0)
    shares = np.tile([0.4, 0.2, 0.15, 0.1, 0.1, 0.05], (50, 1))
    exceeded = 0
    for _ in range(100):
        before, now = generator.multinomial(300, shares), generator.multinomial(200, shares)
        exceeded += bool((stability_index(before, now) > chance_index(before, now)).any())
    assert exceeded <= 12
