"""What entries of the ledger measure: the policy's rulings of a promotion, the figures of a measurement."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import fsum, isclose
from typing import Any

from canal.core.progress import percent
from canal.registry.ledger.joined import MEASURE
from canal.registry.ledger.ledger import Entry

ALWAYS = ("gate", "audit", "clean", "accuracy", "retention", "h_score", "ece")
"""Rules of every promotion; there is a ruling on retention for each stage."""
POLICY, ALWAYS_NOW = 2, (*ALWAYS, "balanced_accuracy")
"""Number of the policy that promotions name since, and rules of these; older promotions name none."""

TOO_FEW = "too few to judge"
"""Value of a ruling on a stage or type with fewer test cells than the policy asks for."""
MEASURED_AGAIN = "Unknown types, measured again"

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
    number = details.get("policy")
    if number not in (None, POLICY):
        yield f"it was judged by policy {str(number)[:20]}, and this canal knows {POLICY}"
    if missing := [rule for rule in (ALWAYS if number is None else ALWAYS_NOW) if rule not in ruled]:
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


def in_percent(ruling: Mapping[str, Any]) -> tuple[str, str]:
    """Return a ruling's value and bound as people read them: shares in percent, a loss of them in points.

    The ledger keeps them as shares. The calibration error is one everywhere, and stays.
    """
    value, bound = str(ruling["value"]), str(ruling["bound"])
    if ruling["rule"] == "ece":
        return value, bound
    unit = " points" if bound.startswith("loses ") else " %"
    shown, numbers = _NUMBER.subn(lambda one: percent(float(one[0]), ""), value)
    return shown + " %" * bool(numbers), _NUMBER.sub(lambda one: percent(float(one[0]), unit), bound)


def shown_ruling(ruling: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ruling as a page shows it: with its ``state`` in a word, its value and bound `in_percent`."""
    failed = TOO_FEW if ruling["value"] == TOO_FEW else "fails"
    state = "holds" if ruling["passed"] else "overridden" if ruling["overridden"] else failed
    value, bound = in_percent(ruling)
    return {**ruling, "state": state, "value": value, "bound": bound}


def overridden_failures(details: Mapping[str, Any]) -> Iterator[str]:
    """Yield the rules that a promotion with these details overrode although they were judged, and had failed.

    Not those with too few test cells to judge; all where its rulings cannot be read.
    """
    rulings = details.get("rulings")
    known = [one for one in rulings if is_ruling(one)] if isinstance(rulings, list) else []
    few = {one["rule"] for one in known if one["value"] == TOO_FEW}
    yield from (rule for rule in details.get("overrides", ()) if rule not in few)


def measured(entries: Sequence[Entry], model: str, key: str) -> list[Entry]:
    """Return the measurements of a version after its registration, oldest first, by the digest of its key."""
    return [
        entry
        for entry in entries
        if entry.kind == MEASURE and (entry.model, entry.document["key"]) == (model, key)
    ]


def remeasured(evaluation: Mapping[str, Any], measurement: Entry) -> dict[str, Any]:
    """Return a version's registered evaluation with the held-out types of a later measurement."""
    novelty = measurement.document["details"]["novelty"]
    return {**evaluation, "novelty": {**evaluation["novelty"], **novelty}}


def measurement_line(entry: Entry) -> str:
    """Return the line about a measurement in a version's description in MLflow."""
    novelty = entry.document["details"]["novelty"]
    score = "not measured" if novelty["h_score"] is None else f"{novelty['h_score']:.3f}"
    count = len(novelty["holdouts"])
    types = f"{count} held-out type{'s' * (count != 1)}"
    return f"{MEASURED_AGAIN} (entry {entry.seq} of the ledger, {types}): H-score {score}."


def measurement_breaches(details: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults of a measurement: figures that are no shares, or do not follow from each other."""
    novelty = details.get("novelty")
    if not isinstance(novelty, dict) or set(novelty) != {"holdouts", "h_score", "auroc", "not_measured"}:
        yield "it holds no measurement of held-out types that can be read"
        return
    types, missing = novelty["holdouts"], novelty["not_measured"]
    if not isinstance(types, list) or not all(_is_held_out(one) for one in types):
        yield "its held-out types do not have counts of cells, and shares of them, that can be read"
        return
    if not isinstance(missing, dict) or not all(isinstance(one, str) for one in missing.values()):
        yield "it does not say why other types were not measured"
        return
    names = [one["type"] for one in types]
    if len({*names, *missing}) != len(names) + len(missing):
        yield f"it names a held-out type twice ({_listed(names)})"
    for one in types:
        total = one["known_accuracy"] + one["unknown_accuracy"]
        harmonic = 2 * one["known_accuracy"] * one["unknown_accuracy"] / total if total else 0.0
        if not isclose(one["h_score"], harmonic, abs_tol=1e-9):
            yield f"the H-score of {one['type'][:80]} is no harmonic mean of its two shares"
    for name in ("h_score", "auroc"):
        value, mean = novelty[name], fsum(one[name] for one in types) / len(types) if types else None
        same = value is None if mean is None else _is_share(value) and isclose(value, mean, abs_tol=1e-9)
        if not same:
            yield f"its {name} is not the mean over the held-out types"


def _is_held_out(one: Any) -> bool:
    """Whether a value has the fields of a held-out type, each of its kind."""
    return (
        isinstance(one, dict)
        and isinstance(one.get("type"), str)
        and all(type(one.get(name)) is int and one[name] > 0 for name in ("n_known", "n_unknown"))
        and all(
            _is_share(one.get(name)) for name in ("known_accuracy", "unknown_accuracy", "h_score", "auroc")
        )
    )


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def is_ruling(value: Any) -> bool:
    """Whether a value has the fields of a ruling, each of its type."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in _FIELDS.items()
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
