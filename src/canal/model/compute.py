"""How a network computes: device and precision, a thread for each cell, and attention that fits the cache.

`in_threads` runs one thread on each core, and each thread computes whole cells. Cells do not depend on each
other, so cores are used best by a cell each: every core keeps its own cell in its cache, and none waits for
another within an operation. Since every cell is computed by a single thread, its result is the same bits
whatever the number of threads.

FAVOR+ attention of one group of heads, forward and backward, is written to stay in a processor's cache:
positive orthogonal random features of the softmax kernel (Choromanski et al., ICLR 2021). A feature is
exp(w . x - |x|^2 / 2 - max) + epsilon. The code differs from this formula, with equal results:

- epsilon is never added to a feature; its contribution to a sum over features or positions is added there.
- exp(a) is 2^(a log2 e), the faster of the two, with the factor in the projection.
- A column of ones beside the values makes the keys' sums and the normaliser part of two matrix products.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from canal.core.errors import ModelError
from canal.model import DEVICES, Precision

_SIDE = 256
_ROUNDS = 3
Item = TypeVar("Item")
Result = TypeVar("Result")
_here = threading.local()

_AHEAD = 32
"""Cells computed before the first of them is written: threads wait for each other once in so many."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

KERNEL_EPSILON = 1e-4
"""Added to each feature, so that no position's weights vanish; as in scBERT's implementation."""

_CACHE_BYTES = 2 << 20
_LOG2_E = math.log2(math.e)


def find_device(name: str) -> str:
    """Return the torch device for a name: ``auto`` is a GPU if torch sees one, else the CPU.

    Raises
    ------
    ModelError
        If a GPU is required and torch sees none, or ``name`` is no device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was requested, but torch sees no GPU here; use auto or cpu")
    if name not in DEVICES:
        raise ModelError(f"a device is auto, cpu or cuda, found {name[:40]!r}")
    return name


def precision(dtype: Precision, device: str) -> AbstractContextManager[object]:
    """Return a context in which matrix products are of ``dtype``; sums and norms stay in float32."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def bfloat16_speed(device: str) -> float:
    """Return how many times faster a matrix product is in bfloat16 than in float32 on this machine.

    Below 1 where the processor has no instructions for it: emulated, it can be a hundred times slower.
    """

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones((_SIDE, _SIDE), dtype=dtype, device=device)
        times = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            float((a @ a)[0, 0])
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.float32) / seconds(torch.bfloat16)


# Per-cell threads.


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``function`` of every item, in order, computed in as many threads as torch has.

    An error in a thread is raised here. Called within one of these threads, it computes the items there, one
    after the other.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1 or getattr(_here, "inside", False):
        return [function(item) for item in items]
    return list(_pool(n_threads).map(_with_modes(function), items))


def each_alone(work: Callable[[int], Result], indices: Sequence[int]) -> Iterator[Result]:
    """Yield ``work(index)`` of each index in order, each computed by one thread, a few ahead."""
    for start in range(0, len(indices), _AHEAD):
        yield from in_threads(work, indices[start : start + _AHEAD])


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
def _pool(n_threads: int) -> ThreadPoolExecutor:
    def limit_threads() -> None:
        _here.inside = True
        torch.get_num_threads()  # the first call gives a thread the process's number, over one set before
        torch.set_num_threads(1)

    keep_freed_memory()
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="canal-cells", initializer=limit_threads)
    started = threading.Barrier(n_threads + 1)
    for _ in range(n_threads):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(n_threads)  # the last number set is also what any new thread begins with
    return pool


@cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory: to release a megabyte and request it anew costs more than its arithmetic.

    Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)
        mallopt(_M_ARENA_MAX, 1)


# FAVOR+ attention.


class Projection(NamedTuple):
    """Random projections ``(n_features, head_dim)`` as the two directions need them.

    ``forward`` is ``(head_dim, n_features)``, scaled for base 2. ``backward`` is
    ``(n_features, head_dim + 1)`` with a column of ones, which sums.
    """

    forward: Tensor
    backward: Tensor


def scaled_projection(matrix: Tensor) -> Projection:
    """Return `Projection` of ``matrix`` ``(n_features, head_dim)``, from `orthogonal_projection`."""
    scaled = matrix * matrix.shape[1] ** -0.25
    ones = scaled.new_ones((len(scaled), 1))
    return Projection((scaled * _LOG2_E).t().contiguous(), torch.cat([scaled, ones], dim=1))


def favor_attention(qkv: Tensor, heads: int, projection: Projection) -> Tensor:
    """Return softmax attention by features, in time linear in positions (equation 4 of the paper).

    Keys are stabilised by one maximum of a cell and head, queries by one a position: never by one over the
    batch, as the reference does, or a cell's answer would depend on its neighbours.

    Parameters
    ----------
    qkv
        ``(cells, positions, 3 * heads * head_dim)``: queries, keys and values side by side.
    heads
        Number of heads.
    projection
        From `scaled_projection`.

    Returns
    -------
    Tensor
        ``(cells, positions, heads * head_dim)``.
    """
    mixed: Tensor = _Favor.apply(qkv, heads, *projection)  # type: ignore[no-untyped-call]
    return mixed


def heads_at_a_time(positions: int, heads: int, n_features: int) -> int:
    """Return the number of heads whose features fit into a processor's cache together, at least one."""
    return max(1, min(heads, _CACHE_BYTES // (4 * positions * n_features)))


class _Kept(NamedTuple):
    """Intermediate results of a group of heads that the backward direction needs."""

    queries: Tensor
    keys: Tensor
    context: Tensor
    weights: Tensor


class _Favor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, forward: Tensor, backward: Tensor) -> Tensor:
        mixed = qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // 3))
        kept: list[Tensor] = []
        for q, k, v, out in _groups(qkv, mixed, heads, forward.shape[1]):
            group = _attend(q, k, v, forward, out)
            if ctx.needs_input_grad[0]:
                kept += group
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(qkv, mixed, backward, *kept)
            ctx.heads = heads
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, mixed, projection, *kept = ctx.saved_tensors
        change = torch.empty_like(qkv)
        heads, n_features, gradient = ctx.heads, projection.shape[0], gradient.contiguous()
        parts = zip(
            _groups(qkv, mixed, heads, n_features),
            _groups(change, gradient, heads, n_features),
            zip(*[iter(kept)] * len(_Kept._fields), strict=True),
            strict=True,
        )
        for (q, k, v, out), (dq, dk, dv, given), group in parts:
            _attend_back(_Kept(*group), (q, k, v, out), given, projection, (dq, dk, dv))
        return change, None, None, None


def _groups(qkv: Tensor, mixed: Tensor, heads: int, n_features: int) -> list[tuple[Tensor, ...]]:
    """Return views of queries, keys, values and result, each ``(..., positions, head_dim)``, by groups.

    Where all heads of a cell fit into the cache (or on a GPU), all cells are one group, since the caller
    passes few cells at a time then; else a group is a few heads of one cell.
    """
    cells, positions, width = qkv.shape
    size = width // 3 // heads
    parts = qkv.view(cells, positions, 3, heads, size).permute(2, 0, 3, 1, 4)
    result = mixed.view(cells, positions, heads, size).transpose(1, 2)
    step = heads_at_a_time(positions, heads, n_features)
    if step == heads or qkv.is_cuda:
        return [(*parts, result)]
    return [
        (*(part[cell, first : first + step] for part in parts), result[cell, first : first + step])
        for cell in range(cells)
        for first in range(0, heads, step)
    ]


def raw_features(x: Tensor, projection: Tensor, per_position: bool = True) -> tuple[Tensor, Tensor]:
    """Return features without epsilon, and the exponents (of 2) that stabilise them.

    ``x`` is ``(..., positions, size)``, features are ``(..., positions, n_features)``. Each position has an
    exponent of its own, or all of them have the largest.
    """
    precise = torch.promote_types(
        x.dtype, torch.float32
    )  # an exponent in bfloat16 would be some per cent off
    features = (x @ projection).to(precise)
    largest = features.amax(-1) if per_position else features.amax((-2, -1)).unsqueeze(-1)
    half_norm = x.to(precise).square().sum(-1).mul_(x.shape[-1] ** -0.5 / 2 * _LOG2_E)
    return features.sub_(half_norm.add_(largest).unsqueeze(-1)).exp2_().to(x.dtype), largest


def _attend(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, out: Tensor) -> _Kept:
    """Write attention of a group into ``out`` ``(..., positions, size)``."""
    size = v.shape[-1]
    values = with_ones(v)
    keys, _ = raw_features(k, projection, per_position=False)
    context = keys.mT @ values
    context += KERNEL_EPSILON * values.sum(-2, keepdim=True)
    queries, _ = raw_features(q, projection)
    weighted = queries @ context
    weighted += KERNEL_EPSILON * context.sum(-2, keepdim=True)
    weights = weighted[..., size:]
    torch.div(weighted[..., :size], weights, out=out)
    return _Kept(queries, keys, context, weights)


def _attend_back(
    kept: _Kept,
    group: tuple[Tensor, Tensor, Tensor, Tensor],
    gradient: Tensor,
    projection: Tensor,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write the gradients of queries, keys and values ``into`` views ``(..., positions, size)``."""
    (q, k, v, out), (dq, dk, dv) = group, into
    size = v.shape[-1]
    weighted = torch.cat([gradient, -(gradient * out).sum(-1, keepdim=True)], dim=-1).div_(kept.weights)
    context = kept.queries.mT @ weighted
    context += KERNEL_EPSILON * weighted.sum(-2, keepdim=True)
    _features_back(weighted @ kept.context.mT, kept.queries, q, projection, dq)
    values = kept.keys @ context
    torch.add(values[..., :size], context[..., :size].sum(-2, keepdim=True), alpha=KERNEL_EPSILON, out=dv)
    _features_back(with_ones(v) @ context.mT, kept.keys, k, projection, dk)


def _features_back(gradient: Tensor, features: Tensor, x: Tensor, projection: Tensor, into: Tensor) -> None:
    """Write the gradient of ``x`` from that of its features; their maximum is a constant."""
    size = x.shape[-1]
    moved = gradient.mul_(features) @ projection.to(x.dtype)
    torch.addcmul(moved[..., :size], x, moved[..., size:], value=-(size**-0.5), out=into)


def with_ones(v: Tensor) -> Tensor:
    """Return values ``(..., positions, size + 1)`` with a column of ones."""
    values = v.new_ones((*v.shape[:-1], v.shape[-1] + 1))
    values[..., :-1] = v
    return values
