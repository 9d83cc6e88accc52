import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.core.errors import SumsError
from canal.memory import sums as sums_module
from canal.memory.levels import HIGHEST
from canal.memory.sums import Adder, Sums, add_up, exact_products, total
from tests.support.sums import make_basis, make_cells
from tests.support.warm import REPOSITORY

N_GENES = 6
BASIS = make_basis(N_GENES)
few = settings(max_examples=40)
NAMES = ("B", "NK", "T", "T é", "ß", "日本")

cell = st.tuples(st.sampled_from(NAMES), st.lists(st.integers(0, 56), min_size=N_GENES, max_size=N_GENES))
cells = st.lists(cell, max_size=30)
cut = st.lists(st.integers(0, 30), max_size=4)


def added(drawn, cuts=()):
    """Return the sums of drawn cells, in chunks that end at ``cuts``."""
    adder = Adder(BASIS)
    ends = sorted({min(cut, len(drawn)) for cut in cuts} | {0, len(drawn)})
    for start, stop in zip(ends, ends[1:], strict=False):
        part = drawn[start:stop]
        adder.add(np.array([values for _, values in part], dtype=np.float32) / 4, [name for name, _ in part])
    return adder.sums()


def by_hand(drawn):
    """Return n, s and G of each type in Python's own whole numbers."""
    found = {}
    for name, q in drawn:
        n, s, g = found.get(name, (0, [0] * N_GENES, [[0] * N_GENES for _ in range(N_GENES)]))
        s = [a + b for a, b in zip(s, q, strict=True)]
        g = [[g[i][j] + q[i] * q[j] for j in range(N_GENES)] for i in range(N_GENES)]
        found[name] = n + 1, s, g
    return found


@few
@given(cells)
def test_sums_are_those_of_whole_numbers_added_by_hand(drawn):
    found, expected = added(drawn), by_hand(drawn)
    assert set(found.types) == set(expected)
    assert list(found.types) == sorted(found.types, key=str.encode)
    for row, name in enumerate(found.types):
        n, s, g = expected[name]
        assert found.counts[row] == n
        assert found.totals[row].tolist() == s
        assert found.scatter(row).tolist() == g


@few
@given(
    cells, st.randoms(), st.lists(st.integers(0, 30), max_size=4), st.lists(st.integers(0, 30), max_size=4)
)
def test_the_digest_does_not_depend_on_order_and_chunks(drawn, random, cuts, others):
    shuffled = list(drawn)
    random.shuffle(shuffled)
    assert added(drawn, cuts).digest == added(shuffled, others).digest


@few
@given(st.lists(cells, min_size=1, max_size=4), st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_stages(stages, random):
    parts = [added(stage) for stage in stages]
    shuffled = random.sample(parts, len(parts))
    whole = added([one for stage in stages for one in stage])
    assert total(parts, BASIS).digest == total(shuffled, BASIS).digest == whole.digest


@few
@given(cells, cells)
def test_adding_and_leaving_out_is_never_having_added(first, second):
    assert added(first).plus(added(second)).minus(added(second)).digest == added(first).digest


@few
@given(cells, st.sets(st.sampled_from(NAMES)))
def test_without_types_is_never_having_seen_them(drawn, gone):
    rest = [one for one in drawn if one[0] not in gone]
    assert added(drawn).without(gone).digest == added(rest).digest


@few
@given(cells, st.dictionaries(st.sampled_from(NAMES), st.sampled_from(NAMES)))
def test_renaming_types_is_having_named_the_cells_so(drawn, names):
    renamed = [(names.get(name, name), values) for name, values in drawn]
    assert added(drawn).renamed(names).digest == added(renamed).digest


@few
@given(cells)
def test_one_other_level_is_another_digest(drawn):
    for place in range(min(len(drawn), 3)):
        name, values = drawn[place]
        other = [*drawn[:place], (name, [values[0] ^ 1, *values[1:]]), *drawn[place + 1 :]]
        assert added(other).digest != added(drawn).digest


@few
@given(cells.filter(bool))
def test_saved_sums_are_the_same_and_so_are_their_bytes(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("sums") / "first.safetensors"
    added(drawn).save(path)
    before = path.read_bytes()
    found = Sums.load(path)
    assert found.digest == added(drawn[::-1]).digest
    found.save(path)
    assert path.read_bytes() == before


PROGRAM = """
import numpy as np
from canal.memory.sums import add_up
from tests.support.sums import make_basis, make_cells
expression, types = make_cells(("B", "NK", "T"), 400, 60)
print(add_up(make_basis(60), [(expression[:500], types[:500]), (expression[500:], types[500:])]).digest)
"""


@pytest.mark.parametrize(
    "settings",
    [
        {"OPENBLAS_NUM_THREADS": "1"},
        {"OPENBLAS_NUM_THREADS": "2"},
        {"OPENBLAS_CORETYPE": "Haswell"},
        {"OPENBLAS_CORETYPE": "Sandybridge"},
        {"OPENBLAS_CORETYPE": "Prescott"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_threads_and_kernels_of_the_library_give_one_digest(settings):
    """A kernel that this machine lacks is not taken, and the test says nothing."""
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)} | settings
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    expression, types = make_cells(("B", "NK", "T"), 400, 60)
    assert done.stdout.strip() == whole_number_digest(expression, types)


def whole_number_digest(expression, types):
    """Return the digest of sums that no floating-point number had a part in."""
    basis = make_basis(60)
    levels = np.floor(expression.astype(np.float64) * 4).astype(np.int64)
    names = sorted(set(types))
    rows = [levels[[one == name for one in types]] for name in names]
    products = [np.einsum("ni,nj->ij", own, own)[np.triu_indices(60)] for own in rows]
    counts, totals = [len(own) for own in rows], [own.sum(axis=0) for own in rows]
    return Sums(basis.digest, tuple(names), np.array(counts), np.array(totals), np.array(products)).digest


def test_no_cells_are_sums_too():
    empty = Sums.empty(BASIS)
    assert (empty.n_cells, empty.types) == (0, ())
    assert empty.digest == add_up(BASIS, []).digest == add_up(BASIS, [(np.zeros((0, 6)), [])]).digest
    assert empty.renamed({"B": "T"}).digest == empty.without(["B"]).digest == empty.digest


# What is refused


@pytest.mark.parametrize("level", [0.5, -1.0, HIGHEST + 1.0, np.nan, np.inf])
def test_what_is_no_level_is_refused(level):
    with pytest.raises(SumsError, match=r"whole numbers of 0\.\.\.63"):
        exact_products(np.array([[1.0, level]]))


class Wrong(np.ndarray):
    """Levels whose product with floats is wrong by ``error``, as of a library with a broken kernel."""

    error = np.zeros((N_GENES, N_GENES))

    def __matmul__(self, other):
        result = np.asarray(self) @ np.asarray(other)
        return result + self.error if result.shape == self.error.shape else result


def broken(error):
    levels = np.random.default_rng(0).integers(0, 54, (50, N_GENES)).astype(np.float64)
    kind = type("Broken", (Wrong,), {"error": error})
    return levels.view(kind)


def test_a_right_library_passes_the_check_of_products():
    right = broken(np.zeros((N_GENES, N_GENES)))
    np.testing.assert_array_equal(exact_products(right), np.asarray(right).T @ np.asarray(right))


@few
@given(st.data())
def test_a_library_that_is_wrong_by_one_anywhere_is_detected(data):
    """One entry, or several whose errors cancel in a row, in a column, or in all."""
    error, place = np.zeros((N_GENES, N_GENES)), st.integers(0, N_GENES - 1)
    for value in data.draw(st.sampled_from([(1,), (-1,), (1, -1), (1, 1), (0.5,), (1, -1, -1, 1)])):
        error[data.draw(place), data.draw(place)] += value
    if error.any():
        with pytest.raises(SumsError, match="computed a product of whole numbers wrongly"):
            exact_products(broken(error))


def test_a_whole_row_that_is_left_out_is_detected():
    levels = broken(np.zeros((N_GENES, N_GENES)))
    last = np.outer(np.asarray(levels)[-1], np.asarray(levels)[-1])
    with pytest.raises(SumsError, match="wrongly"):
        exact_products(broken(-last))


def test_more_cells_than_a_float_can_add_up_are_refused(monkeypatch):
    monkeypatch.setattr(sums_module, "_WHOLE_FLOAT", 10 * HIGHEST**2)
    exact_products(np.zeros((9, 2)))
    with pytest.raises(SumsError, match="10 cells at a time are too many.*chunks of 9"):
        exact_products(np.zeros((10, 2)))


def test_more_cells_than_64_bits_can_add_up_are_refused(monkeypatch):
    monkeypatch.setattr(sums_module, "_WHOLE_INT", 10 * HIGHEST**2)
    six = added([("B", [1] * 6)] * 6)
    with pytest.raises(SumsError, match="12 cells with levels up to 63 may not fit"):
        six.plus(six)
    with pytest.raises(SumsError, match="12 cells of B are too many"):
        added([("B", [1] * 6)] * 12, cuts=[6])


def test_highest_levels_of_many_cells_fit():
    """Sums that no run of a test could add up: n cells, all levels at their highest."""
    n = (2**63 - 1) // HIGHEST**2
    many = Sums(
        BASIS.digest,
        ("B",),
        np.array([n]),
        np.full((1, 6), n * HIGHEST),
        np.full((1, 21), n * HIGHEST**2),
    )
    assert many.scatter(0).max() == n * HIGHEST**2
    assert many.minus(added([("B", [63] * 6)])).n_cells == n - 1
    with pytest.raises(SumsError, match="may not fit in 64 bits"):
        many.plus(many)
    with pytest.raises(SumsError, match="no cells can have these sums"):
        Sums(BASIS.digest, ("B",), np.array([2**62]), many.totals, many.products)


@pytest.mark.parametrize(
    ("kept", "gone"),
    [
        ([("B", [4] * 6)], [("T", [4] * 6)]),  # a type that was never there
        ([("B", [4] * 6)], [("B", [4] * 6)] * 2),  # more cells than there are
        ([("B", [4] * 6)], [("B", [5] * 6)]),  # another cell, and none is left
        ([("B", [4] * 6), ("B", [1] * 6)], [("B", [9] * 6)]),  # a cell of more than all have
        ([("B", [4] * 6), ("B", [0] * 6)], [("B", [1] * 6)]),  # what is left is the sums of no single cell
        ([("B", [9] * 6)] * 3, [("B", [0] * 6)]),  # nor of two
    ],
)
def test_cells_that_were_never_added_cannot_be_removed(kept, gone):
    with pytest.raises(SumsError, match="removed|cells to remove|no cells"):
        added(kept).minus(added(gone))


def test_sums_of_two_bases_cannot_be_put_together():
    other = add_up(make_basis(7), [(np.ones((2, 7)), ["B", "T"])])
    for put in (added([("B", [1] * 6)]).plus, added([("B", [1] * 6)]).minus):
        with pytest.raises(SumsError, match="canal basis adopt"):
            put(other)


def test_each_cell_needs_a_type():
    with pytest.raises(SumsError, match="2 cells need one type each, found 1"):
        Adder(BASIS).add(np.ones((2, 6)), ["B"])


def test_shapes_and_names_are_looked_at():
    right = added([("B", [1] * 6), ("T", [2] * 6)])
    with pytest.raises(SumsError, match="unique and sorted"):
        Sums(right.basis, ("T", "B"), right.counts, right.totals, right.products)
    with pytest.raises(SumsError, match="counts as int64"):
        Sums(right.basis, right.types, right.counts.astype(float), right.totals, right.products)
    with pytest.raises(SumsError, match="products as int64"):
        Sums(right.basis, right.types, right.counts, right.totals, right.products[:, :-1])


@few
@given(cells, cells, st.lists(st.integers(0, 30), max_size=4))
def test_sums_without_cells_are_those_that_never_had_them_and_no_others_are(stay, leave, cuts):
    rest = added(stay + leave, cuts).minus(added(leave))
    assert rest.digest == added(stay).digest
    assert rest.types == added(stay).types
    again = added(stay + leave, cuts).minus(added(leave[1:]))
    assert (again.digest == added(stay).digest) == (not leave)  # a cell that stays behind is told
