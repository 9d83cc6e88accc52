"""Whether the rulings in a promotion's entry let the version pass: all hold, or are overridden by name."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from canal.core.files import read_json

ALWAYS = ("gate", "audit", "clean", "accuracy", "retention", "h_score", "ece")
"""Rules that every canal has asked at every promotion; retention goes by its stages."""

_MEASURED = ("gate", "clean", "accuracy", "h_score", "ece")
"""Rules whose value stands in the version's documents; the others need the champion of that time."""

_FIELDS: Mapping[str, type] = {"rule": str, "value": str, "bound": str, "passed": bool, "overridden": bool}
_BOUND = re.compile(r"(<=|>=) (\d+\.\d+)")
_NUMBER = re.compile(r"-?\d+\.\d+")


def ruling_breaches(details: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the rulings and overrides of a promotion, as its details hold them."""
    rulings = details.get("rulings")
    if not isinstance(rulings, list) or not all(_is_ruling(one) for one in rulings):
        yield "it holds no rulings that can be read"
        return
    asked = {str(one["rule"]).partition(":")[0] for one in rulings}
    if missing := [rule for rule in ALWAYS if rule not in asked]:
        yield f"it holds no ruling on {', '.join(missing)}"
    standing = [str(one["rule"]) for one in rulings if not one["passed"] and not one["overridden"]]
    if standing:
        yield f"{_listed(standing)} failed, and nobody overrode that"
    overridden = [str(one["rule"]) for one in rulings if one["overridden"]]
    named = details.get("overrides")
    if named != overridden:
        yield f"the overrides that it names are not those of its rulings ({_listed(overridden) or 'none'})"
    for one in rulings:
        if one["passed"] and (what := _contradiction(one)):
            yield what


def unproven(details: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield the rulings that passed with another value than the version's own documents say.

    ``folder`` holds the version with the record that the promotion names; what it lacks cannot be compared.
    """
    from canal.config.sections import Policy
    from canal.registry.policy import Evidence, judge

    rulings = details.get("rulings")
    if not isinstance(rulings, list) or not all(_is_ruling(one) for one in rulings):
        return
    passed = {one["rule"]: one["value"] for one in rulings if one["passed"]}
    try:
        evidence = Evidence(
            evaluation=read_json(folder / "metrics" / "evaluation.json"),
            verdict=read_json(folder / "validation" / "verdict.json"),
            record=read_json(folder / "record.json"),
            key=read_json(folder / "key.json"),
            findings=(),
            comparison=None,
        )
        measured = {one.rule: one.value for one in judge(Policy(), evidence)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # a document that is not there or not as canal writes it is a finding of its own
    for rule in _MEASURED:
        if rule in passed and passed[rule] != measured[rule]:
            yield f"{rule} passed with {passed[rule][:60]}, the version's documents say {measured[rule]}"


def _is_ruling(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in _FIELDS.items()
    )


def _contradiction(ruling: Mapping[str, Any]) -> str | None:
    """Return what contradicts itself: a rule passed whose number is beyond its bound."""
    bound, value = _BOUND.fullmatch(ruling["bound"]), _NUMBER.fullmatch(ruling["value"])
    if bound is None or value is None:
        return None
    found, limit = float(value[0]), float(bound[2])
    if (found <= limit) if bound[1] == "<=" else (found >= limit):
        return None
    return f"{_listed([ruling['rule']])} passed with {value[0]}, though {bound[0]} is asked for"


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
