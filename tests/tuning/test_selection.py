"""Which trials nothing beats, and which one is taken."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from canal.tuning import document
from canal.tuning.attempts import Score
from canal.tuning.document import Candidate, Choice, front
from tests.support.studies import make_tuning


def candidate(number, accuracy, retention, bank_size=100):
    score = Score(accuracy, retention)
    return Candidate(number, score, score.value(0.01 * bank_size / 200), bank_size)


def choose(candidates, tuning, n_effective=100):
    return document.choose(candidates, tuning, n_effective)


grid = st.integers(0, 10).map(lambda n: n / 10)
candidates = st.lists(st.tuples(grid, grid, st.sampled_from([25, 50])), min_size=1, max_size=12).map(
    lambda rows: [candidate(number, *row) for number, row in enumerate(rows)]
)


def test_the_highest_value_is_taken_among_those_that_keep_enough():
    best_but_forgets, good, faithful = (
        candidate(0, 0.95, 0.85),
        candidate(1, 0.8, 0.92),
        candidate(2, 0.5, 1.0),
    )
    found = choose([best_but_forgets, good, faithful], make_tuning(min_retention=0.9))
    assert (found.number, found.below) == (1, False)
    assert choose([best_but_forgets, good], make_tuning(min_retention=0.8)).number == 0


def test_where_none_keeps_enough_the_one_that_keeps_most_is_taken_and_it_is_said():
    found = choose([candidate(0, 0.9, 0.5), candidate(1, 0.2, 0.7)], make_tuning(min_retention=0.9))
    assert (found.number, found.below) == (1, True)


def test_the_rule_says_what_is_looked_for():
    two = [candidate(0, 0.9, 0.91), candidate(1, 0.6, 1.0)]
    assert choose(two, make_tuning(rule="accuracy")).number == 0
    assert choose(two, make_tuning(rule="retention")).number == 1


def test_ties_go_to_the_smaller_bank_then_to_the_earlier_trial():
    large, small, again = (
        candidate(0, 0.8, 0.95, 100),
        candidate(1, 0.8, 0.95, 25),
        candidate(2, 0.8, 0.95, 25),
    )
    assert choose([large, small, again], make_tuning(rule="accuracy")).number == 1


def test_the_published_point_is_kept_unless_another_is_clearly_better():
    usual = replace(candidate(0, 0.5, 1.0), published=True)
    better = candidate(1, 0.58, 1.0)
    # Of 100 cells the error of 0.5 is 0.05, of the harmonic mean 8 / 9 of that; they lie 0.068 apart.
    for errors, number, passed_over in ((0.0, 1, None), (1.5, 1, None), (1.6, 0, 1)):
        found = choose([usual, better], make_tuning(least_gain=errors))
        assert found == Choice(number, below=False, passed_over=passed_over)
    assert choose([usual, better], make_tuning(least_gain=1.6), n_effective=1000).number == 1
    assert choose([usual, better], make_tuning(least_gain=1.5, rule="accuracy")).number == 1
    assert choose([usual, better], make_tuning(least_gain=1.7, rule="accuracy")).number == 0
    assert choose([usual, candidate(1, 0.4, 1.0)], make_tuning(least_gain=1.0)) == Choice(0, below=False)


def test_the_published_point_is_not_kept_where_it_forgets_too_much():
    usual = replace(candidate(0, 0.5, 0.7), published=True)
    assert choose([usual, candidate(1, 0.51, 0.95)], make_tuning(least_gain=9.0)) == Choice(1, below=False)
    assert choose([usual, candidate(1, 0.5, 0.8)], make_tuning(least_gain=9.0)) == Choice(1, below=True)


@given(candidates)
def test_the_front_is_what_no_other_trial_beats(trials):
    kept = front(trials)
    by_number = {one.number: one.score for one in trials}

    def beats(one, other):
        at_least = one.accuracy >= other.accuracy and one.retention >= other.retention
        return at_least and one != other

    assert kept
    for number in kept:
        assert not any(beats(other, by_number[number]) for other in by_number.values())
    for score in by_number.values():
        assert any(by_number[number] == score or beats(by_number[number], score) for number in kept)
    accuracies = [by_number[number].accuracy for number in kept]
    assert accuracies == sorted(accuracies, reverse=True)
    assert len({(by_number[n].accuracy, by_number[n].retention) for n in kept}) == len(kept)
