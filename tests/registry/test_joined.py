"""Ledgers of clones merged: chains hold, every entry is there once, and what was forged is named."""

import copy
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.core.errors import LedgerError
from canal.registry.ledger.joined import (
    LedgerText,
    holds,
    ledger_bytes,
    ledger_records,
    ledger_retired,
    origin,
    other_ledger,
    replayed,
)
from canal.registry.ledger.ledger import Entry, ledger_aliases
from canal.registry.ledger.ledger_rules import LOST, breaches
from canal.registry.ledger.signing import add_to_keyring, new_key, read_keyring, signature_findings
from canal.registry.promotion.merging import combined
from canal.registry.promotion.promotion import Decision
from tests.faults.forgeries import following, rechained
from tests.registry.test_rules import BACKBONE, BOOK, MODEL, draft
from tests.support.registered import promoted

ADA = Decision("A. Person", "both labs moved on")
START = [*BOOK, following(BOOK, draft("register", 3, {"candidate": 3}))]


def then(entries, *drafts):
    """Return a ledger continued by these."""
    entries = list(entries)
    for one in drafts:
        entries.append(following(entries, one))
    return entries


def promote(entries, number, **words):
    before = ledger_aliases(list(entries), MODEL).get("champion")
    return then(
        entries,
        draft("promote", number, {"champion": number, "previous": before}, promoted(number, before), **words),
    )


def retire(entries, number):
    return then(entries, draft("retire", number, _off(entries, number)))


def _off(entries, number):
    aliases = ledger_aliases(list(entries), MODEL)
    off: dict[str, int | None] = {"previous": None} if aliases.get("previous") == number else {}
    if aliases.get("candidate") == number:
        known = {n for model, n in ledger_records(list(entries)) if model == MODEL}
        left = known - ledger_retired(list(entries), MODEL) - {number}
        off["candidate"] = max(left, default=None)
    return off


def merge(ours, theirs):
    return combined(list(ours), list(theirs), MODEL, ADA)


def grave(entries):
    return [str(one) for one in breaches(entries, BACKBONE) if one.grave]


OURS = promote(START, 1, why="ours")
THEIRS = retire(promote(promote(START, 3, why="theirs"), 2, why="theirs again"), 3)


def test_the_others_entries_stand_behind_ours_with_all_that_they_said():
    found = merge(OURS, THEIRS)
    entries = LedgerText("ledger.jsonl", ledger_bytes(found.entries)).entries()
    assert entries[: len(OURS)] == OURS
    *anew, closing = entries[len(OURS) :]
    assert [origin(one) for one in anew] == THEIRS[len(START) :]
    kept = ("time", "kind", "model", "version", "key", "record", "who", "why", "aliases")
    for one, other in zip(anew, THEIRS[len(START) :], strict=True):
        assert {name: one.document[name] for name in kept} == {name: other.document[name] for name in kept}
        assert one.document["details"].items() >= other.document["details"].items()
    details = closing.document["details"]
    assert details["ours"] == {"seq": len(OURS), "hash": OURS[-1].hash}
    assert details["theirs"] == {"seq": len(THEIRS), "hash": THEIRS[-1].hash}
    assert (closing.document["who"], closing.document["why"]) == (ADA.by, ADA.why)
    assert other_ledger(entries[:-1], closing) == THEIRS
    assert grave(entries) == []


def test_aliases_stay_where_this_ledger_had_them_but_on_no_version_that_the_other_retired():
    entries = merge(OURS, THEIRS).entries
    assert ledger_aliases(OURS, MODEL) == {"champion": 1, "previous": 2, "candidate": 3}
    assert ledger_aliases(entries, MODEL) == {"champion": 1, "previous": 2, "candidate": 2}
    gone = retire(retire(promote(START, 1), 2), 3)
    other = promote(START, 1, why="here, too")
    assert ledger_aliases(merge(other, gone).entries, MODEL) == {"champion": 1, "candidate": 1}
    assert ledger_aliases(merge(THEIRS, OURS).entries, MODEL) == ledger_aliases(THEIRS, MODEL)


def test_moves_go_on_behind_a_merge():
    entries = promote(merge(OURS, THEIRS).entries, 2)
    assert grave(entries) == []
    back = then(entries, draft("rollback", 1, {"champion": 1, "previous": 2}, {"from": 2, "to": 1}))
    assert breaches(back, BACKBONE) == []
    retired = then(back, draft("promote", 3, {"champion": 3, "previous": 1}, promoted(3, 1)))
    assert any("version 3 was retired" in one for one in grave(retired))


def test_what_serves_here_and_was_retired_there_is_refused():
    with pytest.raises(LedgerError, match="version 3 serves here, and the other ledger retired it .*entry 9"):
        merge(promote(START, 3), THEIRS)


def test_a_number_of_two_versions_is_refused_with_the_way_out():
    ours = then(START, draft("register", 4, {"candidate": 4}, key="4" * 64))
    theirs = then(START, draft("register", 4, {"candidate": 4}, key="5" * 64))
    with pytest.raises(
        LedgerError, match=r"canal-annotator 4 is another version in each.*`canal export 4 -o"
    ):
        merge(ours, theirs)
    same = then(START, draft("register", 4, {"candidate": 4}, key="4" * 64, record="e" * 64))
    entries = merge(ours, same).entries
    assert grave(entries) == []
    assert ledger_records(entries)[MODEL, 4] is entries[len(START)]
    lost = then(same, draft("rebuild", 4, {"candidate": None}, {LOST: True}, key="4" * 64))
    assert ledger_records(merge(ours, lost).entries)[MODEL, 4].document["record"] == "b" * 64


def test_what_one_ledger_holds_is_not_merged_again():
    found = merge(OURS, THEIRS)
    for older in (THEIRS, THEIRS[:-1], OURS[:-1], START):
        assert merge(found.entries, older).outcome == "nothing"
    assert merge(START, THEIRS).outcome == "continued"
    taken = merge(THEIRS, found.entries)
    assert (taken.outcome, taken.entries) == ("continued", found.entries)


def test_both_merge_the_other_and_both_go_on():
    """A criss-cross, twice: entries that came and went stand once, and both ledgers hold."""
    one, other = OURS, THEIRS
    for number in (1, 2):
        first, second = merge(one, other).entries, merge(other, one).entries
        one = promote(first, 2 if number == 1 else 1, why=f"one {number}")
        other = promote(second, 1 if number == 1 else 2, why=f"other {number}")
        assert grave(one) == grave(other) == []
    joined = merge(one, other).entries
    hashes = [origin(entry).hash for entry in joined]
    assert len(hashes) == len(set(hashes))
    assert {origin(entry).hash for entry in (*one, *other)} < set(hashes)
    assert holds(joined, ledger_bytes(other))
    assert grave(joined) == []


def test_two_clones_that_both_merged_a_third_are_merged():
    """Both appended the same entries: they stand once, and one went on where the other closed."""
    third = THEIRS
    one, other = merge(OURS, third).entries, merge(OURS, promote(third, 1)).entries
    joined = merge(one, other).entries
    assert grave(joined) == []
    anew = [entry for entry in joined[len(one) :] if replayed(entry)]
    assert [entry.kind for entry in anew] == ["promote", "merge"]
    assert len(anew[0].document["details"]["merged"]) == 2
    for ledger in (one, other, third, promote(third, 1)):
        assert holds(joined, ledger_bytes(ledger))


# --- forged


def _changed(change):
    """Return a merged ledger with its documents changed, whose chain holds."""
    documents = [copy.deepcopy(entry.document) for entry in merge(OURS, THEIRS).entries]
    change(documents)
    return rechained(documents)


def dropped(documents):
    del documents[len(OURS)]


def last_dropped(documents):
    del documents[-2]


def one_more(documents):
    documents.insert(-1, copy.deepcopy(documents[-2]))


def swapped(documents):
    at = len(OURS)
    documents[at], documents[at + 1] = documents[at + 1], documents[at]


def reworded(documents):
    documents[len(OURS)]["why"] = "for fun"


def promoted_another(documents):
    documents[len(OURS)]["version"] = 1


def other_time(documents):
    documents[-2]["time"] = "2020-01-01T00:00:00+00:00"


def no_merge(documents):
    del documents[-1]


def unmarked(documents):
    del documents[-2]["details"]["merged"]


def level_of_nothing(documents):
    documents[-2]["details"]["merged"] = "yes"


def serves_another(documents):
    documents[-1]["aliases"]["champion"] = 3


def serves_theirs(documents):
    documents[-1]["aliases"] |= {"champion": 2, "previous": 3}


def no_aliases(documents):
    documents[-1]["aliases"] = {}


def nobody(documents):
    documents[-1]["who"] = " "


def no_reason(documents):
    documents[-1]["why"] = ""


def other_head(documents):
    documents[-1]["details"]["theirs"]["hash"] = "f" * 64


def fewer(documents):
    documents[-1]["details"]["theirs"]["seq"] -= 1


def no_end(documents):
    documents[-1]["details"]["theirs"]["seq"] = 10**12


def other_base(documents):
    documents[-1]["details"]["base"] -= 1


def other_own_head(documents):
    documents[-1]["details"]["ours"]["hash"] = "f" * 64


def no_details(documents):
    documents[-1]["details"] = {}


def more_details(documents):
    documents[-1]["details"]["by"] = "me"


def held_that_is_not(documents):
    documents[-1]["details"]["held"] = [{"seq": len(START) + 1, "at": 2, "merged": []}]


def of_a_version(documents):
    documents[-1]["version"] = 2


def before_changed(documents):
    documents[3]["why"] = "for fun"


FORGED = {
    dropped: "missing",
    last_dropped: "missing",
    one_more: "not of the ledger that it joined",
    swapped: "is missing, or was changed",
    reworded: "is not what it was",
    promoted_another: "is not what it was",
    other_time: "is not what it was",
    no_merge: "no merge follows",
    unmarked: "it names entry 7",
    level_of_nothing: "does not say where it stood",
    serves_another: "aliases stay where",
    serves_theirs: "aliases stay where",
    no_aliases: "aliases stay where",
    nobody: "does not say who",
    no_reason: "does not say why",
    other_head: "what it joined ends with",
    fewer: "ends with|not of the ledger",
    no_end: "is missing",
    other_base: "is missing, or was changed|ends with",
    other_own_head: "as this ledger's last entry",
    no_details: "does not say which ledger",
    more_details: "does not say which ledger",
    held_that_is_not: "is missing, or was changed",
    of_a_version: "about no version",
    before_changed: "as this ledger's last entry",
}


@pytest.mark.parametrize("change", FORGED, ids=lambda one: one.__name__)
def test_a_forged_merge_is_named(change):
    entries = _changed(change)
    LedgerText("ledger.jsonl", ledger_bytes(entries)).entries()  # whose chain holds
    found = grave(entries)
    assert any(re.search(FORGED[change], one) for one in found), found


def test_a_merged_ledger_that_canal_would_not_have_written_is_named():
    """Every hash fits: what it joined has a promotion past a rule that failed."""
    said = promoted(3, 2)
    said["rulings"][0]["passed"] = False
    forged = then(START, draft("promote", 3, {"champion": 3, "previous": 2}, said))
    assert any(
        "the ledger that it joined does not hold: entry 7" in one
        for one in grave(merge(OURS, forged).entries)
    )


def test_a_merge_of_what_was_there_before_is_named():
    """Nothing is joined that this ledger begins with: it would only move aliases."""
    details = {
        "base": 3,
        "ours": {"seq": len(BOOK), "hash": BOOK[-1].hash},
        "theirs": {"seq": 4, "hash": BOOK[3].hash},
        "held": [{"seq": 4, "at": 4, "merged": []}],
    }
    for base in (3, 4):
        forged = then(BOOK, draft("merge", 0, {"champion": 1}, details | {"base": base}, key="", record=""))
        assert any("was the beginning of the other" in one for one in grave(forged))


def test_who_signed_what_was_merged_is_checked_as_it_was_first_written(tmp_path):
    key, other, ring = (tmp_path / name for name in ("key.pem", "other.pem", "keyring.txt"))
    from canal.registry.ledger.signing import open_key

    for path, name in ((key, "Ada Lovelace"), (other, "A. Person")):
        new_key(path, name)
        add_to_keyring(ring, open_key(path).public.line)
    sign = open_key(key).signer("Ada Lovelace")
    ours = [*START, following(START, _promotion(1, "ours"), sign)]
    theirs = [*START, following(START, _promotion(3, "theirs"), sign)]
    decision = Decision("A. Person", "both", open_key(other).signer("A. Person"))
    entries = combined(ours, theirs, MODEL, decision).entries[len(START) :]
    assert ["signature" in one.document for one in entries] == [True, False, True]
    keyring = read_keyring(ring)
    assert signature_findings(entries, keyring) == []
    forged = copy.deepcopy(entries[1].document)
    forged["details"]["merged"][0]["signature"] = dict(ours[-1].document["signature"])
    (said,) = signature_findings([Entry(forged)], keyring)
    assert "was not made with the key of 'Ada Lovelace'" in said


def _promotion(number, why):
    return draft("promote", number, {"champion": number, "previous": 2}, promoted(number, 2), why=why)


# --- any history


MOVES = st.tuples(
    st.sampled_from(["promote", "promote", "rollback", "register", "retire", "merge", "merge"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 9),
)


@settings(max_examples=100)
@given(st.lists(MOVES, min_size=2, max_size=25))
def test_any_history_of_three_clones_is_one_ledger_with_every_entry_once(moves):
    clones, number, told = [list(START)] * 3, 3, 0
    for kind, at, other, pick in moves:
        ledger, told = clones[at], told + 1
        aliases, known = ledger_aliases(ledger, MODEL), {n for m, n in ledger_records(ledger) if m == MODEL}
        able = sorted(known - ledger_retired(ledger, MODEL) - {aliases["champion"]})
        if kind == "register":
            number += 1
            clones[at] = then(ledger, draft("register", number, {"candidate": number}, key=f"{number:064d}"))
        elif kind == "merge":
            clones[at] = _merged(ledger, clones[other])
        elif able and kind == "retire" and len(able) > 1:
            clones[at] = retire_of(ledger, able[pick % len(able)])
        elif able and kind != "retire":
            clones[at] = move_of(ledger, kind, able[pick % len(able)], f"move {told}")
    for ledger in clones:
        _check(ledger)


def _key_of(ledger, number):
    return ledger_records(ledger)[MODEL, number].document["key"]


def retire_of(ledger, number):
    return then(ledger, draft("retire", number, _off(ledger, number), key=_key_of(ledger, number)))


def move_of(ledger, kind, number, why):
    before = ledger_aliases(ledger, MODEL)["champion"]
    details = promoted(number, before) if kind == "promote" else {"from": before, "to": number}
    aliases = {"champion": number, "previous": before}
    return then(ledger, draft(kind, number, aliases, details, key=_key_of(ledger, number), why=why))


def _merged(ours, theirs):
    champion, retired = ledger_aliases(ours, MODEL)["champion"], ledger_retired(theirs, MODEL)
    if champion in retired and not holds(theirs, ledger_bytes(ours)):
        with pytest.raises(LedgerError, match="serves here, and the other ledger retired it"):
            merge(ours, theirs)
        return ours
    found = merge(ours, theirs)
    aliases, retired = ledger_aliases(ours, MODEL), ledger_retired(found.entries, MODEL)
    if found.outcome != "continued":
        after = ledger_aliases(found.entries, MODEL)
        assert after["champion"] == aliases["champion"]
        assert not set(after.values()) & retired
    _check(found.entries)
    origins = [origin(entry).hash for entry in found.entries]
    assert {origin(entry).hash for entry in (*ours, *theirs)} <= set(origins)
    assert holds(found.entries, ledger_bytes(theirs))
    assert found.outcome == "continued" or found.entries[: len(ours)] == ours
    assert merge(found.entries, theirs).outcome == "nothing"
    return found.entries


def _check(ledger):
    """Its chain and rules hold, and no entry stands twice."""
    assert LedgerText("ledger.jsonl", ledger_bytes(ledger)).entries() == ledger
    assert grave(ledger) == []
    origins = [origin(entry).hash for entry in ledger]
    assert len(origins) == len(set(origins))
    assert sum(replayed(entry) for entry in ledger) < len(ledger)
    assert json.loads(ledger[-1].line) == ledger[-1].document
