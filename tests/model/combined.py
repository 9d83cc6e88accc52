"""Small combined annotators for tests: ``from tests.model.combined import make_combined``."""

from __future__ import annotations

from dataclasses import replace

from canal.memory.prediction import Calibration
from canal.model.combined import Combination, CombinedAnnotator, CombinedRule
from tests.memory.make import genes, make_exact, make_sums
from tests.model.make import make_annotator

LABELS = ("B", "Mono", "NK", "T")
RULE = CombinedRule({"network": (0.0, 1.0), "relative": (0.0, 5.0), "angle": (0.5, 0.1)}, 0.7)


def make_combined(weight: float = 0.5, fast_margin: float = 0.9) -> CombinedAnnotator:
    """Return a network of preset tiny and sums of two stages that answer together."""
    network = replace(make_annotator(LABELS, 20), genes=genes(20))
    exact = make_exact(make_sums(), LABELS)
    combination = Combination(weight, 1.2, Calibration(1.1, 0.005), fast_margin)
    return CombinedAnnotator(network, exact, combination, RULE)
