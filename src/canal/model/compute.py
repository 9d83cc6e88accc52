"""Where and how precisely a network computes: the device, and the type of its matrix products."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Literal

import torch

from canal.core.errors import ModelError

Precision = Literal["float32", "bfloat16"]
_SIDE = 256
_ROUNDS = 3


def find_device(wish: str) -> str:
    """Return the torch device that ``wish`` means: auto is a GPU where there is one, else the CPU.

    Raises
    ------
    ModelError
        If a GPU is asked for and torch sees none, or ``wish`` is no device.
    """
    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wish == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but torch sees no GPU here; use auto or cpu")
    if wish not in ("cpu", "cuda"):
        raise ModelError(f"a device is auto, cpu or cuda, found {wish[:40]!r}")
    return wish


def precision(dtype: Precision, device: str) -> AbstractContextManager[object]:
    """Return a context in which matrix products are of ``dtype``; sums and norms stay in float32."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def bfloat16_speed(device: str) -> float:
    """Return how many times faster a matrix product is in bfloat16 than in float32 on this machine.

    Below 1 where the processor has no instructions for it: emulated, it can be a hundred times slower.
    """
    seconds = {dtype: _product(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _product(dtype: torch.dtype, device: str) -> float:
    a = torch.ones((_SIDE, _SIDE), dtype=dtype, device=device)
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        float((a @ a)[0, 0])
        times.append(time.perf_counter() - began)
    return min(times)
