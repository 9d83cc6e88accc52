"""Where things lie in a project folder: the one place that knows the names of files and folders."""

from dataclasses import dataclass
from pathlib import Path


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
        """The entry of a move that is under way; it is gone when the move is whole."""
        return self.root / "ledger.pending.json"

    @property
    def annotations(self) -> Path:
        """A line for each file that was labelled; beside the project, since labelled files travel."""
        return self.root / "annotations.jsonl"

    @property
    def features(self) -> Path:
        """Frozen features of cells, which all trainings share."""
        return self.private / "features"

    @property
    def studies(self) -> Path:
        """Journals of studies over lambda and L, and the locks of who works on them."""
        return self.private / "tuning"

    @property
    def incoming(self) -> Path:
        """What ingest fetched; data.dvc imports it as ``data/``."""
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
        """File of cells that were novel and that a person named: the source ``name``."""
        return self.root / "novel" / f"{name}.h5ad"

    def imported(self, name: str) -> Path:
        """Folder of a backbone that `canal backbone import` brought; params.yaml names its key."""
        return self.root / "backbones" / name

    def basis(self, name: str) -> Path:
        """Folder of a basis that `canal basis adopt` brought; params.yaml names its digest."""
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

    def verdict(self, stage: str) -> Path:
        """What the gate said of a stage."""
        return self.root / "verdicts" / stage / "verdict.json"

    def labels(self, stage: str) -> Path:
        """Whether a stage's labels agree with what its parent's model calls its cells."""
        return self.root / "labels" / f"{stage}.json"

    def data_docs(self, stage: str) -> Path:
        """Great Expectations' pages of a stage; they hold times, so they are no out of DVC."""
        return self.private / "data_docs" / stage

    def tuned(self, stage: str) -> Path:
        """What a study chose for a stage, and all its trials."""
        return self.root / "tuned" / f"{stage}.json"

    def model(self, stage: str) -> Path:
        """Everything a stage learned."""
        return self.root / "models" / stage

    def metrics(self, stage: str) -> Path:
        """Everything measured of a stage's model."""
        return self.root / "metrics" / stage

    def scores(self, stage: str) -> Path:
        """Folder of what `dvc metrics` and `dvc plots` show of a stage."""
        return self.root / "scores" / stage

    def figures(self, key: str) -> Path:
        """Folder of a model's figures, by the digest of its key."""
        return self.private / "figures" / key

    def training(self, key: str) -> Path:
        """Folder of a training's checkpoints, while it lasts."""
        return self.private / "training" / key
