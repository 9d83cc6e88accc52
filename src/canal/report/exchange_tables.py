"""What labs hand to each other, on a terminal: `canal merge`, `share`, `models`, `stage map`."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from canal.report.terminal import table, text

Document = dict[str, Any]


def merged_group(document: Document) -> Group:
    """Return the result of `canal merge` (`canal.app.joining_lineages.Joined.to_json`)."""
    rows = table("sums of both")
    rows.add_column("stage", overflow="fold")
    rows.add_column("cells", justify="right")
    for stage, cells in document["cells"].items():
        rows.add_row(text(stage), text(f"{cells:,}"))
    new = document["version"]
    head = f"{document['own']} and {document['other']} on basis {document['basis'][:12]}"
    made = f"{head} are version {new}" if new else f"{head} would be merged"
    return Group(text(made), rows, *map(text, _merged_lines(document)))


def _merged_lines(document: Document) -> Iterator[str]:
    yield f"digest of all sums {document['sums'][:12]}...: it equals {document['equals']}"
    overlap = document["overlap"]
    if overlap["checked"] == "not checked":
        yield "common cells: not checked; a cell that is in both counts twice"
    else:
        found = f"{overlap['cells']:,} found and counted once" if overlap["cells"] else "none"
        yield f"common cells, by {overlap['checked']}: {found}"
    if released := document["released"]:
        withheld = [f"{one} of {stage}" for stage, types in released["withheld"].items() for one in types]
        least = released["min_cells"]
        yield f"left out by the site, under {least} cells: {', '.join(withheld) or 'nothing'}"
    if document["meanings"]:
        worst = max(document["meanings"].items(), key=lambda one: one[1]["ratio"])
        apart = f"at most {worst[1]['ratio']:.2f} of the way to the nearest other type ({worst[0]})"
        yield f"types of both: {len(document['meanings'])}, their centroids apart {apart}"
    if document["new_types"]:
        yield f"new types: {', '.join(document['new_types'])}"
    if document["uncalibrated"]:
        yield f"not calibrated, for no validation cell is here: {', '.join(document['uncalibrated'])}"
    if document["lacking"]:
        yield f"never answered, for only a network knew them: {', '.join(document['lacking'])}"
    if not document["network"]:
        yield "it has no network: the next stage has no teacher, and learns by sums alone"
    elif document["new_types"]:
        yield "its network is kept, but does not know the new types: the next stage learns by sums alone"
    else:
        yield "its network is kept, and teaches the next stage"
    yield "measured on test cells of the own lineage alone; canal promote judges by these"
    if document["version"]:
        yield "next: canal promote candidate, then git add params.yaml dvc.lock ledger.jsonl && git commit"


def shared_group(document: Document) -> Group:
    """Return the result of `canal share` (`canal.app.sharing.Shared.to_json`)."""
    rows = table("shared sums")
    rows.add_column("stage", overflow="fold")
    rows.add_column("type", overflow="fold")
    rows.add_column("cells", justify="right")
    rows.add_column("given away", justify="right")
    for stage, types in document["stages"].items():
        for name, cells in types.items():
            given = document["given_away"][stage][name]
            rows.add_row(text(stage), text(name), text(f"{cells:,}"), text(f"{given:,}"))
    return Group(rows, *map(text, _shared_lines(document)))


def _shared_lines(document: Document) -> Iterator[str]:
    withheld = [
        f"{name} of {stage} ({cells})"
        for stage, types in document["withheld"].items()
        for name, cells in types.items()
    ]
    yield f"left out, under {document['min_cells']} cells: {', '.join(withheld) or 'nothing'}"
    if document["left_out"]:
        yield f"stages left out: {', '.join(document['left_out'])}"
    shared = sum(sum(types.values()) for types in document["stages"].values())
    given = sum(sum(types.values()) for types in document["given_away"].values())
    yield (
        f"given away: a reader computes the levels of {given:,} of {shared:,} cells exactly from these sums, "
        "and who has a cell can tell whether it is among them: canal's docs/privacy.md"
    )
    keyed = "with digests of the cells under the sites' key" if document["keyed"] else "no overlap key"
    yield f"no cell, no name of a cell, no split, no probe, no sums by batch; {keyed}"
    yield f"basis {document['basis'][:12]}..., sha256 {document['sha256']}"
    yield f"wrote {document['path']}: {document['size']:,} bytes"


def models_table(models: Sequence[Document]) -> Group:
    """Return the models on the shelf (`canal.app.shelf.list_models`)."""
    if not models:
        return Group(text("The shelf holds no model: canal models add FILE.zip puts one there."))
    rows = table("models on the shelf")
    rows.add_column("name", overflow="fold")
    for name in ("types", "genes", "accuracy", "MB"):
        rows.add_column(name, justify="right")
    rows.add_column("version", overflow="fold")
    rows.add_column("added")
    for one in (one for one in models if "damaged" not in one):
        figures = (f"{len(one['types'])}", f"{one['genes']:,}", _percent(one["average_accuracy"]))
        named = f"{one['model']} {one['version']} ({one['stage']})"
        size = f"{one['bytes'] / 1e6:.1f}"
        rows.add_row(*map(text, (one["name"], *figures, size, named, one["added"][:10])))
    damaged = [
        text(f"warning: {one['name']}: {one['damaged']}", "yellow") for one in models if "damaged" in one
    ]
    return Group(rows, *damaged)


def model_group(document: Document) -> Group:
    """Return one model (`canal.app.shelf.describe`): its types, where they come from, how it was made."""
    rows = table(f"cell types of {document['name'] or document['source']}")
    rows.add_column("type", overflow="fold")
    for name in ("training cells", "test cells", "recognised"):
        rows.add_column(name, justify="right")
    for one in document["types"]:
        figures = (f"{one['cells']:,}", f"{one['tested']:,}", _percent(one["recall"]))
        rows.add_row(*map(text, (one["type"], *figures)))
    return Group(rows, *map(text, _model_lines(document)))


def _model_lines(document: Document) -> Iterator[str]:
    stages = ", ".join(document["stages"])
    yield f"{document['model']} {document['version']}, learned on {stages}: {document['genes']:,} genes"
    weight = document["network_weight"]
    share = "" if weight is None else f" (weight of the network {weight:.2f})"
    yield f"method: {document['method']}{share}"
    if document["needs_torch"]:
        without = "; without it: --effort fast, by the sums alone" if document["fast_without_torch"] else ""
        yield f'needs PyTorch: pip install "canal-cells[network]"{without}'
    for name, one in document["sources"].items():
        licence, citation = one["licence"] or "no licence named", one["citation"]
        yield f"source {name}: {licence}" + (f"; {citation}" if citation else "")
    if not document["sources"]:
        yield "sources: the file does not say their licences"
    made = document["made"]
    commit = f" at commit {made['git_commit'][:12]}" if made["git_commit"] else ""
    user = f" by {made['user']}" if made["user"] else ""
    yield f"made on {str(made['time'])[:10]}{user}{commit}"
    yield f"key {document['key']}"
    holds = document["holds"]
    if document["without_cells"]:
        yield "made without cells: that no test cell was trained on is not proven by it"
    if any(holds.values()):
        cells = f"{holds['bank']:,} cells of the example bank and {holds['probe']:,} validation cells"
        yield f"it holds the expression of {cells}, and the ids of {holds['named']:,} cells"
    else:
        yield "it holds no cell and no cell id"
    yield f"from {document['source']}, sha256 {document['sha256']}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


_MOST_LABELS = 60
"""Rows of the table of labels: more are read in the sheet."""
_LONGEST_LABEL = 60


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"


def map_table(found: Document) -> Table:
    """Return the proposals of `canal stage map`: a row for each label, ambiguous ones first."""
    n = found["ambiguous"]
    rows = Table(
        title=f"{n} of {len(found['labels'])} labels ambiguous: a person decides" if n else None,
        title_justify="left",
        box=box.SIMPLE,
    )
    rows.add_column("label", overflow="fold")
    rows.add_column("cells", justify="right")
    rows.add_column("proposed", overflow="fold")
    rows.add_column("by")
    rows.add_column("model", overflow="fold")
    rows.add_column("why ambiguous", overflow="fold")
    labels = found["labels"]
    if (more := len(labels) - _MOST_LABELS) > 0:
        rows.caption = f"and {more:,} more labels: the sheet (-o SHEET.csv) lists all of them"
        rows.caption_justify = "left"
    for one in labels[:_MOST_LABELS]:
        style = "yellow" if one["ambiguous"] else ""
        share = f"{one['model_type']} {one['model_share']:.0%}" if one["model_share"] else ""
        novel = f"Unassigned {one['unassigned']:.0%}" if one["unassigned"] else ""
        rows.add_row(
            text(_short(one["label"]), style),
            f"{one['n_cells']:,}",
            text(_short(one["proposed"]) or "?", style),
            text(one["by"]),
            text(", ".join(part for part in (share, novel) if part)),
            text(one["ambiguous"]),
        )
    return rows
