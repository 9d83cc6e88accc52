"""What checks say: findings, which do not hold, and notes, which hold but should be known."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from canal.registry.store import Store

LEDGER = "ledger"
"""What a finding about the ledger is about."""


@dataclass(frozen=True)
class Finding:
    """One thing that does not hold, or, among the notes, one thing to know.

    Attributes
    ----------
    subject : str
        What it is about, such as ``version 3`` or ``ledger``.
    check : str
        Name of the check.
    what : str
        What was expected and what was found; names the file where there is one.
    """

    subject: str
    check: str
    what: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


@dataclass
class Found:
    """Where checks leave what they found, and how much they looked at."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def wrong(self, subject: str, check: str, what: str) -> None:
        """Add a finding, once."""
        _once(self.findings, Finding(subject, check, what))

    def note(self, subject: str, check: str, what: str) -> None:
        """Add a note, once."""
        _once(self.notes, Finding(subject, check, what))


def examples(names: list[str], limit: int = 5) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def version_name(store: Store, model: str, number: int) -> str:
    """Return what findings call a version: the annotator's name goes without saying."""
    return f"version {number}" if model == store.names.model else f"{model} {number}"


def _once(kept: list[Finding], one: Finding) -> None:
    if one not in kept:
        kept.append(one)
