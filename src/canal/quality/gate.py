"""The gate: judges a stage's source file, its declaration and its prepared bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from canal.config.sections import Gate
from canal.core.digests import file_digest, json_digest
from canal.core.errors import GateError
from canal.core.files import read_json, regular_file, scratch_folder
from canal.data.prepare import CELLS, SUMMARY, PrepareSettings, prepare
from canal.data.prepared import PreparedCells
from canal.quality.evidence import gather
from canal.quality.labels import TABLE, Ask, cells_to_ask, label_rule
from canal.quality.rules import rules_for
from canal.quality.subject import Subject
from canal.quality.suite import run_suite
from canal.quality.verdict import Verdict


def judge(subject: Subject, gate: Gate, docs: Path | None = None, ask: Ask | None = None) -> Verdict:
    """Check every rule on ``subject`` and return what was found; a failed rule is no exception.

    Parameters
    ----------
    docs
        Folder for Great Expectations' Data Docs; None writes none. They hold times.
    ask
        Asks the model of the parent stage about some cells, where it is there: labels are then compared with
        what it says. In the line, where the parent is learned after the gate, `canal.quality.labels` does it.

    Raises
    ------
    DataError
        If a file cannot be read as declared.
    GateError
        If the prepared folder was not made of this file with this declaration, or an earlier stage was
        profiled on another panel.
    """
    prepared = _prepared_folder(subject)
    about = _checked_summary(subject, prepared)
    panel_digest = json_digest(list(subject.panel))
    for name, earlier in subject.earlier.items():
        if earlier.profile.panel_digest != panel_digest:
            raise GateError(f"the profile of stage {name} is about another panel: run its gate again")
    evidence = gather(subject, prepared / CELLS, gate.max_drift)
    rules, tables = rules_for(subject, evidence, gate), dict(evidence.tables)
    if ask is not None:
        cells = PreparedCells(prepared / CELLS)
        tables[TABLE] = ask(cells, cells_to_ask(cells))
        parent = list(subject.earlier)[-1]
        rules.append(label_rule(subject.source_name, parent, gate.max_confused))
    results = run_suite(rules, tables, subject.stage, docs)
    return Verdict(
        stage=subject.stage,
        source=subject.source_name,
        source_sha256=about["source_sha256"],
        prepared_sha256=about["sha256"],
        declaration_digest=about["declaration_digest"],
        split_sha256=subject.split_sha256,
        counts=evidence.counts(),
        rules=tuple(results),
        profile=evidence.profile,
    )


def judge_file(
    subject: Subject,
    settings: PrepareSettings,
    gate: Gate,
    docs: Path | None = None,
    ask: Ask | None = None,
) -> Verdict:
    """Judge ``subject.raw``, whatever its digest, as `judge` would after preparing it.

    It is prepared in a temporary folder with the declaration ``subject.source``; ``subject.prepared`` and the
    declared sha256 are not looked at.

    Raises
    ------
    DataError
        If the file is damaged, or lacks a layer or column that the declaration names.
    """
    regular_file(subject.raw)
    source = subject.source.model_copy(update={"sha256": file_digest(subject.raw)})
    with scratch_folder("gate") as folder:
        prepared = folder / "prepared"
        prepare(subject.raw, subject.source_name, source, settings, prepared)
        return judge(replace(subject, source=source, prepared=prepared), gate, docs, ask)


def _prepared_folder(subject: Subject) -> Path:
    if subject.prepared is None or not (subject.prepared / SUMMARY).is_file():
        raise GateError(f"source {subject.source_name} is not prepared: run dvc repro")
    return subject.prepared


def _checked_summary(subject: Subject, prepared: Path) -> dict[str, Any]:
    """Return prepared.json after checking that raw file, declaration and prepared file belong together."""
    about: dict[str, Any] = read_json(prepared / SUMMARY)
    if not about["available"]:
        raise GateError(
            f"source {subject.source_name} is declared available: false: there is nothing to judge"
        )
    pairs = {
        "the source file": (about["source_sha256"], file_digest(subject.raw)),
        "the declaration": (about["declaration_digest"], json_digest(subject.source.declaration())),
        "the prepared file": (about["sha256"], file_digest(prepared / CELLS)),
    }
    changed = [name for name, (noted, found) in pairs.items() if noted != found]
    if changed:
        raise GateError(
            f"source {subject.source_name}: {' and '.join(changed)} changed since it was prepared; "
            "run dvc repro"
        )
    return about
