"""What each number of the exact memory's solution is worth: left out, or another in its place."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exact_figures import Figures, differences, interval, mean, measured
from exact_learners import Exact
from exact_streams import Stream
from rich.table import Table

from canal.core.digests import json_digest
from canal.core.files import read_json, write_json

SHIPPED = "as shipped"
VARIANTS: dict[str, dict[str, float]] = {
    SHIPPED: {},
    "shrinkage 0.1": {"shrinkage": 0.1},
    "a type counts by its cells (type_power 1)": {"type_power": 1.0},
    "few cells keep their centroid (few 0)": {"few": 0.0},
    "one covariance for all stages (stage_share 0)": {"stage_share": 0.0},
    "no answer for new studies (between 0)": {"between": 0.0},
    "between 0.15": {"between": 0.15},
    "every centroid counts alike in it (reliable ~0)": {"reliable": 1e-6},
    "the nearest stage decides (soft 1)": {"soft": 1.0},
    "always the answer for new studies (own -1e9)": {"own": -1e9},
    "own 0": {"own": 0.0},
}
KEYS = {
    "average": "A_T",
    "types": "mean over types",
    "forgetting": "forgetting",
    "left_out": "study left out",
    "ece": "ECE",
}


def over_seeds(line: Stream, seeds: Sequence[int], into: Path) -> dict[str, list[Figures]]:
    """Return the figures of each variant, seed by seed; what is kept in ``into`` is not measured again."""
    found: dict[str, list[Figures]] = {name: [] for name in VARIANTS}
    for seed in seeds:
        drawn = line.drawn(seed)
        digest = drawn.digest()
        path = into / line.name / f"parts-{seed}.json"
        kept: dict[str, Any] = read_json(path) if path.is_file() else {}
        learner: Exact | None = None
        for name, change in VARIANTS.items():
            memory = drawn.config.memory.model_copy(update=change)
            config = drawn.config.model_copy(update={"memory": memory})
            asked = json_digest([digest, config.probe.max_cells, Exact.asked(config)])
            if kept.get(name, {}).get("asked") != asked:
                learner = learner or Exact(drawn)
                learner.drawn = replace(drawn, config=config)
                kept[name] = {"asked": asked, "figures": measured(learner, learner.drawn)}
            found[name].append(kept[name]["figures"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
        sys.stderr.write(f"{line.name}, seed {seed}: {len(VARIANTS)} variants\n")
    return found


def table(name: str, found: Mapping[str, Sequence[Figures]]) -> Table:
    """Return what is shipped in per cent, and how far each variant lies from it in points."""
    shown = Table(title=f"{name}: variants less what is shipped, points [95 % interval]")
    for heading in ("variant", *KEYS.values()):
        shown.add_column(heading, justify="left" if heading == "variant" else "right")
    for variant, figures in found.items():
        if variant == SHIPPED:
            values = [mean(figures, key) for key in KEYS]
            shown.add_row(variant, *("-" if value is None else f"{100 * value:.2f}" for value in values))
        else:
            shown.add_row(variant, *(interval(differences(figures, found[SHIPPED], key)) for key in KEYS))
    return shown
