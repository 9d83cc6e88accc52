"""All orders of a stream on one basis: sums, weights and answers must not tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from exact_learners import solved
from exact_streams import Drawn, Stream, shuffled
from rich.table import Table

from canal.continual import evaluation as measures
from canal.core.digests import json_digest
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Adder, total

Found = list[dict[str, Any]]


def measured(line: Stream, seeds: Sequence[int]) -> dict[int, Found]:
    """Return, for each seed, what every order of the stages ends with."""
    return {seed: of_orders(line.drawn(seed)) for seed in seeds}


def of_orders(drawn: Drawn) -> Found:
    """Return digests and accuracies of all orders; cells and chunks, too, come in another order each time."""
    found = []
    for number, order in enumerate(permutations(drawn.stages)):
        random, sums, matrix = np.random.default_rng(number), StageSums(Basis(drawn.genes, {})), []
        for place, name in enumerate(order):
            adder, cells = Adder(sums.basis), drawn.stages[name]
            for part in shuffled(cells.train, random, int(random.integers(50, 3000))):
                adder.add(part.expression, part.cell_types)
            sums = sums.plus(name, adder.sums(), cells.missing)
            matrix.append(row(drawn, sums, order[: place + 1]))
        found.append(
            {
                "order": list(order),
                "sums": total(sums.stages.values(), sums.basis).digest,
                "stages": json_digest({name: one.digest for name, one in sorted(sums.stages.items())}),
                "weights": solved(drawn, sums).classifier.digest(),
                "average": measures.average_accuracy(matrix),
                "forgetting": measures.forgetting(matrix),
            }
        )
    return found


def row(drawn: Drawn, sums: StageSums, stages: Sequence[str]) -> list[float]:
    """Return the accuracy of the sums so far on each of these stages' test cells."""
    annotator = solved(drawn, sums)
    tests = [(drawn.stages[name].test, drawn.stages[name].missing) for name in stages]
    return [
        measures.accuracy(cells.cell_types, annotator.without(missing).predict(cells.expression).labels)
        for cells, missing in tests
    ]


def table(name: str, found: dict[int, Found]) -> Table:
    """Return a row for each seed: how many digests all orders have, and the spread of their accuracies."""
    n_orders = len(next(iter(found.values())))
    shown = Table(title=f"{name}: {n_orders} orders of stages, cells and chunks, on one basis")
    for heading in ("seed", "digests of sums", "of weights", "A_T", "spread of A_T", "forgetting by order"):
        shown.add_column(heading, justify="right")
    for seed, orders in found.items():
        averages = [one["average"] for one in orders]
        sums = len({(one["sums"], one["stages"]) for one in orders})
        weights = len({one["weights"] for one in orders})
        forgotten = " ".join(f"{one['forgetting']:+.3f}" for one in orders)
        spread = max(averages) - min(averages)
        shown.add_row(str(seed), str(sums), str(weights), f"{averages[0]:.4f}", f"{spread:.4f}", forgotten)
    return shown
