"""What to do when values contradict their declaration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from canal.data.units import BASES

if TYPE_CHECKING:
    from canal.quality.evidence import Evidence
    from canal.quality.subject import Subject


def layer_advice(subject: Subject, evidence: Evidence) -> str:
    """Return how to point the declaration at another matrix, with those the file has."""
    return (
        f"set sources.{subject.source_name}.layer (now {subject.source.layer}) to one with plain values; "
        f"the file has {', '.join(evidence.layers)}"
    )


def units_advice(subject: Subject, evidence: Evidence) -> str:
    """Return which declaration fits the values, as far as they tell."""
    units, declared = evidence.units, subject.source.values
    if units is None:
        known = f"counts, {', '.join(BASES)}"
        return f"declare the units the file has ({known}), or {layer_advice(subject, evidence)}"
    if units == "scaled":
        return f"the values look scaled: {layer_advice(subject, evidence)}"
    if units == declared:
        return f"other cells do look like {declared}: look at these, or exclude them"
    if units == "counts" or units in BASES:
        return f"the values look like {units}: declare values: {units}"
    base = {"log1p": "e", "log2p": "2"}[units]
    return (
        f"the values look like logarithms to base {base} of counts scaled to another sum than 10,000: "
        f"scale the counts to 10,000, or {layer_advice(subject, evidence)}"
    )
