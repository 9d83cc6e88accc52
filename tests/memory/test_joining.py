"""Sums of two lineages put together, and names that mean other cells in one of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.core.errors import SumsError
from canal.memory.joining import all_sums, joined, meanings, with_names
from canal.memory.levels import HIGHEST, Basis
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Sums, add_up
from tests.support.sums import make_basis, make_cells, make_sums

TYPES = ("B", "NK", "T", "β")


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_both_ways_and_in_any_order_they_are_the_sums_of_one_lineage_that_learned_both(data):
    size = data.draw(st.integers(1, 6))
    basis = make_basis(size)
    cells = data.draw(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 4 * HIGHEST // 16), min_size=size, max_size=size),
                st.sampled_from(TYPES),
                st.sampled_from(("a", "b", "c", "d")),
            ),
            min_size=2,
            max_size=30,
        )
    )

    def lineage(stages):
        sums = StageSums(basis)
        for stage in stages:
            own = [(np.array(levels, dtype=np.float32), name) for levels, name, at in cells if at == stage]
            chunks = [(np.stack([one for one, _ in own]), [name for _, name in own])] if own else []
            sums = sums.plus(stage, add_up(basis, chunks))
        return sums

    first, second = lineage(("a", "b")), lineage(("c", "d"))
    names = {stage: stage for stage in second.stages}
    there = joined(first, second, names)
    back = joined(second, first, {stage: f"their-{stage}" for stage in first.stages})
    whole = lineage(data.draw(st.permutations(("a", "b", "c", "d"))))
    assert all_sums(there).digest == all_sums(back).digest == all_sums(whole).digest
    assert all(there.stages[name].digest == whole.stages[name].digest for name in whole.stages)
    assert list(there.stages)[-1] == "b"
    renamed = with_names(there, {"T": "NK"})
    assert all_sums(renamed).n_cells == len(cells)
    assert "T" not in renamed.types


def test_another_basis_and_more_cells_than_64_bits_hold_are_refused():
    sums = make_sums()
    other = StageSums(Basis(sums.basis.genes[::-1], {}), sums.stages)
    with pytest.raises(SumsError, match="of two bases, .*canal basis adopt"):
        joined(sums, other, {"first": "x"})
    n = (2**63 - 1) // HIGHEST**2
    size = sums.basis.size
    zeros = (np.zeros((1, size), dtype=np.int64), np.zeros((1, size * (size + 1) // 2), dtype=np.int64))
    huge = StageSums(sums.basis, {"huge": Sums(sums.basis.digest, ("B",), np.array([n]), *zeros)})
    with pytest.raises(SumsError, match="may not fit in 64 bits"):
        joined(sums, huge, {"huge": "huge"})


def of_stages(seeds, rename=None, types=TYPES[:3], n=40):
    """Sums of stages of the same types, whose studies are apart."""
    basis = make_basis()
    sums = StageSums(basis)
    for seed in seeds:
        expression, labels = make_cells(types, n, stage=f"stage{seed}", seed=seed)
        sums = sums.plus(f"stage{seed}", add_up(basis, [(expression, labels)]))
    return with_names(sums, rename or {})


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_same_types_of_two_studies_pass_and_exchanged_names_do_not(seed):
    own, other = of_stages([0]), of_stages([seed, seed + 10])
    assert not any(one.differs for one in meanings(own, other).values())
    found = meanings(own, with_names(other, {"B": "T", "T": "B"}))
    assert found["B"].exchanged == "T"
    assert found["T"].exchanged == "B"
    assert all(found[name].differs for name in ("B", "T"))


def test_a_name_that_is_given_to_another_type_of_the_own_lineage_does_not_pass():
    own, other = of_stages([0]), of_stages([1], types=("B", "T"))
    found = meanings(own, with_names(other, {"T": "NK"}))
    assert found["NK"].differs
    assert found["NK"].nearest == "T"


def test_without_another_type_nothing_can_be_said():
    one = of_stages([0], types=("B",))
    assert meanings(one, of_stages([1], types=("B",))) == {}
    gone = StageSums(one.basis, one.stages, {"stage0": one.basis.genes})
    assert meanings(gone, of_stages([1])) == {}


def test_genes_that_a_file_lacks_are_left_out():
    own = make_sums({"first": TYPES[:3]}, n=40)
    lacking = make_sums({"second": TYPES[:3]}, n=40, missing={"second": own.basis.genes[:8]})
    assert not any(one.differs for one in meanings(own, lacking).values())
