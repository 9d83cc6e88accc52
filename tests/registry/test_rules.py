"""Which kind of entry may move which alias, of which version, past which rulings: all else is named."""

import re

import pytest

from canal.core.errors import LedgerError
from canal.registry.ledger.joined import ledger_erased, ledger_retired
from canal.registry.ledger.ledger import Draft
from canal.registry.ledger.ledger_rules import breaches, require_next, require_rules
from canal.registry.ledger.rulings import ALWAYS_NOW, measured, remeasured
from tests.faults.forgeries import ADA, following, forgeries, honest
from tests.support.registered import PASSED, promoted

BACKBONE, MODEL = "canal-backbone", "canal-annotator"


def draft(kind, version, aliases=(), details=(), model=MODEL, **words):
    words = {"key": str(version) * 64, "record": "b" * 64, "who": ADA, "why": "reviewed"} | words
    return Draft(kind, model, version, aliases=dict(aliases), details=dict(details), **words)


def written(*drafts):
    entries = []
    for one in drafts:
        entries.append(following(entries, one))
    return entries


BOOK = written(
    draft("register", 1, model=BACKBONE, key="0" * 64),
    draft("register", 1, {"candidate": 1}),
    draft("register", 2, {"candidate": 2}),
    draft("promote", 1, {"champion": 1}, promoted(1)),
    draft("promote", 2, {"champion": 2, "previous": 1}, promoted(2, 1)),
)
FORGED = forgeries(BOOK)


def test_what_canal_writes_breaks_no_rule():
    assert breaches(BOOK, BACKBONE) == []
    for one in honest(BOOK):
        assert breaches([*BOOK, following(BOOK, one)], BACKBONE) == [], one
        require_next(BOOK, following(BOOK, one), BACKBONE)


@pytest.mark.parametrize("forged", FORGED, ids=[one.name for one in FORGED])
def test_what_it_does_not_write_is_named_and_nothing_is_built_on_it(forged):
    entry = following(BOOK, forged.draft)
    said = [str(one) for one in breaches([*BOOK, entry], BACKBONE) if one.grave]
    assert any(re.search(re.escape(forged.named), one) for one in said), said
    assert all(one.startswith("entry 6 (") for one in said)
    with pytest.raises(LedgerError, match=re.escape(forged.named)):
        require_next(BOOK, entry, BACKBONE)
    later = following([*BOOK, entry], draft("register", 4, {"candidate": 4}, key="4" * 64))
    with pytest.raises(LedgerError, match=r"(?s)nothing was moved.*entry 6 .*git log -p -- ledger\.jsonl"):
        require_rules([*BOOK, entry, later], BACKBONE, "ledger.jsonl")


def erasing(number, aliases=(), **changes):
    versions = [{"model": MODEL, "version": number, "key": str(number) * 64, "record": "b" * 64}]
    details = {"cells": "c" * 64, "n_cells": 3, "token": "d" * 64, "tombstones": "e" * 64}
    details |= {"versions": versions} | changes.pop("details", {})
    return draft("erase", 0, aliases, details, **({"key": "", "record": ""} | changes))


def test_an_erasing_names_what_it_erased_and_leaves_no_alias_there():
    entries = [*BOOK, following(BOOK, erasing(1, {"previous": None}))]
    assert breaches(entries, BACKBONE) == []
    assert ledger_retired(entries, MODEL) == {1}
    assert list(ledger_erased(entries)) == [(MODEL, 1)]
    back = draft("rollback", 1, {"champion": 1, "previous": 2}, {"from": 2, "to": 1})
    (found,) = breaches([*entries, following(entries, back)], BACKBONE)
    assert "was retired and serves no more" in found.what
    assert breaches([*entries, following(entries, erasing(1))], BACKBONE) == []  # what came back goes again


@pytest.mark.parametrize(
    ("forged", "named"),
    [
        (erasing(2), "version 2 is the champion, whose files are never erased"),
        (erasing(1), "previous stays on a version that it erased"),
        (erasing(1, {"previous": None, "champion": 1}), "an erasing takes previous off its version"),
        (erasing(1, {"previous": None, "candidate": 2}), "candidate did not point to version 1"),
        (erasing(3), "version 3 was never registered"),
        (erasing(1, {"previous": None}, why=" "), "it does not say why"),
        (erasing(1, {"previous": None}, key="1" * 64), "names its versions in its details"),
        (erasing(1, {"previous": None}, details={"token": "short"}), "does not name by digest"),
        (erasing(1, {"previous": None}, details={"versions": 7}), "does not name by digest"),
        (erasing(1, {"previous": None}, details={"versions": [{"version": 1}]}), "does not name by digest"),
        (
            erasing(
                1, details={"versions": [{"model": MODEL, "version": 1, "key": "9" * 64, "record": "b" * 64}]}
            ),
            "was registered with another key or record (entry 2)",
        ),
    ],
)
def test_an_erasing_that_canal_would_not_write_is_named(forged, named):
    said = [str(one) for one in breaches([*BOOK, following(BOOK, forged)], BACKBONE) if one.grave]
    assert any(named in one for one in said), said


def held_out(name="NK", **changes):
    shares = {"known_accuracy": 0.5, "unknown_accuracy": 1.0, "h_score": 2 / 3, "auroc": 0.9}
    return {"type": name, "n_known": 40, "n_unknown": 6, **shares, **changes}


def measuring(number=1, aliases=(), types=None, words=(), **changes):
    types = [held_out(), held_out("B")] if types is None else types
    figures = {"holdouts": types, "h_score": 2 / 3, "auroc": 0.9, "not_measured": {"T": "not learned yet"}}
    return draft("measure", number, aliases, {"novelty": figures | changes}, why="", **dict(words))


def test_a_measurement_of_a_version_counts_and_lets_nobody_serve():
    entries = [*BOOK, following(BOOK, measuring())]
    entries.append(following(entries, measuring(2, types=[], h_score=None, auroc=None)))
    assert breaches(entries, BACKBONE) == []
    assert [one.version for one in measured(entries, MODEL, "1" * 64)] == [1]
    evaluation = {"row": {}, "novelty": {"threshold": 0.5, "h_score": None, "holdouts": []}}
    shown = remeasured(evaluation, entries[-2])["novelty"]
    assert (shown["threshold"], shown["h_score"], len(shown["holdouts"])) == (0.5, 2 / 3, 2)
    assert evaluation["novelty"]["h_score"] is None
    never = [*BOOK[:3], following(BOOK[:3], measuring())]
    back = draft("rollback", 1, {"champion": 1}, {"from": None, "to": 1})
    (found,) = [one for one in breaches([*never, following(never, back)], BACKBONE) if not one.grave]
    assert "never served" in found.what


@pytest.mark.parametrize(
    ("forged", "named"),
    [
        (measuring(3), "version 3 was never registered"),
        (measuring(words={"record": "9" * 64}), "registered (entry 2) is another"),
        (measuring(aliases={"champion": 1}), "a measurement moves no alias"),
        (measuring(h_score=0.99), "its h_score is not the mean"),
        (measuring(auroc=None), "its auroc is not the mean"),
        (measuring(types=[held_out(h_score=0.9)], h_score=0.9), "is no harmonic mean"),
        (measuring(types=[held_out(), held_out()]), "names a held-out type twice"),
        (measuring(not_measured={"NK": "few"}), "names a held-out type twice"),
        (measuring(types=[held_out(auroc=1.5)]), "counts of cells, and shares of them"),
        (measuring(types=[held_out(n_unknown=0)]), "counts of cells, and shares of them"),
        (measuring(types=[7]), "counts of cells, and shares of them"),
        (measuring(not_measured=[]), "why other types were not measured"),
        (draft("measure", 1, details={"novelty": {"h_score": 1.0}}), "no measurement of held-out types"),
        (draft("measure", 1), "no measurement of held-out types"),
    ],
)
def test_a_measurement_that_canal_would_not_write_is_named(forged, named):
    said = [str(one) for one in breaches([*BOOK, following(BOOK, forged)], BACKBONE) if one.grave]
    assert any(named in one for one in said), said


def test_a_retired_or_lost_version_serves_no_more():
    retired = [*BOOK, following(BOOK, draft("retire", 1, {"previous": None}))]
    back = draft("rollback", 1, {"champion": 1, "previous": 2}, {"from": 2, "to": 1})
    (found,) = breaches([*retired, following(retired, back)], BACKBONE)
    assert "was retired and serves no more" in found.what
    lost = [*BOOK, following(BOOK, draft("rebuild", 1, {"previous": None}, {"lost": True}))]
    (found,) = breaches([*lost, following(lost, back)], BACKBONE)
    assert "was lost (entry 6)" in found.what


def test_what_an_older_canal_wrote_after_a_move_behind_its_back_is_told_and_not_refused():
    """It took the champion from MLflow, where it had been moved; and promoted what sync had not noted."""
    back = draft("rollback", 2, {"champion": 2, "previous": 1}, {"from": 1, "to": 2})
    early = draft("promote", 3, {"champion": 3, "previous": 2}, promoted(3, 2))
    entries = [*BOOK, following(BOOK, back)]
    entries.append(following(entries, early))
    entries.append(following(entries, draft("register", 3)))
    found = breaches(entries, BACKBONE)
    assert [one.grave for one in found] == [False, False]
    assert "by the ledger it was 2: the alias had been moved without an entry" in found[0].what
    assert "registered only later (entry 8)" in found[1].what
    require_rules(entries, BACKBONE, "ledger.jsonl")


def test_a_candidate_that_a_kill_left_without_an_entry_may_follow_one_that_is_retired():
    """Sync notes it afterwards; an older canal did not ask for that first."""
    hand_on = [*BOOK[:3], following(BOOK[:3], draft("retire", 2, {"candidate": 3}))]
    assert breaches(hand_on, BACKBONE)[0].grave
    hand_on.append(following(hand_on, draft("register", 3, {"candidate": 3})))
    assert breaches(hand_on, BACKBONE) == []


def test_a_version_that_never_served_is_told_where_it_is_rolled_back_to():
    entries = [*BOOK, following(BOOK, draft("register", 3, {"candidate": 3}))]
    back = draft("rollback", 3, {"champion": 3, "previous": 2}, {"from": 2, "to": 3})
    (found,) = breaches([*entries, following(entries, back)], BACKBONE)
    assert (found.grave, "never served" in found.what) == (False, True)


def test_all_rules_are_asked_as_the_policy_has_them():
    """What `rulings` demands of every promotion is what the policy judges in each."""
    assert {one.rule.partition(":")[0] for one in PASSED} == set(ALWAYS_NOW)
