"""A project folder whose stages were made by hand: real networks and keys, nothing learned."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from typer.testing import CliRunner

from canal.app.project import Project
from canal.cli import app
from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.yaml_file import load_config
from canal.registry.audit.full_audit import audit
from canal.registry.ledger.ledger import Entry, Sign, ledger_aliases
from canal.registry.promotion.moves import ledger_of, moving
from canal.registry.promotion.promotion import Decision, promote, register_entry
from canal.registry.store.tracking import parent_run
from canal.registry.versions.publish import Publication, Synced, publish, sync
from tests.support.cells import make_document
from tests.support.registered import OVERRIDDEN

STAGES = ("first", "second")


@dataclass(frozen=True)
class Folder:
    """A project folder on one machine; all of them that have the same names share what the store holds."""

    root: Path

    def project(self) -> Project:
        """Open the project anew, as each command does; params.yaml, which stays, is read once."""
        layout = Layout(self.root.resolve())
        return Project(layout, _config(layout.params))

    def sync(self, sign: Sign | None = None) -> Synced:
        """Register what was made, as `canal registry sync` does, without figures."""
        project = self.project()
        return sync(project.store, project.layout, project.config, lambda stage: self.root / "none", sign)

    def register(self, number: int = 2) -> None:
        """Register that many versions of the annotator, of few files each: sync without the pyfunc."""
        project = self.project()
        store = project.store
        with moving(store) as ledger:
            for stage in STAGES[:number]:
                run = parent_run(store, stage, "0" * 64)
                what = Publication(
                    store.names.model, project.layout.model(stage), run, None, {}, pyfunc=False
                )
                register_entry(store, ledger, publish(store, what))

    def promote(self, number: int, by: str = "Ada", **options: Any) -> Entry:
        """Promote a version that passed every rule."""
        store = self.project().store
        with moving(store) as ledger:
            version = store.version(str(number))
            decision = Decision(by, "reviewed", options.get("sign"))
            return promote(store, ledger, version, options.get("rulings", OVERRIDDEN), decision)

    def ledger(self) -> list[Entry]:
        """Return the entries of this folder's ledger."""
        return ledger_of(self.project().store).entries()

    def aliases(self) -> dict[str, int]:
        """Return where the store's aliases of the annotator point, after comparing them with the ledger."""
        store = self.project().store
        found = {alias: one.number for one in store.versions() for alias in one.aliases}
        assert ledger_aliases(self.ledger(), store.names.model) == found
        return found

    def findings(self) -> list[str]:
        """Return what an audit of everything finds; that the folder is in no git repository is no finding."""
        project = self.project()
        report = audit(project.store, project.layout, project.config)
        return [str(finding) for finding in report.findings]

    def canal(self, *arguments: str) -> str:
        """Run a command here; return what it printed."""
        done = CliRunner().invoke(app, [*arguments, "--root", str(self.root)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output


@cache
def _config(params: Path) -> Config:
    return load_config(params)


def make_folder(models: Path, root: Path, name: str) -> Folder:
    """Make a project folder with models made by hand, which are registered under ``name``."""
    shutil.copytree(models, root)
    names = {"model": f"{name}-annotator", "backbone": f"{name}-backbone", "experiment": name}
    YAML().dump(make_document(registry=names), root / "params.yaml")
    return Folder(root)
