"""What a rule is: a Great Expectations check on one table, its bound in words, and advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from canal.quality.verdict import Severity
from canal.quality.wording import Tell


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
