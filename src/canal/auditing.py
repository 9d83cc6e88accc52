"""`canal audit`: a project's registry, or one version of it, proven."""

from dataclasses import replace
from pathlib import Path

from canal.project import Project
from canal.registry.audit import Finding, Report, audit
from canal.registry.checks.register import LEDGER
from canal.registry.moves import ledger_of


def audit_project(
    project: Project, wanted: str | None = None, keyring: Path | None = None, recompute: bool = False
) -> Report:
    """Audit every version, or the one that a number or alias names.

    Parameters
    ----------
    project : Project
    wanted : str, optional
        Number or alias.
    keyring : Path, optional
        The keys that are trusted: a ledger entry that none of them signed is a finding.
    recompute : bool
        Whether sums are added up again from the prepared cells, where those are still there.

    Raises
    ------
    RegistryError
        If there is no such ready version, or the keyring cannot be read.
    """
    trusted = None
    if keyring is not None:
        from canal.registry.keyring import read_keyring

        trusted = read_keyring(keyring)
    versions = None if wanted is None else [project.store.version(wanted)]
    report = audit(project.store, project.layout, project.config, versions, recompute)
    if trusted is None:
        return report
    from canal.registry.signing import signature_findings

    entries, _ = ledger_of(project.store).read()
    unsigned = tuple(Finding(LEDGER, "signature", what) for what in signature_findings(entries, trusted))
    return replace(report, findings=(*report.findings, *unsigned))
