"""Where a version comes from, and which versions came of some cells: what `canal lineage` calls."""

from typing import Any

from canal.app.project import Project
from canal.registry.lineage import Graph, lineage
from canal.registry.touches import Chosen


def backward(project: Project, wanted: str) -> Graph:
    """Return the graph from a version back to the raw bytes.

    Raises
    ------
    RegistryError
        If there is no such ready version, an ancestor is not registered, or a file on the way is damaged.
    """
    return lineage(project.store, project.store.version(wanted))


def forward(project: Project, chosen: Chosen) -> dict[str, Any]:
    """Return every version that a data set or a cell touched, and how, as a JSON document.

    Raises
    ------
    RegistryError
        If no version knows it, or a version's documents are not those that were registered.
    """
    from canal.registry.memory import Memory
    from canal.registry.touches import find, touches

    memory = Memory(project.store)
    found = find(memory, chosen)
    return {
        "format": 1,
        "source": chosen.source,
        "cell": chosen.cell,
        "cells": len(found.cells),
        "same_content": sorted(found.same),
        "reserve": len(found.reserve),
        "versions": [touch.to_json() for touch in touches(memory, found)],
    }
