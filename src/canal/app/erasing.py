"""`canal erase`: remove the bytes of withdrawn cells from everything that canal knows, on record.

First `canal unlearn` makes versions that never saw the cells, and one of them serves; then what still holds
the cells can go. A plan lists every file; its digest, the token, confirms it. The plan and the ledger's entry
are on disk before anything is removed, so the same command finishes what a kill left.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from canal.app.backfilling import STAGE_STEPS, commit_to_lock, keep_locks
from canal.app.project import Project
from canal.app.tracing import Plan, aliases_left, planned, unreached
from canal.app.withdrawing import Withdrawal as Withdrawal
from canal.app.withdrawing import read_names_of_cells as read_names_of_cells
from canal.config.layout import Layout
from canal.config.yaml_file import parse_yaml, save, with_rest
from canal.core.digests import file_digest
from canal.core.errors import CanalError, HistoryError, RegistryError
from canal.core.files import new_file, scratch_folder
from canal.core.progress import doing
from canal.data.prepare import PrepareSettings, prepare, without_cells
from canal.data.sources import CELLS, summarise
from canal.registry.audit.workspace import LOCK
from canal.registry.ledger import tombstones
from canal.registry.ledger.ledger import Draft, Entry, Ledger
from canal.registry.ledger.tombstones import Tombstones
from canal.registry.promotion.moves import moving, record
from canal.registry.promotion.promotion import Decision as Decision
from canal.registry.promotion.promotion import retire
from canal.registry.versions.history import restore_file

Notice = Callable[[str], None]

_REMOVE = """
import sys
from dvc.repo import Repo

with Repo() as repo:
    remote = repo.cloud.get_remote_odb()
    for oid in filter(remote.exists, sys.argv[1:]):
        remote.delete(oid)
"""
_MOST = 500
"""Objects named in one command."""
_STEPS = ("validate", "labels", *STAGE_STEPS)


@dataclass(frozen=True)
class Erased:
    """The result of an erasing, or of its dry run.

    Attributes
    ----------
    state : str
        ``planned``, ``erased``, ``finished`` (what an interrupted call had begun), or ``nothing``.
    cells : str
        SHA-256 of the sorted content digests of the cells; ``n_cells`` of them are known to versions.
    versions : tuple of str
        The versions whose files go, such as ``canal-annotator 2``.
    files : sequence of dict
        Every file: path, digest, bytes, why, and whether it is rewritten without the cells.
    token : str
        Confirms this plan and no other.
    unreached : tuple of str
        What canal cannot reach.
    entry : int or None
        The ledger's entry.
    """

    state: str
    cells: str = ""
    n_cells: int = 0
    versions: tuple[str, ...] = ()
    files: Sequence[dict[str, Any]] = ()
    token: str = ""
    unreached: tuple[str, ...] = ()
    entry: int | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self) | {"bytes": sum(one["bytes"] for one in self.files)}


def erase(
    project: Project,
    withdrawal: Withdrawal,
    decision: Decision,
    confirmation: "Confirmation",
    notice: Notice = lambda message: None,
) -> Erased:
    """Remove the files that hold the withdrawn cells, and enter who erased them and why into the ledger.

    Without a token nothing is changed: the plan is returned. Versions whose files go are retired. The raw
    file of a source that params.yaml still has is rewritten without the cells; the user's own file is not
    touched.

    Raises
    ------
    HistoryError
        If a champion or params.yaml still needs what would go, the token is that of another plan, or an
        interrupted erasing has to be finished first.
    RegistryError
        If no version ever knew such cells, or the files of a version are not on this disk.
    """
    began = time.perf_counter()
    project.store.update_paths()
    with moving(project.store) as ledger:
        done = _resumed(project, ledger, confirmation, notice) or _erase(
            project, withdrawal, decision, confirmation, ledger, notice
        )
    return replace(done, seconds=round(time.perf_counter() - began, 2))


@dataclass(frozen=True)
class Confirmation:
    """Confirmation of an erasing: the token that confirms it, and whether DVC's remote is meant, too."""

    confirm: str | None = None
    remote: bool = False


def _resumed(project: Project, ledger: Ledger, confirmation: Confirmation, notice: Notice) -> Erased | None:
    """Finish an erasing that a kill interrupted; forget one that had not come to the ledger."""
    for path in tombstones.unfinished(project.layout.tombstones):
        stones, entry = tombstones.read(path), tombstones.entry_of(path, ledger.entries())
        if entry is None:  # nothing was removed yet
            if confirmation.confirm is not None:
                path.unlink()
            continue
        if confirmation.confirm != stones.token:
            raise HistoryError(
                f"an erasing was begun by entry {entry.seq} of the ledger and is not finished: call canal "
                f"erase again as then, with --confirm {stones.token}"
            )
        notice(
            f"finishing the erasing of entry {entry.seq}: {len(stones.left(project.layout.root))} files are "
            "left"
        )
        _finish(project, path, stones)
        return _result("finished", stones, entry=entry.seq)
    return None


def _erase(
    project: Project,
    withdrawal: Withdrawal,
    decision: Decision,
    confirmation: Confirmation,
    ledger: Ledger,
    notice: Notice,
) -> Erased:
    plan = planned(project, withdrawal, ledger, confirmation.remote)
    if not plan.stones.files and not plan.versions:
        return _result("nothing", plan.stones, unreached(plan))
    if confirmation.confirm is None:
        return _result("planned", plan.stones, unreached(plan))
    if confirmation.confirm != plan.stones.token:
        raise HistoryError(
            f"--confirm names another plan than what would be erased now (token {plan.stones.token}): "
            "something has changed since. Look at it again with --dry-run; nothing was erased"
        )
    notice("writing what is left of the files that stay")
    stones, missed = _staged(plan), tuple(unreached(plan))
    path, entry = _entered(plan, stones, ledger, decision)
    notice(f"entry {entry.seq} of the ledger is written; erasing {len(stones.files)} files")
    _finish(project, path, stones)
    return _result("erased", stones, missed, entry.seq)


def _entered(plan: Plan, stones: Tombstones, ledger: Ledger, decision: Decision) -> tuple[Path, Entry]:
    """Write the list of what goes, then the ledger's entry about it; return both.

    Raises
    ------
    LedgerError, SigningError
        If the ledger does not take the entry: nothing is erased, and no list is left.
    """
    store, layout = plan.project.store, plan.project.layout
    for one in plan.orphans:
        if not one.version.retired:
            retire(store, ledger, one.version, decision)
    path = tombstones.begin(layout.tombstones, stones)
    details = {
        "cells": stones.cells,
        "n_cells": stones.n_cells,
        "token": stones.token,
        "tombstones": file_digest(path),
        "versions": [dict(one) for one in stones.versions],
    }
    draft = Draft(
        "erase", store.names.model, 0, "", "", decision.by, decision.why, aliases_left(plan), details
    )
    try:
        return path, record(store, ledger, draft, decision.sign)
    except CanalError:
        if not layout.pending.is_file():  # a move that was begun is finished by the next command
            path.unlink()
            shutil.rmtree(layout.staging, ignore_errors=True)
        raise


def _result(state: str, stones: Tombstones, missed: Iterable[str] = (), entry: int | None = None) -> Erased:
    return Erased(
        state=state,
        cells=stones.cells,
        n_cells=stones.n_cells,
        versions=tuple(f"{one['model']} {one['version']}" for one in stones.versions),
        files=[asdict(one) for one in stones.files],
        token=stones.token,
        unreached=tuple(missed),
        entry=entry,
    )


@doing("writing what is left of the files that stay")
def _staged(plan: Plan) -> Tombstones:
    """Write the files that replace others under their digest into a folder of their own, and name them.

    Raises
    ------
    CanalError
        If one cannot be written, or its source cannot be read; nothing was changed.
    """
    project, rests = plan.project, dict[str, str]()
    folder = project.layout.staging / plan.stones.token
    shutil.rmtree(project.layout.staging, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        for name in sorted({Path(one.path).parts[1] for one in plan.stones.files if one.rewritten}):
            rests |= _rewritten(plan, name, folder)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(project.layout.staging, ignore_errors=True)
        what = str(error).splitlines()[0][:200]
        raise CanalError(f"cannot write what is left of the files: {what}; nothing was erased") from error
    return replace(plan.stones, rests=rests)


def _rewritten(plan: Plan, name: str, folder: Path) -> dict[str, str]:
    """Write what is left of a source into ``folder``; return the digests by the paths that they replace."""
    config, layout = plan.project.config, plan.project.layout
    source, left = config.sources[name], folder / f"{name}.h5ad"
    paths = [one.path for one in plan.stones.files if one.rewritten and Path(one.path).parts[1] == name]
    ids, leaving = plan.matched.ids, []
    for other in (one for one, declared in plan.sources.items() if declared.sha256 == source.sha256):
        if other == plan.withdrawal.source:  # neither ids nor a batch where all of it leaves
            mine, batch = frozenset() if plan.withdrawal.whole else ids, plan.withdrawal.batch
        else:
            mine, batch = frozenset(one for one in ids if one.startswith(f"{other}:")), None
        leaving.append((other, plan.sources[other], mine, batch))
    without_cells(layout.source(name) / CELLS, left, leaving)
    digest = file_digest(left)
    rests = {
        path: digest for path in paths if path.endswith(f"/{CELLS}") and not path.startswith("prepared/")
    }
    if any(path.startswith("prepared/") for path in paths):
        settings, made = PrepareSettings(config.min_genes(name), config.prepare.chunk_cells), folder / name
        prepare(left, name, source.model_copy(update={"rest": digest}), settings, made)
        for path in sorted(made.iterdir()):
            rests[f"prepared/{name}/{path.name}"] = file_digest(path)
            path.replace(folder / file_digest(path))
    left.replace(folder / digest)
    return rests


@doing("erasing the files")
def _finish(project: Project, path: Path, stones: Tombstones) -> None:
    """Replace and remove what still lies there, then tell params.yaml and DVC; each step can be repeated."""
    layout = project.layout
    staged = layout.staging / stones.token
    for one in stones.left(layout.root):
        target, rest = layout.root / one.path, stones.rests.get(one.path)
        if rest is not None and (staged / rest).is_file():
            with new_file(target) as temporary:
                shutil.copyfile(staged / rest, temporary)
        else:
            target.unlink()
            _remove_empty(target.parent, layout.root)
    sources = {
        name: rest
        for name, source in project.config.sources.items()
        if (rest := stones.rests.get(f"data/{name}/{CELLS}")) and source.rest != rest
    }
    if sources:
        before = layout.params.read_text(encoding="utf-8")
        save(layout.params, with_rest(before, sources), before)
    project = Project.open(layout.root)
    for name, source in project.config.sources.items():
        for place in (layout.data / name, layout.incoming / name):
            if source.rest is not None and (place / CELLS).is_file():
                summarise(name, source, place)
    _restore_judgements(project)
    rewritten = {Path(one).parts[1] for one in stones.rests}
    stages = [name for name, one in project.config.stages.items() if one.source in rewritten]
    steps = ["ingest", "data.dvc", *(f"prepare@{name}" for name in sorted(rewritten)), "split"]
    steps += [f"{step}@{name}" for name in stages for step in _STEPS]
    commit_to_lock(project.store, _whole(project, steps), "call canal erase again, as it was called")
    if stones.objects:
        _remove_from_remote(layout, stones.objects)
    with scratch_folder("erase"):
        pass  # what killed runs left in the system's temporary folder goes when a new one is made
    shutil.rmtree(layout.staging, ignore_errors=True)
    tombstones.finish(path)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder that lost its last file, and those above it but the project's own first folders."""
    levels = len(folder.relative_to(root).parts) - 1 if root in folder.parents else 1
    for one in [folder, *folder.parents][:levels]:
        try:
            one.rmdir()
        except OSError:
            return


def _restore_judgements(project: Project) -> None:
    """Restore verdicts and labels that went with the cells that they named, as learned stages have them."""
    for stage in project.config.stages:
        version = project.learned(stage)
        for name, target in (
            ("validation/verdict.json", project.layout.verdict(stage)),
            ("validation/labels.json", project.layout.labels(stage)),
        ):
            if version is not None and not target.is_file():
                with suppress(RegistryError):  # of before there was such a file
                    restore_file(project.store, version, name, target)


def _whole(project: Project, steps: Sequence[str]) -> list[str]:
    """Return the steps whose outputs lie there: the next run makes those of the others."""
    keep_locks(project.store)
    layout = project.layout
    path = layout.root / LOCK
    lock = parse_yaml(path.read_text(encoding="utf-8"), LOCK)["stages"] if path.is_file() else {}
    outs = {name: [layout.root / one["path"] for one in lock.get(name, {}).get("outs", ())] for name in steps}
    return [name for name in steps if all(one.exists() for one in outs[name])]


def _remove_from_remote(layout: Layout, objects: Sequence[str]) -> None:
    """Remove objects from DVC's default remote; those that it has not are passed over."""
    for start in range(0, len(objects), _MOST):
        command = [sys.executable, "-c", _REMOVE, *objects[start : start + _MOST]]
        done = subprocess.run(command, cwd=layout.root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CanalError(
                f"what lay here is erased, but DVC's remote refused: {done.stderr.strip()[-500:]}: call "
                "canal erase again, as it was called"
            )
