"""Coarse types: masses and depths by hand on a small graph, what holds for any, and files with them."""

import json
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from canal.annotation import coarse
from canal.annotation.annotate import annotate_adata, annotate_h5ad, label_h5ad
from canal.annotation.coarse import NONE, Hierarchy, about_ontology
from canal.annotation.options import Callbacks, Options
from canal.annotation.partitions import collect, label_partitions, shared_plan
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.data.cell_ontology import ROOT, TABLE, Ontology
from canal.io.arrays import listed
from tests.support.cells import gene_names, make_adata, write_adata

COLUMNS = ["canal_coarse_type", "canal_coarse_confidence", "canal_coarse_type_ontology_term_id"]

# cell -> leukocyte -> lymphocyte -> (T -> (CD4, CD8, killer T), NK), leukocyte -> monocyte;
# killer -> (NK, killer T): a killer T cell has two parents.
NAMES = {
    ROOT: "cell",
    "leu": "leukocyte",
    "lym": "lymphocyte",
    "mon": "monocyte",
    "kil": "killer",
    "t": "T cell",
    "nk": "NK cell",
    "cd4": "CD4 T cell",
    "cd8": "CD8 T cell",
    "nkt": "killer T cell",
}
PARENTS = {
    ROOT: (),
    "leu": (ROOT,),
    "lym": ("leu",),
    "mon": ("leu",),
    "kil": ("leu",),
    "t": ("lym",),
    "nk": ("lym", "kil"),
    "cd4": ("t",),
    "cd8": ("t",),
    "nkt": ("t", "kil"),
}
SMALL = Ontology(NAMES, PARENTS)
LABELS = ("CD4", "CD8", "NKT", "NK", "Mono", "odd")
IDS = {"CD4": "cd4", "CD8": "cd8", "NKT": "nkt", "NK": "nk", "Mono": "mon"}


def small(labels=LABELS, ids=IDS):
    return Hierarchy.of(labels, ids, SMALL)


def name_of(hierarchy, probabilities, bound=0.9):
    (node,), (mass,) = hierarchy.answers(np.array([probabilities]), bound)
    return (None if node == NONE else hierarchy.names[node]), pytest.approx(float(mass), abs=1e-6)


def test_nodes_are_types_and_the_terms_above_several_of_them():
    hierarchy = small()
    members = {
        name: {LABELS[i] for i in np.flatnonzero(column)}
        for name, column in zip(hierarchy.names, hierarchy.members.T, strict=True)
    }
    assert members == {
        **{name: {name} for name in LABELS},
        "killer": {"NKT", "NK"},
        "T cell": {"CD4", "CD8", "NKT"},
        "lymphocyte": {"CD4", "CD8", "NKT", "NK"},
        "leukocyte": {"CD4", "CD8", "NKT", "NK", "Mono"},
    }
    depth = dict(zip(hierarchy.names, hierarchy.depth, strict=True))
    assert [depth[name] for name in ("leukocyte", "lymphocyte", "T cell", "killer")] == [1, 2, 3, 2]
    assert [depth[name] for name in ("CD4", "NK", "Mono", "odd")] == [5, 4, 3, 1]


def test_the_deepest_node_that_is_sure_is_the_answer():
    hierarchy = small()
    assert name_of(hierarchy, [0.95, 0.05, 0, 0, 0, 0]) == ("CD4", 0.95)
    assert name_of(hierarchy, [0.5, 0.45, 0, 0, 0.05, 0]) == ("T cell", 0.95)
    assert name_of(hierarchy, [0.3, 0.3, 0, 0.35, 0, 0.05]) == ("lymphocyte", 0.95)
    assert name_of(hierarchy, [0, 0, 0.5, 0.45, 0.05, 0]) == ("killer", 0.95)
    assert name_of(hierarchy, [0, 0, 0, 0.5, 0.5, 0]) == ("leukocyte", 1)
    assert name_of(hierarchy, [0, 0, 0, 0, 0.5, 0.5]) == (None, 0.5)
    assert name_of(hierarchy, [0, 0, 0, 0, 0.05, 0.95]) == ("odd", 0.95)


def test_of_nodes_as_deep_as_each_other_the_likeliest_is_taken():
    """Lymphocyte and killer are both at 2."""
    hierarchy = small()
    assert name_of(hierarchy, [0.06, 0.0, 0.47, 0.47, 0, 0]) == ("lymphocyte", 1)
    assert name_of(hierarchy, [0, 0, 0.5, 0.5, 0, 0]) == ("killer", 1)  # as likely: of fewer types


def test_a_type_above_others_counts_for_itself_and_not_for_those_below():
    labels, ids = ("T", "CD4", "Mono"), {"T": "t", "CD4": "cd4", "Mono": "mon"}
    hierarchy = small(labels, ids)
    assert hierarchy.names == ("T", "CD4", "Mono", "T cell")
    assert name_of(hierarchy, [0.5, 0.45, 0.05]) == ("T cell", 0.95)
    assert name_of(hierarchy, [0.95, 0.05, 0]) == ("T", 0.95)
    assert name_of(hierarchy, [0.05, 0.95, 0]) == ("CD4", 0.95)
    assert hierarchy.ids == ("t", "cd4", "mon", "t")


def test_types_of_one_term_share_it():
    hierarchy = small(("naive", "memory", "Mono"), {"naive": "cd4", "memory": "cd4"})
    assert hierarchy.names[3:] == ("CD4 T cell",)
    assert name_of(hierarchy, [0.5, 0.5, 0]) == ("CD4 T cell", 1)


def test_a_type_without_an_id_is_found_by_its_name_else_it_stands_alone():
    hierarchy = small(("T cells", "nk", "Monocytes", "odd"), {})
    assert hierarchy.ids == ("t", "nk", "mon", "", "lym", "leu")
    assert small(("a", "b", "c"), {"a": "CL:9999999"}).names == ("a", "b", "c")
    assert small(("CD4",), IDS).names == ("CD4",)  # one type: all above it covers all types


@st.composite
def cells(draw):
    """Whole 64ths of probability over some of the types."""
    labels = draw(st.lists(st.sampled_from(LABELS), min_size=1, unique=True))
    cuts = draw(st.lists(st.integers(0, 64), min_size=len(labels) - 1, max_size=len(labels) - 1))
    shares = np.diff([0, *sorted(cuts), 64]) / 64
    return labels, shares, draw(st.sampled_from([0.51, 0.6, 0.75, 0.9, 1.0])), draw(st.permutations(labels))


@given(cells())
def test_what_holds_for_any_cell(drawn):
    labels, shares, bound, order = drawn
    hierarchy = small(labels)
    (masses,), ((node,), (mass,)) = hierarchy.masses(shares[None]), hierarchy.answers(shares[None], bound)
    own, above = hierarchy.names[: len(labels)], hierarchy.ids[len(labels) :]
    assert own == tuple(labels)
    for place, term in enumerate(hierarchy.ids):  # a parent has at least what each child has
        for other in SMALL.lineage(term) & set(above):
            assert masses[len(labels) + above.index(other)] >= masses[place]
    assert all(any(term in SMALL.lineage(IDS.get(one, "")) for one in labels) for term in above)
    sure = masses >= np.float32(bound)
    assert (node == NONE) == (not sure.any())
    if node != NONE:
        assert mass == masses[node] >= bound
        assert hierarchy.depth[node] == hierarchy.depth[sure].max()
        assert hierarchy.members[:, node].sum() < len(labels) or node < len(labels)
    if bound == 1 and node != NONE:
        assert shares[hierarchy.members[:, node] == 0].sum() == 0
    other = small(order)
    (again,), (as_sure,) = other.answers(np.array([[shares[labels.index(one)] for one in order]]), bound)
    assert as_sure == mass
    assert (again == NONE) == (node == NONE)
    assert node == NONE or other.names[again] == hierarchy.names[node]


# Files.


@pytest.fixture
def adata():
    made = make_adata({"B": 30, "NK": 25}, n_genes=40)
    made.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(20))]
    counts = made.X.toarray()
    counts[0], counts[0, 30] = 0, 5
    made.X = csr_matrix(counts)
    return made


@pytest.fixture
def unsure(annotator, monkeypatch):
    """A model that is sure of few cells; B and T are lymphocytes, by their names, NK has no id here."""
    monkeypatch.setattr("canal.data.cell_ontology.SHORT_NAMES", {})
    coarse._hierarchy.cache_clear()
    yield annotator.with_temperature(0.05)
    coarse._hierarchy.cache_clear()


@pytest.mark.parametrize("suffix", [".h5ad", ".parquet", ".csv"])
def test_a_file_has_coarse_types_beside_its_labels(unsure, adata, tmp_path, suffix):
    source, target = write_adata(adata, tmp_path / "in.h5ad"), tmp_path / f"out{suffix}"
    summary = annotate_h5ad(unsure, source, target, Options(coarse=0.7, probabilities=True, chunk_cells=8))
    if suffix == ".h5ad":
        written = anndata.read_h5ad(target)
        obs, probabilities = written.obs, written.obsm["canal_probabilities"]
        record = json.loads(written.uns["canal"])
        assert record["options"]["coarse"] == 0.7
        assert record["cell_ontology"] == about_ontology()
        assert record["cell_ontology"]["sha256"] == file_digest(TABLE)
    else:
        obs = pd.read_parquet(target) if suffix == ".parquet" else pd.read_csv(target, index_col=0)
        probabilities = obs[["canal_p_B", "canal_p_NK", "canal_p_T"]].to_numpy()
    assert list(obs)[list(obs).index("canal_low_quality") + 1 :][:3] == COLUMNS
    unlike = (obs["canal_is_novel"] | obs["canal_low_quality"]).to_numpy(dtype=bool)
    b, nk, t = probabilities.T
    wanted = np.select(
        [unlike, b >= 0.7, nk >= 0.7, t >= 0.7, b + t >= 0.7],
        ["Unassigned", "B", "NK", "T", "lymphocyte"],
        "Unassigned",
    )
    assert obs[COLUMNS[0]].astype(str).tolist() == wanted.tolist()
    assert {"Unassigned", "lymphocyte"} < set(wanted)
    assert unlike[0]
    ids = {"B": "CL:0000236", "T": "CL:0000084", "lymphocyte": "CL:0000542"}
    assert obs[COLUMNS[2]].tolist() == [ids.get(name, "unknown") for name in wanted]
    broad = wanted == "lymphocyte"
    np.testing.assert_allclose(obs[COLUMNS[1]][broad], (b + t)[broad], atol=1e-5)
    assert summary.to_json()["coarse_types"] == pd.Series(wanted).value_counts().to_dict()


def test_no_other_column_changes(unsure, adata):
    plain, coarse = (annotate_adata(unsure, adata, Options(coarse=one)) for one in (None, 0.8))
    pd.testing.assert_frame_equal(coarse.drop(columns=COLUMNS), plain)
    assert "cell_ontology" not in plain.attrs["canal"]
    assert "coarse_types" not in plain.attrs["canal"]


def test_cells_below_the_least_confidence_have_a_coarse_type_and_those_above_the_most_novelty_none(
    unsure, adata
):
    limits = Options(coarse=0.7, min_confidence=0.7, max_novelty=0.68)
    table = annotate_adata(unsure, adata, limits)
    coarse, novelty = table[COLUMNS[0]], table["canal_novelty"]
    assert ((table["canal_cell_type"] == "Unassigned") & (coarse == "lymphocyte")).any()
    assert (novelty > 0.68).any()
    assert set(coarse[novelty > 0.68]) == {"Unassigned"}


def test_ids_that_the_version_knows_come_before_names(unsure, adata):
    """T is told to be a monocyte: with B it is a leukocyte, and no lymphocyte."""
    told = unsure.with_ontology({"T": "CL:0000576"})
    names = set(annotate_adata(told, adata, Options(coarse=0.7))[COLUMNS[0]])
    assert "lymphocyte" not in names
    assert names & {"leukocyte", "mononuclear leukocyte"}


def test_types_that_are_no_term_are_told(unsure, adata):
    for ids, alone in (({}, ["NK"]), ({"T": "CL:9999999"}, ["NK", "T"]), ({"NK": "CL:0000623"}, None)):
        record = annotate_adata(unsure.with_ontology(ids), adata, Options(coarse=0.7)).attrs["canal"]
        told = [text for text in record["warnings"] if "--coarse" in text]
        assert told == [] if alone is None else f"has no term for {listed(alone)}: these" in told[0]


def test_labels_of_another_key_have_coarse_types_of_their_own(unsure, adata):
    table = annotate_adata(unsure, adata, Options(coarse=0.7, key_added="mine"))
    assert {"mine_coarse_type", "mine_coarse_confidence", "mine_coarse_type_ontology_term_id"} <= set(table)


def test_labels_without_coarse_types_take_away_those_of_before(unsure, adata, tmp_path):
    source, one, two = write_adata(adata, tmp_path / "in.h5ad"), tmp_path / "1.h5ad", tmp_path / "2.h5ad"
    annotate_h5ad(unsure, source, one, Options(coarse=0.7))
    annotate_h5ad(unsure, one, two)
    assert not set(COLUMNS) & set(anndata.read_h5ad(two).obs)


def test_partitions_have_the_coarse_types_of_the_file(unsure, adata, tmp_path):
    source, options = write_adata(adata, tmp_path / "in.h5ad"), Options(coarse=0.7)
    plan = shared_plan(unsure, [source], tmp_path / "out", options, 20, {"root": None})
    assert sum(label_partitions(plan, plan.partitions, unsure, options)) == 55
    (made,) = collect(
        plan, unsure, options, {str(source.resolve()): {"time": "2026-01-01T00:00:00.000+00:00"}}
    )
    table = pd.concat([pd.read_parquet(tmp_path / "out" / one.file) for one in plan.partitions])
    alone = label_h5ad(unsure, source, options)
    for name in COLUMNS:
        assert table[name].tolist() == alone[name].tolist()
    counts = alone[COLUMNS[0]].value_counts().to_dict()
    assert made["summary"]["coarse_types"] == made["record"]["coarse_types"] == counts


def test_an_interrupted_run_goes_on_with_the_same_bound_alone(unsure, adata, tmp_path):
    source, target = write_adata(adata, tmp_path / "in.h5ad"), tmp_path / "out.csv"

    def interrupt(done, n_cells):
        if done >= 20:
            raise KeyboardInterrupt

    options = Options(coarse=0.7, chunk_cells=10)
    with pytest.raises(KeyboardInterrupt):
        annotate_h5ad(unsure, source, target, options, Callbacks(on_cells=interrupt))
    with pytest.raises(DataError, match="another input, model or options"):
        annotate_h5ad(unsure, source, target, replace(options, coarse=0.8, resume=True))
    annotate_h5ad(unsure, source, target, replace(options, resume=True))
    written, alone = pd.read_csv(target, index_col=0), label_h5ad(unsure, source, options)
    assert written[COLUMNS[0]].tolist() == alone[COLUMNS[0]].tolist()


@pytest.mark.parametrize("bound", [0.5, 0, 1.1, True, "0.9"])
def test_a_bound_is_above_one_half(bound):
    with pytest.raises(DataError, match="--coarse: expected a"):
        Options(coarse=bound)
