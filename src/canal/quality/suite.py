"""Run the rules as one Great Expectations suite over one frame of evidence, and write its pages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from canal.core.errors import GateError
from canal.core.files import new_folder
from canal.quality.rule import Rule
from canal.quality.verdict import RuleResult
from canal.runtime.startup import quiet_libraries

if TYPE_CHECKING:
    import pandas as pd

_SEVERITY = {"error": "critical", "warning": "warning"}


def run_suite(
    rules: Sequence[Rule], tables: Mapping[str, pd.DataFrame], title: str, docs: Path | None
) -> list[RuleResult]:
    """Check every rule and return their results in the same order.

    Parameters
    ----------
    title
        Names the page of the Data Docs.
    docs
        Folder for Great Expectations' pages, which is replaced; None writes none.

    Raises
    ------
    GateError
        If a rule could not be evaluated.
    """
    quiet_libraries()
    import great_expectations
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = great_expectations.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)  # they would garble the terminal
    suite = great_expectations.ExpectationSuite(
        name="gate", expectations=[_expectation(rule) for rule in rules]
    )
    asset = context.data_sources.add_pandas(name="stages").add_dataframe_asset(name=title)
    validation = great_expectations.ValidationDefinition(
        name=title, data=asset.add_batch_definition_whole_dataframe("cells"), suite=context.suites.add(suite)
    )
    validation = context.validation_definitions.add(validation)
    # One frame of all tables; its column ``table`` names the table of a row.
    parts = [table.assign(table=name).astype({"name": object}) for name, table in tables.items()]
    columns = list(dict.fromkeys(column for part in parts for column in part.columns))
    filled = [part.dropna(axis=1, how="all") for part in parts if len(part)]
    frame = pd.concat(filled, ignore_index=True).reindex(columns=columns)
    with publishing(context, docs):
        outcome: Any = validation.run(
            batch_parameters={"dataframe": frame}, result_format={"result_format": "COMPLETE"}
        )
        by_name = {result.expectation_config.meta["rule"]: result for result in outcome.results}
        results = [_result(rule, by_name[rule.name], frame) for rule in rules]
        if docs is not None:
            for rule, result in zip(rules, results, strict=True):
                _rewrite(rule, result, by_name[rule.name], frame)
            # A warning stops nothing, so it is no failure of the page.
            outcome.success = all(result.passed for result in results if result.severity == "error")
            store_again(context, outcome)
    return results


def _expectation(rule: Rule) -> Any:
    from great_expectations import expectations
    from great_expectations.expectations.row_conditions import Column

    kind = getattr(expectations, rule.check.expectation)
    # In rows of other tables columns are missing, which fails these two checks alone; conditions are slow.
    rows_matter = rule.check.expectation in (
        "ExpectTableRowCountToBeBetween",
        "ExpectColumnValuesToNotBeNull",
    )
    condition = Column("table") == rule.check.table if rows_matter else None
    return kind(
        **rule.check.arguments,
        row_condition=condition,
        severity=_SEVERITY[rule.severity],
        meta={"rule": rule.name, "severity": rule.severity},
        description=f"{rule.name} ({rule.severity}): {rule.expected}",
    )


def _rewrite(rule: Rule, result: RuleResult, outcome: Any, frame: pd.DataFrame) -> None:
    """Rewrite an outcome for the pages: numbers and names of rows of the rule's own table.

    Great Expectations counts and numbers all rows of the frame.
    """
    config, facts = outcome.expectation_config, outcome.result
    config.description = f"{config.description}; found {result.found}"
    if "unexpected_count" not in facts:
        return
    columns = [value for key, value in rule.check.arguments.items() if key.startswith("column")]
    rows = frame[frame["table"] == rule.check.table]
    failing, n_rows = facts["unexpected_count"], max(1, len(rows))
    facts["element_count"] = len(rows)
    facts["missing_count"] = int(rows[columns].isna().any(axis=1).sum())
    for share in ("unexpected_percent", "unexpected_percent_total", "unexpected_percent_nonmissing"):
        facts[share] = 100.0 * failing / n_rows
    facts["missing_percent"] = 100.0 * facts["missing_count"] / n_rows
    facts.pop("unexpected_index_query", None)
    if columns and (indices := facts.get("unexpected_index_list")):
        named = frame.loc[indices, [*columns, "name"]].rename(columns={"name": rule.check.table})
        facts["unexpected_index_column_names"] = [rule.check.table]
        facts["unexpected_index_list"] = named.astype(object).to_dict("records")


def _result(rule: Rule, outcome: Any, frame: pd.DataFrame) -> RuleResult:
    """Return the outcome of Great Expectations as the result of a rule."""
    if outcome.exception_info.get("raised_exception", True):
        message = outcome.exception_info.get("exception_message", outcome.exception_info)
        raise GateError(f"rule {rule.name} could not be evaluated: {message}")
    rows = frame[frame["table"] == rule.check.table]
    failing = frame.loc[sorted(outcome.result.get("unexpected_index_list") or [])]
    finding = rule.describe(rows, failing)
    passed = bool(outcome.success)
    return RuleResult(
        rule=rule.name,
        severity=rule.severity,
        passed=passed,
        expected=rule.expected,
        found=finding.found,
        examples=finding.examples,
        hint="" if passed else rule.hint,
    )


# Great Expectations' Data Docs, made readable without a network.

_REMOTE = re.compile(
    r"<link\b[^>]*\bhref=[\"']https?://[^>]*>"
    r"|<script\b[^>]*\bsrc=[\"']https?://[^>]*>\s*</script>"
    r"|<img\b[^>]*\bsrc=[\"']https?://[^>]*>",
)
_REMOTE_STYLE = re.compile(r"url\(['\"]?https?://[^)]*\)")

# Replaces Bootstrap and Font Awesome, which the pages would fetch: it hides dialogues and draws the marks.
_STYLE = """<style>
body { font-family: sans-serif; margin: 1.5em; max-width: 90em }
.modal, .d-none, .navbar, .collapse, footer, button, .ge-index-page-tabs-container { display: none }
table { border-collapse: collapse } td, th { border: 1px solid #bbb; padding: .3em .6em; text-align: left }
.text-success { color: #18794e } .text-danger { color: #b42318 } .text-warning { color: #946800 }
.fa-check-circle::before { content: "\\2714" } .fa-times::before { content: "\\2718" }
.fa-exclamation-triangle::before { content: "!" }
</style>
</head>"""


@contextmanager
def publishing(context: Any, docs: Path | None) -> Iterator[None]:
    """Write what ``context`` validates in the block as pages into ``docs``, replacing it; None: nowhere."""
    if docs is None:
        yield
        return
    with new_folder(docs) as folder:
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(folder.resolve()),
            },
        }
        context.add_data_docs_site("docs", site)
        yield
        context.build_data_docs(site_names=["docs"])
        _make_offline(folder)


def store_again(context: Any, outcome: Any) -> None:
    """Store ``outcome`` again in ``context``, so that the pages show its changes."""
    store = context.validation_results_store
    (key,) = store.list_keys()
    store.set(key, outcome)


def _make_offline(folder: Path) -> None:
    """Remove from every page below ``folder`` what it would fetch, and add a style and links instead."""
    pages = sorted(folder.rglob("*.html"))
    for page in pages:
        text = _REMOTE.sub("", page.read_text(encoding="utf-8"))
        text = _REMOTE_STYLE.sub("none", text)
        page.write_text(text.replace("</head>", _STYLE, 1), encoding="utf-8")
    # A script that is not there any more would list the pages.
    index = folder / "index.html"
    names = [page.relative_to(folder).as_posix() for page in pages if page != index]
    links = [f'<li><a href="{quote(name)}">{escape(name)}</a></li>' for name in names]
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace("<body>", f"<body>\n<ul>{''.join(links)}</ul>", 1), encoding="utf-8")
    for animation in folder.rglob("*.gif"):
        animation.unlink()
