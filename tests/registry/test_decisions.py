"""What was decided about a version stays with it: promotions, overridden rules, retirement."""

import pytest

from canal.app.versions import decisions
from canal.registry.ledger.ledger import Draft, Ledger
from tests.support.registry_made import two_stages


@pytest.fixture
def made(tmp_path):
    return two_stages(tmp_path / "project")


def note(made, kind, version, why="because", **details):
    ledger = Ledger(made.project.layout.ledger)
    draft = Draft(kind, version.model, version.number, version.key, version.record, "A. Person", why,
                  details=details)  # fmt: skip
    ledger.append(ledger.next(draft))
    return ledger.entries()


def test_a_version_nobody_decided_about_has_no_history(made):
    version = made.project.store.version("2")
    entries = note(made, "promote", made.project.store.version("1"), overrides=["ece"])
    wanted = {"served": [], "overrides": [], "retired": False, "retirement": None}
    wanted |= {"erased": False, "erasure": None}
    assert decisions(entries, version) == wanted


def test_an_override_is_told_for_ever(made):
    first, second = (made.project.store.version(wanted) for wanted in ("1", "2"))
    note(made, "promote", first, "needed today", rulings=[], overrides=["h_score", "accuracy"])
    note(made, "promote", second)
    note(made, "rollback", first, "second is worse")
    entries = note(made, "retire", first, "donor withdrew")
    found = decisions(entries, first)
    assert [(one["kind"], one["why"], one["overrides"]) for one in found["served"]] == [
        ("promote", "needed today", ["h_score", "accuracy"]),
        ("rollback", "second is worse", []),
    ]
    assert found["overrides"] == ["accuracy", "h_score"]
    assert found["retired"]
    assert (found["retirement"]["who"], found["retirement"]["why"]) == ("A. Person", "donor withdrew")
    assert decisions(entries, second)["overrides"] == []


def test_a_version_keeps_its_history_under_another_number(made):
    from dataclasses import replace

    version = made.project.store.version("1")
    entries = note(made, "promote", version, overrides=["ece"])
    assert decisions(entries, replace(version, number=9))["overrides"] == ["ece"]
    assert decisions(entries, replace(version, key="f" * 64))["served"] == []
