"""The rivals of `benchmarks/continual.py` that are libraries of others, each in an environment of its own.

They are given the genes that all stages share, not canal's panel, and of each stage at most 200 cells of a
type, as the networks are. They learn all stages at once, then each stage alone, then all but one. They give
labels alone here, so confidence and novelty are not measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from continual_networks import capped
from exact_figures import LEAST_KNOWN
from exact_streams import Drawn, Stream
from rivals import PACKAGES, Limits, environment, finished
from scipy.sparse import csr_matrix

from canal.continual import evaluation as measures
from canal.continual.cells import LabelledCells
from canal.core.digests import json_digest
from canal.core.files import read_json, write_json

OUTSIDE: dict[str, tuple[str, ...]] = {
    **PACKAGES,
    "singler": ("singler==0.5.0", "scranpy", "anndata==0.12.19"),
}
WAYS = {"joint": "all stages", "newest": "newest stage alone"}
TITLES = {
    f"{name} {way}": f"{packages[0].replace('==', ' ')}, {told}"
    for name, packages in OUTSIDE.items()
    for way, told in WAYS.items()
}
_WITHOUT = "without "


def over_rivals(
    line: Stream, who: Sequence[str], into: Path, limits: Limits
) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of each rival under seed 0, measured once; one that does not finish is left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    drawn, digest = None, line.drawn(0).digest()
    for name in who:
        path = into / "seeds" / line.name / f"outside-{name}-0.json"
        asked = json_digest([1, OUTSIDE[name], digest])
        kept = read_json(path) if path.is_file() else {}
        if kept.get("asked") != asked:
            drawn = drawn or on_shared_genes(line)
            answers = answers_of(name, drawn, into / "outside" / line.name, into / "environments", limits)
            if answers is None:
                continue
            kept = {"asked": asked, "figures": figures_of(drawn, answers)}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, kept)
        found |= {f"{name} {way}": [figures] for way, figures in kept["figures"].items()}
    return found


def answers_of(
    name: str, drawn: Drawn, folder: Path, environments: Path, limits: Limits
) -> dict[str, Any] | None:
    """Return a rival's labels and seconds by task; None where it did not finish, which is told."""
    write_cells(drawn, folder)
    answer = folder / "answer.json"
    python = environment(name, environments, OUTSIDE[name])
    script = Path(__file__).with_name("rival_stages.py")
    if why := finished([str(python), str(script), name, str(folder), str(answer)], limits, 1):
        sys.stderr.write(f"{name} did not finish: {why}\n")
        return None
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def on_shared_genes(line: Stream) -> Drawn:
    """Return the draw under seed 0 on the genes that all stages have, with few training cells."""
    drawn, random = line.drawn(0, line.shared_genes()), np.random.default_rng(0)
    stages = {name: replace(one, train=capped(one.train, random)) for name, one in drawn.stages.items()}
    return replace(drawn, stages=stages)


def write_cells(drawn: Drawn, folder: Path) -> None:
    """Write training and test cells of each stage, and what is to be learned from which."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(drawn.stages)
    for name, cells in drawn.stages.items():
        _write(cells.train, drawn.genes, folder / f"train-{name}.h5ad")
        _write(cells.test, drawn.genes, folder / f"test-{name}.h5ad")
    tasks = {"joint": names} | {name: [name] for name in names}
    if len(names) > 2:
        tasks |= {f"{_WITHOUT}{name}": [one for one in names if one != name] for name in names}
    write_json(folder / "tasks.json", tasks)


def _write(cells: LabelledCells, genes: Sequence[str], path: Path) -> None:
    values = csr_matrix(cells.expression * np.float32(np.log(2)))  # log1p; expression is log2(1 + counts)
    obs = pd.DataFrame({"cell_type": cells.cell_types, "stage": cells.stages}, index=list(cells.cell_ids))
    AnnData(values, obs, pd.DataFrame(index=list(genes))).write_h5ad(path)


def figures_of(drawn: Drawn, answers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of learning all stages at once, and of a new model for each stage."""
    names = list(drawn.stages)
    alone = [_row(drawn, answers[name]["said"], names[: place + 1]) for place, name in enumerate(names)]
    last = answers[names[-1]]
    return {
        "joint": _figures(drawn, answers["joint"]) | _left_out(drawn, answers),
        "newest": _figures(drawn, last)
        | {"forgetting": measures.forgetting(alone), "transfer": measures.backward_transfer(alone)},
    }


def _row(drawn: Drawn, said: Mapping[str, Sequence[str]], names: Sequence[str]) -> list[float]:
    return [measures.accuracy(drawn.stages[name].test.cell_types, said[name]) for name in names]


def _figures(drawn: Drawn, answer: Mapping[str, Any]) -> dict[str, Any]:
    said, names = answer["said"], list(drawn.stages)
    row = _row(drawn, said, names)
    truth = [list(one.test.cell_types) for one in drawn.stages.values()]
    pairs = list(zip(truth, (said[name] for name in names), strict=True))
    whole = [name for part in truth for name in part], [one for name in names for one in said[name]]
    return {
        "average": float(np.mean(row)),
        **{f"on {name}": value for name, value in zip(names, row, strict=True)},
        "types": measures.balanced_accuracy(*whole),
        "macro_f1": float(np.mean([measures.macro_f1(*pair) for pair in pairs])),
        "macro_f1_pooled": measures.macro_f1(*whole),
        "recall": {name: one["recall"] for name, one in measures.recall_by_type(*whole).items()},
        "seconds": answer["seconds"],
    }


def _left_out(drawn: Drawn, answers: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, cells in drawn.stages.items():
        if f"{_WITHOUT}{name}" not in answers:
            continue
        types = {one for other, rest in drawn.stages.items() if other != name for one in rest.train.types}
        said = answers[f"{_WITHOUT}{name}"]["said"][name]
        pairs = [(true, one) for true, one in zip(cells.test.cell_types, said, strict=True) if true in types]
        if len(pairs) >= LEAST_KNOWN:
            found[f"{_WITHOUT}{name}"] = float(np.mean([true == one for true, one in pairs]))
    return found | ({"left_out": float(np.mean(list(found.values())))} if found else {})
