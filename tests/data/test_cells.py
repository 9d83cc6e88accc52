from hypothesis import given
from hypothesis import strategies as st

from canal.data.prepare import unique_names


def test_repeated_names_get_a_number_that_is_free():
    unique, repeated = unique_names(["a", "a", "a-1", "b", "a"])
    assert unique == ["a", "a-2", "a-1", "b", "a-3"]
    assert repeated == ["a"]


@given(st.lists(st.sampled_from(["a", "a-1", "a-1-1", "b", "b-2"])))
def test_names_are_unique_and_the_first_of_each_keeps_its_own(names):
    unique, repeated = unique_names(names)
    assert len(set(unique)) == len(names)
    assert repeated == sorted(name for name in set(names) if names.count(name) > 1)
    assert all(unique[names.index(name)] == name for name in names)
