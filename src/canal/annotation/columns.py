"""What annotation says of each cell: the columns that a labelled file, table or AnnData gains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from canal.memory.prediction import Prediction

TYPE, BEST_TYPE, RUNNER_UP = "canal_cell_type", "canal_best_type", "canal_runner_up"
CONFIDENCE, MARGIN = "canal_confidence", "canal_margin"
NOVELTY, IS_NOVEL = "canal_novelty", "canal_is_novel"
LOW_QUALITY = "canal_low_quality"
BY_NETWORK = "canal_by_network"
"""Of a fast answer: whether the network was asked about the cell, since the sums were unsure."""

UNASSIGNED = "Unassigned"

ONTOLOGY_ID, NO_ID = "cell_type_ontology_term_id", "unknown"
"""Named as in CELLxGENE's schema, as is what stands there for a cell whose type has no id."""

PROBABILITIES = "canal_probabilities"
"""The key in obsm of all probabilities, ``(n_cells, n_types)``; the record's ``labels`` are their order."""

PROBABILITY_OF = "canal_p_"
"""What a column of one type's probability begins with, in a table."""

VOTE, SHARE = "canal_vote", "canal_vote_share"

_OWN = (
    TYPE,
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
_NAMES = (TYPE, BEST_TYPE, RUNNER_UP)
_MISSING = -1
"""The code of no category, for pandas, and for numpy the last place."""


def columns_of(
    answer: Prediction, empty: np.ndarray, labels: Sequence[str], probabilities: bool = False
) -> pd.DataFrame:
    """Return what is kept of a block's answer: a few values a cell, or one more for each type.

    Parameters
    ----------
    answer
        What the model says of the cells.
    empty
        Whether a cell expresses none of the model's genes, bool ``(n_cells,)``: it is "Unassigned".
    labels
        The model's types, in the order of the probabilities.
    probabilities
        Whether the probability of every type is kept, too.
    """
    import pandas as pd

    kind, code = _kind(tuple(labels))
    best = np.array([code[name] for name in answer.labels], dtype=np.int64)
    second, margin = _runner_up(answer.probabilities, answer.logits, labels)
    names = np.array([*(code[name] for name in labels), _MISSING])
    table = pd.DataFrame(
        {
            TYPE: pd.Categorical.from_codes(
                np.where(answer.is_novel | empty, code[UNASSIGNED], best), dtype=kind
            ),
            BEST_TYPE: pd.Categorical.from_codes(best, dtype=kind),
            CONFIDENCE: answer.confidence.astype(np.float32),
            RUNNER_UP: pd.Categorical.from_codes(names[second], dtype=kind),
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


def joined(frames: Sequence[pd.DataFrame], ontology: Mapping[str, str]) -> pd.DataFrame:
    """Return the columns of all blocks of cells as one table; what names types is categorical.

    Where the model knows ids of the Cell Ontology, the type's id stands beside it, or "unknown".
    """
    import pandas as pd

    table = pd.concat(frames, ignore_index=True)
    for name in _NAMES:
        table[name] = table[name].astype("category").cat.remove_unused_categories()
    if ontology:
        types = table[TYPE].cat
        own = [ontology.get(name, NO_ID) for name in types.categories]
        kind = pd.CategoricalDtype(sorted(set(own)))
        codes = kind.categories.get_indexer(pd.Index(own))[types.codes]
        after = table.columns.tolist().index(LOW_QUALITY) + 1
        table.insert(after, ONTOLOGY_ID, pd.Series(pd.Categorical.from_codes(codes, dtype=kind)))
    return table


def parted(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return the columns that belong into obs, and what belongs into obsm, by key; both may be written."""
    own = [name for name in table if str(name).startswith(PROBABILITY_OF)]
    if not own:
        return table, {}
    return table.drop(columns=own), {PROBABILITIES: table[own].to_numpy(dtype=np.float32)}


def left_over(obs: Iterable[object], new: Iterable[object]) -> list[str]:
    """Return the columns of obs, in their order, that an earlier labelling wrote and this one does not.

    An id of the ontology is one where it stands behind canal's own columns, as canal adds it.
    """
    written, names = {str(name) for name in new}, [str(name) for name in obs]
    own = {*_OWN, *(name for name in names if name.startswith(PROBABILITY_OF))}
    if (LOW_QUALITY, ONTOLOGY_ID) in zip(names, names[1:], strict=False):
        own.add(ONTOLOGY_ID)
    return [name for name in names if name in own - written]


def told_left_over(names: Sequence[str]) -> str:
    """Return what to say of columns that were removed."""
    return (
        f"left out of the output, as they are of an earlier labelling and were not asked for now: "
        f"{', '.join(names)}"
    )


def _runner_up(
    probabilities: np.ndarray, logits: np.ndarray, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of each cell's second likeliest type, and how much likelier the likeliest is.

    A model of one type knows no second one: the place is -1, the margin 1.
    """
    if len(labels) < 2:
        return np.full(len(logits), _MISSING), np.ones(len(logits))
    rows, best = np.arange(len(logits)), logits.argmax(axis=1)
    others = np.where(np.arange(len(labels)) == best[:, None], -np.inf, logits)
    second = others.argmax(axis=1)
    return second, probabilities[rows, best] - probabilities[rows, second]


@lru_cache(maxsize=8)
def _kind(labels: tuple[str, ...]) -> tuple[pd.CategoricalDtype, dict[str, int]]:
    """Return the categories of a model's answers, the same object for each block, and their codes by name."""
    import pandas as pd

    names = sorted({*labels, UNASSIGNED})
    return pd.CategoricalDtype(names), {name: i for i, name in enumerate(names)}
