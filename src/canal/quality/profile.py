"""A stage's cells in a few hundred numbers, so that later stages can be compared without its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.core.digests import json_digest
from canal.core.errors import GateError

if TYPE_CHECKING:
    from canal.data.prepared import PreparedCells

LEVELS = 6
"""Tokens 0 to 5: whole parts of expression."""

_CHUNK_CELLS = 2000
_PSEUDO_COUNT = 0.5
_CHANCE = 0.05


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
    from canal.data.expression import tokenize

    counts = np.zeros((len(panel), LEVELS), dtype=np.int64)
    expressed = []
    for chunk in _chunks(cell_ids):
        expression = prepared.expression(chunk, panel)
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


def _chunks(cell_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(cell_ids), _CHUNK_CELLS):
        yield cell_ids[start : start + _CHUNK_CELLS]
