"""The gate's verdict of a version: passed, and about the very bytes that were learned from."""

from collections.abc import Sequence

from canal.core.digests import json_digest
from canal.core.errors import CanalError
from canal.registry.checks.finding import Found
from canal.registry.checks.member import SPLIT, VERDICT, Member


def check_verdict(chain: Sequence[Member], found: Found) -> None:
    """Check validation/verdict.json of the newest member of a chain, if it is a stage, against its key.

    The gate looks at the genes that the lineage began with, whatever stages have added to them.
    """
    from canal.quality.verdict import read_verdict

    member = chain[-1]
    if not member.taught or not member.intact(VERDICT):
        return
    try:
        verdict = read_verdict(member.folder / VERDICT)
    except CanalError as error:
        found.wrong(member.name, "verdict", f"{VERDICT}: {error}")
        return
    data = member.key["data"]
    pairs = {
        "stage": (verdict.stage, member.stage),
        "source": (verdict.source, data["source"]),
        "source file": (verdict.source_sha256, data["source_sha256"]),
        "prepared cells": (verdict.prepared_sha256, data["prepared_sha256"]),
        "split": (verdict.split_sha256, member.files.get(SPLIT)),
    }
    genes = next((one.genes for one in chain if one.genes is not None), None)
    if genes is not None:
        pairs["panel"] = (verdict.profile.panel_digest, json_digest(genes))
    for name, (judged, learned) in pairs.items():
        if judged != learned:
            what = f"{VERDICT} is about {name} {_short(judged)}, learned was {_short(learned)}"
            found.wrong(member.name, "verdict", what)
    for rule in verdict.failures("error"):
        what = f"{VERDICT}: the gate did not pass, {rule.rule}: expected {rule.expected}; found {rule.found}"
        found.wrong(member.name, "verdict", what)


def _short(text: str | None) -> str:
    return "none" if text is None else text if len(text) <= 40 else f"{text[:12]}..."
