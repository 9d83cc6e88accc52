"""A real line traced: from a version to its raw bytes, from a labelled file to its version, and back."""

import csv
import json

import anndata
import pytest

from canal.annotation.records import genuine
from canal.core.digests import file_digest
from canal.core.files import read_json
from canal.registry.provenance.exposure import CellsSeen

pytestmark = pytest.mark.pipeline


def said(line, *arguments):
    """What a command prints as JSON; notices go to stderr."""
    printed = line.canal(*arguments, "--json")
    return json.loads(printed[printed.index("{") :])


def test_from_raw_bytes_to_labelled_files_and_back(line, tmp_path):
    raw = {name: file_digest(line.root / "raw" / f"{name}.h5ad") for name in ("first", "second", "third")}
    store = line.project().store

    graph = said(line, "lineage", "candidate")
    ends = {node["facts"]["sha256"] for node in graph["nodes"] if node["kind"] == "bytes"}
    assert ends == {raw["first"], raw["second"]}
    chain = [node["label"] for node in graph["nodes"] if node["kind"] in ("version", "backbone")]
    assert chain == ["canal-annotator 2 (second)", "canal-annotator 1 (first)", "canal-backbone 1"]

    cells_seen = CellsSeen(store)
    newest = cells_seen.versions[-1]
    history = read_json(newest.folder / "history.json")
    assert len(cells_seen.replayed(newest)) == history["n_replay"] > 0
    assert len(cells_seen.probed(newest)) == history["n_probe"] > 0
    (split,) = cells_seen.splits(newest)
    assert (split["set"] == "train").sum() == history["n_train"]
    replayed = sorted(cells_seen.replayed(newest))[0]
    found = said(line, "lineage", "--cell", replayed)["versions"]
    assert [(one["model"], "replayed" in one["roles"]) for one in found] == [
        ("canal-backbone", False),
        ("canal-annotator", False),
        ("canal-annotator", True),
    ]

    labelled = {}
    for number in ("1", "2"):
        path = tmp_path / f"by-{number}.h5ad"
        line.canal("annotate", str(line.root / "raw" / "third.h5ad"), "-o", str(path), "--model", number)
        labelled[number] = anndata.read_h5ad(path)
        about = said(line, "who", str(path))
        record, version = about["record"], store.version(number)
        assert genuine(record)
        assert (record["model"]["key"], record["model"]["record"]) == (version.key, version.record)
        assert record["input"] == {
            "name": "third.h5ad",
            "bytes": (line.root / "raw" / "third.h5ad").stat().st_size,
            "sha256": raw["third"],
        }
        assert (about["registry"]["version"], about["registry"]["logged"]) == (int(number), True)
    log = (line.root / "annotations.jsonl").read_text().splitlines()
    assert log == [cells.uns["canal"] for cells in labelled.values()]

    exposures = said(line, "impact", "first", "--cell", replayed)
    assert [one["model"]["version"] for one in exposures["annotations"]] == [1, 2]
    new = split["cell_id"][split["set"] == "train"].iloc[0]
    exposures = said(line, "impact", "second", "--cell", new)
    assert [one["model"]["version"] for one in exposures["annotations"]] == [2]
    assert exposures["aliases"] == {"candidate": 2}

    cells = tmp_path / "changed.csv"
    file = str(line.root / "raw" / "third.h5ad")
    changes = said(line, "diff", "1", "2", file, "--cells", str(cells))
    old, new = (one.obs["canal_cell_type"].astype(str) for one in labelled.values())
    assert changes["labels"]["added"] == ["Mono"]
    assert changes["file"]["changed"] == int((old != new).sum()) > 0
    assert sum(flow["n"] for flow in changes["file"]["flows"]) == changes["file"]["changed"]
    with cells.open(newline="") as stream:
        rows = {row["cell"]: (row["before"], row["after"]) for row in csv.DictReader(stream)}
    assert rows == {name: (old[name], new[name]) for name in old.index[old != new]}
