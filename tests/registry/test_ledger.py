"""The ledger: appended whole or not at all, and any change of its past is found."""

import json
import os
import resource
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.core.errors import LedgerError
from canal.registry.ledger.joined import ledger_records, ledger_retired
from canal.registry.ledger.ledger import (
    Draft,
    Ledger,
    entry_hash,
    ledger_aliases,
)

MODEL = "canal-annotator"


def draft(version=1, kind="register", **changes):
    words = {"key": "a" * 64, "record": "b" * 64, "who": "A. Person", "why": "because"}
    return Draft(kind=kind, model=MODEL, version=version, **words | changes)


def filled(path, count=5):
    ledger = Ledger(path)
    for number in range(1, count + 1):
        ledger.append(ledger.next(draft(number, aliases={"candidate": number})))
    return ledger


@pytest.fixture
def ledger(tmp_path):
    return filled(tmp_path / "ledger.jsonl")


def lines(ledger):
    return ledger.path.read_text().splitlines(keepends=True)


def test_entries_are_numbered_and_chained(ledger):
    entries = ledger.entries()
    assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5]
    for before, after in zip(entries, entries[1:], strict=False):
        assert after.document["previous"] == before.hash
        assert after.hash == entry_hash(after.document)
    assert ledger.head().version == 5


def test_no_file_is_an_empty_ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.entries() == []
    assert ledger.head() is None
    assert ledger.mend() is False


@pytest.mark.parametrize(
    "change",
    [
        lambda found: [found[0].replace("because", "for fun"), *found[1:]],
        lambda found: [*found[:2], *found[3:]],
        lambda found: [found[1], found[0], *found[2:]],
        lambda found: [*found[:2], "nonsense\n", *found[2:]],
        lambda found: [*found, found[-1]],
        lambda found: [*found[:1], "[]\n", *found[1:]],
        lambda found: [found[0].replace('"format":1', '"format":9'), *found[1:]],
        lambda found: [json.dumps({**json.loads(found[0]), "more": 1}) + "\n", *found[1:]],
    ],
)
def test_a_changed_past_is_found_and_nothing_is_appended_to_it(ledger, change):
    following = ledger.next(draft(6))
    ledger.path.write_text("".join(change(lines(ledger))))
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerError, match=r"git checkout -- ledger\.jsonl"):
        ledger.entries()
    with pytest.raises(LedgerError):
        ledger.append(following)
    assert ledger.path.read_bytes() == before


def test_a_rehashed_line_breaks_the_chain_after_it(ledger):
    found = [json.loads(line) for line in lines(ledger)]
    found[1]["who"] = "Somebody Else"
    found[1]["hash"] = entry_hash(found[1])
    ledger.path.write_text("".join(json.dumps(one) + "\n" for one in found))
    _, wrong = ledger.read()
    assert len(wrong) == 1
    assert wrong[0].startswith("line 3: follows")


@given(cut=st.integers(min_value=1, max_value=400))
def test_a_torn_last_line_counts_as_not_there_and_is_mended(tmp_path_factory, cut):
    ledger = filled(tmp_path_factory.mktemp("ledger") / "ledger.jsonl", 2)
    whole = ledger.path.read_bytes()
    torn = ledger.next(draft(3)).line.encode()
    ledger.path.write_bytes(whole + torn[: min(cut, len(torn) - 1)])
    assert len(ledger.entries()) == 2
    ledger.append(ledger.next(draft(3)))
    assert len(ledger.entries()) == 3


def test_an_entry_that_does_not_follow_is_refused(ledger):
    stale = ledger.next(draft(6))
    ledger.append(ledger.next(draft(7)))
    with pytest.raises(LedgerError, match="does not follow"):
        ledger.append(stale)


def test_a_full_disk_leaves_the_ledger_as_it_was(ledger):
    """A limit on the size of files stands for the full disk: the write ends in the middle."""
    size = ledger.path.stat().st_size
    entry, before = ledger.next(draft(6)), ledger.path.read_bytes()
    child = os.fork()
    if child == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))
        try:
            ledger.append(entry)
        except LedgerError as error:
            os._exit(0 if "it is as it was" in str(error) else 3)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ledger.path.read_bytes() == before
    ledger.append(entry)


def test_the_last_word_on_aliases_retirements_and_records(ledger):
    ledger.append(ledger.next(draft(4, "promote", aliases={"champion": 4})))
    ledger.append(ledger.next(draft(5, "promote", aliases={"champion": 5, "previous": 4})))
    ledger.append(ledger.next(draft(4, "retire", aliases={"previous": None})))
    ledger.append(ledger.next(draft(2, "rebuild", record="c" * 64)))
    entries = ledger.entries()
    assert ledger_aliases(entries, MODEL) == {"candidate": 5, "champion": 5}
    assert ledger_aliases(entries, "another") == {}
    assert ledger_retired(entries, MODEL) == {4}
    assert ledger_records(entries)[MODEL, 2].document["record"] == "c" * 64


def test_a_signature_is_kept_and_stands_outside_the_hash(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    entry = ledger.next(draft(), lambda digest: {"key": "k", "value": digest[:8]})
    ledger.append(entry)
    assert ledger.entries()[0].document["signature"] == {"key": "k", "value": entry.hash[:8]}


def test_a_clock_that_was_set_back_does_not_break_the_order(ledger, monkeypatch):
    class Back(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr("canal.registry.ledger.ledger.datetime", Back)
    ledger.append(ledger.next(draft(6)))
    assert [entry.seq for entry in ledger.entries()] == [1, 2, 3, 4, 5, 6]
    assert ledger.head().document["time"].startswith("2001-01-01")


def test_an_unsettled_merge_is_told_apart_from_a_change(ledger):
    text = ledger.path.read_text()
    ledger.path.write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> other\n")
    with pytest.raises(LedgerError, match="two sides of an unsettled merge: `canal ledger merge` joins"):
        ledger.entries()
    ledger.path.write_text("nonsense\n" + text)
    with pytest.raises(LedgerError, match="Bring it back: git checkout -- ledger.jsonl"):
        ledger.entries()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("aliases", 5),
        ("aliases", {"champion": "1"}),
        ("version", "one"),
        ("model", None),
        ("details", []),
        ("signature", {"key": 1}),
    ],
)
def test_a_value_of_another_type_is_named_though_the_hash_fits(ledger, field, value):
    *whole, last = lines(ledger)
    entry = json.loads(last) | {field: value}
    entry["hash"] = entry_hash(entry)
    ledger.path.write_text("".join(whole) + json.dumps(entry) + "\n")
    with pytest.raises(LedgerError, match=f"line 5: {field}: not what is expected there"):
        ledger.entries()


def test_a_line_that_is_nested_too_deep_or_far_too_long_is_told_in_short(ledger):
    with ledger.path.open("a") as stream:
        stream.write("[" * 100_000 + "\n")
        stream.write(json.dumps(json.loads(lines(ledger)[0]) | {"format": "x" * 50_000}) + "\n")
    with pytest.raises(LedgerError, match="2 findings") as raised:
        ledger.entries()
    assert "line 6: not JSON" in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_a_ledger_that_is_another_file_is_not_read_to_its_end(ledger):
    with ledger.path.open("a") as stream:
        stream.write("\n" * 300_000)
    _, wrong = ledger.read()
    assert wrong[-1] == "line 1007 and those behind it are not looked at: too much does not hold"
    assert len(wrong) == 1002
