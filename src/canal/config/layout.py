"""The paths of a project: the only module that knows the names of its files and folders."""

import re
from dataclasses import dataclass
from pathlib import Path


def name_from(stem: str, otherwise: str) -> str:
    """Return a name for a stage or folder after a file's: lower-case letters, digits, ``-`` and ``_``."""
    return re.sub(r"[^a-z0-9_]+", "-", stem.lower()).strip("-_")[:64].strip("-_") or otherwise


@dataclass(frozen=True)
class Layout:
    """The paths of one project folder."""

    root: Path

    @property
    def params(self) -> Path:
        """The parameters."""
        return self.root / "params.yaml"

    @property
    def private(self) -> Path:
        """Checkpoints, downloads, caches: keyed by digest, safe to delete, never an out of DVC."""
        return self.root / ".canal"

    @property
    def last_line(self) -> Path:
        """An empty file, as old as the last line that a process of `canal run` told."""
        return self.private / "last-line"

    @property
    def database(self) -> Path:
        """MLflow's database, where the registry is local."""
        return self.root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """Files of runs and versions, where the registry is local."""
        return self.root / "mlartifacts"

    @property
    def ledger(self) -> Path:
        """Who registered and moved what, and why; committed to git, never an out of DVC."""
        return self.root / "ledger.jsonl"

    @property
    def pending(self) -> Path:
        """The ledger entry of a transaction in progress; removed when the transaction is complete."""
        return self.root / "ledger.pending.json"

    @property
    def tombstones(self) -> Path:
        """Folder of what `canal erase` removed, by digest alone; committed to git, never an out of DVC."""
        return self.root / "erased"

    @property
    def staging(self) -> Path:
        """Folder of files without erased cells, until they replace those with them."""
        return self.private / "erasing"

    @property
    def annotations(self) -> Path:
        """The log of annotations: a line for each labelled file, since labelled files leave the project."""
        return self.root / "annotations.jsonl"

    @property
    def hooks(self) -> Path:
        """The log of hooks: a line for each attempt to tell somebody of a decision."""
        return self.root / "hooks.jsonl"

    @property
    def features(self) -> Path:
        """The cache of frozen features of cells, shared by all trainings."""
        return self.private / "features"

    @property
    def layouts(self) -> Path:
        """Places of cells on the maps of pages, by digest of the embedding."""
        return self.private / "layouts"

    @property
    def studies(self) -> Path:
        """Journals of studies over lambda and L, and their locks."""
        return self.private / "tuning"

    @property
    def incoming(self) -> Path:
        """Files fetched by ingest; data.dvc imports them as ``data/``."""
        return self.root / "incoming"

    @property
    def panel(self) -> Path:
        """The gene panel of the lineage."""
        return self.root / "panel.json"

    @property
    def data(self) -> Path:
        """The raw files of all sources, as data.dvc holds them."""
        return self.root / "data"

    def stage_file(self, name: str) -> Path:
        """The h5ad file of novel cells that a person named: the source ``name``."""
        return self.root / "novel" / f"{name}.h5ad"

    @property
    def labelled(self) -> Path:
        """Labelled files that `canal ui` was asked to keep, and the sheets that name their novel cells."""
        return self.root / "labelled"

    def taught(self, name: str) -> Path:
        """The h5ad file of cells that `canal.learn` was handed in memory: the source ``name``."""
        return self.root / "cells" / f"{name}.h5ad"

    def imported(self, name: str) -> Path:
        """Folder of a backbone that `canal backbone import` wrote; params.yaml names its key."""
        return self.root / "backbones" / name

    def basis(self, name: str) -> Path:
        """Folder of a basis that `canal basis adopt` wrote; params.yaml names its digest."""
        return self.root / "bases" / name

    def source(self, name: str) -> Path:
        """Folder of a source's raw file, ``cells.h5ad``, and its ``source.json``."""
        return self.data / name

    def prepared(self, name: str) -> Path:
        """Folder of a source's canonical file, ``cells.h5ad``, and its ``prepared.json``."""
        return self.root / "prepared" / name

    def split(self, stage: str) -> Path:
        """Table of a stage's cells: which train, validate, test."""
        return self.root / "splits" / f"{stage}.csv"

    @property
    def corpus(self) -> Path:
        """Folder of the unlabelled sources that pre-train the backbone: their drawn cells and verdicts."""
        return self.root / "corpus"

    def corpus_cells(self, source: str) -> Path:
        """Table of the cells of an unlabelled source that pre-train; in a backbone's version, too."""
        return self.corpus / source / "cells.csv"

    def corpus_verdict(self, source: str) -> Path:
        """The verdict of the gate on an unlabelled source; in a backbone's version, too."""
        return self.corpus / source / "verdict.json"

    def verdict(self, stage: str) -> Path:
        """The verdict of the gate on a stage."""
        return self.root / "verdicts" / stage / "verdict.json"

    def labels(self, stage: str) -> Path:
        """The comparison of a stage's labels with the predictions of its parent's model."""
        return self.root / "labels" / f"{stage}.json"

    @property
    def own_rules(self) -> Path:
        """Folder of the project's own suites for the gate; committed to git."""
        return self.root / "gate"

    def data_docs(self, stage: str) -> Path:
        """Great Expectations' pages of a stage; not an out of DVC, since they contain times."""
        return self.private / "data_docs" / stage

    def tuned(self, stage: str) -> Path:
        """The document of a stage's study: the choice and all trials."""
        return self.root / "tuned" / f"{stage}.json"

    def model(self, stage: str) -> Path:
        """Folder of a stage's model and everything stored with it."""
        return self.root / "models" / stage

    def metrics(self, stage: str) -> Path:
        """Folder of the evaluation of a stage's model."""
        return self.root / "metrics" / stage

    def scores(self, stage: str) -> Path:
        """Folder of the files that `dvc metrics` and `dvc plots` show."""
        return self.root / "scores" / stage

    def figures(self, key: str) -> Path:
        """Folder of a model's figures, by the digest of its key."""
        return self.private / "figures" / key

    def training(self, key: str) -> Path:
        """Folder of the checkpoints of a training in progress."""
        return self.private / "training" / key
