"""Several processes learn one network: each computes its share of every batch, and all take the same step.

A batch is cut into the groups of cells that one process would compute, and each process has consecutive ones.
Their gradients are added in the order of the groups: a process goes on from the sum of the one before it. On
a CPU the sum is so that of a single process to the bit, and with it the weights; DistributedDataParallel,
whose mean of means weights the cells of a smaller share more, would differ. On GPUs nccl adds them in an
order of its own.

The first process is the step itself; the others are started by it (`assisted`), and end with it, or all of
them by torchrun (`joined`), on one or several machines.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from canal.core.errors import CanalError, ConfigError, TrainingError
from canal.core.files import scratch_folder
from canal.runtime.together import PROCESSES, TORCHRUN

Item = TypeVar("Item")
_PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others within a batch: as long as the first one may show an epoch."""
_POLL_S, _ENDING_S = 0.02, 2.0
_LOST = "a process of the training has ended"


class LostProcessError(TrainingError):
    """A process that learns with this one has ended: what they hold in common is as of the last epoch."""


@dataclass(frozen=True)
class Share:
    """What one of several processes does of a training.

    Attributes
    ----------
    rank : int
        Which process this is; the first, 0, alone writes files and tells what happens.
    size : int
        How many there are.
    device : str
        Where they exchange tensors: "cpu" or "cuda".
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def part(self, groups: Sequence[Item]) -> Sequence[Item]:
        """Return this process's groups, consecutive ones, of all groups of a batch; there may be none."""
        first, last = (-(-len(groups) * rank // self.size) for rank in (self.rank, self.rank + 1))
        return groups[first:last]

    def idle(self, n_groups: int) -> str:
        """Return a message on processes that a batch of so many groups leaves without work; else empty."""
        if n_groups >= self.size:
            return ""
        return (
            f"of {self.size} processes, {n_groups} have work: a batch is computed in {n_groups} groups of "
            "cells; larger batches, networks or panels have more of them"
        )

    def added(self, parts: Sequence[Tensor], length: int) -> Tensor:
        """Return the sum of all processes' parts, vectors of ``length`` numbers, the same in each of them.

        On a CPU they are added in the order of the processes, one part after the other.

        Raises
        ------
        LostProcessError
            If another process has ended.
        """
        total = None
        with _heard():
            if self.rank and self.device == "cpu":
                total = torch.empty(length)
                dist.recv(total, self.rank - 1)
            for part in parts:
                total = part if total is None else total.add_(part)
            if total is None:
                total = torch.zeros(length, device=self.device)
            if self.device != "cpu":
                dist.all_reduce(total)
                return total
            if self.rank < self.size - 1:
                dist.send(total, self.rank + 1)
            dist.broadcast(total, self.size - 1)
        return total

    def merged(self, values: Tensor) -> Tensor:
        """Return ``values`` of which each process has filled in some places, and zeros elsewhere, in full.

        Raises
        ------
        LostProcessError
            If another process has ended.
        """
        if self.size == 1:
            return values
        with _heard():
            there = values.to(self.device)
            dist.all_reduce(there)
            return there.to(values.device)

    def agree(self, digest: str) -> None:
        """Raise unless all processes have the same digest, of what they are about to learn.

        Raises
        ------
        TrainingError
            If they differ: another machine sees other files, or computes otherwise.
        """
        if self.size == 1:
            return
        own = torch.frombuffer(bytearray(digest.encode()), dtype=torch.uint8).to(self.device)
        with _heard():
            first = own.clone()
            dist.broadcast(first, 0)
            differ = torch.tensor([float(not torch.equal(own, first))], device=self.device)
            dist.all_reduce(differ)
        if differ:
            raise TrainingError(
                f"{int(differ)} of {self.size} processes would learn from other cells, settings or weights "
                "than the first: let all of them see the same project folder, on machines of one kind with "
                "one version of torch"
            )


ALONE = Share()
"""The share of a process that learns by itself."""


@contextmanager
def _heard() -> Iterator[None]:
    """Raise `LostProcessError` for what torch, or a pipe, raises within an exchange."""
    try:
        yield
    except (RuntimeError, BrokenPipeError) as error:
        raise LostProcessError(
            f"{_LOST} ({str(error).strip()[:120]}): start the step again, which goes on from its last epoch"
        ) from error


def backend(device: str, local: int) -> str:
    """Return by what ``local`` processes of this machine exchange tensors: gloo on a CPU, nccl on GPUs.

    Raises
    ------
    ConfigError
        If this torch lacks it, or there are fewer GPUs than processes.
    """
    name = "nccl" if device == "cuda" else "gloo"
    there = {"nccl": "is_nccl_available", "gloo": "is_gloo_available"}[name]
    if not dist.is_available() or not getattr(dist, there)():
        raise ConfigError(
            f"processes that learn together on {device} need {name}, which this torch "
            f"({torch.__version__}) was built without: unset {PROCESSES}, or install another build of torch"
        )
    if device == "cuda" and (n := torch.cuda.device_count()) < local:
        raise ConfigError(
            f"{PROCESSES} asks for {local} processes on GPUs, each on one of its own, but torch sees {n}: "
            f"set {PROCESSES} to {n} at most, or compute.device to cpu"
        )
    return name


# Processes that torchrun has started.


def joined(device: str) -> Share:
    """Return the share of this process among those that torchrun has started, and meet the others.

    They stay together until they end, whatever they learn one after the other. Each has its part of the
    machine's threads.

    Raises
    ------
    ConfigError
        As `backend`.
    LostProcessError
        If the others cannot be met.
    """
    rank, size, place, local = (int(os.environ[name]) for name in TORCHRUN)
    if not dist.is_initialized():
        name = backend(device, local)
        torch.set_num_threads(max(1, torch.get_num_threads() // local))
        with _heard():
            if device == "cuda":
                torch.cuda.set_device(place)
            # torchrun keeps its store when it starts processes anew, with the addresses of those before.
            attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
            store, *_ = next(rendezvous("env://", timeout=_PATIENCE))
            own = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
            dist.init_process_group(name, store=own, rank=rank, world_size=size, timeout=_PATIENCE)
    return Share(rank, size, device)


# Processes that this one starts.


class _Order(NamedTuple):
    """What a started process is told: its share, where the others are met, its threads, and the work."""

    share: Share
    folder: Path
    threads: int
    work: Callable[..., object]
    arguments: Sequence[object]


@contextmanager
def assisted(
    number: int, device: str, work: Callable[..., object], arguments: Sequence[object]
) -> Iterator[Share]:
    """Start ``number - 1`` processes that call ``work`` with ``arguments`` and their share; yield this one's.

    They end with the block, and with this process, however that ends. Threads are divided among all.

    Raises
    ------
    ConfigError
        As `backend`; if this process is in a group of torch.distributed already.
    LostProcessError
        If one of them ends before the block does.
    """
    name, threads = backend(device, number), torch.get_num_threads()
    if dist.is_initialized():
        raise ConfigError(
            "this process is in a group of torch.distributed already, so it cannot start others to learn "
            f"with it: let it leave the group (destroy_process_group), or unset {PROCESSES}"
        )
    own = max(1, threads // number)
    with scratch_folder("processes") as folder:
        pipes = [_SPAWN.Pipe(duplex=False) for _ in range(1, number)]
        started = [_start(folder, rank, reader) for rank, (reader, _) in enumerate(pipes, start=1)]
        try:
            for rank, (_, orders) in enumerate(pipes, start=1):
                with _heard():
                    orders.send(_Order(Share(rank, number, device), folder, own, work, arguments))
            _await(folder, started)
            torch.set_num_threads(own)
            with _heard():
                _meet(name, Share(0, number, device), folder)
            yield Share(0, number, device)
        except LostProcessError as error:
            raise LostProcessError(_what_ended(folder, started)) from error
        finally:
            torch.set_num_threads(threads)
            if dist.is_initialized():
                dist.destroy_process_group()
            for process in started:
                process.kill()
                process.join()
            for ends in pipes:
                for end in ends:
                    end.close()


_SPAWN = multiprocessing.get_context("spawn")  # a fork would share torch's threads and open stores


def _start(folder: Path, rank: int, orders: Connection) -> SpawnProcess:
    """Start a process that waits for its order; what it writes is kept beside the others'."""
    process = _SPAWN.Process(target=_assist, args=(orders, _log(folder, rank)), daemon=True)
    process.start()
    orders.close()  # the process has its own end, and a pipe without a reader breaks
    return process


def _assist(orders: Connection, log: Path) -> None:
    """Do the work that the process at the other end of a pipe orders, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which ends this one
    with log.open("wb") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    order: _Order = orders.recv()
    torch.set_num_threads(order.threads)
    try:
        _ready(order.folder, order.share.rank).touch()
        name = backend(order.share.device, order.share.size)
        with _heard():
            _meet(name, order.share, order.folder)
        order.work(*order.arguments, order.share)
    except CanalError as error:
        raise SystemExit(f"{error}") from None


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)


def _meet(name: str, share: Share, folder: Path) -> None:
    """Join the other processes; the first one has seen that all of them are there."""
    if share.device == "cuda":
        torch.cuda.set_device(share.rank)
    store = dist.FileStore(str(folder / "store"), share.size)  # type: ignore[attr-defined]
    dist.init_process_group(name, store=store, rank=share.rank, world_size=share.size, timeout=_PATIENCE)


def _await(folder: Path, started: Sequence[SpawnProcess]) -> None:
    """Wait until all processes have read their orders."""
    waiting = {_ready(folder, rank): process for rank, process in enumerate(started, start=1)}
    while waiting:
        waiting = {ready: process for ready, process in waiting.items() if not ready.exists()}
        if any(process.exitcode is not None for process in waiting.values()):
            raise LostProcessError(_LOST)
        time.sleep(_POLL_S)


def _what_ended(folder: Path, started: Sequence[SpawnProcess]) -> str:
    """Return which process has ended, how, and the last line that it wrote."""
    until = time.monotonic() + _ENDING_S
    while all(one.exitcode is None for one in started) and time.monotonic() < until:
        time.sleep(_POLL_S)
    time.sleep(_POLL_S)  # one that fails closes its connections a moment before it ends
    ended = [(rank, code) for rank, one in enumerate(started, 1) if (code := one.exitcode) is not None]
    if not ended:
        return "the processes of the training have lost each other"
    said = {rank: _last_line(_log(folder, rank)) for rank, _ in ended}
    # Those that have only lost another one are not to blame.
    rank, code = min(ended, key=lambda one: (one[1] >= 0, said[one[0]].startswith(_LOST), one))
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    why = f": {said[rank][:300]}" if said[rank] and code >= 0 else ""
    return f"process {rank + 1} of the {len(started) + 1} that learn together ended {how}{why}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _ready(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.ready"


def _log(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.log"
