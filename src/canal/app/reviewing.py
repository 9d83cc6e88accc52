"""`canal report V`: what a person needs to know before a version may serve, gathered into one document.

Everything comes from the version's own files, the ledger and the store, so that imported, merged and
unlearned versions have a page, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.annotation.markers import model_markers
from canal.app.cell_layout import CellMap
from canal.app.models import LoadedModels
from canal.app.project import Project
from canal.app.scoring import (
    Scored,
    answers_by_type,
    changed_answers,
    gather_evidence,
    novelty_counts,
    parent_of,
    recall_and_precision,
    recorded_predictions,
)
from canal.app.versions import decisions, evaluations, write_page
from canal.core.errors import RegistryError, tell
from canal.core.files import read_json
from canal.core.progress import doing
from canal.io.h5ad import open_h5ad
from canal.memory.stage_sums import StageSums
from canal.quality.verdict import with_label_rules
from canal.registry.ledger.ledger_rules import CANDIDATE, CHAMPION
from canal.registry.manifest.card import README, Card, declared, read_sources, training_data
from canal.registry.manifest.version_folder import method_view, read_key, read_record
from canal.registry.promotion import promotion
from canal.registry.promotion.moves import ledger_of
from canal.registry.promotion.policy import judge, power_text
from canal.registry.store.database import Version
from canal.registry.store.shown import read_shown
from canal.registry.versions.history import current_evaluation
from canal.report.beside import Beside, library, library_path, make_library
from canal.report.version_page import write_version_page
from canal.tuning.document import TUNED_FILE

if TYPE_CHECKING:
    import pandas as pd

    from canal.app.promoting import Judgement

Document = dict[str, Any]
PARENT = "parent"
TRAINING = "training.html"
"""The page about how each stage was trained."""
FORMAT = 1
_MARKERS = 8
"""Genes shown of each type."""
_PARTS = ("model", "teacher", "bank", "probe", "sums", "basis")
"""Folders of a version whose size is shown."""


def write_pages(
    project: Project,
    output: Path,
    wanted: str | None = None,
    against: str | None = None,
    training: bool = False,
) -> tuple[Path, Document]:
    """Write a version's page and model card into a folder.

    Parameters
    ----------
    training
        Whether to write the page of how the stages here were trained, too, which takes as long as all else.
        Where no version is registered yet, it is all there is, as ``index.html``.

    Returns
    -------
    tuple
        The page's path, and the document that it shows; empty without a version.

    Raises
    ------
    CanalError
        If there is no such version, or its files are damaged or were erased.
    """
    if wanted is None and not any(one.ready for one in project.store.versions()):
        return write_page(project, output / "index.html"), {}
    drawing = Beside(library_path(), make_library)
    document, mapped = review(project, sides(project, wanted, against))
    if training and evaluations(project):
        write_page(project, output / TRAINING)
        document["training"] = TRAINING
    return _write(document, mapped, drawing, output), document


def write_decision(project: Project, judgement: Judgement) -> Path | None:
    """Write the page of a judged version into ``report/`` of the project; return its path.

    `canal promote` calls it once it has decided, so that the page says who serves and why, or what would
    have to change. All that takes long was gathered for the judgement, and genes and map are left out unless
    their layout is kept, as the step that evaluates a stage keeps that of many cells: a second is left, and
    a person who promotes need not wait for more. What goes wrong is told, and None returned: a page is no
    reason to fail a promotion.
    """
    try:
        drawing = Beside(library_path(), make_library)
        version = project.store.version(str(judgement.version.number))
        role = "" if judgement.compared is None else CHAMPION if judgement.champion else PARENT
        document, mapped = review(project, Sides(version, judgement.compared, role), judgement)
        return _write(document, mapped, drawing, project.layout.root / "report")
    except Exception as error:
        tell(f"the page could not be written ({error}): canal report {judgement.version.number}")
        return None


def _write(document: Document, mapped: Document | None, drawing: Beside, output: Path) -> Path:
    _card(document).write(output / README)
    kept = drawing.wait()
    script = library() if kept is None else kept.read_text(encoding="utf-8")
    return write_version_page(document, mapped, script, output / "index.html")


def _card(document: Document) -> Card:
    version = document["version"]
    name = f"{version['model']} {version['number']}"
    return Card(name, version["stage"], version["key"], document["evaluation"], document["sources"])


@dataclass(frozen=True)
class Sides:
    """A version, and the one it is compared with.

    Attributes
    ----------
    version : Version
    other : Version or None
    role : str
        What the other one is: ``champion``, ``parent`` or empty for one that was named.
    """

    version: Version
    other: Version | None
    role: str


def sides(project: Project, wanted: str | None = None, against: str | None = None) -> Sides:
    """Return the version that a page is about, and the one that it is compared with.

    Parameters
    ----------
    wanted
        Number or alias; by default the candidate, else the newest version.
    against
        Number, alias, or ``parent``; by default the champion, of the champion itself and where none serves
        the parent.

    Raises
    ------
    RegistryError
        If there is no such version, or both are one.
    """
    store = project.store
    ready = [one for one in store.versions() if one.ready]
    if not ready:
        raise RegistryError("no version is registered yet: `canal run` learns and registers the first")
    newest = next((one for one in ready if CANDIDATE in one.aliases), ready[-1])
    version = newest if wanted is None else store.version(wanted)
    if against is None:
        champion = promotion.holder(store, CHAMPION)
        if champion is not None and champion.number != version.number:
            return Sides(version, champion, CHAMPION)
    if against in (None, PARENT):
        return Sides(version, parent_of(project, version), PARENT)
    other = store.version(str(against))
    if other.number == version.number:
        raise RegistryError(
            f"version {version.number} cannot be compared with itself: name another one with --against"
        )
    return Sides(version, other, CHAMPION if CHAMPION in other.aliases else "")


@doing("judging the version by the policy, and comparing it")
def review(
    project: Project, pair: Sides, judgement: Judgement | None = None
) -> tuple[Document, Document | None]:
    """Return the document of a version's page, and the map of its cells (None where no cells are kept).

    Parameters
    ----------
    pair
        The version, and the one that it is compared with.
    judgement
        A judgement of this version beside this other one, whose evidence is used; else it is judged now. Of a
        judged version, genes and map are left out unless the layout of its cells is kept.

    Raises
    ------
    CanalError
        If the version's files are damaged, or were erased.
    """
    store, version, policy = project.store, pair.version, project.config.policy
    folder = store.artifacts(version)
    key, record = read_key(folder), read_record(folder)
    gathered = None if judgement is None else judgement.gathered
    loaded = LoadedModels(project) if gathered is None else gathered.loaded
    brief = judgement is not None and not CellMap.is_laid_out(project, version)
    cells = None if brief else CellMap(loaded, version, folder)
    gathered = gathered or gather_evidence(loaded, version, pair.other, "files")  # a page decides nothing
    evidence, scored = gathered.evidence, gathered.scored
    rulings = judge(policy, evidence) if judgement is None else judgement.rulings
    evaluation, compared = evidence.evaluation, evidence.comparison
    before, after = _answered(project, version, scored)
    ancestors = list(_ancestors(project, version))
    shown = {
        "format": FORMAT,
        "version": _about(version, key, record),
        "against": None if pair.other is None else _other(project, pair.other, pair.role),
        "decisions": decisions(ledger_of(store).entries(), version),
        "rulings": [ruling.to_json() for ruling in rulings],
        "power": power_text(policy, rulings),
        "policy": policy.model_dump(mode="json"),
        "evaluation": evaluation,
        "comparison": None if compared is None else compared.to_json(),
        "types": list(recall_and_precision(after, compared, policy.confidence)),
        "answers": list(answers_by_type(before, after)),
        "changed": list(changed_answers(before, after)),
        "novelty": novelty_counts(after),
        "gate": with_label_rules(evidence.verdict, _optional(folder / "validation" / "labels.json")),
        "history": _optional(folder / "history.json"),
        "tuned": _optional(folder / TUNED_FILE),
        "method": method_view(folder, key),
        "kept": _kept(folder, key),
        "cost": _cost(project, version, folder),
        "lineage": [_in_lineage(project, one, one_key) for one, one_key in ancestors],
        "training": None,
        "sources": list(_data(project, ancestors)),
    }
    shown["card"] = _card(shown).sections()
    if cells is None:
        return {**shown, "markers": None}, None
    markers = [one.to_json() for one in model_markers(loaded.of(version), _MARKERS)]
    return {**shown, "markers": markers}, cells.document(pair.other)


def _about(version: Version, key: Mapping[str, Any], record: Mapping[str, Any]) -> Document:
    return {
        "model": version.model,
        "number": version.number,
        "stage": version.stage,
        "aliases": list(version.aliases),
        "retired": version.retired,
        "imported": bool(version.imported),
        "created": datetime.fromtimestamp(version.created / 1000, UTC).isoformat(timespec="minutes"),
        "key": version.key,
        "record": version.record,
        "git_commit": record.get("git_commit"),
        "dirty": bool(record.get("dirty")),
        "unlearned": key.get("unlearned"),
        "merged": key.get("merged"),
        "data": key["data"],
        "choice": key.get("choice"),
    }


def _other(project: Project, other: Version, role: str) -> Document:
    return {
        "number": other.number,
        "stage": other.stage,
        "role": role,
        "aliases": list(other.aliases),
        "erased": other.erased,
        "evaluation": None if other.erased else current_evaluation(project.store, other),
    }


def _optional(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _answered(
    project: Project, version: Version, scored: Scored | None
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Return both versions' answers by stage, the newest first; the other's only where both were scored."""
    pairs = {} if scored is None else scored.answers
    after = {stage: both[1] for stage, both in pairs.items()} | recorded_predictions(project, version)
    stages = list(after)[::-1]
    before = {stage: pairs[stage][0] for stage in stages if stage in pairs}
    return before, {stage: after[stage] for stage in stages}


def _kept(folder: Path, key: Mapping[str, Any]) -> Document:
    """Return how many cells bank, probe and sums hold, by stage and type."""
    kept: Document = {}
    for name in ("bank", "probe"):
        path = folder / name / f"{name}.h5ad"
        if path.is_file():
            with open_h5ad(path) as file:
                pairs = Counter(zip(file.obs_column("stage"), file.obs_column("cell_type"), strict=True))
            kept[name] = [
                {"stage": stage, "cell_type": name, "n": n} for (stage, name), n in sorted(pairs.items())
            ]
    sums = StageSums.load(folder, list(key["sums"])) if "sums" in key else None
    if sums is not None:
        kept["sums"] = [
            {"stage": stage, "cell_type": name, "n": int(n)}
            for stage, one in sums.stages.items()
            for name, n in zip(one.types, one.counts, strict=True)
        ]
    return kept


def _ancestors(project: Project, version: Version) -> Iterator[tuple[Version, Document]]:
    """Yield the version and those that it was learned on with their keys, newest first, as far as here."""
    store = project.store
    known = {one.key: one for name in store.models for one in store.versions(name) if one.ready}
    one: Version | None = version
    while one is not None:
        key = read_key(store.artifacts(one))
        yield one, key
        one = known.get(key["parent"]) if key["parent"] else None


def _in_lineage(project: Project, one: Version, key: Mapping[str, Any]) -> Document:
    folder = project.store.artifacts(one)
    metrics = {} if one.erased else _optional(folder / "metrics" / "evaluation.json") or {}
    return {
        "model": one.model,
        "version": one.number,
        "stage": one.stage,
        "key": one.key,
        "data": key.get("data"),
        "average_accuracy": metrics.get("average_accuracy"),
        "row": metrics.get("row"),
    }


def _data(project: Project, ancestors: Sequence[tuple[Version, Document]]) -> Iterator[Document]:
    """Yield what the model card says of the data of each stage, oldest first, from the versions' files."""
    store = project.store
    if not any(one.parent for one, _ in ancestors) and (
        said := read_sources(store.artifacts(ancestors[0][0]))
    ):
        yield from map(dict, said)  # of an imported version, whose ancestors are not registered here
        return
    for one, key in reversed(ancestors):
        if one.model == store.names.model and not one.erased:
            source = key["data"]["source"]
            said_here = declared(project.config, source)
            yield from map(dict, training_data(store.artifacts(one), one.stage, source, said_here))


def _cost(project: Project, version: Version, folder: Path) -> Document:
    """Return seconds of each step of the version's stage, as MLflow has them, and bytes of what it keeps."""
    seconds: dict[str, float] = {}
    for run in read_shown(project.store).below(version.run_id):
        for step in run.steps if run.ended else ():
            seconds[step] = seconds.get(step, 0.0) + (run.ended - run.started) / 1000
    sizes: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            part = path.relative_to(folder).parts[0]
            sizes[part] = sizes.get(part, 0) + path.stat().st_size
    return {"seconds": seconds, "bytes": {name: sizes[name] for name in _PARTS if name in sizes}}
