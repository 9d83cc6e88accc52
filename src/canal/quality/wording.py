"""Putting what a rule found into words: a sentence, and the names of some offenders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 5
MOST_DRIFTED = 10


class Told(NamedTuple):
    """What was found, and at most a few offenders."""

    found: str
    examples: tuple[str, ...] = ()


Tell = Callable[["pd.DataFrame", "pd.DataFrame"], Told]
"""Takes the rows a rule looked at and those of them that fail it."""


def row_count(things: str) -> Tell:
    """Tell how many rows there are."""
    return lambda rows, _: Told(f"{len(rows)} {things}")


def names(things: str) -> Tell:
    """Tell how many fail, and name the first."""
    return lambda rows, failing: Told(_share(things, rows, failing), tuple(failing["name"][:EXAMPLES]))


def values(things: str, column: str, noun: str, *, smallest: bool = False) -> Tell:
    """Tell how many fail, and name those with the largest (or smallest) value."""

    def tell(rows: pd.DataFrame, failing: pd.DataFrame) -> Told:
        worst = failing.sort_values(column, ascending=smallest, kind="stable")[:EXAMPLES]
        pairs = zip(worst["name"], worst[column], strict=True)
        return Told(
            _share(things, rows, failing), tuple(f"{name} ({_number(value)} {noun})" for name, value in pairs)
        )

    return tell


def groups(things: str, column: str, noun: str) -> Tell:
    """Tell how many fail, and the most frequent of their values with how often each is there."""

    def tell(rows: pd.DataFrame, failing: pd.DataFrame) -> Told:
        sizes = failing[column].value_counts()
        ordered = sorted(sizes.items(), key=lambda item: (-item[1], str(item[0])))[:EXAMPLES]
        return Told(
            _share(things, rows, failing), tuple(f"{value} ({count:,} {noun})" for value, count in ordered)
        )

    return tell


def quoted(column: str) -> Tell:
    """Tell how many types fail, and name the first in quotation marks, with what ``column`` says of them."""

    def tell(rows: pd.DataFrame, failing: pd.DataFrame) -> Told:
        worst = failing[:EXAMPLES]
        beside = "{!r} beside {!r}" if column == "twin" else "{!r} ({:,.0f} cells)"
        pairs = zip(worst["name"], worst[column], strict=True)
        return Told(_share("types", rows, failing), tuple(beside.format(*pair) for pair in pairs))

    return tell


def coverage(rows: pd.DataFrame, failing: pd.DataFrame) -> Told:
    """Tell what share of the panel the source has, and name some genes it lacks."""
    if not len(rows):
        return Told("no panel yet")
    has = len(rows) - len(failing)
    lacking = tuple(f"no {name}" for name in failing["name"][:EXAMPLES])
    return Told(f"{has / len(rows):.0%} ({has} of {len(rows)})", lacking)


def units(rows: pd.DataFrame, _: pd.DataFrame) -> Told:
    """Tell what units the values look like."""
    return Told(_word(rows["units"].iloc[0], "nothing that contradicts it"))


def said(column: str) -> Tell:
    """Tell what a column of the row about the file says."""

    def tell(rows: pd.DataFrame, _: pd.DataFrame) -> Told:
        return Told(_word(rows[column].iloc[0], "nothing"))

    return tell


def drift(rows: pd.DataFrame, failing: pd.DataFrame) -> Told:
    """Tell how many genes drifted, and name the ten that drifted most."""
    compared = int(rows["drift"].notna().sum())
    if not compared:
        return Told("nothing to compare with")
    worst = failing.sort_values("drift", ascending=False, kind="stable")[:MOST_DRIFTED]
    pairs = zip(worst["name"], worst["drift"], strict=True)
    found = f"{len(failing)} of {compared} genes ({len(failing) / compared:.0%})"
    return Told(found, tuple(f"{name} (PSI {value:.2f})" for name, value in pairs))


def depth(rows: pd.DataFrame, _: pd.DataFrame) -> Told:
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
