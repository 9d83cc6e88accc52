"""Who signed what: key files, keyrings, and what a keyring says of a ledger."""

import base64
import contextlib
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from canal.cli import app
from canal.core.errors import RegistryError, SigningError
from canal.registry.ledger.ledger import Draft, Entry, Ledger
from canal.registry.ledger.signing import (
    add_to_keyring,
    new_key,
    open_key,
    parse_line,
    read_keyring,
    signature_findings,
)

LETTERS = st.text('abz019 -"\\\n\u00e9\u202e', max_size=9)
ADA, BEN = "Ada Lovelace", "Ben"


@pytest.fixture
def key(tmp_path):
    return made(tmp_path / "ada.pem", ADA)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def made(path, name):
    new_key(path, name)
    return open_key(path)


def draft(kind="promote", who=ADA, version=1):
    return Draft(kind, "canal-annotator", version, "k" * 64, "r" * 64, who, why="reviewed")


def written(ledger, *entries):
    for entry_draft, sign in entries:
        ledger.append(ledger.next(entry_draft, sign))
    return ledger.entries()


def ring(*keys):
    return {one.public.fingerprint: one.public for one in keys}


def canal(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


# --- what is signed


def test_signed_entries_hold(ledger, key):
    registered = draft("register", "canal registry sync (root)")
    entries = written(ledger, (registered, key.sign), (draft(), key.sign))
    assert signature_findings(entries, ring(key)) == []
    assert set(entries[0].document["signature"]) == {"key", "value"}


def test_an_entry_without_signature_is_named_and_no_other(ledger, key):
    entries = written(ledger, (draft(), key.sign), (draft("rollback"), None), (draft(), key.sign))
    assert signature_findings(entries, ring(key)) == ["entry 2 (rollback): is not signed"]


def test_a_signature_that_was_taken_off_is_missed(ledger, key):
    (entry,) = written(ledger, (draft(), key.sign))
    bare = {name: value for name, value in entry.document.items() if name != "signature"}
    assert signature_findings([Entry(bare)], ring(key)) == ["entry 1 (promote): is not signed"]


def test_a_key_that_is_not_in_the_keyring_is_named(ledger, key, tmp_path):
    stranger = made(tmp_path / "ben.pem", BEN)
    entries = written(ledger, (draft(who=BEN), stranger.sign))
    (found,) = signature_findings(entries, ring(key))
    assert stranger.public.fingerprint[:16] in found
    assert "not in the keyring" in found


def test_a_signature_of_another_entry_does_not_count(ledger, key):
    first, second = written(ledger, (draft(), key.sign), (draft("rollback"), key.sign))
    moved = Entry(second.document | {"signature": first.document["signature"]})
    (found,) = signature_findings([first, moved], ring(key))
    assert found.startswith("entry 2 (rollback): its signature was not made")


def test_the_claim_to_be_another_key_does_not_count(ledger, key, tmp_path):
    other = made(tmp_path / "ben.pem", BEN)
    (entry,) = written(ledger, (draft(), other.sign))
    forged = entry.document["signature"] | {"key": key.public.fingerprint}
    (found,) = signature_findings([Entry(entry.document | {"signature": forged})], ring(key, other))
    assert f"not made with the key of {ADA!r}" in found


def test_somebody_elses_name_is_noticed_where_a_person_decides(ledger, key, tmp_path):
    other = made(tmp_path / "ben.pem", BEN)
    entries = written(
        ledger, (draft("register", "canal registry sync (ada)"), other.sign), (draft(who=ADA), other.sign)
    )
    assert signature_findings(entries, ring(key, other)) == [
        f"entry 2 (promote): names {ADA!r}, but is signed by {BEN!r}"
    ]


@pytest.mark.parametrize(
    "signature", ["x", {}, {"key": 1, "value": "x"}, {"key": "x"}, [1], {"key": ["x"], "value": "x"}, 7]
)
def test_a_malformed_signature_is_a_finding_not_a_crash(ledger, key, signature):
    (entry,) = written(ledger, (draft(), key.sign))
    (found,) = signature_findings([Entry(entry.document | {"signature": signature})], ring(key))
    assert "malformed" in found


@given(change=st.tuples(st.sampled_from(["why", "who", "key", "record", "time", "previous"]), LETTERS))
def test_any_change_of_what_was_signed_is_noticed(signed, change):
    entry, keys = signed
    name, value = change
    if entry.document[name] == value:
        return
    (found,) = signature_findings([Entry(entry.document | {name: value})], keys)
    assert "its signature was not made" in found


@given(value=st.binary(max_size=80).map(lambda raw: base64.b64encode(raw).decode()) | LETTERS)
def test_no_other_value_is_a_signature(signed, value):
    entry, keys = signed
    forged = entry.document["signature"] | {"value": value}
    (found,) = signature_findings([Entry(entry.document | {"signature": forged})], keys)
    assert "its signature was not made" in found


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    key = made(folder / "key.pem", ADA)
    return Ledger(folder / "ledger.jsonl").next(draft(), key.sign), ring(key)


def test_nobody_signs_in_the_name_of_another(key):
    assert key.signer("ada  lovelace")("0" * 64)
    with pytest.raises(SigningError, match="the key is of 'Ada Lovelace'"):
        key.signer(BEN)


# --- key files


def test_a_new_key_is_its_owners_alone_and_printed_as_a_line_of_a_keyring(isolated_home):
    said = canal("keys", "new", "--name", ADA)
    path = isolated_home / "xdg_config_home" / "canal" / "key.pem"
    assert said.exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    line = said.stdout.strip()
    assert line.startswith(f"{ADA} ed25519 ")
    assert canal("keys", "show", path).stdout.strip() == line
    document = canal("keys", "show", path, "--json").stdout
    assert open_key(path).public.fingerprint in document


def test_without_a_config_folder_the_key_lies_in_the_home(isolated_home, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert canal("keys", "new", "--name", ADA).exit_code == 0
    assert (isolated_home / ".config" / "canal" / "key.pem").is_file()


def test_a_key_is_never_overwritten(key, tmp_path):
    before = (tmp_path / "ada.pem").read_bytes()
    said = canal("keys", "new", "--name", BEN, "-o", tmp_path / "ada.pem")
    assert isinstance(said.exception, SigningError)
    assert "never overwritten" in str(said.exception)
    assert (tmp_path / "ada.pem").read_bytes() == before


def test_a_key_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SigningError, match="cannot make the key"):
        new_key(tmp_path / "file" / "key.pem", ADA)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 201, "a\x00b", "# A", "a‮b"])
def test_a_name_that_a_keyring_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(RegistryError, match="name"):
        new_key(tmp_path / "key.pem", name)
    assert not (tmp_path / "key.pem").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(key, tmp_path, mode):
    path = tmp_path / "ada.pem"
    path.chmod(mode)
    with pytest.raises(SigningError, match=f"chmod 600 {path}"):
        open_key(path)


def test_what_is_no_private_ed25519_key_is_refused(tmp_path):
    from cryptography.hazmat.primitives import serialization as kinds
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    own, other = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    pem, plain = kinds.Encoding.PEM, kinds.NoEncryption()
    locked = kinds.BestAvailableEncryption(b"secret")
    public = own.public_key().public_bytes(pem, kinds.PublicFormat.SubjectPublicKeyInfo)
    contents = {
        "another kind": other.private_bytes(pem, kinds.PrivateFormat.PKCS8, plain),
        "locked with a passphrase": own.private_bytes(pem, kinds.PrivateFormat.PKCS8, locked),
        "holds no private key": public,
        "holds no private key ": b"",
        "holds no private key  ": b"\x00\xff" * 20,
        "holds no private key   ": own.private_bytes(pem, kinds.PrivateFormat.OpenSSH, plain),
    }
    for number, (said, content) in enumerate(contents.items()):
        path = tmp_path / f"{number}.pem"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(SigningError, match=said.strip()):
            open_key(path)
    with pytest.raises(SigningError, match="cannot read the key"):
        open_key(tmp_path / "none.pem")
    with pytest.raises(SigningError, match="cannot read the key"):
        open_key(tmp_path)


def test_a_key_that_another_program_made_signs_but_has_no_name(tmp_path):
    from cryptography.hazmat.primitives import serialization as kinds
    from cryptography.hazmat.primitives.asymmetric import ed25519

    path = tmp_path / "key.pem"
    content = ed25519.Ed25519PrivateKey.generate().private_bytes(
        kinds.Encoding.PEM, kinds.PrivateFormat.PKCS8, kinds.NoEncryption()
    )
    path.write_bytes(content)
    path.chmod(0o600)
    assert open_key(path).signer("anybody")
    assert "does not say whose key it is" in str(canal("keys", "show", path).exception)
    path.write_bytes(b"# canal signing key of A. Person\n" + content)
    assert canal("keys", "show", path).stdout.startswith("A. Person ed25519 ")


# --- keyrings


def test_a_keyring_is_read_by_line(key, tmp_path):
    other = made(tmp_path / "ben.pem", BEN)
    path = tmp_path / "keyring.txt"
    path.write_text(f"# the lab\n\n{key.public.line}\n  {other.public.line}  \n")
    assert {one.name for one in read_keyring(path).values()} == {ADA, BEN}
    assert set(read_keyring(path)) == {key.public.fingerprint, other.public.fingerprint}


def test_keys_are_added_once_and_the_rest_of_the_file_stays(key, tmp_path):
    path = tmp_path / "keyring.txt"
    other = made(tmp_path / "ben.pem", BEN)
    assert canal("keys", "add", path, key.public.line).exit_code == 0
    path.write_text(f"# ours\n{path.read_text().rstrip()}")
    assert canal("keys", "add", path, other.public.line).exit_code == 0
    assert path.read_text().startswith("# ours\n")
    assert {one.name for one in read_keyring(path).values()} == {ADA, BEN}
    before = path.read_bytes()
    with pytest.raises(SigningError, match="holds this key already"):
        add_to_keyring(path, f"Somebody ed25519 {key.public.line.split()[-1]}")
    with pytest.raises(SigningError, match="expected `NAME"):
        add_to_keyring(path, "x")
    assert path.read_bytes() == before


def test_a_role_says_what_a_key_may_sign(ledger, key, tmp_path):
    path = tmp_path / "keyring.txt"
    done = canal("keys", "add", path, key.public.line, "--roles", "register,promote")
    assert done.exit_code == 0, done.output
    assert path.read_text().splitlines()[-1] == f"{key.public.line} roles=register,promote"
    trusted = read_keyring(path)
    kinds = ("register", "promote", "rollback", "retire", "rebuild")
    entries = written(ledger, *((draft(kind), key.sign) for kind in kinds))
    assert signature_findings(entries, trusted) == [
        f"entry {seq} ({kind}): is signed by 'Ada Lovelace', whose roles in the keyring (register, promote) "
        f"do not allow {kind}"
        for seq, kind in ((3, "rollback"), (4, "retire"), (5, "rebuild"))
    ]
    assert signature_findings(entries, ring(key)) == []
    assert parse_line(next(iter(trusted.values())).line) == next(iter(trusted.values()))


@pytest.mark.parametrize("roles", ["", "promote,", "champion", "promote, register", "all", "Promote"])
def test_a_role_that_there_is_not_is_refused(key, tmp_path, roles):
    with pytest.raises(SigningError, match="no role .*; there are register, promote"):
        add_to_keyring(tmp_path / "keyring.txt", key.public.line, roles)
    with pytest.raises(SigningError, match="no role|expected"):
        parse_line(f"{key.public.line} roles={roles}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Ada", "expected `NAME ed25519 BASE64`"),
        ("ed25519 AAAA", "expected `NAME ed25519 BASE64`"),
        ("Ada ssh-rsa AAAA", "kind ed25519, found 'ssh-rsa'"),
        ("Ada ed25519 AAAA", "32 bytes"),
        ("Ada ed25519 " + "!" * 44, "32 bytes"),
        ("A\x07da ed25519 " + base64.b64encode(bytes(32)).decode(), "cannot be seen"),
    ],
)
def test_a_damaged_line_of_a_keyring_is_named(key, tmp_path, line, said):
    path = tmp_path / "keyring.txt"
    path.write_text(f"{key.public.line}\n{line}\n")
    with pytest.raises(SigningError, match=rf"line 2: .*{said}"):
        read_keyring(path)


def test_a_keyring_that_proves_nothing_is_refused(key, tmp_path):
    path = tmp_path / "keyring.txt"
    with pytest.raises(SigningError, match="cannot read the keyring"):
        read_keyring(path)
    path.write_text("# nobody\n")
    with pytest.raises(SigningError, match="holds no key"):
        read_keyring(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SigningError, match="not text"):
        read_keyring(path)
    path.write_text(f"{key.public.line}\nBen ed25519 {key.public.line.split()[-1]}\n")
    with pytest.raises(SigningError, match="line 2: the key of 'Ben' stands there before"):
        read_keyring(path)


@given(st.lists(LETTERS | st.just("ed25519"), max_size=4).map(" ".join))
def test_any_text_is_a_line_or_refused(text):
    with contextlib.suppress(RegistryError):
        assert parse_line(parse_line(text).line) == parse_line(text)


def test_names_come_back_as_they_were_given(key):
    assert parse_line(key.public.line) == key.public
