"""Split a stage's cells into training, validation and test sets: no content in two sets.

Each type is divided by its shares, or each cell is drawn by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from canal.config.sections import Split
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.core.files import new_file, write_json
from canal.io.arrays import listed

if TYPE_CHECKING:
    import pandas as pd

SETS = ("train", "validation", "test")
RESERVE = "reserve"
"""Training cells beyond `Split.max_cells_per_type`: neither trained on, nor validated or tested on."""

SUMMED = ("train", RESERVE)
"""Sets whose cells are in a stage's sums."""

COLUMNS = ("cell_id", "cell_type", "batch", "cell_digest", "set")
_TRAIN, _RESERVE = 0, 3
_WORDS = (*SETS, RESERVE)
_SPOKEN = {"train": "training", "validation": "validation", "test": "test"}
_BITS = 52


def split_stage(
    obs: pd.DataFrame,
    settings: Split,
    seed: int,
    group_by_batch: bool,
    earlier: Mapping[str, pd.DataFrame],
) -> pd.DataFrame:
    """Return the table of a stage's cells with their set, sorted by cell id; columns are `COLUMNS`.

    Cells without a label are left out.

    By ``settings.rule`` ``independent`` a cell's set is its own draw from ``seed`` and its content: other
    cells, ``settings.min_cells`` and ``earlier`` have no say, so the set stays whatever cells are removed.

    Otherwise each type is divided by the largest remainder of its shares, in an order drawn from ``seed`` and
    the cells' content, so the order of rows does not matter. What else holds, strongest first:

    1. cells of one content stay together, and with the set that an earlier stage gave that content;
    2. a type with under ``settings.min_cells`` cells only trains;
    3. with ``group_by_batch``, a batch's other cells go to one set, as near to the shares as may be.

    Of each type ``settings.max_cells_per_type`` cells train at most, drawn from every batch in proportion
    (cells of one content count whole, so a few more may); the others are held in `RESERVE`. Validation and
    test cells are never fewer for it. Which of the two holds a cell depends on other cells by either rule.

    Parameters
    ----------
    obs
        Indexed by cell id, with cell_type, batch and cell_digest.
    earlier
        Splits of the stages before, by name, oldest first.

    Raises
    ------
    DataError
        If cells are to be grouped by batch and there are fewer than three groups.
    """
    table = obs.loc[obs["cell_type"] != "", ["cell_type", "batch", "cell_digest"]].astype(str)
    table.insert(0, "cell_id", table.index.astype(str))
    table = table.reset_index(drop=True)
    pieces = _pieces(table, settings, earlier)
    if settings.rule == "independent":
        # Where the draw of a piece falls among the shares: no other piece decides it.
        draws = [int(_draw(seed, digest)[: _BITS // 4], 16) / 2**_BITS for digest in pieces.index]
        bounds = [settings.train, settings.train + settings.validation]
        chosen = np.searchsorted(bounds, np.array(draws, dtype=np.float64), side="right").astype(np.int64)
    else:
        chosen = _by_batch(table, pieces, settings) if group_by_batch else _by_type(pieces, settings, seed)
        chosen[pieces["rare"].to_numpy()] = _TRAIN
        fixed = pieces["earlier"].to_numpy()
        chosen[fixed >= 0] = fixed[fixed >= 0]
    if settings.max_cells_per_type is not None:
        chosen[_beyond(pieces, chosen, settings.max_cells_per_type, seed)] = _RESERVE
    places = pieces.index.get_indexer(table["cell_digest"])  # type: ignore[arg-type]
    table["set"] = np.array(_WORDS, dtype=object)[chosen[places]]
    return table.sort_values("cell_id", ignore_index=True)


def only_train(split: pd.DataFrame, settings: Split) -> dict[str, int]:
    """Return ``{type: cells}`` of the types too rare to be validated and tested, or drawn for neither."""
    if settings.rule == "independent":
        lacking = types_lacking(split)
        return {name: n for name, n in lacking["validation"].items() if name in lacking["test"]}
    counts = split["cell_type"].value_counts()
    return {str(name): int(n) for name, n in counts.sort_index().items() if n < settings.min_cells}


def types_lacking(split: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return for each of `SETS` the types that have no cell in it, with the number of their cells.

    A type whose training cells are in reserve lacks none: the sums learn it.
    """
    sizes = split["cell_type"].value_counts().sort_index()
    kinds = split["set"].replace(RESERVE, "train")
    held = {chosen: set(split["cell_type"][kinds == chosen]) for chosen in SETS}
    return {
        chosen: {str(name): int(n) for name, n in sizes.items() if name not in held[chosen]}
        for chosen in SETS
    }


def described_types(split: pd.DataFrame) -> dict[str, str | None]:
    """Return for each type the sets that it lacks, such as "3 cells: no training, no test"; None: none."""
    lacking, described = types_lacking(split), dict[str, str | None]()
    for name in sorted(set(split["cell_type"])):
        words = [f"no {_SPOKEN[chosen]}" for chosen in SETS if name in lacking[chosen]]
        n = max((lacking[chosen].get(name, 0) for chosen in SETS), default=0)
        described[name] = f"{n} cell{'' if n == 1 else 's'}: {', '.join(words)}" if words else None
    return described


def write_split(
    path: Path, stage: str, split: pd.DataFrame, settings: Split, earlier: Mapping[str, Path]
) -> None:
    """Write ``split`` to ``path`` (CSV) and what it says, with its SHA-256, to the JSON file beside it.

    ``earlier`` are the CSV files of the stages before; their sums are recorded, and how many cells were
    placed by them. By the rule ``independent`` they place none, and the types that a set lacks are recorded.
    """
    with new_file(path) as temporary:
        split[list(COLUMNS)].to_csv(temporary, index=False, lineterminator="\n")
    facts: dict[str, Any] = {}
    if settings.rule is not None:
        earlier, facts = {}, {"rule": settings.rule, "lacking": types_lacking(split)}
    if settings.max_cells_per_type is not None:
        facts["max_cells_per_type"] = settings.max_cells_per_type
    words = SETS if settings.max_cells_per_type is None else _WORDS
    known = set().union(*(read_split(file)["cell_digest"] for file in earlier.values()))
    counts = split.groupby(["cell_type", "set"], sort=True).size().unstack(fill_value=0)
    summary = facts | {
        "stage": stage,
        "sha256": file_digest(path),
        "earlier": {name: file_digest(file) for name, file in earlier.items()},
        "counts": {
            str(name): {chosen: int(row.get(chosen, 0)) for chosen in words}
            for name, row in counts.iterrows()
        },
        "only_train": only_train(split, settings),
        "moved": int(split["cell_digest"].isin(known).sum()),
    }
    write_json(path.with_suffix(".json"), summary)


def reported_sets(present: Container[str]) -> tuple[str, ...]:
    """Return the sets to report: `SETS`, and `RESERVE` where ``present`` holds it."""
    return _WORDS if RESERVE in present else SETS


def read_split(path: Path) -> pd.DataFrame:
    """Return a split as `write_split` wrote it, every column str.

    Raises
    ------
    DataError
        If the file is missing, lacks a column, or names an unknown set.
    """
    import pandas as pd

    if not path.is_file():
        raise DataError(f"{path}: no such split: its stage was not learned yet; `canal run` does it")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise DataError(f"{path}: expected the columns {', '.join(COLUMNS)}; missing {listed(missing)}")
    if unknown := sorted(set(table["set"]) - set(_WORDS)):
        raise DataError(f"{path}: expected the sets {', '.join(_WORDS)}; found {listed(unknown)}")
    return table


def _pieces(table: pd.DataFrame, settings: Split, earlier: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row a content (index: digest, sorted): type, batch, size, rare, earlier set (-1: none).

    A content with several labels counts as the rarest of them.
    """
    counts = table["cell_type"].value_counts()
    ranked = table.assign(count=table["cell_type"].map(counts)).sort_values(["count", "cell_type"])
    groups = ranked.groupby("cell_digest", sort=True)
    pieces = groups.agg(cell_type=("cell_type", "first"), batch=("batch", "min"), size=("cell_type", "size"))
    pieces["rare"] = pieces["cell_type"].map(counts) < settings.min_cells
    known: dict[str, int] = {}
    for split in earlier.values():
        for digest, chosen in zip(split["cell_digest"], split["set"], strict=True):
            known.setdefault(digest, _TRAIN if chosen == RESERVE else SETS.index(chosen))
    pieces["earlier"] = np.array([known.get(digest, -1) for digest in pieces.index], dtype=np.int64)
    return pieces


def _by_type(pieces: pd.DataFrame, settings: Split, seed: int) -> np.ndarray:
    """Return the set of each piece: type by type on its shares, what earlier stages placed counted in."""
    shares = (settings.train, settings.validation, settings.test)
    chosen = pieces["earlier"].to_numpy(copy=True)
    draw = np.array([_draw(seed, digest) for digest in pieces.index], dtype=str)
    sizes = pieces["size"].to_numpy()
    for cell_type in sorted(set(pieces["cell_type"])):
        own = np.flatnonzero((pieces["cell_type"] == cell_type).to_numpy())
        placed = own[chosen[own] >= 0]
        held = np.bincount(chosen[placed], weights=sizes[placed], minlength=len(SETS)).astype(np.int64)
        free = own[chosen[own] < 0]
        free = free[np.argsort(draw[free])]
        quotas = remaining_quotas(shares, int(sizes[own].sum()), held)
        chosen[free] = fill(sizes[free].tolist(), quotas)
    return chosen


def _beyond(pieces: pd.DataFrame, chosen: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return which training pieces, by position, are too many for their type: every batch keeps its share."""
    sizes = pieces["size"].to_numpy()
    draw = np.array([_draw(seed, f"{digest}:reserve") for digest in pieces.index], dtype=str)
    beyond: list[int] = []
    trains = pieces.assign(place=np.arange(len(pieces)))[chosen == _TRAIN]
    for _, own in trains.groupby("cell_type", sort=True):
        batches = [rows["place"].to_numpy() for _, rows in own.groupby("batch", sort=True)]
        cells = [int(sizes[rows].sum()) for rows in batches]
        quotas = largest_remainder(min(most, sum(cells)), cells)
        for rows, quota in zip(batches, quotas, strict=True):
            drawn = rows[np.argsort(draw[rows], kind="stable")]
            beyond += drawn[np.cumsum(sizes[drawn]) - sizes[drawn] >= quota].tolist()
    return np.array(sorted(beyond), dtype=np.int64)


def _draw(seed: int, digest: str) -> str:
    """Return a random key of a content: the same wherever the cell stands in its file."""
    return hashlib.blake2b(f"{seed}:{digest}".encode(), digest_size=16).hexdigest()


def _by_batch(table: pd.DataFrame, pieces: pd.DataFrame, settings: Split) -> np.ndarray:
    """Return the set of each piece: its batch's; batches that share a content count as one."""
    names, batch = np.unique(table["batch"].to_numpy(dtype=str), return_inverse=True)
    piece = pieces.index.get_indexer(table["cell_digest"])  # type: ignore[arg-type]
    size = len(names) + len(pieces)
    links = coo_matrix((np.ones(len(table)), (batch, len(names) + piece)), shape=(size, size))
    n_groups, group = connected_components(links, directed=False)
    if n_groups < len(SETS):
        raise DataError(
            f"group_by_batch needs at least {len(SETS)} batches that share no cells, found {n_groups} "
            f"(of the batches {listed(names.tolist())}); set group_by_batch: false"
        )
    counted = ~pieces["rare"].to_numpy()[piece]
    types, cell_type = np.unique(table["cell_type"].to_numpy(dtype=str), return_inverse=True)
    counts = np.zeros((n_groups, len(types)))
    np.add.at(counts, (group[batch][counted], cell_type[counted]), 1)
    sets = divide_groups(counts, (settings.train, settings.validation, settings.test))
    return np.asarray(sets[group[len(names) :]])


# Dividing cells among sets as near to the shares as whole cells allow.

_TIE = 9
"""Decimals at which two remainders count as equal."""


def largest_remainder(total: int, weights: Sequence[float]) -> np.ndarray:
    """Return integers that add up to ``total``, in proportion to ``weights``; ties go to the earlier."""
    exact = np.asarray(weights, dtype=np.float64)
    exact = exact / exact.sum() * total if exact.sum() > 0 else np.zeros(len(exact))
    whole: np.ndarray = np.floor(np.round(exact, _TIE)).astype(np.int64)
    order = np.argsort(-np.round(exact - whole, _TIE), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole


def remaining_quotas(shares: Sequence[float], total: int, placed: np.ndarray) -> np.ndarray:
    """Return how many of the cells not yet placed each set should get.

    Without a set that already holds more than its share, sets end exactly on the largest remainder of
    ``total``; otherwise what is left is divided in proportion to what the others still lack.
    """
    lacking = np.maximum(largest_remainder(total, shares) - placed, 0)
    return largest_remainder(total - int(placed.sum()), lacking)


def fill(sizes: Sequence[int], quotas: np.ndarray) -> np.ndarray:
    """Return the set of each indivisible piece: large ones first, each to the set that lacks most.

    Pieces of one size keep their order, so that shuffled pieces give a random division; where all sizes are
    1, the quotas are met exactly.
    """
    lacking = quotas.copy()
    chosen = np.zeros(len(sizes), dtype=np.int64)
    for piece in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        chosen[piece] = int(np.argmax(lacking))
        lacking[chosen[piece]] -= sizes[piece]
    return chosen


def divide_groups(counts: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return the set of each group such that every set has a group and types are near to their shares.

    Large groups are placed first, each where it fits best; then single moves and exchanges improve the
    division until none helps. The misfit of a division is the sum over types and sets of the squared
    difference between the share of the type's cells in the set and the set's target share.

    Parameters
    ----------
    counts
        (n_groups, n_types) cells; at least as many groups as ``shares``.
    """
    division = _Division(counts / np.maximum(counts.sum(axis=0), 1), shares)
    order = np.argsort(-counts.sum(axis=1), kind="stable").tolist()
    for place, group in enumerate(order):
        empty = [s for s in range(len(shares)) if not division.members[s]]
        must = len(empty) == len(order) - place
        targets = empty if must else range(len(shares))
        division.move({group: min(targets, key=lambda target: division.misfit({group: target}))})  # noqa: B023
    while division.improve():
        pass
    return division.chosen


class _Division:
    """Groups in sets (-1: not placed yet), with the shares of types that each set holds."""

    def __init__(self, weights: np.ndarray, shares: Sequence[float]) -> None:
        self._weights = weights
        self._targets = np.asarray(shares)[:, None]
        self._held = np.zeros((len(shares), weights.shape[1]))
        self.chosen = np.full(len(weights), -1)
        self.members = np.zeros(len(shares), dtype=np.int64)

    def misfit(self, changes: dict[int, int]) -> float:
        """Return the misfit after ``changes``, {group: set}."""
        return float(((self._after(changes) - self._targets) ** 2).sum())

    def move(self, changes: dict[int, int]) -> None:
        """Make ``changes``."""
        self._held = self._after(changes)
        self.chosen[list(changes)] = list(changes.values())
        self.members = np.bincount(self.chosen[self.chosen >= 0], minlength=len(self.members))

    def improve(self) -> bool:
        """Try every move and every exchange once; return whether one lowered the misfit."""
        improved = False
        for group in range(len(self.chosen)):
            for target in range(len(self.members)):
                if self.members[self.chosen[group]] > 1:
                    improved |= self._attempt({group: target})
            for other in range(group):
                exchange = {group: int(self.chosen[other]), other: int(self.chosen[group])}
                improved |= self._attempt(exchange)
        return improved

    def _attempt(self, changes: dict[int, int]) -> bool:
        better = self.misfit(changes) < self.misfit({}) - 1e-12
        if better:
            self.move(changes)
        return better

    def _after(self, changes: dict[int, int]) -> np.ndarray:
        held = self._held.copy()
        for group, target in changes.items():
            if self.chosen[group] >= 0:
                held[self.chosen[group]] -= self._weights[group]
            held[target] += self._weights[group]
        return held
