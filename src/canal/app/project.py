"""An open project folder: its parameters, cells and registry, for every command and pipeline step."""

import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.config.yaml_file import load_config
from canal.continual.cells import LabelledCells
from canal.core.digests import file_digest
from canal.core.errors import CanalError, ConfigError, DataError
from canal.core.files import read_json, scratch_folder
from canal.data.panel import read_panel
from canal.data.prepared import PreparedCells
from canal.data.split import described_types, read_split
from canal.quality.verdict import EarlierStage, Subject, profile_of, read_verdict
from canal.registry.ledger.ledger import Sign as Sign
from canal.registry.manifest.version_folder import check_files, read_key
from canal.registry.store.database import Version
from canal.registry.store.store import Store
from canal.registry.versions.history import learned, require_available

if TYPE_CHECKING:
    import pandas as pd

CellSet = Literal["train", "validation", "test", "reserve"]


@dataclass(frozen=True)
class Project:
    """A project folder with its parameters."""

    layout: Layout
    config: Config

    @classmethod
    def open(cls, root: Path | None = None) -> "Project":
        """Read the project in ``root`` (default: the working directory).

        Raises
        ------
        ConfigError
            If params.yaml is invalid, or MLflow would misread the folder's path.
        """
        layout = Layout((root or Path.cwd()).resolve())
        # MLflow would write where such a path leads in a database URI: to another folder.
        read = unquote(str(layout.root)).partition("?")[0]
        if read != str(layout.root):
            raise ConfigError(
                f"the project is in {layout.root}, which MLflow would read as {read}, another folder: rename "
                'the folder so that its path holds no "?" and no "%" followed by two hexadecimal digits'
            )
        return cls(layout, load_config(layout.params))

    @cached_property
    def store(self) -> Store:
        """The project's registry."""
        return Store(self.layout, self.config.registry)

    @contextmanager
    def mirrored(self, purpose: str, own: Collection[str]) -> Iterator[Layout]:
        """Yield the layout of a scratch folder: links to all of this project, but empty folders ``own``."""
        self.layout.private.mkdir(exist_ok=True)
        with scratch_folder(purpose) as folder:
            for path in self.layout.root.iterdir():
                if path.name not in own:
                    (folder / path.name).symlink_to(path)
            for name in own:
                (folder / name).mkdir()
            yield Layout(folder)

    def learned(self, stage: str) -> Version | None:
        """Return the version that params.yaml asks ``stage`` to be; see `canal.registry.versions.history`."""
        return learned(self.store, self.config, stage)

    @property
    def panel(self) -> list[str]:
        """The genes of the lineage."""
        return read_panel(self.layout.panel)

    def summary(self, stage: str) -> dict[str, Any]:
        """Return prepared.json of the stage's source."""
        return self.source_summary(self._source(stage))

    def source_summary(self, source: str) -> dict[str, Any]:
        """Return prepared.json of a source."""
        summary: dict[str, Any] = read_json(self.layout.prepared(source) / "prepared.json")
        return summary

    def prepared_digest(self, stage: str) -> str:
        """Return the SHA-256 of the stage's canonical cells."""
        return str(self.summary(stage)["sha256"])

    def available(self, stage: str) -> bool:
        """Whether the stage's prepared cells are on disk."""
        return (self.layout.prepared(self._source(stage)) / "cells.h5ad").is_file()

    def prepared(self, stage: str) -> PreparedCells:
        """Return the canonical cells of the stage's source; see `prepared_source`."""
        return self.prepared_source(self._source(stage))

    def prepared_source(self, source: str) -> PreparedCells:
        """Return the canonical cells of a source.

        Raises
        ------
        DataError
            If they are not on disk.
        """
        path = self.layout.prepared(source) / "cells.h5ad"
        if not path.is_file():
            raise DataError(
                f"the prepared cells of source {source!r} are missing: run `dvc repro`, which prepares them"
            )
        return PreparedCells(path)

    def pretrained_tables(self) -> dict[str, Path]:
        """Return for each unlabelled source the table of the cells that the learned backbone saw.

        Empty where there is no unlabelled source, or the backbone is not learned yet.

        Raises
        ------
        RegistryError
            If a table holds other bytes than registered.
        """
        names = self.config.backbone.unlabelled
        version = self.learned(BACKBONE) if names else None
        if version is None:
            return {}
        folder = self.store.artifacts(version)
        digests = read_key(folder)["files"]
        tables = {name: Layout(folder).corpus_cells(name) for name in names}
        places = [path.relative_to(folder).as_posix() for path in tables.values()]
        check_files(folder, {place: digests[place] for place in places})
        return tables

    def _pretrained_on(self, stage: str) -> dict[str, str] | None:
        """Return the contents of test cells that the learned backbone saw -> source; None without corpora."""
        tables = self.pretrained_tables()
        if not tables:
            return None
        split = self.split(stage)
        tested = set(split["cell_digest"][split["set"] == "test"])
        seen = {name: tested & set(read_split(path)["cell_digest"]) for name, path in tables.items()}
        return {digest: name for name, digests in seen.items() for digest in digests}

    def split(self, stage: str) -> "pd.DataFrame":
        """Return the table of a stage's cells with their sets."""
        return read_split(self.layout.split(stage))

    def cells(self, stage: str, chosen: CellSet, genes: Sequence[str] | None = None) -> LabelledCells:
        """Return one set of a stage's cells with their expression of ``genes`` (default: the panel)."""
        split = self.split(stage)
        rows = split[split["set"] == chosen]
        ids = tuple(rows["cell_id"])
        return LabelledCells(
            cell_ids=ids,
            expression=self.prepared(stage).expression(ids, self.panel if genes is None else genes),
            cell_types=tuple(rows["cell_type"]),
            stages=(stage,) * len(ids),
            sources=(self._source(stage),) * len(ids),
            batches=tuple(rows["batch"]),
        )

    def subject(self, stage: str) -> Subject:
        """Return the subject of the gate for a stage whose cells are prepared and split."""
        source, rule = self._source(stage), self.config.split.rule
        return replace(
            self.candidate(stage),
            raw=self.layout.source(source) / "cells.h5ad",
            prepared=self.layout.prepared(source),
            split_sha256=file_digest(self.layout.split(stage)),
            drawn=None if rule is None else described_types(self.split(stage)),
            pretrained=self._pretrained_on(stage),
        )

    def candidate(self, stage: str) -> Subject:
        """Return the subject of the gate for a stage's raw file on disk.

        The first stage chooses the panel: until that is chosen, no rule asks about its genes.
        """
        source, earlier = self._source(stage), self.config.ancestors(stage)
        declared = self.config.sources[source]
        return Subject(
            stage=stage,
            source_name=source,
            source=declared,
            raw=self.layout.root / (declared.path or ""),
            panel=self.panel if earlier or self.layout.panel.is_file() else [],
            earlier={name: self.earlier(name) for name in earlier},
            chunk_cells=self.config.prepare.chunk_cells,
            own_rules=self.layout.own_rules,
        )

    def earlier(self, stage: str) -> EarlierStage:
        """Return the profile of an earlier stage, from its cells, or from its version if they are gone.

        Raises
        ------
        HistoryError
            If the cells are gone and no version holds the stage.
        """
        split = self.split(stage)
        if self.available(stage):
            return EarlierStage(split, profile_of(self.prepared(stage), list(split["cell_id"]), self.panel))
        version = self.learned(stage)
        if version is None:
            require_available(self.config, stage)
            raise DataError(f"the cells of stage {stage!r} are missing: run the pipeline from ingest on")
        verdict = read_verdict(self.store.artifacts(version) / "validation" / "verdict.json")
        return EarlierStage(split, verdict.profile)

    def commit(self, message: str, *also: str) -> None:
        """Commit params.yaml and the files ``also`` to git.

        Raises
        ------
        CanalError
            If git fails; params.yaml keeps its new content.
        """
        root = self.layout.root
        if also:
            git(root, "add", "--", *also)
        done = git(root, "commit", "--quiet", "-m", message, "--", self.layout.params.name, *also)
        if done.returncode:
            raise CanalError(f"params.yaml is written, but git did not commit it: {last_line(done)}")

    def _source(self, stage: str) -> str:
        return self.config.stages[stage].source


def is_project(folder: Path) -> bool:
    """Whether a folder has the file of a project's parameters."""
    return Layout(folder).params.exists()


def project_above(folder: Path) -> Path | None:
    """Return the nearest folder above ``folder`` that is a project of canal, as git finds a repository.

    A project has params.yaml and dvc.yaml, and canal.json or parameters that canal reads: other projects of
    DVC have the first two, and one whose params.yaml is damaged is still this user's project. The search ends
    at the home folder, and where another file system begins.
    """
    outside, device = Path.home().parent, folder.stat().st_dev
    for above in folder.resolve().parents:
        if above == outside or above.stat().st_dev != device:
            return None
        if not ((above / "params.yaml").is_file() and (above / "dvc.yaml").is_file()):
            continue
        if (above / "canal.json").is_file():
            return above
        with suppress(CanalError):
            return Project.open(above).layout.root
    return None


def git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Return what git said and its exit code, called in a folder."""
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def last_line(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the last line that a process wrote, of its errors if there are any: why it failed."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else "no reason given"
