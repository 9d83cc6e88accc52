"""The request of a stage, and the facts of its inputs and code for key.json.

A request is the part of params.yaml that decides what a stage learns. It depends on no code, environment or
file, so it can be computed after the data are gone; it holds the source's SHA-256. Requests chain through the
parent, so a change in stage 1 changes every stage. What only measures is left out: it can change without a
stage being learned anew. Versions registered by an older canal have it in their requests (`learning_part`).
"""

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest, json_digest
from canal.core.files import read_json

if TYPE_CHECKING:
    from canal.memory.stage_sums import StageSums


Request = dict[str, Any]

_ABSENT = "absent"

_MEASURING = frozenset({"holdouts"})
"""Settings of ``novelty`` by which nothing is learned: they say what an evaluation measures."""

_BY_NETWORK = frozenset({"temperature", "mixtures", "shadow_epochs"})
"""Settings of ``novelty`` that a network reads, and sums alone do not."""

CODE = ("src", "pipelines", "gate", "MLproject", "canal.json", "dvc.yaml", "params.yaml", "constraints.txt")
"""Paths whose uncommitted changes make a version *dirty*: not dvc.lock, data.dvc or the ledger."""

_CPUINFO = Path("/proc/cpuinfo")
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}
_AVX2 = {"avx2", "fma"}


def stage_request(config: Config, stage: str) -> Request:
    """Return the request of a stage; ``"backbone"`` names the pretrained network."""
    return backbone_request(config) if stage == BACKBONE else task_request(config, stage)


def request_digest(config: Config, stage: str) -> str:
    """Return the SHA-256 of a stage's request."""
    return json_digest(stage_request(config, stage))


@dataclass(frozen=True)
class Change:
    """One leaf in which two documents differ; ``"absent"`` stands for a missing leaf."""

    path: str
    before: Any
    after: Any


def changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> list[Change]:
    """Return every leaf in which two documents differ, named by its dotted key, sorted."""
    changed: list[Change] = []
    for key in sorted(before.keys() | after.keys()):
        here = f"{path}.{key}" if path else key
        left, right = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            changed += changes(left, right, here)
        elif left != right:
            changed.append(Change(here, left, right))
    return changed


def learning_part(request: Mapping[str, Any], parent: str | None) -> Request:
    """Return a recorded request as it is written today: without what only measures.

    ``parent`` is the digest of the parent's request in this form; None where a lineage begins.
    """
    part = dict(request)
    if isinstance(novelty := request.get("novelty"), Mapping):
        unread = _unread((request.get("continual") or {}).get("method"))
        part["novelty"] = {name: value for name, value in novelty.items() if name not in unread}
    if parent is not None:
        part["parent"] = {**request["parent"], "request": parent}
    return part


def _unread(method: str | None) -> frozenset[str]:
    """Return the settings of ``novelty`` that decide nothing of what is learned by a method."""
    return _MEASURING | (_BY_NETWORK if method == "exact" else frozenset())


def differences(request: Mapping[str, Any], learned: Mapping[str, Any]) -> list[str]:
    """Return one line for each leaf in which two requests differ, beginning with its dotted key."""
    return [
        f"{one.path}: learned with {_short(one.before)}, asked for {_short(one.after)}"
        for one in changes(learned, request)
    ]


def backbone_request(config: Config) -> Request:
    """Return the request of the backbone: its stages' cells, the panel, and how it is made."""
    names = (config.root_stage, *config.backbone.extra_stages)
    basis, imported = _basis_request(config), config.backbone.imported
    if not config.trains_network:
        backbone: Request = {"network": False}
    elif imported is not None:  # its key, and nothing that only pre-training reads
        backbone = {"preset": config.backbone.preset, "imported": imported.key}
    else:
        backbone = config.backbone.model_dump(
            mode="json", exclude={"branch", "imported", *unused_settings(config)}
        )
    unlabelled = {name: _source_request(config, name) for name in config.backbone.unlabelled}
    corpora = {"unlabelled": unlabelled, "held_out": config.split.validation} if unlabelled else {}
    return (
        _products(config)
        | ({"memory": basis} if basis else {})
        | {
            "stage": BACKBONE,
            "branch": config.backbone.branch,
            "cells": {name: _cells_request(config, name) for name in names},
            **corpora,
            "panel": config.panel.model_dump(mode="json"),
            "backbone": backbone,
            "seed": config.seed,
        }
    )


def unused_settings(config: Config) -> set[str]:
    """Return the settings of unlabelled sources where there are none: requests of before stay the same."""
    return set() if config.backbone.unlabelled else {"unlabelled", "max_unlabelled_cells"}


def _products(config: Config) -> Request:
    """Return the type of matrix products, which requests of float32 leave out."""
    return {} if config.compute.dtype == "float32" else {"compute": {"dtype": config.compute.dtype}}


def _basis_request(config: Config) -> Request:
    """Return the digest of an adopted basis, without its path; empty without one."""
    adopted = config.memory.basis
    return {} if adopted is None else {"basis": adopted.digest}


def _learning_request(config: Config, stage: str) -> Request:
    """Return how a stage is learned: its settings, and the study that chooses the others, if any."""
    settings = config.learning(stage).model_dump(mode="json", exclude_none=True)
    study = config.study(stage)
    if config.learning(stage).method == "published":
        del settings["method"]  # left out, as in requests of before there were methods
        memory = {}
    else:
        memory = {"memory": config.memory.numbers() | _basis_request(config)}
    if config.learning(stage).method == "exact":
        return {"continual": {"method": "exact"}, **memory}
    if study is None:
        return {"continual": settings, **memory}
    kept = {name: value for name, value in settings.items() if name not in study.varied}
    return {"continual": kept, "tuning": study.asked(), **memory}


def task_request(config: Config, stage: str) -> Request:
    """Return the request of a stage that learns: its cells, settings and parent."""
    rounded = {} if config.cache.dtype == "float32" else {"cache": {"dtype": config.cache.dtype}}
    ids = config.sources[config.stages[stage].source].ontology
    # The rule by which genes are added is in the request of the backbone, to which requests chain.
    grow = config.stages[stage].panel.grow
    by_network = config.learning(stage).method != "exact"
    merged = config.stages[stage].merged
    return (
        rounded
        | ({"merged": merged.model_dump(mode="json")} if merged else {})
        | ({"panel": {"grow": grow}} if grow else {})
        | ({"ontology": dict(ids)} if ids else {})
        | _products(config)
        | _learning_request(config, stage)
        | {
            "stage": stage,
            "branch": config.stages[stage].branch,
            "cells": _cells_request(config, stage),
            **({"bank": config.bank.model_dump(mode="json")} if by_network else {}),
            "probe": config.probe.model_dump(mode="json"),
            "novelty": config.novelty.model_dump(
                mode="json", exclude=set(_unread(config.learning(stage).method))
            ),
            "seed": config.seed,
            "parent": {
                "stage": (parent := config.stages[stage].parent),
                "request": request_digest(config, parent),
            },
        }
    )


def _cells_request(config: Config, stage: str) -> Request:
    return {
        **_source_request(config, config.stages[stage].source),
        "split": config.split.model_dump(mode="json", exclude_none=True),
        "group_by_batch": config.stages[stage].group_by_batch,
        "seed": config.seed,
    }


def _source_request(config: Config, name: str) -> Request:
    declaration = config.sources[name].declaration()
    declaration["min_genes"] = config.min_genes(name)
    return {"source": name, "declaration": declaration}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def stage_facts(layout: Layout, config: Config, stage: str) -> dict[str, Any]:
    """Return a stage's (or the backbone's) inputs by digest, its request and its parameters."""
    origin = config.root_stage if stage == BACKBONE else stage
    source, prepared = config.stages[origin].source, _prepared(layout, config, origin)
    own: dict[str, Any] = {}
    if stage == BACKBONE and config.backbone.extra_stages:
        own["extra_stages"] = {
            name: {
                "prepared_sha256": _prepared(layout, config, name)["sha256"],
                "split": file_digest(layout.split(name)),
                "verdict": file_digest(layout.verdict(name)),
            }
            for name in config.backbone.extra_stages
        }
    if stage == BACKBONE and config.backbone.unlabelled:
        own["unlabelled"] = {
            name: {
                "prepared_sha256": read_json(layout.prepared(name) / "prepared.json")["sha256"],
                "cells": file_digest(layout.corpus_cells(name)),
                "verdict": file_digest(layout.corpus_verdict(name)),
            }
            for name in config.backbone.unlabelled
        }
    if stage != BACKBONE and config.study(stage) is not None:
        path = layout.tuned(stage)
        own = {"tuned": file_digest(path), "choice": read_json(path)["choice"]}
    return (
        own
        | request_facts(layout, config, stage)
        | {
            "stage": stage,
            "data": {
                "source": source,
                "source_sha256": prepared["source_sha256"],
                "prepared_sha256": prepared["sha256"],
            },
            "panel": file_digest(layout.panel),
            "verdict": file_digest(layout.verdict(origin)),
        }
    )


def request_facts(layout: Layout, config: Config, stage: str) -> dict[str, Any]:
    """Return what a stage is learned by, whatever its cells are: request, split, code and parameters."""
    request = stage_request(config, stage)
    return {
        "branch": request["branch"],
        "request": request,
        "request_digest": request_digest(config, stage),
        "split": file_digest(layout.split(config.root_stage if stage == BACKBONE else stage)),
        "code": code_digest(layout.root),
        "lock": lock_digest(layout.root),
        "seed": config.seed,
        "threads": config.threads,
    }


def sums_facts(sums: "StageSums | None") -> dict[str, Any]:
    """Return the facts of sums for key.json: the basis, the cells that chose it, each stage's digest."""
    if sums is None:
        return {}
    return {
        "basis": {"digest": sums.basis.digest, "seen": sums.basis.seen},
        "sums": {stage: one.digest for stage, one in sums.stages.items()},
    }


def _prepared(layout: Layout, config: Config, stage: str) -> dict[str, Any]:
    """Return prepared.json of a stage's source."""
    known: dict[str, Any] = read_json(layout.prepared(config.stages[stage].source) / "prepared.json")
    return known


@dataclass(frozen=True)
class Commit:
    """A git commit, and whether code had changes that it does not hold."""

    sha: str | None
    dirty: bool


def current_commit(root: Path) -> Commit:
    """Return the commit of the project folder; outside git there is none, and the code counts as dirty."""
    sha = _git(root, "rev-parse", "HEAD")
    if not sha:
        return Commit(None, dirty=True)
    return Commit(sha, dirty=bool(uncommitted_files(root)))


def uncommitted_files(root: Path) -> list[str] | None:
    """Return the files of `CODE` that the last commit does not hold as they are; None without a commit."""
    if not _git(root, "rev-parse", "HEAD"):
        return None
    lines = (_git(root, "status", "--porcelain", "--", *CODE) or "").splitlines()
    return [line.split(maxsplit=1)[1].strip('"') for line in lines]


def code_digest(root: Path, package: Path | None = None) -> str:
    """Return one digest of canal's own source and the project's pipelines, independent of their paths.

    ``package`` is the folder of canal's source, by default that of the running canal.
    """
    package = package or Path(__file__).resolve().parents[2]
    files = {f"canal/{path.relative_to(package).as_posix()}": path for path in package.rglob("*.py")}
    files |= {f"pipelines/{path.name}": path for path in (root / "pipelines").glob("*.py")}
    return json_digest({name: file_digest(path) for name, path in sorted(files.items())})


def lock_digest(root: Path) -> str | None:
    """Return the digest of the pinned environment, constraints.txt, where the project has one."""
    path = root / "constraints.txt"
    return file_digest(path) if path.is_file() else None


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def cpu_capability() -> str:
    """Return architecture and vector instructions, such as ``x86_64 AVX2``, as torch tells them apart."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    known = "AVX512" if flags >= _AVX512 else "AVX2" if flags >= _AVX2 else ""
    return f"{platform.machine()} {known}".strip()
