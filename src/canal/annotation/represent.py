"""What a model makes of some cells of a query, for all who look at more than the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from canal.annotation.reading import Reading
    from canal.annotation.telling import OnCells
    from canal.model.compute import Precision
    from canal.model.load import CellAnnotator


@dataclass(frozen=True)
class Represented:
    """Cells as a model sees them, one row each.

    ``rows`` are their positions in the query, rising; ``manifold`` ``(n, 128)`` of a network, or one
    column a centroid of sums alone; ``logits`` ``(n, n_types)``.
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
    annotator: CellAnnotator, reading: Reading, wanted: np.ndarray, machine: Machine, tell: OnCells
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
    annotator = annotator.on(device)
    total, done = int(wanted.sum()), 0
    manifolds, logits = (
        [part] for part in annotator.represented(np.zeros((0, len(annotator.genes)), np.float32))
    )
    with precision(machine.dtype, device):
        for block in reading.blocks(machine.chunk_cells):
            chosen = wanted[block.start : block.start + len(block.expression)]
            if not chosen.any():
                continue
            manifold, answered = annotator.represented(block.expression[chosen])
            manifolds.append(manifold)
            logits.append(answered)
            done += int(chosen.sum())
            tell(done, total)
    return Represented(np.flatnonzero(wanted), np.concatenate(manifolds), np.concatenate(logits))
