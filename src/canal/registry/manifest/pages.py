"""The pages of a version in MLflow, from the version's documents: description, tags, parameters, metrics.

Written when a version is registered, and compared by audits: tags from which versions are listed without
their files, a description, parameters and metrics of the logged model and of runs, and each accuracy linked
to the test cells that it was measured on.
"""

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from canal.core.digests import json_digest
from canal.core.files import read_json
from canal.data.split import read_split
from canal.registry.manifest import card
from canal.registry.manifest.version_folder import EVALUATION, Key, Record, parent_stage

if TYPE_CHECKING:
    from mlflow import MlflowClient


LONGEST = 6000
"""How many characters MLflow keeps of a parameter."""
TRIAL_MEASURES = ("accuracy", "retention", "harmonic_mean", "value")
"""Metrics of a trial's run."""
FLAG, FORMAT = "pages", 2
"""Field and format in record.json of versions that have such pages; earlier versions have no field.

Descriptions of format 1 lack limits, threshold and data, which later ones take from the model card.

Audits compare every word: a change of wording or figures is a new format.
"""

PREDICTIONS = "metrics/predictions.csv"
GENES, LABELS, COMBINATION = "model/genes.json", "model/labels.json", "model/combination.json"
SPLIT, VERDICT = "split/cells.csv", "validation/verdict.json"
SOURCES = (EVALUATION, PREDICTIONS, GENES, LABELS, COMBINATION, SPLIT, VERDICT, card.SOURCES)
"""The files of a version that the pages are made from, where it has them."""

LONGEST_PARAM = 500
"""Characters that MLflow's tables hold of a parameter of a logged model."""
_LONGEST_TEXT = 4900
_MOST_TYPES, _MOST_STAGES, _MOST_LINES = 60, 40, 12
_DIGITS = 32
_CONTEXTS = {"train": "training", "validation": "validation", "test": "testing"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#|~!])")


@dataclass(frozen=True)
class DataSet:
    """A set of cells of a stage, as a data set of MLflow.

    Attributes
    ----------
    name : str
        Stage and set, such as ``pbmc3k/test``.
    digest : str
        Of ids and cell types: the same cells have one digest in every version.
    context : str
        MLflow's name for the use of the set.
    counts : Mapping
        Cell type -> number of cells.
    """

    name: str
    digest: str
    context: str
    counts: Mapping[str, int]

    @property
    def stage(self) -> str:
        """The stage whose cells they are."""
        return self.name.rpartition("/")[0]

    @property
    def source(self) -> str:
        """The file of the cells, as JSON."""
        return json.dumps({"uri": f"splits/{self.stage}.csv"})

    @property
    def profile(self) -> str:
        """The number of cells, and of each cell type, as JSON."""
        return json.dumps({"num_rows": sum(self.counts.values()), "cell_types": self.counts})


@dataclass(frozen=True)
class Measure:
    """A metric of a logged model, and the set of cells that it was measured on, if it is one set."""

    name: str
    value: float
    data: DataSet | None = None


class Pages:
    """The pages of one version in MLflow.

    Parameters
    ----------
    folder : Path
        The version's files.
    key, record : dict
        Its key.json and record.json.
    """

    def __init__(self, folder: Path, key: Key, record: Record) -> None:
        self.folder, self.key, self.record = folder, key, record

    @property
    def stage(self) -> str:
        """Its stage, or ``backbone``."""
        return str(self.key["stage"])

    @cached_property
    def evaluation(self) -> Mapping[str, Any] | None:
        """Its evaluation.json; None for a backbone."""
        path = self.folder / EVALUATION
        document: Mapping[str, Any] | None = read_json(path) if path.is_file() else None
        return document

    @cached_property
    def tags(self) -> dict[str, str]:
        """Tags of the version, without ``canal.``: the columns of `canal versions`."""
        tags = {"parent_stage": parent_stage(self.key), "gate": self._gate}
        if self.evaluation is not None:
            tags |= {
                "accuracy": _text(self.evaluation["row"][self.stage]),
                "average_accuracy": _text(self.evaluation["average_accuracy"]),
                "types": str(len(self.evaluation["labels"])),
            }
        return tags

    @cached_property
    def params(self) -> dict[str, str]:
        """Parameters of its logged model: settings of the request, the choice of a study, and sizes."""
        settings = self.key["request"].get("backbone" if self.evaluation is None else "continual")
        params = dict(flat(settings or {})) | dict(self.key.get("choice") or {})
        params |= {"stage": self.stage, "parent": parent_stage(self.key) or "none"}
        params |= {name: self.key[name] for name in ("branch", "seed") if name in self.key}
        for name, file in (("genes", GENES), ("types", LABELS)):
            if (self.folder / file).is_file():
                params[name] = len(read_json(self.folder / file))
        return {name: str(value)[:LONGEST_PARAM] for name, value in sorted(params.items())}

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """Metrics of its logged model, and of its stage's run."""
        if self.evaluation is None:
            return ()
        measured = [Measure(name, value, data) for name, value, data in self._figures() if value is not None]
        if (path := self.folder / COMBINATION).is_file():
            measured.append(Measure("network_weight", float(read_json(path)["weight"])))
        return tuple(measured)

    @cached_property
    def data(self) -> tuple[DataSet, ...]:
        """Its training, validation and test cells."""
        return (*self._learned, *self._tests.values())

    def description(self, number: int) -> str:
        """Return the description of version ``number``, in Markdown."""
        lines = [*self._what(), "", *self._accuracies(), *self._types()]
        about, commit = self.record.get("imported_from"), self.record["git_commit"]
        if about is not None:
            lines.append(
                f"Imported: it was learned elsewhere as {_plain(about['model'])} {about['version']}."
            )
        code = f"commit {commit[:12]}" if commit else "code outside of git"
        changed = " and changes that were not committed" if self.record["dirty"] else ""
        lines += [f"Registered with {code}{changed}.", ""]
        if self.evaluation is None:
            lines.append("It answers no cells: stages are learned on it.")
        else:
            lines.append(
                f"To serve it: `canal promote {number} --by NAME --why REASON`, which asks the policy and "
                "writes the ledger. Not by an alias or a stage that is set on this page: `canal audit` finds "
                "what the ledger does not say."
            )
        if self.evaluation is not None and self.record.get(FLAG) != 1:
            own = card.Card("", self.stage, "", self.evaluation, card.read_sources(self.folder))
            lines += own.lines(_MOST_LINES, _plain)
        text = "\n".join(lines)
        return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."

    @cached_property
    def _gate(self) -> str:
        path = self.folder / VERDICT
        if not path.is_file():
            return "no verdict of its own"
        rules = read_json(path)["rules"]
        failed = [one for one in rules if not one["passed"]]
        warned = sum(one["severity"] == "warning" for one in failed)
        outcome = "passed" if len(failed) == warned else "FAILED"
        return f"{outcome}, {len(rules)} rules" + (
            f", {warned} warning{'s' * (warned > 1)}" if warned else ""
        )

    def _figures(self) -> Iterator[tuple[str, float | None, DataSet | None]]:
        evaluation = self.evaluation or {}
        for stage, one in evaluation["per_stage"].items():
            for name in ("accuracy", "balanced_accuracy", "macro_f1"):
                yield f"{name}.{stage}", one.get(name), self._tests.get(stage)
        for name, value in measures(evaluation).items():
            if not name.startswith("accuracy."):
                yield name, value, None

    @cached_property
    def _tests(self) -> dict[str, DataSet]:
        """Test cells by stage, from the predictions."""
        path = self.folder / PREDICTIONS
        if not path.is_file():
            return {}
        table = pd.read_csv(path, usecols=["cell_id", "stage", "truth"], dtype=str, keep_default_na=False)
        return {
            str(stage): _data_set(str(stage), "test", cells["cell_id"], cells["truth"])
            for stage, cells in table.groupby("stage", sort=False)
        }

    @cached_property
    def _learned(self) -> tuple[DataSet, ...]:
        path = self.folder / SPLIT
        if not path.is_file() or self.evaluation is None:
            return ()
        table = read_split(path)
        chosen = {name: table[table["set"] == name] for name in ("train", "validation")}
        return tuple(
            _data_set(self.stage, name, cells["cell_id"], cells["cell_type"])
            for name, cells in chosen.items()
            if len(cells)
        )

    def _what(self) -> Iterator[str]:
        if self.evaluation is None:
            yield f"**{_plain(self.stage)}**: weights that a lineage begins with."
            return
        parent = self.record["parent"]
        before = parent_stage(self.key)
        on = f" on {_plain(before)}" if before else ""
        number = f" ({parent['model']} {parent['version']})" if parent else ""
        size = f"{self.params['types']} cell types, {self.params['genes']} genes"
        if (merged := self.key.get("merged")) is not None:
            stages = ", ".join(map(_plain, merged["stages"]))
            yield f"**{_plain(self.stage)}**{number} merged with sums of {stages}: {size}."
            return
        yield f"**{_plain(self.stage)}** learned{on}{number}: {size}."

    def _accuracies(self) -> Iterator[str]:
        if self.evaluation is None:
            return
        rows = list(self.evaluation["per_stage"].items())
        yield from ("| test cells of | n | accuracy |", "| --- | ---: | ---: |")
        for stage, one in rows[-_MOST_STAGES:]:
            yield f"| {_plain(stage)} | {one['n']} | {one['accuracy']:.3f} |"
        names = {
            "average_accuracy": "Average",
            "forgetting": "forgetting",
            "h_score": "H-score of unknown types",
            "ece": "calibration error",
        }
        values = {one.name: one.value for one in self.measures}
        figures = [f"{word} {values[name]:.3f}" for name, word in names.items() if name in values]
        missing = [_plain(stage) for stage in self.evaluation["not_measured"]]
        yield ""
        yield f"{', '.join(figures)}." + (f" Not measured: {', '.join(missing)}." if missing else "")
        yield ""

    def _types(self) -> Iterator[str]:
        if self.evaluation is None:
            return
        labels = [_plain(one) for one in self.evaluation["labels"]]
        more = f" and {len(labels) - _MOST_TYPES} more" if len(labels) > _MOST_TYPES else ""
        yield f"Cell types: {', '.join(labels[:_MOST_TYPES])}{more}."
        yield ""
        yield f"Gate: {self._gate}."
        yield ""


def show(client: "MlflowClient", pages: Pages, run_id: str, model_id: str, parent_id: str | None) -> None:
    """Log the figures of a version's logged model, and inputs and outputs of its run, to MLflow.

    Parameters
    ----------
    client
        MLflow's client.
    pages
        The pages of the version.
    run_id
        The run of its stage.
    model_id, parent_id
        Its logged model, and that of its parent.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput, Metric

    client.log_model_params(model_id, pages.params)
    inputs = [
        DatasetInput(
            Dataset(one.name, one.digest, "local", one.source, profile=one.profile),
            [InputTag("mlflow.data.context", one.context)],
        )
        for one in pages.data
    ]
    client.log_inputs(run_id, inputs, [LoggedModelInput(parent_id)] if parent_id else [])
    client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
    now = int(time.time() * 1000)
    metrics = [
        Metric(
            one.name,
            one.value,
            now,
            0,
            model_id=model_id,
            dataset_name=one.data.name if one.data else None,
            dataset_digest=one.data.digest if one.data else None,
        )
        for one in pages.measures
    ]
    client.log_batch(run_id, metrics=metrics)


@dataclass(frozen=True)
class PageContent:
    """What was written to MLflow about a version, beside the tags that every version has."""

    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    measures: tuple[Measure, ...] = ()


def page_content(folder: Path, key: Key, record: Record, number: int) -> PageContent:
    """Return what was written to MLflow about version ``number``; empty for versions of an older canal."""
    if record.get(FLAG) not in (1, FORMAT):
        return PageContent()
    pages = Pages(folder, key, record)
    return PageContent(pages.description(number), pages.tags, pages.params, pages.measures)


def measures(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the metrics of an evaluation's run, from metrics/evaluation.json."""
    figures = {f"accuracy.{name}": value for name, value in evaluation["row"].items()}
    figures |= {
        name: evaluation.get(name) for name in ("average_accuracy", "forgetting", "backward_transfer")
    }
    figures |= {name: evaluation["novelty"].get(name) for name in ("h_score", "auroc")}
    if evaluation["calibration"]:
        before = evaluation["calibration"]["uncalibrated"]
        figures |= {"ece": evaluation["calibration"]["ece"], "ece_uncalibrated": before["ece"]}
    return figures


def flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every parameter with its dotted name."""
    for name, value in values.items():
        here = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from flat(value, here)
        else:
            yield here, value


def same(there: float | None, value: float) -> bool:
    """Whether MLflow shows a number as it was logged."""
    if there is None:
        return False
    return math.isclose(there, value, rel_tol=1e-12) or (math.isnan(there) and math.isnan(value))


def _data_set(stage: str, name: str, cell_ids: Iterable[str], cell_types: Iterable[str]) -> DataSet:
    pairs = sorted(zip(map(str, cell_ids), map(str, cell_types), strict=True))
    counts: dict[str, int] = {}
    for _, cell_type in pairs:
        counts[cell_type] = counts.get(cell_type, 0) + 1
    digest = json_digest(pairs)[:_DIGITS]
    return DataSet(f"{stage}/{name}", digest, _CONTEXTS[name], dict(sorted(counts.items())))


def _text(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def _plain(text: str) -> str:
    """Return a name with Markdown's special characters escaped."""
    return _SPECIAL.sub(r"\\\1", text)
