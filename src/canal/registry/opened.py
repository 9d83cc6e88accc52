"""Models opened and asked, in a process of its own: ``python -m canal.registry.opened`` (see `opening`).

Each line of the input names a model, each model begun and each one done gives a line of output. What reads
bytes that nobody vouches for may take just so much time and memory; the process ends with it, not canal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.core.errors import CanalError, ModelError
from canal.core.files import read_json

if TYPE_CHECKING:
    import numpy as np

_ARRAYS = ("model", "teacher", "sums", "batches")
_NETWORKS = ("model", "teacher", ".")
_LABELS, _GENES = "labels.json", "genes.json"
_LONGEST = 300


def main() -> None:
    """Open the models that the input names, one after the other."""
    asked = [json.loads(line) for line in sys.stdin]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    _import(asked)
    for one in asked:
        _tell(out, {"begun": one["number"]})
        _bound(int(one["seconds"]), int(one["memory"]))
        _tell(out, {"done": one["number"], "wrong": complaints(Path(one["folder"]), one)})


def _tell(out: Any, document: dict[str, Any]) -> None:
    out.write(json.dumps(document) + "\n")
    out.flush()


def _import(asked: Sequence[dict[str, Any]]) -> None:
    """Import what models need before anything is bounded: libraries are canal's own, and large."""
    import canal.continual.cells
    import canal.memory.stage_sums
    import canal.model.load  # noqa: F401

    if any(
        (Path(one["folder"]) / place / "weights.safetensors").is_file()
        for one in asked
        for place in _NETWORKS
    ):
        import torch

        import canal.model.annotator
        import canal.model.backbone
        import canal.model.combined  # noqa: F401

        torch.set_num_threads(1)


def _bound(seconds: int, memory: int) -> None:
    """Bound processor time and memory from here on, as far as the system knows such bounds."""
    import resource

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _lower(resource.RLIMIT_CPU, int(used) + seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.is_file():
        size = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, size + memory)


def _lower(what: int, bound: int) -> None:
    """Set a bound of this process, or keep the one that whoever started it has set, if that is lower."""
    import resource

    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def complaints(folder: Path, about: dict[str, Any]) -> list[str]:
    """Return what does not hold of the model in a version's folder, one sentence each; no errors."""
    steps: list[Callable[[], None]] = [lambda: _check_arrays(folder)]
    if about["kind"] == "annotator":
        steps.append(lambda: _check_annotator(folder, about["method"]))
        if (folder / "teacher").is_dir():
            steps.append(lambda: _check_teacher(folder))
        if about["sums"]:
            steps.append(lambda: _check_sums(folder, about["sums"]))
        if about["cells"]:
            steps.append(lambda: _check_cells(folder))
    else:
        place = folder / "model" if about["kind"] == "backbone" else folder
        steps.append(lambda: _check_backbone(place, folder / "panel.json"))
    return list(_failed(steps))


def _failed(steps: Sequence[Callable[[], None]]) -> Iterator[str]:
    for step in steps:
        try:
            step()
        except CanalError as error:
            yield _short(str(error))
        except MemoryError:
            yield "it needs more memory than a model of its size may take"
        except Exception as error:  # bytes that nobody vouches for may raise anything in a library
            yield _short(f"{type(error).__name__}: {error}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _check_arrays(folder: Path) -> None:
    """Check every safetensors file: its header within its bounds, and that all its numbers are finite."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

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


def _check_annotator(folder: Path, asked: str) -> None:
    """Check that network, sums, labels and genes fit together, and that the whole of it answers."""
    from canal.memory.answer import ExactAnnotator
    from canal.model import EXACT
    from canal.model.load import load_model, method_of

    model = folder / "model"
    parts: list[Any] = []
    method = method_of(model)
    # Without combination.json the sums would answer alone, and without sums the network.
    _require(
        asked not in ("combined", "exact") or method == asked, f"it was learned as {asked}, but is {method}"
    )
    if method in ("published", "combined"):
        from canal.model.annotator import Annotator

        parts.append(Annotator.load(model))
    if method in ("exact", "combined"):
        parts.append(ExactAnnotator.load(model / EXACT))
    if method == "combined":
        from canal.model.combined import CombinedAnnotator

        parts.append(CombinedAnnotator.load(model))
    parts.append(load_model(model))
    labels, genes = read_json(model / _LABELS), read_json(model / _GENES)
    for part in parts[-2:]:
        _require(list(part.labels) == labels, f"it answers with other types than model/{_LABELS} names")
        _require(list(part.genes) == genes, f"it reads other genes than model/{_GENES} names")
    _check_answer(parts[-1], labels)


def _check_answer(annotator: Any, labels: Sequence[str]) -> None:
    """Ask a model about a cell without any expression and one that expresses every gene."""
    import numpy as np

    cells = np.zeros((2, len(annotator.genes)), dtype=np.float32)
    cells[1] = 1.0
    found = annotator.predict(cells)
    _require(len(found.labels) == len(cells) and set(found.labels) <= set(labels), "it answers with no type")
    for values in (found.probabilities, found.confidence, found.novelty):
        _require(_in_range(values), "it answers with probabilities that are none")


def _in_range(values: np.ndarray) -> bool:
    import numpy as np

    return bool(np.isfinite(values).all() and (values >= 0).all() and (values <= 1 + 1e-6).all())


def _check_teacher(folder: Path) -> None:
    from canal.model.annotator import Annotator

    try:
        Annotator.load(folder / "teacher")
    except CanalError as error:
        raise ModelError(f"teacher/: {error}") from error


def _check_sums(folder: Path, stages: Sequence[str]) -> None:
    from canal.memory.stage_sums import StageSums

    sums = StageSums.load(folder, stages)
    _require(sums is not None and set(sums.stages) == set(stages), "sums/ lacks those of a stage in key.json")


def _check_cells(folder: Path) -> None:
    """Check that the cells of bank and probe sets can be read, of the model's own panel."""
    from canal.continual.cells import load_cells

    genes = read_json(folder / "model" / "genes.json")
    for name, ranked in (("bank/bank.h5ad", True), ("probe/probe.h5ad", False)):
        if (folder / name).is_file():
            load_cells(folder / name, genes, ranked)


def _check_backbone(place: Path, panel: Path) -> None:
    """Check that a backbone, where there is one, is whole and has embeddings of the panel's genes."""
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
