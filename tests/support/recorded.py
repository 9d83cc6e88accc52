"""Requests as canal recorded them before what only measures was left out."""

from __future__ import annotations

from typing import Any

from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.core.digests import json_digest
from canal.registry.manifest.stage_request import stage_request


def recorded_form(config: Config, stage: str) -> dict[str, Any]:
    """Return a request with the whole section ``novelty``, chained to its parent's in the same form."""
    request = stage_request(config, stage)
    if stage == BACKBONE:
        return request
    novelty = config.novelty.model_dump(mode="json") | {"holdouts": list(config.novelty.holdouts or ())}
    parent = config.stages[stage].parent
    above = {"stage": parent, "request": json_digest(recorded_form(config, parent))}
    return request | {"novelty": novelty, "parent": above}
