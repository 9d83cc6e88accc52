"""Does tuning pay? Tuned lambda and L against the published ones, on test cells, over seeds.

    python benchmarks/tuned.py --into /tmp/tuned                          # the embedded stream, seeds 0 1 2
    python benchmarks/tuned.py --stream immune --data ~/cells --cells 2000 --into /tmp/tuned
    python benchmarks/tuned.py --into /tmp/tuned --figure docs/images/tuned.png

A seed decides splits, panel, weights and order of cells. Each seed has a scratch project whose first stage
both ways share; the later stages are learned with lambda = 0.1 and L = 1,000 (cut to bank.capacity), then
with what their studies choose. A seed that was measured is not measured again: what was found is kept in
``--into``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import stream
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from canal.config.sections import PUBLISHED_BANK_SIZE, PUBLISHED_DISTILLATION
from canal.core.digests import json_digest
from canal.core.files import read_json, write_json

EMBEDDED = "embedded"
WAYS = ("published", "tuned")

Found = dict[str, Any]


def main() -> None:
    """Measure every seed both ways, then print."""
    streams = sorted(path.stem for path in stream.STREAMS.iterdir())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stream", choices=[EMBEDDED, *streams], default=EMBEDDED)
    parser.add_argument("--data", type=Path, help="folder with the files of a stream that is not embedded")
    parser.add_argument("--into", type=Path, required=True, help="folder of the scratch projects")
    parser.add_argument("--cells", type=int, help="cut each file of such a stream to so many cells")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another parameter")
    parser.add_argument("--figure", type=Path, help="draw the comparison into this file (.png or .svg)")
    arguments = parser.parse_args()
    if arguments.stream != EMBEDDED and arguments.data is None:
        parser.error(f"--data is needed: the files of stream {arguments.stream}")
    into = arguments.into.resolve()
    document = params(arguments.stream, arguments.data, arguments.set)
    if arguments.cells:
        if arguments.data is None:
            parser.error("--cells cuts files below --data; the embedded stream is learned whole")
        stream.cut(document, into / f"{arguments.stream}-cells", arguments.cells)
    found = {}
    for seed in arguments.seeds:
        root = into / f"{arguments.stream}-{seed}"
        found[seed] = {way: measured(root, document | {"seed": seed}, way) for way in WAYS}
    report(found)
    if arguments.figure:
        draw(found, arguments.figure, f"Stream {arguments.stream}")


def params(name: str, data: Path | None, changes: Sequence[str]) -> dict[str, Any]:
    """Return params.yaml's document, with a stream laid over it where it is not the embedded one."""
    if data is not None:
        return stream.params(name, data.resolve(), list(changes))
    document: dict[str, Any] = YAML(typ="safe").load(stream.REPOSITORY / "params.yaml")
    stream.change(document, changes)
    return document


def measured(root: Path, document: Mapping[str, Any], way: str) -> Found:
    """Learn the stream one way, unless that was done, and return what its last model does on test cells."""
    kept, wanted = root.with_name(f"{root.name}-{way}.json"), arranged(document, way)
    asked = json_digest(wanted)
    if kept.is_file():
        known: Found = read_json(kept)
        if known.get("asked") != asked:
            raise SystemExit(f"{kept} was measured with other parameters: give another --into")
        return known
    if not (root / ".git").is_dir():
        stream.make_project(root)
        downloads = stream.REPOSITORY / ".canal" / "downloads"
        if downloads.is_dir():
            shutil.copytree(downloads, root / ".canal" / "downloads")
    last = list(document["stages"])[-1]
    YAML().dump(wanted, root / "params.yaml")
    # What is not registered is learned as params.yaml asks, so both ways can be learned in one folder.
    stream.run(root, "python", "-m", "canal.runtime.warm", "dvc", "repro")
    evaluation = read_json(root / "metrics" / last / "evaluation.json")
    choices = {
        name: read_json(root / "models" / name / "history.json") for name in list(document["stages"])[1:]
    }
    found = {
        "asked": asked,
        "row": evaluation["row"],
        "balanced": {name: one["balanced_accuracy"] for name, one in evaluation["per_stage"].items()},
        "average_accuracy": evaluation["average_accuracy"],
        "forgetting": evaluation["forgetting"],
        "chosen": {
            name: {key: one[key] for key in ("distillation", "bank_size", "n_replay")}
            for name, one in choices.items()
        },
    }
    write_json(kept, found)
    return found


def arranged(document: Mapping[str, Any], way: str) -> dict[str, Any]:
    """Return the document with its later stages tuned, or all stages at the published lambda and L."""
    first = document["panel"]["stage"]
    tuned = [name for name in document["stages"] if name != first] if way == "tuned" else []
    published = {"distillation": PUBLISHED_DISTILLATION, "bank_size": PUBLISHED_BANK_SIZE}
    return {
        **document,
        "continual": document["continual"] | published,
        "stages": stream.tuned_stages(document["stages"], tuned),
    }


def report(found: Mapping[int, Mapping[str, Found]]) -> None:
    """Print every seed both ways, and what tuning gains on average."""
    table = Table(title="accuracy on the test cells of each stage, by the last model, %")
    stages = list(next(iter(found.values()))["tuned"]["row"])
    columns = ("seed", "", *stages, "average", "balanced", "forgetting", "λ and L of the later stages")
    for name in columns:
        table.add_column(name, justify="right" if name != columns[-1] else "left")
    for seed, ways in found.items():
        for way in WAYS:
            one = ways[way]
            chosen = ", ".join(f"{c['distillation']:g} / {c['bank_size']}" for c in one["chosen"].values())
            values = [*one["row"].values(), one["average_accuracy"], balanced(one), one["forgetting"]]
            table.add_row(str(seed), way, *(f"{100 * value:.1f}" for value in values), chosen)
    Console(width=140).print(table)
    for name, measure in MEASURES.items():
        gains = [measure(ways["tuned"]) - measure(ways["published"]) for ways in found.values()]
        spread = f" (sd {100 * statistics.stdev(gains):.1f})" if len(gains) > 1 else ""
        each = ", ".join(f"{100 * gain:+.1f}" for gain in gains)
        mean = 100 * statistics.mean(gains)
        sys.stdout.write(f"{name}: tuned less published {mean:+.1f} points{spread}; by seed {each}\n")


def balanced(found: Found) -> float:
    """Return the mean over stages of the balanced accuracy."""
    return statistics.mean(found["balanced"].values())


MEASURES = {
    "average accuracy": lambda found: found["average_accuracy"],
    "balanced accuracy": balanced,
    "forgetting": lambda found: found["forgetting"],
}


def draw(found: Mapping[int, Mapping[str, Found]], path: Path, title: str) -> None:
    """Draw each seed as a line from published to tuned, one panel a measure."""
    from canal.report.canvas import MARKERS, PALETTE, new_figure, save, styled

    @styled
    def figure() -> Any:
        drawn = new_figure(3.4 * len(MEASURES), 3.2)
        for axis, (name, measure) in zip(drawn.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
            for number, (seed, ways) in enumerate(found.items()):
                values = [100 * measure(ways[way]) for way in WAYS]
                colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
                axis.plot(WAYS, values, color=colour, marker=marker, label=f"seed {seed}")
            axis.set_title(name.capitalize())
            axis.set_ylabel("Test cells, %" if name != "forgetting" else "Points")
            axis.margins(x=0.25)
            axis.grid(True, axis="y")
        drawn.axes[0].legend()
        drawn.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        return drawn

    save(figure(), path)


if __name__ == "__main__":
    main()
