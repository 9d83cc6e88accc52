"""Fast and full answers in what is written: which cells the network was asked about, and no mixture."""

import anndata
import numpy as np
import pandas as pd
import pytest

from canal.annotation.annotate import annotate_adata, annotate_h5ad
from canal.annotation.columns import BY_NETWORK
from canal.annotation.labelled import open_labelled
from canal.annotation.markers import ExplainOptions, explain
from canal.annotation.novel import GroupingOptions, group_novel
from canal.annotation.options import Callbacks, Options
from canal.core.errors import DataError
from canal.model.combined import FastAnnotator
from tests.support.cells import make_adata, write_adata
from tests.support.models import make_combined
from tests.support.sums import genes

KEY = {"key": "0" * 64, "model": "canal-annotator", "version": 2}


def quiet(said):
    """Say nothing."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    cells = make_adata({"B": 60, "NK": 60, "Mono": 60}, n_genes=20)
    cells.var_names = list(genes(20))
    return write_adata(cells, tmp_path_factory.mktemp("cells") / "cells.h5ad")


@pytest.fixture(scope="module")
def fast(source):
    """An annotator that asks the network about some of these cells."""
    whole = make_combined()
    margins = annotate_adata(whole.exact, anndata.read_h5ad(source))["canal_margin"]
    return FastAnnotator(make_combined(fast_margin=float(np.quantile(margins, 0.2))))


@pytest.fixture(scope="module")
def labelled(fast, source, tmp_path_factory):
    target = tmp_path_factory.mktemp("labelled") / "fast.h5ad"
    annotate_h5ad(fast, source, target, Options(effort="fast", model_name=KEY))
    return target


def test_the_cells_that_the_network_was_asked_about_are_marked(fast, source, labelled, tmp_path):
    annotate_h5ad(fast, source, tmp_path / "fast.csv", Options(effort="fast"))
    obs, table = anndata.read_h5ad(labelled).obs, pd.read_csv(tmp_path / "fast.csv", index_col=0)
    assert obs[BY_NETWORK].dtype == bool
    assert table[BY_NETWORK].dtype == bool
    np.testing.assert_array_equal(obs[BY_NETWORK], table[BY_NETWORK])
    assert 0 < obs[BY_NETWORK].sum() < 60


def test_unmarked_cells_are_labelled_as_by_sums_alone_and_marked_ones_as_in_full(
    fast, source, labelled, tmp_path
):
    whole = fast.whole
    for annotator, name in ((whole.exact, "sums.h5ad"), (whole, "full.h5ad")):
        annotate_h5ad(annotator, source, tmp_path / name)
    found = anndata.read_h5ad(labelled).obs
    sums, full = (anndata.read_h5ad(tmp_path / name).obs for name in ("sums.h5ad", "full.h5ad"))
    assert BY_NETWORK not in full.columns
    marked = found[BY_NETWORK].to_numpy()
    for rows, right in ((marked, full), (~marked, sums)):
        assert (
            found["canal_cell_type"].astype(str)[rows] == right["canal_cell_type"].astype(str)[rows]
        ).all()
        np.testing.assert_allclose(
            found["canal_confidence"][rows], right["canal_confidence"][rows], atol=1e-5
        )


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_how_many_cells_are_read_at_a_time_changes_no_mark(fast, source, labelled, tmp_path, chunk):
    annotate_h5ad(fast, source, tmp_path / "x.h5ad", Options(effort="fast", chunk_cells=chunk))
    one, other = (anndata.read_h5ad(path).obs for path in (tmp_path / "x.h5ad", labelled))
    for column in ("canal_cell_type", "canal_is_novel", BY_NETWORK):
        assert (one[column].astype(str) == other[column].astype(str)).all()


def test_another_effort_does_not_go_on_where_one_stopped(fast, source, tmp_path):
    def stop(done, total):
        if done >= 40:
            raise KeyboardInterrupt

    target = tmp_path / "x.h5ad"
    with pytest.raises(KeyboardInterrupt):
        annotate_h5ad(fast, source, target, Options(effort="fast", chunk_cells=10), Callbacks(on_cells=stop))
    for annotator, options in ((fast.whole, {}), (fast.whole, {"effort": "fast"}), (fast, {})):
        with pytest.raises(DataError, match=r"another input, model or options; leave --resume out"):
            annotate_h5ad(annotator, source, target, Options(resume=True, chunk_cells=10, **options))
    annotate_h5ad(fast, source, target, Options(effort="fast", resume=True))
    assert target.is_file()


def test_a_fast_file_is_explained_and_its_novel_cells_grouped(fast, labelled):
    with open_labelled(labelled) as file:
        assert file.record["options"]["effort"] == "fast"
        explained = explain(fast, file, ExplainOptions(cells=10, top=3), quiet)
        assert {one.cell_type for one in explained} <= set(fast.labels)
        assert all(np.isfinite([gene.attribution for gene in one.genes]).all() for one in explained)
        novel = group_novel(fast, file, GroupingOptions(min_cells=2, resolution=0.5), quiet)
        assert novel.n_novel == (anndata.read_h5ad(labelled).obs["canal_cell_type"] == "Unassigned").sum()
