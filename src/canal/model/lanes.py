"""Lanes: threads that each work on cells of their own, with one thread's arithmetic.

Cells do not depend on each other, so two cores are used best by two cells at a time: each core keeps its own
cell in its cache, and none waits for the other within an operation. Since every cell is computed by a single
thread, its answer is the same bits whatever the number of lanes.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_here = threading.local()


def in_lanes(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``function`` of every item, in order, computed in as many lanes as torch has threads.

    An error in a lane is raised here. Called within a lane, it computes there, one item after the other.
    """
    lanes = torch.get_num_threads()
    if lanes == 1 or getattr(_here, "inside", False):
        return [function(item) for item in items]
    return list(_pool(lanes).map(_with_modes(function), items))


def _with_modes(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    """Return ``function`` under the caller's gradient mode and precision, which a thread does not inherit."""
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    precise = [
        torch.autocast(
            device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
        )
        for device in ("cpu", "cuda")
    ]

    def run(item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients), precise[0], precise[1]:
            return function(item)

    return run


@cache
def _pool(lanes: int) -> ThreadPoolExecutor:
    _keep_pages()
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="canal-lane", initializer=_enter)
    started = threading.Barrier(lanes + 1)
    for _ in range(lanes):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(lanes)  # the last number set is also what any new thread begins with
    return pool


def _enter() -> None:
    _here.inside = True
    torch.get_num_threads()  # the first question gives a thread the process's number, over one set before
    torch.set_num_threads(1)


@cache
def _keep_pages() -> None:
    """Have glibc keep freed memory: a megabyte given back and asked for anew costs more than its arithmetic.

    Of other C libraries nothing is asked.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)
        mallopt(_M_ARENA_MAX, 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
