"""Audit of versions in MLflow: path, run, status, tags, description and figures against the documents.

One cell of MLflow's database, or one call of a server's API, could make MLflow serve other files.
"""

from collections.abc import Sequence

from canal.core.errors import CanalError
from canal.registry.audit.ledger_entries import Snapshot
from canal.registry.audit.version_files import AuditLog, examples, version_name
from canal.registry.ledger.ledger import Entry, ledger_aliases
from canal.registry.ledger.ledger_rules import CANDIDATE, CHAMPION, PREVIOUS
from canal.registry.ledger.rulings import measured, measurement_line
from canal.registry.manifest.pages import FLAG, SOURCES, Measure, PageContent, page_content, same
from canal.registry.manifest.version_folder import Record
from canal.registry.provenance.registered import RegisteredVersion
from canal.registry.store.database import LOGGED, Version
from canal.registry.store.shown import ACTIVE, Shown, ShownModel, ShownVersion
from canal.registry.store.store import TAG, Store

_CHECK = "mlflow"
_READY = "READY"
_NO_STAGE = "None"
_LONGEST = 120


def check_shown(
    shown: Shown,
    member: RegisteredVersion,
    record: Record,
    page: PageContent | None,
    log: AuditLog,
    entries: Sequence[Entry] = (),
) -> None:
    """Check MLflow's rows and tags of a version against key.json and record.json.

    The description, figures and parameters are compared with ``page`` unless that is None; see
    `expected_page`. ``entries`` are the ledger's, whose newest measurement the description ends with.
    """
    row = shown.versions.get((member.version.model, member.version.number))
    if member.elsewhere or row is None:
        return
    _check_tags(row, member, record, page, log)
    if page is not None:
        description, wanted = row.description.strip(), page.description.strip()
        name = "model_versions.description"
        if not description.startswith(wanted):
            what = f"{name} in MLflow does not say what canal wrote there: {_quoted(description)}"
            log.finding(member.name, _CHECK, what)
        elif added := _without_measurement(description.removeprefix(wanted).strip(), member, entries, log):
            what = f"{name} in MLflow says more than canal wrote: {_quoted(added)}"
            log.note(member.name, _CHECK, what)
    if row.stage not in ("", _NO_STAGE):
        what = f"model_versions.current_stage is {_quoted(row.stage)}: MLflow loads it by that name, too"
        log.note(member.name, _CHECK, what)
    _compare(member, "model_versions.run_id", row.run_id, str(record["run"]), log)
    _compare(member, "model_versions.run_link", row.run_link, "", log)
    _compare(member, "model_versions.status", row.status, _READY, log)
    _compare(member, "model_versions.status_message", row.status_message, "", log)
    model = shown.models.get(row.source.removeprefix(LOGGED)) if row.source.startswith(LOGGED) else None
    if model is None:
        what = f"model_versions.source is {_quoted(row.source)}, expected a logged model ({LOGGED}m-...)"
        log.finding(member.name, _CHECK, what)
        return
    # canal audits the folder of the logged model; MLflow serves the folder in the version's row.
    _compare(member, "model_versions.storage_location", row.location, model.location, log)
    for column, actual, wanted in (
        ("artifact_location", model.location, shown.address(f"models/{model.id}/artifacts")),
        ("name", model.name, member.stage),
        ("status", model.status, _READY),
        ("status_message", model.status_message, ""),
        ("model_type", model.kind, "canal"),
        ("lifecycle_stage", model.lifecycle, ACTIVE),
        ("source_run_id", model.run_id, str(record["run"])),
        ("experiment_id", model.experiment, shown.experiment),
    ):
        _compare(member, f"logged_models.{column}", actual, wanted, log)
    if page is not None:
        _check_model(model, member, page, log)


def _without_measurement(
    added: str, member: RegisteredVersion, entries: Sequence[Entry], log: AuditLog
) -> str:
    """Return what a description says more than was registered, without the version's newest measurement."""
    again = measured(entries, member.version.model, member.digest)
    if not again:
        return added
    line = measurement_line(again[-1])
    if not added.endswith(line):
        log.note(member.name, _CHECK, f"its description in MLflow does not end with its measurement: {line}")
    return added.removesuffix(line).strip()


def expected_page(member: RegisteredVersion, record: Record) -> PageContent | None:
    """Return the page that was written to MLflow; None where a file that it is made from is damaged.

    Other checks report such a file. Versions of an older canal have no page, and no file of theirs is read.
    """
    if member.elsewhere:
        return None
    if FLAG in record:
        digests = {**record["files"], **member.files}
        if any(member.sum(name) != digests.get(name) for name in SOURCES):
            return None
    try:
        return page_content(member.folder, member.key, record, member.version.number)
    except (CanalError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _check_model(model: ShownModel, member: RegisteredVersion, page: PageContent, log: AuditLog) -> None:
    """Compare parameters and metrics of a logged model with the version's documents."""
    actual = {(name, data, digest): value for name, data, digest, value in sorted(model.metrics)}
    wanted = {_place(one): one.value for one in page.measures}
    wrong = [
        f"{name} {_quoted(model.params[name]) if name in model.params else 'is gone'}, not {_quoted(value)}"
        for name, value in page.params.items()
        if model.params.get(name) != value
    ]
    wrong += [
        f"{_metric(place)} {actual.get(place, 'is gone')}, not {value}"
        for place, value in wanted.items()
        if not same(actual.get(place), value) or sum(one[:3] == place for one in model.metrics) > 1
    ]
    names = {name for name, _, _ in wanted}
    wrong += [
        f"{_metric(place)}, which canal did not write"
        for place in actual.keys() - wanted
        if place[0] in names
    ]
    if wrong:
        what = f"its logged model in MLflow differs from its documents: {examples(sorted(wrong))}"
        log.finding(member.name, _CHECK, what)
    strange = {*model.params} - {*page.params} | {name for name, _, _ in actual} - names | {*model.tags}
    if strange:
        what = f"its logged model in MLflow shows {examples(sorted(strange))}, which canal did not write"
        log.note(member.name, _CHECK, what)


def _place(one: Measure) -> tuple[str, str, str]:
    return one.name, one.data.name if one.data else "", one.data.digest if one.data else ""


def _metric(place: tuple[str, str, str]) -> str:
    name, data, digest = place
    return f"{name} of {data} ({digest[:12]})" if data else name


def check_others(shown: Shown, snapshot: Snapshot, store: Store, log: AuditLog) -> None:
    """Report aliases that are not canal's, and versions that canal did not register."""
    ours = {CHAMPION, PREVIOUS, CANDIDATE, *ledger_aliases(snapshot.entries, store.names.model)}
    if shown.versions and shown.lifecycle != ACTIVE:
        name = store.names.experiment
        what = f"experiments.lifecycle_stage of {name} in MLflow is {shown.lifecycle!r}, expected {ACTIVE!r}"
        log.finding("store", _CHECK, what)
    for model, aliases in sorted(shown.aliases.items()):
        for alias, number in sorted(aliases.items()):
            if model == store.names.model and alias in ours:
                continue
            name = version_name(store, model, number)
            log.note(
                "aliases",
                _CHECK,
                f"{_quoted(alias)} points to {name}: it is no alias of canal, and the ledger lacks it",
            )
    for version in snapshot.versions:
        known = (version.model, version.number) in snapshot.records
        if not version.ready and not known:
            _name_stranger(shown, version, store, log)


def _name_stranger(shown: Shown, version: Version, store: Store, log: AuditLog) -> None:
    """Report an incomplete version: left by a kill, a placeholder of a rebuild, or not made by canal."""
    name = version_name(store, version.model, version.number)
    row = shown.versions.get((version.model, version.number))
    tags = {} if row is None else row.tags
    if version.key:
        what = (
            "its registration is incomplete, and nothing uses it: the next `canal registry sync` removes it"
        )
        log.note(name, _CHECK, what)
    elif tags.get(f"{TAG}placeholder") == "true":
        log.note(name, _CHECK, "it holds a number while the registry is rebuilt: `canal registry rebuild`")
    else:
        what = "canal never registered it, but MLflow loads it by its number: delete it in MLflow"
        log.finding(name, _CHECK, what)


def _check_tags(
    row: ShownVersion, member: RegisteredVersion, record: Record, page: PageContent | None, log: AuditLog
) -> None:
    """Check the value of every tag that canal wrote."""
    figures = {} if page is None else {f"{TAG}{name}": value for name, value in page.tags.items()}
    for name, wanted in (expected_tags(member, record) | figures).items():
        actual = row.tags.get(name)
        if actual != wanted:
            what = f"the tag {name} " + ("is gone" if actual is None else f"says {_quoted(actual)}")
            where = "its documents say" if name in figures else "key.json and record.json say"
            log.finding(member.name, "tags", f"{what}, {where} {_quoted(wanted)}")
    about = record.get("imported_from")
    if about is None and (actual := row.tags.get(f"{TAG}imported_from")) is not None:
        what = f"the tag {TAG}imported_from says {_quoted(actual)}, but it was learned in this registry"
        log.finding(member.name, "tags", what)


def expected_tags(member: RegisteredVersion, record: Record) -> dict[str, str]:
    """Return the tags of a version, but those of its manifests and retirement, which other checks cover."""
    key, parent, about = member.key, record["parent"], record.get("imported_from")
    tags = {
        "stage": str(key["stage"]),
        "branch": str(key["branch"]),
        "request": str(key["request_digest"]),
        "parent": str(parent["version"]) if parent else "",
        "parent_key": key["parent"] or "",
        "git_commit": record["git_commit"] or "",
        "dirty": str(record["dirty"]).lower(),
    }
    if about is not None:
        tags["imported_from"] = f"{about['model']} {about['version']}, manifest {about['manifest']}"
    return {f"{TAG}{name}": value for name, value in tags.items()}


def _compare(member: RegisteredVersion, name: str, actual: str, wanted: str, log: AuditLog) -> None:
    if actual != wanted:
        log.finding(member.name, _CHECK, f"{name} in MLflow is {_quoted(actual)}, expected {_quoted(wanted)}")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
