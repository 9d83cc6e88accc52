"""`canal audit`: a project's registry, or one version of it, proven."""

from canal.project import Project
from canal.registry.audit import Report, audit


def audit_project(project: Project, wanted: str | None = None) -> Report:
    """Audit every version, or the one that a number or alias names.

    Raises
    ------
    RegistryError
        If there is no such ready version.
    """
    versions = None if wanted is None else [project.store.version(wanted)]
    return audit(project.store, project.layout, project.config, versions)
