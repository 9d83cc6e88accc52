"""Keyrings: text files with one public key a line, which say whose signatures count, and for what.

``NAME ed25519 BASE64`` may sign everything; ``NAME ed25519 BASE64 roles=register,promote`` what is named.

The keyring that params.yaml names (`registry.keyring`) says who has to sign what is written into the ledger.
From the first signed entry of a group on, each entry of that group must be signed by a key of the keyring
whose roles allow it, and whatever is written now must be. Groups are what people decide (promote, rollback,
retire) and what commands note (register, rebuild): a project may begin to sign at any time, one group first.
"""

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from canal.core.errors import RegistryError, SigningError
from canal.core.files import new_file
from canal.registry.ledger import Entry
from canal.registry.ledger_rules import DECIDED
from canal.registry.signing import (
    KIND,
    ROLES,
    ROLES_ARE,
    Keyring,
    PublicKey,
    checked_name,
    signature_findings,
)

if TYPE_CHECKING:
    from canal.registry.store import Store

_BYTES = 32
_FIRST_LINE = (
    "# NAME ed25519 BASE64 [roles=...]: whose signatures count, and for what "
    f"({', '.join(ROLES)}; all without roles)\n"
)


def read_keyring(path: Path) -> Keyring:
    """Return the keys of a keyring by their fingerprints; empty lines and comments (#) are skipped.

    Raises
    ------
    SigningError
        If it cannot be read, a line is not ``NAME ed25519 BASE64``, a key comes twice, or there is none.
    """
    keys: dict[str, PublicKey] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = parse_line(line)
        except RegistryError as error:
            raise SigningError(f"{path}, line {number}: {error}") from error
        if key.fingerprint in keys:
            raise SigningError(
                f"{path}, line {number}: the key of {key.name!r} stands there before, "
                f"as that of {keys[key.fingerprint].name!r}"
            )
        keys[key.fingerprint] = key
    if not keys:
        raise SigningError(f"{path} holds no key; add lines that `canal keys show` prints")
    return keys


def add_to_keyring(path: Path, line: str, roles: str | None = None) -> PublicKey:
    """Add a public key to a keyring, which is made where there is none; return the key.

    ``roles`` (a list with commas) says what it may sign; without it, the line does, or it may sign all.

    Raises
    ------
    SigningError
        If the line is no public key, a role unknown, the keyring cannot be read, or holds the key already.
    """
    key = parse_line(line)
    if roles is not None:
        key = replace(key, roles=checked_roles(roles))
    known = read_keyring(path) if path.exists() else {}
    if key.fingerprint in known:
        raise SigningError(f"{path} holds this key already, as that of {known[key.fingerprint].name!r}")
    before = _text(path) if known else _FIRST_LINE
    joined = before if before.endswith("\n") else f"{before}\n"
    try:
        with new_file(path) as temporary:
            temporary.write_text(f"{joined}{key.line}\n", encoding="utf-8")
    except OSError as error:
        raise SigningError(f"cannot write {path}: {error.strerror or error}; it is as it was") from error
    return key


def parse_line(line: str) -> PublicKey:
    """Return the key of a line ``NAME ed25519 BASE64`` or ``NAME ed25519 BASE64 roles=ROLE,ROLE``.

    Raises
    ------
    RegistryError
        Saying what is wrong with it.
    """
    said, roles = _without_roles(line.strip())
    parts = said.rsplit(maxsplit=2)
    if len(parts) != 3:
        raise SigningError(f"expected `NAME {KIND} BASE64` (see `canal keys show`), found {line[:80]!r}")
    name, kind, text = parts
    if kind != KIND:
        raise SigningError(f"expected a key of kind {KIND}, found {kind[:40]!r}")
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != _BYTES:
        raise SigningError(f"expected {_BYTES} bytes in base64 (44 characters), found {text[:60]!r}")
    return PublicKey(checked_name(name), raw, roles)


def checked_roles(text: str) -> frozenset[str]:
    """Return the roles in a list with commas.

    Raises
    ------
    SigningError
        If there is none, or one that canal does not know: it would not allow what somebody meant it to.
    """
    roles = frozenset(text.split(","))
    if unknown := sorted(roles - set(ROLES)):
        raise SigningError(f"no role {unknown[0][:40]!r}; there are {', '.join(ROLES)}")
    return roles


def _without_roles(line: str) -> tuple[str, frozenset[str] | None]:
    before, _, last = line.rpartition(" ")
    if not last.startswith(ROLES_ARE):
        return line, None
    return before, checked_roles(last.removeprefix(ROLES_ARE))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SigningError(f"cannot read the keyring {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SigningError(f"{path} is no keyring: it is not text in UTF-8") from error


def keyring_of(store: "Store") -> Keyring | None:
    """Return the keys that params.yaml trusts; None where it names no keyring.

    Raises
    ------
    SigningError
        If the keyring cannot be read.
    """
    name = store.names.keyring
    return None if name is None else read_keyring(store.layout.root / name)


def to_be_signed(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of each group from its first signed one on."""
    begun: set[bool] = set()
    found = []
    for entry in entries:
        if "signature" in entry.document:
            begun.add(_decided(entry))
        if _decided(entry) in begun:
            found.append(entry)
    return found


def require_signatures(store: "Store", entries: Sequence[Entry]) -> None:
    """Refuse to build on entries that the project's keyring does not stand for.

    Raises
    ------
    SigningError
        Naming them.
    """
    keyring = keyring_of(store)
    if keyring is None:
        return
    if wrong := signature_findings(to_be_signed(entries), keyring):
        raise SigningError(
            f"the keyring {store.names.keyring} does not stand for {len(wrong)} entries of the ledger; "
            "nothing was moved:\n  " + "\n  ".join(wrong[:10]) + "\nFind out who wrote them (git log -p -- "
            f"{store.layout.ledger.name}); bring back the ledger of before, or mend the keyring"
        )


def require_signature(store: "Store", entry: Entry) -> None:
    """Refuse an entry that is to be written and that the project's keyring does not stand for.

    Raises
    ------
    SigningError
        Saying how to sign.
    """
    keyring = keyring_of(store)
    if keyring is None:
        return
    if wrong := signature_findings([entry], keyring):
        raise SigningError(
            f"nothing was moved: {wrong[0]}. The keyring {store.names.keyring} (registry.keyring in "
            f"params.yaml) says who signs what: sign with --sign FILE, by a key with the role {entry.kind}"
        )


def intent_complaint(store: "Store", entries: Sequence[Entry], entry: Entry) -> str | None:
    """Return why the signature of an intent, or its lack, does not do; None where it does."""
    keyring = keyring_of(store)
    if keyring is not None:
        wrong = signature_findings([entry], keyring)
        return wrong[0] if wrong else None
    signed = [one for one in entries if "signature" in one.document and _decided(one) == _decided(entry)]
    if signed and "signature" not in entry.document:
        return f"it is not signed, though entry {signed[-1].seq} ({signed[-1].kind}) is"
    keys = {one.document["signature"]["key"] for one in signed}
    if signed and entry.document["signature"]["key"] not in keys:
        return "it is signed with a key that signed none of the entries before"
    return None


def _decided(entry: Entry) -> bool:
    return entry.kind in DECIDED
