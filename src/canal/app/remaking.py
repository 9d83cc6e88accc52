"""Versions that are made from sums instead of being trained: `canal unlearn` and `canal merge`.

They are written in a scratch project, registered from there and restored here; params.yaml asks for them
last, so that a second call does whatever a kill left undone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from canal.app.backfilling import STAGE_STEPS
from canal.app.creating import complete_project
from canal.app.declaring import LABELS_FILE
from canal.app.learning import evaluate_stage
from canal.app.project import Project
from canal.app.versions import registry_sync
from canal.config.layout import Layout
from canal.config.sections import BACKBONE
from canal.config.yaml_file import parse, save
from canal.continual.bank import PROBE, ParentState, Probe
from canal.continual.cells import LabelledCells
from canal.continual.evaluation import write_evaluation
from canal.continual.stage import StageArtifacts
from canal.core.errors import HistoryError
from canal.core.files import new_folder, read_json, write_json
from canal.model.annotator import GENES
from canal.model.storage import read_names
from canal.registry.manifest.stage_request import request_facts, sums_facts
from canal.registry.manifest.version_folder import Key, write_key
from canal.registry.promotion.promotion import Decision
from canal.registry.store.database import Version
from canal.registry.versions.history import restore_file, restore_metrics, restore_model, verified
from canal.report.collect import write_scores
from canal.runtime.startup import own_code
from canal.tuning.document import TUNED_FILE

_INPUTS = ("split", "validation")
_KEPT_FACTS = ("stage", "data", "panel", "verdict", "merged", "unlearned")
_STUDY_FACTS = ("tuned", "choice")

WriteSplit = Callable[[Layout, str, Path], None]
"""Writes a stage's split into a scratch project, given the artifacts of its version."""


@contextmanager
def alone(project: Project, dry_run: bool) -> Iterator[tuple[Project, str]]:
    """Give the project as params.yaml has it now, and that text, while no other command makes versions anew.

    Whoever waited for another one goes on from what it has left.
    """
    with project.store.lock("remake", needed=not dry_run):
        if not dry_run:
            complete_project(project.layout.root)
        text = project.layout.params.read_text(encoding="utf-8")
        yield Project(project.layout, parse(text)), text


@contextmanager
def scratch_project(
    project: Project, wanted: Project, purpose: str, write_split: WriteSplit
) -> Iterator[Project]:
    """Yield a scratch project with own models, metrics and splits; what ``wanted`` has learned is in them."""
    with project.mirrored(purpose, ("models", "metrics", "splits")) as own:
        for stage in wanted.config.stages:
            version = project.learned(stage)
            if version is not None:
                write_split(own, stage, verified(project.store, version)[0])
        for stage in (BACKBONE, *wanted.config.stages):
            version = wanted.learned(stage)
            if version is not None:
                restore_model(wanted.store, version, own.model(stage))
                if stage != BACKBONE:
                    restore_metrics(wanted.store, version, own.metrics(stage))
        yield Project(own, wanted.config)


def copy_split(own: Layout, stage: str, folder: Path) -> None:
    """Write a stage's recorded split into a scratch project."""
    for suffix in (".csv", ".json"):
        shutil.copyfile(folder / "split" / f"cells{suffix}", own.split(stage).with_suffix(suffix))


def kept_facts(key: Key, network: bool = False) -> dict[str, Any]:
    """Return the facts that a new version takes over from the key of the old one, and from its network."""
    names = (*_KEPT_FACTS, *(_STUDY_FACTS if network else ()))
    return {name: key[name] for name in names if name in key}


def write_backbone(project: Project, scratch: Project, facts: Mapping[str, Any]) -> None:
    """Write the model folder of a lineage's start into the scratch project, without its network."""
    old = project.learned(BACKBONE)
    if old is None:
        raise HistoryError("the backbone is not learned as params.yaml describes it: run `canal run` first")
    folder, key = verified(project.store, old)
    with new_folder(scratch.layout.model(BACKBONE)) as target:
        write_json(target / "history.json", {"method": "exact", "epochs": []})
        shutil.copyfile(folder / "panel.json", target / "panel.json")
        request = request_facts(scratch.layout, scratch.config, BACKBONE)
        write_key(target, kept_facts(key) | request | dict(facts), None)


def state_before(scratch: Project, stage: str, n_genes: int) -> ParentState:
    """Return the parent state that a remade stage takes over: probe sets of earlier stages."""
    parent = scratch.config.stages[stage].parent
    if parent == BACKBONE:
        return ParentState.none(n_genes)
    before = scratch.layout.model(parent)
    state = ParentState.load(before, read_names(before / "model", GENES), scratch.config)
    return state.widened(n_genes)


def validation_cells(
    scratch: Project, stage: str, folder: Path, genes: tuple[str, ...], gone: Collection[str] = ()
) -> LabelledCells:
    """Return a stage's validation cells; where its prepared cells are gone, those of its probe set.

    ``folder`` holds the stage's old version, of whose probe set the cells ``gone`` are left out.
    """
    if scratch.available(stage):
        return scratch.cells(stage, "validation", genes)
    probe = Probe.load(folder / PROBE, genes).cells
    rows = [row for row, name in enumerate(probe.stages) if name == stage]
    return probe.take([row for row in rows if probe.cell_ids[row] not in gone])


def write_version(
    scratch: Project,
    stage: str,
    artifacts: StageArtifacts,
    inputs: Path,
    facts: Mapping[str, Any],
    parent: str,
) -> None:
    """Write model folder, key and measures of a stage into the scratch project.

    Parameters
    ----------
    inputs
        Artifacts of the version whose verdict it keeps; its split is that of the scratch project.
    facts, parent
        What key.json says beside the sums, and the digest of the parent's key.
    """
    with new_folder(scratch.layout.model(stage)) as target:
        artifacts.save(target)
        # Pages of the old version's gate name cells that may have left, and are no files of a model.
        for name in _INPUTS:
            shutil.copytree(inputs / name, target / name, ignore=shutil.ignore_patterns("data_docs"))
        # The parent's sums contradict the label of some cells: those that have left are no longer named.
        kept = set(scratch.split(stage)["cell_id"])
        labels = read_json(target / LABELS_FILE) if (target / LABELS_FILE).is_file() else {}
        contradicted = labels.get("contradicted", {}).get("cells", [])
        if any(one["cell_id"] not in kept for one in contradicted):
            labels["contradicted"]["cells"] = [one for one in contradicted if one["cell_id"] in kept]
            write_json(target / LABELS_FILE, labels)
        if scratch.config.study(stage) is not None:
            shutil.copyfile(inputs / TUNED_FILE, target / TUNED_FILE)
        for suffix in (".csv", ".json"):
            shutil.copyfile(
                scratch.layout.split(stage).with_suffix(suffix), target / "split" / f"cells{suffix}"
            )
        write_key(target, dict(facts) | sums_facts(artifacts.sums), parent)
    with new_folder(scratch.layout.metrics(stage)) as target:
        write_evaluation(target, evaluate_stage(scratch, stage))


def register(
    wanted: Project,
    scratch: Project,
    decision: Decision,
    drawn: Callable[[str], Path | None] = lambda stage: None,
) -> None:
    """Register what was written into the scratch project; the ledger says who decided it and why.

    ``drawn`` returns the folder of a stage's figures where they are drawn; others are drawn here.
    """
    registry_sync(wanted, decision.sign, scratch.layout, decision, drawn)


_DRAW = """
import sys
from pathlib import Path
from canal.config.layout import Layout
from canal.core.files import new_folder
from canal.report.collect import draw_figures
root, into = map(Path, sys.argv[1:])
for line in sys.stdin:
    stage = line.removesuffix("\\n")
    with new_folder(into / stage) as temporary:
        draw_figures(Layout(root), stage, temporary)
    print(stage, flush=True)
"""


class FiguresAhead:
    """Draws the figures of remade stages in a process of its own, while this one makes the next version.

    Drawing takes as long as solving. What that process has not drawn is drawn here, when it is asked for.
    """

    def __init__(self, scratch: Project) -> None:
        self._into = scratch.layout.root / "drawn"
        self._into.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _DRAW, str(scratch.layout.root), str(self._into)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            encoding="utf-8", env=own_code(),
        )  # fmt: skip
        self._asked: list[str] = []

    def begin(self, stage: str) -> None:
        """Have the figures of a stage drawn whose files are written."""
        self._asked.append(stage)
        with suppress(OSError):  # that process has ended
            print(stage, file=self._process.stdin, flush=True)

    def folder(self, stage: str) -> Path | None:
        """Return the folder of a stage's figures, after waiting for it; None where they were not drawn."""
        while stage in self._asked:
            if not (line := cast("IO[str]", self._process.stdout).readline()):
                return None
            self._asked.remove(line.removesuffix("\n"))
        folder = self._into / stage
        return folder if folder.is_dir() else None

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def figures_ahead(scratch: Project) -> Iterator[FiguresAhead]:
    """Give what draws figures of stages in a scratch project while others are made."""
    figures = FiguresAhead(scratch)
    try:
        yield figures
    finally:
        figures.end()


def take_over(
    wanted: Project, texts: tuple[str, str], stages: Sequence[str], commit: Callable[[Sequence[str]], None]
) -> dict[str, int]:
    """Restore registered versions here, commit them to dvc.lock, and let params.yaml ask for them.

    Parameters
    ----------
    texts
        Of params.yaml, before and after it.
    commit
        As `canal.app.backfilling.lock_writer` gives it.

    Raises
    ------
    HistoryError
        If one was not registered.
    ConfigError
        If params.yaml was changed meanwhile.
    """
    new: dict[str, int] = {}
    for stage in stages:
        version = wanted.learned(stage)
        if version is None:
            raise HistoryError(f"{stage}: the new version was not registered: call the command again")
        _install(wanted, version)
        new[stage] = version.number
    steps = [f"{step}@{stage}" for stage in stages for step in STAGE_STEPS]
    commit(["split", *steps])
    save(wanted.layout.params, texts[1], texts[0])
    return new


def _install(project: Project, version: Version) -> None:
    """Restore a version into models/, metrics/, scores/ and splits/."""
    layout, stage = project.layout, version.stage
    restore_model(project.store, version, layout.model(stage))
    restore_metrics(project.store, version, layout.metrics(stage))
    for suffix in (".csv", ".json"):
        restore_file(project.store, version, f"split/cells{suffix}", layout.split(stage).with_suffix(suffix))
    write_scores(layout, project.config, stage)
