import numpy as np
import pytest

from canal.config.sections import Novelty
from canal.continual.combining import (
    FAST_SHARE,
    WEIGHTS,
    NetworkOutputs,
    chosen_weight,
    combine,
    fast_margin,
    rule_of,
)
from canal.continual.exact_learner import LabelledLevels
from canal.memory.prediction import Calibration
from canal.model.combined import NETWORK_PART, Combination, FastAnnotator, network_parts
from tests.support.learning import make_cells as labelled
from tests.support.models import make_combined
from tests.support.sums import make_cells, make_sums

PLAIN = Combination(0.0, 1.0)


def said(n, right, sure=3.0, seed=0):
    """Return targets and log probabilities of two sides, each right about a share of cells of its own."""
    random = np.random.default_rng(seed)
    targets = random.integers(3, size=n)
    sides = []
    for share in right:
        said = np.where(random.random(n) < share, targets, (targets + 1) % 3)
        sides.append(Calibration().log_probabilities(sure * np.eye(3)[said] + random.normal(0, 0.1, (n, 3))))
    return targets, *sides


def test_sums_that_know_all_answer_alone():
    targets, network, exact = said(300, (0.5, 1.0))
    assert chosen_weight(PLAIN, network, exact, targets) == 0.0


def test_a_better_network_gets_the_largest_weight():
    targets, network, exact = said(300, (0.95, 0.6))
    assert chosen_weight(PLAIN, network, exact, targets) == WEIGHTS[-1]


def test_two_that_err_on_other_cells_get_equal_weights():
    targets, network, exact = said(2000, (0.85, 0.85))
    assert chosen_weight(PLAIN, network, exact, targets) == 0.5


def cost(weight, network, exact, targets):
    return -Combination(weight, 1.0).of(network, exact)[np.arange(len(targets)), targets]


@pytest.mark.parametrize(("n", "used"), [(8, False), (6000, True)])
def test_within_one_standard_error_the_sums_answer_alone(n, used):
    """What a network gains that is right a little more often than chance: of few cells, no more than luck."""
    random = np.random.default_rng(0)
    targets, exact = np.zeros(n, dtype=int), np.tile(np.log([0.6, 0.4]), (n, 1))
    shares = np.where(random.random(n) < 0.68, 0.8, 0.4)
    network = np.log(np.c_[shares, 1 - shares])
    costs = {weight: cost(weight, network, exact, targets) for weight in WEIGHTS}
    best = min(WEIGHTS, key=lambda weight: costs[weight].mean())
    gain = costs[0.0] - costs[best]
    by_hand = best if gain.mean() > gain.std(ddof=1) / np.sqrt(n) else 0.0
    assert chosen_weight(PLAIN, network, exact, targets) == by_hand
    assert (by_hand > 0) is used


@pytest.mark.parametrize("n", [0, 1])
def test_without_cells_weights_are_equal_and_with_one_cell_the_sums_answer(n):
    targets, network, exact = said(n, (1.0, 0.0))
    assert chosen_weight(PLAIN, network, exact, targets) == (0.0 if n else 0.5)


def test_two_cells_in_a_hundred_are_predicted_by_the_network():
    _, exact, _ = said(5000, (0.9, 0.9), sure=4)
    top = np.sort(np.exp(exact), axis=1)
    unsure = (top[:, -1] - top[:, -2] < fast_margin(np.exp(exact))).mean()
    assert 0.5 * FAST_SHARE < unsure <= FAST_SHARE == 0.02


@pytest.mark.parametrize("shape", [(0, 3), (5, 1)])
def test_without_cells_or_with_one_type_the_margin_is_zero(shape):
    assert fast_margin(np.ones(shape)) == 0.0


def validation(n):
    expression, types = make_cells(("B", "NK", "T", "Mono"), 60, stage="first", seed=4)
    expression, types = expression[:n], types[:n]
    return LabelledLevels.of_cells(labelled(types, "first", expression), make_sums()), expression


@pytest.mark.parametrize("n", [0, 1, 60])
def test_network_and_sums_are_put_together_on_any_number_of_cells(n):
    given, (cells, expression) = make_combined(), validation(n)
    predicted = given.network.predict(expression.reshape(-1, 20)) if n else None
    logits = predicted.logits if predicted else np.zeros((0, 4), dtype=np.float32)
    novelty = predicted.novelty if predicted else np.zeros(0)
    outputs = NetworkOutputs(logits, network_parts(given.network, logits, novelty))
    made = combine(given.network, given.exact, cells, outputs, Novelty(), (NETWORK_PART, "angle"))
    assert (made.novelty is None) == (n == 0)
    assert made.combination.weight in WEIGHTS
    assert made.combination.weight == (0.5 if n == 0 else 0.0)  # this network has learned nothing
    fresh, _ = make_cells(("B", "NK", "T", "Mono"), 100, stage="first", seed=9)
    found = FastAnnotator(made).predict(fresh)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0)
    if n == 60:
        assert found.by_network.mean() <= 3 * FAST_SHARE


def test_the_rule_of_both_keeps_its_promise():
    random = np.random.default_rng(0)
    found = {NETWORK_PART: random.normal(3, 2, 1000), "angle": random.gamma(2, 1, 1000)}
    rule = rule_of(found, (NETWORK_PART, "angle"), Novelty(false_unassigned=0.1))
    assert rule.is_novel(rule.score(found)).mean() == pytest.approx(0.1, abs=0.002)
    assert rule_of({"angle": np.zeros(0)}, ("angle",), Novelty()) is None
    still = rule_of({"angle": np.ones(9)}, ("angle",), Novelty())
    assert still.parts["angle"] == (1.0, 1.0)
