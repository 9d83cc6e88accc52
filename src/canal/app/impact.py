"""`canal impact`: what a retracted data set or a withdrawn consent touches, and how to learn without it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from canal.app.project import Project
from canal.app.retraining import Step, plan
from canal.registry.memory import Memory
from canal.registry.touches import Chosen, Found, Touch, find, touches

Document = dict[str, Any]


@dataclass(frozen=True)
class Impact:
    """Everything that the chosen cells touched.

    Attributes
    ----------
    chosen : Chosen
    found : Found
    touched : sequence of Touch
        Versions, parents first; a version that was only measured on the cells is among them.
    same_bytes : dict
        Other sources that are cut from the same file -> its SHA-256.
    records : sequence of dict
        Annotation records of versions that learned from the cells or were steered by them.
    unreadable : int
        Lines of the log of annotations that are no records.
    steps : sequence of Step
        What to do, in order.
    """

    chosen: Chosen
    found: Found
    touched: Sequence[Touch]
    same_bytes: dict[str, str]
    records: Sequence[Document]
    unreadable: int
    steps: Sequence[Step]

    def to_json(self) -> Document:
        """Return a JSON document."""
        marked = marking(self.touched)
        return {
            "format": 1,
            "source": self.chosen.source,
            "batch": self.chosen.batch,
            "cell": self.chosen.cell,
            "cells": len(self.found.cells),
            "same_content": sorted(self.found.same),
            "reserve": len(self.found.reserve),
            "same_bytes": self.same_bytes,
            "versions": [touch.to_json() for touch in self.touched],
            "aliases": {
                alias: touch.version.version.number
                for touch in marked
                for alias in touch.version.version.aliases
            },
            "annotations": [_short(record) for record in self.records],
            "unreadable_annotations": self.unreadable,
            "steps": [step.to_json() for step in self.steps],
        }


def impact(project: Project, chosen: Chosen) -> Impact:
    """Return what a source, or a batch or a cell of it, touched.

    Raises
    ------
    RegistryError
        If no version knows it, or a version's documents are not those that were registered.
    """
    from canal.annotation.records import read_log

    memory = Memory(project.store)
    found = find(memory, chosen)
    touched = touches(memory, found)
    log = read_log(project.layout.annotations)
    keys = {touch.version.version.key for touch in marking(touched)}
    return Impact(
        chosen=chosen,
        found=found,
        touched=touched,
        same_bytes=_same_bytes(project, found.sources),
        records=log.of_versions(keys),
        unreadable=log.unreadable,
        steps=plan(project, chosen, found, touched),
    )


def marking(touched: Sequence[Touch]) -> list[Touch]:
    """Return the versions that the cells left a mark on: not those that were only measured on them."""
    return [touch for touch in touched if touch.grade != "tested"]


def _same_bytes(project: Project, names: Sequence[str]) -> dict[str, str]:
    sources = project.config.sources
    digests = {sources[name].sha256 for name in names if name in sources}
    return {name: one.sha256 for name, one in sources.items() if one.sha256 in digests and name not in names}


def _short(record: Document) -> Document:
    """Return what identifies a record, and how many cells it labelled."""
    return {
        "id": record.get("id"),
        "time": record.get("time"),
        "input": record.get("input"),
        "model": record["model"],
        "n_cells": record["n_cells"],
    }
