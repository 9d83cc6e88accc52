"""What key.json says beside the digests of a model's own files."""

from typing import Any

from canal.config import BACKBONE, Config
from canal.digests import file_digest
from canal.files import read_json
from canal.layout import Layout
from canal.registry.code import code_digest, lock_digest
from canal.registry.request import request_digest, stage_request


def stage_facts(layout: Layout, config: Config, stage: str) -> dict[str, Any]:
    """Return a stage's (or the backbone's) inputs by digest, its request and its parameters."""
    origin = config.root_stage if stage == BACKBONE else stage
    source = config.stages[origin].source
    prepared = read_json(layout.prepared(source) / "prepared.json")
    request = stage_request(config, stage)
    tuned = {} if stage == BACKBONE or config.study(stage) is None else _choice(layout, stage)
    return tuned | {
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


def _choice(layout: Layout, stage: str) -> dict[str, Any]:
    """Return what a study chose for a stage, and the digest of all it says."""
    path = layout.tuned(stage)
    return {"tuned": file_digest(path), "choice": read_json(path)["choice"]}
