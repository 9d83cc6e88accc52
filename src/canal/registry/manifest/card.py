"""The model card of a version, from its documents: use, data with licences, types, limits, unknown cells.

One card for the page of `canal report`, README.md among a version's files, in a bundle and beside the scores
of a stage, and the description of the version in MLflow.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal.config.layout import Layout
from canal.config.params import Config
from canal.core.files import new_file, read_json, write_json
from canal.core.progress import count, percent
from canal.data.split import SUMMED, read_split
from canal.memory.stage_sums import SUMS
from canal.memory.sums import Sums
from canal.registry.manifest.version_folder import KEY_FILE

Document = Mapping[str, Any]
Sections = list[tuple[str, list[str]]]

README, SOURCES = "README.md", "sources.json"
"""The card, and what it says of the data: files of a version that record.json covers."""
LOW_RECALL = 0.8
"""A type below it is named among the limits."""

_SPLIT = "split/cells.csv"
_USE = (
    "Labels cells of single-cell RNA-seq data of the tissues it learned, as a first draft that a person "
    "checks. Not for diagnosis or decisions about patients."
)
_ETHICS = (
    "Cells come from people. A version may keep cells and sums of them (bank, probe, sums); a withdrawn "
    "consent is honoured by canal unlearn and canal erase. Sums are not anonymous."
)
_UNTESTED = "On tissues, species and technologies other than those of its test cells nothing was measured."


@dataclass(frozen=True)
class Declared:
    """What params.yaml says of a source; empty where it says nothing."""

    licence: str = ""
    citation: str = ""


def training_data(folder: Path, stage: str, source: str, declared: Declared) -> Iterator[Document]:
    """Yield what a card says of the data of a stage, and of those of another lineage merged with it.

    Parameters
    ----------
    folder
        Model or version of the stage: its split is counted, where it is there, and the cells in merged sums.
    """
    yield _own_data(folder, stage, source, declared)
    key = read_json(folder / KEY_FILE) if (folder / KEY_FILE).is_file() else {}
    merged = key.get("merged") or {"stages": {}}
    for name in merged["stages"]:
        path = folder / SUMS / f"{name}.safetensors"
        sums = Sums.load(path) if path.is_file() else None
        yield {
            "stage": name,
            "source": "",
            "licence": "",
            "citation": f"merged from another lineage ({merged['other'][:12]}), whose card cites its data",
            "cells": None if sums is None else int(sums.counts.sum()),
            "donors": None,
            "types": {} if sums is None else dict(zip(sums.types, sums.counts.tolist(), strict=True)),
        }


def _own_data(folder: Path, stage: str, source: str, declared: Declared) -> Document:
    facts: dict[str, Any] = {
        "stage": stage,
        "source": source,
        "licence": declared.licence,
        "citation": declared.citation,
        "cells": None,
        "donors": None,
        "types": {},
    }
    if not (folder / _SPLIT).is_file():
        return facts
    table = read_split(folder / _SPLIT)
    table = table[table["set"].isin(SUMMED)]
    donors = set(table["batch"]) - {""}
    counts = dict(sorted(Counter(table["cell_type"]).items()))
    return {**facts, "cells": len(table), "donors": len(donors) or None, "types": counts}


def lineage_data(layout: Layout, config: Config, stage: str) -> list[Document]:
    """Return `training_data` of a stage of params.yaml and of its ancestors, oldest first."""
    if stage not in config.stages:
        return []
    named = [(one, config.stages[one].source) for one in (*config.ancestors(stage), stage)]
    return [
        data
        for one, source in named
        for data in training_data(layout.model(one), one, source, declared(config, source))
    ]


def declared(config: Config, source: str) -> Declared:
    """Return what params.yaml says of a source that it may have no more."""
    found = config.sources.get(source)
    return Declared() if found is None else Declared(found.licence or "", found.citation or "")


def read_sources(folder: Path) -> list[Document]:
    """Return what a version's card says of its data, oldest stage first; an older canal said nothing."""
    path = folder / SOURCES
    sources: list[Document] = read_json(path)["stages"] if path.is_file() else []
    return sources


def write_sources(folder: Path, sources: Sequence[Document]) -> None:
    """Write what a version's card says of its data into the version's folder."""
    write_json(folder / SOURCES, {"format": 1, "stages": list(sources)})


@dataclass(frozen=True)
class Card:
    """The model card of a version.

    Attributes
    ----------
    name : str
        Of the model, with the version's number where it has one.
    stage, key : str
    evaluation : Mapping
        evaluation.json.
    sources : sequence of Mapping
        `training_data` of each stage, as far as they are known.
    """

    name: str
    stage: str
    key: str
    evaluation: Document
    sources: Sequence[Document] = ()

    def sections(self) -> Sections:
        """Return the headings of the Hugging Face model card, each with its sentences."""
        return [
            ("Intended use", [_USE, self.types]),
            ("Evaluation", list(self._measured()) or ["No test cells of it are here."]),
            ("Limits", [*self.limits, _UNTESTED]),
            ("Unknown cells", [self.unknown]),
            (
                "Training data",
                self.data or ["It was learned elsewhere, and nothing is declared of its data."],
            ),
            ("Ethics", [_ETHICS]),
            ("Version", [f"{self.name} ({self.stage}), key {self.key}."]),
        ]

    @property
    def types(self) -> str:
        """Its cell types, with the number of training cells of each."""
        counts: Counter[str] = Counter()
        for one in self.sources:
            counts.update(one["types"])
        labels = self.evaluation["labels"]
        named = (f"{name} ({count(counts[name])})" if counts[name] else name for name in labels)
        return f"Knows {count(len(labels), 'cell type')}: {', '.join(named)}."

    @property
    def data(self) -> list[str]:
        """A sentence about the data of each stage: citation, licence, cells and donors."""
        return [_of_stage(one) for one in self.sources]

    @property
    def limits(self) -> list[str]:
        """Every type of low recall, the lowest first."""
        low = [
            (one["recall"], stage, name, one["n"])
            for stage, measured in self.evaluation["per_stage"].items()
            for name, one in (measured.get("recall") or {}).items()
            if one["recall"] < LOW_RECALL
        ]
        return [
            f"{name} of {stage}: {percent(recall)} of {count(n, 'test cell')} named rightly."
            for recall, stage, name, n in sorted(low)
        ] or [f"No type has a recall below {percent(LOW_RECALL)}."]

    @property
    def unknown(self) -> str:
        """From which novelty on a cell is called Unassigned, and how well that was measured."""
        novelty = self.evaluation["novelty"]
        threshold, h_score = novelty.get("threshold"), novelty.get("h_score")
        if threshold is None:
            return "It has no threshold: no cell is called Unassigned."
        measured = "" if h_score is None else f" H-score of left-out types {h_score:.3f}."
        return f"Cells of a novelty above {threshold:.3f} are called Unassigned.{measured}"

    def lines(self, most: int, plain: Callable[[str], str]) -> Iterator[str]:
        """Yield limits, threshold and data in Markdown, at most so many of each, names made ``plain``."""
        for heading, found in (
            ("Limits", self.limits),
            ("Unknown cells", [self.unknown]),
            ("Data", self.data),
        ):
            if found:
                yield from ("", f"{heading}:", "", *(f"- {plain(one)}" for one in found[:most]))
            if len(found) > most:
                yield f"- and {len(found) - most} more: {README} among its artifacts"

    def markdown(self) -> str:
        """Return the card as README.md, with the header that Hugging Face reads."""
        header, lines = self._header(), ["---"]
        # JSON is YAML, whatever a stage or a licence is called.
        lines += [f"{name}: {json.dumps(value)}" for name, value in header.items()]
        lines += ["---", "", f"# {marked(self.name)}: {marked(self.stage)}", ""]
        for heading, sentences in self.sections():
            lines += [f"## {heading}", "", *(f"- {marked(one)}" for one in sentences), ""]
        return "\n".join(lines)

    def write(self, path: Path) -> Path:
        """Write the card as README.md, and return its path."""
        with new_file(path) as temporary:
            temporary.write_text(self.markdown(), encoding="utf-8")
        return path

    def _header(self) -> dict[str, Any]:
        licences = sorted({one["licence"] for one in self.sources if one["licence"]})
        row = self.evaluation["row"]
        results = {stage: value for stage, value in row.items() if value is not None}
        return {
            "library_name": "canal-cells",
            "tags": ["single-cell", "rna-seq", "cell-type-annotation", "continual-learning"],
            "license": licences[0] if len(licences) == 1 else "other" if licences else "unknown",
            "model_name": f"{self.name} ({self.stage})",
            "metrics": ["accuracy"],
            "canal": {"key": self.key, "accuracy": results, "licences_of_data": licences},
        }

    def _measured(self) -> Iterator[str]:
        measured = self.evaluation["per_stage"]
        for stage in (name for name in self.evaluation["stages"] if name in measured):
            one = measured[stage]
            yield (f"{stage}: {percent(one['accuracy'])} of {count(one['n'], 'test cell')} named rightly.")
        if (error := (self.evaluation["calibration"] or {}).get("ece")) is not None:
            yield f"Calibration error {error:.3f}."
        for stage, why in self.evaluation["not_measured"].items():
            yield f"{stage}: not measured ({why})."


def _of_stage(one: Document) -> str:
    cells = "" if one["cells"] is None else f"; {count(one['cells'], 'training cell')}"
    if (donors := one["donors"]) is not None:
        cells += f" of {donors:,} donors or batches" if donors > 1 else ", donors not told apart"
    citation = one["citation"].rstrip(".") or "no citation declared"
    return f"{one['stage']}: {citation}; licence {one['licence'] or 'not declared'}{cells}."


def marked(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>#|!&])", r"\\\1", " ".join(text.split()))
