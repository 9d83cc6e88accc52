"""What the gate says of a stage: kept as verdict.json, and asked for by whatever trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from canal.core.errors import GateError
from canal.core.files import read_json, write_json
from canal.quality.profile import Profile

FORMAT = 1

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class RuleResult:
    """One rule: what it expected and what it found.

    ``examples`` are the worst or first offenders; ``hint`` says what to do, empty where the rule holds.
    """

    rule: str
    severity: Severity
    passed: bool
    expected: str
    found: str
    examples: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the gate found; the same bytes and params give the same verdict."""

    stage: str
    source: str
    source_sha256: str
    prepared_sha256: str
    declaration_digest: str
    split_sha256: str | None
    counts: Mapping[str, Any]
    rules: tuple[RuleResult, ...]
    profile: Profile

    @property
    def passed(self) -> bool:
        """Whether every rule that is an error holds."""
        return not self.failures("error")

    def failures(self, severity: Severity) -> list[RuleResult]:
        """Return the rules of ``severity`` that do not hold."""
        return [rule for rule in self.rules if not rule.passed and rule.severity == severity]

    def document(self) -> dict[str, Any]:
        """Return the verdict as the JSON document that `write` writes."""
        rules = [asdict(rule) | {"examples": list(rule.examples)} for rule in self.rules]
        return {
            "format": FORMAT,
            "stage": self.stage,
            "source": self.source,
            "passed": self.passed,
            "source_sha256": self.source_sha256,
            "prepared_sha256": self.prepared_sha256,
            "declaration_digest": self.declaration_digest,
            "split_sha256": self.split_sha256,
            "panel_digest": self.profile.panel_digest,
            "counts": dict(self.counts),
            "rules": rules,
            "profile": self.profile.to_json(),
        }

    def write(self, path: Path) -> None:
        """Write verdict.json, whole or not at all: no times, no paths."""
        write_json(path, self.document())


def read_verdict(path: Path) -> Verdict:
    """Read what `Verdict.write` wrote.

    Raises
    ------
    GateError
        If the file is missing, is no verdict, or contradicts itself.
    """
    if not path.is_file():
        raise GateError(f"{path}: no verdict; run the stage's gate (dvc repro) first")
    try:
        document = read_json(path)
    except ValueError as error:
        raise GateError(f"{path}: no readable verdict ({error}); run the stage's gate again") from error
    return parse_verdict(document)


def parse_verdict(document: Any) -> Verdict:
    """Return the verdict that ``document`` describes.

    Raises
    ------
    GateError
        If it is of another format, lacks a part, or says it passed although one of its rules did not.
    """
    try:
        if document["format"] != FORMAT:
            raise GateError(f"verdict of format {document['format']!r}, this canal reads {FORMAT}")
        names = set(Verdict.__dataclass_fields__) - {"rules", "profile"}
        verdict = Verdict(
            **{name: document[name] for name in names},
            rules=tuple(_rule(rule) for rule in document["rules"]),
            profile=Profile.from_json(document["profile"]),
        )
        claimed = document["passed"]
    except (KeyError, TypeError, AttributeError) as error:
        raise GateError(f"no verdict of a gate ({error!r}); run the stage's gate again") from error
    if claimed is not verdict.passed:
        raise GateError(
            f"verdict of stage {verdict.stage}: it says passed: {claimed}, its rules say {verdict.passed}; "
            "it was edited: run the stage's gate again"
        )
    return verdict


def require_passing(verdict: Verdict | Mapping[str, Any] | Path, prepared_sha256: str, stage: str) -> Verdict:
    """Return the verdict if ``stage`` may be learned from the prepared file of that digest.

    Raises
    ------
    GateError
        If there is no verdict, it is of another stage, it is about other bytes, or a rule does not hold.
    """
    if isinstance(verdict, Path):
        verdict = read_verdict(verdict)
    elif not isinstance(verdict, Verdict):
        verdict = parse_verdict(verdict)
    if verdict.stage != stage:
        raise GateError(f"expected the verdict of stage {stage}, found that of {verdict.stage}")
    if verdict.prepared_sha256 != prepared_sha256:
        raise GateError(
            f"stage {stage}: its verdict is about a prepared file {verdict.prepared_sha256[:12]}…, "
            f"found {prepared_sha256[:12]}…; run the gate on these bytes (dvc repro)"
        )
    if failures := verdict.failures("error"):
        lines = [
            f"{rule.rule}: expected {rule.expected}; found {rule.found}. {rule.hint}" for rule in failures
        ]
        raise GateError(f"stage {stage} did not pass its gate:\n  " + "\n  ".join(lines))
    return verdict


def _rule(document: Mapping[str, Any]) -> RuleResult:
    return RuleResult(**{**document, "examples": tuple(document["examples"])})
