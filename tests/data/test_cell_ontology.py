import gzip

import networkx as nx
import pytest

from canal.core.errors import DataError
from canal.data import cell_ontology as module
from canal.data.cell_ontology import RELEASE, ROOT, SHORT_NAMES, TABLE, Ontology, cell_ontology


@pytest.fixture(scope="module")
def ontology():
    return cell_ontology()


def test_it_is_a_graph_without_circles_in_which_all_terms_are_kinds_of_cell(ontology):
    edges = [(term, above) for term, several in ontology.parents.items() for above in several]
    graph = nx.DiGraph(edges)
    assert nx.is_directed_acyclic_graph(graph)
    assert set(graph.nodes) == ontology.names.keys() == ontology.parents.keys()
    assert len(ontology.names) > 3000
    assert {term for term, above in ontology.parents.items() if not above} == {ROOT}
    assert not any(name.startswith("obsolete") for name in ontology.names.values())
    assert len(set(ontology.names.values())) == len(ontology.names)
    assert all(ontology.depth[term] > ontology.depth[above] for term, above in edges)


@pytest.mark.parametrize(
    ("path", "not_above"),
    [
        (["CL:0000624", "CL:0000084", "CL:0000542", "CL:0000738", ROOT], "CL:0000236"),  # CD4, T, lymphocyte
        (["CL:0002057", "CL:0000576", "CL:0000738"], "CL:0000542"),  # CD14 monocyte, monocyte, leukocyte
        (["CL:0000169", "CL:0008024", "CL:0000066"], "CL:0000988"),  # beta, pancreatic endocrine, epithelial
    ],
)
def test_known_paths_lead_upwards(ontology, path, not_above):
    lineage = ontology.lineage(path[0])
    assert set(path) <= lineage
    assert not_above not in lineage
    depths = [ontology.depth[term] for term in path]
    assert depths == sorted(depths, reverse=True)
    assert ontology.lineage("CL:9999999") == frozenset()


def test_cells_of_no_animal_are_left_out(ontology):
    gone = {"prokaryotic cell", "fungal cell", "cell in vitro", "conidium"}
    assert not gone & set(ontology.names.values())


@pytest.mark.parametrize("name", ["B", "B cell", "b cells", " B-cell ", "B_CELLS"])
def test_a_name_is_found_whatever_its_case_and_number(ontology, name):
    assert ontology.id_of(name) == "CL:0000236"


def test_other_names_are_found_and_none_is_guessed(ontology):
    assert ontology.id_of("Monocytes") == "CL:0000576"
    assert ontology.id_of("natural killer") == "CL:0000623"
    assert ontology.id_of("CD4-positive, alpha-beta T cells") == "CL:0000624"
    for unknown in ("CD4 TN", "alpha", "alpha cell", "NKX", "", "s"):
        assert ontology.id_of(unknown) is None


def test_short_names_of_blood_cells_are_known(ontology):
    assert all(ontology.id_of(name.upper()) == term for name, term in SHORT_NAMES.items())
    assert ontology.names[ontology.id_of("CD14 Monos")] == "CD14-positive, CD16-negative classical monocyte"
    kinds = {
        "cd4 t": "T cell", "cd8 t": "T cell", "treg": "T cell", "gdt": "T cell", "mait": "T cell",
        "nk": "natural killer cell", "cd14 mono": "monocyte", "cd16 mono": "monocyte", "dc": "dendritic cell",
        "pdc": "dendritic cell", "mk": "megakaryocyte", "hspc": "hematopoietic precursor cell",
    }  # fmt: skip
    for name, kind in kinds.items():
        assert kind in {ontology.names[one] for one in ontology.lineage(SHORT_NAMES[name])}
    assert Ontology({}, {}).id_of("NK") is None


def test_a_name_of_two_terms_is_none():
    twice = Ontology({"CL:1": "T cell", "CL:2": "t cells"}, {"CL:1": (), "CL:2": ()})
    assert twice.id_of("T") is None


def test_the_table_names_source_licence_and_changes_and_is_small():
    text = gzip.decompress(TABLE.read_bytes()).decode()
    head = [line for line in text.splitlines() if line.startswith("#")]
    for words in (RELEASE, "http://purl.obolibrary.org/obo/cl.obo", "CC BY 4.0", "10.1186/s13326", "Changed"):
        assert any(words in line for line in head)
    assert TABLE.stat().st_size < 150_000


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"CL:0000000\tcell\n")])
def test_a_damaged_table_is_told(tmp_path, monkeypatch, content):
    damaged = tmp_path / "cell_ontology.tsv.gz"
    damaged.write_bytes(content)
    monkeypatch.setattr(module, "TABLE", damaged)
    with pytest.raises(DataError, match="cell_ontology.tsv.gz, is missing or damaged.*install canal again"):
        cell_ontology.__wrapped__()
