"""The keyring that params.yaml names, and the intent that a kill leaves or that somebody forges."""

import shutil

import pytest
from pydantic import ValidationError

from canal.config.layout import Layout
from canal.config.sections import Registry
from canal.core.errors import LedgerError, SigningError
from canal.registry.audit.ledger_entries import check_entries
from canal.registry.audit.version_files import AuditLog
from canal.registry.ledger.signing import add_to_keyring, new_key, open_key
from canal.registry.promotion.moves import ledger_of, moving, record, recover, to_be_signed
from canal.registry.promotion.promotion import Decision, rollback
from canal.registry.store.store import Store
from tests.faults.forgeries import ADA, following, honest, rechained
from tests.pipeline.conftest import move_database
from tests.registry.test_rules import BOOK, draft
from tests.support.registered import open_store
from tests.support.registry_made import two_stages


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Make keys: of a person who decides, of a program that registers, and of a stranger."""
    folder = tmp_path_factory.mktemp("keys")
    named = {ADA: folder / "ada.pem", "CI": folder / "ci.pem", "Eve": folder / "eve.pem"}
    for name, path in named.items():
        new_key(path, name)
    return {name: open_key(path) for name, path in named.items()}


@pytest.fixture
def store(tmp_path):
    """Give the store of a project whose ledger is that of the tests of rules; it trusts nobody yet."""
    made = two_stages(tmp_path / "project")
    store = made.project.store
    put(store, BOOK)
    return store


def put(store, entries):
    store.layout.ledger.write_text("".join(entry.line for entry in entries))


def trusting(store, keys, **roles):
    """Return the store as params.yaml with a keyring makes it."""
    path = store.layout.root / "keys" / "keyring.txt"
    path.parent.mkdir(exist_ok=True)
    for name, key in keys.items():
        if name != "Eve":
            add_to_keyring(path, key.public.line, roles.get(name.split()[0]))
    return Store(Layout(store.layout.root), Registry(keyring="keys/keyring.txt"))


def signed(keys, *kinds):
    """Return the ledger, the entries of these kinds signed."""
    whole = rechained([entry.document for entry in BOOK])
    for entry in whole:
        if entry.kind in kinds:
            key = keys["CI" if entry.kind == "register" else ADA]
            entry.document["signature"] = dict(key.sign(entry.hash))
    return whole


def test_entries_of_before_a_group_was_signed_need_no_signature(keys):
    assert to_be_signed(BOOK) == []
    assert [one.seq for one in to_be_signed(signed(keys, "promote"))] == [4, 5]
    assert [one.seq for one in to_be_signed(signed(keys, "register"))] == [1, 2, 3]
    half = signed(keys, "promote")
    del half[4].document["signature"]
    assert [one.seq for one in to_be_signed(half)] == [4, 5]


def test_a_project_that_names_a_keyring_takes_signed_entries_alone(store, keys):
    trusted = trusting(store, keys, Ada="promote,rollback,retire", CI="register,rebuild")
    one, two = (
        draft("register", 3, {}),
        draft("rollback", 1, {"champion": 1, "previous": 2}, {"from": 2, "to": 1}),
    )
    with moving(trusted) as ledger:
        for entry_draft, sign, said in (
            (one, None, r"is not signed.*--sign FILE, a key with the role register"),
            (one, keys[ADA].sign, r"signed by 'Ada Lovelace', whose roles .* do not allow register"),
            (two, keys["CI"].sign, r"signed by 'CI', whose roles .* do not allow rollback"),
            (two, keys["Eve"].sign, "which is not in the keyring"),
        ):
            with pytest.raises(SigningError, match=f"nothing was moved: entry 6 .*{said}"):
                record(trusted, ledger, entry_draft, sign)
        assert not trusted.layout.pending.exists()
        assert len(ledger.entries()) == 5
        record(trusted, ledger, one, keys["CI"].sign)
    log = AuditLog()
    check_entries(ledger_of(trusted).entries(), trusted, None, log)
    assert log.findings == []
    assert "5 entries are of before the ledger was signed" in str(log.notes[0])


def test_no_move_is_made_on_entries_that_the_keyring_does_not_stand_for(store, keys):
    trusted = trusting(store, keys, CI="register")
    with moving(trusted):
        pass
    whole = signed(keys, "promote", "register")
    put(store, whole)
    with moving(trusted):
        pass
    put(store, [*whole, following(whole, draft("register", 3, {"candidate": 3}))])
    with pytest.raises(
        SigningError, match=r"does not accept 1 entries .*\n.*entry 6 .*is not signed\n.*git log"
    ):
        moving(trusted).__enter__()
    with moving(store):
        pass  # without a keyring nobody is asked
    (trusted.layout.root / "keys" / "keyring.txt").unlink()
    with pytest.raises(SigningError, match="cannot read the keyring"):
        moving(trusted).__enter__()


@pytest.mark.parametrize("name", ["../keyring", "/etc/keyring", "", "a/../b", ".hidden", "a//b", "a/"])
def test_a_keyring_lies_in_the_project(name):
    with pytest.raises(ValidationError):
        Registry(keyring=name)


def test_a_champion_that_was_never_registered_gives_way_to_the_ledger_s(registered, tmp_path):
    """Somebody let a version of their own serve with plain MLflow: a rollback brings the ledger's back."""
    root = tmp_path / "project"
    shutil.copytree(registered, root)
    move_database(root, registered)
    store = open_store(root)
    version = store.version("champion")
    client, model = store.client, version.model
    made = client.create_model_version(model, version.source, tags={"status": "ready", "canal.key": "f" * 64})
    client.set_registered_model_alias(model, "champion", made.version)
    assert store.version("champion").number == int(made.version) != version.number
    with moving(store) as ledger:
        entry = rollback(store, ledger, store.version(str(version.number)), Decision("A. Person", "not ours"))
    assert entry.aliases == {"champion": version.number}
    assert store.version("champion").number == version.number
    with moving(store):
        pass


# --- intents


def intend(store, entry):
    store.layout.pending.write_text(entry.line)


def test_an_intent_that_is_not_signed_where_such_entries_are_is_refused(store, keys):
    """Nobody knows a public key here; what can be told is whether a key signed before."""
    whole = signed(keys, "promote")
    put(store, whole)
    back = honest(whole)[1]
    for sign, said in (
        (None, "it is not signed, though entry 5"),
        (keys["Eve"].sign, "none of the entries before"),
    ):
        intend(store, following(whole, back, sign))
        with pytest.raises(LedgerError, match=rf"rollback of canal-annotator 1 by 'Ada Lovelace'.*{said}"):
            recover(store, ledger_of(store))
        assert store.layout.pending.is_file()
        assert len(ledger_of(store).entries()) == 5


def test_an_intent_has_to_be_about_versions_as_the_store_has_them(store):
    with pytest.raises(LedgerError, match=r"version 1 has another key or record in .*Nothing was moved"):
        intend(store, following(BOOK, honest(BOOK)[1]))
        recover(store, ledger_of(store))
    with pytest.raises(LedgerError, match="has no version 3 of canal-annotator"):
        intend(store, following(BOOK, honest(BOOK)[6]))
        recover(store, ledger_of(store))


@pytest.mark.parametrize("content", ["", "{}", "x\n", "[]\n", '{"hash": 1}\n', "\n\n"])
def test_a_damaged_intent_is_refused_and_stays(store, content):
    store.layout.pending.write_text(content)
    with pytest.raises(LedgerError, match="is damaged.*: delete it, then make the move again"):
        recover(store, ledger_of(store))
    assert store.layout.pending.read_text() == content


def test_what_it_finishes_is_told(store, capsys):
    """What a kill left of a sync, word by word."""
    version = store.version("2")
    put(store, BOOK[:2])
    entry_draft = draft(
        "register", 2, {}, key=version.key, record=version.record, who="canal registry sync (root)"
    )
    intend(store, following(BOOK[:2], entry_draft))
    with moving(store) as ledger:
        assert [entry.seq for entry in ledger.entries()] == [1, 2, 3]
    assert capsys.readouterr().err == (
        "ledger.pending.json: finishing an interrupted move: register of canal-annotator 2 by "
        "'canal registry sync (root)': 'reviewed' (no alias moves, not signed)\n"
    )
    assert not store.layout.pending.exists()
