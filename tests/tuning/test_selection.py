"""Which trials nothing beats, and which one is taken."""

from hypothesis import given
from hypothesis import strategies as st

from canal.tuning.objective import Score
from canal.tuning.selection import Candidate, choose, front
from tests.tuning.make import make_tuning


def candidate(number, accuracy, retention, bank_size=100):
    score = Score(accuracy, retention)
    return Candidate(number, score, score.value(0.01 * bank_size / 200), bank_size)


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
