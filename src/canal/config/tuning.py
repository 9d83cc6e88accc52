"""The sections of params.yaml about tuning: which stages are tuned, and how a study goes."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from canal.config.sections import PUBLISHED_DISTILLATION, Name, Section

Dimension = Literal["learning_rate", "label_smoothing", "max_epochs"]

_HOW = {"jobs", "storage", "max_minutes"}
"""Keys of `Tuning` that say how a study is run, not what is asked for."""


class Learner(Section):
    """A stage's source and parent once more: DVC runs over a whole mapping, and takes both from it."""

    source: Name
    parent: Name


class Finetune(Section):
    """Every stage stands in one of two groups: lambda and L from params.yaml, or from a study."""

    fixed: dict[Name, Learner]
    tuned: dict[Name, Learner]


class Strengths(Section):
    """The range of lambda, log-uniform; ``with_zero`` tries no distillation at all, too."""

    low: float = Field(default=0.01, gt=0)
    high: float = Field(default=10.0, gt=0)
    with_zero: bool = True

    @model_validator(mode="after")
    def _holds_the_published(self) -> Self:
        if not self.low <= PUBLISHED_DISTILLATION <= self.high or self.low == self.high:
            raise ValueError(
                f"low < high must enclose {PUBLISHED_DISTILLATION}, the published value, which every study "
                f"tries first; found {self.low:g} and {self.high:g}"
            )
        return self


class Tuning(Section):
    """A study over lambda and L: what is tried, how an attempt is judged, which one is taken.

    ``bank_shares`` are shares of all training cells of the earlier stages. ``size_price`` is what replaying a
    whole bank (L = ``bank.capacity``) costs, in units of the harmonic mean. ``least_gain`` is by how many
    standard errors a trial must beat the published point to be taken.
    """

    n_trials: int = Field(default=8, ge=1)
    epochs: int = Field(default=4, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    distillation: Strengths = Strengths()
    bank_sizes: tuple[int, ...] = ()
    bank_shares: tuple[float, ...] = ()
    dimensions: tuple[Dimension, ...] = ()
    rule: Literal["harmonic_mean", "accuracy", "retention"] = "harmonic_mean"
    min_retention: float = Field(default=0.9, ge=0, le=1)
    size_price: float = Field(default=0.01, ge=0, le=1)
    least_gain: float = Field(default=0.0, ge=0)
    startup_trials: int = Field(default=4, ge=1)
    warmup_epochs: int = Field(default=1, ge=0)
    jobs: int = Field(default=1, ge=1)
    storage: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if not self.bank_sizes and not self.bank_shares:
            raise ValueError("give bank_sizes (cells) or bank_shares (of all old training cells)")
        if wrong := [size for size in self.bank_sizes if size < 0]:
            raise ValueError(f"bank_sizes must be 0 or more, found {wrong[0]}")
        if outside := [share for share in self.bank_shares if not 0 < share <= 1]:
            raise ValueError(f"bank_shares must be above 0 and at most 1, found {outside[0]:g}")
        return self

    def asked(self) -> dict[str, Any]:
        """Return what decides the choice: not how many processes look for it, where, and for how long.

        At 0 ``least_gain`` is not named, so that stages from before it are asked for as they were.
        """
        return self.model_dump(mode="json", exclude=_HOW if self.least_gain else _HOW | {"least_gain"})

    @property
    def varied(self) -> frozenset[str]:
        """Names of `Continual` that a study chooses."""
        return frozenset({"distillation", "bank_size", *self.dimensions})
