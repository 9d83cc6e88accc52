"""The gate: validate a stage's source file, its declaration, its prepared cells and its labels.

Labels of a new data set are compared with the parent model's predictions for the same cells.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.config.sections import Gate
from canal.core.digests import file_digest, json_digest
from canal.core.errors import GateError, tell
from canal.core.files import read_json, regular_file, scratch_folder, write_json
from canal.data.prepare import CELLS, SUMMARY, PrepareSettings, prepare
from canal.data.prepared import PreparedCells
from canal.quality.evidence import gather, new_table
from canal.quality.own_rules import OwnRules, check_own_rules, own_tables, read_own_rules, without_labels
from canal.quality.rule import Rule, RuleFinding, between
from canal.quality.rules import rules_for
from canal.quality.suite import Checking, check_rules, publishing, run_suite
from canal.quality.verdict import RuleResult, Subject, Verdict

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""Of the check of labels."""

LABEL_TABLE, PAIR_TABLE = "label", "pair of types"

CELLS_COMPARED = 50
"""Cells of a label that are compared with the parent's model at most."""

_PAIRS = 8
"""Confused pairs that are named."""

FEWEST_CELLS = 5
"""A label with fewer cells is not compared, and fewer cells of one label are no contradiction of it."""

MOST_CONTRADICTED = 0.05
"""Share of a label's cells that may be called one other type by a high margin, before that is a warning."""

_NONE = f"no label with {FEWEST_CELLS} cells, so none was compared"

ParentComparison = Callable[[PreparedCells, Sequence[str]], "pd.DataFrame"]
"""Takes cells and the ids of some of them; returns the table of `compare`."""


def judge(
    subject: Subject, gate: Gate, docs: Path | None = None, comparison: ParentComparison | None = None
) -> Verdict:
    """Check every rule on ``subject`` and return the verdict; a failed rule raises no exception.

    Parameters
    ----------
    docs
        Folder for Great Expectations' Data Docs, which hold times; None writes none, and then the actions of
        the project's own checkpoint do not run either: nothing is announced that is not kept.
    comparison
        Compares labels with the predictions of the parent's model, where that is learned. In the pipeline,
        where the parent is learned after the gate, `check_labels` does it.

    Raises
    ------
    DataError
        If a file cannot be read as declared.
    GateError
        If one of the project's own suites is broken, the prepared folder was not made of this file with this
        declaration, or an earlier stage was profiled on another panel.
    """
    prepared = subject.prepared
    if prepared is None or not (prepared / SUMMARY).is_file():
        raise GateError(f"source {subject.source_name} is not prepared: run dvc repro")
    about = _checked_summary(subject, prepared)
    panel_digest = json_digest(list(subject.panel))
    for name, earlier in subject.earlier.items():
        if earlier.profile.panel_digest != panel_digest:
            raise GateError(f"the profile of stage {name} is about another panel: run its gate again")
    own = read_own_rules(subject.own_rules)
    if own is not None and subject.unlabelled:
        own = without_labels(own)
    evidence = gather(subject, prepared / CELLS, gate.max_drift)
    rules, tables = rules_for(subject, evidence, gate), dict(evidence.tables)
    if comparison is not None:
        cells = PreparedCells(prepared / CELLS)
        tables[LABEL_TABLE] = comparison(cells, cells_to_compare(cells))
        parent = list(subject.earlier)[-1]
        rules.append(label_rule(subject.source_name, parent, gate.max_confused))
    results = _check(subject, rules, tables, own, docs)
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
        own_rules={} if own is None else own.digests,
    )


def _check(
    subject: Subject,
    rules: Sequence[Rule],
    tables: Mapping[str, pd.DataFrame],
    own: OwnRules | None,
    docs: Path | None,
) -> list[RuleResult]:
    """Return the results of the gate's rules and of the project's own, whose actions follow the pages."""
    checking = Checking(subject.stage, docs)
    with publishing(checking):
        results = check_rules(checking, rules, tables)
        if own is not None and subject.prepared is not None:
            about = own_tables(own, subject, subject.prepared / CELLS)
            results += check_own_rules(checking, own, about)
    if own is not None and docs is not None:
        for line in checking.act(own.actions):
            tell(f"{subject.stage}: {line}; the verdict does not depend on it")
    return results


def judge_file(
    subject: Subject,
    settings: PrepareSettings,
    gate: Gate,
    docs: Path | None = None,
    comparison: ParentComparison | None = None,
) -> Verdict:
    """Judge ``subject.raw``, whatever its digest, as `judge` would after preparing it.

    It is prepared in a temporary folder with the declaration ``subject.source``; ``subject.prepared`` and the
    declared sha256 are ignored.

    Raises
    ------
    DataError
        If the file is damaged, or lacks a layer or column that the declaration names.
    """
    regular_file(subject.raw)
    source = subject.source.model_copy(update={"sha256": file_digest(subject.raw), "rest": None})
    with scratch_folder("gate") as folder:
        prepared = folder / "prepared"
        prepare(subject.raw, subject.source_name, source, settings, prepared)
        return judge(replace(subject, source=source, prepared=prepared), gate, docs, comparison)


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
    changed = [name for name, (recorded, found) in pairs.items() if recorded != found]
    if changed:
        raise GateError(
            f"source {subject.source_name}: {' and '.join(changed)} changed since it was prepared; "
            "run dvc repro"
        )
    return about


# Comparison of labels with the parent's model.


def cells_to_compare(
    prepared: PreparedCells, allowed: Collection[str] | None = None, most: int = CELLS_COMPARED
) -> list[str]:
    """Return the ids of at most ``most`` cells of each published label, drawn by their content.

    Parameters
    ----------
    allowed
        Ids that may be drawn: all but test cells, where there is a split. None allows every cell.
    """
    obs = prepared.obs[prepared.obs["cell_type"].astype(str) != ""]
    if allowed is not None:
        obs = obs[obs.index.isin(list(allowed))]
    drawn = obs.sort_values("cell_digest", kind="stable").groupby("cell_type_original", observed=True)
    chosen = set(drawn.head(most).index)
    return [str(cell) for cell in obs.index if cell in chosen]


def compare(
    labels: Sequence[str], types: Sequence[str], answers: Sequence[str], known: Collection[str]
) -> pd.DataFrame:
    """Return one row a published label, with the other known type that most of its cells look like.

    Parameters
    ----------
    labels, types, answers
        For each cell the label as published, the cell type that it is mapped to, and the prediction of the
        parent's model, which may be no known type.
    known
        The cell types that the parent's model knows.

    Returns
    -------
    pandas.DataFrame
        ``name`` (the label, with its cell type where that has another name), ``cells`` compared, ``like``
        (the other known type that most of them look like, or ``""``), ``alike`` (how many) and ``share``.
    """
    frame = new_table({"label": list(labels), "type": list(types), "answer": list(answers)}, dtype=object)
    rows = []
    for (label, cell_type), own in frame.groupby(["label", "type"], sort=True):
        others = own["answer"][own["answer"].isin(list(known)) & (own["answer"] != cell_type)]
        if len(own) < FEWEST_CELLS:
            continue
        counts = sorted(others.value_counts().items(), key=lambda item: (-item[1], str(item[0])))
        like, alike = counts[0] if counts else ("", 0)
        name = label if label == cell_type else f"{label} ({cell_type})"
        rows.append((name, len(own), like, alike, alike / len(own)))
    table = new_table(rows, columns=["name", "cells", "like", "alike", "share"])
    return table.astype({"share": np.float64})


def contradictions(
    cell_ids: Sequence[str],
    types: Sequence[str],
    answers: Sequence[str],
    margins: np.ndarray,
    known: Collection[str],
) -> pd.DataFrame:
    """Return one row a cell of a known type, with the prediction of the parent's sums and its margin.

    Parameters
    ----------
    cell_ids, types, answers
        For each cell its id, its type, and the likeliest type by the parent's sums.
    margins
        Probability of the answer less that of the cell's own type, ``(n_cells,)``.
    known
        The types that the sums know: cells of other types are left out.

    Returns
    -------
    pandas.DataFrame
        ``name`` (the cell), ``label``, ``like`` (the other type, or ``""`` where they agree) and ``margin``.
    """
    rows = [
        (cell, own, "" if own == predicted else predicted, 0.0 if own == predicted else float(margin))
        for cell, own, predicted, margin in zip(cell_ids, types, answers, margins, strict=True)
        if own in known
    ]
    table = new_table(rows, columns=["name", "label", "like", "margin"])
    return table.astype({"margin": np.float64})


def contradicted_pairs(table: pd.DataFrame, most: float) -> pd.DataFrame:
    """Return one row a label and other type: its cells that the sums call that by a margin over ``most``.

    Single cells are noise of any model, and of any labels: the ``share`` of fewer than `FEWEST_CELLS` is 0.
    The cells of a label that are not contradicted have a row, too, with no other type.
    """
    rows = []
    of = table["label"].value_counts().to_dict()
    like = table["like"].where(table["margin"] > most, "")
    for (label, other), own in table.groupby(["label", like], sort=True):
        share = len(own) / of[label] if other and len(own) >= FEWEST_CELLS else 0.0
        worst = own.sort_values("margin", ascending=False, kind="stable")["name"].iloc[0]
        rows.append((f"{label}, {other}", label, other, len(own), of[label], share, worst))
    columns = ["name", "label", "other", "cells", "of", "share", "worst"]
    return new_table(rows, columns=columns).astype({"share": np.float64})


def contradiction_rule(source: str, parent: str, most: float) -> Rule:
    """Return the rule, a warning, that the parent's sums contradict few cells of a label by a high margin."""
    return Rule(
        "labels_unlike_sums",
        "warning",
        between(PAIR_TABLE, "share", most=MOST_CONTRADICTED),
        f"of each label's cells at most {MOST_CONTRADICTED:.0%}, or {FEWEST_CELLS - 1}, that the sums of "
        f"stage {parent} call one other type by a margin of more than {most:g}",
        f"look at these cells, which labels/ lists one by one; none is dropped: a wrong one is left out with "
        f"sources.{source}.exclude.cells",
        describe_contradicted,
    )


def check_contradictions(
    table: pd.DataFrame, rule: Rule, most: float, title: str, docs: Path | None = None
) -> RuleResult:
    """Return whether ``rule`` holds for the table of `contradictions`, by Great Expectations.

    ``most`` is the margin up to which a cell is not contradicted (``gate.max_contradiction``).
    """
    if not len(table):
        none = "no cell of a type that the parent's sums know, so none was compared"
        return RuleResult(rule.name, rule.severity, passed=True, expected=rule.expected, found=none)
    return run_suite([rule], {PAIR_TABLE: contradicted_pairs(table, most)}, title, docs)[0]


def label_rule(source: str, parent: str, most: float) -> Rule:
    """Return the rule, a warning, that the parent's model predicts no label's cells as another type."""
    return Rule(
        "labels_like_parent",
        "warning",
        between(LABEL_TABLE, "share", most=most),
        f"at most {most:.0%} of a label's cells that the model of stage {parent} calls one other known type",
        f"look at these cells: a wrong label is mapped to its type or to null in sources.{source}.label_map; "
        "a new or finer type may stay as it is",
        describe_confused,
    )


def check_labels(table: pd.DataFrame, rule: Rule, title: str, docs: Path | None = None) -> RuleResult:
    """Return whether ``rule`` holds for the table of `compare`, by Great Expectations."""
    if not len(table):
        return RuleResult(rule.name, rule.severity, passed=True, expected=rule.expected, found=_NONE)
    return run_suite([rule], {LABEL_TABLE: table}, title, docs)[0]


def write_labels(
    path: Path,
    stage: str,
    parent: str,
    n_compared: int,
    result: RuleResult | None,
    contradicted: tuple[pd.DataFrame, RuleResult] | None = None,
) -> None:
    """Write the check of a stage's labels; ``result`` is None where the parent knows no cell types.

    ``contradicted`` are the cells whose label the parent's sums contradict by more than the rule allows, with
    the result of the rule; None where the parent keeps no sums.
    """
    document = {
        "format": FORMAT,
        "stage": stage,
        "parent": parent,
        "cells_asked": n_compared,
        "rule": None if result is None else result.to_json(),
    }
    if contradicted is not None:
        cells, contradiction = contradicted
        document["contradicted"] = {
            "rule": contradiction.to_json(),
            "cells": [
                {"cell_id": cell, "label": label, "like": like, "margin": round(margin, 4)}
                for cell, label, like, margin in cells.to_numpy().tolist()
            ],
        }
    write_json(path, document)


def read_labels(path: Path) -> dict[str, Any]:
    """Return what `write_labels` wrote.

    Raises
    ------
    GateError
        If the file is missing or of another format.
    """
    if not path.is_file():
        raise GateError(f"{path}: the labels of this stage were not checked; run dvc repro")
    document: dict[str, Any] = read_json(path)
    if document.get("format") != FORMAT:
        raise GateError(f"{path}: format {document.get('format')!r}, this canal reads {FORMAT}")
    return document


def describe_contradicted(rows: pd.DataFrame, failing: pd.DataFrame) -> RuleFinding:
    """Describe how many cells are contradicted, and the most frequent pairs of types that are too many."""
    contradicted = rows.loc[rows["other"] != "", "cells"].sum()
    pairs = failing.sort_values("cells", ascending=False, kind="stable").head(_PAIRS)
    examples = tuple(
        f"{cells:.0f} of {of:.0f} {label} look like {other}, such as {worst}"
        for label, other, cells, of, worst in pairs[["label", "other", "cells", "of", "worst"]].to_numpy()
    )
    return RuleFinding(f"{contradicted:,.0f} of {rows['cells'].sum():,.0f} cells", examples)


def describe_confused(rows: pd.DataFrame, failing: pd.DataFrame) -> RuleFinding:
    """Describe how many labels look like another type, and name the pairs by falling share."""
    if not len(rows):
        return RuleFinding(_NONE)
    worst = failing.sort_values("share", ascending=False, kind="stable")
    examples = [
        f"{row.name_}: {row.alike:.0f} of {row.cells:.0f} cells look like {row.like}"
        for row in worst.rename(columns={"name": "name_"}).itertuples()
    ]
    return RuleFinding(f"{len(failing)} of {len(rows)} labels", tuple(examples))
