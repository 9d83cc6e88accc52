"""Whether it pays to let a stage add genes to the panel: a stream learned with and without, on test cells.

    python benchmarks/growth.py immune --data ~/cells --into /tmp/growth --grow 50
    python benchmarks/growth.py immune --data ~/cells --into /tmp/growth --grow 50 --cells 400 --wide

``streams/NAME.yaml`` is learned as it stands, then every stage but the first adds ``--grow`` genes; both
start from the same first stage. ``--wide`` learns it once more with as many genes from the beginning, which
tells whether it is these genes that matter or their number. For each run: the R matrix (rows: after a stage,
columns: test cells of a stage), A_T and the balanced accuracy of the last model. For the grown one also the
accuracy where the genes that came after a stage count as zero in its test cells, as they do in the bank's:
what that costs or saves is what the network made of "not stored". With ``--cells`` each file is cut to so
many cells, types in proportion but at least ten of each.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stream
from ruamel.yaml import YAML

from canal.app.project import Project
from canal.continual import evaluation as measures
from canal.core.files import read_json
from canal.model.annotator import Annotator
from canal.model.storage import PRESETS


def main() -> None:
    """Read the arguments, learn the stream each way, print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stream", choices=sorted(path.stem for path in stream.STREAMS.iterdir()))
    parser.add_argument("--data", type=Path, required=True, help="folder with the stream's files")
    parser.add_argument("--into", type=Path, required=True, help="folder of the scratch projects")
    parser.add_argument("--grow", type=int, default=50, help="genes that each later stage may add")
    parser.add_argument("--cells", type=int, help="cut each file to so many cells")
    parser.add_argument("--wide", action="store_true", help="also with as many genes from the beginning")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another parameter")
    arguments = parser.parse_args()
    document = stream.params(arguments.stream, arguments.data.resolve(), arguments.set)
    if arguments.cells is not None:
        stream.cut(document, arguments.into.resolve() / "cells", arguments.cells)
    later = list(document["stages"])[1:]
    growing = [f"stages.{stage}.panel.grow={arguments.grow}" for stage in later]
    # One project for both: without a registry nothing is restored, and DVC keeps the first stage.
    runs = {"as it stands": ("project", []), f"{arguments.grow} more genes a stage": ("project", growing)}
    if arguments.wide:
        size = document["panel"].get("size") or PRESETS[document["backbone"]["preset"]].panel
        runs["as many from the beginning"] = ("wide", [f"panel.size={size + arguments.grow * len(later)}"])
    found = {}
    for name, (folder, changes) in runs.items():
        found[name] = learn(arguments.into.resolve() / folder, document, changes)
        sys.stdout.write(f"\n{name}\n{table(found[name])}\n")
        (arguments.into / "growth.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def learn(root: Path, document: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Learn a stream in a scratch project and return what its models answer on test cells."""
    if not (root / ".git").is_dir():
        stream.make_project(root)
    text = json.loads(json.dumps(document))
    stream.change(text, changes)
    YAML().dump(text, root / "params.yaml")
    stream.run(root, "dvc", "repro", "--quiet")
    stages = list(text["stages"])
    evaluation = read_json(root / "metrics" / stages[-1] / "evaluation.json")
    per_stage = evaluation["per_stage"]
    return {
        "stages": stages,
        "n": [per_stage[stage]["n"] for stage in stages],
        "genes": [len(read_json(root / "models" / stage / "model" / "genes.json")) for stage in stages],
        "matrix": evaluation["matrix"],
        "average_accuracy": evaluation["average_accuracy"],
        "balanced_accuracy": [per_stage[stage]["balanced_accuracy"] for stage in stages],
        "later_genes_zero": later_genes_zero(root, stages),
    }


def later_genes_zero(root: Path, stages: Sequence[str]) -> list[float]:
    """Return the last model's accuracy on each stage where genes added after it count as zero."""
    project = Project.open(root)
    annotator = Annotator.load(project.layout.model(stages[-1]) / "model")
    found = []
    for stage in stages:
        own = len(read_json(project.layout.model(stage) / "model" / "genes.json"))
        cells = project.cells(stage, "test", annotator.genes)
        expression = cells.expression.copy()
        expression[:, own:] = 0.0
        found.append(measures.accuracy(cells.cell_types, annotator.predict(expression).labels))
    return found


def table(run: dict[str, Any]) -> str:
    """Return one run's figures as lines of text."""
    lines = [f"{'after':24}{'genes':>6}" + "".join(f"{stage[:11]:>12}" for stage in run["stages"])]
    for stage, genes, row in zip(run["stages"], run["genes"], run["matrix"], strict=True):
        lines.append(f"{stage[:23]:24}{genes:>6}{_numbers(row)}")
    lines.append(f"{'A_T':30}{run['average_accuracy']:>12.3f}")
    lines.append(f"{'balanced accuracy, last':30}{_numbers(run['balanced_accuracy'])}")
    lines.append(f"{'later genes as zero, last':30}{_numbers(run['later_genes_zero'])}")
    lines.append(f"{'test cells':30}" + "".join(f"{n:>12}" for n in run["n"]))
    return "\n".join(lines)


def _numbers(row: Sequence[float | None]) -> str:
    return "".join(f"{'-' if value is None else f'{value:.3f}':>12}" for value in row)


if __name__ == "__main__":
    main()
