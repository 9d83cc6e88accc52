"""The promotion policy: one ruling for each rule, with value, bound and result.

Candidate and champion are compared on the same cells, stage by stage and type by type: lost and gained cells,
with a paired bootstrap interval and McNemar's test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from canal.config.sections import Policy
from canal.core.errors import PolicyError, RegistryError

if TYPE_CHECKING:
    import pandas as pd


FORMAT = 1

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Paired:
    """Champion and candidate on the same ``n`` cells.

    Attributes
    ----------
    n : int
    champion, candidate : float
        Accuracies.
    lost, gained : int
        Cells that only the champion, and only the candidate, labels right.
    difference, low, high : float
        Candidate minus champion, and the bounds of its bootstrap interval.
    p : float
        McNemar's exact two-sided test of lost against gained (McNemar 1947).
    """

    n: int
    champion: float
    candidate: float
    lost: int
    gained: int
    difference: float
    low: float
    high: float
    p: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class Sampling:
    """Settings of the bootstrap interval: confidence, number of resamples, and seed."""

    confidence: float
    resamples: int
    seed: int


def compare_answers(
    truth: Sequence[str], champion: Sequence[str], candidate: Sequence[str], sampling: Sampling
) -> Paired:
    """Compare two models' labels of the same cells, given in the same order.

    The interval resamples cells, each with both its answers (percentile bootstrap, Efron 1979). A cell can
    only be lost, gained or neither, so a resample of cells is one multinomial draw.

    Raises
    ------
    ValueError
        If there is no cell, or the three sequences differ in length.
    """
    import numpy as np
    from scipy.stats import binomtest

    n = len(truth)
    if not n or not n == len(champion) == len(candidate):
        raise ValueError(f"expected the same cells thrice, found {n}, {len(champion)} and {len(candidate)}")
    right_before = [one == answer for one, answer in zip(truth, champion, strict=True)]
    right_after = [one == answer for one, answer in zip(truth, candidate, strict=True)]
    pairs = list(zip(right_before, right_after, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    generator = np.random.default_rng([sampling.seed, n, lost, gained])
    shares = np.array([lost, gained, n - lost - gained]) / n
    drawn = generator.multinomial(n, shares, size=sampling.resamples)
    tail = (1 - sampling.confidence) / 2
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / n, [tail, 1 - tail])
    p = binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    return Paired(
        n=n,
        champion=sum(right_before) / n,
        candidate=sum(right_after) / n,
        lost=lost,
        gained=gained,
        difference=(gained - lost) / n,
        low=float(low),
        high=float(high),
        p=float(p),
    )


@dataclass(frozen=True)
class StageComparison:
    """Both models on the test cells of one stage, or on a file.

    Attributes
    ----------
    whole : Paired
        All cells.
    types : dict
        Each type with at least the policy's number of cells.
    too_few : dict
        The other types, with their number of cells.
    """

    whole: Paired
    types: Mapping[str, Paired]
    too_few: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            **self.whole.to_json(),
            "types": {name: pair.to_json() for name, pair in self.types.items()},
            "too_few_to_judge": dict(self.too_few),
        }


@dataclass(frozen=True)
class Comparison:
    """Candidate against champion.

    Attributes
    ----------
    champion, candidate : int
        Version numbers.
    stages : dict
        Stages (and files) that both were scored on.
    old : tuple of str
        Stages that the champion has learned, whose accuracy the candidate must keep.
    not_compared : dict
        The others, each with the reason.
    """

    champion: int
    candidate: int
    stages: Mapping[str, StageComparison]
    not_compared: Mapping[str, str] = field(default_factory=dict)
    old: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "format": FORMAT,
            "champion": self.champion,
            "candidate": self.candidate,
            "old": list(self.old),
            "stages": {name: one.to_json() for name, one in self.stages.items()},
            "not_compared": dict(self.not_compared),
        }


def compare_stage(
    champion: pd.DataFrame, candidate: pd.DataFrame, min_cells: int, sampling: Sampling
) -> StageComparison:
    """Compare two tables with ``cell_id``, ``truth`` and ``predicted`` on the cells that both hold.

    Raises
    ------
    RegistryError
        If they share no cell, or have different true types for a shared cell.
    """
    both = champion.merge(candidate, on="cell_id", suffixes=("_champion", "_candidate"))
    if both.empty:
        raise RegistryError("champion and candidate were scored on different cells; none is shared")
    unlike = both[both["truth_champion"] != both["truth_candidate"]]
    if len(unlike):
        first = unlike.iloc[0]
        raise RegistryError(
            f"{len(unlike)} of {len(both)} cells have another true type for the champion, such as "
            f"{first['cell_id']}: {first['truth_champion']} and {first['truth_candidate']}"
        )
    types, too_few = {}, {}
    for name, cells in both.groupby("truth_candidate", sort=True):
        if len(cells) < min_cells:
            too_few[str(name)] = len(cells)
        else:
            types[str(name)] = _pair(cells, sampling)
    return StageComparison(_pair(both, sampling), types, too_few)


def _pair(cells: pd.DataFrame, sampling: Sampling) -> Paired:
    return compare_answers(
        list(cells["truth_candidate"]),
        list(cells["predicted_champion"]),
        list(cells["predicted_candidate"]),
        sampling,
    )


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
        return Ruling("h_score", "not measured", bound, False, "no type of novelty.holdouts was testable")
    return Ruling("h_score", f"{value:.3f}", bound, value >= policy.min_h_score, "types left out")


def _ece(policy: Policy, evaluation: Document) -> Ruling:
    calibration = evaluation["calibration"]
    bound = f"<= {policy.max_ece:.3f}"
    if not calibration:
        return Ruling("ece", "not measured", bound, False, "no test cells")
    note = f"[{calibration['low']:.3f}, {calibration['high']:.3f}], n = {calibration['n']}"
    return Ruling("ece", f"{calibration['ece']:.3f}", bound, calibration["ece"] <= policy.max_ece, note)
