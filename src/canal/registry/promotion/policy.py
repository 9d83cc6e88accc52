"""The promotion policy: one ruling for each rule, with value, bound and result.

Accuracies and losses are judged at the lower end of their interval: that a version is good enough has to be
shown, not just be likely. Stages and types with few test cells are not judged: a person lets them pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from canal.config.decisions import Policy
from canal.core.errors import PolicyError, there_are
from canal.core.files import read_json
from canal.core.progress import p_value, percent, points
from canal.registry.ledger.ledger import Entry
from canal.registry.ledger.rulings import TOO_FEW, is_ruling, measured, remeasured

if TYPE_CHECKING:
    from canal.registry.promotion.comparing import Comparison, Paired

Document = Mapping[str, Any]

_MEASURED = ("gate", "clean", "accuracy", "balanced_accuracy", "h_score", "ece")
"""Rules whose value follows from the version's documents; the others need the champion of that time."""


@dataclass(frozen=True)
class Ruling:
    """The result of one rule for a version.

    Attributes
    ----------
    rule : str
        Its name, as ``--override`` takes it.
    value, bound : str
        The measured and the required value, as text.
    passed : bool
    note : str
        Further facts: interval, counts, why it was not measured.
    overridden : bool
        Whether a person overrode the rule; recorded with the reason.
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
    """The documents and comparisons on which a version is judged.

    Attributes
    ----------
    evaluation, verdict, record, key : dict
        The version's documents.
    findings : sequence of str
        Findings of the audit.
    comparison : Comparison or None
        Against the champion, or the parent where there is none yet; None where there is neither.
    """

    evaluation: Document
    verdict: Document
    record: Document
    key: Document
    findings: Sequence[str]
    comparison: Comparison | None


def judge(policy: Policy, evidence: Evidence) -> list[Ruling]:
    """Return one ruling for each rule that applies, in the order of the report."""
    findings = list(evidence.findings)
    note = "; ".join(findings[:3]) + (f"; and {len(findings) - 3} more" if len(findings) > 3 else "")
    return [
        _gate(evidence),
        Ruling("audit", f"{len(findings)} findings", "none", not findings, note),
        _clean(evidence),
        _accuracy(policy, evidence.evaluation),
        _balanced_accuracy(policy, evidence.evaluation),
        *_retention(policy, evidence.comparison),
        _h_score(policy, evidence.evaluation),
        _ece(policy, evidence.evaluation),
    ]


def override(rulings: Sequence[Ruling], names: Sequence[str], too_few: bool = False) -> list[Ruling]:
    """Return the rulings, the failed ones among ``names`` marked as overridden.

    A name may be a pattern, such as ``retention:lung/*``; each overridden rule is recorded by its own name.
    ``too_few`` overrides the rulings that had too few test cells, and no other.

    Raises
    ------
    PolicyError
        If a name matches no rule of this version; lists the rules.
    """
    known = [ruling.rule for ruling in rulings]
    chosen: set[str] = set()
    for name in names:
        matching = {rule for rule in known if rule == name or fnmatchcase(rule, name)}
        if not matching:
            raise PolicyError(f"no rule {name[:80]!r} to override{there_are(name, known)}")
        chosen |= matching
    chosen |= {ruling.rule for ruling in rulings if too_few and ruling.value == TOO_FEW}
    return [
        replace(ruling, overridden=True) if ruling.rule in chosen and not ruling.passed else ruling
        for ruling in rulings
    ]


def blocking_rulings(rulings: Sequence[Ruling]) -> list[Ruling]:
    """Return the rulings that block promotion."""
    return [ruling for ruling in rulings if not ruling.passed and not ruling.overridden]


def _gate(evidence: Evidence) -> Ruling:
    verdict = evidence.verdict
    same = verdict.get("prepared_sha256") == evidence.key["data"]["prepared_sha256"]
    note = "" if same else "the verdict is for other bytes than were learned"
    passed = bool(verdict.get("passed")) and same
    return Ruling("gate", "passed" if passed else "not passed", "passed for these bytes", passed, note)


def _clean(evidence: Evidence) -> Ruling:
    commit, dirty = evidence.record.get("git_commit"), bool(evidence.record.get("dirty"))
    if commit is None:
        return Ruling("clean", "no git commit", "a clean commit", False, "it was made outside git")
    note = "params.yaml or the pipeline had changes that no commit held when it was learned" if dirty else ""
    value = f"{commit[:12]}{' with changes' if dirty else ''}"
    return Ruling("clean", value, "a clean commit", not dirty, note)


def _accuracy(policy: Policy, evaluation: Document) -> Ruling:
    stage = evaluation["stage"]
    value = evaluation["row"][stage]
    bound = f">= {policy.min_accuracy:.3f}"
    if value is None:
        return Ruling("accuracy", "not measured", bound, False, evaluation["not_measured"].get(stage, ""))
    n = evaluation["per_stage"][stage]["n"]
    ends = share_interval(value * n, n, policy.confidence)
    ruling = Ruling("accuracy", f"{value:.3f}", bound, ends[0] >= policy.min_accuracy)
    return _shown(policy, ruling, ends, evaluation)


def _balanced_accuracy(policy: Policy, evaluation: Document) -> Ruling:
    stage = evaluation["stage"]
    own = evaluation["per_stage"].get(stage, {})
    bound = f">= {policy.min_balanced_accuracy:.3f}"
    if "balanced_accuracy" not in own or not own.get("recall"):
        why = evaluation["not_measured"].get(stage, "")
        return Ruling("balanced_accuracy", "not measured", bound, False, why)
    recalls = [(one["recall"] * one["n"], one["n"]) for one in own["recall"].values()]
    ends = mean_interval(recalls, policy.confidence)
    passed, value = ends[0] >= policy.min_balanced_accuracy, f"{own['balanced_accuracy']:.3f}"
    return _shown(policy, Ruling("balanced_accuracy", value, bound, passed), ends, evaluation)


def _shown(policy: Policy, ruling: Ruling, ends: tuple[float, float], evaluation: Document) -> Ruling:
    """Return a ruling on the new stage with its interval, or without a judgement of too few cells."""
    stage = evaluation["stage"]
    n = evaluation["per_stage"][stage]["n"]
    interval = f"[{percent(ends[0], '')}, {percent(ends[1])}], n = {n}"
    if n < policy.min_cells_per_stage:
        least = f"judged from {policy.min_cells_per_stage} cells on"
        what = f"new stage {stage}: {percent(float(ruling.value))} {interval}; {least}"
        return replace(ruling, value=TOO_FEW, passed=False, note=what)
    return replace(ruling, note=f"new stage {stage}, judged at the lower end of {interval}")


def share_interval(right: float, n: int, confidence: float) -> tuple[float, float]:
    """Return the bounds of a share of ``n`` cells, of which ``right`` are (Wilson 1927).

    Also for a share of 0 or 1, where resampling would give no interval at all.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = right / n, 1 + z * z / n
    middle, half = share + z * z / (2 * n), z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mean_interval(shares: Sequence[tuple[float, int]], confidence: float) -> tuple[float, float]:
    """Return the bounds of the mean of independent shares, each of some right cells among ``n``.

    Each share has Jeffreys' posterior, Beta(right + 1/2, wrong + 1/2); means and variances add up.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    mean = sum((right + 0.5) / (n + 1) for right, n in shares) / len(shares)
    spread = sum((right + 0.5) * (n - right + 0.5) / ((n + 1) ** 2 * (n + 2)) for right, n in shares)
    half = z * sqrt(spread) / len(shares)
    return max(0.0, mean - half), min(1.0, mean + half)


def _retention(policy: Policy, comparison: Comparison | None) -> Iterator[Ruling]:
    """Yield a ruling for each stage of the version compared with, and for each of its types."""
    if comparison is None:
        what = "no version serves yet, and it was learned on none that is here"
        yield Ruling("retention", "nothing to keep", "does not apply", True, what)
        return
    for stage in comparison.old:
        compared = comparison.stages.get(stage)
        if compared is None:
            why = comparison.not_compared.get(stage, "")
            bound = f"loses <= {policy.max_loss:.3f}"
            yield Ruling(f"retention:{stage}", "not measured", bound, False, why)
            continue
        if compared.whole.n < policy.min_cells_per_stage:
            yield _few(f"retention:{stage}", compared.whole.n, policy.min_cells_per_stage)
            continue
        yield _kept(f"retention:{stage}", compared.whole, policy.max_loss, policy)
        for cell_type, pair in compared.types.items():
            yield _kept(f"retention:{stage}/{cell_type}", pair, policy.max_loss_per_type, policy)
        for cell_type, n in compared.too_few.items():
            yield _few(f"retention:{stage}/{cell_type}", n, policy.min_cells_per_type)


def _few(rule: str, n: int, least: int) -> Ruling:
    return Ruling(rule, TOO_FEW, f"from {least} cells on", False, f"n = {n}")


def _kept(rule: str, pair: Paired, max_loss: float, policy: Policy) -> Ruling:
    note = (
        f"change {points(pair.difference)} [{points(pair.low)}, {points(pair.high)}] points, n = {pair.n}, "
        f"{pair.lost} lost, {pair.gained} gained, p = {p_value(pair.p)}; "
        f"power {pair.power:.2f}{'' if pair.power >= policy.power else ', too low'}"
    )
    value = f"{pair.champion:.3f} -> {pair.candidate:.3f}"
    return Ruling(rule, value, f"loses <= {max_loss:.3f}", pair.low >= -max_loss, note)


def power_text(policy: Policy, rulings: Sequence[Ruling]) -> str:
    """Return in words what the power of rulings on retention is, once for all; empty where none has one."""
    if not any("power " in one.note for one in rulings):
        return ""
    return (
        f"power: the probability that so many test cells would show a loss of "
        f"{100 * policy.loss_to_see:g} points; below {policy.power:g} (too low) a loss may be there unseen"
    )


def _h_score(policy: Policy, evaluation: Document) -> Ruling:
    value = evaluation["novelty"].get("h_score")
    bound = f">= {policy.min_h_score:.3f}"
    if value is None:
        return Ruling("h_score", "not measured", bound, False, _why_no_h_score(evaluation))
    return Ruling("h_score", f"{value:.3f}", bound, value >= policy.min_h_score, "types left out")


def _why_no_h_score(evaluation: Document) -> str:
    """Return why no type was held out, and what a person can set."""
    reasons = [f"{name}: {why}" for name, why in evaluation["novelty"].get("not_measured", {}).items()]
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return (
        f"no type was held out ({'; '.join(reasons[:3])}{more}). "
        if reasons
        else "no type was held out: novelty.holdouts names none. "
    ) + (
        "Name types that the version knows in novelty.holdouts of params.yaml, or leave it out for all with "
        "enough cells: canal run then measures again, and learns nothing"
    )


def _ece(policy: Policy, evaluation: Document) -> Ruling:
    calibration = evaluation["calibration"]
    bound = f"<= {policy.max_ece:.3f}"
    if not calibration:
        return Ruling("ece", "not measured", bound, False, "no test cells")
    note = f"[{calibration['low']:.3f}, {calibration['high']:.3f}], n = {calibration['n']}"
    return Ruling("ece", f"{calibration['ece']:.3f}", bound, calibration["ece"] <= policy.max_ece, note)


def unproven(entry: Entry, folder: Path, before: Sequence[Entry]) -> Iterator[str]:
    """Yield the rulings of a promotion that passed with another value than the version's documents hold.

    ``folder`` holds the version with the record that the promotion names; missing documents are not compared.
    ``before`` are the entries of the ledger before the promotion: measurements among them count, too.
    """
    details: Mapping[str, Any] = entry.document["details"]
    rulings = details.get("rulings")
    if not isinstance(rulings, list) or not all(is_ruling(one) for one in rulings):
        return
    passed = {one["rule"]: one["value"] for one in rulings if one["passed"]}
    try:
        registered = read_json(folder / "metrics" / "evaluation.json")
        evidence = Evidence(
            evaluation=registered,
            verdict=read_json(folder / "validation" / "verdict.json"),
            record=read_json(folder / "record.json"),
            key=read_json(folder / "key.json"),
            findings=(),
            comparison=None,
        )
        further = measured(before, entry.model, entry.document["key"])
        shown = [evidence, *(replace(evidence, evaluation=remeasured(registered, one)) for one in further)]
        policy = Policy(min_cells_per_stage=1)  # how many cells were too few is of that day
        values = [{one.rule: one.value for one in judge(policy, each)} for each in shown]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # a missing or malformed document is a finding of its own
    for rule in _MEASURED:
        said = [each[rule] for each in values]
        if rule in passed and passed[rule] not in said:
            yield f"{rule} passed with {passed[rule][:60]}, the version's documents say {said[-1]}"
