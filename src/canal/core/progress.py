"""What a command tells while it works: numbers in one form, and lines about progress, on the error stream.

A line comes only when nothing was said for `QUIET` seconds, so that short jobs stay quiet. There are no
control characters in it: pipes and logs of CI show it as it is. Processes that work on one run share the time
of their last line (`told_together`), so that the outer ones speak only where the inner ones do not.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from canal.core.errors import LAST_LINE, seconds_since_line, tell

QUIET = 1.5
"""Seconds without a line after which a command says what it does."""

AROUND = 0.2
"""Seconds that a process waits longer than one that it has started, which knows better what is done."""

_LINES = 300
"""Lines of a job that lasts very long, at most: they come less often from the eighth minute on."""

_SETTLED, _FORETELLS = 8.0, 0.02
"""Seconds of work, or the share of the cells, from which on the rate foretells the time left."""

Item = TypeVar("Item")
OnCells = Callable[[int, int], None]
"""Called with (cells done, cells in all)."""


# Numbers in one form.


def percent(share: float | None, unit: str = " %", digits: int = 1) -> str:
    """Return a share in percent, such as "97.7 %"; "-" where there is none. Estimates have no digits."""
    return "-" if share is None else f"{100 * share:.{digits}f}{unit}"


def points(change: float | None, unit: str = "") -> str:
    """Return a change of a share in percentage points with its sign, such as "+1.2"; "-" where there is none.

    A change that rounds to nothing has no sign.
    """
    if change is None:
        return "-"
    shown = f"{100 * change:+.1f}"
    return f"{shown[1:] if float(shown) == 0 else shown}{unit}"


def p_value(p: float) -> str:
    """Return a p-value by two digits, such as "0.012"; "<0.001" below that."""
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def count(n: int, noun: str = "cell") -> str:
    """Return a number with its noun, such as "12,345 cells"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def ranges(numbers: Sequence[int]) -> str:
    """Return whole numbers in order, such as "1-4, 7"."""
    runs: list[list[int]] = []
    for number in sorted({*numbers}):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def first_names(names: Sequence[str], most: int = 3) -> str:
    """Return the first names of a list, and how many more there are, such as "a, b, c and 4 more"."""
    return f"{', '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''}"


def span(seconds: float) -> str:
    """Return a time, such as "4.2 s", "35 s", "7 min" or "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(n_bytes: int) -> str:
    """Return a size in decimal units, such as "812 bytes", "3.4 kB" or "12.5 MB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return count(n_bytes, "byte")


# What is being done: a thread tells it when it lasts.


@dataclass
class _Cells:
    """The cells of an activity: ``done`` in whole blocks, and ``within`` the block that is at work."""

    what: str
    clock: Callable[[], float]
    began: float
    began_at: int = -1
    done: int = 0
    total: int = 0
    within: int = 0
    told: float = 0.0

    def line(self) -> str:
        """Return how many cells are done, cells a second and the time left."""
        self.told = self.clock() - self.began
        done = min(self.done + self.within, self.total)
        rate = max(done - self.began_at, 1) / max(self.told, 1e-9)
        left = f", {span((self.total - done) / rate)} left" if self._steady(done) else ""
        pace = f" ({rate:,.0f} cells/s{left})" if done < self.total else ""
        return f"{self.what} {done:,} of {self.total:,} cells{pace}"

    def _steady(self, done: int) -> bool:
        """Whether the rate so far foretells the rest: the first cells wait for files, threads and caches."""
        return self.told >= _SETTLED or done - self.began_at >= _FORETELLS * (self.total - self.began_at)


@dataclass
class _Activity:
    what: str
    began: float = field(default_factory=time.monotonic)
    told: bool = False
    cells: _Cells | None = None

    def now(self, what: str) -> None:
        """Do something else from now on."""
        self.what, self.began, self.told, self.cells = what, time.monotonic(), False, None


class _Watch:
    """What is being done, the innermost last, and the thread that tells it when it lasts."""

    def __init__(self) -> None:
        self.is_on = False
        self.later = 0.0
        self._pid = os.getpid()
        self.activities: list[_Activity] = []
        self._thread: threading.Thread | None = None

    def begin(self, what: str) -> _Activity:
        """Add what is being done now; the thread starts with the first."""
        if self._pid != os.getpid():  # a fork does nothing of what its parent does
            self._pid, self.activities = os.getpid(), []
        activity = _Activity(what)
        self.activities.append(activity)
        if self.is_on and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="canal-progress", daemon=True)
            self._thread.start()
        return activity

    def end(self, activity: _Activity) -> None:
        """Take away what is done, wherever it stands: a generator may end later than what is around it."""
        self.activities = [one for one in self.activities if one is not activity]

    def _run(self) -> None:
        while self.activities:
            self.look()
            time.sleep(QUIET / 10)

    def look(self) -> None:
        """Tell what is being done if nothing was told for a while, the longer it lasts the longer."""
        activities = self.activities
        if not activities or not all(one.what for one in activities):
            return
        current = activities[-1]
        lasted = time.monotonic() - current.began
        if seconds_since_line() < _patience(lasted) + self.later:
            return
        if current.cells is not None and current.cells.done < current.cells.total:
            tell(current.cells.line())
            return
        so_far = f" ({span(lasted)} so far)" if current.told else ""
        current.told = True
        tell(f"{current.what} ...{so_far}")


def _patience(lasted: float) -> float:
    """Return the seconds between two lines of a job: more only where it lasts, for the sake of its log."""
    return max(QUIET, lasted / _LINES)


_WATCH = _Watch()


def watch(later: float = 0.0) -> None:
    """From now on tell what lasts, ``later`` seconds after other processes of this run would have.

    Commands and steps of the pipeline call it; who imports canal is told of cells that are labelled, no more.
    """
    _WATCH.is_on, _WATCH.later = True, later


@contextmanager
def told_together(mark: Path) -> Iterator[None]:
    """Let the processes that are started within a block share the time of their last line: that of a file."""
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    os.environ[LAST_LINE] = str(mark.resolve())
    try:
        yield
    finally:
        del os.environ[LAST_LINE]


@contextmanager
def doing(what: str) -> Iterator[Callable[[str], None]]:
    """Declare what is being done within a block, such as "checking version 3"; it is told when it lasts.

    Yields a function that says what is done from now on. With an empty text nothing within the block is
    told: it shows its own progress.
    """
    activity = _WATCH.begin(what)
    try:
        yield activity.now
    finally:
        _WATCH.end(activity)


def each(items: Sequence[Item], what: Callable[[Item], str]) -> Iterator[Item]:
    """Yield items, and tell those that last: what is done, and "3 of 4"."""
    for number, item in enumerate(items, start=1):
        of = f" ({number} of {len(items)})" if len(items) > 1 else ""
        with doing(f"{what(item)}{of}"):
            yield item


def by_cells(
    notice: Callable[[str], None], clock: Callable[[], float] = time.monotonic, what: str = "labelled"
) -> OnCells:
    """Return a callback that sends ``notice`` the cells done, cells a second and the time left.

    The first message comes after `QUIET` seconds; the last cells are told if any were. ``what`` is the
    participle in the message. The rate leaves out cells of an earlier, interrupted run. Called within
    `doing`, it has the cells told that `advance` counts, too.
    """
    cells = _Cells(what, clock, clock())

    def on_cells(done: int, total: int) -> None:
        first, cells.done, cells.total, cells.within = cells.began_at < 0, done, total, 0
        if _WATCH.activities:
            _WATCH.activities[-1].cells = cells
        if first:
            cells.began_at = done
            return
        lasted, told = clock() - cells.began, cells.told
        if (done >= total and told > 0) or (done < total and lasted - told >= _patience(lasted)):
            notice(cells.line())

    return on_cells


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Declare that something is done with ``total`` cells, such as "epoch 2: trained on".

    Yields a function that counts cells that are done. Lines tell them, cells a second and the time left.
    """
    with doing(what):
        on_cells, done = by_cells(lambda _: None, what=what), 0
        on_cells(0, total)

        def count_more(n: int) -> None:
            nonlocal done
            done += n
            on_cells(done, total)

        yield count_more


def advance(n: int) -> None:
    """Count cells within a block that is at work, so that they are told before it is done."""
    for one in _WATCH.activities:
        if one.cells is not None:
            one.cells.within += n
