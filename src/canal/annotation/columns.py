"""The columns that annotation adds to obs: names, types, and how a block of predictions becomes a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from canal.memory.prediction import Prediction

KEY = "canal"
"""What all names below begin with, and the record's key in uns, unless another is chosen; see `named`."""

CELL_TYPE, BEST_TYPE, RUNNER_UP = "canal_cell_type", "canal_best_type", "canal_runner_up"
CONFIDENCE, MARGIN = "canal_confidence", "canal_margin"
NOVELTY, IS_NOVEL = "canal_novelty", "canal_is_novel"
LOW_QUALITY = "canal_low_quality"
BY_NETWORK = "canal_by_network"
"""With ``--effort fast``: whether the network labelled the cell because the sums were unsure."""

COARSE_TYPE, COARSE_CONFIDENCE = "canal_coarse_type", "canal_coarse_confidence"
COARSE_ID = "canal_coarse_type_ontology_term_id"
"""With ``--coarse``: see `canal.annotation.coarse`."""

UNASSIGNED = "Unassigned"
MIXED = "Mixed"
"""The vote of a cluster in which no label has the least share."""

ONTOLOGY_ID, NO_ID = "cell_type_ontology_term_id", "unknown"
"""The column of Cell Ontology ids and its value for a type without an id, as in CELLxGENE's schema."""

PROBABILITIES = "canal_probabilities"
"""The key in obsm of all probabilities, ``(n_cells, n_types)``, in the order of the record's ``labels``."""

PROBABILITY_OF = "canal_p_"
"""Prefix of the column of one type's probability, in a table."""

LATENT = "X_canal"
"""The key in obsm of the model's embedding of the cells, float32 ``(n_cells, n_dims)``."""

LATENT_OF = "X_canal_"
"""Prefix of the column of one dimension of the embedding, in a table."""

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
    COARSE_TYPE,
    COARSE_CONFIDENCE,
    COARSE_ID,
    VOTE,
    SHARE,
)
_NAMES = (CELL_TYPE, BEST_TYPE, RUNNER_UP, COARSE_TYPE, COARSE_ID)
_MISSING = -1
"""The code of a missing category in pandas; as an index in numpy, the last element."""


# Another key than canal: labels of several models stand beside each other.

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,49}")
_TAKEN = re.compile(r"_p(_|$)|_(colors|probabilities)$")
"""Columns under ``KEY_p`` would pass for probabilities under ``KEY``; scanpy takes ``uns[..._colors]``."""


def is_key(key: object) -> bool:
    """Return whether names may begin with ``key``: a plain identifier that no name of canal's ends like."""
    return isinstance(key, str) and bool(_KEY.fullmatch(key)) and not _TAKEN.search(key)


def check_choice(option: str, value: object, choices: Sequence[str]) -> None:
    """Raise `DataError` unless the value of an option is one of its choices."""
    if not isinstance(value, str) or value not in choices:
        raise DataError(f"--{option.replace('_', '-')}: expected {', '.join(choices)}, found {value!r}")


def check_key(key: object) -> None:
    """Raise `DataError` unless names may begin with ``key``."""
    if not is_key(key):
        raise DataError(
            "--key-added: expected a plain name (letters, digits and _, at most 50, a letter first) without "
            f"_p_ in it and without _p, _colors or _probabilities at its end, found {key!r}"
        )


def named(name: str, key: str = KEY) -> str:
    """Return one of canal's names under a key: ``KEY_cell_type``, ``X_KEY``.

    CELLxGENE's column ``cell_type_ontology_term_id`` belongs to the default key: there is one in a file, so
    ids under another key are ``KEY_cell_type_ontology_term_id``.
    """
    if key == KEY:
        return name
    if name.startswith(LATENT):
        return f"X_{key}{name.removeprefix(LATENT)}"
    return f"{key}_{name}" if name == ONTOLOGY_ID else f"{key}{name.removeprefix(KEY)}"


def under_key(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return a table of labels with its columns named under a key."""
    return table if key == KEY else table.rename(columns=lambda name: named(str(name), key))


def columns_of(
    answer: Prediction,
    empty: np.ndarray,
    labels: Sequence[str],
    probabilities: bool = False,
    latent: np.ndarray | None = None,
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
    latent
        The model's embedding of the cells, float32 ``(n_cells, n_dims)``; None to keep none.
    """
    import pandas as pd

    categories, code = _categories((*labels, UNASSIGNED))
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
    parts = [table]
    if probabilities:
        of_types = [f"{PROBABILITY_OF}{name}" for name in labels]
        parts.append(pd.DataFrame(answer.probabilities.astype(np.float32), columns=of_types))
    if latent is not None:
        dimensions = [f"{LATENT_OF}{i}" for i in range(latent.shape[1])]
        parts.append(pd.DataFrame(latent, columns=dimensions))
    return table if len(parts) == 1 else pd.concat(parts, axis=1)


def with_limits(table: pd.DataFrame, max_novelty: float | None, min_confidence: float | None) -> pd.DataFrame:
    """Return a block of labels in which cells beyond a limit are "Unassigned", too; no other column changes.

    ``canal_is_novel`` stays the version's own verdict, so that it can be told who called a cell Unassigned.
    """
    beyond = beyond_limit(table, NOVELTY, max_novelty) | beyond_limit(table, CONFIDENCE, min_confidence)
    if not beyond.any():
        return table
    result = table.copy(deep=False)
    result[CELL_TYPE] = table[CELL_TYPE].where(~beyond, UNASSIGNED)
    return result


def reasons(table: pd.DataFrame, max_novelty: float | None, min_confidence: float | None) -> dict[str, int]:
    """Return how many cells are "Unassigned" by which reason, a cell by the first that holds for it."""
    left = np.ones(len(table), dtype=bool)
    counts = {}
    for name, holds in (
        ("low_quality", table[LOW_QUALITY].to_numpy(dtype=bool)),
        ("is_novel", table[IS_NOVEL].to_numpy(dtype=bool)),
        ("max_novelty", beyond_limit(table, NOVELTY, max_novelty)),
        ("min_confidence", beyond_limit(table, CONFIDENCE, min_confidence)),
    ):
        counts[name] = int((left & holds).sum())
        left &= ~holds
    return counts


def beyond_limit(table: pd.DataFrame, column: str, limit: float | None) -> np.ndarray:
    """Return which cells are above the most novelty, or below the least confidence, bool ``(n_cells,)``.

    The limit is rounded as the column is, so that what the file holds gives the same verdict.
    """
    if limit is None:
        return np.zeros(len(table), dtype=bool)
    values, edge = table[column].to_numpy(dtype=np.float32), np.float32(limit)
    result: np.ndarray = values > edge if column == NOVELTY else values < edge
    return result


def join_blocks(frames: Sequence[pd.DataFrame], ontology: Mapping[str, str]) -> pd.DataFrame:
    """Return the columns of all blocks of cells as one table; columns of cell types are categorical.

    Where the model has Cell Ontology ids, the type's id (or "unknown") is added as a column.
    """
    import pandas as pd

    table = pd.concat(frames, ignore_index=True)
    for name in [name for name in _NAMES if name in table]:
        table[name] = table[name].astype("category").cat.remove_unused_categories()
    if ontology:
        types = table[CELL_TYPE].cat
        own = [ontology.get(name, NO_ID) for name in types.categories]
        ids = pd.CategoricalDtype(sorted(set(own)))
        codes = ids.categories.get_indexer(pd.Index(own))[types.codes]
        after = table.columns.tolist().index(LOW_QUALITY) + 1
        table.insert(after, ONTOLOGY_ID, pd.Series(pd.Categorical.from_codes(codes, dtype=ids)))
    return table


MATRICES = {PROBABILITIES: PROBABILITY_OF, LATENT: LATENT_OF}
"""The matrices of obsm, and the prefix that their columns have in a table."""


def split_obsm(table: pd.DataFrame, key: str = KEY) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return the columns of obs, and the matrices of obsm by key; names are those under ``key``."""
    matrices = {}
    for matrix, prefix in MATRICES.items():
        own = [name for name in table if str(name).startswith(named(prefix, key))]
        if own:
            matrices[named(matrix, key)] = table[own].to_numpy(dtype=np.float32)
            table = table.drop(columns=own)
    return table, matrices


def own_columns(obs: Iterable[object], key: str = KEY) -> list[str]:
    """Return the columns of obs, in order, whose names are those of canal's under ``key``.

    CELLxGENE's column of Cell Ontology ids counts only directly after canal's own columns, where canal adds
    it.
    """
    names = [str(name) for name in obs]
    own = {named(name, key) for name in _OWN}
    own |= {name for name in names if name.startswith(named(PROBABILITY_OF, key))}
    ids = named(ONTOLOGY_ID, key)
    if key != KEY or (LOW_QUALITY, ids) in zip(names, names[1:], strict=False):
        own.add(ids)
    return [name for name in names if name in own]


def stale_columns(obs: Iterable[object], new: Iterable[object], key: str = KEY) -> list[str]:
    """Return the columns of obs, in order, that an earlier annotation wrote and this one does not."""
    written = {str(name) for name in new}
    return [name for name in own_columns(obs, key) if name not in written]


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


def categorical(values: Sequence[str], at: np.ndarray) -> pd.Series[Any]:
    """Return the values at positions ``(n_cells,)``; values that are alike are one category."""
    import pandas as pd

    categories, code = _categories(tuple(values))
    codes = np.array([code[one] for one in values])
    return pd.Series(pd.Categorical.from_codes(codes[at], dtype=categories))


@lru_cache(maxsize=16)
def _categories(values: tuple[str, ...]) -> tuple[pd.CategoricalDtype, dict[str, int]]:
    """Return the categorical dtype of values, the same object for each block of cells, and their codes."""
    import pandas as pd

    names = sorted(set(values))
    return pd.CategoricalDtype(names), {name: i for i, name in enumerate(names)}
