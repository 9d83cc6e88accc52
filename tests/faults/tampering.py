"""Change files, cells of MLflow's database and bundles, one at a time, and count what is found: `make chaos`.

    python -m tests.faults.tampering
    python -m tests.faults.tampering --part bundles --count 220

Works on a copy of the small project of the tests. *Found* is a finding or a note that was not there, for a
bundle a refusal that leaves nothing; *named* one that names what was changed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canal.app.project import Project
from canal.core.errors import AuditError
from canal.registry.audit.full_audit import audit
from canal.registry.transfer.exchange import import_bundle
from tests.faults.bundles import malformed, read_bundle, write_agreeing
from tests.faults.database_cells import changed, changes
from tests.pipeline.conftest import Line, copied, make_project

FLIPS, CELLS, BUNDLES = 275, 130, 220


@dataclass
class Count:
    """How many changes were tried, found and named, and the first that were not."""

    tried: int = 0
    found: int = 0
    named: int = 0
    missed: list[str] = field(default_factory=list)

    def add(self, what: str, found: bool, named: bool) -> None:
        """Count one change."""
        self.tried += 1
        self.found += found
        self.named += named
        if not named:
            self.missed.append(what)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {"tried": self.tried, "found": self.found, "named": self.named, "missed": self.missed[:20]}


def main() -> None:
    """Try all, print a report; exit code 1 if anything was not found and named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", choices=["flips", "cells", "bundles"], help="only this one")
    parser.add_argument("--count", type=int, help="at least how many of each, by default the long form")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canal-tampering-") as scratch:
        base = make_project(Path(scratch) / "base")
        base.run("dvc", "repro", "--quiet")
        base.run("canal", "registry", "sync")
        report = run(base, Path(scratch), arguments.part, arguments.count, arguments.seed)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    sys.exit(any(one["named"] < one["tried"] for one in report.values()))


def run(base: Line, scratch: Path, part: str | None, count: int | None, seed: int) -> dict[str, Any]:
    """Try all parts on copies of a learned project, each at least ``count`` times."""
    report = {}
    if part in (None, "flips"):
        line = copied(base, scratch / "flips")
        report["flips"] = flip_files(line.project(), count or FLIPS, seed).to_json()
    if part in (None, "cells"):
        line = copied(base, scratch / "cells")
        report["cells"] = change_cells(line.project(), count).to_json()
    if part in (None, "bundles"):
        line = copied(base, scratch / "bundle")
        report["bundles"] = hand_in_bundles(line, scratch, count or BUNDLES, seed).to_json()
    return report


def flip_files(project: Project, count: int, seed: int) -> Count:
    """Flip one byte in every file of every version, at places drawn anew, ``count`` times at least."""
    draw, result = random.Random(seed), Count()
    names = (project.config.registry.backbone, project.config.registry.model)
    versions = [version for name in names for version in project.store.versions(name)]
    files = [
        (version, path)
        for version in versions
        for path in sorted(project.store.artifacts(version).rglob("*"))
        if path.is_file() and path.stat().st_size
    ]
    draw.shuffle(files)
    while result.tried < count:
        for version, path in files[: None if count >= len(files) else count]:
            before = path.read_bytes()
            place = draw.randrange(len(before))
            path.write_bytes(
                before[:place] + bytes([before[place] ^ draw.randrange(1, 256)]) + before[place + 1 :]
            )
            said = _told(project)
            path.write_bytes(before)
            name = path.relative_to(project.store.artifacts(version)).as_posix()
            result.add(
                f"{version.model} {version.number} {name}", bool(said), any(name in one for one in said)
            )
    return result


def change_cells(project: Project, count: int | None = None) -> Count:
    """Change every cell by which MLflow loads or shows a version; ``count`` of them, spread, if given."""
    result, before = Count(), _told(project)
    every = changes(project.layout.database)
    step = max(1, len(every) // count) if count else 1
    for change in every[::step]:
        with changed(project.layout.database, change):
            said = _told(project) - before
        what = f"{change.table}.{change.field} of {change.about}"
        result.add(what, bool(said), any(change.named in one for one in said))
    return result


def hand_in_bundles(line: Line, scratch: Path, count: int, seed: int) -> Count:
    """Import bundles whose digests fit and whose models do not; none may be registered, each is named."""
    line.canal("export", "candidate", "-o", str(scratch / "whole.zip"), "--overwrite")
    about, files = read_bundle(scratch / "whole.zip")
    other = scratch / "other"
    other.mkdir()
    shutil.copyfile(line.root / "params.yaml", other / "params.yaml")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    result, path, project = Count(), scratch / "malformed.zip", Project.open(other)
    every = list(itertools.islice(malformed(files, seed), max(count, BUNDLES)))
    random.Random(seed).shuffle(every)
    for one in every[:count]:
        write_agreeing(path, about, one.files)
        try:
            import_bundle(project.store, path)
            said = ""
        except AuditError as error:
            said = str(error)
        refused = bool(said) and not project.store.versions()
        inner = one.name.removeprefix("version/").rsplit("/", 1)[-1]
        named = inner in said or "its model cannot answer" in said or "is not in the bundle" in said
        result.add(f"{one.name}: {one.what}", refused, refused and named)
        if not refused:
            shutil.rmtree(other / "mlartifacts", ignore_errors=True)
            (other / "mlflow.db").unlink(missing_ok=True)
            (other / "ledger.jsonl").unlink(missing_ok=True)
            project = Project.open(other)
    return result


def _told(project: Project) -> set[str]:
    report = audit(project.store, project.layout, project.config)
    return {str(one) for one in (*report.findings, *report.notes)}


if __name__ == "__main__":
    main()
