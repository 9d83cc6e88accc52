"""The difference of two versions: parameters, data, code, labels, accuracy and recall (`canal diff`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from canal.core.files import read_json
from canal.registry.manifest.stage_request import Change, changes, learning_part
from canal.registry.manifest.version_folder import Key
from canal.registry.provenance.registered import RegisteredVersion, ancestry, common_ancestor
from canal.registry.store.database import Version
from canal.registry.store.store import Store

FORMAT = 1

Document = dict[str, Any]

_EVALUATION, _LABELS, _GENES = "metrics/evaluation.json", "model/labels.json", "model/genes.json"
_ELSEWHERE = ("stage", "branch", "cells", "parent")
"""Parts of a request that are shown as data or as lineage, not as parameters."""


def difference(store: Store, before: Version, after: Version) -> Document:
    """Return what differs between two versions, as a JSON document.

    Its parts: ``before``, ``after`` and ``relation`` name the versions; ``params``, ``data`` and ``code``
    list ``{"path", "before", "after"}``; ``sums`` holds the digests of the basis and of each stage's sums,
    and whether they are the ``same``, None where one of the versions has none; ``labels`` and ``genes`` have
    ``added``, ``removed`` and the number ``kept``; ``accuracy`` and ``recall`` hold for each stage, and each
    cell type of it, both numbers and the change, None where a version was not measured on it; ``novelty``
    holds those of the H-score.

    Raises
    ------
    RegistryError
        If an ancestor is not registered, or a file holds other bytes than registered.
    """
    old, new = ancestry(store, before), ancestry(store, after)
    first, second = old[0], new[0]
    measures = [read_json(one.file(_EVALUATION)) for one in (first, second)]
    return {
        "format": FORMAT,
        "before": _named(first),
        "after": _named(second),
        "relation": _relation(old, new),
        "params": _listed(changes(_params(first), _params(second))),
        "data": _listed(changes(_data(first), _data(second))),
        "code": _listed(changes(_code(first), _code(second))),
        "sums": _sums(first.key, second.key),
        "labels": _names(first, second, _LABELS),
        "genes": _names(first, second, _GENES),
        "accuracy": _accuracy(*measures),
        "novelty": _pair(*((one.get("novelty") or {}).get("h_score") for one in measures)),
        "recall": {
            stage: _by_type(*(one["per_stage"].get(stage, {}).get("recall", {}) for one in measures))
            for stage in dict.fromkeys(stage for one in measures for stage in one["per_stage"])
        },
    }


def _named(one: RegisteredVersion) -> Document:
    version = one.version
    return {
        "model": version.model,
        "version": version.number,
        "stage": version.stage,
        "branch": version.branch,
        "aliases": list(version.aliases),
        "key": version.key,
    }


def _relation(old: Sequence[RegisteredVersion], new: Sequence[RegisteredVersion]) -> str:
    """Return in words how two versions are related, given the ancestry of each."""
    first, second = old[0], new[0]
    if first.version.key == second.version.key:
        return f"{first.name} and {second.name} are the same model"
    shared = common_ancestor(old, new)
    if shared is None:
        return "they share no ancestor"
    for ancestor, heir, chain in ((first, second, new), (second, first, old)):
        if shared.version.key == ancestor.version.key:
            steps = [one.version.key for one in chain].index(shared.version.key)
            what = "was learned on" if steps == 1 else f"was learned, {steps} stages later, on"
            return f"version {heir.version.number} {what} version {ancestor.version.number}"
    return f"both were learned on {shared.name}, then went apart"


def _params(one: RegisteredVersion) -> Document:
    learned = learning_part(one.key["request"], None)
    request = {name: value for name, value in learned.items() if name not in _ELSEWHERE}
    return request | ({"memory": one.key["memory"]} if "memory" in one.key else {})


def _sums(before: Key, after: Key) -> Document:
    """Return the digests of basis and sums of two versions, and whether they are the same."""
    old, new = before.get("sums", {}), after.get("sums", {})
    bases = [key.get("basis", {}).get("digest") for key in (before, after)]
    return {
        "basis": _digests(*bases),
        "stages": {stage: _digests(old.get(stage), new.get(stage)) for stage in dict.fromkeys([*old, *new])},
    }


def _digests(before: str | None, after: str | None) -> Document:
    same = None if before is None or after is None else before == after
    return {"before": before, "after": after, "same": same}


def _data(one: RegisteredVersion) -> Document:
    key = one.key
    cells = key["request"]["cells"]
    return {
        "bytes": {"source": key["data"]["source_sha256"], "prepared": key["data"]["prepared_sha256"]},
        "declared": {name: value for name, value in cells.items() if name not in ("seed", "source")},
        "source": key["data"]["source"],
        "split": key["split"],
        "panel": key["panel"],
        "verdict": key["verdict"],
        "parent": {"key": key["parent"], "stage": key["request"]["parent"]["stage"]},
    }


def _code(one: RegisteredVersion) -> Document:
    key, record = one.key, one.record
    return {
        "code": key["code"],
        "lock": key["lock"],
        "threads": key["threads"],
        "git_commit": record["git_commit"],
        "uncommitted_changes": record["dirty"],
        "platform": record["platform"],
    }


def _names(first: RegisteredVersion, second: RegisteredVersion, file: str) -> Document:
    """Return the names of a list that were added and removed, and how many both versions have."""
    old, new = (read_json(one.file(file)) for one in (first, second))
    return {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "kept": len([name for name in new if name in old]),
    }


def _accuracy(before: Mapping[str, Any], after: Mapping[str, Any]) -> Document:
    stages = dict.fromkeys([*before["row"], *after["row"]])
    return {stage: _pair(before["row"].get(stage), after["row"].get(stage)) for stage in stages}


def _by_type(old: Mapping[str, Any], new: Mapping[str, Any]) -> Document:
    """Return the recall of each type; no change where test cells left in between: those are other cells."""
    found: Document = {}
    for name in dict.fromkeys([*old, *new]):
        sides = [side.get(name, {"n": None, "recall": None}) for side in (old, new)]
        sizes = [one["n"] for one in sides]
        found[name] = {"n": sizes[1] or sizes[0], **_pair(*(one["recall"] for one in sides))}
        if sizes[0] != sizes[1]:
            found[name]["change"] = None
    return found


def _pair(before: float | None, after: float | None) -> Document:
    change = None if before is None or after is None else after - before
    return {"before": before, "after": after, "change": change}


def _listed(changed: Sequence[Change]) -> list[Document]:
    return [{"path": one.path, "before": one.before, "after": one.after} for one in changed]
