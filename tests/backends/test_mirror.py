"""The ledger of a store that several folders use, whatever is killed, damaged or done at once."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from canal.core.errors import LedgerError
from canal.registry.ledger import mirror
from canal.registry.ledger.ledger import Entry, entry_hash
from canal.registry.promotion import moves
from canal.registry.promotion.policy import Ruling
from canal.registry.store.store import Store
from tests.support.folders import Folder, make_folder
from tests.support.registered import OVERRIDDEN

pytestmark = pytest.mark.xdist_group("backends")  # servers and databases are made once


class KilledError(BaseException):
    """What stops a process in the middle."""


@pytest.fixture(scope="module")
def beginning(models, empty_database, tmp_path_factory):
    """Make two folders that have seen the same: two versions registered, none promoted."""
    base = tmp_path_factory.mktemp("beginning")
    shutil.copyfile(empty_database, base / "shared.db")
    ada, ben = (make_folder(models, base / name, "two") for name in ("ada", "ben"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base / 'shared.db'}")
        ada.register()
        moves.catch_up(ben.project().store)
    return base


@pytest.fixture
def two(beginning, tmp_path, monkeypatch):
    """Give a copy of the two folders and of the database that they share."""
    shutil.copytree(beginning, tmp_path / "two")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'two' / 'shared.db'}")
    return Folder(tmp_path / "two" / "ada"), Folder(tmp_path / "two" / "ben")


def tags(folder):
    store = folder.project().store
    return store.model_tags(store.names.model)


def set_tag(folder, name, value):
    store = folder.project().store
    store.model_tag(store.names.model, name, value)


def catch_up(folder):
    return moves.catch_up(folder.project().store)


def killed_at(monkeypatch, owner, name, move):
    """Make a move and kill it where it calls ``name``; who is killed does not take the claim back either."""

    def die(*_args):
        raise KilledError

    kept = Store.model_tag

    def model_tag(store, model, tag, value):
        if value is not None or not tag.startswith("canal.moving."):
            kept(store, model, tag, value)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        patch.setattr(Store, "model_tag", model_tag)
        patch.setattr("pathlib.Path.unlink", lambda *_args, **_options: None)
        with pytest.raises(KilledError):
            move()


def an_hour_passes(folder):
    for name, value in tags(folder).items():
        if name.startswith("canal.moving."):
            then = datetime.now(UTC) - timedelta(hours=1, minutes=1)
            set_tag(folder, name, json.dumps(json.loads(value) | {"time": then.isoformat()}))


def test_a_store_of_one_folder_holds_no_entries(new_folder, empty_database):
    folder = new_folder("alone")
    (folder.root / "mlflow.db").write_bytes(empty_database.read_bytes())
    folder.register()
    assert len(folder.ledger()) == 2
    assert not tags(folder)
    assert catch_up(folder) == []


def test_nothing_but_the_entries_stays_in_the_store(two):
    ada, _ = two
    ada.promote(1)
    assert sorted(tags(ada)) == ["canal.ledger.1", "canal.ledger.2", "canal.ledger.3"]
    assert [tags(ada)[f"canal.ledger.{entry.seq}"] + "\n" for entry in ada.ledger()] == [
        entry.line for entry in ada.ledger()
    ]


@pytest.mark.parametrize("length", [3500, 4400, 30_000])
def test_an_entry_of_any_length_comes_over_whole(two, length):
    ada, ben = two
    ada.promote(1, rulings=[*OVERRIDDEN, Ruling("retention:first", "\u00e9" * length, "passed", True)])
    assert max(len(value) for value in tags(ada).values()) <= 5000
    catch_up(ben)
    assert [entry.line for entry in ben.ledger()] == [entry.line for entry in ada.ledger()]


def test_one_move_at_a_time(two):
    ada, ben = two
    with moves.moving(ada.project().store):
        for attempt in (lambda: ben.promote(1), lambda: catch_up(ben)):
            with pytest.raises(LedgerError, match="another folder is moving aliases in .* at this moment"):
                attempt()
    ben.promote(1)
    assert ben.aliases()["champion"] == 1


def test_of_two_claims_at_once_none_goes_on(two):
    """Whichever way the two interleave, the second to read sees both claims; here each set its own first."""
    ada, ben = two
    set_tag(ada, "canal.moving.0123456789abcdef", claim(timedelta(0)))
    with pytest.raises(LedgerError, match="'Eve on far'"):
        ben.promote(1)
    assert list(tags(ben)) == ["canal.ledger.1", "canal.ledger.2", "canal.moving.0123456789abcdef"]


@pytest.mark.parametrize("value", ["x", "{}", "[]", "", '{"who": 1, "host": 2, "time": "now"}'])
def test_a_claim_that_nobody_can_read_or_that_is_old_counts_as_given_up(two, value):
    _, ben = two
    set_tag(ben, "canal.moving.0123456789abcdef", value or claim(timedelta(hours=2)))
    ben.promote(1)
    assert not [name for name in tags(ben) if "moving" in name]


def claim(age):
    return json.dumps({"who": "Eve", "host": "far", "time": (datetime.now(UTC) - age).isoformat()})


def test_a_move_killed_before_the_aliases_is_finished_by_the_same_folder(two, monkeypatch):
    ada, _ = two
    killed_at(monkeypatch, Store, "point", lambda: ada.promote(1))
    assert len(ada.ledger()) == 2
    with pytest.raises(Exception, match="is the champion already"):
        ada.promote(1)
    assert ada.aliases() == {"candidate": 2, "champion": 1}
    assert not [name for name in tags(ada) if "moving" in name]


def test_a_move_killed_before_the_aliases_is_finished_by_another_folder_and_not_twice(two, monkeypatch):
    ada, ben = two
    killed_at(monkeypatch, Store, "point", lambda: ada.promote(1))
    with pytest.raises(LedgerError, match="expires after an hour"):
        catch_up(ben)
    an_hour_passes(ada)
    with pytest.raises(LedgerError, match="--catch-up"):
        ben.promote(2)
    catch_up(ben)
    assert ben.aliases() == {"candidate": 2, "champion": 1}
    ben.promote(2)
    with pytest.raises(LedgerError, match="--catch-up"):
        ada.promote(2)
    catch_up(ada)
    assert ada.aliases() == {"candidate": 2, "champion": 2, "previous": 1}
    assert ada.ledger() == ben.ledger()


def test_a_move_killed_before_the_store_heard_of_it_gives_way_to_another(two, monkeypatch):
    ada, ben = two
    killed_at(monkeypatch, moves, "mirror", lambda: ada.promote(1))
    an_hour_passes(ada)
    ben.promote(2)
    with pytest.raises(LedgerError, match="another entry 3, by 'Ada': nothing was moved"):
        ada.promote(1)
    catch_up(ada)
    assert ada.aliases() == {"candidate": 2, "champion": 2}
    ada.promote(1)
    assert ada.aliases() == {"candidate": 2, "champion": 1, "previous": 2}


def test_an_intent_that_the_store_never_heard_of_moves_nothing(two, monkeypatch, capsys):
    """Who may write the folder alone could have made it; who was killed there had moved nothing."""
    ada, ben = two
    killed_at(monkeypatch, moves, "mirror", lambda: ada.promote(1))
    an_hour_passes(ada)
    with moves.moving(ada.project().store):
        pass
    assert (
        "has no entry of this move, so nothing was moved: promote of two-annotator 1"
        in capsys.readouterr().err
    )
    assert not (ada.root / "ledger.pending.json").exists()
    assert ada.aliases() == ben.aliases() == {"candidate": 2}
    ada.promote(1)
    assert ada.aliases() == {"candidate": 2, "champion": 1}


def test_a_long_entry_that_is_half_written_is_not_there(two, monkeypatch):
    ada, ben = two
    long = [*OVERRIDDEN, Ruling("retention:first", "x" * 9000, "passed", True)]
    kept = Store.model_tag

    def model_tag(store, model, name, value):
        if name == "canal.ledger.3":
            raise KilledError
        kept(store, model, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "model_tag", model_tag)
        with pytest.raises(KilledError):
            ada.promote(1, rulings=long)
    ben.promote(2)
    assert [entry.seq for entry in catch_up_after_giving_way(ada)] == [3]
    assert ada.ledger() == ben.ledger()


def catch_up_after_giving_way(folder):
    with pytest.raises(LedgerError, match="nothing was moved"):
        catch_up(folder)
    return catch_up(folder)


def test_a_store_made_anew_gets_the_entries_again(two):
    ada, _ = two
    before = tags(ada)
    for name in before:
        set_tag(ada, name, None)
    with moves.moving(ada.project().store):
        pass
    assert tags(ada) == before


def changed(entry, **changes):
    return json.dumps(entry.document | changes)


def test_a_changed_tag_is_named_and_written_anew_when_it_is_gone(two):
    ada, ben = two
    ada.promote(1)
    entry, before = ada.ledger()[1], tags(ada)
    for value in (
        "x",
        "[]",
        changed(entry, who="Eve"),
        changed(entry, seq=7),
        '{"hash": "a", "parts": 2}',
        "{}",
    ):
        set_tag(ada, "canal.ledger.2", value)
        with pytest.raises(LedgerError, match=r"the tag canal\.ledger\.2 of .* was changed"):
            ada.promote(2)
        with pytest.raises(LedgerError, match=r"canal\.ledger\.2"):
            catch_up(ben)
    set_tag(ada, "canal.ledger.2", None)
    with moves.moving(ada.project().store):
        pass
    assert tags(ada) == before


def test_a_tag_that_is_missing_is_no_reason_to_skip_an_entry(two):
    ada, ben = two
    ada.promote(1)
    ada.promote(2)
    set_tag(ada, "canal.ledger.3", None)
    with pytest.raises(LedgerError, match="entry 4 does not follow it"):
        catch_up(ben)
    assert len(ben.ledger()) == 2


def test_a_ledger_of_another_history_is_refused(two):
    ada, ben = two
    document = ben.ledger()[1].document | {"who": "Eve"}
    document["hash"] = entry_hash(document)
    lines = [ben.ledger()[0].line, Entry(document).line]
    (ben.root / "ledger.jsonl").write_text("".join(lines))
    for attempt in (lambda: ben.promote(1), lambda: catch_up(ben)):
        with pytest.raises(LedgerError, match="differ from entry 2 on: .* another history"):
            attempt()
    (ben.root / "ledger.jsonl").unlink()
    catch_up(ben)
    assert ben.ledger() == ada.ledger()


def test_tags_of_others_are_left_alone(two):
    ada, _ = two
    for name in ("canal.ledger.x", "canal.ledger.0", "canal.ledger.-1", "owner"):
        set_tag(ada, name, "mine")
    ada.promote(1)
    assert tags(ada)["owner"] == "mine"
    assert list(mirror.mirrored(ada.project().store).values()) == ada.ledger()
