"""A lost registry made again: the same numbers, keys, aliases and retirements, and gaps that stay gaps."""

import shutil

import pytest

from canal.config.layout import Layout
from canal.core.errors import RegistryError
from canal.core.files import read_json
from canal.registry.ledger.ledger import Draft
from canal.registry.promotion.moves import ledger_of, moving
from canal.registry.promotion.promotion import register_entry
from canal.registry.store.store import half_rebuilt
from canal.registry.versions import rebuild
from canal.registry.versions.publish import register_adopted
from canal.registry.versions.rebuild import RebuildOptions
from tests.support.registered import (
    EMPTY,
    OVERRIDDEN,
    adopt_published,
    audited,
    lost,
    make_models,
    no_figures,
    open_store,
    promoted,
    register,
    state,
)

pytestmark = pytest.mark.xdist_group("rebuild")  # what its tests share is made once


@pytest.fixture
def project(registered):
    """Return a registered project, what its registry says, and the records' digests by number."""
    store = open_store(registered)
    return registered, state(store), {one.number: one.record for one in store.versions()}


def again(store, **options):
    folders = options.pop("layouts", (store.layout,))
    return rebuild.rebuild(
        store, RebuildOptions("A. Person", "the disk died", folders, **options), no_figures
    )


def test_everything_is_there_again_and_says_where_it_came_from(project, tmp_path):
    root, before, records = project
    store = lost(root, tmp_path / "project")
    made = again(store)
    assert state(store) == before[:2] + [("canal-annotator", 2, before[2][2], (), False)] + before[2:]
    assert [one.number for one in made.made] == [1, 1, 2, 3]
    assert made.gone == ()
    version = store.version("3")
    record = read_json(store.artifacts(version) / "record.json")
    entries = ledger_of(store).entries()
    first = next(one for one in entries if one.version == 3 and one.kind == "register")
    assert record["rebuilt_from"] == {"run": first.document["details"]["run"], "record": records[3]}
    assert record["run"] != record["rebuilt_from"]["run"]
    assert (entries[-1].kind, entries[-1].document["record"]) == ("rebuild", version.record)
    assert audited(store).findings == ()
    with pytest.raises(RegistryError, match="holds 4 versions: only an empty or lost store is rebuilt"):
        again(store)


def test_a_lost_model_is_refused_found_elsewhere_or_given_up(project, tmp_path):
    root, before, _ = project
    store = lost(root, tmp_path / "project")
    shutil.rmtree(store.layout.model("second"))
    with pytest.raises(
        RegistryError, match=r"(?s)canal-annotator 3 \(second\): no model.*champion.*dvc pull"
    ):
        again(store)
    assert store.versions() == []
    with pytest.raises(RegistryError, match="version 1 can be rebuilt"):
        again(store, without=[1])
    made = again(store, without=[2, 3])
    assert [str(gap).split(":")[0] for gap in made.gone] == [
        "canal-annotator 2 (second)",
        "canal-annotator 3 (second)",
    ]
    assert state(store) == before[:2]
    report = audited(store)
    assert report.findings == ()
    assert "version 3: it could not be rebuilt" in " ".join(map(str, report.notes))
    shutil.copytree(root / "models" / "second", store.layout.model("second"))
    assert register(store, "second").number == 4

    store = lost(root, tmp_path / "other")
    shutil.rmtree(store.layout.model("second"))
    made = again(store, layouts=(store.layout, Layout(root)))
    assert made.gone == ()
    assert [one.number for one in made.made] == [1, 1, 2, 3]


def test_a_kill_and_a_move_under_way_are_completed(project, tmp_path, monkeypatch):
    """A promotion was under way when the store was lost; then the rebuilding itself is killed."""
    root, before, _ = project
    store, key = lost(root, tmp_path / "project"), before[2][2]
    ledger = ledger_of(store)
    record = next(one.document["record"] for one in ledger.entries() if one.version == 2)
    moved, details = {"champion": 2, "previous": 3}, promoted(2, 3, OVERRIDDEN)
    draft = Draft("promote", "canal-annotator", 2, key, record, "A", "w", moved, details)
    store.layout.pending.write_text(ledger.next(draft).line)
    real, seen = rebuild.record, []  # type: ignore[attr-defined]

    def killed(*arguments):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            again(store)
    again(store)
    aliases = {one.number: one.aliases for one in store.versions()}
    assert aliases == {1: (), 2: ("champion",), 3: ("candidate", "previous")}
    assert [one[:3] for one in state(store)[2:]] == [("canal-annotator", number, key) for number in (2, 3)]
    assert not store.layout.pending.exists()
    assert audited(store).findings == ()


MOMENTS = (
    ("_say", 1), ("_say", 2), ("_say", 3), ("publish", 2), ("record", 3), ("hold_number", 1),
    ("release_numbers", 2),
)  # fmt: skip


@pytest.mark.parametrize("behind", [False, pytest.param(True, marks=pytest.mark.chaos)])
@pytest.mark.parametrize(("step", "time"), MOMENTS)
def test_a_kill_at_any_moment_is_gone_on_with_and_nothing_else_is_done_meanwhile(
    project, tmp_path, monkeypatch, step, time, behind
):
    """A kill before or ``behind`` a call of each step that writes."""
    root, before, _ = project
    store = lost(root, tmp_path / "project")
    shutil.rmtree(store.layout.model("second"))  # two numbers to be held, and released
    real, seen = getattr(rebuild, step), []

    def killed(*arguments):
        seen.append(1)
        if len(seen) == time and not behind:
            raise KeyboardInterrupt
        done = real(*arguments)
        if len(seen) == time and behind:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, step, killed)
        with pytest.raises(KeyboardInterrupt):
            again(store, without=[2, 3])
    done = (step, time, behind) == ("_say", 3, True)
    begun = [one for name in ("canal-backbone", "canal-annotator") for one in store.versions(name)]
    if begun and not done:
        assert half_rebuilt(store)
        with pytest.raises(RegistryError, match="is half rebuilt"), moving(store):
            pass
        with pytest.raises(RegistryError, match="is half rebuilt"):
            store.serving("1")
        assert "a rebuild of the store was interrupted" in " ".join(map(str, audited(store).findings))
    options = RebuildOptions("A. Person", "again", (store.layout,), [2, 3])
    assert (rebuild.rebuild_lost(store, options, no_figures) is None) == done
    assert rebuild.rebuild_lost(store, options, no_figures) is None
    assert state(store) == before[:2]
    assert audited(store).findings == ()
    shutil.copytree(root / "models" / "second", store.layout.model("second"))
    assert register(store, "second").number == 4


def test_a_number_that_the_ledger_gave_to_another_version_is_refused(project, tmp_path):
    """An older copy of the store was put in the place of the lost one, and it gives numbers again."""
    root, _, _ = project
    store = lost(root, tmp_path / "project")
    with pytest.raises(RegistryError, match=r"gave that number to another one \(entry 1\).*rebuild"):
        register(store, "backbone")


def test_an_import_is_made_again_from_the_backbone_that_adopted_it(registered, tmp_path):
    store = lost(registered, tmp_path / "project")
    store.layout.ledger.unlink()
    shutil.rmtree(store.layout.root / "models")
    adopt_published(store.layout.model("backbone"), tmp_path)
    with moving(store) as ledger:
        register_entry(store, ledger, register_adopted(store, store.layout.model("backbone"))[0])
    register(store, "backbone")
    assert audited(store).findings == ()
    before = state(store)
    assert [one.stage for one in store.versions("canal-backbone")] == ["imported", "backbone"]
    shutil.copyfile(registered / EMPTY, store.layout.root / EMPTY)

    store = lost(store.layout.root, tmp_path / "other")
    again(store)
    assert state(store) == before
    assert audited(store).findings == ()
    weights = store.artifacts(store.versions("canal-backbone")[1]) / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    assert str(audited(store).findings[0]).startswith(
        "canal-backbone 2: model/weights.safetensors has sha256"
    )


def test_without_a_ledger_there_is_nothing_to_rebuild(tmp_path):
    make_models(tmp_path)
    with pytest.raises(RegistryError, match="names no version"):
        again(open_store(tmp_path))
