"""Run the rules as one Great Expectations suite over one frame of evidence, and write its pages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from html import escape
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from canal.core.errors import GateError
from canal.core.files import new_folder
from canal.core.progress import doing
from canal.quality.rule import Rule
from canal.quality.verdict import RuleResult
from canal.runtime.startup import quiet_libraries

if TYPE_CHECKING:
    import pandas as pd

_ACTION_S = 30
_SEVERITY = {"error": "critical", "warning": "warning"}


@doing("loading Great Expectations")
def great_expectations() -> Any:
    """Return the library, told to be quiet; it takes a second to import."""
    quiet_libraries()
    import great_expectations

    return great_expectations


class Checking:
    """Great Expectations at work on one subject: suites over tables, and pages of their results."""

    def __init__(self, title: str, docs: Path | None) -> None:
        gx = great_expectations()
        self._gx, self._title = gx, title
        self._run_id = gx.RunIdentifier(run_name=title, run_time=datetime.now(UTC))
        self._outcomes: dict[Any, Any] = {}
        self.docs = docs
        self.context: Any = gx.get_context(mode="ephemeral")
        # Progress bars would garble the terminal.
        self.context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
        self._source = self.context.data_sources.add_pandas(name="stages")

    def validate(self, name: str, expectations: Sequence[Any], table: pd.DataFrame, named: str = "") -> Any:
        """Return Great Expectations' outcome of a suite called ``name`` over a table.

        Rows that fail are told by their index, or by the column ``named``.
        """
        # Read back from the suite, expectations have ids, by which their results are found.
        suite = self.context.suites.add(self._gx.ExpectationSuite(name=name, expectations=list(expectations)))
        asset = self._source.add_dataframe_asset(name=f"{self._title}-{name}")
        definition = self._gx.ValidationDefinition(
            name=f"{self._title}-{name}", data=asset.add_batch_definition_whole_dataframe(name), suite=suite
        )
        how: dict[str, Any] = {"result_format": "COMPLETE"}
        return self.context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": table},
            result_format=how | ({"unexpected_index_column_names": [named]} if named else {}),
            run_id=self._run_id,
        )

    def publish(self, outcome: Any, results: Sequence[RuleResult]) -> None:
        """Store an outcome for the pages, as passed unless an error failed: a warning stops nothing."""
        outcome.success = all(result.passed for result in results if result.severity == "error")
        store = self.context.validation_results_store
        (key,) = (
            key for key in store.list_keys() if key.expectation_suite_identifier.name == outcome.suite_name
        )
        store.set(key, outcome)
        self._outcomes[key] = outcome

    def act(self, actions: Sequence[Any]) -> list[str]:
        """Run the actions of a checkpoint on what was published; return a line for each that failed.

        An action talks to somebody else's server: whatever it raises, and however long it takes, the verdict
        stands. Lines name no address, which may be a secret.
        """
        checkpoint = self._gx.Checkpoint(name=self._title, validation_definitions=[], actions=list(actions))
        result = self._gx.checkpoint.checkpoint.CheckpointResult(
            run_id=self._run_id, run_results=self._outcomes, checkpoint_config=checkpoint
        )
        context = self._gx.checkpoint.actions.ActionContext()
        failed: list[str] = []

        def run(action: Any) -> None:
            try:
                with redirect_stdout(StringIO()):
                    said = action.run(checkpoint_result=result, action_context=context)
                context.update(action=action, action_result=said)
            except Exception as error:
                failed.append(f"action {action.name} ({action.type}) failed: {type(error).__name__}")

        # Other actions link to the pages.
        for action in sorted(checkpoint.actions, key=lambda one: one.type != "update_data_docs"):
            thread = Thread(target=run, args=(action,), daemon=True)
            thread.start()
            thread.join(_ACTION_S)
            if thread.is_alive():
                failed.append(f"action {action.name} ({action.type}) has not ended after {_ACTION_S} s")
        return failed


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
    checking = Checking(title, docs)
    with publishing(checking):
        return check_rules(checking, rules, tables)


@doing("checking the gate's rules")
def check_rules(
    checking: Checking, rules: Sequence[Rule], tables: Mapping[str, pd.DataFrame]
) -> list[RuleResult]:
    """Check every rule as one suite, ``gate``, and return their results in the same order."""
    import pandas as pd

    # One frame of all tables; its column ``table`` names the table of a row.
    parts = [table.assign(table=name).astype({"name": object}) for name, table in tables.items()]
    columns = list(dict.fromkeys(column for part in parts for column in part.columns))
    filled = [part.dropna(axis=1, how="all") for part in parts if len(part)]
    frame = pd.concat(filled, ignore_index=True).reindex(columns=columns)
    outcome = checking.validate("gate", [_expectation(rule) for rule in rules], frame)
    by_name = {result.expectation_config.meta["rule"]: result for result in outcome.results}
    results = [_result(rule, by_name[rule.name], frame) for rule in rules]
    if checking.docs is not None:
        for rule, result in zip(rules, results, strict=True):
            _rewrite(rule, result, by_name[rule.name], frame)
    checking.publish(outcome, results)
    return results


def _expectation(rule: Rule) -> Any:
    expectations = great_expectations().expectations
    kind = getattr(expectations, rule.check.expectation)
    # In rows of other tables columns are missing, which fails these two checks alone; conditions are slow.
    rows_matter = rule.check.expectation in (
        "ExpectTableRowCountToBeBetween",
        "ExpectColumnValuesToNotBeNull",
    )
    condition = expectations.row_conditions.Column("table") == rule.check.table if rows_matter else None
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
        failing=() if passed or "name" not in failing else tuple(failing["name"].astype(str)),
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
def publishing(checking: Checking) -> Iterator[None]:
    """Write what is checked in the block as pages into the folder ``checking.docs``, replacing it."""
    if checking.docs is None:
        yield
        return
    context = checking.context
    with new_folder(checking.docs) as folder:
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
    links = [
        f'<li><a href="{quote(name)}">{escape(_named(folder / name, name))}</a></li>'
        for name in sorted(names, reverse=True)
    ]
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace("<body>", f"<body>\n<ul>{''.join(links)}</ul>", 1), encoding="utf-8")
    for animation in folder.rglob("*.gif"):
        animation.unlink()


def _named(page: Path, name: str) -> str:
    """Return what a page shows, in words: the results of a suite and whether it passed, or its rules."""
    kind, suite = name.split("/")[:2]
    if kind != "validations":
        return f"{suite.removesuffix('.html')}: what is expected"
    status = re.search(r"Status:.*?(Succeeded|Failed)", page.read_text(encoding="utf-8"), re.DOTALL)
    word = {"Succeeded": "passed", "Failed": "refused"}[status[1]] if status else "results"
    return f"{suite}: {word}"
