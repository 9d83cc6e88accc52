"""Other types are held out of a learned lineage: it is measured again, nothing is learned, all on record."""

from __future__ import annotations

import shutil

import pytest

import canal.app.pipeline
from canal.app.auditing import audit_project
from canal.app.promoting import judge_version
from canal.app.versions import registry_sync, version_view
from canal.core.digests import tree_digests
from canal.core.files import read_json
from canal.registry.promotion import moves
from canal.registry.promotion.moves import ledger_of
from tests.pipeline.conftest import Line
from tests.released.test_released import never, step

pytestmark = pytest.mark.pipeline

STAGES = ("first", "second")


def hold_out(line: Line, names: list[str] | None) -> None:
    """Name the types to be held out in params.yaml; None leaves the choice to canal."""

    def change(document) -> None:
        document["novelty"].pop("holdouts", None)
        if names is not None:
            document["novelty"]["holdouts"] = names

    line.edit(change)


def evaluate(line: Line, monkeypatch, *stages: str) -> None:
    """Run the step `evaluate` of stages in this process; nothing may be learned."""
    monkeypatch.setattr(canal.app.pipeline, "project_step", never)
    for stage in stages:
        step(line, monkeypatch, "evaluate", "--stage", stage)


def held_out(line: Line, number: int) -> set[str]:
    """Return the types that a version is shown to be measured on."""
    novelty = version_view(line.project(), str(number))["evaluation"]["novelty"]
    return {one["type"] for one in novelty["holdouts"]}


def kinds(line: Line) -> list[str]:
    """Return the kinds of the ledger's entries."""
    return [entry.kind for entry in ledger_of(line.project().store).entries()]


def h_score(line: Line, number: int) -> str:
    """Return the value by which the policy judges a version's H-score."""
    rulings = judge_version(line.project(), str(number)).rulings
    return next(one.value for one in rulings if one.rule == "h_score")


@pytest.mark.chaos
def test_dvc_measures_again_and_learns_nothing(line):
    before = tree_digests(line.root / "models")
    records = [one.record for one in line.project().store.versions()]
    hold_out(line, ["NK", "T"])
    said = line.run("dvc", "repro", "--quiet")
    assert "epoch" not in said
    assert said.count("measured again, nothing learned") == 2
    line.canal("registry", "sync")
    assert tree_digests(line.root / "models") == before
    project = line.project()
    assert [one.record for one in project.store.versions()] == records
    assert kinds(line) == ["register"] * 3 + ["measure"] * 2
    assert held_out(line, 1) == held_out(line, 2) == {"NK", "T"}
    novelty = ledger_of(project.store).entries()[-1].document["details"]["novelty"]
    assert h_score(line, 2) == f"{novelty['h_score']:.3f}"
    assert audit_project(project).findings == ()
    about = project.store.client.get_model_version("canal-annotator", "2").description
    assert about.endswith(f"(entry 5 of the ledger, 2 held-out types): H-score {novelty['h_score']:.3f}.")
    assert "T" in (line.root / "metrics" / "second" / "evaluation.json").read_text()
    assert "nothing to do" in line.canal("registry", "sync")
    assert kinds(line) == ["register"] * 3 + ["measure"] * 2


def test_what_was_measured_before_is_restored_and_counts_again(line, monkeypatch, capsys):
    registered = read_json(line.root / "metrics" / "second" / "evaluation.json")
    hold_out(line, ["B"])
    evaluate(line, monkeypatch, "second")
    line.canal("registry", "sync")
    assert held_out(line, 2) == {"B"}
    hold_out(line, ["NK"])
    capsys.readouterr()
    evaluate(line, monkeypatch, "second")
    assert "measured" not in capsys.readouterr().err
    assert read_json(line.root / "metrics" / "second" / "evaluation.json") == registered
    line.canal("registry", "sync")
    assert held_out(line, 2) == {"NK"}
    hold_out(line, ["B"])  # a colleague's metrics/, which are behind params.yaml, are no measurement
    assert registry_sync(line.project()).measured == ()
    assert audit_project(line.project()).findings == ()


def test_without_names_every_type_with_enough_cells_is_held_out(line, monkeypatch):
    hold_out(line, None)
    evaluate(line, monkeypatch, "second")
    assert [one.stage for one in registry_sync(line.project()).measured] == ["second"]
    assert held_out(line, 2) == {"B", "T", "NK", "Mono"}


def test_a_promotion_that_lacked_a_measurement_passes_after_one(line, monkeypatch):
    hold_out(line, [])
    evaluate(line, monkeypatch, "second")
    line.canal("registry", "sync")
    ruling = next(one for one in judge_version(line.project(), "2").rulings if one.rule == "h_score")
    assert (ruling.value, ruling.passed) == ("not measured", False)
    assert "novelty.holdouts" in ruling.note
    assert "canal run then measures again" in ruling.note
    hold_out(line, ["T"])
    evaluate(line, monkeypatch, "second")
    line.canal("registry", "sync")
    assert next(one for one in judge_version(line.project(), "2").rulings if one.rule == "h_score").passed


def test_where_the_cells_are_gone_the_measurement_stays(line, monkeypatch, capsys):
    path = line.root / "metrics" / "second" / "evaluation.json"
    before = path.read_bytes()
    shutil.rmtree(line.root / "prepared" / "second")
    hold_out(line, ["T"])
    evaluate(line, monkeypatch, "second")
    said = capsys.readouterr().err
    assert "novelty.holdouts asks for other types than version 2 was measured on" in said
    assert "its cells are gone. Its measurement stays as it is" in said
    assert path.read_bytes() == before
    assert registry_sync(line.project()).measured == ()


def test_a_registration_of_a_measurement_that_was_killed_is_finished(line, monkeypatch):
    hold_out(line, ["T"])
    evaluate(line, monkeypatch, "second")

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(moves, "_describe", kill)
        registry_sync(line.project())
    assert line.project().layout.pending.is_file()
    assert registry_sync(line.project()).measured == ()
    assert kinds(line) == ["register"] * 3 + ["measure"]
    assert held_out(line, 2) == {"T"}
    report = audit_project(line.project())  # the step ran without DVC, whose dvc.lock has other metrics
    assert [one.check for one in report.findings] == ["dvc", "dvc", "dvc"]
    assert not [one for one in report.notes if "description" in one.what]


def test_figures_that_were_edited_are_no_measurement(line, monkeypatch):
    path = line.root / "metrics" / "second" / "evaluation.json"
    hold_out(line, ["T"])
    evaluate(line, monkeypatch, "second")
    text = path.read_text()
    for edited in (text.replace('"forgetting": ', '"forgetting": 1'), text[:-40], "[]", "{}"):
        path.write_text(edited)
        assert edited != text
        assert registry_sync(line.project()).measured == ()
