"""Audit of a merged version: its sums are those of both lineages, and common cells were left out once."""

from collections.abc import Sequence

from canal.core.digests import json_digest
from canal.core.errors import CanalError
from canal.data.split import SUMMED
from canal.memory.joining import all_sums, with_names
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Sums
from canal.registry.audit.version_files import AuditLog, examples
from canal.registry.provenance.registered import RegisteredVersion, summed_splits

_CHECK = "merged"


def check_merged(
    chain: Sequence[RegisteredVersion], others: Sequence[RegisteredVersion], log: AuditLog
) -> None:
    """Check the newest member of a chain, oldest first, if two lineages were merged to it.

    Parameters
    ----------
    others
        The other lineages of the chain's merged members, as far as they are here.
    """
    member = chain[-1]
    merged = member.key.get("merged")
    if merged is None:
        return
    stages = {name: about["sums"] for name, about in merged["stages"].items()}
    if wrong := [name for name, digest in stages.items() if member.key["sums"].get(name) != digest]:
        log.finding(member.name, _CHECK, f"key.json names two digests of the sums of {examples(wrong)}")
    if not all(member.intact(f"sums/{name}.safetensors") for name in member.key["sums"]):
        log.note(member.name, _CHECK, "not checked further: its sums are not intact")
        return
    try:
        sums = StageSums.load(member.folder, list(member.key["sums"]))
        assert sums is not None  # noqa: S101 - they are intact
        # Where cells have left since, what was merged stays, and the whole has another digest.
        if "unlearned" not in member.key and all_sums(sums).digest != merged["sums"]:
            log.finding(member.name, _CHECK, "all sums together are not those that key.json names")
        if merged["bundle"]:
            what = f"sums of {', '.join(stages)} came in a bundle of {merged['other'][:12]}...: digest only"
            log.note(member.name, _CHECK, what)
            return
        other = next((one for one in others if one.digest == merged["other"]), None)
        if other is None:
            what = f"its other parent {merged['other'][:12]}... is not registered, and did not come along"
            log.finding(member.name, _CHECK, what)
            return
        _check_added(member, sums, other, log)
        _check_left_out(member, other, [*chain, *others], log)
    except CanalError as error:
        log.finding(member.name, _CHECK, str(error))


def _check_added(member: RegisteredVersion, sums: StageSums, other: RegisteredVersion, log: AuditLog) -> None:
    """Check that what was added is the other's sums, types under their names here, less common cells."""
    merged = member.key["merged"]
    left = {about["named"]: name for name, about in merged["stages"].items()}
    if not merged["names"] and not merged["overlap"]["cells"]:
        added = {about["named"]: about["sums"] for about in merged["stages"].values()}
        if added != other.key.get("sums"):
            log.finding(member.name, _CHECK, f"the sums that were added are not those of {other.name}")
        return
    if not all(other.intact(f"sums/{name}.safetensors") for name in other.key.get("sums", {})):
        log.note(member.name, _CHECK, f"the sums of {other.name} are not here: digests only")
        return
    theirs = StageSums.load(other.folder, list(other.key["sums"]))
    assert theirs is not None  # noqa: S101 - they are intact
    n_gone = 0
    for stage, one in with_names(theirs, merged["names"]).stages.items():
        rest = sums.stages[left[stage]] if stage in left else Sums.empty(sums.basis)
        n_gone += one.minus(rest).n_cells  # refuses sums that hold other cells
    if n_gone != merged["overlap"]["cells"]:
        what = f"{n_gone:,} cells of {other.name} were left out, key.json says {merged['overlap']['cells']:,}"
        log.finding(member.name, _CHECK, what)


def _check_left_out(
    member: RegisteredVersion, other: RegisteredVersion, known: Sequence[RegisteredVersion], log: AuditLog
) -> None:
    """Check which cells were left out: those whose content is in the split of a stage of the own lineage."""
    overlap = member.key["merged"]["overlap"]
    by_key = {one.digest: one for one in known}
    own = by_key.get(member.parent or "")
    if own is None or overlap["checked"] != "content digests" or "unlearned" in member.key:
        return
    here, there = summed_splits(own, by_key), summed_splits(other, by_key)
    at: RegisteredVersion | None = own
    while at is not None and at.is_annotator:  # cells of stages without sums count, too
        here.setdefault(at.stage, at.split)
        at = by_key.get(at.parent or "")
    if any(split is None for split in (*here.values(), *there.values())):
        return
    contents = {one for split in here.values() if split is not None for one in split["cell_digest"]}
    common = [
        one
        for split in there.values()
        if split is not None
        for one in split["cell_digest"][split["set"].isin(SUMMED)]
        if one in contents
    ]
    recorded = overlap.get("left_out", json_digest([]))
    if json_digest(sorted(set(common))) != recorded or len(common) != overlap["cells"]:
        what = f"{len(common):,} summed cells of {other.name} are cells of {own.name}, key.json says "
        log.finding(member.name, _CHECK, f"{what}{overlap['cells']:,}, or others")
