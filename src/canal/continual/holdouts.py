"""How well versions with sums notice a type that neither their sums nor their network ever learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from canal.config.sections import Memory, Novelty
from canal.continual.combining import LeavingOut
from canal.continual.fit import Hooks
from canal.continual.noticed import Noticed, summary
from canal.continual.remembering import Known, asked_without
from canal.continual.shadow import GeneScores, ShadowCells, learn_without, obstacle
from canal.memory.answer import ExactAnnotator
from canal.memory.novelty_rule import SumsRule
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
    measured = [] if one is None else [one(name).document(name) for name in names]
    return summary(measured, reasons)


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
    parts = tuple(annotator.novelty.parts) if annotator.novelty else ()
    if isinstance(annotator, ExactAnnotator):
        labels, share = annotator.labels, novelty.false_unassigned
        return lambda name: asked_without(name, sums, labels, known, test, memory, novelty).noticed(
            SumsRule, parts, share
        )
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
    heads = in_lanes(
        partial(learn_without, scores=leaving.scores, epochs=novelty.shadow_epochs, seed=seed), names
    )
    shadows = dict(zip(names, heads, strict=True))
    return lambda name: leaving.measured(name, parts, shadows)
