"""Which machine computes: what has to be the same for a training to give the same bits again."""

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}
_AVX2 = {"avx2", "fma"}


@cache
def cpu_capability() -> str:
    """Return architecture and vector instructions, such as ``x86_64 AVX2``, as torch tells them apart."""
    flags = _flags()
    known = "AVX512" if flags >= _AVX512 else "AVX2" if flags >= _AVX2 else ""
    return f"{platform.machine()} {known}".strip()


def _flags() -> set[str]:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
