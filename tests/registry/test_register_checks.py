"""The ledger, the aliases and the versions against each other, whatever somebody did to one of them."""

import json
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canal.config.layout import Layout
from canal.core.digests import canonical_json
from canal.core.errors import ReadOnlyError
from canal.registry.audit.ledger_entries import (
    check_aliases,
    check_entries,
    check_ledger,
    check_registered,
    take_snapshot,
)
from canal.registry.audit.version_files import AuditLog
from canal.registry.audit.workspace import check_workspace
from canal.registry.ledger.ledger import Ledger, entry_hash
from tests.support.cells import make_config
from tests.support.registered import audited, open_store


@pytest.fixture
def store(registered):
    return open_store(registered)


def findings(store, content, path):
    """Return what is found where ``content`` is the ledger."""
    path.write_bytes(content)
    ledger, log = Ledger(path), AuditLog()
    snapshot = take_snapshot(store, ledger)
    check_ledger(ledger, snapshot, store, log)
    check_entries(snapshot.entries, store, None, log)
    check_registered(snapshot, store, log)
    check_aliases(snapshot, store, log)
    return [str(one) for one in log.findings]


@pytest.fixture
def before(store, tmp_path):
    return findings(store, store.layout.ledger.read_bytes(), tmp_path / "ledger.jsonl")


@pytest.fixture
def committed(store, tmp_path):
    """Return the path of a ledger of which git has a copy, as it has of a project's."""
    path = tmp_path / "committed" / "ledger.jsonl"
    path.parent.mkdir()
    path.write_bytes(store.layout.ledger.read_bytes())
    person = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (("init", "--quiet"), ("add", path.name), (*person, "commit", "--quiet", "-m", "moves")):
        subprocess.run(["git", *command], cwd=path.parent, check=True)
    return path


def test_a_version_deleted_with_plain_mlflow_is_missed(store):
    assert [str(one) for one in audited(store).findings] == [
        "version 2: the ledger has it (entry 3, register), the registry has not"
    ]


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_ledger_is_always_found_and_never_trips_the_audit(store, before, tmp_path, committed, data):
    """Any byte changed, any line lost, doubled or moved: findings, and no error.

    Of the last line, with a right hash of its own, no other line could tell: git's copy does.
    """
    whole = store.layout.ledger.read_bytes()
    lines = whole.splitlines(keepends=True)
    what = data.draw(st.sampled_from(["byte", "drop", "double", "swap", "value"]))
    place = data.draw(st.integers(0, len(lines) - 1))
    if what == "byte":
        content = bytearray(whole)
        at = data.draw(st.integers(0, len(whole) - 2))
        content[at] ^= data.draw(st.integers(1, 255))
        lines = [bytes(content)]
    elif what == "drop":
        lines.pop(place)
    elif what == "double":
        lines.insert(place, lines[place])
    elif what == "swap":
        other = data.draw(st.integers(0, len(lines) - 1).filter(lambda number: number != place))
        lines[place], lines[other] = lines[other], lines[place]
    else:
        document = json.loads(lines[place])
        field = data.draw(st.sampled_from(["seq", "version", "aliases", "details", "key", "kind", "model"]))
        document[field] = data.draw(st.sampled_from([None, [], ["x"], {"x": 1}, "x", 7.5]))
        lines[place] = canonical_json(document | {"hash": entry_hash(document)}).encode() + b"\n"
    chained = what != "value" or place < len(lines) - 1
    path = tmp_path / "ledger.jsonl" if chained else committed
    assert set(findings(store, b"".join(lines), path)) - set(before)


def test_a_project_that_registered_nothing_holds(tmp_path):
    store = open_store(tmp_path)
    report = audited(store)
    assert (report.findings, report.versions) == ((), ())
    assert not Layout(tmp_path).ledger.exists()


def test_a_project_that_may_only_be_read_is_audited(store, monkeypatch):
    """As root, who may write anywhere, the lock has to be told so."""
    import errno

    from filelock import FileLock

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refused)
    assert "version 2" in str(audited(store).findings[0])
    with pytest.raises(ReadOnlyError, match="Permission denied; nothing was changed"), store.lock("registry"):
        pass


@pytest.mark.parametrize("name", ["dvc.lock", "data.dvc"])
def test_a_file_of_dvc_that_cannot_be_read_is_found_and_one_that_is_not_there_is_told(tmp_path, name):
    """Everything held where git had left its marks: nothing had been compared."""
    layout, config = Layout(tmp_path), make_config()

    def looked():
        log = AuditLog()
        check_workspace(layout, config, ["first"], log)
        return [str(one) for one in log.findings], [str(one) for one in log.notes]

    findings, notes = looked()
    assert (findings, len(notes)) == ([], 1)
    for one in ("dvc.lock", "data.dvc"):
        (tmp_path / one).write_text("stages: {}\n")
    findings, notes = looked()
    assert notes == []
    assert [one[:45] for one in findings] == ["workspace: dvc.lock lies in no git repository"]
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    findings, notes = looked()
    assert findings == []
    assert notes == ["workspace: dvc.lock is not committed to git as it lies here: git add dvc.lock"]
    subprocess.run(["git", "add", "dvc.lock"], cwd=tmp_path, check=True)
    person = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", *person, "commit", "--quiet", "-m", "learned"], cwd=tmp_path, check=True)
    assert looked() == ([], [])
    (tmp_path / name).write_text("<<<<<<< HEAD\nstages: {}\n=======\n>>>>>>> other\n")
    findings, notes = looked()
    assert notes == []
    assert findings == [
        f"workspace: {name} is no YAML that can be read: nothing was compared with it; git checkout -- {name}"
    ]


@pytest.mark.parametrize("place", [".dvc/config", ".dvc/config.local", "home/dvc/config"])
def test_a_cache_that_projects_share_tells_which_file_of_a_folder_differs(tmp_path, monkeypatch, place):
    """With the cache elsewhere only the folder had been named."""
    import hashlib

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    listing = json.dumps([{"md5": "0" * 32, "relpath": "b.csv"}]).encode()
    digest = f"{hashlib.md5(listing).hexdigest()}.dir"
    cached = tmp_path / "shared" / "files" / "md5" / digest[:2] / digest[2:]
    for path in (cached, tmp_path / place, tmp_path / "splits" / "b.csv"):
        path.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(listing)
    (tmp_path / place).write_text(f"[cache]\n    dir = {tmp_path / 'shared'}\n    type = symlink\n")
    (tmp_path / "splits" / "b.csv").write_text("changed\n")
    outs = f"outs: [{{path: splits, md5: {digest}}}]"
    (tmp_path / "dvc.lock").write_text(f"stages: {{split: {{cmd: x, {outs}}}}}\n")
    log = AuditLog()
    check_workspace(Layout(tmp_path), make_config(), ["first"], log)
    assert any("splits/b.csv is not what dvc.lock" in str(one) for one in log.findings)
