"""The section of params.yaml that says who may serve: the promotion policy."""

from pydantic import Field

from canal.config.sections import Section


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
