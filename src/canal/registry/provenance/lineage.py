"""The provenance graph of a version: versions, runs, data sets, splits, verdicts, sources and raw bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from canal.core.digests import json_digest
from canal.core.files import read_json
from canal.data.split import reported_sets
from canal.registry.manifest.version_folder import cells_requests
from canal.registry.provenance.registered import RegisteredVersion, ancestry
from canal.registry.store.database import Version
from canal.registry.store.store import Store

FORMAT = 1
BANK, SUMS = "keeps bank cells of", "keeps the sums of"
"""What a version has from its parents, beside the model that it was learned on."""

Kind = Literal["version", "backbone", "run", "verdict", "split", "panel", "data", "source", "bytes"]
Fact = str | int | float | bool | None

_SPLIT, _VERDICT, _EVALUATION = "split/cells.json", "validation/verdict.json", "metrics/evaluation.json"
_BANK = "bank/bank.h5ad"
_IMPORT_FILES = {"checkpoint": "checkpoint", "genes": "gene list", "gene_vectors": "gene vectors"}


@dataclass(frozen=True)
class Node:
    """A node of the provenance graph: a version, or something that it was made from.

    Attributes
    ----------
    id : str
        Its kind and what identifies it: a digest, a run, a model with its number.
    kind : str
    label : str
        A short name for people.
    facts : dict
        What else is known; digests are not shortened.
    """

    id: str
    kind: Kind
    label: str
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {"id": self.id, "kind": self.kind, "label": self.label, "facts": dict(self.facts)}


@dataclass(frozen=True)
class Edge:
    """``product`` was made from ``origin``; both are ids of nodes, ``kind`` says how."""

    product: str
    origin: str
    kind: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {"product": self.product, "origin": self.origin, "kind": self.kind}


@dataclass(frozen=True)
class Graph:
    """The lineage of one version.

    Attributes
    ----------
    nodes : tuple of Node
        The version first, then each ancestor, each followed by the nodes that it adds.
    edges : tuple of Edge
        Every edge leads from a node to one further back.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @property
    def chain(self) -> list[Node]:
        """The version and its ancestors, itself first."""
        return [node for node in self.nodes if node.kind in ("version", "backbone")]

    def origins(self, product: str) -> list[Node]:
        """Return the nodes that a node was made from."""
        by_id = {node.id: node for node in self.nodes}
        return [by_id[edge.origin] for edge in self.edges if edge.product == product]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "format": FORMAT,
            "nodes": [node.to_json() for node in self.nodes],
            "edges": [edge.to_json() for edge in self.edges],
        }


def lineage(store: Store, version: Version) -> Graph:
    """Return the graph from a version back to the raw bytes, after checking every file on the way.

    Raises
    ------
    RegistryError
        If an ancestor is neither registered nor came along, or a file holds other bytes than registered.
    """
    return graph(ancestry(store, version))


def graph(chain: Sequence[RegisteredVersion]) -> Graph:
    """Return the graph of an ancestry, the version first; see `registered.ancestry`."""
    nodes: dict[str, Node] = {}
    edges: dict[Edge, None] = {}
    by_key = {one.digest: one for one in chain}
    for one in chain:
        for node in _nodes(one):
            nodes.setdefault(node.id, node)
        for edge in _edges(one, by_key):
            edges.setdefault(edge)
    return Graph(tuple(nodes.values()), tuple(edges))


def _nodes(one: RegisteredVersion) -> list[Node]:
    """Return a version and all that its documents name; a stage's documents say more than a backbone's."""
    nodes = [_version(one), _run(one)]
    if one.imported:
        return [*nodes, *_import_bytes(one)]
    key = one.key
    nodes += [_verdict(one), _split(one), _data(one)]
    if not one.is_annotator:
        nodes.append(Node(f"panel:{key['panel']}", "panel", "gene panel", {"sha256": key["panel"]}))
    for cells in cells_requests(key):
        nodes += [_source(cells), _bytes(cells["declaration"]["sha256"])]
    return [*nodes, _bundle(one)] if "merged" in key and one.merged_with is None else nodes


def _edges(one: RegisteredVersion, known: Mapping[str, RegisteredVersion]) -> list[Edge]:
    me, key = _version_id(one), one.key
    edges = [Edge(me, f"run:{one.record['run']}", "registered by")]
    how = "imported" if one.adopted else "merged from" if "merged" in key else "learned on"
    edges += [Edge(me, _version_id(known[parent]), how) for parent in one.parents if parent in known]
    for parent in (known[parent] for parent in one.parents if parent in known):
        if _BANK in one.files and _BANK in parent.files:
            edges.append(Edge(me, _version_id(parent), BANK))
        if key.get("sums", {}).items() & parent.key.get("sums", {}).items():
            edges.append(Edge(me, _version_id(parent), SUMS))
    if "merged" in key and one.merged_with is None:
        edges.append(Edge(me, _bundle(one).id, how))
    if one.imported:
        return edges + [Edge(me, node.id, "read from") for node in _import_bytes(one)]
    split, verdict = f"split:{key['split']}", f"verdict:{key['verdict']}"
    data, panel = f"data:{key['data']['prepared_sha256']}", f"panel:{key['panel']}"
    if one.is_annotator:
        edges.append(Edge(me, split, "trained on"))
    else:
        edges.append(Edge(me, panel, "reads the genes of"))
        edges.append(Edge(panel, split, "chosen on the training cells of"))
        if not one.adopted:
            edges.append(Edge(me, split, "trained on"))
    edges += [
        Edge(me, verdict, "admitted by"),
        Edge(split, data, "divides"),
        Edge(verdict, data, "judges"),
    ]
    for cells in cells_requests(key):
        source = _source(cells).id
        if cells["source"] == key["data"]["source"]:
            edges.append(Edge(data, source, "prepared as declared by"))
        else:
            edges.append(Edge(me, source, "also trained on"))
        edges.append(Edge(source, f"bytes:{cells['declaration']['sha256']}", "reads"))
    return edges


def _version_id(one: RegisteredVersion) -> str:
    return f"version:{one.version.model}/{one.version.key if one.elsewhere else one.version.number}"


def _version(one: RegisteredVersion) -> Node:
    version, key = one.version, one.key
    facts: dict[str, Fact] = {
        "version": version.number,
        "stage": version.stage,
        "branch": version.branch,
        "aliases": ", ".join(version.aliases),
        "retired": version.retired,
        "key": version.key,
        "record": version.record,
        "sums of": ", ".join(key.get("sums", {})),
        "basis": key.get("basis", {}).get("digest"),
        "network of": key.get("backfilled"),
        "merged": key.get("merged", {}).get("equals"),
        "common cells": key.get("merged", {}).get("overlap", {}).get("checked"),
        "without cells of": key.get("unlearned", {}).get("version"),
        "code": key.get("code"),
        "lock": key.get("lock"),
        "git commit": one.record["git_commit"],
        "uncommitted changes": one.record["dirty"],
        "registered": datetime.fromtimestamp(version.created / 1000, UTC).isoformat(timespec="seconds"),
    }
    if one.holds(_EVALUATION):
        measured = read_json(one.folder / _EVALUATION)
        for name, value in (
            ("accuracy", measured["row"].get(version.stage)),
            ("average accuracy", measured["average_accuracy"]),
        ):
            facts[name] = None if value is None else round(value, 4)
    label = f"{one.name} ({version.stage})" if one.is_annotator or one.imported else one.name
    known = {name: value for name, value in facts.items() if value not in (None, "", False)}
    return Node(_version_id(one), "version" if one.is_annotator else "backbone", label, known)


def _run(one: RegisteredVersion) -> Node:
    record = one.record
    facts = {name: record[name] for name in ("host", "platform", "user", "time") if record.get(name)}
    return Node(f"run:{record['run']}", "run", f"run {record['run'][:8]}", {"id": record["run"], **facts})


def _verdict(one: RegisteredVersion) -> Node:
    digest, facts = one.key["verdict"], {}
    if one.holds(_VERDICT):
        verdict = read_json(one.folder / _VERDICT)
        broken = [rule["severity"] for rule in verdict["rules"] if not rule["passed"]]
        facts = {
            "passed": verdict["passed"],
            "rules": len(verdict["rules"]),
            "errors": broken.count("error"),
            "warnings": broken.count("warning"),
        }
    label = f"verdict on {one.key['data']['source']}"
    return Node(f"verdict:{digest}", "verdict", label, {**facts, "sha256": digest})


def _split(one: RegisteredVersion) -> Node:
    digest, facts = one.key["split"], {}
    if one.holds(_SPLIT):
        counts = read_json(one.folder / _SPLIT)["counts"].values()
        words = reported_sets(set().union(*counts))
        facts = {name: sum(sets[name] for sets in counts) for name in words}
    label = f"split of {one.key['data']['source']}"
    return Node(f"split:{digest}", "split", label, {**facts, "sha256": digest})


def _data(one: RegisteredVersion) -> Node:
    data, facts = one.key["data"], {}
    if one.holds(_VERDICT):
        counts = read_json(one.folder / _VERDICT)["counts"]
        facts = {"cells": counts["cells"], "genes": counts["genes"], "types": len(counts["types"])}
    digest = data["prepared_sha256"]
    return Node(f"data:{digest}", "data", f"data set {data['source']}", {**facts, "sha256": digest})


def _source(cells: Mapping[str, Any]) -> Node:
    """Return a source as it was declared: another declaration of the same file is another source."""
    declaration = cells["declaration"]
    exclude = declaration.get("exclude") or {}
    facts: dict[str, Fact] = {
        "label": declaration["label"],
        "values": declaration["values"],
        "layer": declaration["layer"],
        "excluded cells": len(exclude.get("cells", ())),
        "excluded batches": len(exclude.get("batches", ())),
    }
    digest = json_digest(declaration)
    known = {name: value for name, value in facts.items() if value}
    return Node(
        f"source:{cells['source']}@{digest[:12]}",
        "source",
        f"source {cells['source']}",
        {**known, "declaration": digest},
    )


def _bytes(digest: str, what: str = "raw bytes") -> Node:
    return Node(f"bytes:{digest}", "bytes", what, {"sha256": digest})


def _bundle(one: RegisteredVersion) -> Node:
    """Return the bundle of sums that was merged into a version."""
    digest = one.key["merged"]["other"]
    stages = ", ".join(one.key["merged"]["stages"])
    return Node(f"bytes:{digest}", "bytes", f"shared sums of {stages}", {"sha256": digest})


def _import_bytes(one: RegisteredVersion) -> list[Node]:
    request = one.key["request"]
    return [_bytes(request[name], what) for name, what in _IMPORT_FILES.items() if request.get(name)]
