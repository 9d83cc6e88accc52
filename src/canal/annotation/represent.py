"""What a model makes of some cells of a query, for all who look at more than the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from canal.annotation.reading import Reading
    from canal.annotation.telling import OnCells
    from canal.model.annotator import Annotator
    from canal.model.compute import Precision


@dataclass(frozen=True)
class Represented:
    """Cells as a model sees them, one row each.

    ``rows`` are their positions in the query, rising; ``manifold`` float32 ``(n, 128)``; ``logits`` float32
    ``(n, n_types)``.
    """

    rows: np.ndarray
    manifold: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Machine:
    """How cells go through a network: so many at a time, where, and in which precision."""

    chunk_cells: int = 2000
    device: str = "auto"
    dtype: Precision = "float32"


def represent(
    annotator: Annotator, reading: Reading, wanted: np.ndarray, machine: Machine, tell: OnCells
) -> Represented:
    """Return what the model makes of the cells that are ``wanted``, bool ``(n_cells,)``, block by block.

    In memory are a block of cells, and some 600 bytes of answers for each wanted cell.

    Parameters
    ----------
    annotator, reading
        The model, and cells read in its genes.
    wanted
        Which cells go through the network.
    machine
        How.
    tell
        Is told (wanted cells done, wanted cells in all) after every block.

    Raises
    ------
    DataError
        If a value is wrong; see `canal.annotation.reading.Reading.blocks`.
    """
    from canal.model.compute import find_device, precision

    device = find_device(machine.device)
    annotator.network.to(device)
    total, done = int(wanted.sum()), 0
    manifolds = [np.zeros((0, annotator.network.head.to_manifold.out_features), dtype=np.float32)]
    logits = [np.zeros((0, len(annotator.labels)), dtype=np.float32)]
    with precision(machine.dtype, device):
        for block in reading.blocks(machine.chunk_cells):
            chosen = wanted[block.start : block.start + len(block.expression)]
            if not chosen.any():
                continue
            answers = annotator.answers(block.expression[chosen])
            manifolds.append(answers.manifold.float().numpy())
            logits.append(answers.logits.float().numpy())
            done += int(chosen.sum())
            tell(done, total)
    return Represented(np.flatnonzero(wanted), np.concatenate(manifolds), np.concatenate(logits))
