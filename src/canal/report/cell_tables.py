"""Terminal tables about cells: groups of novel cells, marker genes, provenance of labels, impact of data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from canal.core.progress import count, first_names, percent, size
from canal.report.listing import Column, Listing, facts, figures, lines, named, text

_GENES = 8
_BATCHES = 2

Document = Mapping[str, Any]


def novel_table(found: Mapping[str, Any]) -> Group:
    """Return the table of the groups of `canal.annotation.novel.Novel.to_json`, and warnings."""
    warnings = [text(f"warning: {one}", "yellow") for one in found["warnings"]]
    if not found["n_novel"]:
        nothing = (
            "no cell of this file is novel by the version's rule: nothing is left to group. `canal annotate "
            "--max-novelty X` calls more cells Unassigned"
        )
        return Group(text(nothing), *warnings)
    rows = Listing(
        f"{count(found['n_novel'], 'novel cell')} in {count(len(found['groups']), 'group')}",
        (
            Column("group", "number", "bold"),
            *figures("cells"),
            Column("top genes", "prose"),
            Column("nearest types", "names"),
            Column("batches", "names"),
        ),
    )
    for one in found["groups"]:
        rows.add(
            str(one["group"]),
            f"{one['n_cells']:,}",
            " ".join(gene["gene"] for gene in one["top_genes"][:_GENES]) or "-",
            [f"{name} {percent(share)}" for name, share in one["nearest_types"].items()],
            _batches(one),
        )
    left = f"{count(found['left_out'])} in groups too small to be shown" if found["left_out"] else ""
    return Group(rows, *([text(left, "dim")] if left else []), *warnings)


def explanation_table(found: Sequence[Mapping[str, Any]]) -> Any:
    """Return the table of marker genes by type, from `canal.annotation.markers.Explanation.to_json`."""
    if not found:
        return text("no type of this file has cells to explain: `canal markers` needs none, only a version")
    columns = (Column("cell type", style="bold"), *figures("cells"), Column("genes", "prose"))
    rows = Listing("Genes that carry a type, strongest first", columns)
    for one in found:
        genes = " ".join(gene["gene"] for gene in one["genes"])
        rows.add(one["cell_type"], f"{one['n_cells']:,}", genes or "-")
    return rows


_SIDES = {"both": "network, sums"}


def marker_table(document: Document) -> Listing:
    """Return the table of what carries each type in a version; see `canal.app.discovering.markers`."""
    model, types = document["model"], document["cell_types"]
    version = f"{model['model']} version {model['version']} ({model['stage']})"
    title = f"What carries each type in {version if model['model'] else model['stage']}"
    told = {
        heading: [[gene["gene"] for gene in one["genes"] if gene["direction"] == direction] for one in types]
        for heading, direction in (("higher in it", "higher"), ("lower in it", "lower"), ("genes", None))
    }
    told = {heading: names for heading, names in told.items() if any(names)}
    columns = (Column("cell type", style="bold"), Column("known to", "prose"))
    rows = Listing(title, (*columns, *(Column(heading, "prose") for heading in told)))
    for number, one in enumerate(types):
        genes = (" ".join(names[number]) or "-" for names in told.values())
        rows.add(one["cell_type"], _SIDES.get(one["side"], one["side"]), *genes)
    rows.note = (
        "strongest first, of all genes together; higher: a cell is likelier of the type the more it expresses"
        " of the gene. How much each weighs, and by which side: --json, or -o genes.csv"
    )
    return rows


def _batches(group: Mapping[str, Any]) -> list[str]:
    if group["purity"] is None:
        return ["-"]
    batches = list(group["batches"].items())[:_BATCHES]
    shown = [f"{name} {percent(n / group['n_cells'])}" for name, n in batches]
    more = len(group["batches"]) - len(shown)
    return [*shown, *([f"{more:,} more"] if more > 0 else [])]


def who_group(document: Document) -> Group:
    """Return the provenance of a labelled file and its present status; see `canal.app.annotating.who`."""
    warnings = [text(f"warning: {one}", "yellow") for one in _warnings(document)]
    return Group(text(document["file"], "bold"), facts(_who(document)), *warnings)


_METHODS = {"exact": "exact (sums alone)", "combined": "combined (network and sums)"}


def _who(document: Document) -> Iterator[tuple[str, str | list[str]]]:
    record, registry = document["record"], document["registry"]
    model, given = record["model"], record.get("input") or {}
    yield "labelled by", f"{model.get('model', '?')} {model.get('version', '?')} ({model.get('stage', '?')})"
    yield "key", str(model.get("key", "not noted"))
    yield "record", str(model.get("record", "not noted"))
    yield "when", str(record.get("time", "not noted"))
    yield "input", f"{given['name']}, sha256 {given['sha256']}" if given else "not noted"
    if "method" in record:
        yield "method", _METHODS.get(record["method"], str(record["method"]))
    options = {
        **record["options"],
        **{name: record[name] for name in ("vote", "min_share") if name in record},
    }
    yield "options", ", ".join(f"{name} {value}" for name, value in options.items())
    yield "cells", [f"{name} {n:,}" for name, n in record["cell_types"].items()]
    if document.get("others"):
        yield "other labels", f"under {', '.join(document['others'])} (--key-added)"
    if registry is None:
        yield "registry", f"could not be checked: {document['not_checked']}"
    elif not registry["known"]:
        yield "registry", f"no version of {registry['model']} has this key"
    else:
        end = "erased" if registry["erased"] else "retired" if registry["retired"] else ""
        names = ", ".join([*registry["aliases"], *([end] if end else [])])
        yield "registry", f"version {registry['version']}, now {names or 'without an alias'}"
        if merged := registry.get("merged"):
            yield "merged of", f"{' and '.join(map(str, merged['of']))}: equals {merged['equals']}"
        yield "champion now", "none" if registry["champion"] is None else f"version {registry['champion']}"


def _warnings(document: Document) -> Iterator[str]:
    registry = document["registry"]
    if document["genuine"] is False:
        yield "the record was edited after it was written: its id is not the digest of what it says"
    if not document["labels"]["as_written"]:
        yield f"the labels are not those that were written: {document['labels']['why']}"
    if registry is None:
        return
    if registry["known"] and not registry["same_number"]:
        yield "the registry has this key under another number: it was rebuilt"
    if registry["same_record"] is False:
        yield "the version's record is another one than the file says: `canal audit` looks into it"
    if registry["erased"]:
        yield "the version was erased since, with cells that it held: `canal ledger` says who did it and why"
    elif registry["retired"]:
        yield "the version was retired since: `canal show` says why; label the file again with the champion"
    if registry["logged"] is False:
        yield "annotations.jsonl does not know this record: it was labelled elsewhere, or the log was edited"


_GRADES = {"learned": "bold red", "steered": "yellow", "tested": "dim"}
_MOST = 20


def exposure_table(title: str, versions: Sequence[Document]) -> Listing:
    """Return the exposure of each version to some cells, a row a version (`provenance.exposure`)."""
    columns = (Column("version"), Column("stage"), Column("aliases", "names", "cyan"), Column("exposure"))
    found = Listing(title, (*columns, Column("how", "prose")))
    for one in versions:
        names = [*one["aliases"], *(["retired"] if one["retired"] else [])]
        found.add(_name(one), one["stage"], names, text(one["grade"], _GRADES[one["grade"]]), how(one))
    found.note = (
        "learned: the cells are in its weights or sums; steered: they judged it, or an ancestor, while it "
        "learned; tested: they only measured it"
    )
    return found


def _versions(title: str, document: Document) -> list[Any]:
    """Return the table of versions, or a line that there are none, and the number of unused cells."""
    versions, n = document["versions"], document["reserve"]
    them = "it" if n == 1 else "them"
    parts: list[Any] = [exposure_table(title, versions)] if versions else [text(f"{title}: none", "bold")]
    if n:
        parts.append(
            text(
                f"in reserve: {count(n)} beyond split.max_cells_per_type; no version was trained, validated "
                f"or tested on {them}"
            )
        )
    if not versions:
        parts.append(text("no version is to be learned again without these cells: nothing is needed", "dim"))
    return parts


def forward_group(document: Document) -> Group:
    """Return the versions that have seen a data set or a cell; see `canal.app.versions.forward`."""
    about = document["cell"] or document["source"]
    title = f"Versions that have seen {about} ({count(document['cells'])})"
    return Group(*_versions(title, document), *_alike(document))


def impact_group(document: Document) -> Group:
    """Return everything that learned from a source, and the plan; see `canal.app.impact.Impact`."""
    narrowed = [f"{name} {document[name]}" for name in ("batch", "cell") if document[name]]
    about = " of ".join([*narrowed, f"source {document['source']}"])
    parts: list[Any] = _versions(f"Versions that have seen {about} ({count(document['cells'])})", document)
    parts += _alike(document)
    for name, digest in document["same_bytes"].items():
        parts.append(text(f"{name} reads the same file ({digest[:12]}): canal impact {name}", "yellow"))
    aliases = ", ".join(
        f"{alias} (version {number})" for alias, number in sorted(document["aliases"].items())
    )
    parts += [Text(), text(f"aliases of versions that learned from them: {aliases or 'none'}")]
    return Group(*parts, *_records(document), Text(), *_steps(document["steps"]))


def how(one: Document) -> str:
    """Return in words how a version used the cells."""
    words = {
        "trained": "trained on {}",
        "replayed": "replayed {} from its parent's bank",
        "summed": "holds {} in its sums",
        "validated": "judged by {} while it learned",
        "panel": "its genes were chosen on {}",
        "tested": "measured on {}",
        "kept": "holds {} in its bank or probe sets",
    }
    clauses = [
        sentence.format("cells that cannot be counted any more" if one["roles"][role] is None
                        else count(one["roles"][role]))
        for role, sentence in words.items() if role in one["roles"]
    ]  # fmt: skip
    if one["inherited_from"]:
        clauses.append(f"inherited through {_name(one['inherited_from'])}")
    return "; ".join(clauses)


def _name(one: Document) -> str:
    """Return a version's model and number; 0 means that it was never registered here."""
    return f"{one['model']} {one['version'] or 'elsewhere'}"


def _alike(document: Document) -> list[Any]:
    same = document["same_content"]
    if not same:
        return []
    more = f" and {len(same) - 3} more" if len(same) > 3 else ""
    return [text(f"counted with them, for they hold the same content: {', '.join(same[:3])}{more}", "dim")]


def _records(document: Document) -> Iterator[Any]:
    records = document["annotations"]
    if not records:
        yield text("files that they labelled: none on record")
    else:
        yield _records_table(records)
    if len(records) > _MOST:
        yield text(f"and {len(records) - _MOST} more: --json lists them all", "dim")
    if document["unreadable_annotations"]:
        n = document["unreadable_annotations"]
        yield text(
            f"warning: {n} lines of annotations.jsonl are no records: they may be about others", "yellow"
        )


def _records_table(records: Sequence[Document]) -> Listing:
    columns = (Column("when"), Column("input"), *figures("cells"), Column("version"))
    found = Listing(f"Files that they labelled: {len(records):,}", columns)
    for one in records[:_MOST]:
        about = one["input"] or {"name": "-", "sha256": "-"}
        named = f"{about['name']} ({about['sha256'][:12]})"
        found.add(one["time"] or "-", named, f"{one['n_cells']:,}", str(one["model"].get("version", "-")))
    return found


def _steps(steps: Sequence[Document]) -> Iterator[Any]:
    yield text("To learn without them", "bold")
    for number, step in enumerate(steps, start=1):
        if step["kind"] == "know":
            yield text(f"{number}. {step['text']}: {step['why']}", "yellow")
            continue
        yield text(f"{number}. {step['why']}", "dim")
        for line in step["text"].splitlines():
            yield text(f"     {line}", "bold" if step["kind"] == "run" else "")
    yield text(
        "Old versions keep their artifacts, and the cells in them, until `canal erase` removes them.", "dim"
    )


_GENES = 5
"""Genes of a basis that are named; a lineage may choose hundreds of others without some cells."""


def unlearned_group(document: Document, dry_run: bool) -> Group:
    """Return the result of `canal unlearn` (`canal.app.unlearning.Unlearned.to_json`)."""
    columns = (Column("stage"), Column("version"), Column("new version"))
    rows = Listing("versions to be made" if dry_run else "versions without the cells", columns)
    for stage, numbers in document["versions"].items():
        rows.add(stage, str(numbers["before"]), str(numbers["after"] or "-"))
    leave = "would leave" if dry_run else "have left"
    cells = f"{count(document['n_cells'])} of {document['source']} {leave}"
    summed = f"{document['n_summed']:,} of them are in the sums"
    return Group(text(f"{cells}; {summed}"), rows, *lines(_unlearned_lines(document, dry_run)))


def _unlearned_lines(document: Document, dry_run: bool) -> Iterator[str | Listing]:
    if document["lost_types"]:
        yield named("types without cells now:", document["lost_types"])
    if document["not_calibrated"]:
        few = "not calibrated, since fewer than 20 probe cells are of the type:"
        yield named(few, document["not_calibrated"])
    if not document["basis"]:
        yield "no trace in the basis: its genes were chosen on other stages"
    for stage, check in document["basis"].items():
        if check == "same":
            yield f"{stage}: no trace in the basis: the same genes are chosen without the cells"
        elif isinstance(check, Mapping):
            other = list(check["other"])
            more = " (--json names all)" if len(other) > _GENES else ""
            yield (
                f"{stage}: sums exact, basis not; without the cells {count(len(other), 'gene')} would be "
                f"others: {first_names(other, _GENES)}{more}"
            )
            yield "a new lineage, begun without the cells, has no trace of them in its basis either"
        else:
            yield f"{stage}: basis {check}"
    if document["champion"]:
        yield f"the champion, version {document['champion']}, holds the cells until another is promoted"
    if document["retired"]:
        yield f"retired: {', '.join(map(str, document['retired']))}"
    if not dry_run:
        yield "next: canal promote candidate, then git add params.yaml dvc.lock ledger.jsonl && git commit"


_BEYOND = (
    "the history of git (git filter-repo), other clones, backups and snapshots of disks",
    "bundles that were exported, and what importers made of them; files that were labelled and sent on",
    "objects of DVC in remotes and caches of others; traces and copies on servers of MLflow",
    "means over all cells of a stage, with these, in the gate's verdict of versions that stay",
    "versions that a running server holds in memory until it ends; what a disk keeps of deleted files",
)
"""What canal cannot look at, and so never lists by name."""


def erased_group(document: Document) -> Group:
    """Return the plan or the result of `canal erase` (`canal.app.erasing.Erased.to_json`)."""
    if document["state"] == "nothing":
        what = "nothing is left to erase: no version, file or cache that canal knows holds such cells"
        return Group(text(what), *_unreached(document))
    planned = document["state"] == "planned"
    found: dict[str, list[str]] = {}
    for one in document["files"]:
        why = f"{one['why']}, rewritten without the cells" if one["rewritten"] else one["why"]
        found.setdefault(why, []).append(f"{size(one['bytes']):>11}  {one['path']}")
    told = [line for why, files in found.items() for line in (f"{why}:", *files)]
    did = "would be erased" if planned else "erased"
    told.append(
        f"{count(document['n_cells'])} in {count(len(document['files']), 'file')} "
        f"({size(document['bytes'])}) of "
        f"{count(len(document['versions']), 'version')} ({', '.join(document['versions']) or 'none'}) {did}"
    )
    if planned:
        told.append(f"to erase exactly this: the same command with --confirm {document['token']}")
    else:
        told.append(
            f"entry {document['entry']} of ledger.jsonl says who and why; next: canal audit, then git add "
            "ledger.jsonl erased params.yaml dvc.lock data.dvc && git commit"
        )
    return Group(*map(text, told), *_unreached(document))


def _unreached(document: Document) -> Iterator[Any]:
    yield text("Not reached", "bold")
    yield from (text(f"- {one}", "yellow") for one in document["unreached"])
    yield from (text(f"- {one}", "dim") for one in _BEYOND)
