"""Sums of parts are those of the whole to the byte: by whom, in which order, and however often tried."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.app.engines import SPREAD, add_up_parts
from canal.core.errors import ConfigError, SumsError
from canal.memory.levels import Basis
from canal.memory.sums import add_up

GENES = tuple(f"G{number}" for number in range(12))
BASIS = Basis(GENES, {"first": "0" * 64})
N = 240


def cells() -> tuple[np.ndarray, list[str]]:
    """Return cells of four types, one of which has a single cell."""
    draw = np.random.default_rng(3)
    counts = draw.poisson(0.7, (N, len(GENES))).astype(np.float32)
    names = ["B", "T", "é", *draw.choice(["B", "T"], N - 3)]
    return np.log2(1 + counts), list(names)


def part_of(rows: list[int]):
    """Return the sums of some cells: a task, which a process that shares nothing can run."""
    values, names = cells()
    return add_up(BASIS, [(values[rows], [names[row] for row in rows])])


def slow_part(part: tuple[list[int], str]):
    """Say which process is at it, take a while, and add up."""
    (Path(part[1]) / f"{os.getpid()}.pid").touch()
    time.sleep(0.3)
    return part_of(part[0])


def broken_part(_rows: list[int]):
    raise SumsError("a part is damaged")


def content(sums, folder: Path) -> bytes:
    sums.save(folder / "sums.safetensors")
    return (folder / "sums.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return content(part_of(list(range(N))), tmp_path_factory.mktemp("whole"))


@settings(max_examples=60)
@given(order=st.permutations(range(N)), cuts=st.sets(st.integers(1, N - 1), max_size=30))
def test_any_parts_in_any_order_give_the_same_bytes(whole, tmp_path_factory, order, cuts):
    edges = [0, *sorted(cuts), N]
    parts = [list(order[start:stop]) for start, stop in zip(edges, edges[1:], strict=False)]
    assert content(add_up_parts(BASIS, parts, part_of), tmp_path_factory.mktemp("parts")) == whole


def parts(number: int) -> list[list[int]]:
    return [list(range(start, N, number)) for start in range(number)]


@pytest.mark.chaos
def test_dask_gives_the_same_bytes_also_where_a_worker_is_killed(whole, monkeypatch, tmp_path):
    monkeypatch.setenv(SPREAD, "2")
    killed: list[int] = []

    def kill() -> None:
        """Kill a process in its part, and later another one."""
        while len(killed) < 2:
            time.sleep(0.7)
            at_it = {int(path.stem) for path in tmp_path.glob("*.pid")} - set(killed)
            for pid in sorted(at_it)[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = add_up_parts(BASIS, [(rows, str(tmp_path)) for rows in parts(24)], slow_part)
    assert content(found, tmp_path) == whole
    assert len(killed) == 2


@pytest.mark.chaos
def test_what_a_worker_refuses_and_a_scheduler_that_is_not_there_are_one_message(monkeypatch):
    monkeypatch.setenv(SPREAD, "tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        add_up_parts(BASIS, parts(2), part_of)
    monkeypatch.setenv(SPREAD, "1")
    with pytest.raises(SumsError, match="a part is damaged"):
        add_up_parts(BASIS, parts(3), broken_part)
    assert add_up_parts(BASIS, [], part_of).n_cells == 0
