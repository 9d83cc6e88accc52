"""The rulings of the policy in an entry of the ledger: which there must be, and what each may say."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

ALWAYS = ("gate", "audit", "clean", "accuracy", "retention", "h_score", "ece")
"""Rules of every promotion; there is a ruling on retention for each stage."""

_FIELDS: Mapping[str, type] = {"rule": str, "value": str, "bound": str, "passed": bool, "overridden": bool}
_BOUND = re.compile(r"(<=|>=) (\d+\.\d+)")
_NUMBER = re.compile(r"-?\d+\.\d+")


def ruling_breaches(details: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults of the rulings and overrides in the details of a promotion."""
    rulings = details.get("rulings")
    if not isinstance(rulings, list) or not all(is_ruling(one) for one in rulings):
        yield "it holds no rulings that can be read"
        return
    ruled = {str(one["rule"]).partition(":")[0] for one in rulings}
    if missing := [rule for rule in ALWAYS if rule not in ruled]:
        yield f"it holds no ruling on {', '.join(missing)}"
    failing = [str(one["rule"]) for one in rulings if not one["passed"] and not one["overridden"]]
    if failing:
        yield f"{_listed(failing)} failed, and nobody overrode that"
    overridden = [str(one["rule"]) for one in rulings if one["overridden"]]
    named = details.get("overrides")
    if named != overridden:
        yield f"the overrides that it names are not those of its rulings ({_listed(overridden) or 'none'})"
    for one in rulings:
        bound, value = _BOUND.fullmatch(one["bound"]), _NUMBER.fullmatch(one["value"])
        if not one["passed"] or bound is None or value is None:
            continue
        number, limit = float(value[0]), float(bound[2])
        if not (number <= limit if bound[1] == "<=" else number >= limit):
            yield f"{_listed([one['rule']])} passed with {value[0]}, though {bound[0]} is asked for"


def is_ruling(value: Any) -> bool:
    """Whether a value has the fields of a ruling, each of its type."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in _FIELDS.items()
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
