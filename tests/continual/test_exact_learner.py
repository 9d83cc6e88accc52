import numpy as np
import pytest

from canal.config.sections import Memory, Novelty
from canal.continual.cells import LabelledCells
from canal.continual.exact_learner import (
    CHOICES,
    ExactLearner,
    LabelledLevels,
    can_be_held_out,
    rule_of,
    uncalibrated,
)
from canal.memory.prediction import FLOORS, PARTS, Calibration, fit_calibration, fit_temperature
from tests.support.learning import make_cells as labelled
from tests.support.sums import STAGES, make_cells, make_sums

MEMORY, NOVELTY = Memory(), Novelty(false_unassigned=0.05)
MISSING = {"second": ("GENE001", "GENE004", "GENE005")}
SUMS = make_sums(missing=MISSING)
LEARNER = ExactLearner(SUMS, MEMORY, NOVELTY)
LABELS = ("B", "NK", "T", "Mono")
GENES = SUMS.basis.genes


def validation_levels(n=12, stages=STAGES, sums=SUMS):
    """Return cells that the sums have not seen, of the types of their stages."""
    parts = []
    for stage, types in stages.items():
        expression, names = make_cells(types, n, stage=stage, seed=3)
        parts.append(labelled(names, stage, expression * sums.basis.present(sums.missing.get(stage, ()))))
    return LabelledLevels.of_cells(LabelledCells.concatenate([LabelledCells.empty(20), *parts]), sums)


def test_cells_are_predicted_without_the_genes_that_their_file_lacks():
    validation, bare = validation_levels(), uncalibrated(SUMS, LABELS, GENES, MEMORY)
    first = [stage == "first" for stage in validation.stages]
    np.testing.assert_array_equal(validation.logits(bare)[first], bare.logits_of(validation.levels[first]))
    others = ~np.array(first)
    lacking = bare.without(MISSING["second"])
    np.testing.assert_array_equal(
        validation.logits(bare)[others], lacking.logits_of(validation.levels[others])
    )
    for name, values in lacking.novelty_parts(validation.levels[others]).items():
        np.testing.assert_array_equal(validation.novelty_parts(bare)[name][others], values)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_the_rule_calls_no_more_validation_cells_unassigned_than_promised(share):
    validation, bare = validation_levels(), uncalibrated(SUMS, LABELS, GENES, MEMORY)
    for parts in CHOICES:
        rule = rule_of(bare, validation, parts, Novelty(false_unassigned=share))
        assert tuple(rule.parts) == parts
        novel = rule.is_novel(rule.score(validation.novelty_parts(bare))).mean()
        assert share - 2 / len(validation.levels) <= novel <= share


def test_the_same_cells_and_sums_make_the_same_annotator():
    one, other = (LEARNER.annotator(LABELS, GENES, validation_levels()) for _ in range(2))
    assert one.digest() == other.digest()
    assert one.novelty is not None


def test_without_validation_cells_there_is_no_rule_and_no_temperature():
    made = LEARNER.annotator(LABELS, GENES, validation_levels(stages={}))
    assert (made.novelty, made.calibration, dict(made.strays)) == (None, Calibration(), {})


def test_one_validation_cell_is_enough_not_to_break():
    made = LEARNER.annotator(LABELS, GENES, validation_levels(1, {"first": ("B",)}))
    assert made.novelty is not None
    assert all(spread == 1.0 for _, spread in made.novelty.parts.values())
    assert np.isfinite(made.predict(make_cells(("B", "T"), 3)[0]).novelty).all()


def test_validation_cells_of_types_without_sums_have_no_say():
    """Sums may begin at a later stage: then the probe holds types that they lack."""
    labels = (*LABELS, "DC")
    without, rest = (
        LEARNER.annotator(labels, GENES, validation_levels(stages=stages))
        for stages in (STAGES, {**STAGES, "third": ("DC",)})
    )
    assert rest.calibration == without.calibration
    assert rest.novelty == without.novelty


def test_a_type_that_is_left_out_leaves_no_trace():
    validation = validation_levels()
    made = LEARNER.without_type("Mono", LABELS, validation, PARTS)
    types = {stage: [one for one in own if one != "Mono"] for stage, own in STAGES.items()}
    assert made.labels == ("B", "NK", "T")
    assert made.classifier.labels == ("B", "NK", "T")
    never = validation.of_types({name for own in types.values() for name in own})
    again = ExactLearner(SUMS.without_types(["Mono"]), MEMORY, NOVELTY).annotator(made.labels, GENES, never)
    assert again.classifier.digest() == made.classifier.digest()
    assert again.calibration == made.calibration


def test_a_type_that_was_never_learned_is_detected():
    validation = validation_levels()
    made = LEARNER.without_type("Mono", LABELS, validation, PARTS)
    cells, _ = make_cells(("Mono",), 30, stage="second", seed=5)
    assert made.predict(cells).is_novel.mean() > 0.7


@pytest.mark.parametrize(
    ("labels", "validation", "can"),
    [
        (("B", "T", "NK"), ["B"] * 5 + ["T"] * 5, True),
        (("B", "T", "NK"), ["B"] * 4 + ["T"] * 5, False),
        (("B", "T", "NK"), ["B"] * 5 + ["T"] * 4, False),
        (("B", "T", "NK"), ["B"] * 5 + ["DC"] * 9, False),  # cells of a type that the sums lack
        (("B", "T"), ["B"] * 9 + ["T"] * 9, False),  # one type is no classifier
        (("B", "T", "NK"), [], False),
    ],
)
def test_when_a_type_can_be_held_out(labels, validation, can):
    assert can_be_held_out("B", labels, validation) is can


def test_parts_are_chosen_by_types_left_out_and_all_are_taken_where_none_can_be():
    validation = validation_levels()
    assert LEARNER.chosen_parts(SUMS.types, validation) in CHOICES
    assert LEARNER.chosen_parts(SUMS.types, validation_levels(1)) == PARTS


def test_each_study_is_left_out_to_tell_what_a_new_one_has_to_expect():
    validation = validation_levels()
    found = LEARNER.strays_by_study(validation, PARTS)
    assert set(found) == {"first", "second"}
    assert all(0 <= share <= 1 for share in found.values())
    one = make_sums({"first": ("B", "NK", "T")})
    assert ExactLearner(one, MEMORY, NOVELTY).strays_by_study(validation_levels(sums=one), PARTS) == {}
    lone = make_sums({"first": ("B",), "second": ("B", "T")})
    asked = ExactLearner(lone, MEMORY, NOVELTY).strays_by_study(validation_levels(sums=lone), PARTS)
    assert set(asked) == {"first"}  # without the second, one type is left


# Calibration


@pytest.mark.parametrize("n", [30, 300, 3000])
def test_where_no_cell_is_wrong_none_is_certain(n):
    """An error among as many cells again must not cost more than it would by Laplace's rule."""
    targets = np.arange(n) % 4
    logits = 200.0 * np.eye(4)[targets]
    found = fit_calibration(logits, targets)
    assert 0.3 / n < found.floor < 3 / n or found.floor == FLOORS[-1]
    wrong = found.log_probabilities(200.0 * np.eye(4)[[1]])[0, 0]
    assert wrong > np.log(0.3 / n / 4)


def test_a_few_that_are_surely_wrong_get_a_floor_and_leave_the_temperature():
    random = np.random.default_rng(0)
    targets = random.integers(4, size=2000)
    logits = random.normal(0, 1, (2000, 4))
    logits[np.arange(2000), targets] += 4
    plain_fit = fit_calibration(logits, targets)
    wrong = logits.copy()
    wrong[:30] = np.eye(4)[(targets[:30] + 1) % 4] * 60
    found = fit_calibration(wrong, targets)
    assert plain_fit.floor == 0.0005  # 1/2000: no error was seen among so many cells
    assert found.floor > 0
    assert abs(found.temperature - plain_fit.temperature) < 0.3
    assert fit_temperature(wrong, targets) > 2 * found.temperature
    assert found.floor in FLOORS


def test_without_cells_nothing_is_calibrated():
    assert fit_calibration(np.zeros((0, 3)), np.zeros(0, dtype=int)) == Calibration()


def test_a_type_that_cannot_be_answered_is_no_end():
    """Its cells are wrong whatever the temperature is: that of the others is found all the same."""
    random = np.random.default_rng(1)
    targets = random.integers(3, size=400)
    logits = random.normal(0, 1, (400, 3))
    logits[np.arange(400), targets] += 2
    more = np.vstack([np.c_[logits, np.full(400, -np.inf)], np.r_[1.0, 0.0, 0.0, -np.inf]])
    found, alone = fit_calibration(more, np.r_[targets, 3]), fit_calibration(logits, targets)
    assert found.temperature == pytest.approx(alone.temperature, abs=0.02)
