"""What params.yaml asks a stage to be: the part of the parameters that decides what it learns.

A request never looks at code, environment or files, so it can be computed where the data are long gone; the
source's SHA-256 stands in it. Requests chain through the parent, so a change in stage 1 changes every stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.core.digests import json_digest

Request = dict[str, Any]

_ABSENT = "absent"


def stage_request(config: Config, stage: str) -> Request:
    """Return what ``stage`` is asked to be; ``"backbone"`` names the pretrained network."""
    return _backbone_request(config) if stage == BACKBONE else _lesson_request(config, stage)


def request_digest(config: Config, stage: str) -> str:
    """Return the SHA-256 of a stage's request."""
    return json_digest(stage_request(config, stage))


@dataclass(frozen=True)
class Change:
    """One leaf in which two documents differ; what is not there at all is ``"absent"``."""

    path: str
    before: Any
    after: Any


def changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> list[Change]:
    """Return every leaf in which two documents differ, named by its dotted key, sorted."""
    found: list[Change] = []
    for key in sorted(before.keys() | after.keys()):
        here = f"{path}.{key}" if path else key
        left, right = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += changes(left, right, here)
        elif left != right:
            found.append(Change(here, left, right))
    return found


def differences(asked: Mapping[str, Any], learned: Mapping[str, Any]) -> list[str]:
    """Return one line for each leaf in which two requests differ, beginning with its dotted key."""
    return [
        f"{one.path}: learned with {_short(one.before)}, asked for {_short(one.after)}"
        for one in changes(learned, asked)
    ]


def _backbone_request(config: Config) -> Request:
    names = (config.root_stage, *config.backbone.extra_stages)
    basis = _basis_request(config)
    return (
        _products(config)
        | ({"memory": basis} if basis else {})
        | {
            "stage": BACKBONE,
            "branch": config.backbone.branch,
            "cells": {name: _cells_request(config, name) for name in names},
            "panel": config.panel.model_dump(mode="json"),
            "backbone": _origin_request(config),
            "seed": config.seed,
        }
    )


def _products(config: Config) -> Request:
    """Return the type of matrix products where they round: a request of float32 names none."""
    return {} if config.compute.dtype == "float32" else {"compute": {"dtype": config.compute.dtype}}


def _basis_request(config: Config) -> Request:
    """Return the basis that was adopted, by what it is and not by where it lies; nothing without one."""
    adopted = config.memory.basis
    return {} if adopted is None else {"basis": adopted.digest}


def _origin_request(config: Config) -> Request:
    """Return how the backbone comes to be; an import is its key, and nothing that only pre-training reads."""
    if not config.trains_network:
        return {"network": False}
    imported = config.backbone.imported
    if imported is not None:
        return {"preset": config.backbone.preset, "imported": imported.key}
    return config.backbone.model_dump(mode="json", exclude={"branch", "imported"})


def _learning_request(config: Config, stage: str) -> Request:
    """Return how a stage is learned: with settings, or with settings and a study that finds the others."""
    settings = config.learning(stage).model_dump(mode="json", exclude_none=True)
    study = config.study(stage)
    if config.learning(stage).method == "published":
        del settings["method"]  # requests from before there were methods name none
        memory = {}
    else:
        memory = {"memory": config.memory.numbers() | _basis_request(config)}
    if config.learning(stage).method == "exact":
        return {"continual": {"method": "exact"}, **memory}
    if study is None:
        return {"continual": settings, **memory}
    kept = {name: value for name, value in settings.items() if name not in study.varied}
    return {"continual": kept, "tuning": study.asked(), **memory}


def _lesson_request(config: Config, stage: str) -> Request:
    rounded = {} if config.cache.dtype == "float32" else {"cache": {"dtype": config.cache.dtype}}
    ids = config.sources[config.stages[stage].source].ontology
    # By what rule genes are added is asked for by the backbone, to which requests chain.
    grow = config.stages[stage].panel.grow
    by_network = config.learning(stage).method != "exact"
    return (
        rounded
        | ({"panel": {"grow": grow}} if grow else {})
        | ({"ontology": dict(ids)} if ids else {})
        | _products(config)
        | _learning_request(config, stage)
        | {
            "stage": stage,
            "branch": config.stages[stage].branch,
            "cells": _cells_request(config, stage),
            **({"bank": config.bank.model_dump(mode="json")} if by_network else {}),
            "probe": config.probe.model_dump(mode="json"),
            "novelty": config.novelty.model_dump(mode="json"),
            "seed": config.seed,
            "parent": {
                "stage": (parent := config.stages[stage].parent),
                "request": request_digest(config, parent),
            },
        }
    )


def _cells_request(config: Config, stage: str) -> Request:
    name = config.stages[stage].source
    declaration = config.sources[name].declaration()
    declaration["min_genes"] = config.min_genes(name)
    return {
        "source": name,
        "declaration": declaration,
        "split": config.split.model_dump(mode="json", exclude_none=True),
        "group_by_batch": config.stages[stage].group_by_batch,
        "seed": config.seed,
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
