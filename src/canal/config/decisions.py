"""The sections of params.yaml about decisions: the promotion policy, and hooks that are told of decisions."""

from typing import Literal, Self

from pydantic import Field, model_validator

from canal.config.sections import Section
from canal.core.errors import shown_address

Action = Literal["promote", "rollback", "retire", "unlearn"]
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class Policy(Section):
    """The bounds that a version must meet to become the champion; docs/registry.md explains the defaults.

    A stage with fewer test cells than ``min_cells_per_stage``, a cell type with fewer than
    ``min_cells_per_type``, is not judged. ``power`` is the probability with which test cells are to show a
    loss of ``loss_to_see``.
    """

    min_accuracy: float = Field(default=0.7, ge=0, le=1)
    min_balanced_accuracy: float = Field(default=0.5, ge=0, le=1)
    max_loss: float = Field(default=0.1, ge=0, le=1)
    max_loss_per_type: float = Field(default=0.25, ge=0, le=1)
    min_cells_per_stage: int = Field(default=50, ge=1)
    min_cells_per_type: int = Field(default=50, ge=1)
    loss_to_see: float = Field(default=0.05, gt=0, lt=1)
    power: float = Field(default=0.8, gt=0, lt=1)
    min_h_score: float = Field(default=0.1, ge=0, le=1)
    max_ece: float = Field(default=0.25, ge=0, le=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=2000, ge=100)


class Hook(Section):
    """A command or an address that is told of decisions (``on``) once they are complete.

    The command is a list of arguments, run in the project's folder. Secrets stand in environment variables:
    ``url_from`` names that of an address, ``token_from`` that of a bearer token. ``timeout_s`` is of one of
    ``attempts``; the first pause between two of them is ``pause_s``, each further one twice as long.
    """

    on: tuple[Action, ...] = Field(min_length=1)
    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    url: str | None = Field(default=None, pattern=r"^https?://")
    url_from: str | None = Field(default=None, pattern=_VARIABLE)
    token_from: str | None = Field(default=None, pattern=_VARIABLE)
    timeout_s: float = Field(default=10.0, gt=0, le=600)
    attempts: int = Field(default=3, ge=1, le=10)
    pause_s: float = Field(default=1.0, ge=0, le=60)

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
