"""What `benchmarks/continual.py` measures of a rival on one draw of a stream."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from continual_rivals import Rival, without_type
from exact_figures import LEAST_KNOWN, studies_to_leave_out
from exact_learners import Answer, said
from exact_streams import Drawn, of_types
from sklearn.metrics import roc_auc_score

from canal.continual import evaluation as measures
from canal.continual.cells import LabelledCells
from canal.memory.prediction import (
    Calibration,
    expected_calibration_error,
    fit_calibration,
    quantile_threshold,
)

Figures = dict[str, Any]
_LEAST = 1e-12


def measured(kind: type[Rival], drawn: Drawn, of_studies: bool, with_left_out: bool) -> Figures:
    """Return a rival's figures: stage after stage, then with studies and with types left out."""
    names, rows, cost, rival = list(drawn.stages), [], Figures(), kind(drawn)
    answer: Answer | None = None
    for number, stage in enumerate(names):
        last = number + 1 == len(names)
        with watched() as spent:
            rival.learn(stage)
            answer = rival.answer() if last or not rival.joint else None
        if answer is not None:
            rows.append([accuracy_on(answer, drawn, name) for name in names[: number + 1]])
            cost = spent
    assert answer is not None
    kept = rival.kept()
    whole = rows if not rival.joint else [rows[-1]]
    found = {
        "matrix": rows,
        "average": measures.average_accuracy(whole),
        "forgetting": None if rival.joint else measures.forgetting(rows),
        "transfer": None if rival.joint else measures.backward_transfer(rows),
        **{f"on {name}": value for name, value in zip(names, rows[-1], strict=True)},
        **after_last(answer, drawn),
        "seconds": cost["seconds"],
        "cpu_seconds": cost["cpu_seconds"],
        "peak_mib": cost["peak_mib"],
        "cells_a_cpu_second": cells_a_cpu_second(answer, drawn),
        "bytes_kept": kept.n_bytes,
        "cells_kept": kept.n_cells,
    }
    if with_left_out:
        found |= types_left_out(kind, drawn)
        found |= studies_left_out(kind, drawn) if of_studies else {}
    return found


def learned(kind: type[Rival], drawn: Drawn, stages: Sequence[str]) -> Answer:
    """Return what a new rival answers after these stages and no others."""
    rival = kind(drawn)
    for stage in stages:
        rival.learn(stage)
    return rival.answer()


def accuracy_on(answer: Answer, drawn: Drawn, stage: str) -> float:
    """Return the accuracy on a stage's test cells."""
    cells = drawn.stages[stage]
    return measures.accuracy(cells.test.cell_types, said(answer, cells.test, cells.missing))


def after_last(answer: Answer, drawn: Drawn) -> Figures:
    """Return what is measured over the test cells of all stages; a type that is not known counts as wrong."""
    calibration = calibrated(answer, drawn, list(drawn.stages))
    truth, named, sure, likely = [], [], [], []
    for cells in drawn.stages.values():
        logits = answer.logits(cells.test, cells.missing)
        probabilities = calibration.probabilities(logits)
        truth.append(list(cells.test.cell_types))
        named.append([answer.labels[place] for place in logits.argmax(axis=1)])
        sure += probabilities.max(axis=1).tolist()
        places = {name: place for place, name in enumerate(answer.labels)}
        likely += [
            row[places[name]] if name in places else 0.0
            for name, row in zip(truth[-1], probabilities, strict=True)
        ]
    all_true, all_named = ([name for part in parts for name in part] for parts in (truth, named))
    right = np.array(all_true, dtype=object) == np.array(all_named, dtype=object)
    recalls = measures.recall_by_type(all_true, all_named)
    return {
        "types": measures.balanced_accuracy(all_true, all_named),
        "recall": {name: one["recall"] for name, one in recalls.items()},
        "macro_f1": float(np.mean([measures.macro_f1(*pair) for pair in zip(truth, named, strict=True)])),
        "macro_f1_pooled": measures.macro_f1(all_true, all_named),
        "ece": expected_calibration_error(np.array(sure), right),
        "nll": float(-np.log(np.maximum(likely, _LEAST)).mean()),
    }


def calibrated(answer: Answer, drawn: Drawn, stages: Sequence[str]) -> Calibration:
    """Return temperature and floor that fit validation cells and probes of types that the answer knows."""
    known = of_types(drawn.known(stages), answer.labels)
    parts = [answer.logits(known.of_stage(name), drawn.stages[name].missing) for name in known.stage_names]
    return fit_calibration(np.concatenate(parts), known.targets(answer.labels)) if parts else Calibration()


def novelty_of(
    answer: Answer, calibration: Calibration, cells: LabelledCells, missing: Sequence[str]
) -> np.ndarray:
    """Return the rival's own score of novelty, or else 1 less its calibrated confidence."""
    own = getattr(answer, "novelty", None)
    if own is not None:
        score: np.ndarray = own(cells, missing)
        return score
    rest: np.ndarray = 1 - calibration.probabilities(answer.logits(cells, missing)).max(axis=1)
    return rest


def threshold_of(answer: Answer, drawn: Drawn, stages: Sequence[str]) -> tuple[Calibration, float]:
    """Return the calibration, and the score that 5 % of known validation cells exceed."""
    calibration = calibrated(answer, drawn, stages)
    known = of_types(drawn.known(stages), answer.labels)
    scores = [
        novelty_of(answer, calibration, known.of_stage(name), drawn.stages[name].missing)
        for name in known.stage_names
    ]
    share = drawn.config.novelty.false_unassigned
    return calibration, quantile_threshold(np.concatenate(scores), share)


def types_left_out(kind: type[Rival], drawn: Drawn) -> Figures:
    """Return H-score and AUROC of noticing each type of ``novelty.holdouts``, never learned."""
    h_scores, aurocs = {}, {}
    for name in drawn.config.novelty.holdouts or ():
        if sum(one.test.cell_types.count(name) for one in drawn.stages.values()) < LEAST_KNOWN:
            continue
        rest = without_type(drawn, name)
        stages = list(rest.stages)
        answer = learned(kind, rest, stages)
        calibration, threshold = threshold_of(answer, rest, stages)
        scores, right, unknown = [], [], []
        for cells in drawn.stages.values():
            scores.append(novelty_of(answer, calibration, cells.test, cells.missing))
            named = np.array(said(answer, cells.test, cells.missing), dtype=object)
            true = np.array(cells.test.cell_types, dtype=object)
            right.append(named == true)
            unknown.append(true == name)
        score, hit, strange = (np.concatenate(parts) for parts in (scores, right, unknown))
        novel = score > threshold
        known = float((hit & ~novel)[~strange].mean())
        h_scores[name] = measures.harmonic_mean(known, float(novel[strange].mean()))
        aurocs[name] = float(roc_auc_score(strange, score))
    if not h_scores:
        return {}
    return {
        "h_score": float(np.mean(list(h_scores.values()))),
        "auroc": float(np.mean(list(aurocs.values()))),
        "h_score_by_type": h_scores,
    }


def studies_left_out(kind: type[Rival], drawn: Drawn) -> Figures:
    """Return how the others answer for each study that is left out, of types that they know."""
    found: dict[str, tuple[float, float, float]] = {}
    for name, others, test in studies_to_leave_out(drawn):
        missing = drawn.stages[name].missing
        answer = learned(kind, drawn, others)
        calibration, threshold = threshold_of(answer, drawn, others)
        named = said(answer, test, missing)
        novel = novelty_of(answer, calibration, test, missing) > threshold
        found[name] = (
            measures.accuracy(test.cell_types, named),
            measures.balanced_accuracy(test.cell_types, named),
            float(novel.mean()),
        )
    if not found:
        return {}
    means = np.mean(list(found.values()), axis=0)
    keys = ("left_out", "left_out_types", "left_out_unassigned")
    return dict(zip(keys, means.tolist(), strict=True)) | {
        f"without {name}": value for name, (value, _, _) in found.items()
    }


def cells_a_cpu_second(answer: Answer, drawn: Drawn) -> float:
    """Return how many test cells are answered in a processor second, in memory."""
    began = time.process_time()
    for cells in drawn.stages.values():
        answer.logits(cells.test, cells.missing)
    n_cells = sum(len(cells.test) for cells in drawn.stages.values())
    return n_cells / max(time.process_time() - began, 1e-6)


@contextmanager
def watched() -> Iterator[Figures]:
    """Fill in what the block took: wall and processor seconds, and how far resident memory grew."""
    spent = Figures()
    before = _fresh_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    after = _memory("VmHWM")
    spent["peak_mib"] = None if before is None or after is None else (after - before) / 1024


def _fresh_peak() -> int | None:
    """Set the largest resident memory back to today's, where Linux lets us, and return that, in KiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _memory("VmRSS")


def _memory(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found: Mapping[str, str] = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(found[key].split()[0]) if key in found else None
