"""`canal sums backfill`: a version that was learned without sums gains them; its network stays as it is."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.errors import CanalError, HistoryError, RegistryError
from canal.files import new_folder
from canal.project import Project
from canal.registry.facts import sums_facts
from canal.registry.history import restore_model, verified
from canal.registry.key import KEY_FILE, Key, read_key, write_key

if TYPE_CHECKING:
    from canal.continual.cells import LabelledCells
    from canal.memory.basis import Basis
    from canal.memory.stages import StageSums
    from canal.memory.sums import Sums
    from canal.registry.ledger import Sign
    from canal.registry.store import Version

Notice = Callable[[str], None]

_STEPS = ("finetune", "finetune-tuned", "evaluate")
_NOT_COPIED = ("sums", "batches", KEY_FILE)
_FACTS_MADE_ANEW = ("format", "files", "parent", "teacher", "basis", "sums", "backfilled", "memory")


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
        return {
            "stage": self.stage,
            "before": self.before,
            "after": self.after,
            "sums": self.sums,
            "gone": list(self.gone),
            "lacking": list(self.lacking),
        }


def backfill(project: Project, stage: str, notice: Notice, sign: "Sign | None" = None) -> Backfilled:
    """Make a version of ``stage`` with sums from the prepared cells of it and of its ancestors.

    The network is the old version's, bit for bit; network and sums are combined on the stage's validation
    cells and its probe. The new version answers to the same request, so nothing is learned again, and the
    next stage is learned on it.

    Raises
    ------
    HistoryError
        If the stage was never learned, has sums already, or the cells of all its stages are gone.
    """
    version = _version_of(project, stage)
    folder, key = verified(project.store, version)
    if stage in key.get("sums", {}):
        raise HistoryError(
            f"version {version.number} ({stage}) has sums of {', '.join(key['sums'])} already: nothing to do"
        )
    sums, batches, gone = _gathered(project, stage, notice)
    restore_model(project.store, version, project.layout.model(stage))
    with new_folder(project.layout.model(stage)) as target:
        lacking = _fill(project, stage, folder, target, sums, batches)
        facts = {name: value for name, value in key.items() if name not in _FACTS_MADE_ANEW}
        made = {"backfilled": version.key, "memory": project.config.memory.model_dump(mode="json")}
        write_key(target, facts | made | sums_facts(sums), key["parent"])
    notice(f"{stage}: measuring network and sums together")
    after = _registered(project, stage, sign)
    cells = {name: one.n_cells for name, one in sums.stages.items()}
    return Backfilled(stage, version.number, after, cells, gone, lacking)


def _version_of(project: Project, stage: str) -> "Version":
    if stage not in project.config.stages:
        raise HistoryError(f"no stage {stage!r} in params.yaml; there are {', '.join(project.config.stages)}")
    version = project.learned(stage)
    if version is None:
        raise HistoryError(f"stage {stage!r} was never learned: set continual.method, and learn it with sums")
    return version


def _gathered(
    project: Project, stage: str, notice: Notice
) -> tuple["StageSums", "Sums | None", tuple[str, ...]]:
    """Return the sums of a stage and its ancestors, the stage's own by batch, and whose cells are gone."""
    from canal.lessons import added_up
    from canal.memory.stages import StageSums

    known: StageSums | None = None
    batches, gone = None, []
    for name in (*project.config.ancestors(stage), stage):
        version = _version_of(project, name)
        folder, key = verified(project.store, version)
        kept = StageSums.load(folder, list(key["sums"])) if "sums" in key else None
        if kept is not None and name in kept.stages:
            known = kept if known is None else known.plus(name, kept.stages[name], kept.missing[name])
            continue
        if not _same_cells(project, name, key):
            notice(f"{name}: its cells are gone, so its sums cannot be made")
            gone.append(name)
            continue
        notice(f"{name}: adding up its training cells")
        basis = _first_basis(project, name, folder) if known is None else known.basis
        own, batches, missing = added_up(project, name, basis)
        known = (known or StageSums(basis)).plus(name, own, missing)
    if known is None or stage in gone:
        raise HistoryError(
            f"the cells of {', '.join(gone)} are gone (prepared/ lacks them, or holds others): no sums of "
            f"{stage} can be made. Sums begin with the next stage that is learned by the combined method"
        )
    return known, batches, tuple(gone)


def _same_cells(project: Project, stage: str, key: Key) -> bool:
    """Whether the prepared cells that a version was learned from are still there."""
    if not project.available(stage):
        return False
    return bool(project.prepared_digest(stage) == key["data"]["prepared_sha256"])


def _first_basis(project: Project, stage: str, folder: Path) -> "Basis":
    from canal.lessons import first_basis
    from canal.model.annotator import GENES
    from canal.model.storage import read_names

    return first_basis(project, stage, read_names(folder / "model", GENES))


def _fill(
    project: Project,
    stage: str,
    old: Path,
    target: Path,
    sums: "StageSums",
    batches: "Sums | None",
) -> tuple[str, ...]:
    """Write the model folder with sums into ``target``; return the types that the sums lack."""
    from canal.continual.stage import backfilled
    from canal.memory.stages import OWN_BATCHES

    for path in sorted((project.layout.model(stage)).iterdir()):
        if path.name in _NOT_COPIED or path.name == "model":
            continue
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, target / path.name)
    annotator = backfilled(old, stage, _validation(project, stage, old), sums, project.config)
    annotator.save(target / "model")
    sums.save(target)
    if batches is not None:
        batches.save(target / OWN_BATCHES)
    return sums.lacking(annotator.labels)


def _validation(project: Project, stage: str, folder: Path) -> "LabelledCells":
    from canal.model.annotator import GENES
    from canal.model.storage import read_names

    return project.cells(stage, "validation", read_names(folder / "model", GENES))


def _registered(project: Project, stage: str, sign: "Sign | None") -> int:
    """Measure the new model, tell DVC of it, register it, and return its number."""
    from canal.api import registry_sync
    from canal.continual.evaluation import write_evaluation
    from canal.measuring import measured

    layout = project.layout
    evaluation = measured(project, stage)
    with new_folder(layout.metrics(stage)) as folder:
        write_evaluation(folder, evaluation)
    if (layout.root / "dvc.lock").is_file():
        _tell_dvc(layout.root, stage)
    registry_sync(project, sign)
    wanted = read_key(layout.model(stage))
    version = project.learned(stage)
    if version is None or version.parent is None or wanted["parent"] is None:
        raise RegistryError(f"the version of {stage} with sums was not registered: run `canal registry sync`")
    return version.number


def _tell_dvc(root: Path, stage: str) -> None:
    """Let dvc.lock name the new model and measures, so that nothing is learned again for them."""
    from ruamel.yaml import YAML

    lock = YAML(typ="safe").load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    steps = [name for step in _STEPS if (name := f"{step}@{stage}") in lock]
    command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", *steps]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CanalError(f"dvc commit {' '.join(steps)} failed: {done.stderr.strip()[-500:]}")
