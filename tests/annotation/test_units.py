import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from canal.annotation.annotate import annotate_adata
from canal.annotation.query import query_adata
from canal.annotation.query_units import check_block, find_units
from canal.core.errors import DataError
from tests.support.cells import gene_names, make_adata


def query(adata, layer="X"):
    return query_adata(adata, layer, None)


def find_values(query, wish):
    units = find_units(query, wish)
    return units.values, list(units.doubts)


@pytest.mark.parametrize("values", ["counts", "log1p_10k", "log2p_10k"])
def test_units_are_told_by_the_values(values):
    assert find_values(query(make_adata({"B": 30, "NK": 30}, values=values)), "auto") == (values, [])


@pytest.mark.parametrize("values", ["counts", "log1p_10k", "log2p_10k"])
def test_units_are_told_where_genes_are_gone(values):
    """A file that kept half its genes after normalisation no longer sums to 10,000."""
    adata = make_adata({"B": 30, "NK": 30}, values=values)[:, ::2].copy()
    assert find_values(query(adata), "auto")[0] == values


def test_corrected_logarithms_are_told_by_their_sums():
    """No longer multiples of one count; base e leaves each cell below 10,000."""
    adata = make_adata({"B": 30}, values="log1p_10k")
    noise = np.random.default_rng(0).uniform(0.6, 0.95, adata.X.nnz).astype(np.float32)
    adata.X.data *= noise
    assert find_values(query(adata), "auto")[0] == "log1p_10k"


def test_sums_may_rule_out_base_e():
    adata = make_adata({"B": 30}, values="log2p_10k")
    noise = np.random.default_rng(0).uniform(0.97, 1.0, adata.X.nnz).astype(np.float32)
    adata.X.data *= noise
    assert find_values(query(adata), "auto")[0] == "log2p_10k"


def test_scaled_values_are_refused_with_the_way_out():
    adata = make_adata({"B": 30})
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.toarray() - 1.0
    with pytest.raises(DataError, match=r"negative values.*--layer; there are also 'counts'"):
        find_values(query(adata), "auto")
    assert find_values(query(adata, "counts"), "auto")[0] == "counts"


def test_logarithms_of_another_sum_are_refused():
    adata = make_adata({"B": 30})
    adata.X.data = np.log1p(adata.X.data * 5000)
    with pytest.raises(DataError, match="no logarithms of counts per 10,000"):
        find_values(query(adata), "auto")


def test_a_matrix_of_zeros_is_refused():
    adata = make_adata({"B": 30})
    adata.X = csr_matrix(adata.shape, dtype=np.float32)
    with pytest.raises(DataError, match="zero in all 30 sampled cells"):
        find_values(query(adata), "auto")


def test_whole_numbers_are_no_logarithms():
    with pytest.raises(DataError, match="--values counts"):
        find_values(query(make_adata({"B": 30})), "log1p_10k")


def test_a_wish_against_the_values_is_followed_with_a_warning():
    values, doubts = find_values(query(make_adata({"B": 30}, values="log2p_10k")), "log1p_10k")
    assert values == "log1p_10k"
    assert "look like log2p_10k" in doubts[0]


def test_a_total_other_than_ten_thousand_is_told():
    """scanpy's normalize_total scales to the median by default."""
    adata = make_adata({"B": 30})
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.X.data = np.log1p(adata.X.data / np.repeat(totals, np.diff(adata.X.indptr)) * 2500)
    values, doubts = find_values(query(adata), "auto")
    assert values == "log1p_10k"
    assert "sums to 2,500" in doubts[0]


def test_an_unknown_wish_is_refused():
    with pytest.raises(DataError, match="must be one of auto, counts"):
        find_values(query(make_adata({"B": 30})), "tpm")


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "no finite"), (np.inf, "no finite"), (-1.0, "negative"), (0.5, "no whole")]
)
def test_a_block_with_one_wrong_value_names_its_cell(value, what):
    adata = make_adata({"B": 5})
    block = csr_matrix(np.array([[1, 0], [2, value], [0, 0]], dtype=np.float32))
    with pytest.raises(DataError, match=rf"1 values of X are {what}.*first in cell 41 "):
        check_block(query(adata), block, start=40, whole=True)


def test_soft_counts_pass_where_they_were_declared():
    block = csr_matrix(np.array([[0.5]], dtype=np.float32))
    check_block(query(make_adata({"B": 5})), block, start=0, whole=False)


def scaled_to(depth, logarithm=np.log1p):
    adata = make_adata({"B": 30, "NK": 30}, n_genes=20)
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    shares = adata.X.data / np.repeat(totals, np.diff(adata.X.indptr))
    adata.X.data = logarithm(shares * depth).astype(np.float32)
    return adata


def log2p(values):
    return np.log2(1 + values)


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix])
@pytest.mark.parametrize(
    ("depth", "logarithm", "values"),
    [(2500, np.log1p, "log1p_10k"), (1e6, np.log1p, "log1p_10k"), (1e6, log2p, "log2p_10k")],
)
def test_another_depth_is_scaled_exactly(annotator, depth, logarithm, values, form):
    wanted = annotate_adata(annotator, scaled_to(1e4))
    adata = scaled_to(depth, logarithm)
    adata.X = form(adata.X)
    with pytest.warns(UserWarning, match=f"sums to {depth:,.0f}.*exact"):
        found = annotate_adata(annotator, adata)
    assert found.attrs["canal"]["values"] == values
    pd.testing.assert_frame_equal(found, wanted, atol=1e-4)


def test_values_scaled_without_a_logarithm_are_told(annotator):
    with pytest.warns(UserWarning, match="every cell sums to 1,000,000: they were taken as counts"):
        found = annotate_adata(annotator, scaled_to(1e6, np.asarray))
    pd.testing.assert_frame_equal(found, annotate_adata(annotator, scaled_to(1e4)), atol=1e-4)


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix])
def test_a_cell_of_yet_another_depth_is_refused(annotator, form):
    adata = scaled_to(1e6)
    big = anndata.concat([adata] * 10, index_unique="-")
    big.X[100] = big.X[100] * 0.5  # in none of the cells that are looked at first
    big.X = form(big.X)
    with pytest.raises(DataError, match=r"sum to 1,000,000.*the first being cell 100 "):
        annotate_adata(annotator, big)


def test_logarithms_of_some_genes_are_not_scaled_anew(annotator):
    """Genes were dropped after the scaling: the values stay as they are."""
    adata = make_adata({"B": 30, "NK": 30}, n_genes=60, values="log1p_10k")[:, :20].copy()
    adata.var_names = list(annotator.genes)
    found = annotate_adata(annotator, adata)
    direct = annotator.predict((adata.X.toarray() / np.log(2)).astype(np.float32))
    np.testing.assert_allclose(found["canal_confidence"], direct.confidence, atol=1e-5)


@pytest.fixture(scope="module")
def wide():
    """Counts of enough genes to tell by, the first twenty being those that the model knows."""
    adata = make_adata({"B": 30, "NK": 30}, n_genes=600)
    adata.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(580))]
    return adata


def in_units(adata, change, form=csr_matrix):
    """Return the cells with ``change`` applied to (counts, totals), both dense."""
    counts = adata.X.toarray().astype(np.float64)
    other = adata.copy()
    other.X = form(change(counts, counts.sum(axis=1, keepdims=True)).astype(np.float32))
    return other


EXACT = {
    "ln of counts": (lambda x, t: np.log1p(x), "whole numbers once the natural"),
    "log2 of counts": (lambda x, t: np.log2(1 + x), "whole numbers once the logarithm to base 2"),
    "log twice": (lambda x, t: np.log1p(np.log1p(1e4 * x / t)), "natural logarithm of the natural"),
    "log10": (lambda x, t: np.log10(1 + 1e4 * x / t), "base 10 was undone"),
    "two depths": (
        lambda x, t: np.log1p(np.where(np.arange(60) < 30, 700, 1900)[:, None] * x / t),
        "700 or 1,900",
    ),
    "sum of one": (lambda x, t: x / t, "every cell sums to 1: "),
}


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix])
@pytest.mark.parametrize("kind", EXACT)
def test_what_can_be_converted_exactly_is(annotator, wide, kind, form):
    change, told = EXACT[kind]
    with pytest.warns(UserWarning, match=told):
        found = annotate_adata(annotator, in_units(wide, change, form))
    pd.testing.assert_frame_equal(found, annotate_adata(annotator, wide), atol=1e-4)


@pytest.mark.parametrize("change", [log2p, lambda x: np.log10(1 + x), lambda x: np.log1p(np.log1p(x))])
def test_logarithms_of_some_genes_are_converted_without_scaling(annotator, wide, change):
    some = in_units(wide, lambda x, t: np.log1p(1e4 * x / t))[:, :300].copy()
    wanted = annotate_adata(annotator, some)
    other = some.copy()
    other.X.data = change(np.expm1(some.X.data.astype(np.float64))).astype(np.float32)
    pd.testing.assert_frame_equal(annotate_adata(annotator, other), wanted, atol=1e-4)


def test_a_later_cell_that_is_no_logarithm_of_counts_is_refused(annotator, wide):
    big = anndata.concat([in_units(wide, lambda x, t: np.log1p(x))] * 10, index_unique="-")
    big.X[100] = big.X[100] * 0.9  # in none of the cells that are looked at first
    with pytest.raises(DataError, match=r"no whole number.*cell 100 "):
        annotate_adata(annotator, big)


REFUSED = {
    "ones": (lambda x, t: (x > 0) * 1.0, "every value other than 0 is 1"),
    "two units": (
        lambda x, t: np.where(np.arange(60)[:, None] < 30, x, np.log1p(1e4 * x / t)),
        "mixes units: .* hold whole numbers, the others do not",
    ),
    "noise": (lambda x, t: np.random.default_rng(0).uniform(0.01, 1, x.shape), "hardly a value of 0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_expression_is_refused_with_the_way_out(wide, kind):
    change, told = REFUSED[kind]
    with pytest.raises(DataError, match=f"{told}.*--values"):
        find_units(query(in_units(wide, change)), "auto")


def test_low_totals_are_told_unless_the_user_names_the_units():
    """scran's logcounts: size factors around 1."""
    adata = make_adata({"B": 30, "NK": 30}, n_genes=3000)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.15, (60, 1)))
    scran = in_units(adata, lambda x, t: np.log2(1 + x / (t / t.mean() * noise)))
    values, doubts = find_values(query(scran), "auto")
    assert values == "log2p_10k"
    assert "over 3,000 genes" in doubts[0]
    assert "scran" in doubts[0]
    assert find_values(query(scran), "log2p_10k") == ("log2p_10k", [])


def test_what_nothing_proves_is_taken_with_a_warning(wide):
    noise = np.random.default_rng(0).uniform(0.6, 0.95, wide.shape)
    values, doubts = find_values(query(in_units(wide, lambda x, t: noise * np.log1p(1e4 * x / t))), "auto")
    assert values == "log1p_10k"
    assert "cannot be proven" in doubts[0]


def test_raw_is_offered_by_its_option():
    adata = make_adata({"B": 30})
    adata.raw = adata.copy()
    adata.X = adata.X.toarray() - 1.0
    with pytest.raises(DataError, match="for raw: --use-raw"):
        find_values(query(adata), "auto")
