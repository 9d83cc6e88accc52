"""What labs hand to each other, on a terminal: results of `canal merge`, `share` and `models`."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group

from canal.core.progress import percent, size
from canal.report.listing import Column, Listing, figures, lines, named, text

Document = dict[str, Any]


def merged_group(document: Document) -> Group:
    """Return the result of `canal merge` (`canal.app.joining_lineages.Joined.to_json`)."""
    rows = Listing("sums of both", (Column("stage"), *figures("cells")))
    for stage, cells in document["cells"].items():
        rows.add(stage, f"{cells:,}")
    new = document["version"]
    head = f"{document['own']} and {document['other']} on basis {document['basis'][:12]}"
    made = f"{head} are version {new}" if new else f"{head} would be merged"
    return Group(text(made), rows, *lines(_merged_lines(document)))


def _merged_lines(document: Document) -> Iterator[str | Listing]:
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
        yield named(f"left out by the site, under {least} cells:", withheld or ["nothing"])
    if document["meanings"]:
        worst = max(document["meanings"].items(), key=lambda one: one[1]["ratio"])
        apart = f"at most {percent(worst[1]['ratio'])} of the way to the nearest other type ({worst[0]})"
        yield f"types of both: {len(document['meanings'])}, their centroids apart {apart}"
    if document["new_types"]:
        yield named("new types:", document["new_types"])
    if document["uncalibrated"]:
        yield named("not calibrated, for no validation cell is here:", document["uncalibrated"])
    if document["lacking"]:
        yield named("never answered, for only a network knew them:", document["lacking"])
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
    rows = Listing("shared sums", (Column("stage"), Column("type"), *figures("cells", "given away")))
    for stage, types in document["stages"].items():
        for name, cells in types.items():
            given = document["given_away"][stage][name]
            rows.add(stage, name, f"{cells:,}", f"{given:,}")
    return Group(rows, *lines(_shared_lines(document)))


def _shared_lines(document: Document) -> Iterator[str | Listing]:
    withheld = [
        f"{name} of {stage} ({cells})"
        for stage, types in document["withheld"].items()
        for name, cells in types.items()
    ]
    yield named(f"left out, under {document['min_cells']} cells:", withheld or ["nothing"])
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
    yield f"wrote {document['path']}: {size(document['size'])}"


def models_table(models: Sequence[Document]) -> Group:
    """Return the models on the shelf (`canal.app.shelf.list_models`)."""
    if not models:
        return Group(text("The shelf holds no model: canal models add FILE.zip puts one there."))
    named = (*figures("types", "genes", "accuracy", "size"), Column("version"), Column("added"))
    rows = Listing("models on the shelf", (Column("name"), *named))
    for one in (one for one in models if "damaged" not in one):
        numbers = (f"{len(one['types']):,}", f"{one['genes']:,}", percent(one["average_accuracy"]))
        version = f"{one['model']} {one['version']} ({one['stage']})"
        rows.add(one["name"], *numbers, size(one["bytes"]), version, one["added"][:10])
    damaged = [
        text(f"warning: {one['name']}: {one['damaged']}", "yellow") for one in models if "damaged" in one
    ]
    return Group(*([rows] if len(damaged) < len(models) else []), *damaged)


def model_group(document: Document) -> Group:
    """Return one model (`canal.app.shelf.describe`): its types, where they come from, how it was made."""
    columns = (Column("type"), *figures("training cells", "test cells", "recognised"))
    rows = Listing(f"cell types of {document['name'] or document['source']}", columns)
    for one in document["types"]:
        rows.add(one["type"], f"{one['cells']:,}", f"{one['tested']:,}", percent(one["recall"]))
    return Group(rows, *map(text, _model_lines(document)))


def _model_lines(document: Document) -> Iterator[str]:
    stages = ", ".join(document["stages"])
    yield f"{document['model']} {document['version']}, learned on {stages}: {document['genes']:,} genes"
    weight = document["network_weight"]
    share = "" if weight is None else f" (weight of the network {percent(weight)})"
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
