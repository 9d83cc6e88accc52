import sys
from collections import Counter

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.annotation import clusters
from canal.annotation.annotate import annotate_adata, annotate_h5ad
from canal.annotation.clusters import with_vote
from canal.annotation.options import Options
from canal.core.errors import DataError
from canal.core.packages import MissingPackageError
from tests.support.cells import gene_names, make_adata, write_adata


@pytest.fixture
def adata():
    cells = make_adata({"B": 40, "NK": 40}, n_genes=60)
    cells.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(40))]
    cells.obs["cluster"] = pd.Categorical(["a", "b", "c", "d"] * 20)
    cells.obs.loc[cells.obs_names[:3], "cluster"] = None
    return cells


@given(st.lists(st.tuples(st.sampled_from(["B", "T", "Unassigned"]), st.sampled_from(["", "1", "2"]))))
def test_the_vote_is_what_most_cells_of_a_cluster_are(cells):
    table = pd.DataFrame({"canal_cell_type": pd.Categorical([label for label, _ in cells])})
    found = with_vote(table, np.array([cluster for _, cluster in cells], dtype=object))
    assert found["canal_cell_type"].tolist() == [label for label, _ in cells]
    for (label, cluster), chosen, share in zip(
        cells, found["canal_vote"], found["canal_vote_share"], strict=True
    ):
        if cluster == "":
            assert chosen == label
            assert np.isnan(share)
            continue
        counts = Counter(one for one, its in cells if its == cluster)
        assert counts[chosen] == max(counts.values())
        assert share == pytest.approx(counts[chosen] / sum(counts.values()))


@pytest.mark.parametrize("wish", ["cluster", "obs:cluster", "louvain", "leiden"])
def test_a_file_gains_two_columns_and_no_label_changes(annotator, adata, tmp_path, wish):
    source = write_adata(adata, tmp_path / "in.h5ad")
    annotate_h5ad(annotator, source, tmp_path / "plain.h5ad")
    annotate_h5ad(annotator, source, tmp_path / "voted.h5ad", Options(vote=wish, chunk_cells=17))
    plain, add_vote = (anndata.read_h5ad(tmp_path / f"{name}.h5ad").obs for name in ("plain", "voted"))
    assert list(add_vote) == [*plain, "canal_vote", "canal_vote_share"]
    pd.testing.assert_frame_equal(add_vote[list(plain)], plain, rtol=1e-5, atol=1e-6)
    assert add_vote["canal_vote_share"].notna().sum() == (len(plain) - 3 if "cluster" in wish else len(plain))
    assert set(add_vote["canal_vote"]) <= {*annotator.labels, "Unassigned"}


@pytest.mark.parametrize("method", ["louvain", "leiden"])
def test_clusters_of_the_representation_are_the_same_for_a_file_and_an_adata(
    annotator, adata, tmp_path, method
):
    source = write_adata(adata, tmp_path / "in.h5ad")
    for name in ("one", "two"):
        annotate_h5ad(annotator, source, tmp_path / f"{name}.csv", Options(vote=method))
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    table = annotate_adata(annotator, adata, Options(vote=method))
    written = pd.read_csv(tmp_path / "one.csv", index_col=0)
    assert table["canal_vote"].tolist() == written["canal_vote"].tolist()
    assert table.attrs["canal"]["vote"] == method


def test_a_column_called_leiden_is_named_with_obs(annotator, adata):
    adata.obs["leiden"] = "all"
    table = annotate_adata(annotator, adata, Options(vote="obs:leiden"))
    assert table["canal_vote"].nunique() == 1
    assert table["canal_vote_share"].nunique() == 1


def test_a_column_called_louvain_is_refused_until_it_is_named_with_obs(annotator, adata):
    """Before canal computed such clusters, `--vote louvain` was the column that scanpy writes."""
    adata.obs["louvain"] = "all"
    with pytest.raises(DataError, match="computes clusters, but obs has a column 'louvain': .*obs:louvain"):
        annotate_adata(annotator, adata, Options(vote="louvain"))
    table = annotate_adata(annotator, adata, Options(vote="obs:louvain"))
    assert table["canal_vote"].nunique() == 1


def test_a_method_whose_package_is_missing_is_refused_at_once(annotator, adata, tmp_path, monkeypatch):
    source = write_adata(adata, tmp_path / "in.h5ad")
    for module, method, extra in (("sknetwork", "louvain", "groups"), ("igraph", "leiden", "leiden")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            MissingPackageError, match=rf'--vote {method} needs .*pip install "canal-cells\[{extra}\]"'
        ):
            annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(vote=method))
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]


def test_a_column_that_is_not_there_is_refused_before_any_work(annotator, adata, tmp_path):
    source = write_adata(adata, tmp_path / "in.h5ad")
    with pytest.raises(
        DataError, match=r"no column 'clusters' \(--vote\); it has 'cell_type', 'batch', 'cluster'"
    ):
        annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(vote="clusters"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]


def test_too_many_cells_to_cluster_are_refused_with_the_way_out(annotator, adata, monkeypatch):
    monkeypatch.setattr(clusters, "MOST_CELLS", 79)
    with pytest.raises(DataError, match="clusters at most 79 cells, found 80: .* --vote COLUMN"):
        annotate_adata(annotator, adata, Options(vote="leiden"))


def test_a_cluster_without_a_large_majority_is_mixed(annotator, adata):
    labels = ["B", "B", "T", "NK", "T", "T"]
    table = pd.DataFrame({"canal_cell_type": pd.Categorical(labels)})
    clusters = np.array(["1", "1", "1", "", "2", "2"], dtype=object)
    for least, first in ((0.66, "B"), (0.67, "Mixed")):
        found = with_vote(table, clusters, least)
        assert found["canal_vote"].tolist() == [first] * 3 + ["NK", "T", "T"]
        assert found["canal_vote_share"].round(2).tolist()[:3] == [np.float32(0.67)] * 3
    voted = annotate_adata(annotator, adata, Options(vote="cluster", min_share=1.0))
    assert voted.attrs["canal"]["min_share"] == 1.0
    shares = voted["canal_vote_share"]
    assert ((voted["canal_vote"] == "Mixed") == (shares < 1)).all()


def test_a_least_share_needs_clusters():
    with pytest.raises(DataError, match="name the clusters with --vote"):
        Options(min_share=0.5)
