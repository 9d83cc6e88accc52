"""The profile of the engine accounts for all of the time."""

import pytest
from bounds import KINDS, OUTSIDE, REST, annotation, epoch, kind_of


@pytest.mark.parametrize("measure", [annotation, epoch])
def test_the_shares_are_of_the_whole_time(measure):
    found = measure("tiny", 40, 6)
    assert set(found.shares) == {*KINDS, REST, OUTSIDE}
    assert sum(found.shares.values()) == pytest.approx(1, abs=0.05)
    assert found.shares["matrix products"] > 0
    assert found.shares["exp, GELU"] > 0
    assert found.products > 0
    assert found.milliseconds > 0


def test_an_operation_belongs_to_one_kind():
    assert kind_of("addmm") == "matrix products"
    assert kind_of("copy_") == REST
    names = [name for kind in KINDS.values() for name in kind]
    assert len(names) == len(set(names))
