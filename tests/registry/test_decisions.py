"""What was decided about a version stays with it: promotions, overridden rules, retirement."""

from types import SimpleNamespace

import pytest

from canal.app import versions
from canal.app.versions import decisions
from canal.core.errors import RegistryError
from canal.registry.ledger.ledger import Draft, Ledger
from canal.registry.ledger.rulings import TOO_FEW
from canal.report.terminal import version_panel
from tests.report.test_terminal import make_view, rendered
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
    wanted = {"served": [], "overrides": [], "not_judged": [], "retired": False, "retirement": None}
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


def test_what_served_and_serves_no_more_says_who_ended_it(made):
    """The page of a version that was rolled back said that it was promoted, and no more."""
    first, second = (made.project.store.version(wanted) for wanted in ("1", "2"))
    note(made, "promote", first)
    note(made, "promote", second, "better")
    note(made, "retire", second, "never again")
    entries = note(made, "rollback", first, "T cells look wrong")
    ends = [one["until"] and (one["until"]["kind"], one["until"]["why"]) for one in served(entries, first)]
    assert ends == [("promote", "better"), None]
    (one,) = served(entries, second)
    assert (one["until"]["kind"], one["until"]["why"]) == ("rollback", "T cells look wrong")
    view = make_view() | decisions(entries, second)
    shown = " ".join(rendered(version_panel(view), 200).split())
    assert f"rolled back {one['until']['time']} by A. Person: T cells look wrong" in shown


def served(entries, version):
    return decisions(entries, version)["served"]


def test_what_had_too_few_cells_each_time_was_not_judged(made):
    version = made.project.store.version("1")
    rulings = [
        {"rule": rule, "value": value, "bound": "x", "passed": False, "overridden": True}
        for rule, value in (("ece", "0.3"), ("retention:first/B", TOO_FEW), ("accuracy", TOO_FEW))
    ]
    overrides = [one["rule"] for one in rulings]
    entries = note(made, "promote", version, rulings=rulings, overrides=overrides)
    assert decisions(entries, version)["not_judged"] == ["accuracy", "retention:first/B"]
    rulings[2]["value"] = "0.1"
    entries = note(made, "promote", version, rulings=rulings, overrides=overrides)
    assert decisions(entries, version)["not_judged"] == ["retention:first/B"]


def test_a_version_keeps_its_history_under_another_number(made):
    from dataclasses import replace

    version = made.project.store.version("1")
    entries = note(made, "promote", version, overrides=["ece"])
    assert decisions(entries, replace(version, number=9))["overrides"] == ["ece"]
    assert decisions(entries, replace(version, key="f" * 64))["served"] == []


def test_mlflows_pages_have_the_settings_that_nobody_has_to_type(made, monkeypatch):
    """`export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false` stood among the next steps."""
    started = []

    def run(command, env, **_):
        started.append((command, env))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("canal.app.versions.subprocess.run", run)
    monkeypatch.delenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", raising=False)
    assert versions.mlflow_pages(made.project, 5050) == 0
    ((command, env),) = started
    assert command[1:] == ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", "5050"]
    assert env["MLFLOW_BACKEND_STORE_URI"] == made.project.store.uri
    assert env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    made.project.layout.database.unlink()
    with pytest.raises(RegistryError, match="nothing is registered yet"):
        versions.mlflow_pages(made.project, 5050)
    made.project.store.uri = "https://person:secret@mlflow.lab.org"
    with pytest.raises(RegistryError, match=r"open https://person:\*\*\*@mlflow.lab.org"):
        versions.mlflow_pages(made.project, 5050)
