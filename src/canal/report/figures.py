"""The figures of a run, drawn from the plain documents that training and evaluation write."""

from canal.report.canvas import save, svg_uri
from canal.report.curves import loss_curves, pretraining
from canal.report.points import novelty, recall_by_type, reliability
from canal.report.squares import confusion, r_matrix

__all__ = [
    "confusion",
    "loss_curves",
    "novelty",
    "pretraining",
    "r_matrix",
    "recall_by_type",
    "reliability",
    "save",
    "svg_uri",
]
