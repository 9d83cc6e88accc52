import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.core.errors import SumsError
from canal.memory.levels import HIGHEST, Linear, Whole, linear_scores
from canal.memory.stage_sums import SolveSettings, StageSums, solve
from canal.memory.sums import Sums, add_up
from tests.support.sums import STAGES, make_basis, make_cells, make_exact, make_sums, same
from tests.support.warm import REPOSITORY

CELLS, _ = make_cells(("B", "NK", "T", "Mono"), 40, stage="third")
GONE = {
    "none": (),
    "few": ("GENE003",),
    "pattern": ("GENE001", "GENE004", "GENE005", "GENE006"),
    "many": tuple(f"GENE{i:03d}" for i in range(9)),
    "all but two": tuple(f"GENE{i:03d}" for i in range(18)),
    "all but one": tuple(f"GENE{i:03d}" for i in range(19)),
    "all": tuple(f"GENE{i:03d}" for i in range(20)),
}


def patterned():
    """A memory one of whose stages lacks genes."""
    return make_exact(make_sums(missing={"second": GONE["pattern"]}))


def accuracy(annotator, stage="first", types=("B", "NK", "T")):
    cells, labels = make_cells(types, 50, stage=stage, seed=7)
    return np.mean(np.array(annotator.predict(cells).labels) == np.array(labels))


def test_types_that_were_added_are_predicted():
    assert accuracy(make_exact()) > 0.9
    assert accuracy(make_exact(), "second", ("B", "Mono", "T")) > 0.9


# The same answer


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_an_answer_does_not_depend_on_neighbours(gone, size):
    """To the last bit: types, confidence, probabilities, logits, novelty and its parts."""
    annotator = patterned().without(GONE[gone])
    whole, levels = annotator.predict(CELLS), annotator.levels(CELLS)
    for start in range(0, len(CELLS), size):
        part, rows = annotator.predict(CELLS[start : start + size]), slice(start, start + size)
        assert part.labels == whole.labels[rows]
        for name in ("confidence", "novelty", "probabilities", "logits"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows])
        for name, values in annotator.novelty_parts(levels[rows]).items():
            np.testing.assert_array_equal(values, annotator.novelty_parts(levels)[name][rows])


def test_many_types_are_added_up_alike_for_one_cell_and_for_many():
    """Sums over rows of more than eight numbers are not in order: they must be in one order for all."""
    names = [f"type {i:02d}" for i in range(40)]
    annotator = make_exact(make_sums({"first": names, "second": names}, n=4))
    whole = annotator.predict(CELLS).logits
    for row in range(30):
        np.testing.assert_array_equal(annotator.predict(CELLS[[row]]).logits[0], whole[row])


@pytest.mark.parametrize("gone", GONE)
def test_the_order_of_cells_changes_no_answer(gone):
    annotator, order = patterned().without(GONE[gone]), np.random.default_rng(0).permutation(len(CELLS))
    np.testing.assert_array_equal(
        annotator.predict(CELLS[order]).logits, annotator.predict(CELLS).logits[order]
    )


def test_the_order_of_stages_and_of_cells_changes_nothing():
    sums = make_sums(missing={"second": GONE["pattern"]})
    other = StageSums(sums.basis)
    for stage in reversed(STAGES):
        expression, labels = make_cells(STAGES[stage], 30, stage=stage)
        expression = expression * sums.basis.present(sums.missing[stage])
        chunks = [(expression[i : i + 11], labels[i : i + 11]) for i in range(0, len(labels), 11)]
        other = other.plus(stage, add_up(sums.basis, chunks[::-1]), sums.missing[stage])
    assert solve(other, SolveSettings()).digest() == solve(sums, SolveSettings()).digest()
    assert same(make_exact(other, sums.types), make_exact(sums, sums.types), CELLS)


PROGRAM = """
import hashlib
from tests.support.sums import make_cells, make_exact, make_sums
names = [f"type {i}" for i in range(12)]
made = make_exact(make_sums({"first": names, "second": names[3:]}, 20, 120))
cells, _ = make_cells(names, 300, 120, "third")
print(made.digest())
for gone in ((), made.genes[:40]):
    said = made.without(gone).predict(cells)
    print(hashlib.sha256(said.logits.tobytes() + said.novelty.tobytes()).hexdigest())
"""


def test_one_thread_and_two_give_the_same_bits():
    found = set()
    for threads in ("1", "2"):
        env = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "OPENBLAS_NUM_THREADS": threads,
            "OMP_NUM_THREADS": threads,
        }
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


def test_whole_weights_are_the_solved_ones_within_half_a_unit():
    made = solve(make_sums(), SolveSettings())
    exact = linear_scores(made.centroids, made.covariance)
    unit = 2.0**-made.own.places
    assert np.abs(made.own.linear.weights - exact.weights).max() <= unit / 2
    assert np.abs(made.own.linear.bias - exact.bias).max() <= unit / 2
    assert unit < 1e-7


def test_scores_are_those_of_whole_numbers_of_any_size():
    made, levels = make_exact().classifier, make_basis().levels(CELLS)
    centred = made.centred(levels)
    assert (centred == np.rint(centred)).all()
    weights, bias = made.own.weights.astype(object), made.own.bias.astype(object)
    expected = centred.astype(np.int64).astype(object) @ weights.T + 20 * bias
    found = made.own.scores(centred, 20)
    np.testing.assert_array_equal(found, np.ldexp(expected.astype(np.float64) / 20, -made.own.places))


@settings(max_examples=30)
@given(st.integers(1, 40), st.floats(1e-6, 1e12), st.integers(0, 999))
def test_weights_of_any_size_become_whole_numbers_whose_products_are_exact(n_genes, size, seed):
    random = np.random.default_rng(seed)
    made = Whole.of(Linear(random.normal(0, size, (3, n_genes)), random.normal(0, size, 3)))
    assert made.fits(3, n_genes)
    reach = np.abs(made.weights.astype(object)).sum(axis=1) * HIGHEST + np.abs(made.bias.astype(object))
    assert max(reach) * n_genes < 2**53


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(SumsError, match=r"raise memory\.shrinkage"):
        Whole.of(Linear(np.array([[np.inf, 1.0]]), np.zeros(1)))


# What is left out


def test_without_a_type_is_never_having_had_it():
    sums = make_sums()
    never = make_sums({stage: [one for one in types if one != "T"] for stage, types in STAGES.items()})
    left = StageSums(
        sums.basis, {name: one.without(["T"]) for name, one in sums.stages.items()}, sums.missing
    )
    assert left.types == sums.without_types(["T"]).types == ("B", "Mono", "NK")
    assert sums.without_types(["T"]).stages["first"].counts.tolist() == never.stages["first"].counts.tolist()
    one, other = (solve(made, SolveSettings()) for made in (left, sums.without_types(["T"])))
    assert one.digest() == other.digest()


def test_a_stage_whose_types_are_all_left_out_was_never_there():
    sums = make_sums({**STAGES, "third": ("DC",)})
    made = solve(sums.without_types(["DC"]), SolveSettings())
    assert made.stages == ("first", "second")
    assert made.digest() == solve(make_sums(), SolveSettings()).digest()


def test_a_stage_that_is_left_out_was_never_there():
    made = solve(make_sums({**STAGES, "third": ("DC", "B")}).without_stage("third"), SolveSettings())
    assert made.digest() == solve(make_sums(), SolveSettings()).digest()


def test_a_learned_pattern_of_genes_is_no_new_study_and_another_is():
    made = patterned().classifier
    assert made.without(GONE["none"]) is made
    assert not made.without(GONE["few"]).strange
    assert not made.without(GONE["pattern"]).strange
    assert made.without(GONE["many"]).strange
    assert made.without(["no gene of the panel"]) is made
    assert made.without(GONE["all"]) is made


@pytest.mark.parametrize("second", GONE)
@pytest.mark.parametrize("first", GONE)
def test_genes_may_go_missing_one_after_another(first, second):
    """As if all had been missing at once; with all missing, they count as not expressed."""
    both = {*GONE[first], *GONE[second]}
    if len(GONE[first]) == 20 or len(both) == 20:
        return
    assert same(patterned().without(GONE[first]).without(GONE[second]), patterned().without(both), CELLS)


@pytest.mark.parametrize("gone", ["few", "pattern", "many", "all but two", "all but one"])
def test_genes_that_are_missing_have_no_part_in_an_answer(gone):
    annotator, other = patterned().without(GONE[gone]), CELLS.copy()
    other[:, ~annotator.classifier.basis.present(GONE[gone])] = 9.0
    np.testing.assert_array_equal(annotator.predict(CELLS).logits, annotator.predict(other).logits)
    np.testing.assert_array_equal(annotator.predict(CELLS).novelty, annotator.predict(other).novelty)


def test_a_single_gene_tells_no_type_from_another():
    said = patterned().without(GONE["all but one"]).predict(CELLS)
    assert len(np.unique(said.probabilities, axis=0)) == 1


def test_half_of_the_genes_still_tell_types_apart():
    assert accuracy(patterned().without(GONE["many"])) > 0.7


# Few cells, few types


def test_one_stage_has_one_answer():
    annotator = make_exact(make_sums({"first": ("B", "NK", "T")}))
    assert annotator.classifier.new is None
    assert annotator.classifier.answered(annotator.levels(CELLS))[1].all()
    assert accuracy(annotator) > 0.9
    assert accuracy(annotator.without(GONE["many"])) > 0.7


def test_stages_that_share_no_type_have_one_answer():
    annotator = make_exact(make_sums({"first": ("B", "NK"), "second": ("T", "Mono")}))
    assert annotator.classifier.new is None
    assert accuracy(annotator, "first", ("B", "NK")) > 0.9


def test_a_stage_of_one_type_is_added_to_the_others():
    annotator = make_exact(make_sums({**STAGES, "third": ("DC",)}))
    assert accuracy(annotator, "third", ("DC",)) > 0.9
    assert accuracy(annotator) > 0.9


@pytest.mark.parametrize("stages", [{}, {"first": ("B",)}, {"first": ("B",), "second": ("B",)}])
def test_fewer_than_two_types_are_refused(stages):
    with pytest.raises(SumsError, match="at least two types, found [01]"):
        solve(make_sums(stages), SolveSettings())


def one_more(sums, stage, name, cells):
    return sums.plus(stage, sums.stages[stage].plus(add_up(sums.basis, [(cells, [name] * len(cells))])))


def test_a_type_of_one_cell_is_predicted():
    own, _ = make_cells(("DC",), 20)
    annotator = make_exact(one_more(make_sums(), "first", "DC", own[:1]))
    assert annotator.predict(own[:1]).labels == ["DC"]
    assert accuracy(annotator) > 0.9
    assert np.isfinite(annotator.predict(CELLS).logits).all()


def test_types_of_one_cell_each_tell_nothing_and_break_nothing():
    """There is no scatter to measure a distance by."""
    annotator = make_exact(make_sums(n=1))
    said = annotator.predict(CELLS)
    assert len(np.unique(said.probabilities, axis=0)) == 1
    assert np.isfinite(said.novelty).all()


def test_a_stage_of_single_cells_beside_another():
    cells, labels = make_cells(("B", "T", "DC"), 1, stage="third")
    sums = make_sums()
    annotator = make_exact(sums.plus("third", add_up(sums.basis, [(cells, labels)])))
    assert accuracy(annotator) > 0.9


def test_genes_that_never_vary_have_no_part_in_an_answer():
    basis, sums = make_basis(), None
    for stage, types in STAGES.items():
        cells, labels = make_cells(types, 30, stage=stage)
        cells[:, 5:8] = 0
        made = add_up(basis, [(cells, labels)])
        sums = (sums or StageSums(basis)).plus(stage, made, ("GENE005", "GENE006", "GENE007"))
    annotator = make_exact(sums)
    assert not annotator.classifier.centroids[:, 5:8].any()
    assert not annotator.classifier.own.weights[:, 5:8].any()
    assert accuracy(annotator.without(("GENE005", "GENE006", "GENE007"))) > 0.9


def test_a_covariance_without_inverse_is_refused():
    """Fewer cells than genes, and nothing that draws the covariance to its diagonal."""
    with pytest.raises(SumsError, match=r"no inverse .*raise memory\.shrinkage"):
        solve(make_sums(n=2), SolveSettings(shrinkage=0.0, stage_share=0.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"shrinkage": 1.0},
        {"between": 0.0},
        {"few": 0.0},
        {"type_power": 0.0},
        {"type_power": 1.0},
        {"stage_share": 1.0},
        {"own": -1e9},
        {"own": 1e9},
        {"soft": 1.0},
        {"between": 1e6, "few": 1e9, "reliable": 1e9},
    ],
    ids=str,
)
def test_settings_at_their_bounds_give_probabilities(changes):
    said = make_exact(**changes).predict(CELLS)
    np.testing.assert_allclose(said.probabilities.sum(axis=1), 1.0)
    assert np.isfinite(said.novelty).all()


def test_a_million_cells_of_a_type_do_not_overflow():
    """Their total times itself is beyond 64 bits."""
    sums, basis = make_sums(), make_basis()
    one = sums.stages["first"]
    n = 10**9
    many = Sums(one.basis, one.types, one.counts * n, one.totals * n, one.products * n)
    made = solve(replace(sums, stages={**sums.stages, "first": many}), SolveSettings())
    plain = solve(sums, SolveSettings())
    rows = made.origins == 0
    np.testing.assert_allclose(made.centroids[rows], plain.centroids[rows], atol=0.3)
    assert np.isfinite(made.scores(basis.levels(CELLS))).all()


# The annotator


def test_labels_without_sums_are_never_answered():
    annotator = make_exact(labels=("Z", "T", "NK", "Mono", "B"))
    said = annotator.predict(CELLS)
    assert (said.probabilities[:, 0] == 0).all()
    assert "Z" not in said.labels
    np.testing.assert_allclose(said.probabilities.sum(axis=1), 1.0)
    plain = make_exact().predict(CELLS)
    assert said.labels == plain.labels
    np.testing.assert_array_equal(said.probabilities[:, [4, 3, 2, 1]], plain.probabilities)


def test_no_cells_are_answered_with_no_rows():
    said = make_exact().predict(np.zeros((0, 20), dtype=np.float32))
    assert said.labels == []
    assert said.probabilities.shape == (0, 4)


def test_columns_must_be_the_panel():
    with pytest.raises(SumsError, match=r"one column for each of the 20 panel genes, found shape \(2, 19\)"):
        make_exact().predict(np.zeros((2, 19), dtype=np.float32))


def test_empty_cells_are_answered():
    said = make_exact().predict(np.zeros((3, 20), dtype=np.float32))
    assert np.isfinite(said.logits).all()
    assert np.isfinite(said.novelty).all()
