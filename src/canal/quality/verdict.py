"""The subject of the gate, the profile of its cells in a few hundred numbers, and the verdict.

A verdict is stored as verdict.json, required by every training, and shown as a table. The profile lets later
stages be compared without the data of this one.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from canal.config.stage_sections import Source
from canal.core.digests import json_digest
from canal.core.errors import GateError
from canal.core.files import first_file, read_json, write_json
from canal.data.expression import tokenize
from canal.io.writer import as_text, writing

if TYPE_CHECKING:
    import pandas as pd

    from canal.data.prepared import PreparedCells


FORMAT = 1
Severity = Literal["error", "warning"]
LEVELS = 6
"""Tokens 0 to 5: whole parts of expression."""

_CHUNK_CELLS = 2000
_PSEUDO_COUNT = 0.5
_CHANCE = 0.05


@dataclass(frozen=True)
class RuleResult:
    """The result of one rule.

    ``examples`` are the worst or first rows that fail; ``hint`` is the advice, empty where the rule holds.
    ``failing`` names all rows that fail, while the gate is asked: no document keeps them.
    """

    rule: str
    severity: Severity
    passed: bool
    expected: str
    found: str
    examples: tuple[str, ...] = ()
    hint: str = ""
    failing: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the result as a verdict's document holds it."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "passed": self.passed,
            "expected": self.expected,
            "found": self.found,
            "examples": list(self.examples),
            "hint": self.hint,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RuleResult:
        """Return the result that `to_json` wrote."""
        return cls(**{**document, "examples": tuple(document["examples"])})


@dataclass(frozen=True)
class Verdict:
    """The results of all rules on a stage; the same bytes, params and suites give the same verdict.

    ``own_rules`` are the digests of the project's own suites, by the name of their file; verdicts without
    any, and all older ones, do not have the key.
    """

    stage: str
    source: str
    source_sha256: str
    prepared_sha256: str
    declaration_digest: str
    split_sha256: str | None
    counts: Mapping[str, Any]
    rules: tuple[RuleResult, ...]
    profile: Profile
    own_rules: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every rule that is an error holds."""
        return not self.failures("error")

    def failures(self, severity: Severity) -> list[RuleResult]:
        """Return the rules of ``severity`` that do not hold."""
        return [rule for rule in self.rules if not rule.passed and rule.severity == severity]

    def document(self) -> dict[str, Any]:
        """Return the verdict as the JSON document that `write` writes."""
        return {
            "format": FORMAT,
            "stage": self.stage,
            "source": self.source,
            "passed": self.passed,
            "source_sha256": self.source_sha256,
            "prepared_sha256": self.prepared_sha256,
            "declaration_digest": self.declaration_digest,
            "split_sha256": self.split_sha256,
            "panel_digest": self.profile.panel_digest,
            "counts": dict(self.counts),
            "rules": [rule.to_json() for rule in self.rules],
            "profile": self.profile.to_json(),
            **({"own_rules": dict(self.own_rules)} if self.own_rules else {}),
        }

    def write(self, path: Path) -> None:
        """Write verdict.json, whole or not at all: no times, no paths."""
        write_json(path, self.document())

    def write_failing(self, target: Path) -> int:
        """Write the names of all rows that break a rule as CSV, one a line; return their number.

        Raises
        ------
        DataError
            If the file is there, or cannot be written.
        """
        rows = [(rule.rule, rule.severity, as_text(name)) for rule in self.rules for name in rule.failing]
        with writing(target), first_file(target) as temporary, temporary.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([("rule", "severity", "name"), *rows])
        return len(rows)


def read_verdict(path: Path) -> Verdict:
    """Read what `Verdict.write` wrote.

    Raises
    ------
    GateError
        If the file is missing, is no verdict, or contradicts itself.
    """
    if not path.is_file():
        raise GateError(f"{path}: no verdict; run the stage's gate (dvc repro) first")
    try:
        document = read_json(path)
    except ValueError as error:
        raise GateError(f"{path}: no readable verdict ({error}); run the stage's gate again") from error
    return parse_verdict(document)


def parse_verdict(document: Any) -> Verdict:
    """Return the verdict that ``document`` describes.

    Raises
    ------
    GateError
        If it is of another format, lacks a part, or says it passed although one of its rules did not.
    """
    try:
        if document["format"] != FORMAT:
            raise GateError(f"verdict of format {document['format']!r}, this canal reads {FORMAT}")
        names = set(Verdict.__dataclass_fields__) - {"rules", "profile", "own_rules"}
        verdict = Verdict(
            **{name: document[name] for name in names},
            rules=tuple(RuleResult.from_json(rule) for rule in document["rules"]),
            profile=Profile.from_json(document["profile"]),
            own_rules=dict(document.get("own_rules", {})),
        )
        claimed = document["passed"]
    except (KeyError, TypeError, AttributeError) as error:
        raise GateError(f"no verdict of a gate ({error!r}); run the stage's gate again") from error
    if claimed is not verdict.passed:
        raise GateError(
            f"verdict of stage {verdict.stage}: it says passed: {claimed}, its rules say {verdict.passed}; "
            "it was edited: run the stage's gate again"
        )
    return verdict


def with_label_rules(verdict: Mapping[str, Any], labels: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a verdict's document with the rules on labels that `gate.write_labels` wrote."""
    labels = labels or {}
    results = labels.get("rule"), (labels.get("contradicted") or {}).get("rule")
    return {**verdict, "rules": [*verdict.get("rules", ()), *(one for one in results if one is not None)]}


def require_passing(verdict: Verdict | Mapping[str, Any] | Path, prepared_sha256: str, stage: str) -> Verdict:
    """Return the verdict if ``stage`` may be learned from the prepared file of that digest.

    Raises
    ------
    GateError
        If there is no verdict, it is of another stage, it is about other bytes, or a rule does not hold.
    """
    if isinstance(verdict, Path):
        verdict = read_verdict(verdict)
    elif not isinstance(verdict, Verdict):
        verdict = parse_verdict(verdict)
    if verdict.stage != stage:
        raise GateError(f"expected the verdict of stage {stage}, found that of {verdict.stage}")
    if verdict.prepared_sha256 != prepared_sha256:
        raise GateError(
            f"stage {stage}: its verdict is about a prepared file {verdict.prepared_sha256[:12]}…, "
            f"found {prepared_sha256[:12]}…; run the gate on these bytes (dvc repro)"
        )
    if failures := verdict.failures("error"):
        lines = [
            f"{rule.rule}: expected {rule.expected}; found {rule.found}. {rule.hint}" for rule in failures
        ]
        raise GateError(f"stage {stage} did not pass its gate:\n  " + "\n  ".join(lines))
    return verdict


# The subject: a source, its prepared cells, and earlier stages in numbers.


@dataclass(frozen=True)
class EarlierStage:
    """Split and profile of a stage learned before, whether its source is still available or not.

    Attributes
    ----------
    split
        Its cells, columns ``set`` and ``cell_digest``.
    profile
        Its cells in numbers: of its prepared cells, or kept in its verdict where those are gone.
    """

    split: pd.DataFrame
    profile: Profile


@dataclass(frozen=True)
class Subject:
    """One stage, or one corpus, before its gate.

    Attributes
    ----------
    raw
        The source's file as it was published.
    panel
        The genes of the lineage; empty where there is none yet.
    prepared
        The folder that prepare made of it; None where it has not been prepared.
    split_sha256
        Digest of the stage's own split table; None where a file is validated alone.
    earlier
        The stages it builds on, by name; empty for the first.
    own_rules
        The folder of the project's own suites; None where there is no project.
    drawn
        Where each cell's set was drawn by itself: for each type the sets that it lacks, in words, or None.
    unlabelled
        Whether it is no stage but a corpus, which only pre-trains the backbone: labels are not judged.
    pretrained
        Contents of the stage's test cells -> the corpus that the learned backbone saw them in; None where it
        saw no corpus.
    chunk_cells
        Rows of the raw file held in memory at a time.
    """

    stage: str
    source_name: str
    source: Source
    raw: Path
    panel: Sequence[str]
    prepared: Path | None = None
    split_sha256: str | None = None
    earlier: Mapping[str, EarlierStage] = field(default_factory=dict)
    chunk_cells: int = 2000
    drawn: Mapping[str, str | None] | None = None
    own_rules: Path | None = None
    unlabelled: bool = False
    pretrained: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Profile:
    """Token counts of each panel gene and the depth of a typical cell.

    Attributes
    ----------
    panel_digest
        Digest of the list of panel genes.
    n_cells
        How many cells were counted.
    median_genes
        Median over cells of the number of panel genes expressed.
    tokens
        ``(n_panel_genes, 6)`` counts in panel order; a gene the data lacks has zeros only.
    """

    panel_digest: str
    n_cells: int
    median_genes: float
    tokens: tuple[tuple[int, ...], ...]

    @property
    def counts(self) -> np.ndarray:
        """Token counts as int64 ``(n_panel_genes, 6)``."""
        return np.array(self.tokens, dtype=np.int64).reshape(len(self.tokens), LEVELS)

    @property
    def depth(self) -> float:
        """Median share of the panel genes in the data that a cell expresses; 0 without such genes."""
        present = int((self.counts.sum(axis=1) > 0).sum())
        return self.median_genes / present if present else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document that `from_json` reads."""
        tokens = [list(row) for row in self.tokens]
        return {
            "panel_digest": self.panel_digest,
            "n_cells": self.n_cells,
            "median_genes": self.median_genes,
            "tokens": tokens,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Profile:
        """Return the profile that `to_json` described; raises `GateError` if it is none."""
        try:
            tokens = tuple(tuple(int(count) for count in row) for row in document["tokens"])
            if any(len(row) != LEVELS for row in tokens):
                raise ValueError(f"a gene must have {LEVELS} counts")
            digest = str(document["panel_digest"])
            return cls(digest, int(document["n_cells"]), float(document["median_genes"]), tokens)
        except (KeyError, TypeError, ValueError) as error:
            raise GateError(
                f"no profile of a stage's cells ({error!r}): run the stage's gate again"
            ) from error


def profile_of(prepared: PreparedCells, cell_ids: Sequence[str], panel: Sequence[str]) -> Profile:
    """Count the tokens of ``cell_ids`` over ``panel``, a chunk of cells at a time."""
    counts = np.zeros((len(panel), LEVELS), dtype=np.int64)
    expressed = []
    for start in range(0, len(cell_ids), _CHUNK_CELLS):
        expression = prepared.expression(cell_ids[start : start + _CHUNK_CELLS], panel)
        # Impossible values have a rule of their own; such cells have no tokens.
        expression = expression[(expression >= 0).all(axis=1) & np.isfinite(expression).all(axis=1)]
        expressed.append((expression > 0).sum(axis=1))
        tokens = tokenize(expression)
        for level in range(LEVELS):
            counts[:, level] += (tokens == level).sum(axis=0)
    known = set(prepared.genes)
    counts[[gene not in known for gene in panel]] = 0
    median = float(np.median(np.concatenate(expressed))) if any(map(len, expressed)) else 0.0
    n_cells = sum(len(part) for part in expressed)
    return Profile(json_digest(list(panel)), n_cells, median, tuple(tuple(row) for row in counts.tolist()))


def stability_index(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Return each gene's population stability index, NaN where either side has no cells.

    The index is sum((p - q) ln(p / q)) over levels that either side holds, with half a count added to
    each so that an empty level stays finite; 0.25 and more is by convention a major shift (Siddiqi,
    Credit Risk Scorecards, 2006).

    Parameters
    ----------
    before, now
        Token counts ``(n_genes, 6)``.
    """
    held = (before + now) > 0
    p, q = _shares(now, held), _shares(before, held)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(held, (p - q) * np.log(p / q), 0.0)
    both = (before.sum(axis=1) > 0) & (now.sum(axis=1) > 0)
    return np.where(both, terms.sum(axis=1), np.nan)


def chance_index(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Return the index that chance alone stays under for every gene at once, with probability 95 %.

    Without drift the index is distributed as (1/n + 1/m) chi-squared with (levels - 1) degrees of freedom
    (Yurdakul and Naranjo, Journal of Risk Model Validation 14(4), 2020); the 5 % are divided by the number of
    genes. NaN where either side has no cells.
    """
    from scipy.stats import chi2

    n, m = before.sum(axis=1), now.sum(axis=1)
    compared = (n > 0) & (m > 0)
    freedom = np.maximum(((before + now) > 0).sum(axis=1) - 1, 1)
    with np.errstate(divide="ignore"):
        bound = (1 / n + 1 / m) * chi2.isf(_CHANCE / max(int(compared.sum()), 1), freedom)
    return np.where(compared, bound, np.nan)


def _shares(counts: np.ndarray, held: np.ndarray) -> np.ndarray:
    smoothed = np.where(held, counts + _PSEUDO_COUNT, 0.0)
    shares: np.ndarray = smoothed / np.maximum(smoothed.sum(axis=1, keepdims=True), _PSEUDO_COUNT)
    return shares
