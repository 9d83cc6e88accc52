"""Signatures of ledger entries: ed25519 key files, keyrings, and the check of a ledger against a keyring.

A signature covers the hash of an entry, which covers everything in it and every entry before it, and so the
digests of the version's key and record. A keyring is a text file that the team keeps, with one public key a
line: ``NAME ed25519 BASE64`` may sign everything, ``NAME ed25519 BASE64 roles=register,promote`` only entries
of these kinds.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from canal.core.errors import RegistryError, SigningError, there_are
from canal.core.files import first_file, new_file
from canal.registry.ledger.joined import MEASURE, origin
from canal.registry.ledger.ledger import Entry, Sign, entry_hash, plain_name
from canal.registry.ledger.ledger_rules import DECIDED, KINDS

KIND = "ed25519"
ROLES_ARE = "roles="
_MESSAGE = "canal ledger entry, format 1: {digest}"
_HEADING = "# canal signing key of "
_LARGEST = 1 << 20
_ANCHOR = "canal ledger anchor, format 1: {digest}"
ROLES = (*(kind for kind in KINDS if kind != MEASURE), "anchor")
"""Roles of a key: the kinds of entry that it may sign, and anchors of the ledger; see `role_of`."""

_BYTES = 32
_FIRST_LINE = (
    "# NAME ed25519 BASE64 [roles=...]: whose signatures count, and for what "
    f"({', '.join(ROLES)}; all without roles)\n"
)


@dataclass(frozen=True)
class PublicKey:
    """A public key and its owner.

    Attributes
    ----------
    name : str
        The person, team or program that holds the private half.
    raw : bytes
        The 32 bytes of the key.
    roles : frozenset of str or None
        What it may sign (`ROLES`); None: everything.
    """

    name: str
    raw: bytes
    roles: frozenset[str] | None = None

    @property
    def line(self) -> str:
        """The key as a line of a keyring: ``NAME ed25519 BASE64``, and its roles unless it has all."""
        roles = "" if self.roles is None else f" {ROLES_ARE}{','.join(self._ordered)}"
        return f"{self.name} {KIND} {base64.b64encode(self.raw).decode()}{roles}"

    @property
    def _ordered(self) -> list[str]:
        return [role for role in ROLES if self.roles is None or role in self.roles]

    def refused(self, role: str) -> str | None:
        """Return why the key lacks a role; None where it has it."""
        if self.roles is None or role in self.roles:
            return None
        return f"whose roles in the keyring ({', '.join(self._ordered)}) do not allow {role}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, which entries hold."""
        return hashlib.sha256(self.raw).hexdigest()

    def signed(self, digest: str, signature: str) -> bool:
        """Whether ``signature`` (base64) was made by this key for an entry of this hash."""
        return self._verified(_message(digest), signature)

    def anchored(self, digest: str, signature: str) -> bool:
        """Whether ``signature`` (base64) was made by this key for an anchor of this digest."""
        return self._verified(_ANCHOR.format(digest=digest).encode(), signature)

    def _verified(self, message: bytes, signature: str) -> bool:
        try:
            value = base64.b64decode(signature, validate=True)
            Ed25519PublicKey.from_public_bytes(self.raw).verify(value, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def to_json(self) -> dict[str, str]:
        """Return name, line and fingerprint as a JSON document."""
        return {"name": self.name, "key": self.line, "fingerprint": self.fingerprint}


@dataclass(frozen=True)
class SigningKey:
    """A private key, and its owner's name (empty where another program made the key)."""

    name: str
    private: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.name, self.private.public_key().public_bytes_raw())

    def sign(self, digest: str) -> Mapping[str, str]:
        """Return ``{"key": fingerprint, "value": signature}`` for an entry of this hash."""
        value = self.private.sign(_message(digest))
        return {"key": self.public.fingerprint, "value": base64.b64encode(value).decode()}

    def anchor(self, digest: str) -> str:
        """Return the signature (base64) of an anchor of this digest; it is valid for no entry."""
        return base64.b64encode(self.private.sign(_ANCHOR.format(digest=digest).encode())).decode()

    def signer(self, who: str | None = None) -> Sign:
        """Return the signing function for `canal.registry.ledger.ledger.Ledger.next`.

        Parameters
        ----------
        who : str or None
            The person that the entry will name; None for an entry of sync.

        Raises
        ------
        SigningError
            If the key belongs to another person.
        """
        if who is not None and self.name and not _same(who, self.name):
            raise SigningError(
                f"the entry is to name {who.strip()!r} (--by), but the key is of {self.name!r}: "
                f"sign with your own key, or say --by {self.name!r}"
            )
        return self.sign


Keyring = Mapping[str, PublicKey]
"""Public keys by their fingerprints."""


def default_key_file() -> Path:
    """Return the default path of a person's key file."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "canal" / "key.pem"


def new_key(path: Path, name: str) -> PublicKey:
    """Write a new private key that only its owner may read, and return its public half.

    The file is PEM (PKCS 8) below a line with the name, which readers of PEM pass over.

    Raises
    ------
    SigningError
        If the file exists (a key is never overwritten), cannot be written, or the name does not fit a
        keyring.
    """
    key = SigningKey(checked_name(name), Ed25519PrivateKey.generate())
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with first_file(path, 0o600) as temporary:
            temporary.write_bytes(f"{_HEADING}{key.name}\n".encode() + pem)
    except OSError as error:
        if path.exists():
            raise SigningError(
                f"{path} is there already and is never overwritten; name another file with -o"
            ) from error
        raise SigningError(f"cannot make the key {path}: {error.strerror or error}") from error
    return key.public


def open_key(path: Path) -> SigningKey:
    """Return the private key in a file.

    Raises
    ------
    SigningError
        If it cannot be read, other users may read it, or it holds anything but one ed25519 private key.
    """
    content = _private_bytes(path)
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise SigningError(
            f"{path} is locked with a passphrase; canal signs with a key without one: canal keys new"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningError(
            f"{path} holds no private key in PEM (PKCS 8): name the file that `canal keys new` made"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        found = type(key).__name__.strip("_").removesuffix("PrivateKey")
        raise SigningError(f"{path} holds a key of another kind ({found}); canal signs with {KIND} keys")
    heading = content.splitlines()[0].decode("utf-8", "replace")
    name = heading.removeprefix(_HEADING) if heading.startswith(_HEADING) else ""
    return SigningKey(checked_name(name) if name else "", key)


def checked_name(name: str) -> str:
    """Return the name of a key's owner as a keyring can hold it.

    Raises
    ------
    RegistryError
        If `plain_name` refuses it, or it reads as a comment.
    """
    cleaned = " ".join(plain_name(name, "the name of the key's owner (--name)").split())
    if cleaned.startswith("#"):
        raise SigningError(f"the name {cleaned!r} begins with #, which makes a line of a keyring a comment")
    return cleaned


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
    """Add a public key to a keyring, creating the file if needed; return the key.

    ``roles`` (a list with commas) are its roles; by default those of the line, or all.

    Raises
    ------
    SigningError
        If the line holds no public key, a role is unknown, or the keyring cannot be read or has the key.
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
    text, roles = line.strip(), None
    before, _, last = text.rpartition(" ")
    if last.startswith(ROLES_ARE):
        text, roles = before, checked_roles(last.removeprefix(ROLES_ARE))
    parts = text.rsplit(maxsplit=2)
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


def role_of(kind: str) -> str:
    """Return the role that signs entries of a kind; measurements need that of registering versions."""
    return "register" if kind == MEASURE else kind


def checked_roles(text: str) -> frozenset[str]:
    """Return the roles in a list with commas.

    Raises
    ------
    SigningError
        If the list is empty or holds an unknown role.
    """
    roles = frozenset(text.split(","))
    if unknown := sorted(roles - set(ROLES)):
        raise SigningError(f"no role {unknown[0][:40]!r}{there_are(unknown[0], ROLES)}")
    return roles


def signature_findings(entries: Iterable[Entry], keyring: Keyring) -> list[str]:
    """Return one sentence for each entry without a valid signature.

    An entry that a merge appended is looked at as it was first written.
    A signature is missing or of other content, or its key is unknown, lacks the role, or belongs to another
    person than the entry names.

    Parameters
    ----------
    entries : iterable of Entry
        The ledger, with a valid chain.
    keyring : Mapping
        The keys that are trusted; see `read_keyring`.
    """
    pairs = ((entry, _finding(origin(entry), keyring)) for entry in entries)
    return [f"entry {entry.seq} ({entry.kind}): {what}" for entry, what in pairs if what]


def _finding(entry: Entry, keyring: Keyring) -> str | None:
    signature, who = entry.document.get("signature"), str(entry.document["who"])
    if signature is None:
        return "is not signed"
    names = signature if isinstance(signature, dict) else {}
    fingerprint, value = names.get("key"), names.get("value")
    if not isinstance(fingerprint, str) or not isinstance(value, str):
        return "its signature is malformed; expected a key's fingerprint and a value"
    key = keyring.get(fingerprint)
    if key is None:
        return f"is signed with key {fingerprint[:16]}..., which is not in the keyring"
    try:
        digest = entry_hash(entry.document)
    except ValueError:  # a number that JSON cannot hold: no signature covers it
        digest = ""
    if not key.signed(digest, value):
        return f"its signature was not made with the key of {key.name!r} for this entry"
    if refused := key.refused(role_of(entry.kind)):
        return f"is signed by {key.name!r}, {refused}"
    if entry.kind in DECIDED and not _same(key.name, who):
        return f"names {who!r}, but is signed by {key.name!r}"
    return None


def _message(digest: str) -> bytes:
    return _MESSAGE.format(digest=digest).encode()


def _same(one: str, other: str) -> bool:
    return one.casefold().split() == other.casefold().split()


def _private_bytes(path: Path) -> bytes:
    """Return the content of a private key's file, which no other user may be able to read."""
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode & 0o777
            content = stream.read(_LARGEST)
    except OSError as error:
        raise SigningError(f"cannot read the key {path}: {error.strerror or error}") from error
    if mode & 0o077:
        raise SigningError(
            f"others can read the private key {path} (its mode is {mode:04o}): chmod 600 {path}; "
            "if they may have read it, make a new one and take this one off the keyring"
        )
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SigningError(f"cannot read the keyring {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SigningError(f"{path} is no keyring: it is not text in UTF-8") from error
