"""A version carried from one learned project to another, and learned again from its commit."""

from __future__ import annotations

import json
import os
import shutil
import zipfile

import pytest

from canal.app.versions import registry_sync
from canal.core.errors import AuditError, RegistryError
from canal.registry.audit.full_audit import audit
from canal.registry.ledger.signing import add_to_keyring, new_key
from canal.registry.promotion.moves import ledger_of
from canal.registry.transfer.exchange import export_bundle, import_bundle
from canal.registry.transfer.proof import held_cells, proven_bundle
from tests.pipeline.conftest import Line
from tests.support.bundle_files import members_naming, named_cells

pytestmark = pytest.mark.pipeline


def other_project(line, target):
    """Return another team's project of the same parameters, which learned nothing and has no data."""
    target.mkdir()
    shutil.copyfile(line.root / "params.yaml", target / "params.yaml")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return Line(target)


def ids(graph, kind):
    return {node["id"] for node in graph["nodes"] if node["kind"] == kind}


@pytest.fixture
def original(line):
    """The version that is carried to another project, as this one's registry has it."""
    return line.project().store.version("2")


@pytest.fixture
def other(line, original, tmp_path):
    """Another team's project that imported this one's second version, and signed that."""
    line.canal("export", "candidate", "-o", str(tmp_path / "second.zip"))
    other = other_project(line, tmp_path / "other")
    pem, ring = tmp_path / "key.pem", tmp_path / "keyring.txt"
    add_to_keyring(ring, new_key(pem, "A. Person").line, "register")
    imported = json.loads(other.canal("import", str(tmp_path / "second.zip"), "--sign", str(pem), "--json"))
    assert (imported["version"], imported["stage"], imported["made"]) == (1, "second", True)
    assert "backbone, first, not registered here" in imported["notes"][0]
    return other


def test_a_version_is_exported_to_the_same_bytes_and_never_over_another_file(line, tmp_path):
    bundle, store = tmp_path / "second.zip", line.project().store
    line.canal("export", "candidate", "-o", str(bundle))
    made = export_bundle(store, "2", tmp_path / "again.zip")
    assert made.path.read_bytes() == bundle.read_bytes()
    with pytest.raises(RegistryError, match="is there already; --overwrite"):
        export_bundle(store, "2", bundle)


def test_an_imported_version_is_proven_serves_and_is_registered_once(line, original, other, tmp_path):
    other.canal("audit", "--require-signed", str(tmp_path / "keyring.txt"))
    project = other.project()
    version = project.store.version("candidate")
    assert (version.number, version.key) == (1, original.key)
    entry = ledger_of(project.store).entries()[-1]
    assert entry.document["details"]["imported"] == version.imported
    assert version.imported.startswith("canal-annotator 2, manifest ")
    assert audit(project.store, project.layout, project.config).findings == ()
    assert json.loads(other.canal("import", str(tmp_path / "second.zip"), "--json"))["made"] is False
    assert len(project.store.versions()) == 1
    other.canal("annotate", str(line.root / "raw" / "third.h5ad"), "-o", str(tmp_path / "out.h5ad"))
    shown = json.loads(other.canal("show", "1", "--json"))
    assert (shown["stage"], shown["git_commit"]) == ("second", original.commit)
    assert project.learned("second") is None


def test_an_imported_version_comes_from_the_same_data_and_its_ancestors_are_elsewhere(line, other):
    here, far = (json.loads(one.canal("lineage", "candidate", "--json")) for one in (line, other))
    for kind in ("bytes", "split", "data", "verdict", "panel"):
        assert ids(here, kind) == ids(far, kind)
    chain = [node["label"] for node in far["nodes"] if node["kind"] in ("version", "backbone")]
    assert chain[1:] == ["canal-annotator elsewhere (first)", "canal-backbone elsewhere"]
    impact = json.loads(other.canal("impact", "first", "--json"))
    assert [(one["version"], one["grade"], one["elsewhere"]) for one in impact["versions"]] == [
        (0, "learned", True),
        (0, "learned", True),
        (1, "learned", False),
    ]
    assert not [step for step in impact["steps"] if "retire 0" in step["text"]]


def test_an_imported_version_is_carried_on_with_the_ledger_it_came_from(line, other, tmp_path):
    store = other.project().store
    version = store.version("1")
    onward = export_bundle(store, "1", tmp_path / "onward.zip")
    with zipfile.ZipFile(onward.path) as archive:
        assert any(name.startswith("version/origins/") for name in archive.namelist())
    third = other_project(line, tmp_path / "third").project()
    again = import_bundle(third.store, onward.path)
    assert (again.version.number, again.version.key) == (1, version.key)
    assert audit(third.store, third.layout, third.config).findings == ()
    folder = third.store.artifacts(again.version)
    (folder / "origins" / version.record / "ledger.jsonl").write_text("")
    said = [one.what for one in audit(third.store, third.layout, third.config).findings]
    assert said[0].startswith(f"origins/{version.record}/ledger.jsonl has sha256")


@pytest.mark.chaos
def test_an_imported_version_is_handed_on_without_cells(line, other, tmp_path):
    other.canal("export", "1", "-o", str(tmp_path / "bare.zip"), "--without-cells")
    other.canal("export", "1", "-o", str(tmp_path / "whole.zip"))
    cells = named_cells(*(line.root / "splits" / f"{stage}.csv" for stage in ("first", "second")))
    assert members_naming(tmp_path / "bare.zip", cells) == {}
    assert set().union(*members_naming(tmp_path / "whole.zip", cells).values()) == cells
    with proven_bundle(tmp_path / "bare.zip") as (_, _, chain):
        assert held_cells(chain) == {"bank": 0, "probe": 0, "named": 0}


def test_a_damaged_version_is_not_exported_and_one_from_here_not_imported_twice(line, tmp_path):
    project = line.project()
    made = export_bundle(project.store, "2", tmp_path / "second.zip")
    before = project.layout.ledger.read_bytes()
    imported = import_bundle(project.store, made.path)
    assert (imported.version.number, imported.made) == (2, False)
    assert project.layout.ledger.read_bytes() == before
    path = project.store.artifacts(project.store.version("2")) / "figures" / "recall.png"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(AuditError, match=r"figures/recall\.png has sha256"):
        export_bundle(project.store, "2", tmp_path / "damaged.zip")
    assert not (tmp_path / "damaged.zip").exists()
    assert registry_sync(project).made == ()


def test_a_version_is_learned_again_from_its_commit_bit_for_bit(line):
    said = line.canal("audit", "1", "--reproduce", "--json")
    document = json.loads(said[said.index("{") :])["reproduction"]
    assert (document["same_key"], document["differing"], document["reproduced"]) == (True, [], True)
    assert line.run("git", "worktree", "list").count("\n") == 1
    with (line.root / "constraints.txt").open("a") as stream:
        stream.write("# changed\n")
    with pytest.raises(AssertionError, match=r"another constraints\.txt"):
        line.canal("audit", "1", "--reproduce")
