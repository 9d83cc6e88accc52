"""`canal status`: which version serves, what is new, what a run would learn, and what waits for a person.

Only documents are read, none of the cells: the answer takes a second. `canal doctor` says what is broken.
"""

import json
import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from canal.annotation.columns import UNASSIGNED
from canal.annotation.records import read_log
from canal.app.at_work import run_at_work
from canal.app.planning import StagePlan, require_mergeable, stage_fates
from canal.app.project import Project
from canal.app.running import changed_files
from canal.app.versions import decisions
from canal.config.yaml_file import check_merged
from canal.core.errors import CanalError
from canal.core.files import read_json
from canal.core.progress import first_names
from canal.quality.verdict import with_label_rules
from canal.registry.ledger.ledger import Entry
from canal.registry.ledger.ledger_rules import CANDIDATE, CHAMPION
from canal.registry.manifest.stage_request import uncommitted_files
from canal.registry.promotion.moves import ledger_of
from canal.registry.promotion.promotion import holder
from canal.registry.store.database import Version
from canal.registry.store.store import half_rebuilt
from canal.registry.versions.history import current_evaluation

Document = dict[str, Any]

_WHO = '--by "YOUR NAME" --why "REASON"'
_SHOWN = 3


@dataclass(frozen=True)
class Need:
    """What needs a person, in words, and the command that does it or shows more."""

    what: str
    command: str


def no_project(folder: Path) -> Document:
    """Return the status of a folder in no project: what can be done there."""
    needs = (
        Need("begin a project of your own, or canal's demonstration", "canal init NAME"),
        Need("see which models label cells without a project", "canal models list"),
        Need("label cells with a model that you were given", "canal annotate IN -o OUT --model FILE.zip"),
    )
    return {"project": None, "folder": str(folder), "needs": [asdict(one) for one in needs]}


def status(project: Project) -> Document:
    """Return where a project stands, as a JSON document; nothing is written.

    Its entries: ``project`` and ``registry`` (where they are), ``serving`` and ``candidate`` (a version each,
    or None), ``stages`` (what a run would do with each), ``labelled`` (files since the newest version),
    ``uncommitted`` (files), ``running`` (whether a `canal run` is at work: what it learns and writes needs
    nobody then), ``needs`` (what needs a person, each with a command).

    Raises
    ------
    CanalError
        If the registry cannot be read.
    """
    store, root = project.store, project.layout.root
    entries, unread = _entries(project)
    versions = [one for one in store.versions() if one.ready]
    serving, newest = holder(store, CHAMPION), holder(store, CANDIDATE)
    # A version stays the candidate until the next one: it waits if nobody ever decided about it.
    undecided = newest is not None and not newest.retired and not decisions(entries, newest)["served"]
    waiting = newest if undecided and newest != serving else None
    fates = [] if _registry_gone(project) else stage_fates(project)
    code = uncommitted_files(root)
    changed = list(dict.fromkeys([*(code or ()), *changed_files(root)]))
    running = run_at_work(root)
    needs = [
        *unread,
        *_unsettled(project),
        *([] if waiting is None else _to_promote(project, waiting)),
        *_failed_hooks(project),
        *_warned(
            project,
            {one.stage for one in fates if one.fate == "learn"} | {waiting.stage if waiting else None},
        ),
        *_to_do(project, fates, changed, code is None, running),
    ]
    return {
        "project": str(root),
        "registry": store.shown,
        "serving": None if serving is None else _version(serving, entries),
        "candidate": None if waiting is None else _version(waiting, entries),
        "stages": [
            {"stage": one.stage, "fate": one.fate, "version": one.version, "why": one.why} for one in fates
        ],
        "labelled": _labelled(project, versions),
        "uncommitted": changed,
        "running": running,
        "needs": [asdict(one) for one in needs],
    }


def _entries(project: Project) -> tuple[list[Entry], list[Need]]:
    """Return the ledger's entries; none where it cannot be read, which needs a person."""
    path = project.layout.ledger
    try:
        check_merged(path.read_bytes() if path.is_file() else b"", path.name)
    except CanalError:
        return [], [Need(f"git left a merge of {path.name} unsettled", f"canal ledger merge {_WHO}")]
    try:
        return ledger_of(project.store).entries(), []
    except CanalError as error:
        return [], [Need(str(error), "canal ledger --verify")]


def _version(version: Version, entries: Sequence[Entry]) -> Document:
    """Return number and stage of a version, and the last decision that let it serve."""
    served = decisions(entries, version)["served"]
    return {"version": version.number, "stage": version.stage, "decision": served[-1] if served else None}


def _labelled(project: Project, versions: Sequence[Version]) -> Document:
    """Return the files in the log since the newest version, each once a version, and Unassigned cells."""
    since = max((one.created for one in versions), default=0) / 1000
    log = read_log(project.layout.annotations)
    found: dict[tuple[str, str], Document] = {}
    for record in log.records:
        if str(record.get("time", "")) >= _utc(since):
            n, cells = record["cell_types"].get(UNASSIGNED, 0), record["n_cells"]
            about = record.get("input") or {}
            name = about.get("name") or about.get("path") or "?"
            once = str(about.get("sha256") or record.get("id")), str((record.get("model") or {}).get("key"))
            found.pop(once, None)  # the last of them counts, as the newest
            found[once] = {"file": Path(str(name)).name, "cells": cells, "unassigned": n}
    files = list(found.values())
    return {
        "since": _utc(since) if versions else None,
        "files": len(files),
        "cells": sum(one["cells"] for one in files),
        "unassigned": sum(one["unassigned"] for one in files),
        "newest": files[-_SHOWN:],
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _to_promote(project: Project, version: Version) -> Iterator[Need]:
    """Yield the candidate that nobody decided about, and what its test cells are too few to show."""
    what = f"version {version.number} ({version.stage}) is not promoted"
    yield Need(f"{what}: read its rulings, then decide", "canal promote candidate --dry-run")
    policy = project.config.policy
    few = []
    for stage, one in current_evaluation(project.store, version).get("per_stage", {}).items():
        if one.get("n", 0) < policy.min_cells_per_stage:
            few.append(f"stage {stage} ({one.get('n', 0)})")
        elif stage != version.stage:  # what it learned before is judged type by type
            recalls = one.get("recall", {}).items()
            few += [
                f"{name} of {stage} ({of['n']})"
                for name, of in recalls
                if of["n"] < policy.min_cells_per_type
            ]
    if few:
        yield Need(
            f"too few test cells to judge {first_names(few)}: where all else holds, a person lets them pass",
            f'canal promote candidate {_WHO} --too-few "REASON"',
        )


def _unsettled(project: Project) -> Iterator[Need]:
    """Yield merges that git left unsettled, and moves and rebuilds that were interrupted."""
    layout = project.layout
    try:
        require_mergeable(layout.root)
    except CanalError as error:
        yield Need(str(error), "git status")
    if layout.pending.is_file():
        yield Need("a move of aliases was interrupted", "canal registry sync")
    if not layout.ledger.is_file() and any(one.ready for one in project.store.versions()):
        yield Need(
            f"{layout.ledger.name}, who decided what, is gone", f"git checkout -- {layout.ledger.name}"
        )
    if half_rebuilt(project.store):
        yield Need("the registry is half rebuilt", "canal registry sync")
    if _registry_gone(project):
        what = f"the ledger names versions, and {project.store.shown} is gone"
        yield Need(f"{what}: `dvc pull` brings missing files first", "canal registry rebuild")


def _registry_gone(project: Project) -> bool:
    """Whether the ledger names versions and there is no registry."""
    ledger = project.layout.ledger
    return not project.store.exists and ledger.is_file() and ledger.stat().st_size > 0


def _failed_hooks(project: Project) -> Iterator[Need]:
    """Yield the hooks whose last attempt about the newest decision failed."""
    path = project.layout.hooks
    if not path.is_file():
        return
    last: dict[tuple[Any, str], Document] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            one = json.loads(line)
            last[one["entry"], str(one["hook"])] = one
        except (ValueError, KeyError, TypeError):
            continue
    newest = max((entry for entry, _ in last if isinstance(entry, int)), default=None)
    for (entry, hook), one in last.items():
        if entry == newest and one.get("outcome") == "failed":
            what = f"the hook {hook} was not told of entry {entry}: {one.get('detail')}"
            yield Need(what, f"tail {path.name}")


def _warned(project: Project, undecided: Collection[str | None]) -> Iterator[Need]:
    """Yield warnings of the gate about the newest stage, until a person has decided about its version."""
    judged = [name for name in project.config.stages if project.layout.verdict(name).is_file()]
    if not judged or judged[-1] not in undecided or project.learned(judged[-1]) is None:
        return  # without a version there is no page yet, and the run itself tells the warnings
    verdict, labels = project.layout.verdict(judged[-1]), project.layout.labels(judged[-1])
    told = with_label_rules(read_json(verdict), read_json(labels) if labels.is_file() else None)
    if names := [one["rule"] for one in told["rules"] if not one["passed"] and one["severity"] != "error"]:
        yield Need(f"the gate warns of stage {judged[-1]}: {first_names(names)}", "canal report")


def _to_do(
    project: Project, fates: Sequence[StagePlan], changed: Sequence[str], no_git: bool, running: bool
) -> Iterator[Need]:
    """Yield stages to learn, entries to sign, and files to commit.

    While a run is at work, it is learning the stages, and the files that it writes are not whole yet.
    """
    if (names := [one.stage for one in fates if one.fate == "learn"]) and not running:
        yield Need(f"params.yaml asks for what is not learned: {', '.join(names)}", "canal run")
    if (names := [one.stage for one in fates if one.fate == "register"]) and not running:
        yield Need(
            f"learned by a run that was interrupted, and not registered: {', '.join(names)}", "canal run"
        )
    for one in fates:
        if one.fate == "refuse":
            yield Need(f"a run would refuse {one.stage}: {one.why}", "canal plan")
    keyring = project.config.registry.keyring
    if keyring is not None and not (project.layout.root / keyring).is_file():
        yield Need(f"the keyring {keyring} of params.yaml is missing", "canal keys add")
    elif keyring is not None and not os.environ.get("CANAL_SIGN"):
        yield Need(f"entries of the ledger have to be signed by a key of {keyring}", "export CANAL_SIGN=FILE")
    if no_git:
        yield Need("the project is in no git repository with a commit", "git init && git add --all")
    elif changed and not running:
        what = f"git does not hold {first_names(changed)} as it is here"
        yield Need(what, f"git add {' '.join(map(shlex.quote, changed))} && git commit")
