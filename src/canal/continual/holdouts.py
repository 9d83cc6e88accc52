"""How well versions with sums notice a type that neither their sums nor their network ever learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from canal.config import Memory, Novelty
from canal.continual.combining import LeavingOut, Noticed
from canal.continual.fit import Hooks
from canal.continual.remembering import Known, without_type
from canal.continual.shadow import GeneScores, ShadowCells, learn_without, obstacle
from canal.memory.answer import ExactAnnotator
from canal.memory.stages import StageSums
from canal.model.combined import CombinedAnnotator
from canal.model.lanes import in_lanes


def held_out_types(
    annotator: ExactAnnotator | CombinedAnnotator,
    sums: StageSums,
    cells: ShadowCells,
    memory: Memory,
    novelty: Novelty,
    seed: int,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Return how well each type of ``novelty.holdouts`` is noticed; as `canal.continual.shadow.shadow_heads`.

    From the sums a type is left out with its scatter, exactly; of a network its head is learned anew. The
    rule is set without the type, of the parts that the annotator's own is made of.
    """
    reasons = {name: obstacle(name, annotator.labels, cells) for name in novelty.holdouts}
    names = [name for name, reason in reasons.items() if not reason]
    one = _asking(annotator, sums, cells, memory, novelty, seed, hooks, names) if names else None
    measured = [] if one is None else [_document(name, one(name)) for name in names]
    return {
        "holdouts": measured,
        "h_score": float(np.mean([one["h_score"] for one in measured])) if measured else None,
        "auroc": float(np.mean([one["auroc"] for one in measured])) if measured else None,
        "not_measured": {name: reason for name, reason in reasons.items() if reason},
    }


def _asking(
    annotator: ExactAnnotator | CombinedAnnotator,
    sums: StageSums,
    cells: ShadowCells,
    memory: Memory,
    novelty: Novelty,
    seed: int,
    hooks: Hooks | None,
    names: Sequence[str],
) -> Callable[[str], Noticed]:
    """Return what asks about the tested cells, given the name of the type that is left out."""
    known, test = (Known.of_cells(some, sums) for some in (cells.known, cells.test))
    if isinstance(annotator, ExactAnnotator):
        parts = tuple(annotator.novelty.parts) if annotator.novelty else ()

        def by_sums(name: str) -> Noticed:
            plain = without_type(sums, name, annotator.labels, known, memory, novelty, parts)
            return _noticed(plain, name, test.of({*plain.labels, name}))

        return by_sums
    network = annotator.network
    leaving = LeavingOut(
        GeneScores.of(network, cells, hooks),
        sums,
        known,
        test,
        memory,
        novelty,
        seed,
        network.novelty.parts if network.novelty else (),
        annotator.combination,
    )
    parts = tuple(annotator.novelty.parts) if annotator.novelty else ()
    heads = in_lanes(
        partial(learn_without, scores=leaving.scores, epochs=novelty.shadow_epochs, seed=seed), names
    )
    shadows = dict(zip(names, heads, strict=True))
    return lambda name: leaving.measured(name, parts, shadows)


def _noticed(plain: ExactAnnotator, name: str, test: Known) -> Noticed:
    rule, truth = plain.novelty, np.array(test.cell_types, dtype=object)
    score = np.zeros(len(truth)) if rule is None else rule.score(test.apart(plain))
    novel = np.zeros(len(truth), dtype=bool) if rule is None else rule.is_novel(score)
    said = np.array(plain.labels, dtype=object)[test.logits(plain).argmax(axis=1)]
    return Noticed(truth == name, score, novel, said == truth)


def _document(name: str, asked: Noticed) -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    known_accuracy, unknown_accuracy = asked.accuracies
    return {
        "type": name,
        "n_known": int((~asked.unknown).sum()),
        "n_unknown": int(asked.unknown.sum()),
        "known_accuracy": known_accuracy,
        "unknown_accuracy": unknown_accuracy,
        "h_score": asked.h_score,
        "auroc": float(roc_auc_score(asked.unknown, asked.score)),
    }
