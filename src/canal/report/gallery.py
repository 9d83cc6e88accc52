"""All figures of one stage: those that have nothing to show are left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from canal.report import figures
from canal.report.documents import Document, StageReport, accuracy_matrix, before_learning

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def stage_figures(stage: StageReport, evaluations: Sequence[Document]) -> dict[str, "Figure"]:
    """Return the figures of a stage by name.

    Parameters
    ----------
    stage
        The stage.
    evaluations
        evaluation.json of its ancestors and its own, oldest first.
    """
    evaluation = stage.evaluation
    drawn = {}
    if stage.history["epochs"]:
        drawn["loss_curves"] = figures.loss_curves(stage.history)
    if evaluation["per_stage"]:
        drawn["recall"] = figures.recall_by_type(evaluations)
    if evaluation["calibration"].get("bins"):
        drawn["reliability"] = figures.reliability(evaluation["calibration"])
    if evaluation["novelty"].get("holdouts") or len(stage.scores) > 0:
        drawn["novelty"] = figures.novelty(evaluation["novelty"], stage.scores)
    return drawn


def confusion_figures(stage: StageReport) -> dict[str, "Figure"]:
    """Return one confusion matrix for each stage that this one's model was tested on, the newest first."""
    entries = reversed(list(stage.evaluation["per_stage"].items()))
    return {name: figures.confusion(entry, f"Test cells of {name}") for name, entry in entries}


def matrix_figure(evaluations: Sequence[Document]) -> "Figure":
    """Return the heat map of R over these evaluations."""
    return figures.r_matrix(*accuracy_matrix(evaluations), before_learning(evaluations))
