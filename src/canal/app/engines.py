"""Dask, where work is spread over many cores or machines: a client, and sums added up by its workers.

`canal annotate --engine dask` labels by it; a stage's sums are added up by it where `SPREAD` says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from canal.core.errors import CanalError, ConfigError, DataError
from canal.memory.levels import Basis
from canal.memory.sums import Sums, total

if TYPE_CHECKING:
    from distributed import Client

SPREAD = "CANAL_DASK"
"""The environment variable that spreads learning by sums: the address of a Dask scheduler, or a number of
workers of this machine. It changes no result, so it is no part of params.yaml."""

_RETRIES = 20
"""How often a task is tried again after its worker was killed."""


def add_up_parts(basis: Basis, parts: Sequence[Any], add_up: Callable[[Any], Sums]) -> Sums:
    """Return the sums of all parts: by this process, or by Dask where the environment asks for it.

    Whole numbers are added, so the result is the same to the byte, whoever adds what first, and however often
    a part is added up again because its worker was killed.

    Parameters
    ----------
    basis
    parts
        What `add_up` takes; paths, names and numbers, which other processes can be sent.
    add_up
        A function of a module, which returns the sums of one part.

    Raises
    ------
    CanalError
        If a part cannot be added up.
    ConfigError
        If no Dask answers.
    """
    asked = os.environ.get(SPREAD)
    if not asked:
        return total(map(add_up, parts), basis)
    workers = int(asked) if asked.isdecimal() and int(asked) else None
    with dask_client(None if workers else asked, workers) as client:
        # A tree: each level adds up pairs of the one before, on the worker that has one of them.
        level = [client.submit(add_up, part, pure=False) for part in parts]
        while len(level) > 1:
            pairs = [level[at : at + 2] for at in range(0, len(level), 2)]
            level = [client.submit(Sums.plus, *pair) if len(pair) > 1 else pair[0] for pair in pairs]
        try:
            return level[0].result() if level else Sums.empty(basis)
        except CanalError:
            raise
        except Exception as error:  # of a worker, which is another process
            raise DataError(
                f"the sums could not be added up by Dask ({type(error).__name__}: {str(error)[:200]}): run "
                f"the same again, or unset {SPREAD}"
            ) from error


def distributed() -> Any:
    """Return the package that the extra dask brings."""
    return import_module("distributed")


@contextmanager
def dask_client(scheduler: str | None, workers: int | None) -> Iterator[Client]:
    """Yield a client of the scheduler, or of workers of this machine, which end with it."""
    dask = distributed()
    if scheduler is not None:
        try:
            with dask.Client(scheduler, timeout="10s") as client:
                yield client
        except OSError as error:
            raise ConfigError(
                f"{scheduler}: no Dask scheduler answers there ({error}): `dask "
                "scheduler` starts one, `dask worker ADDRESS` its workers"
            ) from error
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or max(1, cores // 2)
    try:
        cluster = dask.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,
            silence_logs=50,
            # A worker that is killed takes no partition with it, however often that happens.
            scheduler_kwargs={"allowed_failures": _RETRIES},
            env={"OMP_NUM_THREADS": str(max(1, cores // workers))},
        )
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"Dask's {workers} workers could not be started here ({error}): try fewer (--workers), or "
            "leave --engine out"
        ) from error
    with cluster, dask.Client(cluster) as client:
        yield client
