"""Edit, rewrite and forge the ledger of a small real registry, and count what is found and named.

    python -m tests.faults.chaos_ledger --edits 120

A project made by hand in a real local MLflow store, whose ledger git has commit by commit: a backbone, two
versions, both promoted. Every way in is tried on it; nothing may pass, and each finding has to name the line,
entry or commit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from canal.config.layout import Layout
from canal.config.sections import Registry
from canal.core.digests import canonical_json
from canal.core.errors import CanalError
from canal.registry.ledger.ledger import Entry, entry_hash
from canal.registry.ledger.ledger_rules import DECIDED
from canal.registry.ledger.signing import SigningKey, add_to_keyring, new_key, open_key
from canal.registry.promotion import promotion
from canal.registry.promotion.moves import ledger_of, moving
from canal.registry.store.store import Store
from tests.faults.forgeries import ADA, Forgery, following, forgeries, honest, rechained
from tests.faults.rewrites import NAME, REWRITES, commit_each
from tests.support.registered import OVERRIDDEN, audited, make_models, open_store, promoted, register

Report = dict[str, int]
_SAID = "accuracy passed with 0.910, the version's documents say"
KEYRING = "keyring.txt"
ROLES = {ADA: "promote,rollback,retire", "CI": "register,rebuild"}


def main() -> None:
    """Run the long form and print a report; exit code 1 if anything was not found, or not named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--edits", type=int, default=120, help="edits of the ledger's file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canal-chaos-") as scratch:
        report = run(Path(scratch), arguments.edits, arguments.seed)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


def run(scratch: Path, edits: int, seed: int, share: int = 1) -> dict[str, Report]:
    """Try everything, or every ``share``-th way; an `AssertionError` says what was not found or named."""
    book = make_book(scratch / "book")
    return {
        "edits": edit(book, edits, seed),
        "rewrites": rewrite(book, scratch, share),
        "forged entries": forge(book, share),
        "forged intents": intend(book, share),
        "keys": sign(book, scratch, share),
    }


def make_book(root: Path) -> Store:
    """Make the project: registered, promoted twice, committed entry by entry; everything of it holds."""
    make_models(root)
    store = open_store(root)
    for stage in ("backbone", "first", "second"):
        register(store, stage)
    for number in ("1", "2"):
        with moving(store) as ledger:
            promotion.promote(
                store, ledger, store.version(number), OVERRIDDEN, promotion.Decision(ADA, "reviewed")
            )
    commit_each(root)
    report = audited(store)
    assert report.findings == (), report.findings
    return store


# What is done to it --------------------------------------------------------------------------------------


def edit(store: Store, number: int, seed: int) -> Report:
    """Change the ledger's file, with and without hashes that fit again; git has what it was."""
    rng, whole, tally = random.Random(seed), store.layout.ledger.read_bytes(), Tally("edits")
    kinds = [_flipped, _dropped, _doubled, _swapped, _cut, _said, _chained, _lacking]
    for one in range(number):
        how = kinds[one % len(kinds)]
        content, line = how(whole, rng)
        with left(store):
            store.layout.ledger.write_bytes(content)
            said = findings(store)
        tally.count(f"{how.__name__} in line {line}", said, f"{NAME}, line {line}:")
    return tally.report()


def rewrite(store: Store, scratch: Path, share: int) -> Report:
    """Rewrite the ledger and commit that, in every way that git offers."""
    tally = Tally("rewrites")
    for how in list(REWRITES)[::share]:
        root = scratch / how.__name__
        shutil.copytree(store.layout.root, root, symlinks=True)
        how(root)
        tally.count(how.__name__, findings(open_store(root)), REWRITES[how])
        shutil.rmtree(root)
    return tally.report()


def forge(store: Store, share: int) -> Report:
    """Append an entry that canal would not write, with a hash that fits: audit and the next move name it."""
    entries, tally = ledger_of(store).entries(), Tally("forged entries")
    for one in forgeries(entries)[::share]:
        with left(store), store.layout.ledger.open("a") as stream:
            stream.write(following(entries, one.draft).line)
            stream.flush()
            named = f"entry 6 .*{re.escape(one.named)}"
            tally.count(one.name, findings(store), named, [refused(store)])
    claimed = replace(honest(entries)[0], details=promoted(1, 2))
    with left(store), store.layout.ledger.open("a") as stream:
        stream.write(following(entries, claimed).line)
        stream.flush()
        tally.count("rulings that the documents contradict", findings(store), f"entry 6 .*{_SAID}")
    return tally.report()


def intend(store: Store, share: int) -> Report:
    """Leave an intent that canal would not have written: nothing moves, and it is named."""
    entries, tally = ledger_of(store).entries(), Tally("forged intents")
    for one in [*forgeries(entries), *_impossible(entries)][::share]:
        with left(store):
            store.layout.pending.write_text(following(entries, one.draft).line)
            named = f"{one.draft.kind} of .*{re.escape(one.named)}"
            tally.count(one.name, findings(store), named, [refused(store)])
            assert store.layout.pending.is_file()
    return tally.report()


def sign(store: Store, scratch: Path, share: int) -> Report:
    """Entries and intents of a signed ledger, by keys that may not sign them, or by none."""
    signed, keys = signed_book(store, scratch)
    stranger = _key(scratch / "stranger.pem", ADA)
    entries, tally = ledger_of(signed).entries(), Tally("keys")
    assert findings(signed) == []
    copied = entries[-1].document["signature"]
    for draft in honest(entries)[::share]:
        decided = draft.kind in DECIDED
        own, other = (keys[ADA], keys["CI"]) if decided else (keys["CI"], keys[ADA])
        ways = {
            "is not signed": following(entries, draft),
            f"do not allow {draft.kind}": following(entries, draft, other.sign),
            "not in the keyring": following(entries, draft, stranger.sign),
            "was not made with the key": Entry(following(entries, draft).document | {"signature": copied}),
        }
        assert following(entries, draft, own.sign).document["signature"]["key"] == own.public.fingerprint
        for named, entry in ways.items():
            for place in (signed.layout.ledger, signed.layout.pending):
                with left(signed), place.open("a") as stream:
                    stream.write(entry.line)
                    stream.flush()
                    name, wanted = f"{draft.kind} that {named} in {place.name}", re.escape(named)
                    tally.count(name, findings(signed), wanted, [refused(signed)])
    return tally.report()


def signed_book(store: Store, scratch: Path) -> tuple[Store, dict[str, SigningKey]]:
    """Return a copy of the project whose ledger is signed, with the keyring that params.yaml would name."""
    root = scratch / "signed"
    shutil.copytree(store.layout.root, root, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    keys = {name: _key(scratch / f"{name}.pem", name) for name in ROLES}
    for name, key in keys.items():
        add_to_keyring(root / KEYRING, key.public.line, ROLES[name])
    documents = [entry.document for entry in ledger_of(store).entries()]
    entries = rechained(documents, lambda kind: keys[ADA if kind in DECIDED else "CI"].sign)
    (root / NAME).write_text("".join(entry.line for entry in entries))
    commit_each(root)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # an opened store names itself there
    return Store(Layout(root), Registry(keyring=KEYRING)), keys


def _key(path: Path, name: str) -> SigningKey:
    new_key(path, name)
    return open_key(path)


def _impossible(entries: list[Entry]) -> list[Forgery]:
    """Intents that break no rule of the ledger, but that no move of this store left."""
    up = honest(entries)[6]
    passed = replace(honest(entries)[0], details=promoted(1, 2))
    return [
        Forgery("register what is not there", up, "has no version 3"),
        Forgery("claim what was not measured", passed, _SAID),
    ]


# Edits: each returns the file and the number of the first line that is not what it was ---------------------

Edited = tuple[bytes, int]


def _lines(whole: bytes) -> list[bytes]:
    return whole.splitlines(keepends=True)


def _flipped(whole: bytes, rng: random.Random) -> Edited:
    at = rng.randrange(len(whole) - 1)
    content = bytearray(whole)
    content[at] ^= 1 << rng.randrange(8)
    return bytes(content), whole[:at].count(b"\n") + 1


def _dropped(whole: bytes, rng: random.Random) -> Edited:
    lines = _lines(whole)
    at = rng.randrange(len(lines))
    return b"".join([*lines[:at], *lines[at + 1 :]]), at + 1


def _doubled(whole: bytes, rng: random.Random) -> Edited:
    lines = _lines(whole)
    at = rng.randrange(len(lines))
    return b"".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]), at + 2


def _swapped(whole: bytes, rng: random.Random) -> Edited:
    lines = _lines(whole)
    first, second = sorted(rng.sample(range(len(lines)), 2))
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines), first + 1


def _cut(whole: bytes, rng: random.Random) -> Edited:
    at = rng.randrange(len(whole) - 1)
    return whole[:at], whole[:at].count(b"\n") + 1


def _said(whole: bytes, rng: random.Random) -> Edited:
    """Another value in one line, whose hash fits."""
    lines = _lines(whole)
    at = rng.randrange(len(lines))
    document = _changed(json.loads(lines[at]), rng)
    document["hash"] = entry_hash(document)
    lines[at] = canonical_json(document).encode() + b"\n"
    return b"".join(lines), at + 1


def _chained(whole: bytes, rng: random.Random) -> Edited:
    """Another value in one line, and every hash of that line and all behind it fits."""
    documents = [json.loads(line) for line in _lines(whole)]
    at = rng.randrange(len(documents))
    documents[at] = _changed(documents[at], rng)
    return b"".join(entry.line.encode() for entry in rechained(documents)), at + 1


def _lacking(whole: bytes, rng: random.Random) -> Edited:
    lines = _lines(whole)
    at = rng.randrange(len(lines))
    document = json.loads(lines[at])
    del document[rng.choice(sorted(document))]
    lines[at] = json.dumps(document).encode() + b"\n"
    return b"".join(lines), at + 1


def _changed(document: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    values = {
        "who": "Somebody Else",
        "why": "for fun",
        "time": "2001-01-01T00:00:00+00:00",
        "key": "f" * 64,
        "record": "f" * 64,
        "version": 7,
        "kind": "rollback",
        "aliases": {"champion": 7},
        "details": {},
    }
    name = rng.choice(sorted(values))
    return document | {name: values[name]}


# What is asked -------------------------------------------------------------------------------------------


def findings(store: Store) -> list[str]:
    """Return what an audit of everything finds."""
    return [str(one) for one in audited(store).findings]


def refused(store: Store) -> str:
    """Return why the next move is refused; nothing where it is not."""
    try:
        with moving(store):
            return ""
    except CanalError as error:
        return " ".join(Exception.__str__(error).split("\n"))


@contextmanager
def left(store: Store) -> Iterator[None]:
    """Put back what is tried on, after proving that it moved no alias."""
    ledger, before = store.layout.ledger.read_bytes(), aliases(store)
    yield
    assert aliases(store) == before, "an alias moved"
    store.layout.ledger.write_bytes(ledger)
    store.layout.pending.unlink(missing_ok=True)


def aliases(store: Store) -> dict[str, int]:
    """Return where the aliases of the annotator point in MLflow."""
    return {alias: one.number for one in store.versions() for alias in one.aliases}


class Tally:
    """Counts what was tried, found and named, and keeps what was not."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.tried = self.found = self.named = 0
        self.missed: list[str] = []

    def count(self, name: str, said: list[str], wanted: str, *also: list[str]) -> None:
        """Count one try: what was said in each place that has to say something, and how it has to name it."""
        places = [[one for one in place if one] for place in (said, *also)]
        named = all(any(re.search(wanted, one) for one in place) for place in places)
        self.tried, self.found, self.named = self.tried + 1, self.found + all(places), self.named + named
        if not named:
            self.missed.append(f"{name}: {[place[:3] for place in places]}")

    def report(self) -> Report:
        """Return the counts; an `AssertionError` names what was not found, or not named."""
        assert not self.missed, f"{self.what}: {len(self.missed)} of {self.tried} missed: {self.missed[:5]}"
        counts = {"tried": self.tried, "found": self.found, "named": self.named}
        sys.stderr.write(f"{self.what}: {counts}\n")
        return counts


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    main()
