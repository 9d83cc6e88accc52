"""`canal sums backfill`: a version that was learned without sums gains them; its network stays as it is.

The version is made in a scratch folder that looks like the project, and registered from there: a version is
visible only when whole, so a kill leaves the project as it was, or with a version that is yet to be put into
``models/`` and ``metrics/``, which a second call does.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from canal.app.learning import measured
from canal.app.pipeline import complete_params
from canal.app.project import Project
from canal.app.tasks import added_up, first_basis
from canal.app.versions import registry_sync
from canal.config.layout import Layout
from canal.config.yaml_file import parse_yaml
from canal.continual.evaluation import write_evaluation
from canal.continual.stage import backfilled
from canal.core.digests import file_digest
from canal.core.errors import CanalError, HistoryError
from canal.core.files import new_folder, scratch_folder
from canal.memory.stage_sums import OWN_BATCHES, StageSums
from canal.memory.sums import Sums
from canal.model.annotator import GENES, LABELS
from canal.model.storage import read_names
from canal.registry.audit.version_files import AuditLog
from canal.registry.audit.workspace import LOCK, check_workspace
from canal.registry.ledger.ledger import Sign
from canal.registry.manifest.stage_request import sums_facts
from canal.registry.manifest.version_folder import KEY_FILE, Key, key_digest, write_key
from canal.registry.store.database import Version
from canal.registry.versions.history import restore_metrics, restore_model, verified
from canal.report.collect import write_scores

Notice = Callable[[str], None]

_FACTS_MADE_ANEW = ("format", "files", "parent", "teacher")
_STEPS = ("finetune", "finetune-tuned", "evaluate")
_COMMIT = """
import sys
from dvc.repo import Repo

with Repo() as repo:
    for step in sys.argv[1:]:
        try:
            repo.commit(step, force=True)
        except Exception:  # something that the step reads is gone: its outs alone, then
            with repo.lock:
                for stage in repo.stage.collect(step):
                    for out in stage.outs:
                        out.save()
                        out.commit()
                    stage.dump(update_pipeline=False)
"""


@dataclass(frozen=True)
class Backfilled:
    """What came of a backfill.

    Attributes
    ----------
    stage : str
    before, after : int
        Numbers of the version without sums and of the one with them.
    sums : dict
        Stage -> cells that were added up.
    gone : tuple of str
        Stages whose cells are gone, and whose sums no version keeps.
    lacking : tuple of str
        Types that only the network knows, for no cell of them could be added up.
    """

    stage: str
    before: int
    after: int
    sums: dict[str, int]
    gone: tuple[str, ...]
    lacking: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


def backfill(project: Project, stage: str, notice: Notice, sign: Sign | None = None) -> Backfilled:
    """Make a version of ``stage`` with sums from the prepared cells of it and of its ancestors.

    The network is the old version's, bit for bit; network and sums are combined on the stage's validation
    cells and its probe. The new version answers to the same request, so nothing is learned again, and the
    next stage is learned on it.

    Raises
    ------
    HistoryError
        If the stage was never learned, has sums already, or its cells are gone.
    """
    project.store.settle()
    version = _version_of(project, stage)
    _, key = verified(project.store, version)
    if stage in key.get("sums", {}):
        before = _unfinished(project, version, key)
        notice(f"{stage}: version {version.number} has its sums already; putting it into models/{stage}")
        _place(project, version)
        return _told(project, version, before)
    with _beside(project, stage) as made:
        _make(project, made, version, notice)
        after = _registered(project, made, stage, sign)
    _place(project, after)
    return _told(project, after, version.number)


def _version_of(project: Project, stage: str) -> Version:
    if stage not in project.config.stages:
        raise HistoryError(f"no stage {stage!r} in params.yaml; there are {', '.join(project.config.stages)}")
    version = project.learned(stage)
    if version is None:
        raise HistoryError(
            f"stage {stage!r} was never learned as params.yaml asks for it, so there is no version to add "
            "sums to: `make run` learns it, with sums where continual.method is combined or exact"
        )
    return version


def _unfinished(project: Project, version: Version, key: Key) -> int:
    """Return the number of the version without sums, where an interrupted call left the last steps undone.

    Raises
    ------
    HistoryError
        If nothing is left to do.
    """
    stage, layout = version.stage, project.layout
    if "backfilled" in key:
        old = [one for one in project.store.versions() if one.key == key["backfilled"]]
        log = AuditLog()
        if (layout.root / ".dvc").is_dir():
            check_workspace(layout, project.config, [stage], log)
        places = (f"models/{stage}", f"metrics/{stage}", f"scores/{stage}")
        model = layout.model(stage)
        there = (model / "key.json").is_file() and key_digest(model) == version.key
        if old and (not there or any(place in one.what for one in log.findings for place in places)):
            return old[0].number
    raise HistoryError(
        f"version {version.number} ({stage}) has sums already, of {', '.join(key['sums'])}: nothing to do"
    )


@contextmanager
def _beside(project: Project, stage: str) -> Iterator[Project]:
    """Give a project that reads this one's files, but keeps model and measures of ``stage`` to itself."""
    project.layout.private.mkdir(exist_ok=True)
    with scratch_folder("backfill") as scratch:
        own = Layout(scratch)
        for path in project.layout.root.iterdir():
            if path.name not in ("models", "metrics"):
                (scratch / path.name).symlink_to(path)
        for folder in (own.model(stage).parent, own.metrics(stage).parent):
            folder.mkdir()
        for name in project.config.ancestors(stage):
            _bring(project, name)
            own.model(name).symlink_to(project.layout.model(name))
            own.metrics(name).symlink_to(project.layout.metrics(name))
        yield Project(own, project.config)


def _bring(project: Project, stage: str) -> None:
    """Restore model and measures of a learned stage where they are not in the project's folder."""
    version, layout = _version_of(project, stage), project.layout
    if not (layout.model(stage) / KEY_FILE).is_file():
        restore_model(project.store, version, layout.model(stage))
    if not (layout.metrics(stage) / "evaluation.json").is_file():
        restore_metrics(project.store, version, layout.metrics(stage))


def _make(project: Project, made: Project, version: Version, notice: Notice) -> None:
    """Write model and measures of the version with sums to the folder of ``made``."""
    stage = version.stage
    sums, batches = _gathered(project, stage, notice)
    folder, key = verified(project.store, version)
    validation = project.cells(stage, "validation", _genes(folder))
    annotator = backfilled(folder, stage, validation, sums, project.config)
    with new_folder(made.layout.model(stage)) as target:
        annotator.save(target / "model")
        for name in key["files"]:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target / name)
        sums.save(target)
        if batches is not None:
            batches.save(target / OWN_BATCHES)
        facts = {name: value for name, value in key.items() if name not in _FACTS_MADE_ANEW}
        facts |= {"backfilled": version.key, "memory": project.config.memory.numbers()}
        write_key(target, facts | sums_facts(sums), key["parent"])
    notice(f"{stage}: measuring network and sums together")
    with new_folder(made.layout.metrics(stage)) as target:
        write_evaluation(target, measured(made, stage))


def _gathered(project: Project, stage: str, notice: Notice) -> tuple[StageSums, Sums | None]:
    """Return the sums of a stage and its ancestors, and the stage's own by batch.

    Sums begin with those that the newest ancestor with sums keeps; else at the first stage whose cells are
    still there.
    """
    names = (*project.config.ancestors(stage), stage)
    learned = {name: verified(project.store, _version_of(project, name)) for name in names}
    kept = [StageSums.load(folder, list(key["sums"])) for folder, key in learned.values() if "sums" in key]
    known, batches = (kept[-1] if kept else None), None
    for name, (folder, key) in learned.items():
        if known is not None and name in known.stages:
            continue
        if why := _not_there(project, name, key):
            notice(f"{name}: {why}: no sums of it")
            continue
        notice(f"{name}: adding up its training cells")
        known = known or StageSums(first_basis(project, name, _genes(folder)))
        own, batches, missing = added_up(project, name, known.basis)
        known = known.plus(name, own, missing)
    if known is None or stage not in known.stages:
        raise HistoryError(
            f"the cells of {stage} are gone (prepared/ lacks them, or they are not those that it was "
            "learned from), so no sums of it can be made: bring them back (dvc pull, dvc checkout), or let "
            "sums begin with the next stage, by continual.method: combined"
        )
    ordered = {name: known.stages[name] for name in names if name in known.stages}
    return StageSums(known.basis, ordered, known.missing), batches


def _not_there(project: Project, stage: str, key: Key) -> str | None:
    """Return why the cells that a version was learned from cannot be added up; None where they can."""
    layout, prepared = project.layout, key["data"]["prepared_sha256"]
    cells = layout.prepared(project.config.stages[stage].source) / "cells.h5ad"
    if not cells.is_file():
        return "its cells are gone"
    if file_digest(cells) != prepared:
        return f"{cells.relative_to(layout.root)} holds other cells than it was learned from"
    split = layout.split(stage)
    if not split.is_file() or file_digest(split) != key["split"]:
        return f"{split.relative_to(layout.root)} is not the split it was learned by"
    return None


def _genes(folder: Path) -> tuple[str, ...]:
    return read_names(folder / "model", GENES)


def _registered(project: Project, made: Project, stage: str, sign: Sign | None) -> Version:
    """Register the version in the folder of ``made``, and return it."""
    key = key_digest(made.layout.model(stage))
    registry_sync(project, sign, made.layout)
    return next(one for one in project.store.versions() if one.ready and one.key == key)


def _place(project: Project, version: Version) -> None:
    """Put a version into models/ and metrics/, and let dvc.lock name it, so that DVC finds it unchanged."""
    layout, stage = project.layout, version.stage
    restore_model(project.store, version, layout.model(stage))
    restore_metrics(project.store, version, layout.metrics(stage))
    write_scores(layout, stage)
    if not (layout.root / LOCK).is_file() or not (layout.root / ".dvc").is_dir():
        return
    complete_params(layout.params)
    lock = parse_yaml((layout.root / LOCK).read_text(encoding="utf-8"), LOCK)["stages"]
    steps = [name for step in _STEPS if (name := f"{step}@{stage}") in lock]
    command = [sys.executable, "-c", _COMMIT, *steps]
    done = subprocess.run(command, cwd=layout.root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CanalError(
            f"version {version.number} is registered and in place, but DVC would not take it into {LOCK}: "
            f"{done.stderr.strip()[-500:]}: `make run` does it"
        )


def _told(project: Project, version: Version, before: int) -> Backfilled:
    """Return what a version with sums came to hold."""
    folder, key = verified(project.store, version)
    names = (*project.config.ancestors(version.stage), version.stage)
    sums = StageSums.load(folder, names)
    assert sums is not None  # noqa: S101 - its key names them
    cells = {name: one.n_cells for name, one in sums.stages.items()}
    gone = tuple(name for name in names if name not in cells)
    lacking = sums.lacking(read_names(folder / "model", LABELS))
    return Backfilled(version.stage, before, version.number, cells, gone, lacking)
