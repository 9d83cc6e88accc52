"""What is added to the published score is what notices types best that a head never learned."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from canal.config.sections import Novelty
from canal.continual.exact_learner import LEAST_CELLS
from canal.continual.held_out_heads import CHOICES, GeneScores, best_parts, chosen_parts, left_out
from canal.model.centroids import PARTS

SETTINGS = Novelty(mixtures=50, shadow_epochs=40)
TYPES = ("B", "NK", "T", "plasma")
PUBLISHED, DISTANCE, BOTH = CHOICES


def scored(counts, seed):
    """Gene scores of 20 genes, five markers a type, and the types."""
    random = np.random.default_rng(seed)
    types = [name for name, n in counts.items() for _ in range(n)]
    scores = random.uniform(0, 1, (len(types), 21)).astype(np.float32)
    for row, name in enumerate(types):
        first = 5 * TYPES.index(name)
        scores[row, first : first + 5] += 3
    return torch.from_numpy(scores), types


def gene_scores(labels, validation, trained):
    """Without test cells: none is looked at."""
    train, kept = ((scores, np.array(types, dtype=object)) for scores, types in (trained, validation))
    return GeneScores(labels, train, kept, test=None)


TRAINED = scored(dict.fromkeys(TYPES, 25), 0)
VALIDATION = scored({"B": 25, "NK": 25, "T": LEAST_CELLS, "plasma": LEAST_CELLS - 1}, 1)


@pytest.fixture(scope="module")
def h_scores():
    return left_out(gene_scores(TYPES, VALIDATION, TRAINED), SETTINGS, seed=0)


def test_types_with_enough_validation_cells_are_left_out_in_turn(h_scores):
    assert list(h_scores) == ["B", "NK", "T"]
    for one in h_scores.values():
        assert set(one) == set(CHOICES)
        assert all(0 <= value <= 1 for value in one.values())
        assert one[BOTH] > 0.9  # no type is like another one


def test_the_choice_is_the_same_again_and_one_of_those_that_there_are(h_scores):
    found = chosen_parts(TYPES, VALIDATION, TRAINED, SETTINGS, seed=0)
    assert found == best_parts(list(h_scores.values()))
    assert found in CHOICES


@pytest.mark.parametrize("labels", [("B", "T"), ("B",)])
def test_with_fewer_than_two_other_types_nothing_is_left_out(labels):
    cells = scored(dict.fromkeys(labels, 25), 0)
    assert left_out(gene_scores(labels, cells, cells), SETTINGS, seed=0) == {}
    assert chosen_parts(labels, cells, cells, SETTINGS, seed=0) == PARTS


shares = st.floats(0, 1)


@given(st.lists(st.tuples(shares, shares, shares), min_size=1, max_size=6))
def test_the_highest_mean_is_taken(rows):
    found = [dict(zip(CHOICES, row, strict=True)) for row in rows]
    means = {parts: np.mean([one[parts] for one in found]) for parts in CHOICES}
    assert means[best_parts(found)] == max(means.values())


def test_of_two_alike_the_one_of_fewer_parts_is_taken():
    assert best_parts([dict.fromkeys(CHOICES, 0.5)]) == PUBLISHED
    assert best_parts([{PUBLISHED: 0.1, DISTANCE: 0.5, BOTH: 0.5}]) == DISTANCE
    assert best_parts([{PUBLISHED: 0.1, DISTANCE: 0.5, BOTH: 0.6}]) == BOTH
