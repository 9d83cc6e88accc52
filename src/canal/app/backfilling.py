"""`canal sums backfill`: add sums to a stage that was learned without them; the network is kept.

The version is made in a scratch folder that mirrors the project, and registered from there. A version is
visible only when complete, so a killed call leaves the project unchanged, or with a registered version that
a second call installs into ``models/`` and ``metrics/``.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from canal.app.creating import complete_project
from canal.app.learning import evaluate_stage
from canal.app.project import Project
from canal.app.tasks import add_up_stage, first_basis, why_unavailable
from canal.app.versions import registry_sync
from canal.config.yaml_file import parse_yaml
from canal.continual.evaluation import write_evaluation
from canal.continual.stage import backfilled
from canal.core.errors import CanalError, ConfigError, HistoryError, there_are
from canal.core.files import new_file, new_folder
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
from canal.registry.store.store import Store
from canal.registry.versions.history import restore_metrics, restore_model, verified
from canal.report.collect import write_scores

Notice = Callable[[str], None]

_FACTS_MADE_ANEW = ("format", "files", "parent", "teacher")
STAGE_STEPS = ("finetune", "finetune-tuned", "evaluate")
_COMMIT = """
import sys
from dvc.repo import Repo
from filelock import FileLock

with Repo() as repo:
    # dvc.lock keeps steps that dvc.yaml has no longer, such as those of a stage that is not tuned any more.
    steps = sys.stdin.read().splitlines()  # until they are known, DVC has been imported
    with FileLock(sys.argv[1]), repo.lock:
        known = {stage.addressing for stage in repo.index.stages}
        files = {}
        for stage in (one for step in filter(known.__contains__, steps) for one in repo.stage.collect(step)):
            try:
                stage.save()
                stage.commit()
            except Exception:  # a dependency of the step is missing: commit its outs alone
                for out in stage.outs:
                    out.save()
                    out.commit()
            files.setdefault(stage.dvcfile.path, []).append(stage)
        for stages in files.values():  # as `dvc commit --force`, but dvc.lock is written once for all steps
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
"""
_WRITING = "dvc"
"""The lock that is held while DVC writes its files."""


@dataclass(frozen=True)
class Backfilled:
    """The result of a backfill.

    Attributes
    ----------
    stage : str
    before, after : int
        Numbers of the version without sums and of the one with them.
    sums : dict
        Stage -> number of cells summed.
    gone : tuple of str
        Stages without sums: their cells are gone, and no version keeps their sums.
    lacking : tuple of str
        Types without sums, which only the network knows.
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
    """Register a version of ``stage`` with sums of its prepared cells and those of its ancestors.

    The network is the old version's, bit for bit; network and sums are combined on the stage's validation
    cells and its probe. The new version has the same request, so nothing is trained again, and the next
    stage is learned on it.

    Raises
    ------
    HistoryError
        If the stage was not learned, has sums already, or its cells are gone.
    """
    project.store.update_paths()
    version = _version_of(project, stage)
    _, key = verified(project.store, version)
    if stage in key.get("sums", {}):
        before = _unfinished_backfill(project, version, key)
        notice(f"{stage}: version {version.number} has sums already; restoring it into models/{stage}")
        _install(project, version)
        return _result(project, version, before)
    with _scratch_project(project, stage) as scratch:
        _write_version(project, scratch, version, notice)
        made = key_digest(scratch.layout.model(stage))
        registry_sync(project, sign, scratch.layout)
        after = next(one for one in project.store.versions() if one.ready and one.key == made)
    _install(project, after)
    return _result(project, after, version.number)


def planned_backfill(project: Project, stage: str) -> dict[str, str]:
    """Return what a backfill would do with the sums of a stage and each of its ancestors; nothing is made.

    Raises
    ------
    HistoryError
        If the stage was not learned, or has sums already.
    """
    version = _version_of(project, stage)
    _, key = verified(project.store, version)
    if stage in key.get("sums", {}):
        _unfinished_backfill(project, version, key)
        return {stage: f"version {version.number} has its sums: models/{stage} would be restored"}
    found: dict[str, str] = {}
    for name in (*project.config.ancestors(stage), stage):
        _, key = verified(project.store, _version_of(project, name))
        why = why_unavailable(project, name, key)
        kept = "its version has its sums" if name in key.get("sums", {}) else ""
        found[name] = kept or (f"left out: {why}" if why else "its training cells would be summed")
    return found


def _version_of(project: Project, stage: str) -> Version:
    if stage not in project.config.stages:
        raise HistoryError(f"no stage {stage!r} in params.yaml{there_are(stage, project.config.stages)}")
    version = project.learned(stage)
    if version is None:
        raise HistoryError(
            f"stage {stage!r} has no version as params.yaml describes it, so there is nothing to add sums "
            "to: `canal run` learns it, with sums where continual.method is combined or exact"
        )
    return version


def _unfinished_backfill(project: Project, version: Version, key: Key) -> int:
    """Return the number of the version without sums, if an interrupted call has to be completed.

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
        folders = (f"models/{stage}", f"metrics/{stage}", f"scores/{stage}")
        model = layout.model(stage)
        installed = (model / "key.json").is_file() and key_digest(model) == version.key
        if old and (not installed or any(path in one.what for one in log.findings for path in folders)):
            return old[0].number
    raise HistoryError(
        f"version {version.number} ({stage}) already has sums of {', '.join(key['sums'])}: nothing to do"
    )


@contextmanager
def _scratch_project(project: Project, stage: str) -> Iterator[Project]:
    """Yield a scratch project with own models and metrics, which link to those of the stage's ancestors.

    Models and metrics of ancestors are restored where the project's folder lacks them.
    """
    with project.mirrored("backfill", ("models", "metrics")) as own:
        for name in project.config.ancestors(stage):
            version = _version_of(project, name)
            model, metrics = project.layout.model(name), project.layout.metrics(name)
            if not (model / KEY_FILE).is_file():
                restore_model(project.store, version, model)
            if not (metrics / "evaluation.json").is_file():
                restore_metrics(project.store, version, metrics)
            own.model(name).symlink_to(model)
            own.metrics(name).symlink_to(metrics)
        yield Project(own, project.config)


def _write_version(project: Project, scratch: Project, version: Version, notice: Notice) -> None:
    """Write model and metrics of the version with sums into the scratch project."""
    stage = version.stage
    sums, batches = _collect_sums(project, stage, notice)
    folder, key = verified(project.store, version)
    labels = read_names(folder / "model", LABELS)
    validation = project.cells(stage, "validation", _genes(folder)).of_types(labels)
    annotator = backfilled(folder, stage, validation, sums, project.config)
    with new_folder(scratch.layout.model(stage)) as target:
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
    notice(f"{stage}: evaluating network and sums together")
    with new_folder(scratch.layout.metrics(stage)) as target:
        write_evaluation(target, evaluate_stage(scratch, stage))


def _collect_sums(project: Project, stage: str, notice: Notice) -> tuple[StageSums, Sums | None]:
    """Return the sums of a stage and its ancestors, and the stage's own sums by batch.

    Sums of the newest ancestor that keeps some are reused; the others are computed where cells still exist.
    """
    names = (*project.config.ancestors(stage), stage)
    learned = {name: verified(project.store, _version_of(project, name)) for name in names}
    kept = [StageSums.load(folder, list(key["sums"])) for folder, key in learned.values() if "sums" in key]
    known, batches = (kept[-1] if kept else None), None
    for name, (folder, key) in learned.items():
        if known is not None and name in known.stages:
            continue
        if why := why_unavailable(project, name, key):
            notice(f"{name}: left out of the sums: {why}")
            continue
        notice(f"{name}: summing its training cells")
        known = known or StageSums(first_basis(project, name, _genes(folder)))
        own, batches, missing = add_up_stage(project, name, known.basis)
        known = known.plus(name, own, missing)
    if known is None or stage not in known.stages:
        raise HistoryError(
            f"the cells of {stage} are gone (prepared/ lacks them, or holds other cells than it was learned "
            "from), so its sums cannot be computed: restore them (dvc pull, dvc checkout), or start sums "
            "with the next stage, by continual.method: combined"
        )
    ordered = {name: known.stages[name] for name in names if name in known.stages}
    return StageSums(known.basis, ordered, known.missing), batches


def _genes(folder: Path) -> tuple[str, ...]:
    return read_names(folder / "model", GENES)


def _install(project: Project, version: Version) -> None:
    """Restore a version into models/ and metrics/, and commit it to dvc.lock: DVC then finds it unchanged."""
    layout, stage = project.layout, version.stage
    restore_model(project.store, version, layout.model(stage))
    restore_metrics(project.store, version, layout.metrics(stage))
    write_scores(layout, project.config, stage)
    commit_to_lock(project.store, [f"{step}@{stage}" for step in STAGE_STEPS], "run `canal run`, which does")


def commit_to_lock(store: Store, steps: Sequence[str], way_out: str) -> None:
    """Commit steps' outputs to dvc.lock at once; see `lock_writer`."""
    with lock_writer(store, way_out) as commit:
        commit(steps)


@contextmanager
def lock_writer(store: Store, way_out: str) -> Iterator[Callable[[Sequence[str]], None]]:
    """Give a function that commits steps' outputs to dvc.lock, so that DVC finds them unchanged.

    Steps that never ran, or that dvc.yaml has no longer, are passed over. DVC is imported meanwhile, in a
    process of its own, which takes seconds.

    Raises
    ------
    CanalError
        By the function, if DVC cannot; the message ends with ``way_out``.
    """
    layout = store.layout
    if not (layout.root / LOCK).is_file() or not (layout.root / ".dvc").is_dir():
        yield lambda steps: None
        return
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMIT, str(store.lock_file(_WRITING))],
        cwd=layout.root, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def commit(steps: Sequence[str]) -> None:
        complete_project(layout.root)
        kept = keep_locks(store)
        lock = parse_yaml((layout.root / LOCK).read_text(encoding="utf-8"), LOCK)["stages"]
        _, said = process.communicate(
            "\n".join(name for name in steps if name in lock or name.endswith(".dvc"))
        )
        shutil.rmtree(kept)
        if process.returncode:
            raise CanalError(
                f"what is new is registered and restored, but DVC could not commit it to {LOCK}: "
                f"{said.strip()[-500:]}: {way_out}"
            )

    try:
        yield commit
    finally:
        if process.poll() is None:  # nothing was committed
            process.kill()
            process.communicate()


def keep_locks(store: Store) -> Path:
    """Keep dvc.lock and data.dvc in a folder, which is returned, or bring back what a kill cut short.

    DVC writes both in place: killed meanwhile, it leaves a part of them. A process of DVC that a killed
    command has left is waited for.

    Raises
    ------
    RegistryError
        If it does not end within minutes.
    """
    layout = store.layout
    kept = layout.private / "locks" / "dvc"
    with store.lock(_WRITING):
        for path in (layout.root / LOCK, layout.root / "data.dvc"):
            copy = kept / path.name
            source, target = (copy, path) if copy.is_file() and _is_cut(path, copy) else (path, copy)
            if source.is_file():
                with new_file(target) as temporary:
                    shutil.copyfile(source, temporary)
    return kept


def _is_cut(path: Path, before: Path) -> bool:
    """Whether a file of DVC lacks steps or outputs that it had before, or does not end where it should."""
    if not path.is_file() or not path.read_bytes().endswith(b"\n"):
        return True
    try:
        documents = [parse_yaml(one.read_text(encoding="utf-8"), one.name) for one in (path, before)]
        # The outputs of each step of dvc.lock, or of a file such as data.dvc, which has no steps.
        now, then = (
            {name: len(step.get("outs", ())) for name, step in one.get("stages", {"": one}).items()}
            for one in documents
        )
    except (ConfigError, UnicodeDecodeError, AttributeError, TypeError):
        return True
    return any(now.get(name, -1) < number for name, number in then.items())


def _result(project: Project, version: Version, before: int) -> Backfilled:
    """Return the result for a version with sums."""
    from canal.model.storage import read_names

    folder, key = verified(project.store, version)
    names = project.config.summed_stages(version.stage)
    sums = StageSums.load(folder, names)
    assert sums is not None  # noqa: S101 - its key names them
    cells = {name: one.n_cells for name, one in sums.stages.items()}
    gone = tuple(name for name in names if name not in cells)
    lacking = sums.lacking(read_names(folder / "model", LABELS))
    return Backfilled(version.stage, before, version.number, cells, gone, lacking)
