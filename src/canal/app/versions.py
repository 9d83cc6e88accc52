"""`canal versions`, `show`, `registry`, `export`, `import`, `report`: the registered versions of a project.

Each version comes with the ledger's decisions: who promoted or retired it, why, and with which overrides.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from canal.app.project import Project
from canal.config.layout import Layout
from canal.config.sections import BACKBONE
from canal.core.errors import CanalError, RegistryError, tell, there_are
from canal.core.files import new_folder, read_json
from canal.core.progress import doing
from canal.registry.ledger.joined import ledger_erased
from canal.registry.ledger.ledger import Entry, Sign
from canal.registry.ledger.mirror import user
from canal.registry.ledger.rulings import overridden_failures
from canal.registry.manifest.version_folder import (
    key_digest,
    method_view,
    parent_stage,
    read_key,
    read_record,
)
from canal.registry.manifest.version_folder import schema as schema
from canal.registry.promotion.moves import ledger_of
from canal.registry.promotion.promotion import Decision
from canal.registry.provenance.exposure import CellQuery as CellQuery
from canal.registry.provenance.exposure import CellsSeen, find_cells, find_exposures
from canal.registry.provenance.lineage import Graph, lineage
from canal.registry.provenance.registered import ancestry
from canal.registry.store.database import Version
from canal.registry.store.store import FIGURES
from canal.registry.transfer.exchange import Exported, export_bundle
from canal.registry.transfer.exchange import ExportOptions as ExportOptions
from canal.registry.transfer.exchange import import_bundle as import_bundle
from canal.registry.versions.history import current_evaluation
from canal.registry.versions.publish import Synced, sync
from canal.registry.versions.rebuild import DrawFigures, RebuildOptions, Rebuilt, rebuild, rebuild_lost
from canal.report.collect import backbone_history, collect, draw_figures
from canal.report.page import write_report
from canal.runtime.startup import quiet_libraries

Document = dict[str, Any]


@doing("reading the registered versions")
def version_rows(project: Project) -> list[Document]:
    """Return a row for each ready version, oldest first: number, aliases, metrics, parent, key, decisions.

    Raises
    ------
    LedgerError
        If the ledger is not valid: its decisions could not be trusted.
    """
    entries = ledger_of(project.store).entries()
    return [_row(project, version, entries) for version in project.store.versions() if version.ready]


def version_view(project: Project, wanted: str) -> Document:
    """Return everything that is known of one version.

    Raises
    ------
    RegistryError
        If there is no such ready version, or the ledger is not valid.
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
        "evaluation": current_evaluation(project.store, version),
        "artifacts": str(folder),
    }


def mlflow_pages(project: Project, port: int) -> int:
    """Run MLflow's pages of a project's store at this machine until they are ended; return the exit code.

    With canal's settings of libraries: MLflow would start eight more processes, of 1.9 GB, for jobs that
    canal does not have. The address goes by the environment, for it may hold a password. A `RegistryError` is
    raised where the store is a server, which has pages of its own, or does not exist yet.
    """
    store = project.store
    if store.uri.startswith(("http://", "https://")):
        raise RegistryError(f"the registry is a server with pages of its own: open {store.shown}")
    if not store.exists:
        raise RegistryError("nothing is registered yet, so there is no page: `canal run` registers versions")
    quiet_libraries()
    tell(f"MLflow's pages of {store.shown}: open http://127.0.0.1:{port} in a browser; Ctrl-C ends them")
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": store.uri}
    return subprocess.run(command, cwd=project.layout.root, env=environment, check=False).returncode


def output_schema(command: str) -> Document:
    """Return the JSON schema of a command's ``--json`` output, such as that of ``stage add``.

    Entries may be added to an output; those of the schema keep their names and meanings.

    Raises
    ------
    RegistryError
        If there is no such command, or it prints no JSON.
    """
    document = read_json(Path(__file__).with_name("schemas") / "outputs.json")
    if command not in document["commands"]:
        known = there_are(
            command, sorted(document["commands"]), "there are key, record and those of commands:"
        )
        raise RegistryError(f"no schema {command[:80]!r}{known}")
    found, definitions = document["commands"][command], document["$defs"]
    used: Document = {}
    while names := {*re.findall(r"#/\$defs/(\w+)", json.dumps([found, used]))} - used.keys():
        used |= {name: definitions[name] for name in names}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"canal {command} --json"}
    return {**head, **found, **({"$defs": used} if used else {})}


def evaluations(project: Project) -> list[Document]:
    """Return evaluation.json of every evaluated stage in params.yaml, oldest first."""
    paths = [project.layout.metrics(stage) / "evaluation.json" for stage in project.config.stages]
    return [read_json(path) for path in paths if path.is_file()]


def export_version(project: Project, wanted: str, path: Path, options: ExportOptions) -> Exported:
    """Write a version's bundle; its ``sources`` are the licences and citations of the data it learned from.

    Raises
    ------
    RegistryError
        As `canal.registry.transfer.exchange.export_bundle`.
    """
    version = project.store.version(wanted)
    named = {one.key["data"]["source"] for one in ancestry(project.store, version) if one.is_annotator}
    sources = {
        name: {"licence": one.licence, "citation": one.citation}
        for name, one in project.config.sources.items()
        if name in named and (one.licence or one.citation)
    }
    return export_bundle(project.store, wanted, path, replace(options, sources=sources))


def _row(project: Project, version: Version, entries: Sequence[Entry]) -> Document:
    accuracy, average, types, learned_on = _numbers(project, version)
    return {
        "version": version.number,
        "stage": version.stage,
        "aliases": list(version.aliases),
        "accuracy": accuracy,
        "average_accuracy": average,
        "types": types,
        "parent": int(version.parent) if version.parent and learned_on != BACKBONE else None,
        "key": version.key,
        **decisions(entries, version),
    }


def _numbers(project: Project, version: Version) -> tuple[float | None, float | None, int, str]:
    """Return accuracy on the own stage, average, number of types and parent stage of a version.

    They are read from its files where those are on this disk, else from its tags, so that listing versions
    does not download them.
    """
    figures = version.figures
    away = version.erased or project.store.local_artifacts(version) is None
    if len(figures) == len(FIGURES) and away:
        try:
            numbers = [float(figures[name]) if figures[name] else None for name in FIGURES[:2]]
            return numbers[0], numbers[1], int(figures["types"]), figures["parent_stage"]
        except ValueError:
            pass  # a tag was edited: read the files
    folder = project.store.artifacts(version)
    path = folder / "metrics" / "evaluation.json"
    if not path.is_file():
        raise RegistryError(
            f"version {version.number} has no metrics/evaluation.json: its artifacts are damaged; run `canal "
            f"audit {version.number}`"
        )
    evaluation = read_json(path)
    parent = parent_stage(read_key(folder))
    own = evaluation["row"][version.stage]
    return own, evaluation["average_accuracy"], len(evaluation["labels"]), parent


def decisions(entries: Sequence[Entry], version: Version) -> Document:
    """Return the decisions about a version, oldest first, as a JSON document.

    ``served`` holds each promotion and rollback to the version, with the overridden rules and, as ``until``,
    the decision that let another version serve (None: it serves); ``overrides`` all rules that were ever
    overridden, ``not_judged`` those of them that had too few test cells every time; ``retirement`` who
    retired it and why, or None; ``erasure`` who erased its files. Entries are found by the
    version's key, since a rebuilt registry may give it another number.
    """
    mine = [
        entry for entry in entries if entry.model == version.model and entry.document["key"] == version.key
    ]
    moves = [one for one in entries if one.model == version.model and one.kind in ("promote", "rollback")]
    served = [
        {
            **_decision(entry),
            "overrides": (passed := list(entry.document["details"].get("overrides", ()))),
            "not_judged": sorted({*passed} - {*overridden_failures(entry.document["details"])}),
            "too_few": entry.document["details"].get("too_few", ""),
            "until": next((_decision(one) for one in moves if one.seq > entry.seq), None),
        }
        for entry in mine
        if entry.kind in ("promote", "rollback")
    ]
    overrides = {rule for one in served for rule in one["overrides"]}
    failed = {rule for entry in mine for rule in overridden_failures(entry.document["details"])}
    retired = [_decision(entry) for entry in mine if entry.kind == "retire"]
    erased = ledger_erased(entries).get((version.model, version.number))
    return {
        "served": served,
        "overrides": sorted(overrides),
        "not_judged": sorted(overrides - failed),
        "retired": version.retired or bool(retired),
        "retirement": retired[-1] if retired else None,
        "erased": version.erased or erased is not None,
        "erasure": None if erased is None else _decision(erased),
    }


def _decision(entry: Entry) -> Document:
    document = entry.document
    return {
        "entry": entry.seq,
        "kind": entry.kind,
        "time": document["time"],
        "who": document["who"],
        "why": document["why"],
    }


def registry_sync(
    project: Project,
    sign: Sign | None = None,
    made_in: Layout | None = None,
    decision: Decision | None = None,
    drawn: Callable[[str], Path | None] = lambda stage: None,
) -> Synced:
    """Register every finished stage that is not registered; ``sign`` signs the ledger's entries.

    Stages are read from the project's folder, or from that of ``made_in``; ``decision`` says who made them
    and why, if somebody decided it. ``drawn`` returns the folder of a stage's figures where they are drawn.

    A store without versions, beside a ledger that names some, was lost or is missing in this clone: it is
    rebuilt first, with the ledger's numbers and aliases; an interrupted rebuilding is resumed. The paths in a
    store that was copied from another folder are updated.
    """
    moved = project.store.update_paths()
    options = _rebuild_options(project, None, "the store had no versions, or not all of them", sign=sign)
    if rebuilt := rebuild_lost(project.store, options, _figures_for(project)):
        return Synced(rebuilt.made, (), moved)
    layout = made_in or project.layout

    def draw(stage: str) -> Path:
        return drawn(stage) or _figures_folder(project, stage, layout)

    synced = sync(project.store, layout, project.config, draw, sign, decision)
    return replace(synced, moved=moved)


def registry_rebuild(
    project: Project,
    by: str | None,
    why: str | None,
    also: Sequence[Path] = (),
    without: Sequence[int] = (),
    sign: Sign | None = None,
) -> Rebuilt:
    """Rebuild a lost registry; see `canal.registry.versions.rebuild`.

    Parameters
    ----------
    by, why
        Who and why, for the ledger; by default this user, since the store was lost.
    also
        Other project folders whose models/ and metrics/ are searched.
    without
        Numbers of versions to give up.
    sign
        Signs the ledger's entries.
    """
    return rebuild(
        project.store, _rebuild_options(project, by, why, also, without, sign), _figures_for(project)
    )


def _figures_folder(project: Project, stage: str, made_in: Layout | None = None) -> Path:
    """Return the folder of a stage's figures; they are drawn if `evaluate` did not run on this machine."""
    layout = made_in or project.layout
    folder = project.layout.figures(key_digest(layout.model(stage)))
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            draw_figures(layout, stage, temporary)
    return folder


def _rebuild_options(
    project: Project,
    by: str | None,
    why: str | None,
    also: Sequence[Path] = (),
    without: Sequence[int] = (),
    sign: Sign | None = None,
) -> RebuildOptions:
    folders = [Layout(path.resolve()) for path in also]
    if missing := [str(one.root) for one in folders if not (one.root / "models").is_dir()]:
        raise RegistryError(f"--also {missing[0]}: no folder models/ in it; give a project folder")
    return RebuildOptions(
        by or user(),
        why or "the store was lost",
        (project.layout, *folders),
        without,
        sign,
        project.config,
    )


def _figures_for(project: Project) -> DrawFigures:
    return lambda layout, stage: _figures_folder(project, stage, layout)


@doing("drawing the figures of the report and writing it")
def write_page(project: Project, out: Path) -> Path:
    """Write the offline HTML page of how each stage was trained; return its path.

    Raises
    ------
    CanalError
        If no stage has been evaluated.
    """
    stages = collect(project.layout, list(project.config.stages), version_rows(project))
    if not stages:
        raise CanalError("no stage has been evaluated yet; run `canal run` first")
    title = project.config.registry.model
    return write_report(stages, out, title, backbone_history(project.layout))


# `canal lineage`: backward from a version to its data, forward from data to versions.


def backward(project: Project, wanted: str) -> Graph:
    """Return the graph from a version back to the raw files.

    Raises
    ------
    RegistryError
        If there is no such ready version, an ancestor is not registered, or a file of the lineage is damaged.
    """
    return lineage(project.store, project.store.version(wanted))


def forward(project: Project, query: CellQuery) -> dict[str, Any]:
    """Return every version that has seen a data set or a cell, and how, as a JSON document.

    Raises
    ------
    RegistryError
        If no version has seen the cells, or a version's documents are not those that were registered.
    """
    cells_seen = CellsSeen(project.store)
    found = find_cells(cells_seen, query)
    return {
        "format": 1,
        "source": query.source,
        "cell": query.cell,
        "cells": len(found.cells),
        "same_content": sorted(found.same),
        "reserve": len(found.reserve),
        "versions": [exposure.to_json() for exposure in find_exposures(cells_seen, found)],
    }
