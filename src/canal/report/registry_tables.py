"""Terminal tables about the registry: rulings, comparisons, ledger, audits, rebuilding, verdicts, labels."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from canal.registry.ledger.rulings import TOO_FEW
from canal.report.cell_tables import count
from canal.report.terminal import rules_fit, table, text

if TYPE_CHECKING:
    from canal.registry.versions.rebuild import Rebuilt

Document = Mapping[str, Any]


def rulings_table(judgement: Document) -> Table:
    """Return every rule with its value, bound and verdict; see `canal.app.promoting.Judgement`."""
    other = judgement["compared_with"]
    against = "no version serves yet, and its parent is none"
    if other is not None:
        what = "its parent, for none serves yet" if judgement["champion"] is None else "which serves"
        against = f"against version {other['version']} ({other['stage']}), {what}"
    found = table(f"Version {judgement['version']} ({judgement['stage']}) and the policy: {against}")
    found.add_column("rule", overflow="fold", no_wrap=rules_fit(one["rule"] for one in judgement["rulings"]))
    found.add_column("found", overflow="fold")
    found.add_column("asked for", overflow="fold")
    found.add_column("", no_wrap=True)
    found.add_column("", overflow="fold", style="dim")
    for ruling in judgement["rulings"]:
        found.add_row(
            text(ruling["rule"]), text(ruling["value"]), text(ruling["bound"]), _verdict(ruling),
            text(ruling["note"]),
        )  # fmt: skip
    return found


def comparison_table(comparison: Document) -> Group:
    """Return the comparison of two models, a row a stage and type (`canal.registry.promotion.policy`)."""
    versions = [
        f"{comparison[one]} {comparison[f'{one}_stage']}".strip() for one in ("champion", "candidate")
    ]
    found = table(f"Version {versions[1]} against version {versions[0]}, on the same cells")
    found.add_column("test cells of", overflow="fold")
    for name in ("n", *versions, "change", "interval", "lost", "gained", "p", "power"):
        found.add_column(name, justify="right", no_wrap=True)
    for name, pair in _rows(comparison):
        found.add_row(text(name), *_pair(pair))
    notes = [f"{name}: not compared: {why}" for name, why in comparison["not_compared"].items()]
    for stage, one in comparison["stages"].items():
        if few := one["too_few_to_judge"]:
            listed = ", ".join(f"{name} ({n})" for name, n in few.items())
            notes.append(f"{stage}: too few cells to judge: {listed}")
    notes.append("interval: paired bootstrap of the change; p: McNemar's exact test of lost against gained")
    loss = f"{100 * comparison['loss_to_see']:g} points"
    notes.append(f"power: the probability that so many cells would show a loss of {loss}")
    return Group(found, *(text(note, "dim") for note in notes))


def ledger_table(entries: Sequence[Document]) -> Table:
    """Return the ledger, the oldest entry first."""
    found = table("Ledger")
    found.add_column("no.", justify="right", style="bold")
    found.add_column("time", no_wrap=True)
    found.add_column("what", overflow="fold")
    found.add_column("who", overflow="fold")
    found.add_column("why", overflow="fold")
    for entry in entries:
        levels = entry["details"].get("merged") or [entry]
        signed = " (signed)" if "signature" in levels[0] else ""
        found.add_row(
            text(entry["seq"]), text(str(entry["time"]).replace("+00:00", "Z")), text(_what(entry)),
            text(f"{entry['who']}{signed}"), text(entry["why"]),
        )  # fmt: skip
    return found


def _verdict(ruling: Document) -> Any:
    if ruling["passed"]:
        return text("holds", "green")
    if ruling["overridden"]:
        return text("overridden", "yellow")
    few = ruling["value"] == TOO_FEW
    return text("NOT JUDGED", "bold yellow") if few else text("FAILS", "bold red")


def _rows(comparison: Document) -> Iterator[tuple[str, Document]]:
    for stage, one in comparison["stages"].items():
        yield stage, one
        for name, pair in one["types"].items():
            yield f"  {name}", pair


def _pair(pair: Document) -> list[Any]:
    style = "red" if pair["high"] < 0 else "green" if pair["low"] > 0 else ""
    interval = f"{pair['low']:+.3f} {pair['high']:+.3f}"
    return [
        text(pair["n"]),
        text(f"{pair['champion']:.3f}"),
        text(f"{pair['candidate']:.3f}"),
        text(f"{pair['difference']:+.3f}", style),
        text(interval, style),
        text(pair["lost"]),
        text(pair["gained"]),
        text(f"{pair['p']:.2g}"),
        text(f"{pair['power']:.2f}"),
    ]


def _what(entry: Document) -> str:
    moved = ", ".join(
        f"{alias} -> {'none' if number is None else number}" for alias, number in entry["aliases"].items()
    )
    overrides = entry["details"].get("overrides")
    details = entry["details"]
    if entry["kind"] == "merge":
        theirs = details["theirs"]
        return f"merge of a ledger of {theirs['seq']} entries, {theirs['hash'][:12]}... the last ({moved})"
    about = [f"{entry['model']} {entry['version']}"]
    if entry["kind"] == "erase":
        about = [f"{one['model']} {one['version']}" for one in details["versions"]]
    parts = [f"{entry['kind']} {', '.join(about) or 'of files alone'}"]
    if moved:
        parts.append(f"({moved})")
    if overrides:
        parts.append(f"overriding {', '.join(overrides)}")
    if levels := details.get("merged"):
        parts.append(f"(entry {levels[0]['seq']} of a merged ledger)")
    return " ".join(parts)


def audit_report(document: Document) -> Group:
    """Return the findings, notes and counts of `canal.registry.audit.full_audit.Report.to_json`."""
    findings, notes = document["findings"], document["notes"]
    parts: list[Any] = [_table("Does not hold", findings)] if findings else []
    parts += [_table("To know", notes)] if notes else []
    looked = ", ".join(f"{name} {number:,}" for name, number in document["counts"].items() if number)
    number = len(document["findings"])
    message = "everything holds" if not number else f"findings: {number}"
    message += f" ({looked or 'nothing is registered'}; {document['seconds']:.1f} s)"
    return Group(*parts, Text(message, "bold" if number else ""))


def reproduction_report(document: Document) -> Group:
    """Return the result of `canal.app.auditing.Reproduction.to_json`, in a few lines."""
    name, commit = f"version {document['version']}", document["commit"][:12]
    if not document["differing"]:
        what = "everything, byte for byte" if document["same_key"] else "the same weights, bit for bit"
    else:
        number, tensors = len(document["differing"]), ", ".join(document["differing"][:5])
        what = f"{number} other tensors ({tensors}{', ...' if number > 5 else ''})"
    lines = [Text(f"{name} learned again at commit {commit} in {document['seconds']:.0f} s: {what}", "bold")]
    for stage, (before, after) in document["accuracy"].items():
        lines.append(Text(f"  accuracy on {stage}: registered {_share(before)}, now {_share(after)}"))
    if document["differing"]:
        machine = (
            "this machine had to give the same bits"
            if document["same_machine"]
            else ("this machine is another one, which may round differently")
        )
        lines.append(Text(f"{'reproduced' if document['reproduced'] else 'not reproduced'}: {machine}"))
    return Group(*lines)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def rebuilt_view(rebuilt: "Rebuilt") -> dict[str, Any]:
    """Return the result of a rebuilding as a JSON document: versions rebuilt, versions lost."""
    return {
        "versions": [
            {
                "model": one.model,
                "version": one.number,
                "stage": one.stage,
                "aliases": list(one.aliases),
                "retired": one.retired,
                "key": one.key,
            }
            for one in rebuilt.made
        ],
        "gone": [
            {"model": gap.entry.model, "version": gap.entry.version, "why": gap.why} for gap in rebuilt.gone
        ],
    }


def rebuilt_table(view: Document) -> Group:
    """Return `rebuilt_view` as tables: versions rebuilt, and versions lost."""
    table = _plain("Registered again", ("model", "no.", "stage", "aliases", "key"))
    for one in view["versions"]:
        aliases = ", ".join([*one["aliases"], *(["retired"] if one["retired"] else [])])
        cells = (one["model"], str(one["version"]), one["stage"], aliases, one["key"][:8])
        table.add_row(*(Text(cell) for cell in cells))
    parts: list[Any] = [table]
    if view["gone"]:
        gone = _plain("Gone: the number stays free", ("model", "no.", "why"))
        for one in view["gone"]:
            gone.add_row(*(Text(cell) for cell in (one["model"], str(one["version"]), one["why"])))
        parts.append(gone)
    return Group(*parts)


def _plain(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _table(title: str, rows: Sequence[Document]) -> Table:
    table = _plain(title, ("where", "check", "what"))
    for row in rows:
        table.add_row(Text(row["subject"]), Text(row["check"], "dim"), Text(row["what"]))
    return table


_LONGEST = 60
_SHOWN = 8


def difference_group(document: Document) -> Group:
    """Return the differences between two versions; see `canal.registry.provenance.diff.difference`."""
    before, after = document["before"], document["after"]
    heading = f"From version {before['version']} ({before['stage']}) to {after['version']} ({after['stage']})"
    added, removed = document["labels"]["added"], document["labels"]["removed"]
    parts: list[Any] = [
        text(heading, "bold"),
        text(document["relation"]),
        text(f"types added: {', '.join(added) or 'none'}; removed: {', '.join(removed) or 'none'}"),
    ]
    more, fewer = document["genes"]["added"], document["genes"]["removed"]
    if more or fewer:
        parts.append(text(f"genes added: {_some(more)}; removed: {_some(fewer)}"))
    if message := shared_sums(document["sums"]):
        parts.append(text(message))
    for name in ("params", "data", "code"):
        parts += [Text(), _changes_table(name, document[name])]
    parts += [Text(), _recall_table(document)]
    if document["file"] is not None:
        parts += [Text(), _flows_table(document["file"])]
    return Group(*parts)


def shared_sums(sums: Document) -> str:
    """Return in words which sums two versions share; empty if neither has any."""
    stages = sums["stages"]
    if not stages:
        return ""
    words = {True: "the same", False: "differ", None: "in one alone"}
    kinds = {
        word: [stage for stage, one in stages.items() if one["same"] is same] for same, word in words.items()
    }
    description = "; ".join(f"{word}: {', '.join(names)}" for word, names in kinds.items() if names)
    basis = {True: "one basis", False: "of two bases", None: "kept by one of them alone"}
    return f"sums ({basis[sums['basis']['same']]}): {description}"


def _changes_table(name: str, changes: Sequence[Document]) -> Any:
    if not changes:
        return text(f"{name}: the same", "dim")
    found = table(name)
    for heading in ("", "before", "after"):
        found.add_column(heading, overflow="fold")
    for one in changes:
        found.add_row(text(one["path"]), text(_value(one["before"])), text(_value(one["after"])))
    return found


def _some(names: Sequence[str]) -> str:
    """Return the number of names and the first of them."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} ({shown})" if names else "none"


def _value(value: Any) -> str:
    """Return a value short enough for a table; a digest by its first digits."""
    words = str(value)
    if len(words) in (40, 64) and set(words) <= set("0123456789abcdef"):
        return words[:12]
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def _recall_table(document: Document) -> Table:
    found = table("Accuracy of each stage and recall of each type, %")
    found.add_column("test cells of", overflow="fold")
    for name in ("cells", "before", "after", "change"):
        found.add_column(name, justify="right")
    for stage, one in document["accuracy"].items():
        found.add_row(text(stage, "bold"), "", *_changed(one))
        for name, pair in document["recall"].get(stage, {}).items():
            found.add_row(text(f"  {name}"), f"{pair['n']:,}", *_changed(pair))
    return found


def _changed(pair: Document) -> list[Any]:
    change = pair["change"]
    style = "" if not change else "green" if change > 0 else "red"
    numbers = ["-" if pair[side] is None else f"{100 * pair[side]:.1f}" for side in ("before", "after")]
    return [*map(text, numbers), text("-" if change is None else f"{100 * change:+.1f}", style)]


def _flows_table(file: Document) -> Table:
    found = table(f"{file['name']}: {file['changed']:,} of {count(file['n_cells'])} change their label")
    found.add_column("from", overflow="fold")
    found.add_column("to", overflow="fold")
    found.add_column("cells", justify="right")
    found.add_column("such as", overflow="fold", style="dim")
    for one in file["flows"]:
        found.add_row(
            text(one["from"]), text(one["to"]), f"{one['n']:,}", text(", ".join(one["examples"][:3]))
        )
    return found
