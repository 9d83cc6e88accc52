"""Everything that was registered, recomputed: what does not hold is named."""

from collections.abc import Sequence
from dataclasses import dataclass

from canal.config import Config
from canal.layout import Layout
from canal.registry.store import Store, Version


@dataclass(frozen=True)
class Finding:
    """One thing that does not hold.

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


@dataclass(frozen=True)
class Report:
    """What an audit looked at and what it found."""

    findings: tuple[Finding, ...]


def audit(store: Store, layout: Layout, config: Config, versions: Sequence[Version] | None = None) -> Report:
    """Audit versions (default: all) and the ledger."""
    raise NotImplementedError
