"""Versions of a server are brought once, whole, and only as they were registered."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from canal.core.digests import tree_digests
from canal.core.errors import RegistryError
from canal.registry.promotion.moves import moving
from canal.registry.promotion.promotion import Decision, promote
from canal.registry.store import store as downloads
from canal.registry.store.database import Version
from canal.registry.versions.history import restore_model, verified
from tests.support.registered import OVERRIDDEN

pytestmark = pytest.mark.xdist_group("backends")  # servers and databases are made once


@pytest.fixture
def server(use):
    return use("server")


def stored(server, store, version, name):
    """Return where a server keeps a file of a version."""
    location = store.client.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    return Path(server.folder) / "artifacts" / location.removeprefix("mlflow-artifacts:/") / name


def test_a_version_is_brought_once_and_again_where_it_was_cleared_or_damaged(server, new_folder, monkeypatch):
    folder = new_folder("a")
    folder.register(1)
    project = folder.project()
    version = project.store.version("1")
    brought = []

    def download(store, one, target):
        brought.append(one.number)
        kept(store, one, target)

    kept = downloads.download
    monkeypatch.setattr(downloads, "download", download)
    place, key = verified(project.store, version)
    assert {name: digest for name, digest in tree_digests(place).items() if name in key["files"]} == key[
        "files"
    ]
    assert place == project.layout.private / "versions" / version.record
    restore_model(folder.project().store, version, folder.root / "restored")
    assert tree_digests(folder.root / "restored") == tree_digests(project.layout.model("first"))
    assert brought == [1]
    (place / "key.json").unlink()
    assert verified(folder.project().store, version)[0] == place
    (place / "model" / "labels.json").write_text("[]")
    assert verified(folder.project().store, version)[0] == place
    assert brought == [1, 1, 1]


def test_an_audit_takes_no_copy_away_and_judges_what_the_server_has_now(server, new_folder):
    folder = new_folder("a")
    folder.register(1)
    project = folder.project()
    version = project.store.version("1")
    folder.findings()
    place = project.layout.private / "versions"
    assert [one.name for one in place.iterdir()] == [version.record]  # what nobody had a copy of stays
    copy, shared = (place / version.record).stat().st_ino, project.store.artifacts(version)
    (shared / "model" / "labels.json").write_text("[]")
    assert not any("labels.json" in what for what in folder.findings())
    path = stored(server, project.store, version, "model/labels.json")
    before = path.read_bytes()
    path.write_bytes(b"[]")
    assert any("labels.json" in what for what in folder.findings())
    path.write_bytes(before)
    assert [one.name for one in place.iterdir()] == [version.record]
    assert (place / version.record).stat().st_ino == copy
    assert verified(folder.project().store, version)[0] == shared
    assert (shared / "model" / "labels.json").read_bytes() == before


def test_an_audit_waits_for_another_folder_that_moves_something(server, new_folder):
    """It looks when the other one is done, and is told that it is behind, and of nothing else."""
    folder, other = new_folder("a"), new_folder("b")
    folder.register(2)
    other.canal("ledger", "--catch-up")
    before = folder.findings()
    store = other.project().store
    with moving(store) as ledger:
        audited = ThreadPoolExecutor(1).submit(folder.findings)
        time.sleep(1)
        assert not audited.done()
        version = store.version("1")
        promote(store, ledger, version, OVERRIDDEN, Decision("Ada", "reviewed"))
    new = [what for what in audited.result() if what not in before]
    assert len(new) == 1
    assert "canal ledger --catch-up" in new[0]


def test_what_the_server_changed_is_refused_and_not_kept(server, new_folder):
    folder = new_folder("a")
    folder.register(1)
    project = folder.project()
    version = project.store.version("1")
    for name in ("model/weights.safetensors", "record.json"):
        path = stored(server, project.store, version, name)
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(RegistryError, match=rf"version 1 of [^$]*{name}"):
            project.store.artifacts(version)
        path.write_bytes(before)
    assert not list((project.layout.private / "versions").glob("*"))
    assert not list((project.layout.private / "versions").glob(".*"))
    path.unlink()
    with pytest.raises(RegistryError, match=r"record\.json is not the one"):
        project.store.artifacts(version)


@pytest.mark.parametrize("record", ["", "../../x", "0" * 63, "0" * 64 + "/.."])
def test_a_record_tag_is_never_a_way_out_of_the_folder(server, new_folder, record):
    store = new_folder("a").project().store
    version = replace(_version(store), record=record)
    with pytest.raises(RegistryError, match=r"no SHA-256"):
        store.artifacts(version)


def _version(store):
    return Version(
        model=store.names.model, number=1, stage="first", branch=1, key="", request="", record="", parent="",
        status="ready", aliases=(), run_id="", source="models:/m-0", created=0,
    )  # fmt: skip


def test_a_place_that_this_machine_cannot_reach_is_named(server, new_folder):
    store = new_folder("a").project().store
    version = replace(_version(store), record="0" * 64)
    with pytest.raises(RegistryError, match=r"cannot be downloaded from http://.*models:/m-0"):
        store.artifacts(version)
