"""The sections of params.yaml as frozen, strict pydantic models (those of tuning: `canal.config.params`)."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

BACKBONE = "backbone"
"""The parent of a lineage's first stage; no stage may bear this name."""

NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")

PUBLISHED_DISTILLATION, PUBLISHED_BANK_SIZE = 0.1, 1000
"""Lambda and L of bbae047: the first trial of every study."""

Values = Literal["counts", "log1p_10k", "log2p_10k"]
PanelRule = Literal["mixed", "f_statistic", "variance", "dispersion"]
Preset = Literal["tiny", "small", "scbert"]


def check_name(name: str) -> str:
    """Return ``name``; a `ValueError` unless it is safe as a file name, a DVC stage key and an MLflow tag."""
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} is not a name: use 1-64 of a-z, 0-9, '-' and '_', "
            "beginning and ending with a letter or digit"
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]


class Section(BaseModel):
    """A part of params.yaml: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DanglingNameError(ValueError):
    """A reference to a missing name, or a conflict with another key; its message starts with the path."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")


class Prepare(Section):
    """How cells are read from a file."""

    min_genes: int = Field(default=200, ge=0)
    """A cell with fewer expressed genes is dropped."""
    chunk_cells: int = Field(default=2000, ge=1)
    """Rows of a file that are held in memory at a time."""


Species = Literal["human", "mouse"]


class Gate(Section):
    """Bounds of the quality gate that every stage has to pass."""

    species: Species = "human"
    """Whose gene symbols a source must have; a lineage is of one species."""
    known_genes: float = Field(default=0.1, ge=0, le=1)
    """Share of a source's symbols that canal's table of the species' genes must know, where the source has
    1,000 genes or more; below: refused. 0 asks nothing."""
    min_cells: int = Field(default=50, ge=1)
    """Cells that a source must have; fewer: refused."""
    min_cells_per_type: int = Field(default=5, ge=1)
    """Cells that each cell type must have; fewer: refused."""
    coverage_hard: float = Field(default=0.4, ge=0, le=1)
    """Share of the panel's genes that a source must have; below: refused."""
    coverage_soft: float = Field(default=0.8, ge=0, le=1)
    """Share of the panel's genes that a source should have; below: a warning."""
    max_imbalance: float = Field(default=100.0, gt=1)
    """Cells of the largest type to cells of the smallest; above: a warning."""
    max_drift: float = Field(default=0.25, gt=0)
    """Population stability index of a gene's tokens against earlier stages; above: a warning."""
    max_depth_ratio: float = Field(default=3.0, gt=1)
    """Expressed genes of a median cell against earlier stages; above: a warning."""
    max_confused: float = Field(default=0.5, gt=0, le=1)
    """Share of a label's cells that the parent's model may call one other known type; above: a warning."""
    max_contradiction: float = Field(default=0.95, gt=0, le=1)
    """Margin by which the parent's sums may call a cell another known type; above, the cell is listed in
    `labels/STAGE.json`, and five cells and 5 % of a label called one other type are a warning."""


class Split(Section):
    """Shares of training, validation and test cells."""

    rule: Literal["independent"] | None = None
    """None: each type is divided by its shares. `independent`: each cell is drawn by itself, from `seed` and
    its content, whatever other cells there are; for new lineages, not beside `group_by_batch`."""
    train: float = Field(default=0.6, gt=0, lt=1)
    """Share of each type that is learned from; by the rule `independent` the chance of each cell."""
    validation: float = Field(default=0.2, gt=0, lt=1)
    """Share of each type by which epochs, thresholds and weights are chosen."""
    test: float = Field(default=0.2, gt=0, lt=1)
    """Share of each type that only measures."""
    min_cells: int = Field(default=10, ge=5)
    """A type with fewer cells only trains; of no account by the rule `independent`."""
    max_cells_per_type: int | None = Field(default=None, ge=10)
    """Training cells of a type that the network learns from in one stage, drawn from every batch in
    proportion; the others are in reserve, for the sums alone. None: all of them train."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, found {total:g}")
        return self


class Panel(Section):
    """The genes of the lineage, chosen on the training cells of ``stage``, its first one, alone."""

    stage: Name | None = None
    """The first stage, on whose training cells the genes are chosen."""
    size: int | None = Field(default=None, ge=8)
    """Number of genes; None: as many as the preset of the backbone has."""
    rule: PanelRule = "mixed"
    """How genes are chosen: `mixed` (half by F statistic between types, half by variance), `f_statistic`,
    `variance`, `dispersion` (published; needs scanpy)."""
    min_expressed: float = Field(default=0.02, ge=0, lt=1)
    """A gene that is expressed in a smaller share of the training cells is not chosen."""


class ImportedBackbone(Section):
    """Published weights, as ``canal backbone import`` left them."""

    path: str = Field(min_length=1)
    """The folder of the import, below `backbones/`."""
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The digest of its key."""


class Backbone(Section):
    """The pretrained network: its size by name, and its pre-training, or the import that replaces it."""

    preset: Preset = "small"
    """Size of the network: `tiny` (tests), `small` (d = 64, 3 blocks, 4 heads of 16, 300 genes), `scbert`
    (d = 200, 6 blocks, 10 heads of 64, 1,000 genes)."""
    branch: int = Field(default=1, ge=1)
    """Raised by `canal stage relearn backbone`, which starts the lineage over."""
    imported: ImportedBackbone | None = None
    """Published weights instead of pre-training, written by `canal backbone import`; the settings of its
    pre-training are then not used."""
    gene_embedding: str | None = None
    """File of gene vectors instead of the truncated SVD."""
    extra_stages: tuple[Name, ...] = ()
    """Stages whose training cells are pretrained on, too; their gates must have passed."""
    unlabelled: tuple[Name, ...] = ()
    """Sources without labels whose cells are pretrained on, too, after their gate; needs a network."""
    max_unlabelled_cells: int = Field(default=100_000, ge=10)
    """Cells of all unlabelled sources together, drawn by seed and content."""
    mask_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the expressed genes that is masked."""
    max_epochs: int = Field(default=15, ge=0)
    """Most epochs of pre-training."""
    patience: int = Field(default=3, ge=1)
    """Epochs without gain after which pre-training ends."""
    batch_size: int = Field(default=32, ge=1)
    """Cells of a step of pre-training."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of pre-training."""


Method = Literal["published", "exact", "combined"]


class Continual(Section):
    """Learning a stage; the defaults are those of the published method (bbae047)."""

    method: Method = "published"
    """Who learns: `published` (the network of bbae047), `exact` (sums alone, no network), `combined`
    (both)."""
    max_validation_cells: int | None = Field(default=None, ge=1)
    """Validation cells of the new stage that an epoch is measured on, types in proportion. None, as
    published: all. Temperature, threshold and weights are set on all of them either way."""
    distillation: float = Field(default=PUBLISHED_DISTILLATION, ge=0)
    """Lambda: how strongly the teacher holds the new model, where a stage is not tuned."""
    bank_size: int = Field(default=PUBLISHED_BANK_SIZE, ge=0)
    """L: bank cells that are replayed, where a stage is not tuned."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of each label that is spread over all types."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Highest learning rate of the schedule."""
    min_learning_rate: float = Field(default=1e-6, gt=0)
    """Lowest learning rate of the schedule."""
    warmup_epochs: int = Field(default=5, ge=0)
    """Epochs in which the learning rate rises."""
    cycle_epochs: int = Field(default=15, ge=1)
    """Epochs of the first cosine cycle of the learning rate."""
    cycle_growth: int = Field(default=2, ge=1)
    """Each further cycle is so many times as long."""
    cycle_decay: float = Field(default=0.9, gt=0, le=1)
    """Highest learning rate of a cycle, as a share of the cycle before."""
    batch_size: int = Field(default=14, ge=1)
    """Cells of a step."""
    max_epochs: int = Field(default=100, ge=1)
    """Most epochs of a stage."""
    patience: int = Field(default=10, ge=1)
    """Epochs without gain on the validation cells after which a stage ends."""


class AdoptedBasis(Section):
    """Another lineage's basis, as ``canal basis adopt`` left it."""

    path: str = Field(min_length=1)
    """The folder of the basis, below `bases/`."""
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The digest of the basis, which stands in every request."""


class Memory(Section):
    """How the sums of the exact memory are solved; docs/memory.md has the measured effect of each number."""

    model_config = ConfigDict(allow_inf_nan=False)

    basis: AdoptedBasis | None = None
    """Another lineage's basis, written by `canal basis adopt`; its genes are the panel, too."""
    shrinkage: float = Field(default=0.4, ge=0, le=1)
    """Share by which a covariance moves to its diagonal: of few cells it is noise off it."""
    type_power: float = Field(default=0.5, ge=0, le=1)
    """Weight of a type in the covariance: 1 as many as its cells, 0 all types alike."""
    few: float = Field(default=3.0, ge=0)
    """So many cells of the mean over all cells join a type's own mean, which steadies types of few cells."""
    stage_share: float = Field(default=0.5, ge=0, le=1)
    """How much of a study's own covariance counts among its types."""
    between: float = Field(default=0.3, ge=0)
    """How far off a new study may be, in parts of how far off learned ones are; 0: own answer alone."""
    reliable: float = Field(default=10.0, gt=0)
    """A type's mean of n cells says how far studies lie apart with weight n / (n + reliable)."""
    soft: float = Field(default=0.03, gt=0, le=1)
    """How far all stages of a type have a say about a new study (near 0), or its nearest alone (1)."""
    own: float = 1.5
    """Head start, in nats, of the answer for learned studies over that for new ones."""
    batch_mb: float = Field(default=64.0, ge=0)
    """Megabytes up to which a stage's sums are kept by batch, too."""

    def numbers(self) -> dict[str, float]:
        """Return the numbers that decide how sums are solved."""
        return self.model_dump(mode="json", exclude={"basis", "batch_mb"})


class Bank(Section):
    """The example bank: training cells that are replayed in later stages."""

    capacity: int = Field(default=1000, ge=1)
    """Ranked cells that a version stores."""


class Probe(Section):
    """The probe sets: validation cells of each stage that are kept to watch forgetting; never trained on."""

    max_cells: int = Field(default=200, ge=0)
    """Validation cells of each stage; 0 keeps none: calibration and threshold are then set on the newest
    stage's validation cells alone."""


class Novelty(Section):
    """When a cell is none of the known types."""

    temperature: float = Field(default=0.8, gt=0)
    """T of the energy."""
    false_unassigned: float = Field(default=0.05, gt=0, lt=1)
    """Share of known validation cells that may be called Unassigned; it sets the threshold."""
    mixtures: int = Field(default=1000, ge=10)
    """Made-up mixtures of two cells that bound the energy."""
    holdouts: tuple[str, ...] | None = None
    """Types that are held out to measure how well unknown cells are noticed; None: all that can be, `[]`:
    none. It only measures: a change lets `make run` measure again, and nothing is learned."""
    shadow_epochs: int = Field(default=100, ge=1)
    """Epochs of a held-out-type head."""


class Cache(Section):
    """Frozen features kept on disk."""

    max_gb: float = Field(default=10.0, ge=0)
    """Gigabytes of `.canal/features`; what was used longest ago goes first, and what finds no room is
    computed whenever it is needed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` halves the features on disk; it changes what a stage learns, so it belongs to its
    request."""

    @property
    def max_bytes(self) -> int:
        """The most that the folder may hold."""
        return int(self.max_gb * 1e9)


class Compute(Section):
    """Where a training computes, and the type of its matrix products."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is a GPU where there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products while training; `bfloat16` is faster where the machine has it, and gives other
    weights."""


class Registry(Section):
    """Names in the MLflow registry, and the keys that have to sign."""

    model: str = Field(default="canal-annotator", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the registered model."""
    backbone: str = Field(default="canal-backbone", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the registered model of backbones."""
    experiment: str = Field(default="canal", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the experiment that holds the runs."""
    keyring: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99})*$",
    )
    """File of the project with the keys that have to sign what is written into the ledger; None: nothing has
    to be signed."""


class Share(Section):
    """What `canal share` gives away."""

    min_cells: int = Field(default=20, ge=1)
    """Types of a stage with fewer summed cells are left out; no protection of those that are in."""
