"""A request is the same cells as `canal annotate` reads, or is refused with what is wrong."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from canal.annotation.annotate import annotate_adata
from canal.annotation.columns import columns_of, join_blocks
from canal.annotation.options import Options
from canal.annotation.service import MIN_COVERAGE, TOTALS, read_request
from canal.core.errors import DataError
from tests.support.cells import gene_names

PANEL = gene_names(20)


def cells(n=5, seed=0, genes=60):
    """Return counts of the panel's twenty genes and of forty more."""
    random = np.random.default_rng(seed)
    counts = random.poisson(2.0, size=(n, genes)) * (random.random((n, genes)) < 0.5)
    counts[:, -1] += 1
    return pd.DataFrame(
        counts.astype(np.float32), columns=[*PANEL, *(f"OTHER{i}" for i in range(genes - 20))]
    )


def with_totals(counts, genes=PANEL):
    return counts[list(genes)].assign(**{TOTALS: counts.sum(axis=1)})


def logarithms(counts):
    totals = counts.sum(axis=1).to_numpy(dtype=np.float64)[:, None]
    return pd.DataFrame(np.log1p(counts.to_numpy() / totals * 1e4).astype(np.float32), columns=counts.columns)


def answer(annotator, table, size):
    blocks = read_request(table, annotator.genes).blocks(size)
    frames = [columns_of(annotator.predict(x), empty, annotator.labels) for x, empty in blocks]
    return join_blocks(frames, annotator.ontology)


def annotated(annotator, values, genes, units):
    adata = AnnData(csr_matrix(values.to_numpy()), var=pd.DataFrame(index=list(values.columns)))
    chosen = adata[:, [name in genes or name.startswith("OTHER") for name in adata.var_names]]
    return annotate_adata(annotator, chosen.copy(), Options(values=units)).reset_index(drop=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("size", [3, 1000])
@pytest.mark.parametrize("left_out", [0, 7])
@pytest.mark.parametrize("units", ["counts", "log1p_10k"])
def test_a_request_is_answered_as_annotate_does(annotator, units, left_out, size):
    counts, genes = cells(40), PANEL[left_out:]
    counts.iloc[7, :20] = 0
    if units == "counts":
        counts.loc[:, PANEL[:left_out]] = 0  # a gene that was not measured is in no total either
        values, sent = counts, with_totals(counts, genes)
    else:
        values = logarithms(counts)
        sent = values[genes]
    found, wanted = answer(annotator, sent, size), annotated(annotator, values, genes, units)
    pd.testing.assert_frame_equal(found, wanted, rtol=0, atol=1e-6)
    assert found["canal_low_quality"].tolist() == [i == 7 for i in range(40)]
    assert 0 < found["canal_is_novel"].sum() < 40


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(20)))
def test_neither_the_order_of_columns_nor_their_type_matters(seed, order):
    sent = with_totals(cells(3, seed))
    wanted = next(read_request(sent, PANEL).blocks())[0]
    turned = sent[[TOTALS, *(PANEL[i] for i in order)]].astype(np.int64)
    assert np.array_equal(next(read_request(turned, PANEL).blocks())[0], wanted)


def test_cells_without_any_counts_are_answered():
    request = read_request(with_totals(cells(2) * 0), PANEL)
    expression, empty = next(request.blocks())
    assert not expression.any()
    assert empty.all()
    assert next(read_request(cells(2)[PANEL] * 0, PANEL).blocks())[1].all()


def test_so_many_genes_are_needed_as_annotate_needs():
    assert Options().min_coverage == MIN_COVERAGE
    assert read_request(with_totals(cells(), PANEL[:8]), PANEL).values[:, 8:].max() == 0
    with pytest.raises(DataError, match=r"7 of the model's 20 genes .* at least 8 are needed \(40%\)"):
        read_request(with_totals(cells(), PANEL[:7]), PANEL)


def changed(table, value, row=1, column="CD3D"):
    table = table.astype(np.float64)
    table.loc[row, column] = value
    return table


COUNTS, LOGS = with_totals(cells()), logarithms(cells())[PANEL]
REFUSED = {
    "no column": (pd.DataFrame(), "0 of the model's 20 genes .* such as CD3D, CD4"),
    "unknown columns": (pd.DataFrame({"x": [1.5], "y": [2]}), "0 of the model's .* other columns are x, y"),
    "totals alone": (COUNTS[[TOTALS]], "0 of the model's 20 genes"),
    "no rows": (LOGS.iloc[:0], "20 of the model's genes, but no rows"),
    "twice": (LOGS[["CD3D", *PANEL]], "every column once, found CD3D more than once"),
    "text": (LOGS.assign(CD3D="many"), "expected numbers, found 1 column.* 'CD3D' with 'many'"),
    "truth values": (LOGS > 1, "expected numbers, found 20 column"),
    "nan": (changed(LOGS, np.nan), "1 value.* missing or NaN, the first of CD3D in cell 1 .* send 0"),
    "infinite": (changed(LOGS, np.inf), "1 value.* infinite, the first of CD3D in cell 1"),
    "negative": (changed(LOGS, -0.5), "1 value.* negative, the first of CD3D in cell 1 .* scaled"),
    "counts, no totals": (COUNTS[PANEL], "5 cell.* whole numbers alone.* Add a column canal_total_counts"),
    "one cell of counts": (
        pd.concat([LOGS, COUNTS[PANEL].clip(lower=1)[:1]], ignore_index=True),
        "1 cell.* whole numbers alone, such as .* in cell 5",
    ),
    "logarithms and totals": (
        LOGS.assign(**{TOTALS: 900.0}),
        "no whole numbers, such as .* leave canal_total",
    ),
    "totals of the panel's part": (
        changed(COUNTS, 3, 2, TOTALS),
        "1 cell.* less than .* cell 2 .* with 3 ag",
    ),
    "absurd totals": (changed(COUNTS, 1e12, 3, TOTALS), "1 cell.* more than any cell has, .* cell 3 .* 1e"),
    "totals missing": (changed(COUNTS, np.nan, 4, TOTALS), "1 value.* missing .* cell 4 .* every cell needs"),
    "totals negative": (
        changed(COUNTS, -1, 4, TOTALS),
        "1 value.* negative, the first of canal_total_counts",
    ),
    "not per 10,000": (LOGS * 2.5, "more than 10,000 counts per 10,000, the first being cell 0"),
    "huge": (changed(LOGS, 1e300), "more than 10,000 counts per 10,000, .* cell 1 .* with inf"),
    "huge counts": (changed(COUNTS, 1e300), "1 cell.* less than the sum"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_request_that_cannot_be_answered_says_why(why):
    table, said = REFUSED[why]
    with pytest.raises(DataError, match=said):
        read_request(table, PANEL)


def test_few_rounded_logarithms_may_be_whole():
    table = pd.DataFrame(0.0, index=range(2), columns=PANEL)
    table.loc[0, ["CD3D", "LYZ"]] = [1.25, 3.0]
    table.loc[1, "LYZ"] = 3.0
    assert read_request(table, PANEL).units == "log1p_10k"
