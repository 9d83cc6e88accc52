"""A verdict as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from canal.core.messages import visible
from canal.quality.verdict import RuleResult, Verdict

if TYPE_CHECKING:
    from rich.table import Table

_STYLE = {"passed": "green", "warning": "yellow", "error": "bold red"}


def render(verdict: Verdict, only_failed: bool = False) -> Table:
    """Return the rules of ``verdict`` as a table that rich can print: errors red, warnings yellow.

    Failed rules come with offenders and with what to do. Without a terminal, rich leaves the colours out.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text as Plain

    def text(value: str, style: str = "") -> Plain:
        return Plain(visible(value), style)

    table = Table(
        title=text(f"Gate of stage {verdict.stage}, source {verdict.source}"),
        caption=text(summary(verdict)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    for heading in ("rule", "verdict", "expected", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for rule in verdict.rules:
        if rule.passed and only_failed:
            continue
        word = "passed" if rule.passed else rule.severity
        found = _found(rule)
        # Text, for names of cells and labels may hold brackets, which rich would read as markup.
        style = "" if rule.passed else _STYLE[word]
        cells = [text(rule.rule, style), text(word, _STYLE[word]), text(rule.expected), text(found, style)]
        table.add_row(*cells, text(rule.hint))
    return table


def summary(verdict: Verdict) -> str:
    """Return one line: passed or refused, by how many rules, and how many cells and types there are."""
    errors, warnings = len(verdict.failures("error")), len(verdict.failures("warning"))
    word = "passed" if verdict.passed else "refused"
    cells, types = verdict.counts["cells"], len(verdict.counts["types"])
    return (
        f"{word}: {errors} error(s), {warnings} warning(s) in {len(verdict.rules)} rules; "
        f"{cells:,} cells of {types} type(s)"
    )


def _found(rule: RuleResult) -> str:
    examples = "" if rule.passed or not rule.examples else ": " + ", ".join(rule.examples)
    return rule.found + examples
