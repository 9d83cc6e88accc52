"""Loading what is needed next while the present is being worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def prefetched(
    items: Iterable[T], load: Callable[[T], U], ahead: int = 2, threads: int = 1
) -> Generator[U, None, None]:
    """Yield ``load(item)`` of every item, in order, while a background thread loads what comes next.

    Parameters
    ----------
    items
        Taken by the consumer's own thread, at most ``ahead + 1`` more than were yielded.
    load
        Called in the background. What it raises is raised where its value would have been yielded, with the
        traceback of the load.
    ahead
        How many loaded values may wait while the consumer works on one: a bound of memory.
    threads
        How many values are loaded at a time.

    The threads end with the iterator. A consumer that stops early closes it (``contextlib.closing``): loads
    that have not begun are then left out.
    """
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="canal-prefetch") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
