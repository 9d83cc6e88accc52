"""Coarse cell types: the deepest term of the Cell Ontology of which a cell is surely one.

Where a model is torn between CD4 and CD8, it still knows that the cell is a T cell. A term's probability is
the sum of those of the model's types that are of its kind; the coarse type is the deepest term whose
probability reaches a bound. Deng et al. 2012 ("Hedging your bets", CVPR) answer so in a tree; here terms have
several parents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from canal.annotation.columns import (
    BY_NETWORK,
    COARSE_CONFIDENCE,
    COARSE_ID,
    COARSE_TYPE,
    IS_NOVEL,
    LOW_QUALITY,
    NO_ID,
    NOVELTY,
    UNASSIGNED,
    beyond_limit,
    categorical,
)
from canal.core.digests import file_digest
from canal.data.cell_ontology import RELEASE, ROOT, TABLE, Ontology, cell_ontology
from canal.io.arrays import listed

if TYPE_CHECKING:
    import pandas as pd

BOUND = 0.9
"""The probability that docs recommend and `benchmarks/hierarchy.py` measures first."""

LEAST_BOUND = 0.5
"""A bound is above it, so that no two nodes without a type in common reach it."""

NONE = -1
"""The answer for a cell for which no term reaches the bound."""

PROPERTIES = frozenset(
    {
        ROOT,
        *("CL:0000255", "CL:0002242", "CL:0000226", "CL:0000225"),  # eukaryotic; with nuclei, one, none
        *("CL:0000211", "CL:0000393", "CL:0000404"),  # electrically active, responsive, signaling
        *("CL:0000219", "CL:0000183", "CL:0000151"),  # motile, contractile, secretory
        *("CL:0000325", "CL:0000234", "CL:0000518"),  # stuff accumulating, phagocyte, the same of vertebrates
        *("CL:0011115", "CL:0011026", "CL:0000630"),  # precursor, progenitor, supporting
        *("CL:0000145", "CL:0000413", "CL:0000412"),  # professional antigen presenting, haploid, polyploid
    }
)
"""Terms that say what many unlike cells do or have: they are never a coarse type."""


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """What a model's types are kinds of.

    Attributes
    ----------
    names, ids : tuple of str
        The nodes: first the model's own types, then terms above several of them. A type without an id has the
        id ``""`` and no term above it.
    members : numpy.ndarray
        Which types are of a node's kind, float64 ``(n_types, n_nodes)`` of 0 and 1.
    depth : numpy.ndarray
        The most steps from the ontology's root to a node, int64 ``(n_nodes,)``.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    members: np.ndarray
    depth: np.ndarray

    @classmethod
    def of(cls, labels: Sequence[str], ids: Mapping[str, str], ontology: Ontology | None = None) -> Hierarchy:
        """Return the hierarchy of a model's types.

        A type is below the term of its id, or of its name where it has none; see `Ontology.id_of`. One that
        neither names a term stands alone. Of terms above the same types the deepest is kept, and none that is
        above all types: it tells nothing.

        Parameters
        ----------
        labels
            The model's types, in the order of its probabilities.
        ids
            Cell Ontology ids of types.
        ontology
            By default canal's own table.
        """
        known = cell_ontology() if ontology is None else ontology
        own = [ids.get(name) or known.id_of(name) or "" for name in labels]
        above = [known.lineage(term) - PROPERTIES for term in own]
        # Of terms above the same types the last one stays: the deepest, and of several the first by id.
        kinds = {
            tuple(term in lineage for lineage in above): term
            for term in sorted(set().union(*above), key=lambda term: (-known.depth[term], term))[::-1]
        }
        kept = {types: term for types, term in kinds.items() if 1 < sum(types) < len(labels)}
        shared = sorted(kept.items(), key=lambda item: (sum(item[0]), item[1]))
        terms = [term for _, term in shared]
        depths = [known.depth.get(term, 0) + 1 for term in own]
        columns = np.array([types for types, _ in shared], dtype=np.float64).reshape(-1, len(labels)).T
        return cls(
            (*labels, *(known.names[term] for term in terms)),
            (*own, *terms),
            np.hstack([np.eye(len(labels)), columns]),
            np.array([*depths, *(known.depth[term] for term in terms)], dtype=np.int64),
        )

    def masses(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the probability of each node, float32 ``(n_cells, n_nodes)``.

        ``probabilities`` are those of the types, ``(n_cells, n_types)``.
        """
        result: np.ndarray = (probabilities @ self.members).astype(np.float32)
        return result

    def answers(self, probabilities: np.ndarray, bound: float = BOUND) -> tuple[np.ndarray, np.ndarray]:
        """Return the deepest node of each cell that reaches the bound, and its probability.

        Of nodes as deep as each other it is the likeliest, then the one of fewest types.

        Parameters
        ----------
        probabilities
            Calibrated probabilities of the types, ``(n_cells, n_types)``.
        bound
            Above `LEAST_BOUND`, at most 1. It is compared in float32, as the probability is written.

        Returns
        -------
        tuple of numpy.ndarray
            Positions of nodes, int64 ``(n_cells,)``, `NONE` where none reaches the bound; and float32
            probabilities ``(n_cells,)``, of no node that of the likeliest node.
        """
        masses = self.masses(probabilities)
        sure = masses >= np.float32(bound)
        # A mass decides between nodes as deep as each other, and where none is sure.
        best = (np.where(sure, self.depth, -1) + 0.5 * masses).argmax(axis=1)
        mass: np.ndarray = masses[np.arange(len(best)), best]
        return np.where(sure.any(axis=1), best, NONE), mass


@lru_cache(maxsize=8)
def _hierarchy(labels: tuple[str, ...], ids: tuple[tuple[str, str], ...]) -> Hierarchy:
    return Hierarchy.of(labels, dict(ids))


def hierarchy_of(labels: Sequence[str], ids: Mapping[str, str]) -> Hierarchy:
    """Return `Hierarchy.of` a model's types, the same object for each block of cells."""
    return _hierarchy(tuple(labels), tuple(sorted(ids.items())))


def with_coarse(
    table: pd.DataFrame,
    probabilities: np.ndarray,
    hierarchy: Hierarchy,
    bound: float,
    max_novelty: float | None = None,
) -> pd.DataFrame:
    """Return a block of labels with columns of coarse types: name, probability and Cell Ontology id.

    Cells that are novel, by the version's rule or above ``max_novelty``, or that express none of the model's
    genes are "Unassigned": of a cell of an unknown type the probabilities of known ones say nothing. Cells
    whose likeliest type is unsure have a coarse type, whatever least confidence the labels must have.

    Parameters
    ----------
    table
        The columns of `canal.annotation.columns.columns_of`.
    probabilities
        Those of the cells, ``(n_cells, n_types)``, types in the order of the hierarchy's.
    hierarchy, bound
        See `Hierarchy.answers`.
    max_novelty
        See `canal.annotation.columns.with_limits`.
    """
    node, mass = hierarchy.answers(probabilities, bound)
    novel = table[IS_NOVEL].to_numpy(dtype=bool) | table[LOW_QUALITY].to_numpy(dtype=bool)
    node = np.where(novel | beyond_limit(table, NOVELTY, max_novelty), NONE, node)
    result = table.copy(deep=False)
    columns, ids = table.columns.tolist(), [one or NO_ID for one in hierarchy.ids]
    after = columns.index(BY_NETWORK if BY_NETWORK in columns else LOW_QUALITY) + 1
    for name, values in (
        (COARSE_ID, categorical((*ids, NO_ID), node)),  # `NONE` is the last
        (COARSE_CONFIDENCE, mass),
        (COARSE_TYPE, categorical((*hierarchy.names, UNASSIGNED), node)),
    ):
        result.insert(after, name, values)
    return result


def unplaced_warning(labels: Sequence[str], ids: Mapping[str, str]) -> str:
    """Return a warning that names a model's types that are no term of the Cell Ontology, else ``""``."""
    own = zip(labels, hierarchy_of(labels, ids).ids, strict=False)  # types are the first nodes
    alone = [name for name, term in own if not cell_ontology().lineage(term)]
    if not alone:
        return ""
    return (
        f"--coarse: canal's table of the Cell Ontology has no term for {listed(alone)}: these types have no "
        "coarse type but themselves; a version knows the ids that its sources declare (sources.NAME.ontology "
        "of params.yaml)"
    )


def about_ontology() -> dict[str, str]:
    """Return release and SHA-256 of the table that coarse types come from, for an annotation's record."""
    return {"release": RELEASE, "sha256": file_digest(TABLE)}
