"""Terminal tables of what is asked before a stage is learned: the gate's rules, and proposals for labels."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from canal.core.progress import count, percent
from canal.report.listing import Column, Listing, figures, text

if TYPE_CHECKING:
    from canal.quality.verdict import RuleResult, Verdict

Document = Mapping[str, Any]

_MOST_EXAMPLES = 5
_STYLE = {"passed": "green", "warning": "yellow", "error": "bold red"}


def verdict_table(verdict: "Verdict", everything: bool = False) -> Group:
    """Return the rules that do not hold as a table that rich can print: errors, then warnings.

    Each comes with offenders and with what to do. The rules that hold are one line, and listed below the
    others if ``everything``. Without a terminal, rich leaves the colours out.
    """
    columns = (Column("rule"), Column("verdict"), *(Column(one, "prose") for one in ("found", "expected")))
    rows = Listing(
        f"Gate of stage {verdict.stage}, source {verdict.source}", (*columns, Column("what to do", "prose"))
    )
    for rule in (*verdict.failures("error"), *verdict.failures("warning")):
        # Text, for names of cells and labels may hold brackets, which rich would read as markup.
        style = _STYLE[rule.severity]
        found = text(finding(rule) + _examples(rule), style)
        rows.add(text(rule.rule, style), text(rule.severity, style), found, rule.expected, rule.hint)
    holding = [rule for rule in verdict.rules if rule.passed]
    for rule in holding if everything else ():
        rows.add(rule.rule, text("passed", _STYLE["passed"]), finding(rule), rule.expected)
    last: list[Text] = []
    if holding and not everything:
        n = len(holding)
        last = [text(f"{n} rule holds" if n == 1 else f"{n} rules hold", _STYLE["passed"])]
    failing = [rows] if everything or len(holding) < len(verdict.rules) else [text(rows.title, "bold")]
    return Group(*failing, *last, text(verdict_line(verdict)))


def _examples(rule: "RuleResult") -> str:
    more = len(rule.examples) - _MOST_EXAMPLES
    shown = f": {', '.join(rule.examples[:_MOST_EXAMPLES])}" if rule.examples else ""
    return shown + (f" and {more} more" if more > 0 else "")


_FAILING = {
    "cell_ids_unique": "with the name of another cell",
    "genes_unique": "with the symbol of another gene",
    "not_tested_on_before": "that an earlier stage tests on",
    "not_pretrained_on": "that the backbone was pretrained on",
    "values_finite": "with NaN or an infinite value",
    "values_not_negative": "with a value below 0",
    "counts_are_whole": "with a fractional value",
    "logarithms_not_counts": "of whole numbers only",
    "totals_within_10k": "with too large a total",
    "labels_present": "without a label",
    "labels_in_map": "with a label that the map lacks",
    "types_are_types": "with a name that is no cell type's",
    "types_told_apart": "that differ from another in case or blanks alone",
    "enough_cells_per_type": "with too few cells",
    "types_balanced": "with far fewer cells than the largest",
    "types_in_every_set": "without cells in each set",
    "symbols_not_ensembl": "named by an Ensembl id",
    "symbols_human": "not spelt as human genes",
    "symbols_mouse": "not spelt as a mouse's genes",
    "features_are_genes": "that are no genes",
    "tokens_like_before": "expressed otherwise than before",
}
"""What is wrong with the rows that a rule counts."""
_TOLERANT = ("symbols_not_ensembl", "symbols_human", "symbols_mouse")
"""Rules that hold while at most half of the rows are wrong."""
_COUNTED = re.compile(r"([\d,]+) of ([\d,]+) (\w+)(.*)", re.DOTALL)
_COVERED = re.compile(r"\d+% \((\d+) of (\d+)\)")
_SHARE = re.compile(r"at least (\d+)%")


def finding(rule: "RuleResult") -> str:
    """Return what a rule found as words with a noun, such as "0 cells without a label (at most 0)".

    A verdict keeps what was found in numbers alone ("0 of 600 cells"): its bytes are part of the key of the
    version that was learned after it.
    """
    if covered := _COVERED.fullmatch(rule.found):
        has, panel = (int(number) for number in covered.groups())
        share = _SHARE.match(rule.expected)
        bound = f" (at least {math.ceil(int(share[1]) * panel / 100):,})" if share else ""
        return f"{has:,} of {panel:,} panel genes found{bound}"
    counted = _COUNTED.fullmatch(rule.found)
    if counted is None:
        return rule.found
    n, rows, things, rest = counted.groups()
    wrong = _FAILING.get(rule.rule, "that do not meet it")
    most = "half" if rule.rule in _TOLERANT else "0"
    bound = "" if rest else f" (at most {most})"
    return (
        f"{n} {things} {wrong}{rest}{bound}" if n == "0" else f"{n} of {rows} {things} {wrong}{rest}{bound}"
    )


def verdict_line(verdict: "Verdict") -> str:
    """Return one line: passed or refused, by how many rules, and the number of cells and of types, if any."""
    errors, warnings = len(verdict.failures("error")), len(verdict.failures("warning"))
    word = "passed" if verdict.passed else "refused"
    cells, types = verdict.counts["cells"], len(verdict.counts["types"])
    return (
        f"{word}: {count(errors, 'error')}, {count(warnings, 'warning')} in {len(verdict.rules)} rules; "
        f"{count(cells)}" + (f" of {count(types, 'type')}" if types else "")
    )


_MOST_LABELS = 60
"""Rows of the table of labels: more are read in the sheet."""
_LONGEST_LABEL = 60


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"


def map_table(found: Document) -> Any:
    """Return the proposals of `canal stage map`: a row for each label, ambiguous ones first."""
    n, labels = found["ambiguous"], found["labels"]
    if not labels:
        return text("no cell has a label: name the obs column that holds the cell types with --label")
    title = f"{n:,} of {len(labels):,} labels ambiguous: a person decides" if n else ""
    rows = Listing(
        title,
        (
            Column("label"),
            *figures("cells"),
            Column("proposed"),
            Column("by"),
            Column("model", "names"),
            Column("why ambiguous", "prose"),
        ),
    )
    if (more := len(labels) - _MOST_LABELS) > 0:
        rows.note = f"and {more:,} more labels: the sheet (-o SHEET.csv) lists all of them"
    for one in labels[:_MOST_LABELS]:
        style = _STYLE["warning"] if one["ambiguous"] else ""
        share = f"{one['model_type']} {percent(one['model_share'])}" if one["model_share"] else ""
        novel = f"Unassigned {percent(one['unassigned'])}" if one["unassigned"] else ""
        rows.add(
            text(_short(one["label"]), style),
            f"{one['n_cells']:,}",
            text(_short(one["proposed"]) or "?", style),
            one["by"],
            [part for part in (share, novel) if part],
            one["ambiguous"],
        )
    return rows
