"""The sections of params.yaml about decisions: the promotion policy, and hooks that are told of decisions."""

from typing import Literal, Self

from pydantic import Field, model_validator

from canal.config.sections import Section
from canal.core.errors import shown_address

Action = Literal["promote", "rollback", "retire", "unlearn"]
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class Policy(Section):
    """The bounds that a version must meet to become the champion; docs/registry.md explains the defaults."""

    min_accuracy: float = Field(default=0.7, ge=0, le=1)
    """Least accuracy on the new stage's test cells, at the lower end of its interval."""
    min_balanced_accuracy: float = Field(default=0.5, ge=0, le=1)
    """Least recall averaged over the new stage's types, at the lower end of its interval."""
    max_loss: float = Field(default=0.1, ge=0, le=1)
    """Most loss of accuracy on an earlier stage, against the champion or else the parent."""
    max_loss_per_type: float = Field(default=0.25, ge=0, le=1)
    """Most loss of recall of one cell type of an earlier stage."""
    min_cells_per_stage: int = Field(default=50, ge=1)
    """A stage with fewer test cells is not judged: a person lets it pass (`--too-few`)."""
    min_cells_per_type: int = Field(default=50, ge=1)
    """A cell type with fewer test cells is not judged."""
    loss_to_see: float = Field(default=0.05, gt=0, lt=1)
    """The loss that test cells are to show."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """The probability with which they are to show it."""
    min_h_score: float = Field(default=0.1, ge=0, le=1)
    """Least harmonic mean of accuracy on known cells and share of unknown cells noticed."""
    max_ece: float = Field(default=0.25, ge=0, le=1)
    """Largest calibration error: mean distance between confidence and the share that is right."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Resamples of cells of the paired bootstrap."""


class Hook(Section):
    """A command or an address that is told of decisions once they are complete."""

    on: tuple[Action, ...] = Field(min_length=1)
    """The decisions that are told."""
    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Words of a command, run in the project's folder by no shell."""
    url: str | None = Field(default=None, pattern=r"^https?://")
    """An address that gets a POST; exactly one of `command`, `url` and `url_from`."""
    url_from: str | None = Field(default=None, pattern=_VARIABLE)
    """The environment variable that holds an address with a secret in it."""
    token_from: str | None = Field(default=None, pattern=_VARIABLE)
    """The environment variable that holds the address's bearer token."""
    timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Seconds of one attempt."""
    attempts: int = Field(default=3, ge=1, le=10)
    """How often it is tried."""
    pause_s: float = Field(default=1.0, ge=0, le=60)
    """Seconds between the first two attempts; each further pause is twice as long."""

    @model_validator(mode="after")
    def require_one_place(self) -> Self:
        """Refuse a hook without one command or address, and an address that holds a secret."""
        given = [name for name in ("command", "url", "url_from") if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of command, url and url_from; found {found}")
        if self.token_from is not None and self.command is not None:
            raise ValueError(
                "token_from is for an address: a command finds the environment's variables itself"
            )
        if self.url is not None and shown_address(self.url) != self.url:
            raise ValueError(
                f"{shown_address(self.url)} holds a secret, and params.yaml is committed to git: put the "
                "address into an environment variable and name that (url_from), or the token's (token_from)"
            )
        return self

    @property
    def shown(self) -> str:
        """The hook as people may read it: its command, its address, or the name of the address's variable."""
        if self.command is not None:
            return " ".join(shown_address(one) if "://" in one else one for one in self.command)
        return self.url or f"${self.url_from}"
