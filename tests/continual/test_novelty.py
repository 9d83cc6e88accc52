from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.config.sections import Novelty
from canal.continual.cells import LabelledCells
from canal.continual.novelty_choice import mix, mixture_threshold, raw_energy, with_rule
from canal.core.errors import TrainingError
from canal.memory.prediction import quantile_threshold
from canal.model.annotator import Annotator
from canal.model.centroids import CentroidDistances
from canal.model.head import NoveltyRule
from canal.model.storage import weights_digest
from tests.support.learning import make_cells
from tests.support.models import make_annotator, make_expression

SETTINGS = Novelty(mixtures=200)


def random(seed=0):
    return np.random.default_rng(seed)


def rule_from(annotator, validation, trained, settings, seed):
    """Return the annotator with a rule from cells."""
    parts = ((annotator.gene_scores(cells.expression), cells.cell_types) for cells in (validation, trained))
    return with_rule(annotator, *parts, settings, seed)


@pytest.fixture(scope="module")
def annotator():
    return make_annotator()


def validation(n=60, seed=1):
    return make_cells(["B", "NK", "T"] * (n // 3), expression=make_expression(n, seed=seed), n_genes=20)


def trained(n=90, seed=2):
    return validation(n, seed)


@pytest.fixture(scope="module")
def judge(annotator):
    return rule_from(annotator, validation(), trained(), SETTINGS, seed=0)


def test_energy_by_hand():
    logits = np.array([[0.0, 0.0], [8.0, 0.0]])
    assert raw_energy(logits, 0.8) == pytest.approx([-0.8 * np.log(2), -0.8 * np.log(np.exp(10) + 1)])


def test_at_most_the_promised_share_of_validation_cells_is_unassigned(annotator):
    cells = validation()
    for share in (0.01, 0.05, 0.3):
        promised = SETTINGS.model_copy(update={"false_unassigned": share})
        judge = rule_from(annotator, cells, trained(), promised, seed=0)
        novel = judge.predict(cells.expression).is_novel
        assert novel.mean() <= share
    assert novel.mean() > 0.2  # and not much fewer


def test_the_quantile_is_exact_with_ties():
    scores = np.array([0.1] * 10 + [0.5] * 10)
    assert quantile_threshold(scores, 0.55) == 0.1
    assert quantile_threshold(scores, 0.45) == 0.5
    assert quantile_threshold(scores, 0.05) == 0.5


def test_the_bounds_hold_all_validation_cells_and_mixtures(annotator):
    cells = validation()
    judge = rule_from(annotator, cells, trained(), SETTINGS, seed=0)
    rule = judge.novelty
    energies = raw_energy(annotator.predict(cells.expression).logits, SETTINGS.temperature)
    assert rule.energy_low <= energies.min()
    assert energies.max() <= rule.energy_high
    score = judge.predict(make_expression(50, seed=9)).novelty
    assert ((score >= 0) & (score <= 1)).all()


def test_a_rule_repeats_with_its_seed(annotator):
    one, two = (rule_from(annotator, validation(), trained(), SETTINGS, seed=3) for _ in range(2))
    assert one.novelty == two.novelty
    assert weights_digest(one.centroids.tensors()) == weights_digest(two.centroids.tensors())


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations(range(12)),
    company=st.integers(0, 20),
    loudness=st.sampled_from([0.0, 1.0, 30.0]),
    size=st.integers(1, 40),
    missing=st.sampled_from([0, 7]),
)
def test_an_answer_does_not_depend_on_the_other_cells_of_a_query(
    judge, order, company, loudness, size, missing
):
    query = make_expression(12, seed=5)
    judge = judge.without(judge.genes[:missing])
    alone = judge.predict(query)
    others = make_expression(company, seed=6) * np.float32(loudness)
    together = judge.predict(np.concatenate([others, query[list(order)]]), batch_size=size)
    np.testing.assert_allclose(together.novelty[company:], alone.novelty[list(order)], atol=1e-5)
    near = np.abs(alone.novelty - judge.novelty.threshold) < 1e-5
    same = together.is_novel[company:] == alone.is_novel[list(order)]
    assert (same | near[list(order)]).all()


def test_a_cell_far_from_every_type_is_novel_though_the_head_is_sure(judge):
    answer = judge.predict(validation().expression)
    sure = answer.logits[:1] + np.array([[9.0, 0.0, 0.0]])
    usual, far = (
        judge.novelty.score(sure, CentroidDistances(torch.tensor([distance]), torch.tensor([0.0])))
        for distance in (0.0, 1e4)
    )
    assert not judge.novelty.is_novel(usual)[0]
    assert judge.novelty.is_novel(far)[0]


def test_cells_that_lack_genes_are_not_novel_for_that(annotator):
    def expressed(cells):  # half of the genes always, so that zeros are strange
        cells.expression[:, :10] += 5
        return cells

    judge = rule_from(annotator, expressed(validation()), expressed(trained()), SETTINGS, seed=0)
    query = expressed(validation(seed=4)).expression
    query[:, :10] = 0
    counted, left_out = (one.predict(query) for one in (judge, judge.without(judge.genes[:10])))
    assert left_out.labels == counted.labels
    assert counted.is_novel.mean() > 0.9
    assert left_out.is_novel.mean() < 0.2


def test_without_distances_missing_genes_change_nothing(annotator):
    assert annotator.without(annotator.genes[:10]) is annotator


def test_a_rule_and_its_distances_come_back_from_a_file(judge, tmp_path):
    judge.save(tmp_path / "model")
    loaded = Annotator.load(tmp_path / "model")
    query = make_expression(20, seed=8)
    np.testing.assert_array_equal(loaded.predict(query).novelty, judge.predict(query).novelty)


def test_without_validation_cells_there_is_no_rule(annotator):
    with pytest.raises(TrainingError, match="not trained on"):
        rule_from(annotator, LabelledCells.empty(20), trained(), SETTINGS, seed=0)


def test_a_single_type_still_gives_a_rule(annotator):
    cells = validation().take(range(1))
    judge = rule_from(annotator, cells, cells, SETTINGS, seed=0)
    assert judge.novelty.energy_high > judge.novelty.energy_low
    assert not judge.predict(cells.expression).is_novel[0]


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
