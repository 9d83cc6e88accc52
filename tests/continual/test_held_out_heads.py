from types import SimpleNamespace

import numpy as np
import pytest
import torch

from canal.config.sections import Novelty
from canal.continual.cells import LabelledCells
from canal.continual.fit import Hooks
from canal.continual.held_out_heads import GeneScores, HeadCells, held_out_type_heads, to_hold_out
from canal.model.centroids import PARTS
from tests.support.learning import make_cells
from tests.support.models import make_annotator, make_expression

TYPES = ("B", "NK", "T", "plasma")
N_GENES = 20
SETTINGS = Novelty(mixtures=200, holdouts=("plasma",), shadow_epochs=150, false_unassigned=0.05)


def separable(counts, stage, seed):
    """Cells with five marker genes a type, far above the others."""
    random = np.random.default_rng(seed)
    types = [name for name, n in counts.items() for _ in range(n)]
    expression = random.uniform(0, 1.5, (len(types), N_GENES))
    for row, name in enumerate(types):
        first = 5 * TYPES.index(name)
        expression[row, first : first + 5] += random.uniform(2, 4, 5)
    return make_cells(types, stage, expression=expression, n_genes=N_GENES)


class Transparent:
    """A network whose gene scores are the expression itself."""

    labels = TYPES
    novelty = SimpleNamespace(parts=PARTS)

    def gene_scores(self, expression):
        return torch.from_numpy(expression)


@pytest.fixture(scope="module")
def annotator():
    return Transparent()


@pytest.fixture(scope="module")
def cells():
    return HeadCells(
        train=separable(dict.fromkeys(TYPES, 40), "train", 0),
        validation=separable(dict.fromkeys(TYPES, 20), "known", 1),
        test=separable({"B": 20, "NK": 20, "T": 20, "plasma": 12}, "test", 2),
    )


@pytest.fixture(scope="module")
def measured(annotator, cells):
    return held_out_type_heads(annotator, cells, SETTINGS, seed=0)


def test_a_type_unlike_the_others_is_detected(measured):
    [one] = measured["holdouts"]
    assert one["type"] == "plasma"
    assert (one["n_known"], one["n_unknown"]) == (60, 12)
    assert one["auroc"] > 0.9
    assert one["known_accuracy"] > 0.8
    assert one["unknown_accuracy"] > 0.5
    assert measured["h_score"] == one["h_score"]
    assert measured["auroc"] == one["auroc"]
    assert measured["not_measured"] == {}


def test_h_score_is_the_harmonic_mean(measured):
    [one] = measured["holdouts"]
    a, b = one["known_accuracy"], one["unknown_accuracy"]
    assert one["h_score"] == pytest.approx(2 * a * b / (a + b))


def test_the_same_seed_measures_the_same(annotator, cells, measured):
    assert held_out_type_heads(annotator, cells, SETTINGS, seed=0) == measured


def test_the_head_never_sees_the_type(annotator, cells, measured):
    """What its cells look like in training and validation changes nothing."""

    def without(part):
        return part.take([i for i, name in enumerate(part.cell_types) if name != "plasma"])

    blind = HeadCells(without(cells.train), without(cells.validation), cells.test)
    assert held_out_type_heads(annotator, blind, SETTINGS, seed=0) == measured


def test_what_cannot_be_measured_says_why(annotator, cells):
    few = HeadCells(cells.train, cells.validation, cells.test.take(range(63)))
    settings = SETTINGS.model_copy(update={"holdouts": ("plasma", "mast")})
    found = held_out_type_heads(annotator, few, settings, seed=0)
    assert found["not_measured"] == {
        "plasma": "3 test cells, at least 5 are needed",
        "mast": "not learned yet",
    }
    assert found["holdouts"] == []
    assert found["h_score"] is None
    assert found["auroc"] is None


def test_where_no_type_is_named_those_with_most_test_cells_are_held_out():
    names = [f"type {number:02}" for number in range(14)]
    counts = {name: 5 + number for number, name in enumerate(names)} | {"rare": 2}
    tests = make_cells([name for name, n in counts.items() for _ in range(n)], "c")
    many = HeadCells(make_cells([*counts] * 5, "a"), make_cells([*counts] * 5, "b"), tests)
    chosen = to_hold_out(SETTINGS.model_copy(update={"holdouts": None}), (*names, "rare"), many, True)
    assert [name for name, why in chosen.items() if not why] == names[4:]
    assert "novelty.holdouts can name it" in chosen["type 03"]
    assert chosen["rare"] == "2 test cells, at least 5 are needed"
    by_sums = to_hold_out(SETTINGS.model_copy(update={"holdouts": None}), (*names, "rare"), many, False)
    assert [name for name, why in by_sums.items() if not why] == names
    assert to_hold_out(SETTINGS.model_copy(update={"holdouts": ()}), names, many, True) == {}


def test_without_validation_cells_nothing_is_measured(annotator, cells):
    blind = HeadCells(cells.train, LabelledCells.empty(N_GENES), cells.test)
    assert "validation" in held_out_type_heads(annotator, blind, SETTINGS, seed=0)["not_measured"]["plasma"]
    single = HeadCells(cells.train.take(range(40)), cells.validation, cells.test)
    assert "other types" in held_out_type_heads(annotator, single, SETTINGS, seed=0)["not_measured"]["plasma"]


def test_gene_scores_are_what_the_head_goes_on_with():
    annotator, expression = make_annotator(), make_expression(9)
    head = annotator.network.head
    with torch.no_grad():
        manifold = head.to_manifold(annotator.gene_scores(expression)).relu()
    torch.testing.assert_close(manifold, annotator.answers(expression).manifold)


def test_a_real_annotator_can_be_measured():
    annotator = make_annotator(labels=TYPES, n_genes=N_GENES)
    parts = [separable(dict.fromkeys(TYPES, 6), stage, seed) for seed, stage in enumerate("abc")]
    settings = SETTINGS.model_copy(update={"shadow_epochs": 2})
    [one] = held_out_type_heads(annotator, HeadCells(*parts), settings, seed=0)["holdouts"]
    assert 0 <= one["auroc"] <= 1


def test_features_are_kept_of_cells_that_a_training_has_seen_and_of_no_test_cell(tmp_path):
    annotator = make_annotator(labels=TYPES, n_genes=N_GENES)
    parts = [separable(dict.fromkeys(TYPES, n), stage, n) for n, stage in ((6, "a"), (5, "b"), (4, "c"))]
    kept, plain = (
        GeneScores.of(annotator, HeadCells(*parts), hooks) for hooks in (Hooks(cache_dir=tmp_path), None)
    )
    assert sum(len(np.load(path)) for path in tmp_path.rglob("*.npy")) == len(parts[0]) + len(parts[1])
    for name in ("train", "validation", "test"):
        torch.testing.assert_close(getattr(kept, name)[0], getattr(plain, name)[0], atol=1e-5, rtol=1e-5)
