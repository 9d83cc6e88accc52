"""The drift watch's statistics: cells like the test cells are no alarm, others are; and what records hold."""

import json

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from canal.annotation import drift
from canal.annotation.annotate import annotate_adata, annotate_h5ad
from canal.annotation.drift import Stage, histogram, judge, rows_of
from canal.annotation.options import Callbacks, Options
from canal.annotation.records import make_record, parse_record
from tests.support.cells import gene_names, make_adata, write_adata

SHARES = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1))


def record(n, unassigned, **more):
    types = {"B": n - unassigned} | ({"Unassigned": unassigned} if unassigned else {})
    return {"model": {}, "options": {}, "n_cells": n, "cell_types": types} | more


def stage(n=2000, unassigned=100, confidence=None, types=None, **more):
    curves = {} if confidence is None else {"confidence": histogram(confidence)}
    return Stage("s", n, unassigned, types or {}, curves, **more)


def state(measure, records, *stages):
    rows = rows_of(records)
    pooled = rows.pooled(np.zeros(len(rows), dtype=np.int64), 1)
    return judge(pooled, stages)[measure].states[0]


@given(SHARES)
def test_every_value_is_counted_once_and_medians_lie_in_their_fiftieth(values):
    counts = histogram(values)
    assert sum(counts) == len(values)
    middle = drift.quantile(np.array([counts]), 0.5)[0]
    assert np.quantile(values, 0.5, method="inverted_cdf") - 0.0201 <= middle
    assert middle <= np.quantile(values, 0.5, method="higher") + 0.0201


@given(st.integers(0, 500), st.integers(1, 500))
def test_an_interval_holds_its_share_and_lies_in_0_to_1(k, n):
    low, high = drift.wilson(np.array(min(k, n)), np.array(n))
    assert 0 <= low <= min(k, n) / n <= high <= 1


@settings(max_examples=30)
@given(st.lists(SHARES, min_size=1, max_size=5))
def test_pooled_rows_are_the_rows_of_all_cells(files):
    records = [
        record(len(one), int((one > 0.9).sum()), distributions={"confidence": histogram(one)})
        for one in files
    ]
    rows = rows_of(records)
    whole = rows.pooled(np.zeros(len(rows), dtype=np.int64), 1)
    together = np.concatenate(files)
    assert (whole.n[0], whole.unassigned[0]) == (len(together), (together > 0.9).sum())
    assert whole.histograms["confidence"][0].tolist() == histogram(together)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.3), st.sampled_from([100, 1000]))
def test_cells_of_a_mixture_of_the_stages_are_hardly_ever_an_alarm(seed, share, n):
    """2 of 100 would be twice what the level allows; the tolerance leaves far fewer."""
    generator = np.random.default_rng(seed)
    drawn = [lambda m: generator.beta(8, 2, m), lambda m: generator.beta(4, 2, m)]
    names, likelihood = ["A", "B", "C"], [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]

    def types(which, m):
        counts = generator.multinomial(m, likelihood[which])
        return dict(zip(names, counts.tolist(), strict=True))

    stages = [stage(300, int(generator.binomial(300, share)), drawn[i](300), types(i, 300)) for i in range(2)]
    records = []
    for _ in range(100):
        part = generator.integers(0, n + 1)
        values = np.concatenate([drawn[0](part), drawn[1](n - part)])
        unassigned = int(generator.binomial(n, share))
        one = record(n, unassigned, distributions={"confidence": histogram(values)})
        both = types(0, part), types(1, n - part)
        one["cell_types"] = {name: sum(of[name] for of in both) for name in names} | {
            "Unassigned": unassigned
        }
        one["n_cells"] = n + unassigned
        records.append(one)
    found = judge(rows_of(records), stages)
    for measure in ("unassigned", "confidence", "types"):
        assert found[measure].states.count("alarm") <= 2, measure


def test_what_clearly_left_the_range_is_an_alarm():
    generator = np.random.default_rng(0)
    sure, unsure = generator.beta(20, 1, 2000), generator.beta(3, 3, 2000)
    held = {"confidence": histogram(unsure)}
    assert state("confidence", [record(2000, 0, distributions=held)], stage(confidence=sure)) == "alarm"
    # A version that is surer than on its test cells is none.
    held = {"confidence": histogram(sure)}
    assert state("confidence", [record(2000, 0, distributions=held)], stage(confidence=unsure)) == "in range"
    assert state("unassigned", [record(3000, 412)], stage(500, 30), stage(500, 15)) == "alarm"
    assert state("unassigned", [record(3000, 150)], stage(500, 30), stage(500, 15)) == "in range"
    assert state("unassigned", [record(3000, 0)], stage(500, 30)) == "in range"


def test_types_beyond_every_stage_take_two_stages():
    one, two = stage(types={"A": 900, "B": 100}), stage(types={"A": 500, "B": 500})
    cells = [record(2000, 0)]
    assert state("types", cells, one, two) == "alarm"
    assert state("types", cells, one) == "not measured"
    assert state("types", cells, one, stage(types={"B": 950, "A": 50})) == "in range"


def test_genes_and_depth_are_judged_by_the_stages_own():
    few = record(500, 0, genes={"found": 60, "panel": 100})
    assert state("genes", [few], stage(genes=1.0)) == "alarm"
    assert state("genes", [few], stage(genes=1.0), stage(genes=0.62)) == "in range"
    shallow = record(500, 0, distributions={"depth": histogram(np.full(500, 0.1))})
    assert state("depth", [shallow], stage(depth=0.3)) == "alarm"
    assert state("depth", [shallow], stage(depth=0.01)) == "alarm"
    assert state("depth", [shallow], stage(depth=0.3), stage(depth=0.05)) == "in range"


def test_too_few_cells_are_no_alarm_and_what_is_unknown_is_said():
    assert state("unassigned", [record(99, 99)], stage()) == "too few"
    assert state("unassigned", [record(50, 50), record(50, 50)], stage()) == "alarm"
    assert state("unassigned", [record(1000, 999)]) == "not measured"
    assert state("confidence", [record(1000, 0)], stage(confidence=np.ones(50))) == "not recorded"


@pytest.mark.parametrize(
    "held",
    [None, 3, [], {}, {"confidence": [1] * 49}, {"confidence": ["1"] * 50}, {"confidence": [[1]] * 50},
     {"confidence": [-1] + [1] * 49}, {"confidence": [10**30] * 50}, {"confidence": [0.5] * 50}],
)  # fmt: skip
def test_distributions_that_are_none_count_as_not_recorded(held):
    good = record(50, 0, distributions={"confidence": [1] * 50})
    rows = rows_of([record(1000, 0, distributions=held), good])
    assert rows.histograms["confidence"].sum(axis=1).tolist() == [0, 50]


@pytest.mark.parametrize(
    ("n", "types"), [(0, {}), (3, {"B": 2}), (2, {"B": 3, "T": -1}), (10**30, {"B": 10**30})]
)
def test_numbers_of_cells_that_cannot_be_are_told(n, types):
    assert not drift.is_sound({"n_cells": n, "cell_types": types})
    assert drift.is_sound({"n_cells": 3, "cell_types": {"B": 1, "Unassigned": 2}})


def test_cells_that_a_limit_cut_do_not_count_as_unassigned():
    by = {"low_quality": 2, "is_novel": 3, "max_novelty": 90, "min_confidence": 5}
    assert rows_of([record(100, 100, unassigned_by=by)]).unassigned.tolist() == [5]


# What `canal annotate` records.


@pytest.fixture(scope="module")
def recorded(annotator, tmp_path_factory):
    """Give a labelled file and its record, of cells with half of their genes unknown to the model."""
    folder = tmp_path_factory.mktemp("drift")
    cells = make_adata({"B": 130, "NK": 25}, n_genes=60)
    cells.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(40))]
    source, told = write_adata(cells, folder / "in.h5ad"), []
    annotate_h5ad(annotator, source, folder / "out.h5ad", Options(), Callbacks(on_record=told.append))
    return anndata.read_h5ad(folder / "out.h5ad"), cells, json.loads(told[0])


def test_a_record_counts_what_the_file_holds(recorded):
    labelled, cells, found = recorded
    held = found["distributions"]
    assert found["labelled"] == "out.h5ad"
    for name in ("confidence", "novelty"):
        assert held[name] == histogram(labelled.obs[f"canal_{name}"].to_numpy())
    expressed = (cells.X.toarray()[:, :20] > 0).sum(axis=1) / 20
    assert held["depth"] == histogram(expressed)
    assert held["median_counts"] == np.median(cells.X.toarray().sum(axis=1))


def test_logarithms_have_no_counts_and_cells_in_memory_the_same_distributions(recorded, annotator):
    _, cells, found = recorded
    again = annotate_adata(annotator, cells, Options(chunk_cells=50)).attrs["canal"]
    assert again["distributions"] == found["distributions"]
    logarithms = make_adata({"B": 30}, n_genes=20, values="log1p_10k")
    held = annotate_adata(annotator, logarithms).attrs["canal"]["distributions"]
    assert "median_counts" not in held


def test_an_older_record_is_read_and_counts_where_it_can(recorded):
    _, _, found = recorded
    facts = {name: one for name, one in found.items() if name not in ("id", "distributions", "labelled")}
    old = parse_record(json.dumps(make_record(facts)))
    assert isinstance(old, dict)
    rows = rows_of([old, found])
    assert rows.n.tolist() == [155, 155]
    assert rows.unassigned[0] == rows.unassigned[1]
    assert rows.histograms["novelty"].sum(axis=1).tolist() == [0, 155]
