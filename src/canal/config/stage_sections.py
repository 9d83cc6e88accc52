"""The sections `sources` and `stages` of params.yaml: which cells a lineage learns, stage by stage."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from canal.config.sections import DanglingNameError, Method, Name, Section, Values
from canal.core.errors import there_are

OntologyId = Annotated[str, Field(pattern=r"^CL:[0-9]{7}$")]


class Wheel(Section):
    """A file inside a pinned pip package, which is downloaded without its dependencies."""

    package: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    """Name of the package on the index."""
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]+$")
    """Its version."""
    file: str = Field(min_length=1)
    """Path of the h5ad file in the wheel."""


class Exclusion(Section):
    """Cells that must not be learned from: a withdrawn consent, a retracted batch."""

    cells: tuple[str, ...] = ()
    """Names of cells, as the file's own obs has them."""
    batches: tuple[str, ...] = ()
    """Values of the column `batch`."""


_NOT_DECLARED = {"path", "url", "wheel", "rest", "available", "licence", "citation", "ontology"}


class Source(Section):
    """A file of cells: where it lies, its digest, and how to read it."""

    path: str | None = None
    """Where the file lies; exactly one of `path`, `url` and `wheel`."""
    url: str | None = Field(default=None, pattern=r"^https?://")
    """Where it is fetched from."""
    wheel: Wheel | None = None
    """A package on the index that holds it."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the file that stages learned from."""
    rest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Written by `canal erase`: SHA-256 of what is left of the file, while `sha256` stays."""
    available: bool = True
    """False where the data are gone: its stages are restored, never learned."""
    label: str | None = Field(default=None, min_length=1)
    """Column of obs with the published labels; None for cells that only pre-train (`backbone.unlabelled`)."""
    label_map: dict[str, str | None] | None = None
    """Published label: cell type; null drops the label's cells. None: labels are taken as they are."""
    ontology: dict[str, OntologyId] = Field(default_factory=dict)
    """Cell type: id of the Cell Ontology, such as `{B: CL:0000236}`, also written by `canal stage add --map
    SHEET`; kept by the versions of this stage and of all behind it. It belongs to the stage's request."""
    batch: str | None = None
    """Column of obs with batches, such as donors."""
    values: Values
    """What the values are: counts, or the logarithm of 1 + counts per 10,000, natural or to base 2."""
    layer: str = "X"
    """`X`, `raw` or the name of a layer."""
    gene_column: str | None = None
    """Column of var with gene symbols, where var_names are others, such as Ensembl ids."""
    duplicates: Literal["refuse", "sum"] = "refuse"
    """What happens to genes of one symbol; `sum` adds them up, for counts only."""
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Column of obs: values; only cells with one of these are kept."""
    exclude: Exclusion = Exclusion()
    """Cells that must not be learned from."""
    min_genes: int | None = Field(default=None, ge=0)
    """A cell with fewer expressed genes is dropped; None: `prepare.min_genes`."""
    licence: str = ""
    """Licence of file and data."""
    citation: str = ""
    """Who made the data."""

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


class ContinualOverride(Section):
    """What one stage sets differently from ``continual``."""

    method: Method | None = None
    """Who learns this stage."""
    distillation: float | None = Field(default=None, ge=0)
    """Lambda of this stage."""
    bank_size: int | None = Field(default=None, ge=0)
    """L of this stage."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Its highest learning rate."""
    max_epochs: int | None = Field(default=None, ge=1)
    """Its most epochs."""
    patience: int | None = Field(default=None, ge=1)
    """Its epochs without gain."""


class StagePanel(Section):
    """How many genes a stage may add to its parent's panel, chosen on its own training cells alone."""

    grow: int = Field(default=0, ge=0)
    """Most genes that are added, by `panel.rule`; not in the first stage."""


class Merged(Section):
    """Sums of another lineage that a stage's version also holds, as `canal merge` left it."""

    stages: tuple[Name, ...] = Field(min_length=1)
    """Names under which the other lineage's stages are kept."""
    sums: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of all sums together."""
    other: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of the other version's key, or of the shared bundle."""


class Stage(Section):
    """One stage of the lineage: the cells of ``source``, learned on top of ``parent``."""

    source: Name
    """The source whose cells are learned."""
    parent: Name
    """The stage that it is learned on, one above; of the first one `backbone`."""
    branch: int = Field(default=1, ge=1)
    """Raised by `canal stage relearn`, which learns the stage anew and leaves the old versions as they
    are."""
    tune: bool = False
    """Whether a study chooses lambda and L of the stage; not of the first stage, nor where sums alone
    learn."""
    group_by_batch: bool = False
    """A batch's cells all train, all validate or all test."""
    panel: StagePanel = StagePanel()
    """Genes that the stage adds to its parent's."""
    continual: ContinualOverride = ContinualOverride()
    """What it sets differently from `continual`."""
    merged: Merged | None = None
    """Sums of other lineages that its version also holds, written by `canal merge`."""


def without_groups(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a params document whose stages say themselves whether they are tuned.

    Before, a section ``finetune`` named every stage a second time, in a group ``fixed`` or ``tuned``.

    Raises
    ------
    DanglingNameError
        If that section names a stage that does not exist.
    """
    plain = dict(document)
    groups = plain.pop("finetune", None)
    if groups is None:
        return plain
    if not isinstance(groups, Mapping) or set(groups) - {"fixed", "tuned"}:
        raise DanglingNameError("finetune", "unknown key: stages.NAME.tune says whether a stage is tuned")
    stages = dict(plain.get("stages") or {})
    for group, entries in groups.items():
        for name in entries or ():
            if name not in stages:
                message = f"no stage {name!r}{there_are(name, stages)}"
                raise DanglingNameError(f"finetune.{group}.{name}", message)
            if group == "tuned" and isinstance(stages[name], Mapping):
                stages[name] = {**stages[name], "tune": True}
    return {**plain, "stages": stages} if stages else plain
