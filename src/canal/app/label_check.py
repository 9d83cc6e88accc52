"""Cells whose label the sums of a stage's parent contradict: from a project's files to `quality.labels`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from canal.app.project import Project
from canal.config.sections import BACKBONE

if TYPE_CHECKING:
    import pandas as pd

    from canal.quality.verdict import RuleResult


def contradicted(
    project: Project, stage: str, cell_ids: list[str]
) -> "tuple[pd.DataFrame, RuleResult] | None":
    """Return the cells whose label the parent's sums contradict by a high margin, and what the rule says."""
    from canal.quality.gate import check_contradictions, contradiction_rule

    config = project.config
    table = ask_sums(project, stage, cell_ids)
    if table is None:
        return None
    most = config.gate.max_contradiction
    rule = contradiction_rule(config.stages[stage].source, config.stages[stage].parent, most)
    found = check_contradictions(table, rule, f"{stage}-cells", project.layout.data_docs(f"{stage}-cells"))
    return table[table["margin"] > most].sort_values("name"), found


def ask_sums(project: Project, stage: str, cell_ids: Sequence[str]) -> "pd.DataFrame | None":
    """Return what the sums of a stage's parent say of its cells (`canal.quality.gate.contradictions`).

    None where the parent keeps no sums.
    """
    from canal.memory.answer import ExactAnnotator
    from canal.quality.gate import contradictions

    parent = project.config.stages[stage].parent
    folder = project.layout.model(parent) / "model" / "exact"
    if parent == BACKBONE or not folder.is_dir():
        return None
    prepared, annotator = project.prepared(stage), ExactAnnotator.load(folder)
    asked = annotator.without(prepared.missing(annotator.genes))
    known, types = annotator.classifier.labels, prepared.obs["cell_type"].astype(str)
    ids, answers, margins = list[str](), list[str](), list[float]()
    for chunk, expression in prepared.chunks(cell_ids, annotator.genes):
        said = asked.predict(expression)
        own = [annotator.labels.index(name) if name in known else -1 for name in types.loc[chunk]]
        ids, answers = ids + chunk, answers + said.labels
        margins += (said.confidence - said.probabilities[np.arange(len(own)), own]).tolist()
    return contradictions(ids, list(types.loc[ids]), answers, np.array(margins), known)
