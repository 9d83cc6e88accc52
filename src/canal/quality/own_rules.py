"""A project's own rules: suites of Great Expectations in ``gate/``, over tables of a stage's cells.

``gate/cells.json``, ``gate/genes.json`` and ``gate/types.json`` are suites as Great Expectations writes them;
``gate/checkpoint.json`` holds the actions that follow, such as a message to a webhook.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.core.digests import file_digest
from canal.core.errors import GateError, there_are
from canal.core.files import read_json
from canal.data.prepare import describe_cells
from canal.data.prepared import PreparedCells
from canal.io.arrays import EXAMPLES, listed
from canal.io.h5ad import open_h5ad
from canal.quality.evidence import new_table
from canal.quality.suite import Checking, great_expectations
from canal.quality.verdict import RuleResult, Severity, Subject

if TYPE_CHECKING:
    import pandas as pd

TABLES = {"cells": "cell", "genes": "symbol", "types": "cell_type"}
"""The tables that a suite may be about, and the column that names a row of each."""

CHECKPOINT = "checkpoint"
_SEVERITIES: dict[str, Severity] = {
    "critical": "error",
    "error": "error",
    "warning": "warning",
    "info": "warning",
}
_ASKS_FOR_COLUMN = "expect_column_to_exist"
_LONGEST = 300
_UNMADE = (LookupError, ValueError, TypeError, AttributeError, OSError)
"""What Great Expectations raises beside its own errors where it cannot make something of its JSON."""


@dataclass(frozen=True)
class OwnRule:
    """One expectation of a suite.

    Attributes
    ----------
    where
        The file and the number of the expectation in it, for messages.
    name, severity, expected, hint
        As those of a rule of the gate.
    expectation
        The expectation that Great Expectations made of it.
    columns
        The columns that it names.
    """

    where: str
    name: str
    severity: Severity
    expected: str
    hint: str
    expectation: Any
    columns: tuple[str, ...]


@dataclass(frozen=True)
class OwnRules:
    """The rules of a project by table, the actions that follow, and the digests of their files."""

    rules: Mapping[str, Sequence[OwnRule]]
    actions: tuple[Any, ...]
    digests: Mapping[str, str]


def read_own_rules(folder: Path | None) -> OwnRules | None:
    """Return the rules in a project's folder ``gate``; None where there are none.

    Raises
    ------
    GateError
        If a file is no JSON, is about no table, or holds an expectation or an action that Great Expectations
        cannot make; the message names file and expectation.
    """
    if folder is None or not (files := sorted(folder.glob("*.json"))):
        return None
    by_name = {path.stem: path for path in files}
    known = (*TABLES, CHECKPOINT)
    if unknown := [path.name for path in files if path.stem not in known]:
        raise GateError(
            f"{folder.name}/{unknown[0]}: expected a suite over one of the tables, so a file called "
            f"{', '.join(f'{name}.json' for name in known)}; rename or remove it"
        )
    rules = {table: _suite(by_name[table]) for table in TABLES if table in by_name}
    actions = _actions(by_name[CHECKPOINT]) if CHECKPOINT in by_name else ()
    return OwnRules(rules, actions, {path.name: file_digest(path) for path in files})


def without_labels(own: OwnRules) -> OwnRules:
    """Return the rules that a file without labels can be judged by: those that name no label or cell type."""
    rules = {
        table: [rule for rule in rules if not {*rule.columns} & {"cell_type", "label"}]
        for table, rules in own.rules.items()
        if table != "types"
    }
    return OwnRules(rules, own.actions, own.digests)


def _suite(path: Path) -> list[OwnRule]:
    """Return the rules of one suite, with names that occur once."""
    document = _document(path, "expectations")
    rules = [_rule(path, number, one) for number, one in enumerate(document["expectations"], start=1)]
    counts: Counter[str] = Counter()
    unique = []
    for rule in rules:
        counts[rule.name] += 1
        name = rule.name if counts[rule.name] == 1 else f"{rule.name} ({counts[rule.name]})"
        unique.append(replace(rule, name=name))
    return unique


def _document(path: Path, key: str) -> dict[str, Any]:
    """Return a JSON document that has a list of objects under ``key``."""
    where = f"{path.parent.name}/{path.name}"
    try:
        document: dict[str, Any] = read_json(path)
    except (OSError, ValueError) as error:
        raise GateError(f"{where} is no readable JSON ({error}): write it anew, or mend it") from error
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise GateError(
            f"{where}: expected a JSON object with a list of objects under {key!r}, as Great Expectations "
            "writes it"
        )
    return document


def _rule(path: Path, number: int, document: Mapping[str, Any]) -> OwnRule:
    """Return one rule of a suite."""
    gx = great_expectations()
    table, kind, notes = path.stem, str(document.get("type")), document.get("notes")
    where = f"{path.parent.name}/{path.name}, expectation {number} ({kind})"
    meta, kwargs = document.get("meta") or {}, document.get("kwargs") or {}
    if not (isinstance(meta, dict) and isinstance(kwargs, dict)):
        raise GateError(f"{where}: expected objects as kwargs and meta, as Great Expectations writes them")
    if any(mark in str(kwargs.get("row_condition", "")) for mark in ("@", "__")):
        raise GateError(
            f"{where}: row_condition holds @ or __, by which pandas would run code: a condition compares "
            "columns with values, such as batch == 'a'"
        )
    severity = str(meta.get("severity", document.get("severity", "critical")))
    if severity not in _SEVERITIES:
        raise GateError(f"{where}: severity {severity!r}; expected critical, warning or info")
    told = ", ".join(f"{name} {_plain(value)}" for name, value in kwargs.items() if value is not None)
    words = kind.removeprefix("expect_").replace("_", " ")
    expected = str(document.get("description") or f"{words} ({told})")
    try:
        expectation = gx.expectations.expectation_configuration.ExpectationConfiguration(
            type=kind, kwargs=dict(kwargs), meta=dict(meta), description=expected, notes=notes
        ).to_domain_obj()
    except (gx.exceptions.GreatExpectationsError, *_UNMADE) as error:
        raise GateError(f"{where}: Great Expectations cannot make it: {_line(error)}") from error
    expectation.severity = "critical" if _SEVERITIES[severity] == "error" else severity
    columns = [str(kwargs[key]) for key in ("column", "column_A", "column_B") if kwargs.get(key)]
    name = str(meta.get("rule") or " ".join([*columns, words]))
    return OwnRule(
        where=where,
        name=f"{table}: {name}",
        severity=_SEVERITIES[severity],
        expected=expected,
        hint=" ".join([notes] if isinstance(notes, str) else map(str, notes or ()))
        or f"mend the cells, or change expectation {number} of {path.parent.name}/{path.name}",
        expectation=expectation,
        columns=(*columns, *map(str, kwargs.get("column_list") or ())),
    )


def _actions(path: Path) -> tuple[Any, ...]:
    """Return the actions of a checkpoint, as Great Expectations makes them of their JSON."""
    gx, made = great_expectations(), []
    for number, document in enumerate(_document(path, "actions")["actions"], start=1):
        where = f"{path.parent.name}/{path.name}, action {number} ({document.get('type')})"
        try:
            made += gx.Checkpoint(name=CHECKPOINT, validation_definitions=[], actions=[document]).actions
        except (gx.exceptions.GreatExpectationsError, *_UNMADE) as error:
            raise GateError(f"{where}: Great Expectations cannot make it: {_line(error)}") from error
    return tuple(made)


# The tables.


def own_tables(own: OwnRules, subject: Subject, cells: Path) -> dict[str, pd.DataFrame]:
    """Return the tables that a project's suites are about, of the prepared cells.

    ``cells`` has the columns of the file's obs (one that is also a column of ours as ``obs_NAME``), ``cell``,
    ``cell_type``, ``label``, ``batch``, ``n_genes`` and ``depth``, the sum of a cell's counts (missing where
    the values are logarithms). ``genes`` has ``symbol``, ``in_panel``, ``cells`` and ``share`` of the cells
    that express it; ``types`` has ``cell_type``, ``cells``, ``share`` and ``batches``.
    """
    prepared = PreparedCells(cells)
    obs = prepared.obs
    counted = subject.source.values == "counts"
    n_genes, depth = np.zeros(len(obs), dtype=np.int64), np.full(len(obs), np.nan)
    expressed = np.zeros(len(prepared.genes), dtype=np.int64)
    with open_h5ad(cells) as file:
        for start, block in file.matrix("X").chunks(subject.chunk_cells):
            rows = slice(start, start + block.shape[0])
            n_genes[rows] = block.getnnz(axis=1)
            expressed += block.getnnz(axis=0)
            if counted:
                depth[rows] = np.asarray(block.sum(axis=1)).ravel()
    sizes = obs.groupby("cell_type", sort=True)["batch"].agg(["size", "nunique"])
    n_cells, panel = max(1, len(obs)), set(subject.panel)
    tables = {
        "genes": new_table(
            {
                "symbol": prepared.genes,
                "in_panel": [gene in panel for gene in prepared.genes],
                "cells": expressed,
                "share": expressed / n_cells,
            }
        ),
        "types": new_table(
            {
                "cell_type": list(sizes.index),
                "cells": sizes["size"].to_numpy(),
                "share": sizes["size"].to_numpy() / n_cells,
                "batches": sizes["nunique"].to_numpy(),
            }
        ),
    }
    if "cells" in own.rules:
        ours = {
            "cell_type": obs["cell_type"].to_numpy(dtype=object),
            "label": obs["cell_type_original"].to_numpy(dtype=object),
            "batch": obs["batch"].to_numpy(dtype=object),
            "n_genes": n_genes,
            "depth": depth,
        }
        tables["cells"] = _cells(subject, list(obs.index), ours)
    return tables


def _cells(subject: Subject, cell_ids: Sequence[str], ours: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the columns of the file's obs for the prepared cells, with columns of our own."""
    with open_h5ad(subject.raw) as file:
        table, _ = describe_cells(file, subject.source_name, subject.source)
        rows = table.set_index("cell_id")["row"].loc[list(cell_ids)].to_numpy()
        names = np.array(file.obs_names(), dtype=object)[rows]
        taken = {"cell", *ours}
        columns = {
            f"obs_{name}" if name in taken else name: file.typed_obs_column(name).iloc[rows].to_numpy()
            for name in file.obs_columns
        }
    return new_table({"cell": names, **ours, **columns})


# Checking them.


def check_own_rules(
    checking: Checking, own: OwnRules, tables: Mapping[str, pd.DataFrame]
) -> list[RuleResult]:
    """Return the results of a project's own rules.

    Raises
    ------
    GateError
        If an expectation names a column that its table lacks, or cannot be evaluated.
    """
    results = []
    for table, rules in own.rules.items():
        for rule in rules:
            _check_columns(rule, table, list(tables[table].columns))
    for table, rules in own.rules.items():
        if not rules:
            continue
        try:
            outcome = checking.validate(
                table, [rule.expectation for rule in rules], tables[table], TABLES[table]
            )
        except Exception as error:  # whatever an expectation of somebody else's makes the library raise
            names = ", ".join(rule.expectation.expectation_type for rule in rules)
            raise GateError(
                f"gate/{table}.json: Great Expectations cannot validate it ({_line(error)}); take out "
                f"one of its expectations after the other to see which it is: {names}"
            ) from error
        # Great Expectations orders its results by column.
        by_id = {one.expectation_config.id: one for one in outcome.results}
        found = [_result(rule, by_id[rule.expectation.id], table, tables[table]) for rule in rules]
        checking.publish(outcome, found)
        results += found
    return results


def _check_columns(rule: OwnRule, table: str, columns: list[str]) -> None:
    if rule.expectation.expectation_type == _ASKS_FOR_COLUMN:
        return
    for name in rule.columns:
        if name not in columns:
            has = there_are(name, columns, "it has", listed)
            raise GateError(f"{rule.where}: the table {table} has no column {name!r}{has}")


def _result(rule: OwnRule, outcome: Any, table: str, rows: pd.DataFrame) -> RuleResult:
    """Return the outcome of an expectation as the result of a rule."""
    # Great Expectations tells in two forms whether an expectation could be evaluated.
    info = outcome.exception_info
    for one in [info] if "raised_exception" in info else list(info.values()):
        if not isinstance(one, Mapping) or one.get("raised_exception", True):
            problem = one.get("exception_message", one) if isinstance(one, Mapping) else one
            raise GateError(f"{rule.where} could not be evaluated: {_line(problem)}")
    facts, passed = outcome.result or {}, bool(outcome.success)
    facts.pop("unexpected_index_query", None)  # code that finds rows by number; pages name them
    examples: tuple[str, ...] = ()
    if "unexpected_count" in facts:
        found = f"{facts['unexpected_count']:,} of {len(rows):,} {table}"
        if missing := facts.get("missing_count"):
            found += f", {missing:,} of them without a value" if passed else f"; {missing:,} without a value"
        examples = tuple(
            f"{_plain(row.pop(TABLES[table]))} ({', '.join(map(_plain, row.values()))})".removesuffix(" ()")
            for row in map(dict, (facts.get("unexpected_index_list") or ())[:EXAMPLES])
        )
    else:
        found = _plain(facts.get("observed_value", "not as expected" if not passed else "as expected"))
    return RuleResult(
        rule=rule.name,
        severity=rule.severity,
        passed=passed,
        expected=rule.expected,
        found=found,
        examples=() if passed else examples,
        hint="" if passed else rule.hint,
        failing=()
        if passed
        else tuple(str(row[TABLES[table]]) for row in facts.get("unexpected_index_list") or ()),
    )


def _plain(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)[:_LONGEST]


def _line(error: object) -> str:
    return " ".join(str(error).split())[:_LONGEST]
