"""Where a version comes from: every node back to the raw bytes, and no damage on the way overlooked."""

import sqlite3

import pytest

from canal.core.errors import RegistryError
from canal.registry.provenance.lineage import lineage
from canal.registry.provenance.registered import ancestry, common_ancestor
from tests.support.registry_made import FIRST, Made, two_stages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return two_stages(tmp_path_factory.mktemp("made") / "project")


def traced(made, wanted="2"):
    store = made.project.store
    return lineage(store, store.version(wanted))


def reached(graph):
    """Ids of all nodes that the edges lead to from the version, itself included."""
    found, left = set(), [graph.nodes[0].id]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += [node.id for node in graph.origins(one)]
    return found


def test_everything_is_reached_back_to_the_backbone_and_the_raw_bytes(made):
    graph = traced(made)
    assert reached(graph) == {node.id for node in graph.nodes}
    assert [node.label for node in graph.chain] == [
        "canal-annotator 2 (second)",
        "canal-annotator 1 (first)",
        "canal-backbone 1",
    ]
    kinds = [node.kind for node in graph.nodes]
    counts = {"run": 3, "split": 2, "verdict": 2, "data": 2, "source": 2, "bytes": 2, "panel": 1}
    assert {kind: kinds.count(kind) for kind in counts} == counts
    ends = {node.id for node in graph.nodes} - {edge.product for edge in graph.edges}
    assert ends == {f"bytes:{'1' * 64}", f"bytes:{'2' * 64}"} | {
        node.id for node in graph.nodes if node.kind == "run"
    }


def test_the_graph_of_an_older_version_is_part_of_the_newer_one_s(made):
    older, newer = traced(made, "1"), traced(made, "2")
    assert set(older.edges) < set(newer.edges)
    assert {node.id for node in older.nodes} < {node.id for node in newer.nodes}


def test_nodes_say_what_is_known_of_them(made):
    by_label = {node.label: dict(node.facts) for node in traced(made).nodes}
    version = by_label["canal-annotator 2 (second)"]
    assert (version["aliases"], version["version"]) == ("candidate", 2)
    assert version["key"] == made.project.store.version("2").key
    split = by_label["split of first"]
    assert (split["train"], split["validation"], split["test"]) == (6, 2, 2)
    assert by_label["verdict on second"]["warnings"] == 1
    assert by_label["data set first"]["cells"] == 12


def test_a_lineage_that_began_with_published_weights_ends_in_their_files(tmp_path):
    made = Made(tmp_path / "project", {})
    first = made.stage("first", made.backbone(FIRST, made.imported()), FIRST, ["B", "T"])
    graph = lineage(made.project.store, first)
    assert [node.label for node in graph.chain][1:] == ["canal-backbone 2", "canal-backbone 1 (imported)"]
    begun = {edge.origin: edge.kind for edge in graph.edges if edge.product == graph.chain[2].id}
    assert begun[f"bytes:{'1' * 64}"] == begun[f"bytes:{'2' * 64}"] == "read from"
    kinds = {edge.kind for edge in graph.edges if edge.product == graph.chain[1].id}
    assert "imported" in kinds
    assert "trained on" not in kinds


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    "name",
    ["key.json", "record.json", "model/weights.safetensors", "bank/bank.h5ad", "metrics/evaluation.json"],
)
def test_a_changed_byte_anywhere_in_the_chain_is_named(tmp_path, number, name):
    made = two_stages(tmp_path / "project")
    path = made.folder(made.project.store.version(str(number))) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(RegistryError, match=name.replace(".", r"\.")):
        traced(made)


def test_a_parent_that_is_gone_is_named(tmp_path):
    made = two_stages(tmp_path / "project")
    with sqlite3.connect(made.root / "mlflow.db") as database:
        database.execute("DELETE FROM model_versions WHERE name = 'canal-backbone'")
    database.close()
    with pytest.raises(
        RegistryError, match=r"canal-annotator 1 was learned on a model with key .* not registered"
    ):
        traced(made)


def test_the_newest_shared_ancestor_is_found(tmp_path):
    made = two_stages(tmp_path / "project")
    store = made.project.store
    old, new = (ancestry(store, store.version(wanted)) for wanted in ("1", "2"))
    assert common_ancestor(old, new).version.number == 1
    assert common_ancestor(new, []) is None
