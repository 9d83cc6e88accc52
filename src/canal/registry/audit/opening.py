"""Audit of models by opening each and predicting two cells, in a child process with bounded time and memory.

The child runs this module: each line of its input names a model, and it prints a line when it begins a
model and when it has finished. Files from elsewhere may crash or exhaust the libraries that read them: the
child ends then, not canal.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open

from canal.config.sections import BACKBONE
from canal.continual.cells import load_cells
from canal.core.errors import CanalError, ModelError
from canal.core.files import read_json
from canal.core.packages import require
from canal.memory.answer import ExactAnnotator
from canal.memory.stage_sums import StageSums
from canal.model import EXACT
from canal.model.load import load_model, method_of, network_installed
from canal.registry.audit.version_files import AuditLog
from canal.registry.manifest.version_folder import IMPORTED
from canal.registry.provenance.registered import RegisteredVersion
from canal.runtime.startup import own_code

_CHECK = "model"
_PLACES = ("model/", "teacher/", "sums/", "batches/", "bank/", "probe/")
_SECONDS, _BYTES_A_SECOND = 20, 10_000_000
_MEMORY, _TIMES_ITS_SIZE = 2 << 30, 8
"""Bounds for opening a model, beyond the libraries' own use, and more for a large model."""

_PATIENCE_S = 240
"""Seconds beyond these bounds: libraries load slowly on a busy machine."""

_known: dict[tuple[tuple[str, str], ...], list[str]] = {}
"""Faults of the models that this process has opened, by the digests of all their files."""

_ARRAYS = ("model", "teacher", "sums", "batches")
_NETWORKS = ("model", "teacher", ".")
_LABELS, _GENES = "labels.json", "genes.json"
_LONGEST = 300


@dataclass
class Opening:
    """Models that are being opened while other checks run.

    Attributes
    ----------
    members : sequence of RegisteredVersion
        Versions to open; one with a missing or changed file is skipped, since other checks report it.
    cells : bool
        Whether stored cells are read, too.
    """

    members: Sequence[RegisteredVersion]
    cells: bool = False
    _pending: dict[int, RegisteredVersion] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None

    def start(self) -> Opening:
        """Begin to open the models; `report` waits for the end."""
        whole = [member for member in self.members if all(member.intact(name) for name in _files(member))]
        self._pending = {
            number: member for number, member in enumerate(whole) if self._signature(member) not in _known
        }
        if self._pending:
            self._process = _started(self._lines())
        return self

    def report(self, log: AuditLog) -> None:
        """Wait for the end, and report every model that cannot be opened or does not annotate."""
        while self._process is not None:
            self._collect(self._process)
            self._process = _started(self._lines()) if self._pending else None
        for member in self.members:
            wrong = _known.get(self._signature(member))
            if wrong is None:
                continue
            log.counts["models"] += 1
            if not network_installed() and _method(member) != "exact":
                log.note(member.name, _CHECK, "its network was not opened: torch is not installed")
            for what in wrong:
                log.finding(member.name, _CHECK, f"its model cannot answer: {what}")

    def _signature(self, member: RegisteredVersion) -> tuple[tuple[str, str], ...]:
        files = [(name, member.files[name]) for name in sorted(_files(member))]
        return (("cells", str(self.cells)), ("kind", _kind(member)), ("method", _method(member)), *files)

    def _lines(self) -> list[str]:
        return [json.dumps({"number": number, **self._about(one)}) for number, one in self._pending.items()]

    def _about(self, member: RegisteredVersion) -> dict[str, Any]:
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
        """Read the child's output; where the child died, blame the model that it had begun."""
        seconds = _PATIENCE_S + 4 * sum(self._about(one)["seconds"] for one in self._pending.values())
        try:
            output, _ = process.communicate(timeout=seconds)
            ended = f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            ended = f"was ended after {seconds:,.0f} s"
        lines = list(_parsed(output))
        begun: int | None = None
        for line in lines:
            if "begun" in line:
                begun = int(line["begun"])
            elif int(line["done"]) in self._pending:
                _known[self._signature(self._pending.pop(int(line["done"])))] = list(line["wrong"])
                begun = None
        if begun is not None:
            _known[self._signature(self._pending.pop(begun))] = [
                f"opening it took too long or too much ({ended})"
            ]
        elif self._pending and not lines:
            require("torch", "opening the models to prove them")
            raise CanalError(f"models cannot be opened: Python {sys.executable} {ended}")


def _kind(member: RegisteredVersion) -> str:
    return member.stage if member.stage in (BACKBONE, IMPORTED) else "annotator"


def _method(member: RegisteredVersion) -> str:
    """Return the method in a stage's request."""
    settings = member.key["request"].get("continual")
    return str(settings.get("method", "published")) if isinstance(settings, Mapping) else "published"


def _files(member: RegisteredVersion) -> list[str]:
    """Return the files that a model is read from."""
    if member.stage == IMPORTED:
        return list(member.files)
    return [
        name
        for name in member.files
        if (name.startswith(_PLACES) or name == "panel.json") and name not in member.withheld
    ]


def _started(lines: Sequence[str]) -> subprocess.Popen[str]:
    """Start a child that opens the models in ``lines``, with this canal, on the CPU, with one thread."""
    env = {**own_code(), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "canal.registry.audit.opening"],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    stream = cast("IO[str]", process.stdin)
    with suppress(BrokenPipeError):  # its exit code says why it ended
        stream.write("".join(f"{line}\n" for line in lines))
        stream.close()
    process.stdin = None
    return process


def _parsed(output: str) -> Iterator[Mapping[str, Any]]:
    for line in output.splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue  # half a line of a process that was ended
        if isinstance(document, dict):
            yield document


def main() -> None:
    """Open the models that standard input names, one after the other."""
    requests = [json.loads(line) for line in sys.stdin]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints goes to stderr
    _import(requests)
    for one in requests:
        _print_line(out, {"begun": one["number"]})
        _bound(int(one["seconds"]), int(one["memory"]))
        _print_line(out, {"done": one["number"], "wrong": complaints(Path(one["folder"]), one)})


def _print_line(out: Any, document: dict[str, Any]) -> None:
    out.write(json.dumps(document) + "\n")
    out.flush()


def _import(requests: Sequence[dict[str, Any]]) -> None:
    """Import the libraries of networks before memory is bounded: they are large."""
    if network_installed() and any(
        (Path(one["folder"]) / place / "weights.safetensors").is_file()
        for one in requests
        for place in _NETWORKS
    ):
        for name in ("annotator", "backbone", "combined"):
            import_module(f"canal.model.{name}")
        import_module("torch").set_num_threads(1)


def _bound(seconds: int, memory: int) -> None:
    """Bound processor time and memory from here on, as far as the system knows such bounds."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _lower(resource.RLIMIT_CPU, int(used) + seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.is_file():
        size = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, size + memory)


def _lower(what: int, bound: int) -> None:
    """Set a bound of this process, unless the parent process has set a lower one."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def complaints(folder: Path, about: dict[str, Any]) -> list[str]:
    """Return the faults of the model in a version's folder, one sentence each; raises nothing."""
    steps: list[Callable[[], None]] = [lambda: _check_arrays(folder)]
    if about["kind"] == "annotator":
        steps.append(lambda: _check_annotator(folder, about["method"]))
        if (folder / "teacher").is_dir() and network_installed():
            steps.append(lambda: _check_teacher(folder))
        if about["sums"]:
            names = list(about["sums"])
            steps.append(
                lambda: _require(
                    (sums := StageSums.load(folder, names)) is not None and {*sums.stages} == {*names},
                    "sums/ lacks those of a stage in key.json",
                )
            )
        if about["cells"]:
            steps.append(lambda: _check_cells(folder))
    else:
        place = folder / "model" if about["kind"] == "backbone" else folder
        steps.append(lambda: _check_backbone(place, folder / "panel.json"))
    wrong = []
    for step in steps:
        try:
            step()
        except CanalError as error:
            wrong.append(_short(str(error)))
        except MemoryError:
            wrong.append("it needs more memory than a model of its size may take")
        except Exception as error:  # damaged bytes may raise anything in a library
            wrong.append(_short(f"{type(error).__name__}: {error}"))
    return wrong


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _check_arrays(folder: Path) -> None:
    """Check every safetensors file: its header within its bounds, and that all its numbers are finite."""
    for path in sorted(path for place in _ARRAYS for path in (folder / place).rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        try:
            with safe_open(path, framework="numpy") as file:
                for tensor in file.keys():  # noqa: SIM118
                    values = file.get_tensor(tensor)
                    if values.dtype.kind == "f" and not np.isfinite(values).all():
                        raise ModelError(f"{name}: {tensor[:100]} holds values that are not finite")
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{name} is no whole safetensors file ({error})") from error


def _check_annotator(folder: Path, method_asked: str) -> None:
    """Check that network, sums, labels and genes fit together, and that the model annotates cells."""
    model = folder / "model"
    parts: list[Any] = []
    method = method_of(model)
    # Without combination.json the sums would answer alone, and without sums the network.
    _require(
        method_asked not in ("combined", "exact") or method == method_asked,
        f"it was learned as {method_asked}, but is {method}",
    )
    network = method != "exact" and network_installed()  # else the audit notes that it was not opened
    if network:
        from canal.model.annotator import Annotator

        parts.append(Annotator.load(model))
    if method in ("exact", "combined"):
        parts.append(ExactAnnotator.load(model / EXACT))
    if method == "combined" and network:
        from canal.model.combined import CombinedAnnotator

        parts.append(CombinedAnnotator.load(model))
    if network or method == "exact":
        parts.append(load_model(model))
    if not parts:
        return
    labels, genes = read_json(model / _LABELS), read_json(model / _GENES)
    for part in parts[-2:]:
        _require(list(part.labels) == labels, f"it answers with other types than model/{_LABELS} names")
        _require(list(part.genes) == genes, f"it reads other genes than model/{_GENES} names")
    # A cell without any expression, and one that expresses every gene.
    cells = np.zeros((2, len(parts[-1].genes)), dtype=np.float32)
    cells[1] = 1.0
    prediction = parts[-1].predict(cells)
    answers = prediction.labels
    _require(len(answers) == len(cells) and set(answers) <= set(labels), "it answers with no type")
    for values in (prediction.probabilities, prediction.confidence, prediction.novelty):
        within = np.isfinite(values).all() and (values >= 0).all() and (values <= 1 + 1e-6).all()
        _require(bool(within), "it answers with probabilities that are none")


def _check_teacher(folder: Path) -> None:
    from canal.model.annotator import Annotator

    try:
        Annotator.load(folder / "teacher")
    except CanalError as error:
        raise ModelError(f"teacher/: {error}") from error


def _check_cells(folder: Path) -> None:
    """Check that the cells of bank and probe sets can be read, of the model's own panel."""
    genes = read_json(folder / "model" / "genes.json")
    for name, ranked in (("bank/bank.h5ad", True), ("probe/probe.h5ad", False)):
        if (folder / name).is_file():
            load_cells(folder / name, genes, ranked)


def _check_backbone(place: Path, panel: Path) -> None:
    """Check that a backbone, if any, can be read and has embeddings of the panel's genes."""
    if not (place / "config.json").is_file():
        _require(not (place / "weights.safetensors").is_file(), "weights without a config.json")
        return
    from canal.model.backbone import Backbone

    backbone = Backbone.load(place)
    if panel.is_file():
        backbone.for_panel(read_json(panel)["genes"])


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ModelError(what)


if __name__ == "__main__":
    main()
