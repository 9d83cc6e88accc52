"""The versions of a project: listed, shown, registered, rebuilt, exported, imported, drawn on one page.

And what the ledger says of a version for ever: who let it serve, why, past which rules; who retired it.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from canal.app.project import Project
from canal.config.layout import Layout
from canal.config.sections import BACKBONE
from canal.core.errors import CanalError, RegistryError
from canal.core.files import new_folder, read_json
from canal.registry.ledger.ledger import Entry, Sign
from canal.registry.ledger.mirror import user
from canal.registry.manifest.version_folder import key_digest, method_view, read_key, read_record
from canal.registry.manifest.version_folder import schema as schema
from canal.registry.promotion.moves import ledger_of
from canal.registry.store.database import Version
from canal.registry.store.store import FIGURES
from canal.registry.transfer.exchange import export_parcel as export_parcel
from canal.registry.transfer.exchange import import_parcel as import_parcel
from canal.registry.versions.publish import Synced, sync
from canal.registry.versions.rebuild import DrawFigures, RebuildOptions, Rebuilt, rebuild, rebuild_lost
from canal.report.collect import backbone_history, collect, draw_figures
from canal.report.page import write_report

Document = dict[str, Any]


def version_rows(project: Project) -> list[Document]:
    """Return one row a ready version, oldest first: number, stage, aliases, figures, parent, key, standing.

    Raises
    ------
    LedgerError
        If the ledger does not hold: what it says of a version would not be the truth.
    """
    entries = ledger_of(project.store).entries()
    return [_row(project, version, entries) for version in project.store.versions() if version.ready]


def version_view(project: Project, wanted: str) -> Document:
    """Return everything that is known of one version.

    Raises
    ------
    RegistryError
        If there is no such ready version, or the ledger does not hold.
    """
    version = project.store.version(wanted)
    entries = ledger_of(project.store).entries()
    folder = project.store.artifacts(version)
    key, record = read_key(folder), read_record(folder)
    return {
        **_row(project, version, entries),
        "model": version.model,
        "created": datetime.fromtimestamp(version.created / 1000, UTC).isoformat(timespec="seconds"),
        "branch": version.branch,
        "labels": read_json(folder / "model" / "labels.json"),
        "parent_key": key["parent"],
        "key": version.key,
        "record": version.record,
        "data": key["data"],
        "request": key["request"],
        "method": method_view(folder, key),
        "git_commit": record["git_commit"],
        "dirty": record["dirty"],
        "run": record["run"],
        "imported": version.imported,
        "evaluation": read_json(folder / "metrics" / "evaluation.json"),
        "artifacts": str(folder),
    }


def evaluations(project: Project) -> list[Document]:
    """Return evaluation.json of every stage in params.yaml that was measured, oldest first."""
    paths = [project.layout.metrics(stage) / "evaluation.json" for stage in project.config.stages]
    return [read_json(path) for path in paths if path.is_file()]


def _row(project: Project, version: Version, entries: Sequence[Entry]) -> Document:
    accuracy, average, types, parent_stage = _numbers(project, version)
    return {
        "version": version.number,
        "stage": version.stage,
        "aliases": list(version.aliases),
        "accuracy": accuracy,
        "average_accuracy": average,
        "types": types,
        "parent": int(version.parent) if version.parent and parent_stage != BACKBONE else None,
        "key": version.key,
        **decisions(entries, version),
    }


def _numbers(project: Project, version: Version) -> tuple[float | None, float | None, int, str]:
    """Return accuracy on the own stage, average, number of types and parent stage of a version.

    They are read from its files where these lie on this disk, else from its tags: a list of versions fetches
    none of them whole.
    """
    told = version.figures
    if len(told) == len(FIGURES) and project.store.local_artifacts(version) is None:
        try:
            numbers = [float(told[name]) if told[name] else None for name in FIGURES[:2]]
            return numbers[0], numbers[1], int(told["types"]), told["parent_stage"]
        except ValueError:
            pass  # somebody changed a tag; the files know
    folder = project.store.artifacts(version)
    path = folder / "metrics" / "evaluation.json"
    if not path.is_file():
        raise RegistryError(
            f"version {version.number} holds no metrics/evaluation.json; its artifacts are damaged"
        )
    evaluation = read_json(path)
    parent = read_key(folder)["request"]["parent"]["stage"]
    own = evaluation["row"][version.stage]
    return own, evaluation["average_accuracy"], len(evaluation["labels"]), parent


def decisions(entries: Sequence[Entry], version: Version) -> Document:
    """Return what was decided about a version, oldest first, as a JSON document.

    ``served`` holds each promotion and rollback to it, with the rules that were overridden; ``overrides`` all
    rules that ever were; ``retirement`` who retired it and why, or None. A version is found by its key: it
    keeps what was decided about it where a rebuilt registry gave it another number.
    """
    mine = [
        entry for entry in entries if entry.model == version.model and entry.document["key"] == version.key
    ]
    served = [
        {**_decided(entry), "overrides": list(entry.document["details"].get("overrides", ()))}
        for entry in mine
        if entry.kind in ("promote", "rollback")
    ]
    retired = [_decided(entry) for entry in mine if entry.kind == "retire"]
    return {
        "served": served,
        "overrides": sorted({rule for one in served for rule in one["overrides"]}),
        "retired": version.retired or bool(retired),
        "retirement": retired[-1] if retired else None,
    }


def _decided(entry: Entry) -> Document:
    document = entry.document
    return {
        "entry": entry.seq,
        "kind": entry.kind,
        "time": document["time"],
        "who": document["who"],
        "why": document["why"],
    }


def registry_sync(project: Project, sign: Sign | None = None, made_in: Layout | None = None) -> Synced:
    """Register every finished stage that the registry does not know; ``sign`` signs the ledger's entries.

    Stages lie in the project's folder, or in that of ``made_in``.

    A store without versions beside a ledger that names some was lost, or never came along to this clone: it
    is made again first, with the numbers and aliases that the ledger has; a rebuilding that was interrupted
    is gone on with. A store that came from another folder is told where its files lie now.
    """
    moved = project.store.settle()
    wishes = _wishes(project, None, "the store had no versions, or not all of them", sign=sign)
    if rebuilt := rebuild_lost(project.store, wishes, _figures_for(project)):
        return Synced(rebuilt.made, (), moved)
    layout = made_in or project.layout
    synced = sync(project.store, layout, project.config, lambda stage: _drawn(project, stage, layout), sign)
    return replace(synced, moved=moved)


def registry_rebuild(
    project: Project,
    by: str | None,
    why: str | None,
    also: Sequence[Path] = (),
    without: Sequence[int] = (),
    sign: Sign | None = None,
) -> Rebuilt:
    """Make a lost registry again; see `canal.registry.versions.rebuild`.

    Parameters
    ----------
    by, why
        Who and why, for the ledger; by default this user, since the store was lost.
    also
        Other project folders whose models/ and metrics/ are looked through.
    without
        Numbers of versions that are given up.
    sign
        Signs the ledger's entries.
    """
    return rebuild(project.store, _wishes(project, by, why, also, without, sign), _figures_for(project))


def _drawn(project: Project, stage: str, made_in: Layout | None = None) -> Path:
    """Return the folder of a stage's figures; they are drawn where evaluate did not run on this machine."""
    layout = made_in or project.layout
    folder = project.layout.figures(key_digest(layout.model(stage)))
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            draw_figures(layout, stage, temporary)
    return folder


def _wishes(
    project: Project,
    by: str | None,
    why: str | None,
    also: Sequence[Path] = (),
    without: Sequence[int] = (),
    sign: Sign | None = None,
) -> RebuildOptions:
    folders = [Layout(path.resolve()) for path in also]
    if missing := [str(one.root) for one in folders if not (one.root / "models").is_dir()]:
        raise RegistryError(f"--also {missing[0]}: there is no folder models/; name a project folder")
    return RebuildOptions(
        by or user(), why or "the store was lost", (project.layout, *folders), without, sign
    )


def _figures_for(project: Project) -> DrawFigures:
    return lambda layout, stage: _drawn(project, stage, layout)


def write_page(project: Project, output: Path) -> Path:
    """Write one offline page of the run with its figures into a folder; return its path.

    Raises
    ------
    CanalError
        If no stage was measured yet.
    """
    stages = collect(project.layout, list(project.config.stages), version_rows(project))
    if not stages:
        raise CanalError("nothing is measured yet; run `make run` first")
    title = project.config.registry.model
    return write_report(stages, output / "index.html", title, backbone_history(project.layout))
