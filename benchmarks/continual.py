"""Everything a user would pick instead of canal, on the same splits of the same streams: one table, one page.

    python benchmarks/continual.py --quick               # the embedded stream, one seed: minutes
    python benchmarks/continual.py                       # what is in packages: embedded, first, synthetic
    python benchmarks/continual.py --data FOLDER         # immune in six orders and cut up, pancreas, too
    python benchmarks/continual.py --streams synthetic --rivals sums slda --seeds 5
    python benchmarks/continual.py --ablation            # parts of the sums, on validation cells alone
    python benchmarks/continual.py --outside             # others' libraries, in environments of their own

A result is a JSON file below ``--into``, RIVAL-SEED.json in the stream's folder, written whole or not at all.
What is there is not measured again while cells, settings and the rival's version are the same, so a run that
was ended goes on where it was. Rivals without epochs are measured under ``--seeds`` splits, networks under
``--network-seeds``, with studies and types left out under the first one. Hyperparameters come from validation
cells; test cells are asked once, at the end. Times are those of one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import continual_outside
import numpy as np
import stream
import torch
from continual_measures import Figures, measured, studies_left_out
from continual_page import markdown, page
from continual_rivals import RIVALS, CanalSums, Rival
from continual_rules import NETWORKS
from exact_learners import Exact
from exact_streams import (
    ALL,
    EMBEDDED,
    SYNTHETIC,
    Drawn,
    Line,
    StageCells,
    Stream,
    is_of_studies,
    line_of,
    reachable,
)
from rivals import Limits
from threadpoolctl import threadpool_limits

from canal.core.digests import json_digest
from canal.core.files import read_json, write_json

EVERY: dict[str, type[Rival]] = {**RIVALS, **NETWORKS}
ABLATION = "ablation"
VARIANTS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "shrinkage 0.2": {"memory": {"shrinkage": 0.2}},
    "shrinkage 0.6": {"memory": {"shrinkage": 0.6}},
    "a type counts by its cells (type_power 1)": {"memory": {"type_power": 1.0}},
    "few cells keep their centroid (few 0)": {"memory": {"few": 0.0}},
    "few 10": {"memory": {"few": 10.0}},
    "one covariance for all stages (stage_share 0)": {"memory": {"stage_share": 0.0}},
    "no answer for new studies (between 0)": {"memory": {"between": 0.0}},
    "always the answer for new studies (own -1e9)": {"memory": {"own": -1e9}},
    "soft 0.1": {"memory": {"soft": 0.1}},
    "levels are whole doublings": {"levels": 1.0},
    "expressed or not": {"levels": 0.0},
    "100 genes": {"panel": {"size": 100}},
    "200 genes": {"panel": {"size": 200}},
    "500 genes": {"panel": {"size": 500}},
    "1,000 genes": {"panel": {"size": 1000}},
    "genes by F statistic alone": {"panel": {"rule": "f_statistic"}},
    "genes by variance alone": {"panel": {"rule": "variance"}},
}
"""Changes of the sums, one at a time."""


def over_seeds(
    line: Line, rivals: Sequence[str], seeds: int, network_seeds: int, into: Path, quick: bool = False
) -> dict[str, list[Figures]]:
    """Return the figures of each rival, seed by seed; what is kept in ``into`` is not measured again."""
    found: dict[str, list[Figures]] = {name: [] for name in rivals}
    for seed in range(max(seeds, network_seeds)):
        drawn: Drawn | None = None
        digest = ""
        for name in rivals:
            kind = EVERY[name]
            if seed >= (network_seeds if kind.costly else seeds):
                continue
            if drawn is None:
                drawn = line.drawn(seed)
                digest = drawn.digest()
            left_out = not kind.costly or (seed == 0 and not quick)
            found[name].append(kept_or_measured(name, kind, drawn, (line.name, digest), into, left_out))
    return found


def kept_or_measured(
    name: str, kind: type[Rival], drawn: Drawn, of: tuple[str, str], into: Path, left_out: bool
) -> Figures:
    """Return a rival's figures on a draw, from ``into`` or measured and written there."""
    (line, digest), seed = of, drawn.config.seed
    code = Exact.asked(drawn.config) if issubclass(kind, CanalSums) else None
    about = [digest, drawn.config.probe.max_cells, drawn.config.bank.capacity, drawn.config.novelty.holdouts]
    asked = json_digest([about, kind.asked(), code, left_out])
    path = into / line / f"{name}-{seed}.json"
    kept = read_json(path) if path.is_file() else {}
    if kept.get("asked") != asked:
        began = time.perf_counter()
        figures = measured(kind, drawn, is_of_studies(line), left_out)
        kept = {"asked": asked, "seconds": time.perf_counter() - began, "figures": figures}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
        sys.stderr.write(
            f"{line}, seed {seed}, {kind.title}: A_T {figures['average']:.4f}, {kept['seconds']:.1f} s\n"
        )
    result: Figures = kept["figures"]
    return result


def ablation(line: Stream, seeds: int, into: Path) -> dict[str, list[Figures]]:
    """Return the figures of each of `VARIANTS` on validation cells, of which no test cell is asked."""
    found: dict[str, list[Figures]] = {name: [] for name in VARIANTS}
    for seed in range(seeds):
        for name, change in VARIANTS.items():
            drawn = changed(line, seed, change)
            file = "".join(one if one.isalnum() else "-" for one in name)
            of = (f"{ABLATION}/{line.name}", drawn.digest())
            settings = drawn.config.memory.numbers()
            kind: Any = type("Variant", (CanalSums,), {"asked": classmethod(lambda cls, s=settings: [1, s])})
            found[name].append(kept_or_measured(file, kind, drawn, of, into, left_out=False))
            if is_of_studies(line.name):
                found[name][-1] |= left_out_of(file, drawn, of, into)
    return found


def left_out_of(name: str, drawn: Drawn, of: tuple[str, str], into: Path) -> Figures:
    """Return how validation cells of studies that are left out are answered."""
    path = into / of[0] / f"{name}-{drawn.config.seed}-left-out.json"
    asked = json_digest([of[1], Exact.asked(drawn.config)])
    kept = read_json(path) if path.is_file() else {}
    if kept.get("asked") != asked:
        kept = {"asked": asked, "figures": studies_left_out(CanalSums, drawn)}
        write_json(path, kept)
    result: Figures = kept["figures"]
    return result


def changed(line: Stream, seed: int, change: dict[str, Any]) -> Drawn:
    """Return a draw with a change, whose test cells are its validation cells."""
    own = line.config
    try:
        line.config = own.model_copy(update={"panel": own.panel.model_copy(update=change.get("panel", {}))})
        drawn = line.drawn(seed)
    finally:
        line.config = own
    memory = drawn.config.memory.model_copy(update=change.get("memory", {}))
    drawn = replace(drawn, config=drawn.config.model_copy(update={"memory": memory}))
    stages = {}
    for name, cells in drawn.stages.items():
        train, validation = (coarser(one, change.get("levels")) for one in (cells.train, cells.validation))
        stages[name] = StageCells(train, validation, validation, cells.missing)
    return replace(drawn, stages=stages)


def coarser(cells: Any, step: float | None) -> Any:
    """Return cells whose expression is in whole doublings (1), or 1 and 0 (0); as it is for None."""
    if step is None:
        return cells
    values = np.floor(cells.expression) if step else (cells.expression > 0) * 4
    return replace(cells, expression=values.astype(np.float32))


def asked_for(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--rivals", nargs="+", choices=list(EVERY), default=list(EVERY))
    parser.add_argument("--data", type=Path, help="folder with the files of immune and pancreas")
    parser.add_argument("--seeds", type=int, default=20, help="split seeds of rivals without epochs")
    parser.add_argument("--network-seeds", type=int, default=3, help="split seeds of networks")
    parser.add_argument("--quick", action="store_true", help="the embedded stream, one seed")
    parser.add_argument("--ablation", action="store_true", help="changes of the sums, on validation cells")
    parser.add_argument(
        "--outside",
        nargs="*",
        choices=list(continual_outside.OUTSIDE),
        help="rivals in environments of their own",
    )
    parser.add_argument("--into", type=Path, default=stream.REPOSITORY / ".canal" / "continual")
    parser.add_argument("--page", type=Path, help="the page of figures (default: page.html in --into)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    wanted = parser.parse_args(arguments)
    if wanted.quick:
        wanted.streams, wanted.seeds, wanted.network_seeds = [EMBEDDED], 1, 1
    return wanted


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, print the tables, write the page."""
    wanted, found = asked_for(arguments), dict[str, dict[str, list[Figures]]]()
    torch.set_num_threads(1)
    downloads = stream.REPOSITORY / ".canal"
    with threadpool_limits(1):
        for name in wanted.streams:
            if not reachable(name, wanted.data):
                sys.stderr.write(f"{name} is left out: --data names the folder of its files\n")
                continue
            line = line_of(name, wanted.data, wanted.into / "prepared", downloads)
            if wanted.ablation:
                if isinstance(line, Stream):
                    found[name] = ablation(line, wanted.seeds, wanted.into / "seeds")
                continue
            rivals = [one for one in wanted.rivals if one != "known" or name == SYNTHETIC]
            n = wanted.seeds, wanted.network_seeds
            found[name] = over_seeds(line, rivals, *n, wanted.into / "seeds", wanted.quick)
            if wanted.outside is not None and isinstance(line, Stream):
                who = wanted.outside or list(continual_outside.OUTSIDE)
                found[name] |= continual_outside.over_rivals(line, who, wanted.into, Limits(3600))
    titles = {name: kind.title for name, kind in EVERY.items()} | continual_outside.TITLES
    if wanted.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    for name, figures in found.items():
        sys.stdout.write(markdown(name, figures, titles, wanted.ablation) + "\n")
    if found and not wanted.ablation:
        path = wanted.page or wanted.into / "page.html"
        page(path, found, titles)
        sys.stderr.write(f"figures: {path}\n")


if __name__ == "__main__":
    main()
