"""params.yaml's text with a new branch of some stages: relearned, without cells, or merged with others."""

from collections.abc import Mapping, Sequence
from typing import Any

from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.config.yaml_file import dumped, parse, put_entry, round_trip, with_tune
from canal.core.errors import ConfigError, there_are


def with_branch(text: str, name: str) -> tuple[str, list[str]]:
    """Return params.yaml's text with a new branch from stage ``name`` on, and the stages to be relearned.

    A stage's descendants learned from it, so they get a new branch too.

    Raises
    ------
    ConfigError
        If there is no such stage.
    """
    config = parse(text)
    if name != BACKBONE and name not in config.stages:
        known = (BACKBONE, *config.stages)
        raise ConfigError(f"no stage {name!r}{there_are(name, known)}")
    relearned = [
        stage for stage in config.stages if name == BACKBONE or name in (*config.ancestors(stage), stage)
    ]
    yaml = round_trip()
    document = yaml.load(text)
    for stage in relearned:
        document["stages"][stage]["branch"] = config.stages[stage].branch + 1
    if name == BACKBONE:
        document["backbone"]["branch"] = config.backbone.branch + 1
        relearned = [BACKBONE, *relearned]
    return dumped(document), relearned


def with_withdrawal(
    text: str, source: str, excluded: tuple[Sequence[str], str | None], stages: Sequence[str]
) -> str:
    """Return params.yaml's text without some cells, with the exact method on a new branch of ``stages``.

    ``excluded`` cells and batch join what ``source`` excludes. ``stages`` may name the backbone; stages that
    build on them get the exact method, too, since there is no network that they could start from.

    Raises
    ------
    ConfigError
        If the result would break a rule.
    """
    config, document, (cells, batch) = parse(text), round_trip().load(with_tune(text)), excluded
    before = config.sources[source].exclude
    after = {
        "cells": [*before.cells, *(one for one in cells if one not in before.cells)],
        "batches": [*before.batches, *([batch] if batch and batch not in before.batches else [])],
    }
    put_entry(document["sources"][source], "exclude", {name: names for name, names in after.items() if names})
    return _learned_by_sums(document, config, stages)


def without_stages(text: str, out: Sequence[str], stages: Sequence[str]) -> str:
    """Return params.yaml's text without some stages and their sources, with a new branch of ``stages``.

    What was learned on a stage that goes is learned on that stage's parent, by the exact method.

    Raises
    ------
    ConfigError
        If the result would break a rule.
    """
    config, document = parse(text), round_trip().load(with_tune(text))
    left = {name: one for name, one in config.stages.items() if name not in out}
    for name, one in left.items():
        parent = one.parent
        while parent in out:
            parent = config.stages[parent].parent
        document["stages"][name]["parent"] = parent
    for name in out:
        document["stages"].pop(name, None)
    for source in {config.stages[name].source for name in out} - {one.source for one in left.values()}:
        del document["sources"][source]
    return _learned_by_sums(document, config, stages)


def with_merge(text: str, stage: str, merged: Mapping[str, Any], network: bool) -> str:
    """Return params.yaml's text with a new branch of ``stage`` that also holds another lineage's sums.

    Without a ``network`` it has the exact method. ``merged``: as `canal.config.stage_sections.Merged` says.

    Raises
    ------
    ConfigError
        If the result would break a rule.
    """
    config, document = parse(text), round_trip().load(with_tune(text))
    own = document["stages"][stage]
    own["branch"] = config.stages[stage].branch + 1
    own["merged"] = dict(merged)
    if network:
        if config.learning(stage).method == "published":  # sums were added to it later
            put_entry(own, "continual", {**own.get("continual", {}), "method": "combined"})
        text = dumped(document)
        parse(text)
        return text
    return _by_exact_method(document, config, [stage])


def _learned_by_sums(document: Any, config: Config, stages: Sequence[str]) -> str:
    """Give stages a new branch and the exact method, also to what builds on them; return the text."""
    if BACKBONE in stages:
        document["backbone"]["branch"] = config.backbone.branch + 1
    for stage in set(stages) & set(document["stages"]):
        document["stages"][stage]["branch"] = config.stages[stage].branch + 1
    return _by_exact_method(document, config, stages)


def _by_exact_method(document: Any, config: Config, stages: Sequence[str]) -> str:
    """Give stages, and what builds on them, the exact method; return the text."""
    for stage in (name for name in document["stages"] if {*config.ancestors(name), name} & set(stages)):
        put_entry(document["stages"][stage], "continual", {"method": "exact"})
        document["stages"][stage].pop("tune", None)
        if document["stages"][stage]["parent"] == BACKBONE:  # no network is left that they could pre-train
            document.get("backbone", {}).pop("unlabelled", None)
    text = dumped(document)
    parse(text)
    return text
