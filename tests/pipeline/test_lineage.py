"""A real line traced: from a version to its raw bytes, from a labelled file to its version, and back."""

import csv
import json

import anndata
import pytest

from canal.annotation.records import genuine
from canal.core.digests import file_digest
from canal.core.files import read_json
from canal.registry.provenance.exposure import CellsSeen
from canal.registry.provenance.lineage import BANK

pytestmark = pytest.mark.pipeline


def said(line, *arguments):
    """What a command prints as JSON; notices go to stderr."""
    printed = line.canal(*arguments, "--json")
    return json.loads(printed[printed.index("{") :])


@pytest.fixture
def labelled(line, tmp_path):
    """The third source's file labelled by both versions: number -> path."""
    source, paths = str(line.root / "raw" / "third.h5ad"), {}
    for number in ("1", "2"):
        paths[number] = tmp_path / f"by-{number}.h5ad"
        line.canal("annotate", source, "-o", str(paths[number]), "--model", number)
    return paths


def a_replayed_cell(cells_seen):
    """A cell of the first stage that the newest version learned from its bank."""
    return sorted(cells_seen.replayed(cells_seen.versions[-1]))[0]


def test_the_lineage_of_a_version_ends_at_the_raw_bytes(line):
    graph = said(line, "lineage", "candidate")
    ends = {node["facts"]["sha256"] for node in graph["nodes"] if node["kind"] == "bytes"}
    assert ends == {file_digest(line.root / "raw" / f"{name}.h5ad") for name in ("first", "second")}
    chain = [node["label"] for node in graph["nodes"] if node["kind"] in ("version", "backbone")]
    assert chain == ["canal-annotator 2 (second)", "canal-annotator 1 (first)", "canal-backbone 1"]
    newest, older = (node["id"] for node in graph["nodes"] if node["kind"] == "version")
    handed = [edge["kind"] for edge in graph["edges"] if (edge["product"], edge["origin"]) == (newest, older)]
    assert handed == ["learned on", BANK]


def test_a_version_remembers_how_many_cells_it_has_seen_in_which_role(line):
    cells_seen = CellsSeen(line.project().store)
    newest = cells_seen.versions[-1]
    history = read_json(newest.folder / "history.json")
    assert len(cells_seen.replayed(newest)) == history["n_replay"] > 0
    assert len(cells_seen.probed(newest)) == history["n_probe"] > 0
    splits = cells_seen.splits(newest)
    assert splits is not None
    (split,) = splits
    assert (split["set"] == "train").sum() == history["n_train"]
    found = said(line, "lineage", "--cell", a_replayed_cell(cells_seen))["versions"]
    assert [(one["model"], "replayed" in one["roles"]) for one in found] == [
        ("canal-backbone", False),
        ("canal-annotator", False),
        ("canal-annotator", True),
    ]


def test_a_labelled_file_says_which_version_labelled_which_bytes(line, labelled):
    source, store = line.root / "raw" / "third.h5ad", line.project().store
    input_ = {"name": source.name, "bytes": source.stat().st_size, "sha256": file_digest(source)}
    for number, path in labelled.items():
        about = said(line, "who", str(path))
        record, version = about["record"], store.version(number)
        assert genuine(record)
        assert (record["model"]["key"], record["model"]["record"]) == (version.key, version.record)
        assert record["input"] == input_
        assert (about["registry"]["version"], about["registry"]["logged"]) == (int(number), True)
    log = (line.root / "annotations.jsonl").read_text().splitlines()
    assert log[-2:] == [anndata.read_h5ad(path).uns["canal"] for path in labelled.values()]


def test_the_impact_of_a_cell_names_the_files_that_versions_with_it_labelled(line, labelled):
    cells_seen = CellsSeen(line.project().store)
    splits = cells_seen.splits(cells_seen.versions[-1])
    assert splits is not None
    (split,) = splits
    new = split["cell_id"][split["set"] == "train"].iloc[0]
    ids = {
        json.loads(anndata.read_h5ad(path).uns["canal"])["id"]: number for number, path in labelled.items()
    }
    for stage, cell, versions in (("first", a_replayed_cell(cells_seen), ["1", "2"]), ("second", new, ["2"])):
        touched = said(line, "impact", stage, "--cell", cell)
        assert [ids[one["id"]] for one in touched["annotations"] if one["id"] in ids] == versions
    assert touched["aliases"] == {"candidate": 2}


def test_what_differs_between_two_versions_is_what_their_labels_say(line, labelled, tmp_path):
    cells = tmp_path / "changed.csv"
    file = str(line.root / "raw" / "third.h5ad")
    changes = said(line, "diff", "1", "2", file, "--cells", str(cells))
    old, new = (anndata.read_h5ad(one).obs["canal_cell_type"].astype(str) for one in labelled.values())
    assert changes["labels"]["added"] == ["Mono"]
    assert changes["file"]["changed"] == int((old != new).sum()) > 0
    assert sum(flow["n"] for flow in changes["file"]["flows"]) == changes["file"]["changed"]
    with cells.open(newline="") as stream:
        rows = {row["cell"]: (row["before"], row["after"]) for row in csv.DictReader(stream)}
    assert rows == {name: (old[name], new[name]) for name in old.index[old != new]}
