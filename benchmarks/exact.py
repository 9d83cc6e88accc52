"""The exact memory on streams, over split seeds, beside SLDA, random features and logistic regression.

    python benchmarks/exact.py                                # first and embedded, 20 seeds
    python benchmarks/exact.py --data ~/cells                 # immune and pancreas, too
    python benchmarks/exact.py --streams embedded --learners exact slda --seeds 3
    python benchmarks/exact.py --data ~/cells --streams immune --orders
    python benchmarks/exact.py --streams embedded --root .    # and a finished project's own figures

Sources are fetched, prepared, split and their genes chosen by canal's own code, for each seed anew. A learner
learns the stages in their order and is measured on the test cells of all so far; then each study is left out
in turn, and the others answer for its test cells of types that they know. Logistic regression learns all
training cells at once, those in reserve, too, and so do all others here. What was measured is kept in
``--into`` and not measured again, as long as cells, parameters and the learner's code are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import exact_orders
import numpy as np
import stream
from exact_learners import LEARNERS, Answer, Learner, said
from exact_streams import NEED_DATA, STREAMS, Drawn, Stream, of_types
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from canal.continual import measures
from canal.continual.calibration import expected_calibration_error
from canal.continual.temperature import fit_calibration
from canal.digests import json_digest
from canal.files import read_json, write_json

LEAST_KNOWN = 5
"""Test cells of known types that a study must have to be left out."""

COLUMNS = {
    "average": "A_T",
    "types": "mean over types",
    "macro_f1": "macro-F1",
    "macro_f1_pooled": "pooled",
    "forgetting": "forgetting",
    "left_out": "study left out",
    "left_out_types": "mean over types",
    "ece": "ECE",
    "nll": "NLL",
}
JOINT = "logistic"
Figures = dict[str, float | None]


def measured(learner: Learner, drawn: Drawn) -> Figures:
    """Return a learner's figures on one draw of a stream."""
    names = list(drawn.stages)
    answers = {len(names): learner.learned(names)}
    rows = []
    for n in range(1 if learner.step_by_step else len(names), len(names) + 1):
        answers[n] = answers.get(n) or learner.learned(names[:n])
        rows.append([_accuracy(answers[n], drawn, name) for name in names[:n]])
    last = answers[len(names)]
    return {
        "average": measures.average_accuracy([rows[-1]]),
        "forgetting": measures.forgetting(rows) if learner.step_by_step else None,
        **{f"on {name}": value for name, value in zip(names, rows[-1], strict=True)},
        **_last(last, drawn),
        **_left_out(learner, drawn),
    }


def _accuracy(answer: Answer, drawn: Drawn, stage: str) -> float:
    cells = drawn.stages[stage]
    return measures.accuracy(cells.test.cell_types, said(answer, cells.test, cells.missing))


def _last(answer: Answer, drawn: Drawn) -> Figures:
    """Return what is measured over the test cells of all stages, of what all stages taught."""
    known = drawn.known(list(drawn.stages))
    logits = np.concatenate(
        [answer.logits(known.of_stage(name), drawn.stages[name].missing) for name in known.stage_names]
    )
    calibration = fit_calibration(logits, known.targets(answer.labels))
    truth, named, sure, right, scores = [], [], [], [], []
    for cells in drawn.stages.values():
        found = answer.logits(cells.test, cells.missing)
        probabilities, targets = calibration.probabilities(found), cells.test.targets(answer.labels)
        truth.append(cells.test.cell_types)
        named.append([answer.labels[place] for place in found.argmax(axis=1)])
        sure.append(probabilities.max(axis=1))
        right.append(found.argmax(axis=1) == targets)
        scores.append(-np.log(np.maximum(probabilities[np.arange(len(targets)), targets], 1e-12)))
    pairs = list(zip(truth, named, strict=True))
    all_true, all_named = ([name for part in parts for name in part] for parts in (truth, named))
    return {
        "types": measures.balanced_accuracy(all_true, all_named),
        "macro_f1": float(np.mean([measures.macro_f1(true, one) for true, one in pairs])),
        "macro_f1_pooled": measures.macro_f1(all_true, all_named),
        "ece": expected_calibration_error(np.concatenate(sure), np.concatenate(right)),
        "ece_newest": expected_calibration_error(sure[-1], right[-1]),
        "nll": float(np.concatenate(scores).mean()),
        "temperature": calibration.temperature,
        "floor": calibration.floor,
    }


def _left_out(learner: Learner, drawn: Drawn) -> Figures:
    """Return how the others answer for each study that is left out, of types that they know."""
    found = {}
    for name, cells in drawn.stages.items():
        others = [one for one in drawn.stages if one != name]
        types = {one for other in others for one in drawn.stages[other].train.types}
        test = of_types(cells.test, types)
        if len(types) < 2 or len(test) < LEAST_KNOWN:
            continue
        named = said(learner.learned(others), test, cells.missing)
        found[name] = (
            measures.accuracy(test.cell_types, named),
            measures.balanced_accuracy(test.cell_types, named),
        )
    accuracies, balanced = zip(*found.values(), strict=True) if found else ((), ())
    return {
        "left_out": float(np.mean(accuracies)) if found else None,
        "left_out_types": float(np.mean(balanced)) if found else None,
        **{f"without {name}": value for name, (value, _) in found.items()},
    }


def over_seeds(
    name: str, line: Stream, learners: Sequence[str], seeds: Sequence[int], into: Path
) -> dict[str, list[Figures]]:
    """Return the figures of each learner, seed by seed; what is kept in ``into`` is not measured again."""
    found: dict[str, list[Figures]] = {one: [] for one in learners}
    for seed in seeds:
        drawn = line.drawn(seed)
        about = [drawn.digest(), drawn.config.memory.model_dump(), drawn.config.probe.max_cells]
        for one in learners:
            path, asked = into / name / f"{one}-{seed}.json", json_digest([about, LEARNERS[one].asked()])
            kept = read_json(path) if path.is_file() else {}
            if kept.get("asked") != asked:
                began = time.perf_counter()
                figures = measured(LEARNERS[one](drawn), drawn)
                kept = {"asked": asked, "seconds": time.perf_counter() - began, "figures": figures}
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, kept)
                sys.stderr.write(
                    f"{name}, seed {seed}, {LEARNERS[one].name}: A_T {figures['average']:.4f}, "
                    f"{kept['seconds']:.1f} s\n"
                )
            found[one].append(kept["figures"])
    return found


def of_project(root: Path) -> Figures:
    """Return the figures of a finished project's last version, as it measured them itself."""
    import pandas as pd

    files = (root / "metrics").glob("*/evaluation.json")
    paths = sorted(files, key=lambda path: len(read_json(path)["stages"]))
    if not paths:
        raise SystemExit(f"{root} has no metrics/*/evaluation.json: finish `make run` there first")
    document, folder = read_json(paths[-1]), paths[-1].parent
    table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    truth, named = table["truth"].tolist(), table["predicted"].tolist()
    per_stage = document["per_stage"].values()
    return {
        "average": document["average_accuracy"],
        "forgetting": document["forgetting"],
        "types": measures.balanced_accuracy(truth, named),
        "macro_f1": float(np.mean([one["macro_f1"] for one in per_stage])),
        "macro_f1_pooled": measures.macro_f1(truth, named),
        "ece": (document["calibration"] or {}).get("ece"),
    }


def differences(
    found: Sequence[Figures], against: Sequence[Figures], key: str
) -> tuple[float, float, float] | None:
    """Return the mean paired difference and its 95 % interval (Student's t over seeds)."""
    from scipy import stats

    pairs = [(one[key], other[key]) for one, other in zip(found, against, strict=True)]
    apart = np.array([a - b for a, b in pairs if a is not None and b is not None])
    if len(apart) < 2:
        return None
    reach = float(stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart)))
    return float(apart.mean()), float(apart.mean() - reach), float(apart.mean() + reach)


def table(name: str, found: Mapping[str, Sequence[Figures]], projects: Mapping[str, Figures]) -> Table:
    """Return the means over seeds of a stream, a row a learner, and figures of projects below them."""
    n_seeds = len(next(iter(found.values())))
    shown = Table(title=f"{name}: test cells, mean of {n_seeds} split seeds (standard error of A_T)")
    for heading in ("learner", *COLUMNS.values()):
        shown.add_column(heading, justify="left" if heading == "learner" else "right")
    for one, figures in found.items():
        values = [mean(figures, key) for key in COLUMNS]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        if n_seeds > 1:
            averages = np.array([each["average"] for each in figures], dtype=np.float64)
            error = averages.std(ddof=1) / np.sqrt(n_seeds)
            cells[0] += f" ({error:.4f})"
        shown.add_row(LEARNERS[one].name, *cells)
    for folder, own in projects.items():
        values = [own.get(key) for key in COLUMNS]
        shown.add_row(folder, *("-" if value is None else f"{value:.4f}" for value in values))
    return shown


def paired(name: str, found: Mapping[str, Sequence[Figures]]) -> Table:
    """Return what learners gain on joint logistic regression, in points, seed by seed alike."""
    shown = Table(title=f"{name}: less logistic regression of all cells at once, points [95 % interval]")
    keys = ("average", "types", "macro_f1", "left_out", "left_out_types", "ece", "nll")
    for heading in ("learner", *(COLUMNS[key] for key in keys)):
        shown.add_column(heading, justify="left" if heading == "learner" else "right")
    for one, figures in found.items():
        if one != JOINT:
            apart = [differences(figures, found[JOINT], key) for key in keys]
            shown.add_row(LEARNERS[one].name, *map(_interval, apart))
    return shown


def stages_table(name: str, found: Mapping[str, Sequence[Figures]]) -> Table:
    """Return the accuracy on each stage, learned and left out."""
    shown = Table(title=f"{name}: accuracy by stage: all learned / this one left out")
    stages = [key.removeprefix("on ") for key in next(iter(found.values()))[0] if key.startswith("on ")]
    for heading in ("learner", *stages):
        shown.add_column(heading, justify="left" if heading == "learner" else "right")
    for one, figures in found.items():
        pairs = [(mean(figures, f"on {stage}"), mean(figures, f"without {stage}")) for stage in stages]
        cells = [" / ".join("-" if each is None else f"{each:.3f}" for each in pair) for pair in pairs]
        shown.add_row(LEARNERS[one].name, *cells)
    return shown


def mean(figures: Sequence[Figures], key: str) -> float | None:
    """Return the mean over seeds of a figure; None where it was not measured."""
    values = [value for one in figures if (value := one.get(key)) is not None]
    return float(np.mean(values)) if values else None


def _interval(apart: tuple[float, float, float] | None) -> str:
    return "-" if apart is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * one for one in apart))


def wishes(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--learners", nargs="+", choices=list(LEARNERS), default=list(LEARNERS))
    parser.add_argument("--data", type=Path, help=f"folder with the files of {', '.join(NEED_DATA)}")
    parser.add_argument("--seeds", type=int, default=20, help="split seeds, 0 and up")
    parser.add_argument(
        "--orders", action="store_true", help="all orders of the stages on one basis, instead"
    )
    parser.add_argument("--root", type=Path, nargs="*", default=[], help="finished projects, to stand beside")
    parser.add_argument("--into", type=Path, default=stream.REPOSITORY / ".canal" / "exact")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each stream and print."""
    wanted, found = wishes(arguments), dict[str, Any]()
    projects = {f"project {root.resolve().name}": of_project(root) for root in wanted.root}
    console = Console(width=170, stderr=wanted.json)
    for name in wanted.streams:
        if name in NEED_DATA and wanted.data is None:
            console.print(f"{name} is left out: its files are not in packages; --data names their folder")
            continue
        with threadpool_limits(1):
            line = Stream(name, wanted.data, wanted.into / "prepared", stream.REPOSITORY / ".canal")
            if wanted.orders:
                orders = exact_orders.measured(line, range(wanted.seeds))
                console.print(exact_orders.table(name, orders))
                found[name] = orders
                continue
            one = over_seeds(name, line, wanted.learners, range(wanted.seeds), wanted.into / "seeds")
        found[name] = one
        console.print(table(name, one, projects if len(wanted.streams) == 1 else {}))
        console.print(stages_table(name, one))
        if JOINT in one and len(one) > 1 and wanted.seeds > 1:
            console.print(paired(name, one))
    if wanted.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
