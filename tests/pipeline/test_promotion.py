"""Who serves: judged, promoted, rolled back, retired; every move on record, and finished after a kill."""

import json

import pytest
from typer.testing import CliRunner

from canal.app.auditing import audit_project
from canal.app.models import serving_version
from canal.app.promoting import Decision, compare, judge_version, promote, retire, rollback
from canal.app.versions import registry_sync
from canal.cli import app
from canal.core.errors import PolicyError, RegistryError
from canal.registry.ledger.ledger import Ledger, ledger_aliases
from canal.registry.promotion.moves import ledger_of
from canal.registry.promotion.policy import blocking_rulings
from tests.pipeline.conftest import keep_hooks
from tests.support.cells import LENIENT

pytestmark = pytest.mark.pipeline

MOVE = Decision("A. Person", "reviewed")


@pytest.fixture
def project(line):
    line.edit(lambda document: document.update(policy=LENIENT))
    return line.project()


def aliases(project):
    return {alias: one.number for one in project.store.versions() for alias in one.aliases}


def agree(project):
    """Aliases are the ledger's last word, and no move is under way."""
    said = ledger_aliases(ledger_of(project.store).entries(), project.store.names.model)
    assert aliases(project) == said
    assert not project.layout.pending.exists()
    return said


def test_a_version_s_life(project):
    store = project.store
    first = promote(project, judge_version(project, "1"), MOVE)
    assert agree(project) == {"candidate": 2, "champion": 1}
    assert any("no version serves yet" in one["note"] for one in first.document["details"]["rulings"])
    judgement = judge_version(project, "candidate")
    assert [one.rule for one in judgement.rulings if one.rule == "retention:first"]
    promote(project, judgement, MOVE)
    assert agree(project) == {"candidate": 2, "champion": 2, "previous": 1}
    words = ("--by", "A. Person", "--why", "tried", "--dry-run", "--root", str(project.layout.root))
    said = CliRunner().invoke(app, ["rollback", *words]).output
    assert (
        "rollback of version 1: champion would point to version 1, previous would point to version 2" in said
    )
    said = CliRunner().invoke(app, ["retire", "1", *words]).output
    assert "retire of version 1: previous would be taken away; nothing was changed" in said
    assert agree(project) == {"candidate": 2, "champion": 2, "previous": 1}
    assert serving_version(project, None).number == 2
    with pytest.raises(RegistryError, match="version 2 .* is the champion already"):
        judge_version(project, "2")
    rollback(project, None, Decision("B. Person", "labels look wrong"))
    assert agree(project) == {"candidate": 2, "champion": 1, "previous": 2}
    with pytest.raises(RegistryError, match="is the champion: promote another one"):
        retire(project, "champion", MOVE)
    retire(project, "2", MOVE)
    assert agree(project) == {"candidate": 1, "champion": 1}
    for refused in (lambda: rollback(project, "2", MOVE), lambda: judge_version(project, "2")):
        with pytest.raises(RegistryError, match="retired"):
            refused()
    with pytest.raises(RegistryError, match="retired"):
        serving_version(project, "2")
    assert project.learned("second").number == 2  # restored still, not trained again
    assert registry_sync(project).made == ()
    kinds = [entry.kind for entry in ledger_of(store).entries()]
    assert kinds == ["register"] * 3 + ["promote", "promote", "rollback", "retire"]


def test_a_rule_that_fails_refuses_and_an_override_is_kept(line, monkeypatch):
    monkeypatch.chdir(line.root)
    line.edit(lambda document: document.update(policy={**LENIENT, "min_accuracy": 1.0, "min_h_score": 1.0}))
    run = ["promote", "2", "--by", "A. Person", "--why", "needed today"]
    refused = CliRunner().invoke(app, [*run, "--dry-run"])
    assert refused.exit_code == 1
    assert "FAILS" in refused.output
    refused = CliRunner().invoke(app, [*run, "--override", "accuracy"])
    assert isinstance(refused.exception, PolicyError)
    assert "h_score" in str(refused.exception)
    project = line.project()
    assert "champion" not in aliases(project)
    done = CliRunner().invoke(app, [*run, "--override", "accuracy", "--override", "h_score", "--json"])
    assert done.exit_code == 0, done.output
    entry = ledger_of(project.store).head().document
    assert entry["details"]["overrides"] == ["accuracy", "h_score"]
    assert (entry["who"], entry["why"]) == ("A. Person", "needed today")
    assert (
        "overriding accuracy, h_score" in CliRunner().invoke(app, ["ledger"], env={"COLUMNS": "200"}).output
    )
    assert json.loads(CliRunner().invoke(app, ["ledger", "--json"]).stdout)[-1] == entry


def test_hooks_are_told_after_each_move_and_one_that_fails_changes_nothing(line, capsys):
    line.edit(lambda document: document.update(policy=LENIENT))
    keep_hooks(line)
    project = line.project()
    promote(project, judge_version(project, "1"), MOVE)
    promote(project, judge_version(project, "2"), MOVE)
    rollback(project, None, Decision("B. Person", "labels look wrong"))
    retire(project, "2", MOVE)
    assert agree(project) == {"candidate": 1, "champion": 1}
    told = [json.loads(text) for text in (line.root / "told.jsonl").read_text().splitlines()]
    assert [(one["action"], one["version"], one["stage"], one["alias"]) for one in told] == [
        ("promote", 1, "first", "champion"),
        ("promote", 2, "second", "champion"),
        ("rollback", 1, "first", "champion"),
        ("retire", 2, "second", None),
    ]
    assert (told[2]["by"], told[2]["why"]) == ("B. Person", "labels look wrong")
    entries = [entry.document for entry in ledger_of(project.store).entries()][-4:]
    assert [one["entries"] for one in told] == [[entry] for entry in entries]
    log = [json.loads(text) for text in (line.root / "hooks.jsonl").read_text().splitlines()]
    assert [one["outcome"] for one in log] == ["failed", "failed", "done"] * 4
    assert "which is complete and stays: exit code 1 (attempt 2 of 2" in capsys.readouterr().err
    assert audit_project(project).findings == ()


@pytest.mark.parametrize("stop", ["point", "append"])
def test_a_move_that_was_cut_off_is_finished_by_the_next_command(project, monkeypatch, stop):
    """What a kill leaves: the intent alone, or the intent and moved aliases without a line."""
    judgement = judge_version(project, "1")

    class KilledError(Exception):
        pass

    def kill(*_):
        raise KilledError

    with monkeypatch.context() as dying:
        owner = project.store.__class__ if stop == "point" else Ledger
        dying.setattr(owner, stop, kill)
        with pytest.raises(KilledError):
            promote(project, judgement, MOVE)
    assert project.layout.pending.is_file()
    assert ledger_of(project.store).head().kind == "register"
    registry_sync(project)
    assert agree(project) == {"candidate": 2, "champion": 1}
    assert ledger_of(project.store).head().document["who"] == "A. Person"


def test_the_first_promotion_compares_with_the_parent(line):
    """Not with nothing: what the stage lost of its parent's knowledge is asked for before anybody serves."""
    line.edit(lambda document: document.update(policy={**LENIENT, "max_loss": 0.0}))
    judgement = judge_version(line.project(), "2")
    assert (judgement.champion, judgement.compared.number) == (None, 1)
    document = judgement.to_json()
    assert document["compared_with"] == {"version": 1, "stage": "first"}
    retained = next(one for one in judgement.rulings if one.rule == "retention:first")
    assert not retained.passed
    assert retained.note.endswith(", too low")
    assert document["power"].startswith(
        "power: the probability that so many test cells would show a loss of 5"
    )
    assert judge_version(line.project(), "1").compared is None


def test_too_few_test_cells_pass_for_a_reason_that_stays(line, monkeypatch):
    monkeypatch.chdir(line.root)
    few = {"min_cells_per_stage": 50, "min_cells_per_type": 50}
    line.edit(lambda document: document.update(policy=LENIENT | few))
    run = ["promote", "2", "--by", "A. Person", "--why", "reviewed"]
    refused = CliRunner().invoke(app, run)
    assert isinstance(refused.exception, PolicyError)
    assert "3 of 8 rules had too few test cells to be judged" in str(refused.exception)
    assert "--too-few REASON lets rules pass that had too few test cells" in str(refused.exception)
    assert "NOT JUDGED" in refused.output
    assert "champion" not in aliases(line.project())
    for wrong in ("   ", "two\nlines"):
        with pytest.raises(RegistryError, match=r"the reason \(--too-few\)"):
            judge_version(line.project(), "2", too_few=wrong)
    done = CliRunner().invoke(app, [*run, "--too-few", "22 cells are all there are"])
    assert done.exit_code == 0, (done.output, done.exception)
    details = ledger_of(line.project().store).head().document["details"]
    assert details["too_few"] == "22 cells are all there are"
    assert details["overrides"] == ["accuracy", "balanced_accuracy", "retention:first"]
    (served,) = json.loads(line.canal("show", "2", "--json"))["served"]
    assert served["too_few"] == "22 cells are all there are"
    told = CliRunner().invoke(app, ["ledger"], env={"COLUMNS": "200"}).output
    assert "with too few test cells to judge accuracy, balanced_accuracy" in told
    assert "overriding" not in told


def test_models_are_compared_on_the_same_cells(project, line):
    found = compare(project, "2", "1")
    assert list(found.stages) == ["first", "second"]
    recorded = json.loads((line.root / "metrics" / "second" / "evaluation.json").read_text())["row"]
    for stage in found.stages:
        assert found.stages[stage].whole.candidate == pytest.approx(recorded[stage])
    assert found.to_json()["champion_stage"] == "first"
    head = line.canal("compare", "2", "--with", "1")
    assert "Version 2 second against version 1 first" in head
    assert "champion" not in head
    onfile = compare(project, "2", "1", line.root / "raw" / "second.h5ad", "second")
    assert onfile.stages["second.h5ad"].whole.n == 100
    with pytest.raises(RegistryError, match="cannot be compared with itself"):
        compare(project, "2", "candidate")


def test_the_default_policy_judges_a_dirty_version(line):
    judgement = judge_version(line.project(), "2")
    rules = {ruling.rule: ruling for ruling in judgement.rulings}
    assert rules["gate"].passed
    assert rules["audit"].passed, rules["audit"].note
    assert {"clean", "accuracy", "balanced_accuracy", "retention:first", "h_score", "ece"} <= rules.keys()
    assert all(ruling.value and ruling.bound for ruling in blocking_rulings(judgement.rulings))


def test_an_audit_can_ask_for_signatures(project, line, monkeypatch, tmp_path):
    """A promotion signed with a known key holds; what sync registered without a key is named."""
    monkeypatch.chdir(line.root)
    key, ring = tmp_path / "key.pem", tmp_path / "keyring"
    made = CliRunner().invoke(app, ["keys", "new", "--name", "A. Person", "-o", str(key)])
    assert made.exit_code == 0, made.output
    ring.write_text(next(text for text in made.stdout.splitlines() if " ed25519 " in text) + "\n")
    run = ["promote", "1", "--by", "A. Person", "--why", "reviewed", "--sign", str(key)]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, (done.output, done.exception)
    found = CliRunner().invoke(app, ["audit", "--require-signed", str(ring), "--json"])
    assert found.exit_code == 1
    findings = json.loads(found.stdout)["findings"]
    assert {finding["check"] for finding in findings} == {"signature"}
    assert len(findings) == 3
