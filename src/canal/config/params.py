"""The `Config` of params.yaml: one frozen, typed object whose validation errors name the path of the key."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from canal.config.decisions import Hook, Policy
from canal.config.sections import (
    BACKBONE,
    PUBLISHED_DISTILLATION,
    Backbone,
    Bank,
    Cache,
    Compute,
    Continual,
    DanglingNameError,
    Gate,
    ImportedBackbone,
    Memory,
    Name,
    Novelty,
    Panel,
    Prepare,
    Probe,
    Registry,
    Section,
    Share,
    Split,
)
from canal.config.stage_sections import Source, Stage, without_groups
from canal.core.errors import ConfigError, did_you_mean, there_are

Dimension = Literal["learning_rate", "label_smoothing", "max_epochs"]

NO_STAGE = (
    "params.yaml declares no stage yet: `canal stage add NAME --file FILE.h5ad --label COLUMN --values "
    "counts` adds the first one"
)
_EXECUTION_KEYS = {"jobs", "storage", "max_minutes", "heartbeat_seconds"}
"""Keys of `Tuning` that affect how a study is run, not its result."""


class Strengths(Section):
    """The range of lambda in a study, log-uniform."""

    low: float = Field(default=0.01, gt=0)
    """Lowest lambda."""
    high: float = Field(default=10.0, gt=0)
    """Highest lambda."""
    with_zero: bool = True
    """Whether lambda = 0, no distillation, is tried, too."""

    @model_validator(mode="after")
    def require_published(self) -> Self:
        """Refuse a range without the published value."""
        if not self.low <= PUBLISHED_DISTILLATION <= self.high or self.low == self.high:
            raise ValueError(
                f"low < high must enclose {PUBLISHED_DISTILLATION}, the published value, which every study "
                f"tries first; found {self.low:g} and {self.high:g}"
            )
        return self


class Tuning(Section):
    """A study over lambda and L: its search space, objective and rule of choice."""

    n_trials: int = Field(default=8, ge=1)
    """Trials of a study."""
    epochs: int = Field(default=4, ge=1)
    """Epochs of a trial."""
    max_minutes: float | None = Field(default=None, gt=0)
    """After so many minutes no trial begins; None: no limit."""
    distillation: Strengths = Strengths()
    """Range of lambda."""
    bank_sizes: tuple[int, ...] = ()
    """Values of L, in cells; this or `bank_shares` must be given."""
    bank_shares: tuple[float, ...] = ()
    """Values of L, as shares of all earlier stages' training cells, cut to `bank.capacity`."""
    dimensions: tuple[Dimension, ...] = ()
    """What else is tuned: `learning_rate` (a quarter to four times its value), `label_smoothing` (0 to 0.3),
    `max_epochs` (1 to `tuning.epochs`)."""
    rule: Literal["harmonic_mean", "accuracy", "retention"] = "harmonic_mean"
    """What is looked for among the trials that keep `min_retention` of the past."""
    min_retention: float = Field(default=0.9, ge=0, le=1)
    """Share of the accuracy on earlier stages that a choice should keep."""
    size_price: float = Field(default=0.01, ge=0, le=1)
    """What replaying a whole bank (L = `bank.capacity`) costs, in units of the harmonic mean."""
    least_gain: float = Field(default=0.0, ge=0)
    """Standard errors of the balanced accuracy by which a trial must beat the published point."""
    startup_trials: int = Field(default=4, ge=1)
    """Random trials before the sampler and the pruner judge."""
    warmup_epochs: int = Field(default=1, ge=0)
    """Epochs before a trial may be ended."""
    jobs: int = Field(default=1, ge=1)
    """Processes that share a study."""
    storage: str | None = Field(default=None, min_length=1)
    """URL of Optuna's storage, without a password (`CANAL_TUNING_STORAGE` may hold one and comes first);
    None: a journal in the project. In PostgreSQL, processes of many machines share a study."""
    heartbeat_seconds: int = Field(default=30, ge=1)
    """In PostgreSQL: how often a process says that its trial is running; after three times as long without
    it the trial counts as lost, and another process tries it again."""

    @model_validator(mode="after")
    def check_sizes(self) -> Self:
        """Raise for invalid bank sizes and shares."""
        if not self.bank_sizes and not self.bank_shares:
            raise ValueError("give bank_sizes (cells) or bank_shares (of all old training cells)")
        if wrong := [size for size in self.bank_sizes if size < 0]:
            raise ValueError(f"bank_sizes must be 0 or more, found {wrong[0]}")
        if outside := [share for share in self.bank_shares if not 0 < share <= 1]:
            raise ValueError(f"bank_shares must be above 0 and at most 1, found {outside[0]:g}")
        return self

    def asked(self) -> dict[str, Any]:
        """Return the settings that determine the choice, without jobs, storage and time limit.

        ``least_gain`` is left out at 0, so that requests of stages from before it stay the same.
        """
        return self.model_dump(
            mode="json", exclude=_EXECUTION_KEYS if self.least_gain else _EXECUTION_KEYS | {"least_gain"}
        )

    @property
    def varied(self) -> frozenset[str]:
        """The settings of `Continual` that a study chooses."""
        return frozenset({"distillation", "bank_size", *self.dimensions})


class Config(Section):
    """The whole of params.yaml."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of splits, weights, order of cells and mixtures."""
    threads: int = Field(default=2, ge=1)
    """Processor cores that a training uses; the weights do not depend on it."""
    sources: dict[Name, Source]
    """Files of cells by name."""
    stages: dict[Name, Stage]
    """What is learned, in order, by name."""
    tuning: Tuning | None = None
    """The study of stages with `tune: true`; None where no stage is tuned."""
    prepare: Prepare = Prepare()
    """How cells are read."""
    gate: Gate = Gate()
    """What a source must hold before it is learned."""
    split: Split = Split()
    """Which cells train, validate and test."""
    panel: Panel = Panel()
    """The genes."""
    backbone: Backbone = Backbone()
    """The pretrained network."""
    continual: Continual = Continual()
    """How stages are learned."""
    memory: Memory = Memory()
    """How the exact memory answers."""
    bank: Bank = Bank()
    """The example bank."""
    probe: Probe = Probe()
    """The probe sets."""
    novelty: Novelty = Novelty()
    """When a cell is Unassigned."""
    cache: Cache = Cache()
    """Features kept on disk."""
    registry: Registry = Registry()
    """Names in MLflow."""
    policy: Policy = Policy()
    """What `canal promote` asks for."""
    hooks: tuple[Hook, ...] = ()
    """Who is told of decisions."""
    share: Share = Share()
    """What `canal share` gives away."""
    compute: Compute = Compute()
    """Where a training computes."""

    @model_validator(mode="before")
    @classmethod
    def read_groups(cls, document: Any) -> Any:
        """Read an older section ``finetune``, which named every stage again, as ``tune`` of its stages."""
        return without_groups(document) if isinstance(document, Mapping) else document

    @model_validator(mode="after")
    def check_consistent(self) -> Self:
        """Check the sections against each other."""
        _check_references(self)
        _check_methods(self)
        _check_tuned(self)
        return self

    def learning(self, stage: str) -> Continual:
        """Return ``continual`` with what ``stage`` sets differently."""
        override = self.stages[stage].continual.model_dump(exclude_none=True)
        return self.continual.model_copy(update=override)

    @property
    def trains_network(self) -> bool:
        """Whether a backbone is pretrained; false if the first stage (and so every stage) uses sums alone."""
        return self.learning(self.root_stage).method != "exact"

    @property
    def imported_backbone(self) -> ImportedBackbone | None:
        """The published weights that the lineage starts from; None where no network is trained."""
        return self.backbone.imported if self.trains_network else None

    def study(self, stage: str) -> Tuning | None:
        """Return the study of ``stage``; None where params.yaml fixes lambda and L."""
        return self.tuning if self.stages[stage].tune else None

    @property
    def tuned(self) -> list[str]:
        """The stages whose lambda and L a study chooses."""
        return [name for name, stage in self.stages.items() if stage.tune]

    def ancestors(self, stage: str) -> list[str]:
        """Return the stages that ``stage`` builds on, oldest first, itself left out."""
        chain: list[str] = []
        parent = self.stages[stage].parent
        while parent != BACKBONE:
            chain.append(parent)
            parent = self.stages[parent].parent
        return chain[::-1]

    def summed_stages(self, stage: str) -> list[str]:
        """Return the stages whose sums a version of ``stage`` may hold, oldest first, itself last.

        Beside its ancestors these are the stages of other lineages that were merged into them or into it.
        """
        chain = [*self.ancestors(stage), stage]
        merged = (one for name in chain if (found := self.stages[name].merged) for one in found.stages)
        return [*dict.fromkeys([*chain[:-1], *merged]), stage]

    def min_genes(self, source: str) -> int:
        """Return how many expressed genes a cell of ``source`` must have to be kept."""
        own = self.sources[source].min_genes
        return self.prepare.min_genes if own is None else own

    @property
    def root_stage(self) -> str:
        """The first stage of the lineage; raises `ConfigError` where none is declared yet."""
        if self.panel.stage is None:
            raise ConfigError(NO_STAGE)
        return self.panel.stage

    @property
    def last_stage(self) -> str:
        """The stage declared last; raises `ConfigError` where none is declared yet."""
        if not self.stages:
            raise ConfigError(NO_STAGE)
        return list(self.stages)[-1]


def _check_references(config: Config) -> None:
    """Raise for names of sources and stages that do not exist, and for settings that exclude each other."""
    seen: list[str] = []
    for name, stage in config.stages.items():
        if name == BACKBONE:
            raise DanglingNameError(f"stages.{name}", "this name is reserved for the pretrained network")
        if stage.source not in config.sources:
            message = f"no source {stage.source!r}{there_are(stage.source, config.sources)}"
            raise DanglingNameError(f"stages.{name}.source", message)
        if stage.parent != BACKBONE and stage.parent not in seen:
            before = ", ".join(seen) or "none"
            raise DanglingNameError(
                f"stages.{name}.parent",
                f"{stage.parent!r} is no stage above this one (there are {before}); "
                f"the first stage has parent: {BACKBONE}{did_you_mean(stage.parent, seen)}",
            )
        seen.append(name)
    _check_ontology(config)
    _check_split(config)
    roots = [name for name, stage in config.stages.items() if stage.parent == BACKBONE]
    if not config.stages and config.panel.stage is None:
        return  # as `canal init` leaves it: the first stage is still to be added
    if roots != [config.panel.stage]:
        raise DanglingNameError(
            "panel.stage",
            f"must name the one stage with parent: {BACKBONE} ({', '.join(roots) or 'none'}), "
            f"found {config.panel.stage!r}",
        )
    if config.stages[config.root_stage].panel.grow:
        message = "the first stage chooses the whole panel: set panel.size"
        raise DanglingNameError(f"stages.{config.root_stage}.panel.grow", message)
    for extra in config.backbone.extra_stages:
        if extra not in config.stages:
            message = f"no stage {extra!r}{there_are(extra, config.stages)}"
            raise DanglingNameError("backbone.extra_stages", message)
    _check_unlabelled(config)
    for name in config.stages:
        merged = config.stages[name].merged
        if taken := [one for one in (merged.stages if merged else ()) if one in config.stages]:
            message = f"sums of another lineage are kept under the name {taken[0]}, which is a stage's here"
            raise DanglingNameError(f"stages.{name}.merged.stages", message)
    contrary = [
        name for name in ("gene_embedding", "extra_stages", "unlabelled") if getattr(config.backbone, name)
    ]
    if config.backbone.imported is not None and contrary:
        message = f"an import is not pretrained here: remove {' and '.join(contrary)}, or the import"
        raise DanglingNameError("backbone.imported", message)


def _check_unlabelled(config: Config) -> None:
    """Raise for a stage without labels, and for corpora that are no corpora or pretrain no network."""
    path, learned = "backbone.unlabelled", {one.source: name for name, one in config.stages.items()}
    for source, stage in learned.items():
        if config.sources[source].label is None:
            message = f"missing: stage {stage} learns cell types from it, so name the column of obs with them"
            raise DanglingNameError(f"sources.{source}.label", f"{message} (backbone.unlabelled needs none)")
    for name in config.backbone.unlabelled:
        if name not in config.sources:
            raise DanglingNameError(path, f"no source {name!r}{there_are(name, config.sources)}")
        if name in learned:
            message = (
                f"stage {learned[name]} learns from {name}: its training cells pre-train by extra_stages"
            )
            raise DanglingNameError(path, message)
    if len(set(config.backbone.unlabelled)) < len(config.backbone.unlabelled):
        raise DanglingNameError(path, "names a source twice")
    if config.backbone.unlabelled and not config.trains_network:
        message = (
            f"no network is trained, for stage {config.root_stage} is learned by sums alone "
            "(continual.method: exact): remove it, or set continual.method: combined"
        )
        raise DanglingNameError(path, message)


def _check_methods(config: Config) -> None:
    """Raise where a network's parent is an exact stage, which has none, or where an exact stage is tuned."""
    methods = {name: config.learning(name).method for name in config.stages}
    for name, stage in config.stages.items():
        path = f"stages.{name}.continual.method"
        if methods[name] == "exact" and stage.tune:
            message = "lambda and L are of the network, and an exact stage has none: remove tune"
            raise DanglingNameError(f"stages.{name}.tune", message)
        if methods[name] != "exact" and methods.get(stage.parent) == "exact":
            which = "which is exact"
            if config.stages[stage.parent].merged is not None:
                which = "which was merged without a network, so there is no teacher"
            message = f"{methods[name]} needs the network of its parent {stage.parent}, {which}"
            raise DanglingNameError(path, f"{message}: make this stage exact, too, or its parent combined")


def _check_split(config: Config) -> None:
    """Raise where a stage groups its cells by batch and each cell's set is its own draw."""
    for name, stage in config.stages.items():
        if stage.group_by_batch and config.split.rule == "independent":
            message = (
                "true, but split.rule is independent: by it no other cell decides a cell's set, and the set "
                "of a batch would depend on the batch's other cells. Remove group_by_batch, or split.rule"
            )
            raise DanglingNameError(f"stages.{name}.group_by_batch", message)


def _check_ontology(config: Config) -> None:
    """Raise where two sources name one cell type by two ids of the Cell Ontology."""
    known: dict[str, tuple[str, str]] = {}
    for source, declared in config.sources.items():
        for name, term in declared.ontology.items():
            first, before = known.setdefault(name, (source, term))
            if term != before:
                message = f"{term}, but sources.{first} names it {before}: a type has one id"
                raise DanglingNameError(f"sources.{source}.ontology.{name}", message)


def _check_tuned(config: Config) -> None:
    """Raise where a stage is tuned that cannot be, or a study is not declared, or contradicts the stage."""
    tuned, tuning = config.tuned, config.tuning
    if not tuned:
        return
    if config.root_stage in tuned:
        message = "the first stage has neither teacher nor bank: remove tune"
        raise DanglingNameError(f"stages.{config.root_stage}.tune", message)
    if tuning is None:
        message = (
            f"missing, but stages.NAME.tune is set for {', '.join(tuned)}; canal's docs/tuning.md shows one"
        )
        raise DanglingNameError("tuning", message)
    if too_large := [size for size in tuning.bank_sizes if size > config.bank.capacity]:
        message = f"{too_large[0]} is more than a version stores (bank.capacity: {config.bank.capacity})"
        raise DanglingNameError("tuning.bank_sizes", message)
    for name in tuned:
        own = config.stages[name].continual.model_dump(exclude_none=True)
        for key in sorted(own.keys() & tuning.varied):
            message = "this stage is tuned: remove the value, or remove tune"
            raise DanglingNameError(f"stages.{name}.continual.{key}", message)
