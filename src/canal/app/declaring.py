"""`canal validate` and `canal stage`: declare a stage, run the gate on it, and add it to params.yaml.

Also compares a stage's labels with the predictions of its parent's model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.label_maps import LabelMap, read_label_map
from canal.app.project import Project
from canal.config.branches import with_branch
from canal.config.layout import name_from
from canal.config.params import Config, Tuning
from canal.config.sections import BACKBONE, Continual
from canal.config.yaml_file import parse, save, with_stage
from canal.core.digests import file_digest
from canal.core.errors import (
    ConfigError,
    GateError,
    SourceError,
    TrainingError,
    no_such_file,
    tell,
    there_are,
)
from canal.core.progress import doing
from canal.data.prepare import PrepareSettings
from canal.data.prepared import PreparedCells
from canal.io.h5ad import open_h5ad
from canal.memory.answer import ExactAnnotator
from canal.model.load import CellAnnotator, load_model
from canal.quality.gate import (
    ParentComparison,
    check_contradictions,
    compare,
    contradiction_rule,
    contradictions,
    judge_file,
)
from canal.quality.verdict import RuleResult, Verdict
from canal.tuning.document import TUNED_FILE, Document, read_tuned, settings_of

if TYPE_CHECKING:
    import pandas as pd

LABELS_FILE = "validation/labels.json"
"""Where a model folder keeps the check of its stage's labels."""


def _require_stage(config: Config, stage: str) -> None:
    """Raise `ConfigError` unless params.yaml has this stage."""
    if stage not in config.stages:
        raise ConfigError(f"no stage {stage!r}{there_are(stage, config.stages)}")


def validate(file: Path, stage: str | None, root: Path | None = None) -> Verdict:
    """Run the gate on an h5ad file, with the declaration of a stage's source (default: the last stage)."""
    project = Project.open(root)
    config = project.config
    if stage is None:
        stage = config.last_stage
        tell(f"judged as the file of stage {stage}, the last of params.yaml; with --values as a new one")
    _require_stage(config, stage)
    source = config.stages[stage].source
    settings = PrepareSettings(config.min_genes(source), config.prepare.chunk_cells)
    subject = replace(project.candidate(stage), raw=file)
    return judge_file(subject, settings, config.gate, comparison=ask_parent(project, stage))


def free_name(file: Path, root: Path | None = None) -> str:
    """Return a name for a stage that params.yaml does not have, after the file's; a taken one is numbered."""
    config = Project.open(root).config
    taken = {*config.stages, *config.sources, BACKBONE}
    name = name_from(file.stem, "file")
    candidates = chain([name], (f"{name[:60]}-{i}" for i in count(2)))
    return next(one for one in candidates if one not in taken)


@dataclass(frozen=True)
class Addition:
    """A proposed stage: the text of params.yaml before and with it, and the verdict of the gate."""

    name: str
    before: str
    text: str
    verdict: Verdict


def propose_stage(
    name: str,
    source: dict[str, Any],
    parent: str | None,
    root: Path | None = None,
    fixed: bool = False,
    grow: int = 0,
) -> Addition:
    """Declare a new stage and run the gate on its file; nothing is written.

    The stage is tuned where params.yaml has a section ``tuning``, unless ``fixed``; it may add ``grow`` genes
    to its parent's panel.

    Raises
    ------
    CanalError
        If the declaration breaks a rule or the file cannot be read as declared.
    """
    project = Project.open(root)
    before = project.layout.params.read_text(encoding="utf-8")
    text = with_stage(before, name, source, parent, fixed, grow)
    proposed = Project(project.layout, parse(text))
    settings = PrepareSettings(proposed.config.min_genes(name), proposed.config.prepare.chunk_cells)
    subject = proposed.candidate(name)
    ask = ask_parent(proposed, name)
    return Addition(name, before, text, judge_file(subject, settings, proposed.config.gate, comparison=ask))


def add_stage(addition: Addition, commit: bool, root: Path | None = None) -> None:
    """Write the new params.yaml, and commit it if ``commit``.

    Raises
    ------
    GateError
        If the gate did not pass; params.yaml stays as it was.
    """
    require_passed(addition)
    project = Project.open(root)
    save(project.layout.params, addition.text, addition.before)
    if commit:
        project.commit(f"Add stage {addition.name}")


_OPTION_OF = {
    "batch": "--batch",
    "duplicates": "--duplicates sum",
    "gene_column": "--gene-column",
    "label": "--label",
    "label_map": "--drop LABEL or --map FILE",
    "layer": "--layer",
    "min_genes": "--min-genes",
    "values": "--values",
}
"""A key of a source -> the option that sets it of a stage that is not in params.yaml yet."""


def require_passed(addition: Addition) -> None:
    """Raise `GateError` unless the gate passed a proposed stage."""
    if not addition.verdict.passed:
        hints = " ".join(rule.hint for rule in addition.verdict.failures("error"))
        named = dict.fromkeys(re.findall(rf"sources\.{re.escape(addition.name)}\.(\w+)", hints))
        here = ", ".join(f"{key} is {_OPTION_OF[key]}" for key in named if key in _OPTION_OF)
        more = f". Of sources.{addition.name} above, {here} of this command" if here else ""
        if {"exclude", "where"} & {*named}:
            more += ". Cells that it says to leave out are left out of the file: adata[keep].write_h5ad(...)"
            more += "; canal validate FILE --values UNITS --failing cells.csv names all of them"
        raise GateError(f"stage {addition.name!r} was not added: its file does not pass the gate{more}")


def relearn(name: str, commit: bool, root: Path | None = None, dry_run: bool = False) -> list[str]:
    """Start a new branch of the lineage at stage ``name``; return the stages that are learned again."""
    project = Project.open(root)
    before = project.layout.params.read_text(encoding="utf-8")
    text, relearned = with_branch(before, name)
    if dry_run:
        return relearned
    save(project.layout.params, text, before)
    if commit:
        project.commit(f"Relearn {', '.join(relearned)}")
    return relearned


def declare_labelled(
    file: Path,
    declared: Mapping[str, Any],
    label_map: Path | Mapping[str, str | None] | None,
    root: Path | None,
    drop: Sequence[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Return the params.yaml entry of a labelled file, and the labels whose blanks at the ends it removes.

    ``declared`` holds ``label`` and ``values``, and what else is given; None counts as not given. A label map
    is handed over as such, or as the file that holds it; ``drop`` names labels whose cells are left out.

    Raises
    ------
    SourceError, ConfigError
        As `declare`; or if no cell has a label that is to be dropped.
    """
    given = {**declared, "label": declared.get("label") or "cell_type", "layer": declared.get("layer") or "X"}
    source = declare(file, given, label_map, root)
    if drop:
        labels = dict.fromkeys(label.strip() for label in labels_in(file, given["label"]))
        if unknown := [one for one in drop if one not in labels]:
            raise ConfigError(f"--drop {unknown[0]!r}: no cell has it{there_are(unknown[0], labels)}")
        kept = source.get("label_map") or {label: label for label in labels}
        source["label_map"] = {**kept, **dict.fromkeys(drop)}
    trimmed = trimmed_labels(file, given["label"], source.get("label_map"))
    if trimmed:
        source["label_map"] = (source.get("label_map") or {}) | trimmed
    return source, [label for label in trimmed if label != label.strip()]


def declare(
    file: Path,
    declared: Mapping[str, Any],
    label_map: Path | Mapping[str, str | None] | None,
    root: Path | None,
) -> dict[str, Any]:
    """Return the params.yaml entry of an h5ad file on disk.

    The path is relative to the project where the file is inside it; declared values that are None are left
    out. A label map is handed over as such, or as the file that holds it.

    Raises
    ------
    SourceError
        If there is no such file.
    ConfigError, DataError
        If the label map is neither a CSV of two columns nor a sheet in which every label is decided.
    """
    if not file.is_file():
        what = "give the path of an h5ad file"
        raise SourceError(f"{file} is no file; {what}" if file.exists() else no_such_file(file, what))
    path, project = file.resolve(), (root or Path.cwd()).resolve()
    inside = path.is_relative_to(project)
    entry: dict[str, Any] = {
        "path": (path.relative_to(project) if inside else path).as_posix(),
        "sha256": file_digest(file),
    }
    entry |= {name: value for name, value in declared.items() if value is not None}
    if label_map is not None:
        decided = read_label_map(label_map) if isinstance(label_map, Path) else LabelMap(label_map, {})
        entry["label_map"] = dict(decided.types)
        entry |= {"ontology": dict(decided.ontology)} if decided.ontology else {}
    return entry


def trimmed_labels(file: Path, column: str, given: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """Return the entries that a label map needs for labels with blanks at their ends.

    Parameters
    ----------
    file
        An h5ad file.
    column
        The column of obs that holds the labels.
    given
        The user's label map, without blanks; None returns entries for all labels if any has such blanks.
    """
    labels = labels_in(file, column)
    if given is not None:
        known = (label for label in labels if label not in given and label.strip() in given)
        return {label: given[label.strip()] for label in known}
    if all(label == label.strip() for label in labels):
        return {}
    return {label: label.strip() for label in labels}


def labels_in(file: Path, column: str) -> list[str]:
    """Return the labels in a column of a file's obs, sorted; none without the column, as the gate reports."""
    with open_h5ad(file) as opened:
        if column not in opened.obs_columns:
            return []
        return sorted(label for label in opened.obs_column(column).unique() if label.strip())


def ask_parent(project: Project, stage: str) -> ParentComparison | None:
    """Return a function that predicts cells with the model of a stage's parent; None where there is no model.

    A backbone has no cell types; the parent's model may not be learned yet, or not be on this disk.
    """
    parent = project.config.stages[stage].parent
    folder = project.layout.model(parent) / "model"
    if parent == BACKBONE or not folder.is_dir():
        return None

    def ask(prepared: PreparedCells, cell_ids: Sequence[str]) -> "pd.DataFrame":
        annotator = load_model(folder)
        predicted = zip(*answers_of(annotator, prepared, cell_ids), strict=True)
        answers = ["" if novel else label for label, novel in predicted]
        obs = prepared.obs.loc[list(cell_ids)]
        labels, types = obs["cell_type_original"].astype(str), obs["cell_type"].astype(str)
        return compare(list(labels), list(types), answers, annotator.labels)

    return ask


@doing("asking the model about the cells")
def answers_of(
    annotator: CellAnnotator, prepared: PreparedCells, cell_ids: Sequence[str]
) -> tuple[list[str], list[bool]]:
    """Return the likeliest type of some prepared cells by a model, and whether they are novel to it."""
    restricted = annotator.without(prepared.missing(annotator.genes))
    result = restricted.predict(prepared.expression(cell_ids, annotator.genes))
    return list(result.labels), [bool(novel) for novel in result.is_novel]


def contradicted(
    project: Project, stage: str, cell_ids: list[str]
) -> "tuple[pd.DataFrame, RuleResult] | None":
    """Return the cells whose label the parent's sums contradict by a high margin, and the rule's result."""
    config = project.config
    table = ask_sums(project, stage, cell_ids)
    if table is None:
        return None
    most = config.gate.max_contradiction
    rule = contradiction_rule(config.stages[stage].source, config.stages[stage].parent, most)
    docs = project.layout.data_docs(f"{stage}-cells")
    result = check_contradictions(table, rule, most, f"{stage}-cells", docs)
    return table[table["margin"] > most].sort_values("name"), result


def ask_sums(project: Project, stage: str, cell_ids: Sequence[str]) -> "pd.DataFrame | None":
    """Return what the parent's sums predict for a stage's cells (`canal.quality.gate.contradictions`).

    None where the parent keeps no sums.
    """
    parent = project.config.stages[stage].parent
    folder = project.layout.model(parent) / "model" / "exact"
    if parent == BACKBONE or not folder.is_dir():
        return None
    prepared, annotator = project.prepared(stage), ExactAnnotator.load(folder)
    restricted = annotator.without(prepared.missing(annotator.genes))
    known, types = annotator.classifier.labels, prepared.obs["cell_type"].astype(str)
    ids, answers, margins = list[str](), list[str](), list[float]()
    for chunk, expression in prepared.chunks(cell_ids, annotator.genes):
        result = restricted.predict(expression)
        own = [annotator.labels.index(name) if name in known else -1 for name in types.loc[chunk]]
        ids, answers = ids + chunk, answers + result.labels
        margins += (result.confidence - result.probabilities[np.arange(len(own)), own]).tolist()
    return contradictions(ids, list(types.loc[ids]), answers, np.array(margins), known)


def chosen_settings(project: Project, stage: str) -> Continual:
    """Return the settings of a stage: from params.yaml, or from its study where the stage is tuned.

    Raises
    ------
    TrainingError
        If the study has not run, or params.yaml now asks for another study.
    """
    path, tuning = project.layout.tuned(stage), project.config.study(stage)
    settings = settings_of(project.config, stage, path)
    if tuning is not None and read_tuned(path)["tuning"] != tuning.asked():
        raise TrainingError(
            f"{path.relative_to(project.layout.root)} was written by another study than params.yaml asks for "
            f"(section `tuning`): run `dvc repro`, which tunes {stage} again"
        )
    return settings


def tuning_of(project: Project, stage: str) -> Tuning:
    """Return the study settings of a stage.

    Raises
    ------
    ConfigError
        If there is no such stage, or it is not tuned.
    """
    config = project.config
    _require_stage(config, stage)
    tuning = config.study(stage)
    if tuning is None:
        settings = config.learning(stage)
        raise ConfigError(
            f"stage {stage!r} is not tuned: params.yaml sets lambda {settings.distillation:g} and "
            f"L {settings.bank_size}; tuned stages: {', '.join(config.tuned) or 'none'}"
        )
    return tuning


def tuned_document(project: Project, stage: str) -> Document:
    """Return the document of a stage's study: from ``tuned/``, else from the stage's model folder.

    Raises
    ------
    TrainingError
        If the study has not run.
    """
    tuning_of(project, stage)
    path, kept = project.layout.tuned(stage), project.layout.model(stage) / TUNED_FILE
    return read_tuned(path if path.is_file() or not kept.is_file() else kept)
