"""Terminal tables of what is asked before a stage is learned: the gate's rules, and proposals for labels."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from canal.report.terminal import rules_fit, text

if TYPE_CHECKING:
    from canal.quality.verdict import Verdict

Document = Mapping[str, Any]

_MOST_EXAMPLES = 5
_STYLE = {"passed": "green", "warning": "yellow", "error": "bold red"}


def verdict_table(verdict: "Verdict", everything: bool = False) -> Table:
    """Return the rules that do not hold as a table that rich can print: errors, then warnings.

    Each comes with offenders and with what to do. The rules that hold are one line, and listed below the
    others if ``everything``. Without a terminal, rich leaves the colours out.
    """
    found = Table(
        title=text(f"Gate of stage {verdict.stage}, source {verdict.source}"),
        caption=text(verdict_line(verdict)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    shown = verdict.rules if everything else (*verdict.failures("error"), *verdict.failures("warning"))
    found.add_column("rule", overflow="fold", no_wrap=rules_fit(rule.rule for rule in shown))
    for heading in ("verdict", "expected", "found", "what to do"):
        found.add_column(heading, overflow="fold")
    for rule in (*verdict.failures("error"), *verdict.failures("warning")):
        examples = f": {', '.join(rule.examples[:_MOST_EXAMPLES])}" if rule.examples else ""
        more = len(rule.examples) - _MOST_EXAMPLES
        description = f"{rule.found}{examples}" + (f" and {more} more" if more > 0 else "")
        # Text, for names of cells and labels may hold brackets, which rich would read as markup.
        style = _STYLE[rule.severity]
        cells = [text(rule.rule, style), text(rule.severity, style), text(rule.expected)]
        found.add_row(*cells, text(description, style), text(rule.hint))
    holding = [rule for rule in verdict.rules if rule.passed]
    if everything:
        for rule in holding:
            word = text("passed", _STYLE["passed"])
            found.add_row(text(rule.rule), word, text(rule.expected), text(rule.found))
    elif holding:
        n = len(holding)
        found.add_row(f"{n} rule holds" if n == 1 else f"{n} rules hold", text("passed", _STYLE["passed"]))
    return found


def verdict_line(verdict: "Verdict") -> str:
    """Return one line: passed or refused, by how many rules, and the number of cells and of types, if any."""
    errors, warnings = len(verdict.failures("error")), len(verdict.failures("warning"))
    word = "passed" if verdict.passed else "refused"
    cells, types = verdict.counts["cells"], len(verdict.counts["types"])
    return (
        f"{word}: {errors} error(s), {warnings} warning(s) in {len(verdict.rules)} rules; "
        f"{cells:,} cells" + (f" of {types} type(s)" if types else "")
    )


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
        style = _STYLE["warning"] if one["ambiguous"] else ""
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
