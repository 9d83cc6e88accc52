"""A rule of the gate: a Great Expectations check on one table, with texts for bound, finding and advice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from canal.quality.verdict import Severity

if TYPE_CHECKING:
    import pandas as pd


EXAMPLES = 5
MOST_DRIFTED = 10


@dataclass(frozen=True)
class Check:
    """A check on one table of `canal.quality.evidence.Evidence`.

    ``expectation`` names a class in ``great_expectations.expectations``; ``arguments`` are its arguments
    besides the table.
    """

    table: str
    expectation: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One rule of the gate; ``describe`` returns its finding as a text."""

    name: str
    severity: Severity
    check: Check
    expected: str
    hint: str
    describe: Describe


def at_least_rows(table: str, least: int) -> Check:
    """Check that the table has ``least`` rows."""
    return Check(table, "ExpectTableRowCountToBeBetween", {"min_value": least})


def between(table: str, column: str, *, least: float | None = None, most: float | None = None) -> Check:
    """Check that a column's values are within bounds; missing values pass."""
    bounds = {"min_value": least, "max_value": most}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    return Check(table, "ExpectColumnValuesToBeBetween", {"column": column, **given})


def among(table: str, column: str, values: Sequence[Any], mostly: float = 1.0) -> Check:
    """Check that at least the share ``mostly`` of a column's values are among ``values`` or missing."""
    arguments = {"column": column, "value_set": list(values), "mostly": mostly}
    return Check(table, "ExpectColumnValuesToBeInSet", arguments)


def not_among(table: str, column: str, values: Sequence[Any], mostly: float = 1.0) -> Check:
    """Check that at least the share ``mostly`` of a column's values are not among ``values``."""
    arguments = {"column": column, "value_set": list(values), "mostly": mostly}
    return Check(table, "ExpectColumnValuesToNotBeInSet", arguments)


def unique(table: str, column: str) -> Check:
    """Check that no value of a column occurs twice."""
    return Check(table, "ExpectColumnValuesToBeUnique", {"column": column})


def present(table: str, column: str) -> Check:
    """Check that no value of a column is missing."""
    return Check(table, "ExpectColumnValuesToNotBeNull", {"column": column})


def absent(table: str, column: str) -> Check:
    """Check that every value of a column is missing."""
    return Check(table, "ExpectColumnValuesToBeNull", {"column": column})


def no_more_than(table: str, column: str, bound: str) -> Check:
    """Check that the column ``bound`` is at least ``column`` in every row that has both."""
    arguments = {
        "column_A": bound,
        "column_B": column,
        "or_equal": True,
        "ignore_row_if": "either_value_is_missing",
    }
    return Check(table, "ExpectColumnPairValuesAToBeGreaterThanB", arguments)


# Findings of a rule: a text, and the names of some rows that fail.


class RuleFinding(NamedTuple):
    """The finding of a rule as a text, with a few of the rows that fail."""

    found: str
    examples: tuple[str, ...] = ()


Describe = Callable[["pd.DataFrame", "pd.DataFrame"], RuleFinding]
"""Takes the rows that a rule was checked on, and those of them that fail."""


def describe_row_count(things: str) -> Describe:
    """Describe the number of rows."""
    return lambda rows, _: RuleFinding(f"{len(rows)} {things}")


def describe_names(things: str) -> Describe:
    """Describe how many rows fail, and name the first."""
    return lambda rows, failing: RuleFinding(_share(things, rows, failing), tuple(failing["name"][:EXAMPLES]))


def describe_values(things: str, column: str, noun: str, *, smallest: bool = False) -> Describe:
    """Describe how many rows fail, and name those with the largest (or smallest) value."""

    def describe(rows: pd.DataFrame, failing: pd.DataFrame) -> RuleFinding:
        worst = failing.sort_values(column, ascending=smallest, kind="stable")[:EXAMPLES]
        pairs = zip(worst["name"], worst[column], strict=True)
        return RuleFinding(
            _share(things, rows, failing), tuple(f"{name} ({_number(value)} {noun})" for name, value in pairs)
        )

    return describe


def describe_groups(things: str, column: str, noun: str, names: str | None = None) -> Describe:
    """Describe how many rows fail, and the most frequent of their values with their numbers.

    Where ``names`` is a column, an example of each value's rows is named, too.
    """

    def describe(rows: pd.DataFrame, failing: pd.DataFrame) -> RuleFinding:
        sizes = failing[column].value_counts()
        ordered = sorted(sizes.items(), key=lambda item: (-item[1], str(item[0])))[:EXAMPLES]
        such = {} if names is None else failing.groupby(column)[names].first().to_dict()
        return RuleFinding(
            _share(things, rows, failing),
            tuple(
                f"{value} ({count:,} {noun}{f', such as {such[value]}' if value in such else ''})"
                for value, count in ordered
            ),
        )

    return describe


def describe_quoted(column: str) -> Describe:
    """Describe how many types fail, and quote the first with their value of ``column``."""

    def describe(rows: pd.DataFrame, failing: pd.DataFrame) -> RuleFinding:
        worst = failing[:EXAMPLES]
        beside = "{!r} beside {!r}" if column == "twin" else "{!r} ({:,.0f} cells)"
        pairs = zip(worst["name"], worst[column], strict=True)
        return RuleFinding(_share("types", rows, failing), tuple(beside.format(*pair) for pair in pairs))

    return describe


def describe_texts(things: str, column: str) -> Describe:
    """Describe how many rows fail, and name the first with their text of ``column``."""

    def describe(rows: pd.DataFrame, failing: pd.DataFrame) -> RuleFinding:
        pairs = zip(failing["name"][:EXAMPLES], failing[column][:EXAMPLES], strict=True)
        return RuleFinding(_share(things, rows, failing), tuple(f"{name} ({text})" for name, text in pairs))

    return describe


def describe_coverage(rows: pd.DataFrame, failing: pd.DataFrame) -> RuleFinding:
    """Describe the share of the panel that the source has, and name some genes that it lacks."""
    if not len(rows):
        return RuleFinding("no panel yet")
    has = len(rows) - len(failing)
    lacking = tuple(f"no {name}" for name in failing["name"][:EXAMPLES])
    return RuleFinding(f"{has / len(rows):.0%} ({has} of {len(rows)})", lacking)


def describe_known(rows: pd.DataFrame, failing: pd.DataFrame) -> RuleFinding:
    """Describe how many symbols are known, and name some that are not."""
    known = len(rows) - len(failing)
    return RuleFinding(f"known: {known:,} of {len(rows):,}", tuple(failing["name"][:EXAMPLES]))


def describe_units(rows: pd.DataFrame, _: pd.DataFrame) -> RuleFinding:
    """Describe the units that the values look like."""
    return RuleFinding(_word(rows["units"].iloc[0], "nothing that contradicts it"))


def describe_column(column: str) -> Describe:
    """Describe a file by a column of its row."""

    def describe(rows: pd.DataFrame, _: pd.DataFrame) -> RuleFinding:
        return RuleFinding(_word(rows[column].iloc[0], "nothing"))

    return describe


def describe_drift(rows: pd.DataFrame, failing: pd.DataFrame) -> RuleFinding:
    """Describe how many genes drifted, and name the ten that drifted most."""
    compared = int(rows["drift"].notna().sum())
    if not compared:
        return RuleFinding("nothing to compare with")
    worst = failing.sort_values("drift", ascending=False, kind="stable")[:MOST_DRIFTED]
    pairs = zip(worst["name"], worst["drift"], strict=True)
    found = f"{len(failing)} of {compared} genes ({len(failing) / compared:.0%})"
    return RuleFinding(found, tuple(f"{name} (PSI {value:.2f})" for name, value in pairs))


def describe_depth(rows: pd.DataFrame, _: pd.DataFrame) -> RuleFinding:
    """Describe the median share of panel genes per cell, in this and in the nearest earlier stage."""
    row = rows.iloc[0]
    if row["depth_ratio"] != row["depth_ratio"]:
        return RuleFinding("nothing to compare with")
    return RuleFinding(
        f"{row['depth_ratio']:.1f} times: a median cell expresses {row['depth']:.1%} of the panel genes that "
        f"the source has, before {row['depth_before']:.1%}"
    )


def _share(things: str, rows: pd.DataFrame, failing: pd.DataFrame) -> str:
    return f"{len(failing):,} of {len(rows):,} {things}"


def _number(value: float) -> str:
    if value != value or abs(value) == float("inf"):
        return "infinite"
    return f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:,.1f}"


def _word(value: object, otherwise: str) -> str:
    return value if isinstance(value, str) else otherwise
