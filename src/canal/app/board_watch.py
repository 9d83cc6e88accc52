"""The board's page of `canal watch`: months of labelled cells beside the cells a version was measured on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from canal.app.board_index import Index, stamp
from canal.app.board_pages import found_version
from canal.app.project import Project
from canal.core.packages import lazy_module
from canal.report.drift_tables import HEADINGS, shown_rows

if TYPE_CHECKING:
    from canal.app import watching
else:  # it reads predictions, with pandas
    watching = lazy_module("canal.app.watching")

Document = dict[str, Any]

_KEPT = 8
"""Versions of which the page is kept in memory."""


class Watch:
    """What `canal watch` says of a version, read again when something was labelled."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[object, Document]] = {}

    def page(self, asked: str) -> Document:
        """Return the page of a version, by default of the champion, else of the newest one.

        Raises
        ------
        RefusedError
            If there is no such version.
        """
        index = self._index
        usable = [one for one in index.versions() if not one.retired and not one.erased]
        newest = usable[-1] if usable else None
        version = found_version(index, asked) if asked else index.holder("champion") or newest
        if version is None:
            return {"document": None, "headings": HEADINGS, "rows": [], "versions": []}
        with self._lock:
            now = stamp(index.layout.annotations, index.layout.ledger)
            kept = self._kept.get(version.key)
            if kept is None or kept[0] != now:
                project = Project(index.layout, index.config)
                kept = now, watching.watch(project, str(version.number))
                self._kept = {**dict(list(self._kept.items())[-_KEPT:]), version.key: kept}
        document = kept[1]
        rows = shown_rows(document)
        return {"document": document, "headings": HEADINGS, "rows": rows, "versions": usable[::-1]}
