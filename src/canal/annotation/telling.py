"""How far a labelling is: lines at every tenth of the cells, with cells a second and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable

OnCells = Callable[[int, int], None]
"""Is told (cells done, cells in all)."""

_TENTHS = 10


def in_tenths(
    notice: Callable[[str], None], clock: Callable[[], float] = time.monotonic, what: str = "labelled"
) -> OnCells:
    """Return what tells ``notice`` a line at every tenth of the cells: ``what`` was done with how many.

    The rate is that of this run: cells of an earlier, interrupted one do not count.
    """
    before = began_at = -1
    began = clock()

    def tell(done: int, total: int) -> None:
        nonlocal before, began_at
        if before < 0:
            before = began_at = done
            return
        passed, before = _TENTHS * done // total > _TENTHS * before // total, done
        if passed:
            rate = (done - began_at) / max(clock() - began, 1e-9)
            left = f" ({rate:,.0f} cells/s, {_span((total - done) / rate)} left)" if done < total else ""
            notice(f"{what} {done:,} of {total:,} cells{left}")

    return tell


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
