"""What cannot change during a stage, computed once: the frozen blocks' outputs and the teacher's answers.

Everything here is computed one cell at a time. A cell's values are then the same bits whatever cells are
asked for with it, so a training that reads them from a file and one that computes them anew for every batch
end with the same weights. It costs little: a single cell fills a processor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from canal.files import new_file
from canal.model.annotator import AnnotatorNetwork
from canal.model.performer import Performer
from canal.model.storage import weights_digest

FORMAT = 1


class PrefixFeatures:
    """Outputs of ``Performer.encode_prefix`` for cells, by row.

    Parameters
    ----------
    performer
        Only its embeddings and frozen blocks are used.
    tokens
        uint8 ``(n_cells, n_genes)``.
    folder
        Where to keep the outputs as float32 ``(n_cells, n_genes + 1, dim)``, read through a memory map, so
        memory does not grow with cells; the file's name is the digest of all that decides its values. None:
        keep nothing, compute each cell when it is asked for.
    """

    def __init__(self, performer: Performer, tokens: np.ndarray, folder: Path | None) -> None:
        self._performer = performer
        self._tokens = tokens
        self.shape = (len(tokens), performer.n_genes + 1, performer.config.dim)
        self.digest = _digest("prefix", prefix_digest(performer), _array_digest(tokens))
        self._stored = None
        if folder is not None and len(tokens):
            path = folder / f"prefix-{self.digest}.npy"
            self._stored = stored(path, self.shape, lambda: (self._cell(i) for i in range(len(tokens))))

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Return the outputs of the cells at ``indices``, ``(len(indices), n_genes + 1, dim)``."""
        if self._stored is not None:
            return torch.from_numpy(self._stored[np.asarray(indices, dtype=np.int64)])
        values = np.empty((len(indices), *self.shape[1:]), dtype=np.float32)
        for place, index in enumerate(indices):
            values[place] = self._cell(int(index))
        return torch.from_numpy(values)

    @torch.inference_mode()
    def _cell(self, index: int) -> np.ndarray:
        device = self._performer.token_emb.weight.device
        tokens = torch.from_numpy(self._tokens[index : index + 1]).to(device)
        result: np.ndarray = self._performer.encode_prefix(tokens)[0].cpu().numpy()
        return result


def representations(teacher: AnnotatorNetwork, features: PrefixFeatures, folder: Path | None) -> np.ndarray:
    """Return the teacher's representation h_{t-1} of every cell of ``features``, float32 ``(n_cells, 64)``.

    ``features`` must come from the teacher's own prefix, which student and teacher share. Kept in ``folder``
    as `PrefixFeatures` keeps its values; 256 bytes a cell, so without a folder they stay in memory.
    """

    @torch.inference_mode()
    def one(index: int) -> np.ndarray:
        device = teacher.head.filter.weight.device
        answer = teacher.finish(features.rows([index]).to(device))
        result: np.ndarray = answer.representation[0].cpu().numpy()
        return result

    shape = (len(features), teacher.head.to_representation.out_features)
    values: Callable[[], Iterator[np.ndarray]] = lambda: (one(i) for i in range(len(features)))  # noqa: E731
    if folder is None or not len(features):
        return np.array(list(values()), dtype=np.float32).reshape(shape)
    digest = _digest("teacher", weights_digest(teacher.state_dict()), features.digest)
    return np.array(stored(folder / f"teacher-{digest}.npy", shape, values))


def prefix_digest(performer: Performer) -> str:
    """Return the SHA-256 of the weights that `PrefixFeatures` uses."""
    kept = ("token_emb.", "pos_emb.", *(f"blocks.{i}." for i in range(performer.first_trained)))
    return weights_digest({k: v for k, v in performer.state_dict().items() if k.startswith(kept)})


def stored(path: Path, shape: tuple[int, ...], values: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    """Return the float32 array in ``path`` as a memory map; write it first from ``values``, one a row.

    The file appears when it is whole. One that is cut short or of another shape is written anew.
    """
    found = _open(path, shape)
    if found is None:
        with new_file(path) as temporary:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            for row, value in enumerate(values()):
                array[row] = value
            array.flush()
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.float32 else None


def _array_digest(array: np.ndarray) -> str:
    head = f"{array.dtype} {array.shape};".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _digest(*parts: str) -> str:
    # Another torch or another number of threads may round differently, and results are promised to the bit.
    machine = f"{FORMAT} {torch.__version__} {torch.get_num_threads()}"
    return hashlib.sha256(" ".join((machine, *parts)).encode()).hexdigest()[:32]
