"""The promotion policy: each rule with its value, its bound and whether it holds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from canal.config.sections import Policy
from canal.core.errors import PolicyError
from canal.registry.comparison import Comparison, StageComparison
from canal.registry.paired import Paired

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Ruling:
    """What one rule says of a version.

    Attributes
    ----------
    rule : str
        Its name, as ``--override`` takes it.
    value, bound : str
        What was found and what is asked for, as people read them.
    passed : bool
    note : str
        What else there is to know: interval, counts, why it was not measured.
    overridden : bool
        Whether a person let it pass; it is recorded with the reason.
    """

    rule: str
    value: str
    bound: str
    passed: bool
    note: str = ""
    overridden: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """What is known of a version when it is judged.

    Attributes
    ----------
    evaluation, verdict, record, key : dict
        The version's documents.
    findings : sequence of str
        What audit found wrong with it.
    comparison : Comparison or None
        Against the champion; None where there is none yet.
    """

    evaluation: Document
    verdict: Document
    record: Document
    key: Document
    findings: Sequence[str]
    comparison: Comparison | None


def judge(policy: Policy, evidence: Evidence) -> list[Ruling]:
    """Return one ruling for each rule that applies, in the order in which people read them."""
    return [
        _gate(evidence),
        _audit(evidence),
        _clean(evidence),
        _accuracy(policy, evidence.evaluation),
        *_retention(policy, evidence.comparison),
        _h_score(policy, evidence.evaluation),
        _ece(policy, evidence.evaluation),
    ]


def override(rulings: Sequence[Ruling], names: Sequence[str]) -> list[Ruling]:
    """Return the rulings, the failed ones among ``names`` marked as overridden.

    A name may be a pattern, such as ``retention:lung/*``; each rule that passes so is on record itself.

    Raises
    ------
    PolicyError
        If a name fits no rule of this version; names those there are.
    """
    known = [ruling.rule for ruling in rulings]
    chosen: set[str] = set()
    for name in names:
        found = {rule for rule in known if rule == name or fnmatchcase(rule, name)}
        if not found:
            raise PolicyError(f"no rule {name[:80]!r} to override; there are {', '.join(known)}")
        chosen |= found
    return [
        replace(ruling, overridden=True) if ruling.rule in chosen and not ruling.passed else ruling
        for ruling in rulings
    ]


def failed(rulings: Sequence[Ruling]) -> list[Ruling]:
    """Return the rulings that stand in the way."""
    return [ruling for ruling in rulings if not ruling.passed and not ruling.overridden]


def _gate(evidence: Evidence) -> Ruling:
    verdict = evidence.verdict
    same = verdict.get("prepared_sha256") == evidence.key["data"]["prepared_sha256"]
    note = "" if same else "the verdict is for other bytes than were learned"
    passed = bool(verdict.get("passed")) and same
    return Ruling("gate", "passed" if passed else "not passed", "passed for these bytes", passed, note)


def _audit(evidence: Evidence) -> Ruling:
    found = list(evidence.findings)
    note = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
    return Ruling("audit", f"{len(found)} findings", "none", not found, note)


def _clean(evidence: Evidence) -> Ruling:
    commit, dirty = evidence.record.get("git_commit"), bool(evidence.record.get("dirty"))
    if commit is None:
        return Ruling("clean", "no git commit", "a clean commit", False, "it was made outside git")
    note = "src, pipelines or parameters had changes that no commit holds" if dirty else ""
    value = f"{commit[:12]}{' with changes' if dirty else ''}"
    return Ruling("clean", value, "a clean commit", not dirty, note)


def _accuracy(policy: Policy, evaluation: Document) -> Ruling:
    stage = evaluation["stage"]
    value = evaluation["row"][stage]
    bound = f">= {policy.min_accuracy:.3f}"
    if value is None:
        return Ruling("accuracy", "not measured", bound, False, evaluation["not_measured"].get(stage, ""))
    n = evaluation["per_stage"][stage]["n"]
    return Ruling(
        "accuracy", f"{value:.3f}", bound, value >= policy.min_accuracy, f"new stage {stage}, n = {n}"
    )


def _retention(policy: Policy, comparison: Comparison | None) -> Iterator[Ruling]:
    """Yield a ruling for each stage of the champion and each of its types with cells enough.

    The lower end of the interval is judged: that no more was lost has to be shown, not only to be likely.
    """
    if comparison is None:
        yield Ruling(
            "retention", "no champion yet", "does not apply", True, "nothing to keep: the first promotion"
        )
        return
    for stage in comparison.old:
        if stage in comparison.stages:
            yield from _kept_stage(policy, stage, comparison.stages[stage])
        else:
            why = comparison.not_compared.get(stage, "")
            bound = f"loses <= {policy.max_loss:.3f}"
            yield Ruling(f"retention:{stage}", "not measured", bound, False, why)


def _kept_stage(policy: Policy, stage: str, found: StageComparison) -> Iterator[Ruling]:
    yield _kept(f"retention:{stage}", found.whole, policy.max_loss)
    for name, pair in found.types.items():
        yield _kept(f"retention:{stage}/{name}", pair, policy.max_loss_per_type)
    if found.too_few:
        listed = ", ".join(f"{name} ({n})" for name, n in found.too_few.items())
        bound = f"from {policy.min_cells_per_type} cells on"
        yield Ruling(f"retention:{stage}/(few cells)", "too few to judge", bound, True, listed)


def _kept(rule: str, pair: Paired, max_loss: float) -> Ruling:
    note = (
        f"change {pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}], n = {pair.n}, "
        f"{pair.lost} lost, {pair.gained} gained, p = {pair.p:.3g}"
    )
    value = f"{pair.champion:.3f} -> {pair.candidate:.3f}"
    return Ruling(rule, value, f"loses <= {max_loss:.3f}", pair.low >= -max_loss, note)


def _h_score(policy: Policy, evaluation: Document) -> Ruling:
    value = evaluation["novelty"].get("h_score")
    bound = f">= {policy.min_h_score:.3f}"
    if value is None:
        return Ruling("h_score", "not measured", bound, False, "no type of novelty.holdouts was testable")
    return Ruling("h_score", f"{value:.3f}", bound, value >= policy.min_h_score, "types left out")


def _ece(policy: Policy, evaluation: Document) -> Ruling:
    found = evaluation["calibration"]
    bound = f"<= {policy.max_ece:.3f}"
    if not found:
        return Ruling("ece", "not measured", bound, False, "no test cells")
    note = f"[{found['low']:.3f}, {found['high']:.3f}], n = {found['n']}"
    return Ruling("ece", f"{found['ece']:.3f}", bound, found["ece"] <= policy.max_ece, note)
