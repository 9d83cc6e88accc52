"""What is varied: lambda down to exactly 0, L up to what a version stores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.config.sections import Continual
from canal.tuning.attempts import Space
from tests.support.studies import make_tuning


def make_space(own=None, capacity=200, n_old_cells=1000, n_old_types=8, **changes):
    return Space.of(make_tuning(**changes), own or Continual(), capacity, n_old_cells, n_old_types)


def test_sizes_are_those_given_shares_of_all_old_training_cells_and_the_published_one():
    assert make_space(bank_sizes=(25, 50)).sizes == (25, 50, 200)
    assert make_space(bank_sizes=(), bank_shares=(0.05, 0.1, 0.9)).sizes == (50, 100, 200)
    assert make_space(bank_sizes=(25,), capacity=3000).sizes == (25, 1000)


def test_a_size_leaves_a_cell_for_each_type_or_there_is_no_replay():
    assert make_space(bank_sizes=(0, 3, 25)).sizes == (0, 8, 25, 200)


@given(st.floats(0, 1), st.sampled_from((10, 20, 40, 200)))
def test_lambda_is_exactly_zero_or_in_its_range(share, size):
    space = make_space()
    drawn = space.distributions()["distillation"]
    value = drawn.low * (drawn.high / drawn.low) ** share
    changes = space.changes({"distillation": value, "bank_size": size})
    assert changes["distillation"] == 0 or 0.01 <= changes["distillation"] <= 10
    assert (changes["distillation"] == 0) == (share < 0.0999) or abs(share - 0.1) < 0.001


def test_without_zero_every_lambda_is_in_its_range():
    space = make_space(distillation={"low": 0.05, "high": 2.0, "with_zero": False})
    drawn = space.distributions()["distillation"]
    assert (drawn.low, drawn.high) == (0.05, 2.0)
    assert space.changes({"distillation": 0.05, "bank_size": 10})["distillation"] == 0.05


def test_the_published_point_can_be_drawn_and_leaves_all_else_as_it_is():
    own = Continual(learning_rate=1e-3, label_smoothing=0.0)
    for dimensions in ((), ("learning_rate", "label_smoothing", "max_epochs")):
        space = make_space(own, dimensions=dimensions)
        point = space.published()
        drawn = space.distributions()
        assert point.keys() == drawn.keys()
        assert all(one._contains(one.to_internal_repr(point[name])) for name, one in drawn.items())
        changes = space.changes(point)
        assert (changes["distillation"], changes["bank_size"]) == (0.1, 200)
        same = {name: changes[name] for name in dimensions if name != "max_epochs"}
        assert same == {name: getattr(own, name) for name in same}


@pytest.mark.parametrize(
    ("strengths", "message"),
    [({"low": 0.2, "high": 1.0}, "0.1, the published"), ({"low": 0.01, "high": 0.05}, "0.1, the published")],
)
def test_a_range_without_the_published_lambda_is_refused(strengths, message):
    with pytest.raises(ValueError, match=message):
        make_space(distillation=strengths)
