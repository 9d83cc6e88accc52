"""Terminal tables about the registry: rulings, comparisons, ledger, audits, rebuilding, differences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from canal.core.progress import count, p_value, percent, points, ranges, span
from canal.registry.ledger.rulings import TOO_FEW, in_percent, overridden_failures
from canal.report.listing import Column, Listing, figures, named, text

if TYPE_CHECKING:
    from canal.registry.versions.rebuild import Rebuilt

Document = Mapping[str, Any]


def rulings_table(judgement: Document) -> Group:
    """Return every rule with its value, bound and verdict; see `canal.app.promoting.Judgement`."""
    other = judgement["compared_with"]
    against = "no version serves yet, and its parent is none"
    if other is not None:
        what = "its parent, for none serves yet" if judgement["champion"] is None else "which serves"
        against = f"against version {other['version']} ({other['stage']}), {what}"
    found = Listing(
        f"Version {judgement['version']} ({judgement['stage']}) and the policy: {against}",
        (
            Column("rule"),
            Column("verdict"),
            Column("found", "prose"),
            Column("asked for", "prose"),
            Column("note", "prose", "dim"),
        ),
    )
    for one in judgement["rulings"]:
        found.add(one["rule"], _verdict(one), *in_percent(one), one["note"] or "")
    few = sum(one["value"] == TOO_FEW for one in judgement["rulings"])
    held = sum(one["passed"] for one in judgement["rulings"])
    failed = len(judgement["rulings"]) - held - few
    found.note = f"{held} of {count(len(judgement['rulings']), 'rule')} hold" + "".join(
        f", {n} {one if n == 1 else more}"
        for n, one, more in (
            (failed, "does not", "do not"),
            (few, "has too few test cells", "have too few test cells"),
        )
        if n
    )
    power = judgement.get("power", "")
    return Group(found, *([text(power, "dim")] if power else []))


def comparison_table(comparison: Document) -> Group:
    """Return the comparison of two models, a row a stage and type (`canal.registry.promotion.policy`)."""
    versions = [
        f"{comparison[one]} {comparison[f'{one}_stage']}".strip() for one in ("champion", "candidate")
    ]
    names = ("cells", *versions, "change", "interval", "lost", "gained", "p", "power")
    title = f"Version {versions[1]} against version {versions[0]}, on the same cells, %"
    found = Listing(title, (Column("test cells of"), *figures(*names)))
    for name, pair in _rows(comparison):
        found.add(name, *_pair(pair))
    notes = [f"{name}: not compared: {why}" for name, why in comparison["not_compared"].items()]
    for stage, one in comparison["stages"].items():
        if few := one["too_few_to_judge"]:
            listed = ", ".join(f"{name} ({n:,})" for name, n in few.items())
            notes.append(f"{stage}: too few cells to judge: {listed}")
    notes.append("interval: paired bootstrap of the change; p: McNemar's exact test of lost against gained")
    loss = f"{100 * comparison['loss_to_see']:g} points"
    notes.append(f"power: the probability that so many cells would show a loss of {loss}")
    return Group(found, *(text(note, "dim") for note in notes))


def ledger_table(entries: Sequence[Document]) -> Any:
    """Return the ledger, the oldest entry first; a line that says what writes entries if there are none."""
    if not entries:
        return text(
            "The ledger has no entry yet: canal promote, rollback, retire and erase write who decided, and "
            'why. Next: canal promote candidate --by "YOU" --why "..."'
        )
    columns = (
        *figures("no."),
        Column("time"),
        Column("what", "prose"),
        Column("who"),
        Column("why", "prose"),
    )
    found = Listing("Ledger", columns)
    for entry in entries:
        levels = entry["details"].get("merged") or [entry]
        signed = " (signed)" if "signature" in levels[0] else ""
        when = str(entry["time"]).replace("+00:00", "Z")
        found.add(str(entry["seq"]), when, _what(entry), f"{entry['who']}{signed}", str(entry["why"]))
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
    return [
        f"{pair['n']:,}",
        percent(pair["champion"], ""),
        percent(pair["candidate"], ""),
        text(points(pair["difference"]), style),
        text(f"{points(pair['low'])} {points(pair['high'])}", style),
        f"{pair['lost']:,}",
        f"{pair['gained']:,}",
        p_value(pair["p"]),
        percent(pair["power"], ""),
    ]


def _what(entry: Document) -> str:
    moved = ", ".join(
        f"{alias} -> {'none' if number is None else number}" for alias, number in entry["aliases"].items()
    )
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
    failed = [*overridden_failures(details)]
    if failed:
        parts.append(f"overriding {', '.join(failed)}")
    if few := [rule for rule in details.get("overrides", ()) if rule not in failed]:
        because = f" ({details['too_few']})" if details.get("too_few") else ""
        parts.append(f"with too few test cells to judge {', '.join(few)}{because}")
    if levels := details.get("merged"):
        parts.append(f"(entry {levels[0]['seq']} of a merged ledger)")
    return " ".join(parts)


def audit_report(document: Document) -> Group:
    """Return the findings, notes and counts of `canal.registry.audit.full_audit.Report.to_json`."""
    findings, notes = document["findings"], document["notes"]
    parts: list[Any] = [_table("Does not hold", findings)] if findings else []
    parts += [_table("To know", notes)] if notes else []
    looked = ", ".join(f"{name} {number:,}" for name, number in document["counts"].items() if number)
    n = len(findings)
    failed = "the check above does not hold" if n == 1 else f"the {n:,} checks above do not hold"
    holds = "what was read holds" if document["counts"].get("versions not read again") else "everything holds"
    message = failed if findings else holds
    if not looked and not findings:
        looked = "nothing is registered yet: `canal run` learns and registers"
    message += f" ({looked}; {span(document['seconds'])})" if looked else f" ({span(document['seconds'])})"
    return Group(*parts, text(message, "bold" if findings else ""))


def reproduction_report(document: Document) -> Group:
    """Return the result of `canal.app.auditing.Reproduction.to_json`, in a few lines."""
    name, commit = f"version {document['version']}", document["commit"][:12]
    if not document["differing"]:
        what = "everything, byte for byte" if document["same_key"] else "the same weights, bit for bit"
    else:
        number, tensors = len(document["differing"]), ", ".join(document["differing"][:5])
        what = f"{number} other tensors ({tensors}{', ...' if number > 5 else ''})"
    lines = [text(f"{name} learned again at commit {commit} in {span(document['seconds'])}: {what}", "bold")]
    for stage, (before, after) in document["accuracy"].items():
        lines.append(text(f"  accuracy on {stage}: registered {_measured(before)}, now {_measured(after)}"))
    if document["differing"]:
        machine = (
            "this machine had to give the same bits"
            if document["same_machine"]
            else ("this machine is another one, which may round differently")
        )
        lines.append(text(f"{'reproduced' if document['reproduced'] else 'not reproduced'}: {machine}"))
    return Group(*lines)


def _measured(value: float | None) -> str:
    return "not measured" if value is None else percent(value)


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
    columns = (Column("model"), Column("no."), Column("stage"), Column("aliases", "names"), Column("key"))
    rows = Listing("Registered again", columns)
    for one in view["versions"]:
        aliases = [*one["aliases"], *(["retired"] if one["retired"] else [])]
        rows.add(one["model"], str(one["version"]), one["stage"], aliases, one["key"][:8])
    parts: list[Any] = [rows] if view["versions"] else [text("No version was registered again.")]
    if view["gone"]:
        gone = Listing(
            "Gone: the number stays free", (Column("model"), Column("no."), Column("why", "prose"))
        )
        for one in view["gone"]:
            gone.add(one["model"], str(one["version"]), one["why"])
        parts.append(gone)
    return Group(*parts)


def _table(title: str, rows: Sequence[Document]) -> Listing:
    found = Listing(title, (Column("where"), Column("check", style="dim"), Column("what", "prose")))
    alike: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        alike.setdefault((row["check"], row["what"]), []).append(row["subject"])
    for (check, what), subjects in alike.items():
        found.add(", ".join(_together(subjects)), check, what)
    return found


def _together(subjects: Sequence[str]) -> Iterator[str]:
    """Yield subjects, those that are versions as one, such as "versions 1-46"."""
    numbers = [int(one.removeprefix(_VERSION)) for one in subjects if _is_version(one)]
    if len(numbers) > 1:
        yield f"versions {ranges(numbers)}"
    yield from (one for one in subjects if len(numbers) < 2 or not _is_version(one))


def _is_version(subject: str) -> bool:
    return subject.startswith(_VERSION) and subject.removeprefix(_VERSION).isdecimal()


_VERSION = "version "
_LONGEST = 60
_SHOWN = 8
_STYLES = {True: "green", False: "red"}


def difference_group(document: Document) -> Group:
    """Return the differences between two versions; see `canal.registry.provenance.diff.difference`.

    What counts comes first: label changes of a file, types, recall and accuracy; then parameters, data, and
    code with digests.
    """
    before, after = document["before"], document["after"]
    heading = f"From version {before['version']} ({before['stage']}) to {after['version']} ({after['stage']})"
    parts: list[Any] = [text(heading, "bold"), text(document["relation"])]
    if document["file"] is not None:
        parts += [Text(), _flows_table(document["file"])]
    parts += [Text(), *_recall(document), Text(), _params_table("parameters", document["params"])]
    if message := shared_sums(document["sums"]):
        parts.append(text(message))
    parts += [Text(), *_data(document), Text(), _params_table("code and digests", document["code"])]
    return Group(*parts)


def _recall(document: Document) -> Iterator[Any]:
    """Yield in words which types appear, go, gain and lose, then the numbers of each stage and type."""
    labels = document["labels"]
    for word, names in (("appear", labels["added"]), ("disappear", labels["removed"])):
        if names:
            yield named(f"{count(len(names), 'type')} {word}{'s' if len(names) == 1 else ''}:", names)
    pairs = [
        (name, stage, pair)
        for stage, types in document["recall"].items()
        for name, pair in types.items()
        if pair["change"]
    ]
    pairs.sort(key=lambda one: -abs(one[2]["change"]) * one[2]["n"])
    for word, sign in (("lose", -1), ("gain", 1)):
        changed = [one for one in pairs if sign * one[2]["change"] > 0]
        cells = sum(round(abs(pair["change"]) * pair["n"]) for _, _, pair in changed)
        shown: list[tuple[str, ...]] = [
            (name, "of", stage, points(pair["change"])) for name, stage, pair in changed[:3]
        ]
        shown += [(f"{len(changed) - 3:,} more",)] if len(changed) > 3 else []
        if changed:
            verb = word + ("s" if len(changed) == 1 else "")
            told = f"{count(len(changed), 'type')} {verb} recall on test cells, {count(cells)} in all"
            yield named(f"{told}:", shown, _STYLES[sign > 0])
    both = [one for types in document["recall"].values() for one in types.values()]
    other = sum(one["change"] is None and None not in (one["before"], one["after"]) for one in both)
    if not pairs:
        yield text("no type that both versions know gains or loses recall on test cells")
    if other:
        left = f"of {count(other, 'type')} test cells left in between; on the cells of both:"
        yield text(
            f"{left} canal compare {document['after']['version']} --with {document['before']['version']}"
        )
    if novelty := _novelty(document):
        yield text(novelty)
    yield Text()
    yield _recall_table(document)


def _novelty(document: Document) -> str:
    """Return how well each version notices held-out types, where they were measured."""
    one = document.get("novelty") or {}
    if one.get("before") is None and one.get("after") is None:
        return ""
    change = "" if one["change"] is None else f" ({points(one['change'], ' points')})"
    return f"novel cells, H-score: {percent(one['before'])} before, {percent(one['after'])} after{change}"


def _data(document: Document) -> Iterator[Any]:
    more, fewer = document["genes"]["added"], document["genes"]["removed"]
    yield _params_table("data", document["data"])
    if more or fewer:
        yield text(f"genes added: {_some(more)}; removed: {_some(fewer)}")


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


def _params_table(name: str, changes: Sequence[Document]) -> Any:
    if not changes:
        return text(f"{name}: the same", "dim")
    found = Listing(name, (Column("what"), Column("before", "prose"), Column("after", "prose")))
    for one in changes:
        found.add(one["path"], _value(one["before"]), _value(one["after"]))
    return found


def _some(names: Sequence[str]) -> str:
    """Return the number of names and the first of them."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names):,} ({shown})" if names else "none"


def _value(value: Any) -> str:
    """Return a value short enough for a table; a digest by its first digits."""
    words = str(value)
    if len(words) in (40, 64) and set(words) <= set("0123456789abcdef"):
        return words[:12]
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def _recall_table(document: Document) -> Listing:
    found = Listing(
        "Accuracy of each stage and recall of each type, %, and the change in points",
        (Column("test cells of"), *figures("cells", "before", "after", "change")),
    )
    for stage, one in document["accuracy"].items():
        found.add(text(stage, "bold"), "", *_changed(one))
        for name, pair in document["recall"].get(stage, {}).items():
            found.add(text(f"  {name}"), f"{pair['n']:,}", *_changed(pair))
    return found


def _changed(pair: Document) -> list[Any]:
    change = pair["change"]
    style = _STYLES[change > 0] if change else ""
    shares = [percent(pair[side], "") for side in ("before", "after")]
    return [*shares, text(points(change), style)]


def _flows_table(file: Document) -> Any:
    changed = f"{file['changed']:,} of {count(file['n_cells'])}"
    if not file["changed"]:
        return text(f"{file['name']}: no cell of {file['n_cells']:,} changes its label", "bold")
    found = Listing(
        f"{file['name']}: {changed} change their label",
        (Column("from"), Column("to"), *figures("cells"), Column("such as", "names", "dim")),
    )
    for one in file["flows"]:
        found.add(one["from"], one["to"], f"{one['n']:,}", one["examples"][:3])
    return found
