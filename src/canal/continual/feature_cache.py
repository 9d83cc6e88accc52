"""What cannot change during a stage, computed once: the frozen blocks' outputs and the teacher's answers.

Everything here is computed one cell at a time, by one thread of torch. A cell's values are then the same bits
whatever cells are asked for with it and however many are computed side by side, so a training that reads them
from a file and one that computes them anew for every batch end with the same weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import canal.model
from canal.continual.cache_space import GIGABYTE, CacheSpace
from canal.continual.cached_rows import CachedRows
from canal.continual.segments import RowDtype, RowKind
from canal.core.digests import file_digest, json_digest
from canal.model.backbone import Performer
from canal.model.compute import in_lanes
from canal.model.head import AnnotatorNetwork
from canal.model.storage import weights_digest

FORMAT = 2
_AHEAD = 32
"""Cells computed before the first of them is written: lanes wait for each other once in so many."""


class PrefixFeatures:
    """Outputs of ``Performer.encode_prefix`` for cells, by row.

    Parameters
    ----------
    performer
        Only its embeddings and frozen blocks are used.
    tokens
        uint8 ``(n_cells, n_genes)``.
    space
        Where to keep the outputs, ``(n_genes + 1, dim)`` a cell, read through memory maps, so memory does not
        grow with cells. A cell is found by its tokens: epochs, trials and stages with one prefix share it.
        None: keep nothing, compute each cell when it is asked for.
    dtype
        "bfloat16" rounds the outputs, kept or not, and halves the space.

    Attributes
    ----------
    shape : tuple of int
        ``(n_cells, n_genes + 1, dim)``.
    key : str
        Digest of all that decides the outputs of a cell beside its tokens. The panel is in it: the weights
        hold a vector for each of its genes.
    cells : tuple of str
        Digest of each cell's tokens.

    Raises
    ------
    TrainingError
        If the disk cannot hold what is to be kept.
    """

    def __init__(
        self,
        performer: Performer,
        tokens: np.ndarray,
        space: CacheSpace | None,
        dtype: RowDtype = "float32",
    ) -> None:
        self._performer, self._tokens = performer, tokens
        self.shape = (len(tokens), performer.n_genes + 1, performer.config.dim)
        self.device = performer.token_emb.weight.device
        self.key = _key(self.device, what="prefix", weights=prefix_digest(performer), dtype=dtype)
        self.cells = tuple(hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in tokens)
        self._kind, self._space = RowKind(self.shape[1:], dtype), space
        self._rows = CachedRows(self._kind, self.cells, self._compute, space, self.key)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def kept(self) -> int:
        """How many cells' outputs lie on disk; the others are computed whenever they are asked for."""
        return self._rows.kept

    @property
    def shortage(self) -> str:
        """A sentence that says how many cells found no room in the cache; empty where all did."""
        if self._space is None or self.kept == len(self):
            return ""
        return (
            f"the features of {self.kept:,} of {len(self):,} cells are kept, the others are computed "
            f"whenever they are needed: all take {self._kind.segment_bytes(len(self)) / GIGABYTE:.3g} GB, "
            f"cache.max_gb is {self._space.max_bytes / GIGABYTE:g}"
        )

    def rows(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Return the outputs of the cells at ``indices``, float32 ``(len(indices), n_genes + 1, dim)``."""
        return torch.from_numpy(self._rows.take(indices))

    def _compute(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        return each_alone(self._cell, indices)

    @torch.inference_mode()
    def _cell(self, index: int) -> np.ndarray:
        tokens = torch.from_numpy(self._tokens[index : index + 1]).to(self.device)
        result: np.ndarray = self._performer.encode_prefix(tokens)[0].cpu().numpy()
        return result


def representations(
    teacher: AnnotatorNetwork, features: PrefixFeatures, space: CacheSpace | None, n_cells: int | None = None
) -> np.ndarray:
    """Return the teacher's representation h_{t-1} of the first ``n_cells`` (default: all) of ``features``.

    float32 ``(n_cells, 64)``. ``features`` must come from the teacher's own prefix, which student and teacher
    share unless the student's panel has grown. Kept in ``space`` as `PrefixFeatures` keeps its values, but
    always as float32; 256 bytes a cell, so the result stays in memory.
    """

    @torch.inference_mode()
    def one(index: int) -> np.ndarray:
        answer = teacher.finish(features.rows([index]).to(device))
        result: np.ndarray = answer.representation[0].float().cpu().numpy()
        return result

    device = teacher.head.filter.weight.device
    cells = features.cells[:n_cells]
    kind = RowKind((teacher.head.to_representation.out_features,))
    weights = weights_digest(teacher.state_dict())
    key = _key(device, what="teacher", weights=weights, features=features.key)
    rows = CachedRows(kind, cells, lambda indices: each_alone(one, indices), space, key)
    return rows.take(range(len(cells)))


def prefix_digest(performer: Performer) -> str:
    """Return the SHA-256 of the weights that `PrefixFeatures` uses."""
    kept = ("token_emb.", "pos_emb.", *(f"blocks.{i}." for i in range(performer.first_trained)))
    return weights_digest({k: v for k, v in performer.state_dict().items() if k.startswith(kept)})


def each_alone(work: Callable[[int], np.ndarray], indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield ``work(index)`` of each index in order, each in a lane of its own, a few ahead."""
    for start in range(0, len(indices), _AHEAD):
        yield from in_lanes(work, indices[start : start + _AHEAD])


def _key(device: torch.device, **parts: str) -> str:
    # Another torch, processor or edit of the network may round differently, and results are promised to the
    # bit. Features outlive the code that made them, so the code counts.
    machine = f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    known = {"format": str(FORMAT), "torch": torch.__version__, "machine": machine, "code": _code_digest()}
    precise = {} if not torch.is_autocast_enabled(device.type) else {"products": "bfloat16"}
    return json_digest(known | precise | parts)[:32]


@cache
def _code_digest() -> str:
    folder = Path(canal.model.__file__).parent
    return json_digest({path.name: file_digest(path) for path in folder.glob("*.py")})
