"""A small lineage made by hand: a backbone and two stages as model folders, real networks, never trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import load_file, save_file

from canal.continual.cells import LabelledCells, StoredCells, save_cells
from canal.core.digests import file_digest, json_digest
from canal.core.files import write_json
from canal.quality.verdict import Profile, RuleResult, Verdict
from canal.registry.manifest.version_folder import key_digest, read_key, write_key, write_record
from canal.registry.provenance.registered import RegisteredVersion

GENES = ["CD3D", "LYZ", "MS4A1"]

Row = tuple[str, str, str, str, str]
"""Name, type, batch, content digest and set of a cell."""

Kept = tuple[str, str, str, int]
"""Stage, name, type and rank of a cell in a bank; the rank does not matter in a probe."""


@dataclass
class Spec:
    """What a stage is made of; a test changes what it is about."""

    labels: list[str]
    rows: list[Row]
    bank: list[Kept]
    probe: list[Kept]
    capacity: int = 6
    genes: list[str] = field(default_factory=lambda: list(GENES))
    grow: int = 0
    exclude: dict[str, list[str]] = field(default_factory=lambda: {"cells": [], "batches": []})
    seed: int = 0
    teacher: dict[str, np.ndarray] | None = None
    passed: bool = True
    judged: dict[str, str] = field(default_factory=dict)


def rows_of(types: list[str], stage: str) -> list[Row]:
    """Return four training, two validation and two test cells a type, in two batches."""
    sets = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    return [
        (f"{kind}{i}", kind, f"b{i % 2 + 1}", f"{stage}-{kind}-{i}", chosen)
        for kind in types
        for i, chosen in enumerate(sets)
    ]


def make_specs() -> dict[str, Spec]:
    """Return two stages that hold: the second knows a type of the first and a new one."""
    ranked = [("first", f"{kind}{i}", kind, i + 1) for kind in ("A", "B") for i in range(3)]
    watched = [("first", "A4", "A", 0), ("first", "B4", "B", 0)]
    second = [("second", "B0", "B", 1), ("second", "C0", "C", 1), ("second", "C1", "C", 2)]
    return {
        "first": Spec(["A", "B"], rows_of(["A", "B"], "first"), ranked, watched, seed=1),
        "second": Spec(
            ["A", "B", "C"],
            rows_of(["B", "C"], "second"),
            [*ranked[:2], ranked[3], *second],
            [*watched, ("second", "C4", "C", 0)],
            seed=2,
        ),
    }


def tensors(number: int) -> dict[str, np.ndarray]:
    """Return two small tensors."""
    return {"head.weight": np.full((2, 2), number, np.float32), "norm.bias": np.full(2, number, np.float32)}


@cache
def network_files(labels: tuple[str, ...], genes: tuple[str, ...], seed: int) -> dict[str, bytes]:
    """Return the files of a network of these types and genes; a seed decides its numbers."""
    from dataclasses import replace

    from tests.support.models import make_annotator

    made = make_annotator(tuple(f"type{i}" for i in range(len(labels))), len(genes), seed=seed)
    return _saved(replace(made, labels=labels, genes=genes).save)


@cache
def backbone_files() -> dict[str, bytes]:
    """Return the files of a backbone of the panel's genes."""
    from dataclasses import replace

    from tests.support.models import make_backbone

    return _saved(replace(make_backbone(len(GENES)), vocabulary=tuple(GENES)).save)


def _saved(save: Callable[[Path], None]) -> dict[str, bytes]:
    with TemporaryDirectory(prefix="canal-made-") as scratch:
        folder = Path(scratch) / "model"
        save(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def make_lineage(root: Path, specs: dict[str, Spec]) -> dict[str, Path]:
    """Write the folders of a backbone and of the stages, each with key.json; return them by stage."""
    folders = {"backbone": root / "backbone"}
    _write_files(folders["backbone"] / "model", backbone_files())
    write_json(folders["backbone"] / "panel.json", {"format": 1, "genes": GENES})
    first = next(iter(specs))
    panel = file_digest(folders["backbone"] / "panel.json")
    split = file_digest(_write_split(root / "scratch" / first / "cells.csv", first, specs[first].rows))
    write_key(folders["backbone"], _facts("backbone", {}, panel, split, "3" * 64, first), None)
    parent = "backbone"
    for stage, spec in specs.items():
        folders[stage] = root / stage
        _write_stage(folders[stage], stage, spec, specs, folders[parent])
        facts = _facts(
            stage,
            {
                "bank": {"capacity": spec.capacity},
                "cells": cells_request(stage, spec.exclude),
                "parent": {"stage": parent, "request": "6" * 64},
                **({"panel": {"grow": spec.grow}} if spec.grow else {}),
            },
            panel,
            file_digest(folders[stage] / "split" / "cells.csv"),
            file_digest(folders[stage] / "validation" / "verdict.json"),
            stage,
        )
        write_key(folders[stage], facts, key_digest(folders[parent]))
        parent = stage
    return folders


def members(folders: dict[str, Path]) -> list[RegisteredVersion]:
    """Return a lineage as a chain, oldest first."""
    return [
        RegisteredVersion(stage, folder, read_key(folder), key_digest(folder), None)
        for stage, folder in folders.items()
    ]


def add_records(folders: dict[str, Path]) -> dict[str, str]:
    """Write measures and record.json of every folder, as registering does; return the records' digests."""
    for stage, folder in folders.items():
        if stage == "backbone":
            write_record(folder, record_facts())
            continue
        labels = read_labels(folder)
        write_json(folder / "metrics" / "evaluation.json", evaluation(stage, labels))
        (folder / "metrics" / "predictions.csv").write_text("cell_id,stage,truth,predicted\n")
        write_record(folder, record_facts())
    return {stage: file_digest(folder / "record.json") for stage, folder in folders.items()}


def read_labels(folder: Path) -> list[str]:
    """Return the labels of a stage's folder."""
    from canal.core.files import read_json

    labels: list[str] = read_json(folder / "model" / "labels.json")
    return labels


def record_facts() -> dict[str, object]:
    """Return what record.json says beside digests."""
    facts = {"run": "r" * 32, "parent": None, "host": "h", "platform": "Linux", "cpu": "x86_64", "user": "u"}
    return facts | {"time": "2026-01-01T00:00:00+00:00", "git_commit": "c" * 40, "dirty": False}


def evaluation(stage: str, labels: list[str]) -> dict[str, object]:
    """Return an evaluation.json that readers can read."""
    return {
        "format": 1,
        "stage": stage,
        "stages": [stage],
        "labels": labels,
        "matrix": [[0.5]],
        "row": {stage: 0.5},
        "per_stage": {stage: {"n": 4, "accuracy": 0.5}},
        "not_measured": {},
        "average_accuracy": 0.5,
        "calibration": None,
        "novelty": {},
    }


def cells_request(source: str, exclude: dict[str, list[str]]) -> dict[str, object]:
    """Return the part of a request that names cells."""
    declared = {"label": "cell_type", "values": "counts", "layer": None, "sha256": "1" * 64}
    return {"source": source, "declaration": {**declared, "exclude": exclude}}


def _facts(
    stage: str, request: dict[str, object], panel: str, split: str, verdict: str, source: str
) -> dict[str, object]:
    request = {"stage": stage, **request}
    return {
        "stage": stage,
        "branch": 1,
        "request": request,
        "request_digest": json_digest(request),
        "data": {"source": source, "source_sha256": "1" * 64, "prepared_sha256": "2" * 64},
        "split": split,
        "panel": panel,
        "verdict": verdict,
        "code": "4" * 64,
        "lock": None,
        "seed": 0,
        "threads": 1,
    }


def _write_stage(folder: Path, stage: str, spec: Spec, specs: dict[str, Spec], parent: Path) -> None:
    _write_files(folder / "model", network_files(tuple(spec.labels), tuple(spec.genes), spec.seed))
    if parent.name != "backbone":
        (folder / "teacher").mkdir()
        for name in ("config.json", "labels.json", "genes.json", "weights.safetensors"):
            (folder / "teacher" / name).write_bytes((parent / "model" / name).read_bytes())
        if spec.teacher is not None:
            weights = folder / "teacher" / "weights.safetensors"
            save_file(load_file(weights) | spec.teacher, weights)
    _write_split(folder / "split" / "cells.csv", stage, spec.rows)
    for name in ("bank", "probe"):
        (folder / name).mkdir()
    cells = _stored(spec.bank, specs).widened(len(spec.genes))
    stages = tuple(specs)
    ranks = np.array([rank for *_, rank in spec.bank], dtype=np.int64)
    save_cells(folder / "bank" / "bank.h5ad", StoredCells(cells, tuple(spec.genes), ranks, stages))
    watched = _stored(spec.probe, specs).widened(len(spec.genes))
    probe = StoredCells(watched, tuple(spec.genes), None, stages)
    save_cells(folder / "probe" / "probe.h5ad", probe)
    _verdict(folder, stage, spec).write(folder / "validation" / "verdict.json")


def _stored(kept: list[Kept], specs: dict[str, Spec]) -> LabelledCells:
    """Return the cells of a bank or probe; a cell that no split knows is of batch b1."""
    batches = {(stage, row[0]): row[2] for stage, spec in specs.items() for row in spec.rows}
    return LabelledCells(
        cell_ids=tuple(f"{stage}:{name}" for stage, name, _, _ in kept),
        expression=np.zeros((len(kept), len(GENES)), dtype=np.float32),
        cell_types=tuple(kind for _, _, kind, _ in kept),
        stages=tuple(stage for stage, *_ in kept),
        sources=tuple(stage for stage, *_ in kept),
        batches=tuple(batches.get((stage, name), "b1") for stage, name, _, _ in kept),
    )


def _write_split(path: Path, stage: str, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{stage}:{name},{kind},{batch},{digest},{chosen}" for name, kind, batch, digest, chosen in rows]
    path.write_text("\n".join(["cell_id,cell_type,batch,cell_digest,set", *lines, ""]))
    return path


def _verdict(folder: Path, stage: str, spec: Spec) -> Verdict:
    about = {
        "stage": stage,
        "source": stage,
        "source_sha256": "1" * 64,
        "prepared_sha256": "2" * 64,
        "declaration_digest": "5" * 64,
        "split_sha256": file_digest(folder / "split" / "cells.csv"),
    }
    founding = spec.genes[: len(GENES)]
    tokens = ((1, 0, 0, 0, 0, 0),) * len(founding)
    return Verdict(
        **{**about, **spec.judged},
        counts={
            "cells": len(spec.rows),
            "genes": len(spec.genes),
            "types": dict(Counter(row[1] for row in spec.rows)),
        },
        rules=(RuleResult("has_cells", "error", spec.passed, "cells", "some"),),
        profile=Profile(json_digest(founding), 8, 2.0, tokens),
    )
