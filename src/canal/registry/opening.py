"""Every model opened and asked before it is believed, in a bounded process beside this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from canal.config.sections import BACKBONE
from canal.core.errors import CanalError
from canal.registry.checks.finding import Found
from canal.registry.checks.member import Member
from canal.registry.imported import IMPORTED

_CHECK = "model"
_PLACES = ("model/", "teacher/", "sums/", "batches/", "bank/", "probe/")
_SECONDS, _BYTES_A_SECOND = 20, 10_000_000
_MEMORY, _TIMES_ITS_SIZE = 2 << 30, 8
"""What opening a model may take: a bound beyond what the libraries have, and more for a large one."""

_PATIENCE_S = 240
"""Beyond that time: libraries are slow to be read on a machine that has other work."""

_known: dict[tuple[tuple[str, str], ...], list[str]] = {}
"""What was found of models in this process, by the digests of all their files."""


@dataclass
class Opening:
    """Models that are being opened while other checks run.

    Attributes
    ----------
    members : sequence of Member
        Versions whose files hold; of one that lacks a file, or holds other bytes, that is told elsewhere.
    cells : bool
        Whether stored cells are read, too.
    """

    members: Sequence[Member]
    cells: bool = False
    _asked: dict[int, Member] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None

    def start(self) -> Opening:
        """Begin to open them; `tell` waits for the end."""
        whole = [member for member in self.members if all(member.intact(name) for name in _files(member))]
        self._asked = {
            number: member for number, member in enumerate(whole) if self._signature(member) not in _known
        }
        if self._asked:
            self._process = _started(self._lines())
        return self

    def tell(self, found: Found) -> None:
        """Wait, and name every model that cannot be opened, or does not answer."""
        while self._process is not None:
            self._collect(self._process)
            self._process = _started(self._lines()) if self._asked else None
        for member in self.members:
            wrong = _known.get(self._signature(member))
            if wrong is None:
                continue
            found.counts["models"] += 1
            for what in wrong:
                found.wrong(member.name, _CHECK, f"its model cannot answer: {what}")

    def _signature(self, member: Member) -> tuple[tuple[str, str], ...]:
        files = [(name, member.files[name]) for name in sorted(_files(member))]
        return (("cells", str(self.cells)), ("kind", _kind(member)), ("method", _method(member)), *files)

    def _lines(self) -> list[str]:
        return [json.dumps({"number": number, **self._about(one)}) for number, one in self._asked.items()]

    def _about(self, member: Member) -> dict[str, Any]:
        size = sum((member.folder / name).stat().st_size for name in _files(member))
        return {
            "folder": str(member.folder),
            "kind": _kind(member),
            "method": _method(member),
            "sums": sorted(member.key.get("sums", {})),
            "cells": self.cells,
            "seconds": _SECONDS + size // _BYTES_A_SECOND,
            "memory": _MEMORY + _TIMES_ITS_SIZE * size,
        }

    def _collect(self, process: subprocess.Popen[str]) -> None:
        """Note what a process found; one that died did so by the model that it had begun."""
        lines, ended = _waited(
            process, _PATIENCE_S + 4 * sum(self._about(one)["seconds"] for one in self._asked.values())
        )
        begun = None
        for line in lines:
            if "begun" in line:
                begun = int(line["begun"])
            elif int(line["done"]) in self._asked:
                _known[self._signature(self._asked.pop(int(line["done"])))] = list(line["wrong"])
                begun = None
        if begun is not None:
            _known[self._signature(self._asked.pop(begun))] = [
                f"opening it took too long or too much ({ended})"
            ]
        elif self._asked and not lines:
            raise CanalError(f"models cannot be opened: Python {sys.executable} {ended}")


def _kind(member: Member) -> str:
    return member.stage if member.stage in (BACKBONE, IMPORTED) else "annotator"


def _method(member: Member) -> str:
    """Return the method that a stage was asked to be learned by."""
    asked = member.key["request"].get("continual")
    return str(asked.get("method", "published")) if isinstance(asked, Mapping) else "published"


def _files(member: Member) -> list[str]:
    """Return the files that a model is opened from; those of an import lie beside its key."""
    if member.stage == IMPORTED:
        return list(member.files)
    return [name for name in member.files if name.startswith(_PLACES) or name == "panel.json"]


def _started(lines: Sequence[str]) -> subprocess.Popen[str]:
    """Start a Python that opens what ``lines`` name: this canal's own, on the processor, with one thread."""
    own = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "canal.registry.opened"],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    stream = cast("IO[str]", process.stdin)
    with suppress(BrokenPipeError):  # what ended it is told by how it ended
        stream.write("".join(f"{line}\n" for line in lines))
        stream.close()
    process.stdin = None
    return process


def _waited(process: subprocess.Popen[str], seconds: float) -> tuple[list[Mapping[str, Any]], str]:
    """Return what a process said, and how it ended."""
    try:
        said, _ = process.communicate(timeout=seconds)
        ended = f"ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        ended = f"was ended after {seconds:,.0f} s"
    return list(_parsed(said)), ended


def _parsed(said: str) -> Iterator[Mapping[str, Any]]:
    for line in said.splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue  # half a line of a process that was ended
        if isinstance(document, dict):
            yield document
