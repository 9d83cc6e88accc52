"""The columns that annotation adds to obs: names, types, and how a block of predictions becomes a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from canal.memory.prediction import Prediction

CELL_TYPE, BEST_TYPE, RUNNER_UP = "canal_cell_type", "canal_best_type", "canal_runner_up"
CONFIDENCE, MARGIN = "canal_confidence", "canal_margin"
NOVELTY, IS_NOVEL = "canal_novelty", "canal_is_novel"
LOW_QUALITY = "canal_low_quality"
BY_NETWORK = "canal_by_network"
"""With ``--effort fast``: whether the network labelled the cell because the sums were unsure."""

UNASSIGNED = "Unassigned"

ONTOLOGY_ID, NO_ID = "cell_type_ontology_term_id", "unknown"
"""The column of Cell Ontology ids and its value for a type without an id, as in CELLxGENE's schema."""

PROBABILITIES = "canal_probabilities"
"""The key in obsm of all probabilities, ``(n_cells, n_types)``, in the order of the record's ``labels``."""

PROBABILITY_OF = "canal_p_"
"""Prefix of the column of one type's probability, in a table."""

VOTE, SHARE = "canal_vote", "canal_vote_share"

_OWN = (
    CELL_TYPE,
    BEST_TYPE,
    RUNNER_UP,
    CONFIDENCE,
    MARGIN,
    NOVELTY,
    IS_NOVEL,
    LOW_QUALITY,
    BY_NETWORK,
    VOTE,
    SHARE,
)
_NAMES = (CELL_TYPE, BEST_TYPE, RUNNER_UP)
_MISSING = -1
"""The code of a missing category in pandas; as an index in numpy, the last element."""


def columns_of(
    answer: Prediction, empty: np.ndarray, labels: Sequence[str], probabilities: bool = False
) -> pd.DataFrame:
    """Return the columns of a block of cells: a few values a cell, and on request one for each type.

    Parameters
    ----------
    answer
        The model's prediction for the cells.
    empty
        Whether a cell expresses none of the model's genes, bool ``(n_cells,)``: it is "Unassigned".
    labels
        The model's cell types, in the order of the probabilities.
    probabilities
        Whether to keep the probability of every type.
    """
    import pandas as pd

    categories, code = _categories(tuple(labels))
    best = np.array([code[name] for name in answer.labels], dtype=np.int64)
    second, margin = _runner_up(answer.probabilities, answer.logits, labels)
    names = np.array([*(code[name] for name in labels), _MISSING])
    table = pd.DataFrame(
        {
            CELL_TYPE: pd.Categorical.from_codes(
                np.where(answer.is_novel | empty, code[UNASSIGNED], best), dtype=categories
            ),
            BEST_TYPE: pd.Categorical.from_codes(best, dtype=categories),
            CONFIDENCE: answer.confidence.astype(np.float32),
            RUNNER_UP: pd.Categorical.from_codes(names[second], dtype=categories),
            MARGIN: margin.astype(np.float32),
            NOVELTY: answer.novelty.astype(np.float32),
            IS_NOVEL: answer.is_novel.astype(bool),
            LOW_QUALITY: empty,
        }
    )
    if answer.by_network is not None:
        table[BY_NETWORK] = answer.by_network
    if not probabilities:
        return table
    every = pd.DataFrame(
        answer.probabilities.astype(np.float32), columns=[f"{PROBABILITY_OF}{name}" for name in labels]
    )
    return pd.concat([table, every], axis=1)


def join_blocks(frames: Sequence[pd.DataFrame], ontology: Mapping[str, str]) -> pd.DataFrame:
    """Return the columns of all blocks of cells as one table; columns of cell types are categorical.

    Where the model has Cell Ontology ids, the type's id (or "unknown") is added as a column.
    """
    import pandas as pd

    table = pd.concat(frames, ignore_index=True)
    for name in _NAMES:
        table[name] = table[name].astype("category").cat.remove_unused_categories()
    if ontology:
        types = table[CELL_TYPE].cat
        own = [ontology.get(name, NO_ID) for name in types.categories]
        ids = pd.CategoricalDtype(sorted(set(own)))
        codes = ids.categories.get_indexer(pd.Index(own))[types.codes]
        after = table.columns.tolist().index(LOW_QUALITY) + 1
        table.insert(after, ONTOLOGY_ID, pd.Series(pd.Categorical.from_codes(codes, dtype=ids)))
    return table


def split_obsm(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return the columns of obs, and the matrices of obsm by key."""
    own = [name for name in table if str(name).startswith(PROBABILITY_OF)]
    if not own:
        return table, {}
    return table.drop(columns=own), {PROBABILITIES: table[own].to_numpy(dtype=np.float32)}


def stale_columns(obs: Iterable[object], new: Iterable[object]) -> list[str]:
    """Return the columns of obs, in order, that an earlier annotation wrote and this one does not.

    A column of Cell Ontology ids counts only directly after canal's own columns, where canal adds it.
    """
    written, names = {str(name) for name in new}, [str(name) for name in obs]
    own = {*_OWN, *(name for name in names if name.startswith(PROBABILITY_OF))}
    if (LOW_QUALITY, ONTOLOGY_ID) in zip(names, names[1:], strict=False):
        own.add(ONTOLOGY_ID)
    return [name for name in names if name in own - written]


def stale_columns_message(names: Sequence[str]) -> str:
    """Return the message that names columns that were removed."""
    return (
        "left out of the output, because an earlier annotation wrote them and this one does not: "
        f"{', '.join(names)}"
    )


def _runner_up(
    probabilities: np.ndarray, logits: np.ndarray, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each cell's second likeliest type, and how much likelier the likeliest is.

    A model of one type has no second one: the index is -1, the margin 1.
    """
    if len(labels) < 2:
        return np.full(len(logits), _MISSING), np.ones(len(logits))
    rows, best = np.arange(len(logits)), logits.argmax(axis=1)
    others = np.where(np.arange(len(labels)) == best[:, None], -np.inf, logits)
    second = others.argmax(axis=1)
    return second, probabilities[rows, best] - probabilities[rows, second]


@lru_cache(maxsize=8)
def _categories(labels: tuple[str, ...]) -> tuple[pd.CategoricalDtype, dict[str, int]]:
    """Return the categorical dtype of a model's types, the same object for each block, and codes by name."""
    import pandas as pd

    names = sorted({*labels, UNASSIGNED})
    return pd.CategoricalDtype(names), {name: i for i, name in enumerate(names)}
