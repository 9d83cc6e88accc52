"""`canal plan`: what a run would learn, restore or refuse, stage by stage, before DVC touches anything."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from canal.app.at_work import run_holder, run_lock
from canal.app.creating import require_used
from canal.app.project import Project, last_line
from canal.config.sections import BACKBONE
from canal.config.stage_sections import Source
from canal.config.yaml_file import check_merged, parse_yaml
from canal.core.digests import file_digest, json_digest
from canal.core.errors import CanalError, ConfigError, SourceError, no_such_file
from canal.core.progress import count, doing, first_names
from canal.registry.manifest.stage_request import stage_request, uncommitted_files
from canal.registry.manifest.version_folder import KEY_FILE, read_key
from canal.registry.store.database import Version
from canal.registry.versions.history import require_available, require_corpora_available
from canal.runtime.startup import own_code

_DATA = "data.dvc"

Fate = Literal["learn", "register", "restore", "keep", "refuse"]

_STATES = {"modified": "changed", "deleted": "missing"}
"""DVC's words for what has changed, in ours."""
_UNREGISTERED = "learned, and not registered yet"
_METHODS = {"exact": "by sums", "published": "by the network", "combined": "by network and sums"}

_STEPS = """
import json, sys
import networkx
from dvc.repo import Repo

with Repo() as repo, repo.lock:
    graph = repo.index.graph
    order = {stage.addressing: stage for stage in networkx.dfs_postorder_nodes(graph)}
    reasons = {}
    for name, stage in order.items():
        if found := stage.status(check_updates=True).get(name):
            reasons[name] = found
    before = {name: {one.addressing for one in networkx.descendants(graph, order[name])} for name in order}
    steps = [[name, reasons.get(name, []), bool(before[name] & set(reasons))] for name in order]
    json.dump(steps, sys.stdout)
"""
"""Asks DVC for its steps in order, why each has changed, and whether it builds on one that has."""


@dataclass(frozen=True)
class StagePlan:
    """What a run does with one stage, or the backbone.

    Attributes
    ----------
    fate
        ``learn``, ``register`` what is learned already, ``restore`` its version's files, ``keep`` what is
        there, or ``refuse``.
    version
        The number of the version that holds it; None where there is none yet.
    why
        The reason, in words.
    steps
        The steps of DVC that run for it, in order.
    """

    stage: str
    fate: Fate
    version: int | None
    why: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes
    ----------
    stages
        Stage by stage, the backbone first.
    steps
        The steps of DVC that run, in order, each with the reason.
    perhaps
        Steps that run only if one of those before them makes other bytes than it did last time.
    n_steps
        All steps of the pipeline.
    refusals
        What would be refused at once, before any step.
    warnings
        What a person should do before the run.
    """

    stages: tuple[StagePlan, ...]
    steps: dict[str, str]
    perhaps: tuple[str, ...]
    n_steps: int
    refusals: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether the run would be refused."""
        return bool(self.refusals) or any(one.fate == "refuse" for one in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {**asdict(self), "refused": self.refused}


def plan(project: Project) -> Plan:
    """Return what `canal run` would do with a project as it is; nothing is written, fetched or learned.

    Raises
    ------
    ConfigError
        If no stage is declared, or DVC cannot read the project's pipeline.
    """
    _ = project.config.root_stage
    refusals = [str(error) for error in _before_run(project.layout.root)]
    fates = stage_fates(project)
    # DVC may be unable to read what is refused: another canal's pipeline, a folder without a lock.
    running, perhaps, n_steps = ({}, (), 0) if refusals else dvc_steps(project.layout.root)
    stages = []
    for one in fates:
        steps = tuple(name for name in running if _belongs(project, name, one.stage))
        if one.fate == "keep" and steps:
            one = replace(one, fate="restore")
        elif one.fate == "learn" and not running and not refusals:
            one = replace(one, fate="register", why=_UNREGISTERED)
        elif one.fate == "register" and steps:
            one = replace(one, fate="learn", why=f"begun by a run that was interrupted: {_left(steps)}")
        stages.append(replace(one, steps=steps))
    warnings = (uncommitted(project.layout.root, stages), not_fetched(project, stages))
    told = tuple(warning for warning in warnings if warning)
    return Plan(tuple(stages), running, perhaps, n_steps, tuple(refusals), told)


def _left(steps: Sequence[str]) -> str:
    return f"{count(len(steps), 'step')} of it {'is' if len(steps) == 1 else 'are'} left"


def uncommitted(root: Path, stages: Sequence[StagePlan]) -> str:
    """Return a sentence where stages would be learned from files that no commit holds; ``""`` if none.

    The policy's rule ``clean`` asks for the commit with which a version was learned, and a version is never
    learned again.
    """
    if not any(one.fate == "learn" for one in stages):
        return ""
    changed = uncommitted_files(root)
    if changed is None:
        return (
            "this folder is no git repository with a commit: what is learned now fails the policy's rule "
            "`clean`; first git init, git add --all, git commit"
        )
    if not changed:
        return ""
    return (
        f"git does not hold {first_names(changed)} as it is here: what is learned now fails the "
        f"policy's rule `clean`; commit first: git add {' '.join(map(shlex.quote, changed))} && git commit"
    )


def not_fetched(project: Project, stages: Sequence[StagePlan]) -> str:
    """Return a sentence where the ledger names versions and the registry holds none; ``""`` otherwise."""
    learned = [one for one in stages if one.fate == "learn"]
    ledger = project.layout.ledger
    if len(learned) < len(stages) or not ledger.is_file() or not ledger.stat().st_size:
        return ""
    return (
        "ledger.jsonl names versions, and neither they nor their files are here: `dvc pull` brings the "
        "files, where DVC has a remote, and a run registers them; without it they are learned again"
    )


@doing("comparing params.yaml with what is learned")
def stage_fates(project: Project) -> list[StagePlan]:
    """Return what a run does with the backbone and each stage: keep, learn or refuse it, and why."""
    fates: dict[str, StagePlan] = {}
    for stage in (BACKBONE, *project.config.stages):
        above = None if stage == BACKBONE else fates[project.config.stages[stage].parent]
        try:
            version = project.learned(stage)
            fates[stage] = (
                _kept(version) if version else _learned_here(project, stage) or _new(project, stage)
            )
        except CanalError as error:
            fates[stage] = StagePlan(stage, "refuse", None, str(error))
        if above is not None and above.fate == "refuse" and fates[stage].fate == "learn":
            fates[stage] = StagePlan(stage, "refuse", None, f"{above.stage}, its parent, would be refused")
    return list(fates.values())


def _kept(version: Version) -> StagePlan:
    return StagePlan(version.stage, "keep", version.number, "learned, and asked for as it was learned")


def _learned_here(project: Project, stage: str) -> StagePlan | None:
    """Return the plan of a stage that an interrupted run has learned and measured, as it is asked for."""
    folder = project.layout.model(stage)
    measured = stage == BACKBONE or (project.layout.metrics(stage) / "evaluation.json").is_file()
    if not measured or not (folder / KEY_FILE).is_file():
        return None
    if read_key(folder)["request_digest"] != json_digest(stage_request(project.config, stage)):
        return None
    return StagePlan(stage, "register", None, _UNREGISTERED)


def _new(project: Project, stage: str) -> StagePlan:
    """Return the plan of a stage that is to be learned; raises where its cells cannot be had."""
    config = project.config
    if stage == BACKBONE:
        require_corpora_available(config)
        for name in config.backbone.unlabelled:
            _require_bytes(project, name, config.sources[name])
        not_yet, corpora = f"branch {config.backbone.branch} is not", ", ".join(config.backbone.unlabelled)
        if not config.imported_backbone and not config.trains_network:
            why = f"{not_yet} begun yet: its sums are of the panel's genes, and no network is trained"
            return StagePlan(stage, "learn", None, why)
        how = f"pretrained, also on {corpora}" if corpora else "pretrained"
        how = "imported" if config.imported_backbone else how
        return StagePlan(stage, "learn", None, f"{not_yet} learned yet: {how}")
    require_available(config, stage)
    name = config.stages[stage].source
    _require_bytes(project, name, config.sources[name])
    how = _METHODS[config.learning(stage).method]
    tuned = ", lambda and L by a study" if config.study(stage) else ""
    branch = config.stages[stage].branch
    why = f"branch {branch} is not learned yet: gated, then learned {how}{tuned}"
    return StagePlan(stage, "learn", None, why)


def _require_bytes(project: Project, name: str, source: Source) -> None:
    """Raise where the file of a source on disk is missing, or is another one than params.yaml names."""
    kept = project.layout.source(name) / "cells.h5ad"
    if source.path is None or kept.is_file():
        return
    path = project.layout.root / source.path
    if not path.is_file():
        raise SourceError(
            f"sources.{name}.path: {no_such_file(path, 'give the path of the file, or bring it back')}"
        )
    if (found := file_digest(path)) != source.file_sha256:
        raise SourceError(
            f"sources.{name}: {path} has sha256 {found[:12]}..., params.yaml names "
            f"{source.file_sha256[:12]}...: the file was changed since it was declared; restore it, or "
            "declare it as another source"
        )


def _before_run(root: Path) -> list[CanalError]:
    """Return what would stop a run before its first step, other than a stage."""
    found: list[CanalError] = []
    try:
        require_used(root, renew=False)
    except CanalError as error:
        found.append(error)
    try:
        require_mergeable(root)
    except CanalError as error:
        found.append(error)
    return found


def require_mergeable(root: Path) -> None:
    """Raise for a project that this user cannot write, or in which git left a merge undone.

    Raises
    ------
    ConfigError
        In one sentence, with what to do.
    """
    if not os.access(root, os.W_OK):
        raise ConfigError(f"{root} is read-only for this user, and a run writes there: copy the project")
    for path in (root / name for name in ("dvc.lock", "data.dvc", "dvc.yaml")):
        if path.is_file():
            check_merged(path.read_bytes(), path.name)


@doing("asking DVC which steps have changed")
def dvc_steps(root: Path) -> tuple[dict[str, str], tuple[str, ...], int]:
    """Return the steps of DVC that run and why, those that perhaps do, and the number of all.

    No run is at work meanwhile: DVC would make it fail where its locks are held for more than seconds.
    """
    try:
        with run_lock(root, patience_s=0):
            done = subprocess.run(
                [sys.executable, "-c", _STEPS], cwd=root, env=own_code(), capture_output=True, text=True,
                check=False,
            )  # fmt: skip
    except Timeout as error:
        holder = run_holder(root)
        raise ConfigError(
            f"a `canal run` is at work in this folder{holder and f' ({holder})'}: what is left to do is "
            "known when it has ended"
        ) from error
    if done.returncode:
        raise ConfigError(f"DVC cannot read the project's pipeline: {last_line(done)}")
    reasons, perhaps = dict[str, str](), list[str]()
    lock = root / "dvc.lock"
    ran = (parse_yaml(lock.read_bytes(), lock.name) or {}).get("stages") or {} if lock.is_file() else {}
    steps = json.loads(done.stdout)
    for name, found, before in steps:
        if found and name not in ran and name != _DATA:
            reasons[name] = "has not run yet"
        elif found:
            reasons[name] = _fetched(found) if name == _DATA else "; ".join(_in_words(found))
        elif before:
            perhaps.append(name)
    return reasons, tuple(perhaps), len(steps)


def _fetched(found: Sequence[Any]) -> str:
    """Return why the step runs that brings the sources' files; what it reads is a folder that a run fills."""
    if any("deleted" in one.get("changed outs", {}).values() for one in found if isinstance(one, Mapping)):
        return "the sources' files are not here yet: they are copied or fetched, and their digests compared"
    return "sources were added or changed: their files are copied or fetched, and their digests compared"


def _in_words(found: Sequence[Any]) -> Iterator[str]:
    """Yield what DVC says of a step: what of its command, dependencies, parameters and outs has changed."""
    for one in found:
        if not isinstance(one, Mapping):
            yield str(one)
            continue
        named = list[str]()
        for path, state in (pair for items in one.values() for pair in items.items()):
            states = state.items() if isinstance(state, Mapping) else [("", state)]
            named += [f"{f'{key} of ' if key else ''}{path} {_STATES.get(how, how)}" for key, how in states]
        yield first_names(named)


def _belongs(project: Project, step: str, stage: str) -> bool:
    """Whether a step of DVC runs for a stage alone."""
    name, _, of = step.partition("@")
    if stage == BACKBONE:
        return name == "pretrain" or (name == "prepare" and of in project.config.backbone.unlabelled)
    return of == (project.config.stages[stage].source if name == "prepare" else stage)
