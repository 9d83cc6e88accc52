"""What key.json says beside the digests of a model's own files."""

from typing import TYPE_CHECKING, Any

from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest
from canal.core.files import read_json
from canal.registry.code import code_digest, lock_digest
from canal.registry.stage_request import request_digest, stage_request

if TYPE_CHECKING:
    from canal.memory.stage_sums import StageSums


def stage_facts(layout: Layout, config: Config, stage: str) -> dict[str, Any]:
    """Return a stage's (or the backbone's) inputs by digest, its request and its parameters."""
    origin = config.root_stage if stage == BACKBONE else stage
    source, prepared = config.stages[origin].source, _prepared(layout, config, origin)
    request = stage_request(config, stage)
    if stage == BACKBONE:
        own = _extra_stages(layout, config)
    else:
        own = {} if config.study(stage) is None else _choice(layout, stage)
    return own | {
        "stage": stage,
        "branch": request["branch"],
        "request": request,
        "request_digest": request_digest(config, stage),
        "data": {
            "source": source,
            "source_sha256": prepared["source_sha256"],
            "prepared_sha256": prepared["sha256"],
        },
        "split": file_digest(layout.split(origin)),
        "panel": file_digest(layout.panel),
        "verdict": file_digest(layout.verdict(origin)),
        "code": code_digest(layout.root),
        "lock": lock_digest(layout.root),
        "seed": config.seed,
        "threads": config.threads,
    }


def sums_facts(sums: "StageSums | None") -> dict[str, Any]:
    """Return what key.json says of sums: the basis, whose cells chose it, and the digest of each stage's."""
    if sums is None:
        return {}
    return {
        "basis": {"digest": sums.basis.digest, "seen": sums.basis.seen},
        "sums": {stage: one.digest for stage, one in sums.stages.items()},
    }


def _prepared(layout: Layout, config: Config, stage: str) -> dict[str, Any]:
    """Return what is known of a stage's canonical cells."""
    known: dict[str, Any] = read_json(layout.prepared(config.stages[stage].source) / "prepared.json")
    return known


def _choice(layout: Layout, stage: str) -> dict[str, Any]:
    """Return what a study chose for a stage, and the digest of all it says."""
    path = layout.tuned(stage)
    return {"tuned": file_digest(path), "choice": read_json(path)["choice"]}


def _extra_stages(layout: Layout, config: Config) -> dict[str, Any]:
    """Return what a backbone was pretrained on beside the first stage; nothing where there is none."""
    if not config.backbone.extra_stages:
        return {}
    return {
        "extra_stages": {
            name: {
                "prepared_sha256": _prepared(layout, config, name)["sha256"],
                "split": file_digest(layout.split(name)),
                "verdict": file_digest(layout.verdict(name)),
            }
            for name in config.backbone.extra_stages
        }
    }
