"""The data of a report: the documents of each stage, the R matrix, and a version's method in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Document = Mapping[str, Any]
Counts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class StageReport:
    """All documents of one stage; fields that are None or empty are left out of the page.

    Parameters
    ----------
    name
        The stage.
    evaluation, history
        ``metrics/<stage>/evaluation.json`` and ``models/<stage>/history.json``.
    verdict, key, key_digest
        ``verdict.json``, ``key.json`` and the SHA-256 of the latter.
    cells, bank
        Numbers of cells: ``{cell type: {"train" | "validation" | "test" | "reserve": n}}`` and
        ``{cell type: {stage it came from: n}}``.
    scores
        Novelty of the test cells, in [0, 1].
    tuned
        ``tuned.json`` of the model folder, where lambda and L were chosen by a study.
    method
        What answers; see `canal.registry.manifest.version_folder.method_view`.
    data_docs
        First of Great Expectations' pages of the gate, where they are on this machine.
    version, aliases
        Number and aliases in the registry, once it is registered.
    """

    name: str
    evaluation: Document
    history: Document
    verdict: Document | None = None
    key: Document | None = None
    key_digest: str = ""
    cells: Counts = field(default_factory=dict)
    bank: Counts = field(default_factory=dict)
    scores: Sequence[float] = ()
    tuned: Document | None = None
    method: Document = field(default_factory=lambda: {"name": "published"})
    data_docs: Path | None = None
    version: int | None = None
    aliases: Sequence[str] = ()


def accuracy_matrix(evaluations: Sequence[Document]) -> tuple[list[str], list[list[float | None]]]:
    """Return the stages and R[i, j], the accuracy on stage j's test cells after stage i.

    Every evaluation brings the rows of its ancestors, so a lineage is whole even if only its newest
    evaluation is at hand; where lineages branch, a model has no number on the other branch's stages.
    """
    rows: dict[str, dict[str, float | None]] = {}
    for evaluation in evaluations:
        stages = evaluation["stages"]
        for stage, values in zip(stages, evaluation["matrix"], strict=True):
            rows[stage] = dict(zip(stages, values, strict=False))
    stages = list(rows)
    return stages, [[rows[model].get(stage) for stage in stages] for model in stages]


def before_learning(evaluations: Sequence[Document]) -> dict[tuple[str, str], float]:
    """Return the accuracy of each stage's parent on the stage's test cells: {(parent, stage): accuracy}.

    Versions measured before canal did this have none.
    """
    return {
        (one["stages"][-2], one["stage"]): one["before"]["accuracy"]
        for one in evaluations
        if one.get("before") and len(one["stages"]) > 1
    }


def lineage(evaluations: Sequence[Document], stage: str) -> list[Document]:
    """Return the evaluations of ``stage`` and of its ancestors, oldest first."""
    by_stage = {evaluation["stage"]: evaluation for evaluation in evaluations}
    return [by_stage[name] for name in by_stage[stage]["stages"] if name in by_stage]


def method_lines(method: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield lines about the method: what predicts, and which stages have sums (`method_view`)."""
    if method["name"] == "published":
        yield "answers", "the network (published method)"
        return
    weight = method.get("network_weight")
    if weight is None:
        yield "answers", "the sums alone (exact): no network was trained"
    elif not weight and method.get("lacking"):
        yield "answers", "the sums, but for types without them, of which the network is asked (combined)"
    elif not weight:
        yield "answers", "the sums (combined, network's weight 0: validation cells ask for no more)"
    else:
        yield "answers", f"network and sums together (combined, network's weight {weight:g})"
    yield "novelty of", ", ".join(method["novelty"]) or "nothing"
    yield "sums of", ", ".join(f"{stage} {digest[:8]}" for stage, digest in method["sums"].items())
    if method.get("backfilled"):
        yield "backfilled", f"sums were added to the version with key {method['backfilled'][:12]}..."
    if left := method.get("unlearned"):
        cells = f"{left['n_cells']:,} cells ({left['n_summed']:,} of them in sums)"
        yield "unlearned", f"{cells} left the version with key {left['version'][:12]}..."
    if merged := method.get("merged"):
        whose = "shared sums" if merged["bundle"] else "the version with key"
        yield "merged", f"with {whose} {merged['other'][:12]}...; equals {merged['equals']}"
        yield "common cells", f"{merged['overlap']['checked']}, {merged['overlap']['cells']:,} left out"
    if method.get("lacking"):
        what = "never answered" if weight is None else "only the network knows these types"
        yield "without sums", f"{', '.join(method['lacking'])}: {what}"
