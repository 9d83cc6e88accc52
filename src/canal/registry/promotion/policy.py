"""The promotion policy: one ruling for each rule, with value, bound and result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from canal.config.sections import Policy
from canal.core.errors import PolicyError
from canal.core.files import read_json
from canal.registry.ledger.ledger import Entry
from canal.registry.ledger.rulings import is_ruling, measured, remeasured
from canal.registry.promotion.comparing import Comparison, Paired

Document = Mapping[str, Any]

_MEASURED = ("gate", "clean", "accuracy", "h_score", "ece")
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
        Against the champion; None where there is none yet.
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
        *_retention(policy, evidence.comparison),
        _h_score(policy, evidence.evaluation),
        _ece(policy, evidence.evaluation),
    ]


def override(rulings: Sequence[Ruling], names: Sequence[str]) -> list[Ruling]:
    """Return the rulings, the failed ones among ``names`` marked as overridden.

    A name may be a pattern, such as ``retention:lung/*``; each overridden rule is recorded by its own name.

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
            raise PolicyError(f"no rule {name[:80]!r} to override; there are {', '.join(known)}")
        chosen |= matching
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
    """Yield a ruling for each stage of the champion and each of its types with enough cells.

    The lower end of the interval is compared: that no more was lost has to be shown, not just be likely.
    """
    if comparison is None:
        yield Ruling(
            "retention", "no champion yet", "does not apply", True, "nothing to keep: the first promotion"
        )
        return
    for stage in comparison.old:
        compared = comparison.stages.get(stage)
        if compared is None:
            why = comparison.not_compared.get(stage, "")
            bound = f"loses <= {policy.max_loss:.3f}"
            yield Ruling(f"retention:{stage}", "not measured", bound, False, why)
            continue
        yield _kept(f"retention:{stage}", compared.whole, policy.max_loss)
        for cell_type, pair in compared.types.items():
            yield _kept(f"retention:{stage}/{cell_type}", pair, policy.max_loss_per_type)
        if compared.too_few:
            listed = ", ".join(f"{cell_type} ({n})" for cell_type, n in compared.too_few.items())
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
        "enough cells: make run then measures again, and learns nothing"
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
        values = [{one.rule: one.value for one in judge(Policy(), each)} for each in shown]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # a missing or malformed document is a finding of its own
    for rule in _MEASURED:
        said = [each[rule] for each in values]
        if rule in passed and passed[rule] not in said:
            yield f"{rule} passed with {passed[rule][:60]}, the version's documents say {said[-1]}"
