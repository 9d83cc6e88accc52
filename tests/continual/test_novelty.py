from dataclasses import replace

import numpy as np
import pytest
import torch

from canal.config import Novelty
from canal.continual.cells import LabelledCells
from canal.continual.novelty import fit_rule, mix, mixture_threshold, quantile_threshold, raw_energy
from canal.errors import TrainingError
from canal.model.novelty import NoveltyRule
from tests.continual.make import make_cells
from tests.model.make import make_annotator, make_expression

SETTINGS = Novelty(mixtures=200)


def random(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def annotator():
    return make_annotator()


def known(n=60, seed=1):
    return make_cells(["B", "NK", "T"] * (n // 3), expression=make_expression(n, seed=seed), n_genes=20)


def test_energy_by_hand():
    logits = np.array([[0.0, 0.0], [8.0, 0.0]])
    assert raw_energy(logits, 0.8) == pytest.approx([-0.8 * np.log(2), -0.8 * np.log(np.exp(10) + 1)])


def test_at_most_the_promised_share_of_known_cells_is_unassigned(annotator):
    cells = known()
    for share in (0.01, 0.05, 0.3):
        rule = fit_rule(annotator, cells, SETTINGS.model_copy(update={"false_unassigned": share}), seed=0)
        novel = annotator.with_novelty(rule).predict(cells.expression).is_novel
        assert novel.mean() <= share
    assert novel.mean() > 0.2  # and not much fewer


def test_the_quantile_is_exact_with_ties():
    scores = np.array([0.1] * 10 + [0.5] * 10)
    assert quantile_threshold(scores, 0.55) == 0.1
    assert quantile_threshold(scores, 0.45) == 0.5
    assert quantile_threshold(scores, 0.05) == 0.5


def test_the_bounds_hold_all_known_cells_and_mixtures(annotator):
    cells = known()
    rule = fit_rule(annotator, cells, SETTINGS, seed=0)
    energies = raw_energy(annotator.predict(cells.expression).logits, SETTINGS.temperature)
    assert rule.energy_low <= energies.min()
    assert energies.max() <= rule.energy_high
    score = rule.score(annotator.predict(make_expression(50, seed=9)).logits)
    assert ((score >= 0) & (score <= 1)).all()


def test_a_rule_repeats_with_its_seed(annotator):
    assert fit_rule(annotator, known(), SETTINGS, seed=3) == fit_rule(annotator, known(), SETTINGS, seed=3)


def test_an_answer_does_not_depend_on_other_queries(annotator):
    judge = annotator.with_novelty(fit_rule(annotator, known(), SETTINGS, seed=0))
    query = make_expression(30, seed=5)
    together = judge.predict(query)
    alone = judge.predict(query[7:8])
    assert alone.novelty[0] == pytest.approx(together.novelty[7], abs=1e-6)
    assert alone.is_novel[0] == together.is_novel[7]


def test_without_known_cells_there_is_no_rule(annotator):
    with pytest.raises(TrainingError, match="not trained on"):
        fit_rule(annotator, LabelledCells.empty(20), SETTINGS, seed=0)


def test_a_single_type_still_gives_a_rule(annotator):
    cells = known().take(range(1))
    rule = fit_rule(annotator, cells, SETTINGS, seed=0)
    assert rule.energy_high > rule.energy_low
    assert not annotator.with_novelty(rule).predict(cells.expression).is_novel[0]


def test_mixtures_lie_between_cells_of_different_types():
    manifolds = torch.eye(4)
    types = ["A", "A", "B", "C"]
    mixed = mix(manifolds, types, 300, random()).numpy()
    assert mixed.shape == (300, 4)
    np.testing.assert_allclose(mixed.sum(axis=1), 1.0, rtol=1e-5)
    assert ((mixed > 0).sum(axis=1) <= 2).all()
    assert not ((mixed[:, 0] > 0) & (mixed[:, 1] > 0)).any()  # both are of type A
    assert mixed.max(axis=1).min() < 0.55  # weights are spread evenly, not near the cells
    assert mixed.max(axis=1).max() > 0.95


def test_one_type_cannot_be_mixed():
    assert mix(torch.eye(3), ["A", "A", "A"], 10, random()).shape == (0, 3)


def test_the_published_threshold_by_hand():
    rule = NoveltyRule(temperature=1.0, energy_low=-10.0, energy_high=0.0, threshold=0.3)
    logits = np.array([[5.0, 0.0]])
    energy = (-np.log(np.exp(5) + 1) + 10) / 10
    confidence = np.exp(5) / (np.exp(5) + 1)
    assert mixture_threshold(rule, logits) == pytest.approx((1 - energy + confidence) / 2)
    assert mixture_threshold(replace(rule, threshold=0.9), logits) == mixture_threshold(rule, logits)
