"""The mirror of the ledger in a shared store: each entry is also a tag of the registered model.

Each project folder has a ledger file of its own. Before a folder writes, its ledger must hold all entries of
the store (``canal ledger --catch-up`` fetches them), and it sets a tag of its own, the claim. A folder that
finds another claim after setting its own goes no further, so of two at once at most one goes on. The claim of
one that goes on says so: who finds it is refused. Where two only asked, both take their claims back and ask
again after a while left to chance, so that one of them moves, and the other finds its entry.

The tag ``canal.ledger.7`` holds entry 7. For an entry too long for a tag it holds hash and number of parts,
whose tags have the hash in their names, so that half-written parts are never read.
"""

import json
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from getpass import getuser
from pathlib import Path
from secrets import SystemRandom, token_hex
from typing import Any

from canal.core.errors import LedgerError, RegistryError
from canal.core.files import new_file
from canal.registry.ledger.ledger import Entry, Ledger, checked_entry
from canal.registry.store.store import TAG, Store

_ENTRY = f"{TAG}ledger."
_CLAIM = f"{TAG}moving."
_ASKED, _HELD = "asked", "held"
"""States of a claim; one of an older canal has none, and holds."""

_MOST = 4500
"""Characters a tag: MLflow's tables take 5,000."""
_GIVEN_UP = timedelta(hours=1)
_ATTEMPTS = 8
_LONGEST_WAIT_S = 4.0


class OvertakenError(LedgerError):
    """Another folder wrote the entry of this number; nothing was moved."""


@contextmanager
def claimed(store: Store) -> Iterator[None]:
    """Hold the claim on a shared store, so that no other folder moves aliases meanwhile.

    Raises
    ------
    LedgerError
        If another folder holds a claim. A claim older than an hour counts as given up, since its machine was
        lost; a folder's own claim never blocks it.
    """
    if not store.remote:
        yield
        return
    store.make_model(store.names.model)
    own = _own_claim(store)
    try:
        _claim(store, own)
        yield
    finally:
        with suppress(RegistryError):  # a claim that stays expires
            store.model_tag(store.names.model, own, None)
            _claim_file(store).unlink(missing_ok=True)


def _claim(store: Store, own: str) -> None:
    """Set this folder's claim, and say in it that it holds; nothing is held where this raises."""
    model, found = store.names.model, dict[str, Any]()
    for attempt in range(_ATTEMPTS):
        store.model_tag(model, own, _claim_text(_ASKED))
        other = _other_claim(store, own)
        if other is None:
            store.model_tag(model, own, _claim_text(_HELD))
            return
        found = other
        if found.get("state", _HELD) == _HELD:
            break
        store.model_tag(model, own, None)
        time.sleep(SystemRandom().uniform(0, min(_LONGEST_WAIT_S, 0.1 * 2**attempt)))
    raise LedgerError(
        f"another folder is moving aliases in {store.shown} at this moment ({_claimant(found)!r}, since "
        f"{_since(found):%Y-%m-%d %H:%M:%S} UTC): try again when it has finished; its claim expires "
        "after an hour"
    )


def movements(store: Store) -> frozenset[str] | None:
    """Return the names of the entries in a shared store, or None while another folder holds a claim.

    The caller holds the registry's lock, so that a claim of this folder was left by a kill.
    """
    if not store.remote:
        return frozenset()
    tags, path = store.model_tags(store.names.model), _claim_file(store)
    own = _CLAIM + (path.read_text(encoding="utf-8") if path.is_file() else "")
    claims = (value for name, value in tags.items() if name.startswith(_CLAIM) and name != own)
    if not all(_given_up(value) for value in claims):
        return None
    return frozenset(name for name in tags if name.startswith(_ENTRY))


def mirror(store: Store, entry: Entry) -> bool:
    """Write an entry to a shared store unless it is there; return whether later entries follow it.

    Raises
    ------
    OvertakenError
        If the store has another entry of this number.
    """
    if not store.remote:
        return False
    there = mirrored(store)
    if entry.seq not in there:
        _write(store, entry)
    elif there[entry.seq].hash != entry.hash:
        raise OvertakenError(
            f"{store.shown} has another entry {entry.seq}, by {there[entry.seq].document['who']!r}: nothing "
            "was moved; run `canal ledger --catch-up`, look at it with `canal ledger`, then try again"
        )
    return max(there, default=0) > entry.seq


def mirrored(store: Store) -> dict[int, Entry]:
    """Return the entries in the store by their numbers, each checked by itself.

    Raises
    ------
    LedgerError
        Naming a tag that was changed.
    """
    tags = store.model_tags(store.names.model)
    matches = (re.fullmatch(re.escape(_ENTRY) + r"([1-9][0-9]{0,8})", name) for name in tags)
    return {seq: _read(store, tags, seq) for seq in sorted(int(one[1]) for one in matches if one)}


def refuse_behind(store: Store, ledger: Ledger) -> None:
    """Refuse a ledger that lacks entries of the store, or differs from them.

    Entries that the store lacks are written there: it was created anew, or had no mirror before.

    Raises
    ------
    LedgerError
        Saying how to catch up.
    """
    if not store.remote:
        return
    here, there = ledger.entries(), mirrored(store)
    _refuse_other(store, ledger, here, there)
    if there and max(there) > len(here):
        raise LedgerError(
            f"{ledger.path} ends with entry {len(here)}, {store.shown} has {max(there)}: another folder "
            "moved aliases; run `canal ledger --catch-up`, look at it with `canal ledger`, then try again"
        )
    for entry in here:
        if entry.seq not in there:
            _write(store, entry)


def missing(store: Store, ledger: Ledger) -> list[Entry]:
    """Return the entries that the store has and this ledger has not, oldest first.

    Raises
    ------
    LedgerError
        If this ledger is not the beginning of the store's.
    """
    if not store.remote:
        return []
    here, there = ledger.entries(), mirrored(store)
    _refuse_other(store, ledger, here, there)
    return [entry for seq, entry in there.items() if seq > len(here)]


def user() -> str:
    """Return the system's name of the user of this process."""
    try:
        return getuser()
    except (KeyError, OSError):
        return "unknown"


def _refuse_other(store: Store, ledger: Ledger, here: list[Entry], there: Mapping[int, Entry]) -> None:
    for mine in here:
        if mine.seq in there and there[mine.seq].hash != mine.hash:
            raise LedgerError(
                f"{ledger.path} and {store.shown} differ from entry {mine.seq} on: this folder's ledger has "
                "another history; set it aside, then run `canal ledger --catch-up`"
            )


def _claim_file(store: Store) -> Path:
    return store.layout.private / "claim"


def _own_claim(store: Store) -> str:
    """Return the name of this folder's claim: a new one, or that of a killed command."""
    path = _claim_file(store)
    token = path.read_text(encoding="utf-8") if path.is_file() else ""
    if re.fullmatch(r"[0-9a-f]{16}", token):
        return _CLAIM + token
    token = token_hex(8)
    with new_file(path) as temporary:
        temporary.write_text(token, encoding="utf-8")
    return _CLAIM + token


def _claim_text(state: str) -> str:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"who": user(), "host": platform.node(), "time": now, "state": state})


def _other_claim(store: Store, own: str) -> dict[str, Any] | None:
    """Return the claim of another folder, one that holds before one that asks; given up ones are removed."""
    others = []
    for name, value in store.model_tags(store.names.model).items():
        if not name.startswith(_CLAIM) or name == own:
            continue
        if _given_up(value):
            store.model_tag(store.names.model, name, None)
        else:
            others.append(json.loads(value))
    return min(others, key=lambda one: one.get("state", _HELD) != _HELD, default=None)


def _given_up(claim: str) -> bool:
    """Whether a claim has expired or is malformed."""
    try:
        content = json.loads(claim)
        return not _claimant(content) or datetime.now(UTC) - _since(content) > _GIVEN_UP
    except (ValueError, KeyError, TypeError):
        return True


def _claimant(claim: Mapping[str, Any]) -> str:
    return f"{claim['who']} on {claim['host']}"[:200]


def _since(claim: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(claim["time"])


def _write(store: Store, entry: Entry) -> None:
    """Write the tags of an entry: its parts first, the tag that names them last."""
    name, text = f"{_ENTRY}{entry.seq}", entry.line.rstrip("\n")
    if len(text) > _MOST:
        parts = [text[start : start + _MOST] for start in range(0, len(text), _MOST)]
        for number, part in enumerate(parts):
            store.model_tag(store.names.model, _part(name, entry.hash, number), part)
        text = json.dumps({"hash": entry.hash, "parts": len(parts)})
    store.model_tag(store.names.model, name, text)


def _read(store: Store, tags: Mapping[str, str], seq: int) -> Entry:
    name = f"{_ENTRY}{seq}"
    try:
        return checked_entry(_text(tags, name), seq)
    except (LedgerError, ValueError, KeyError, TypeError) as error:
        what = str(error) if isinstance(error, LedgerError) else "a part of it is missing, or it is not JSON"
        raise LedgerError(
            f"{store.shown}: the tag {name} of {store.names.model} was changed after it was written "
            f"({what}). Remove it there: the next `canal registry sync` in a folder that has the entry "
            "writes it anew"
        ) from error


def _text(tags: Mapping[str, str], name: str) -> str:
    head = json.loads(tags[name])
    if not isinstance(head, dict) or "parts" not in head:
        return tags[name]
    return "".join(tags[_part(name, head["hash"], number)] for number in range(head["parts"]))


def _part(name: str, digest: str, number: int) -> str:
    return f"{name}.{digest[:16]}.{number}"
