"""What a rule is: a Great Expectations check on one table, and words for its bound, finding, advice."""

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

    ``expectation`` names a class in ``great_expectations.expectations``; ``arguments`` are what it is given
    besides the table.
    """

    table: str
    expectation: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One rule of the gate; ``tell`` puts what was found into words."""

    name: str
    severity: Severity
    check: Check
    expected: str
    hint: str
    tell: Tell


def at_least_rows(table: str, least: int) -> Check:
    """Check that the table has ``least`` rows."""
    return Check(table, "ExpectTableRowCountToBeBetween", {"min_value": least})


def between(table: str, column: str, *, least: float | None = None, most: float | None = None) -> Check:
    """Check that a column's values lie within bounds; a missing value does."""
    bounds = {"min_value": least, "max_value": most}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    return Check(table, "ExpectColumnValuesToBeBetween", {"column": column, **given})


def among(table: str, column: str, values: Sequence[Any], mostly: float = 1.0) -> Check:
    """Check that at least the share ``mostly`` of a column's values are among ``values``, or missing."""
    arguments = {"column": column, "value_set": list(values), "mostly": mostly}
    return Check(table, "ExpectColumnValuesToBeInSet", arguments)


def not_among(table: str, column: str, values: Sequence[Any], mostly: float = 1.0) -> Check:
    """Check that at least the share ``mostly`` of a column's values are not among ``values``."""
    arguments = {"column": column, "value_set": list(values), "mostly": mostly}
    return Check(table, "ExpectColumnValuesToNotBeInSet", arguments)


def unique(table: str, column: str) -> Check:
    """Check that no value of a column is there twice."""
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


# What a rule found: a sentence, and the names of some offenders.


class Told(NamedTuple):
    """What was found, and at most a few offenders."""

    found: str
    examples: tuple[str, ...] = ()


Tell = Callable[["pd.DataFrame", "pd.DataFrame"], Told]
"""Takes the rows a rule looked at and those of them that fail it."""


def tell_row_count(things: str) -> Tell:
    """Tell how many rows there are."""
    return lambda rows, _: Told(f"{len(rows)} {things}")


def tell_names(things: str) -> Tell:
    """Tell how many fail, and name the first."""
    return lambda rows, failing: Told(_share(things, rows, failing), tuple(failing["name"][:EXAMPLES]))


def tell_values(things: str, column: str, noun: str, *, smallest: bool = False) -> Tell:
    """Tell how many fail, and name those with the largest (or smallest) value."""

    def tell(rows: pd.DataFrame, failing: pd.DataFrame) -> Told:
        worst = failing.sort_values(column, ascending=smallest, kind="stable")[:EXAMPLES]
        pairs = zip(worst["name"], worst[column], strict=True)
        return Told(
            _share(things, rows, failing), tuple(f"{name} ({_number(value)} {noun})" for name, value in pairs)
        )

    return tell


def tell_groups(things: str, column: str, noun: str) -> Tell:
    """Tell how many fail, and the most frequent of their values with how often each is there."""

    def tell(rows: pd.DataFrame, failing: pd.DataFrame) -> Told:
        sizes = failing[column].value_counts()
        ordered = sorted(sizes.items(), key=lambda item: (-item[1], str(item[0])))[:EXAMPLES]
        return Told(
            _share(things, rows, failing), tuple(f"{value} ({count:,} {noun})" for value, count in ordered)
        )

    return tell


def tell_quoted(column: str) -> Tell:
    """Tell how many types fail, and name the first in quotation marks, with what ``column`` says of them."""

    def tell(rows: pd.DataFrame, failing: pd.DataFrame) -> Told:
        worst = failing[:EXAMPLES]
        beside = "{!r} beside {!r}" if column == "twin" else "{!r} ({:,.0f} cells)"
        pairs = zip(worst["name"], worst[column], strict=True)
        return Told(_share("types", rows, failing), tuple(beside.format(*pair) for pair in pairs))

    return tell


def tell_coverage(rows: pd.DataFrame, failing: pd.DataFrame) -> Told:
    """Tell what share of the panel the source has, and name some genes it lacks."""
    if not len(rows):
        return Told("no panel yet")
    has = len(rows) - len(failing)
    lacking = tuple(f"no {name}" for name in failing["name"][:EXAMPLES])
    return Told(f"{has / len(rows):.0%} ({has} of {len(rows)})", lacking)


def tell_units(rows: pd.DataFrame, _: pd.DataFrame) -> Told:
    """Tell what units the values look like."""
    return Told(_word(rows["units"].iloc[0], "nothing that contradicts it"))


def tell_said(column: str) -> Tell:
    """Tell what a column of the row about the file says."""

    def tell(rows: pd.DataFrame, _: pd.DataFrame) -> Told:
        return Told(_word(rows[column].iloc[0], "nothing"))

    return tell


def tell_drift(rows: pd.DataFrame, failing: pd.DataFrame) -> Told:
    """Tell how many genes drifted, and name the ten that drifted most."""
    compared = int(rows["drift"].notna().sum())
    if not compared:
        return Told("nothing to compare with")
    worst = failing.sort_values("drift", ascending=False, kind="stable")[:MOST_DRIFTED]
    pairs = zip(worst["name"], worst["drift"], strict=True)
    found = f"{len(failing)} of {compared} genes ({len(failing) / compared:.0%})"
    return Told(found, tuple(f"{name} (PSI {value:.2f})" for name, value in pairs))


def tell_depth(rows: pd.DataFrame, _: pd.DataFrame) -> Told:
    """Tell the typical cell's share of panel genes, now and in the earlier stage that is nearest."""
    row = rows.iloc[0]
    if row["depth_ratio"] != row["depth_ratio"]:
        return Told("nothing to compare with")
    return Told(
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
