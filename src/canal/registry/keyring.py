"""Keyrings: text files with one public key a line, which say whose signatures count."""

import base64
from pathlib import Path

from canal.errors import RegistryError, SigningError
from canal.files import new_file
from canal.registry.signing import KIND, Keyring, PublicKey, checked_name

_BYTES = 32
_FIRST_LINE = "# NAME ed25519 BASE64: whose signatures count for canal audit --require-signed\n"


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


def add_to_keyring(path: Path, line: str) -> PublicKey:
    """Add a public key to a keyring, which is made where there is none, and return the key.

    Raises
    ------
    SigningError
        If the line is no public key, the keyring cannot be read, or holds the key already.
    """
    key = parse_line(line)
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
    """Return the key of a line ``NAME ed25519 BASE64``.

    Raises
    ------
    RegistryError
        Saying what is wrong with it.
    """
    parts = line.rsplit(maxsplit=2)
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
    return PublicKey(checked_name(name), raw)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SigningError(f"cannot read the keyring {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SigningError(f"{path} is no keyring: it is not text in UTF-8") from error
