"""A GPU beside the CPU: the same answers, seconds of an epoch, and what bfloat16 changes and saves.

    python benchmarks/gpu.py [--preset small --genes 300 --cells 512] [--threads N] [--json]

Networks have random weights, cells are synthetic. Exit code 1 where torch sees no GPU, or a logit in float32
is further from the CPU's than the bound. With two GPUs and more a stage is also learned by two processes.
`--device cpu` tries the command itself where there is none: it compares the CPU with itself.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from engine import NEW, OLD, annotator_of, cells_of, task_of

from canal.config.sections import Backbone, Cache, Continual
from canal.continual.fit import Hooks
from canal.continual.pretraining import Corpus, pretrain
from canal.continual.trainer import learn_stage
from canal.model import Precision
from canal.model.annotator import Annotator
from canal.model.compute import precision
from canal.model.storage import PRESETS

MOST_APART = 1e-4
"""Bound of the difference of a logit in float32 between GPU and CPU."""

NO_GPU = (
    "canal: torch sees no GPU here, so nothing was checked: run `make gpu-check` on a machine with one, with "
    "a build of torch for it (TORCH_INDEX=https://download.pytorch.org/whl/cu126)"
)
_EPOCHS = 3


def main(given: list[str] | None = None) -> int:
    """Check and measure, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--cells", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(given)
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(f"{NO_GPU}\n")
        return 1
    torch.set_num_threads(asked.threads)
    found = {
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "shape": f"{asked.preset}, {asked.genes:,} genes, {asked.cells:,} cells, {asked.threads} threads",
        **answers(annotator_of(asked.preset, asked.genes), asked.cells, asked.device),
        **epochs(asked),
    }
    found["passed"] = found["float32_apart"] <= MOST_APART
    for name, value in found.items() if not asked.json else ():
        sys.stdout.write(f"{name.replace('_', ' '):<40} {_shown(value)}\n")
    if asked.json:
        sys.stdout.write(f"{json.dumps(found, indent=1)}\n")
    return 0 if found["passed"] else 1


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def answers(annotator: Annotator, n: int, device: str) -> dict[str, Any]:
    """Return how far logits are from the CPU's in float32 and bfloat16, and seconds of labelling."""
    expression = cells_of(n, len(annotator.genes), OLD, 5, "asked").expression

    def ask(where: str, dtype: Precision) -> tuple[np.ndarray, float]:
        annotator.on(where)
        with precision(dtype, where):
            annotator.predict(expression[:64])  # kernels are loaded by the first cells
            logits, seconds = timed(lambda: annotator.predict(expression).logits)
        return logits, seconds

    right, on_cpu = ask("cpu", "float32")
    same, there = ask(device, "float32")
    rounded, rounded_there = ask(device, "bfloat16")
    annotator.on("cpu")
    return {
        "float32_apart": float(np.abs(same - right).max()),
        "bound_of_float32_apart": MOST_APART,
        "bfloat16_apart": float(np.abs(rounded - right).max()),
        "bfloat16_same_type": float((rounded.argmax(1) == right.argmax(1)).mean()),
        "label_cells_a_second_cpu": n / on_cpu,
        "label_cells_a_second_float32": n / there,
        "label_cells_a_second_bfloat16": n / rounded_there,
    }


def epochs(asked: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of a warm epoch of a stage and of pre-training, on CPU and device, and in bfloat16."""
    task = task_of(annotator_of(asked.preset, asked.genes), asked.cells)
    settings = Continual(max_epochs=_EPOCHS, patience=99)

    def stage(hooks: Hooks) -> dict[str, torch.Tensor]:
        return dict(learn_stage(task, settings, hooks).annotator.network.trained())

    found: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        hooks = {
            "cpu": Hooks(cache_dir=Path(scratch) / "cpu"),
            "float32": Hooks(cache_dir=Path(scratch) / "float32", device=asked.device),
            "bfloat16": Hooks(
                cache_dir=Path(scratch) / "bfloat16",
                device=asked.device,
                dtype="bfloat16",
                cache=Cache(dtype="bfloat16"),
            ),
        }
        learned = {}
        for name, own in hooks.items():
            learned[name], found[f"stage_seconds_an_epoch_{name}"] = warm_epoch(stage, own)
            _, found[f"pretraining_seconds_an_epoch_{name}"] = warm_epoch(
                lambda one: pretrain(*_corpus_of(asked), 0, one)[0], own
            )
        found["stage_weights_apart_float32"] = _apart(learned["float32"], learned["cpu"])
        found["stage_weights_apart_bfloat16"] = _apart(learned["bfloat16"], learned["cpu"])
        if asked.device == "cpu" or torch.cuda.device_count() > 1:
            two, seconds = warm_epoch(stage, replace(hooks["float32"], processes=2))
            found["stage_seconds_an_epoch_float32_by_two_processes"] = seconds
            found["stage_weights_apart_of_two_processes"] = _apart(two, learned["float32"])
    return found


def warm_epoch(learn: Callable[[Hooks], Any], hooks: Hooks) -> tuple[Any, float]:
    """Return what is learned, and the mean seconds of its epochs but the first."""
    marks: list[float] = []
    result = learn(replace(hooks, on_epoch=lambda _: marks.append(time.perf_counter())))
    return result, (marks[-1] - marks[0]) / (len(marks) - 1)


def _corpus_of(asked: argparse.Namespace) -> tuple[Any, ...]:
    """Return corpus, shape and settings of a pre-training."""
    shape = PRESETS[asked.preset].backbone
    panel = tuple(f"GENE{i}" for i in range(asked.genes))
    vectors = np.random.default_rng(0).normal(size=(asked.genes, shape.dim)).astype(np.float32)
    train, held_out = (
        cells_of(n, asked.genes, (*OLD, *NEW), seed, "corpus").expression
        for seed, n in enumerate((asked.cells, max(2, asked.cells // 8)))
    )
    settings = Backbone(preset=asked.preset, max_epochs=_EPOCHS, patience=99)
    return Corpus(panel, train, held_out, panel, vectors), shape, settings


def _apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of a weight."""
    return max(float((one[name] - value).detach().abs().max()) for name, value in other.items())


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what ``work`` returns, which is on the CPU, and the seconds that it took."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
