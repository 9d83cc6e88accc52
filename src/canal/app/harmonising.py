"""`canal stage map`: propose a cell type for each label of a file; a person decides in the sheet."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from canal.annotation.columns import ONTOLOGY_ID as ID_COLUMN
from canal.annotation.harmonise import (
    ONTOLOGY_ID,
    Known,
    Label,
    Proposal,
    propose,
    write_map_sheet,
)
from canal.annotation.output import check_new
from canal.app.declaring import answers_of, declare
from canal.app.project import Project
from canal.config.sections import BACKBONE, Values
from canal.config.stage_sections import Source
from canal.core.errors import ConfigError, DataError, there_are
from canal.core.files import scratch_folder
from canal.data.prepare import CELLS, PrepareSettings, prepare
from canal.data.prepared import PreparedCells
from canal.io.arrays import listed
from canal.io.h5ad import open_h5ad
from canal.model.load import CellAnnotator, load_model
from canal.quality.gate import cells_to_compare

if TYPE_CHECKING:
    import pandas as pd

Notice = Callable[[str], None]
Answers = tuple[Counter[str], Counter[str]]
"""For how many cells each type is the likeliest, and how many of them are called so."""

CELLS_ASKED = 100
"""Cells of a label that the model is asked about at most, drawn by their content."""


@dataclass(frozen=True)
class MapOptions:
    """The options of `canal stage map`.

    Attributes
    ----------
    declared : dict
        ``label``, ``values``, ``layer``, ``batch``, ``gene_column`` and ``min_genes`` as for
        `canal stage add`; None counts as not given. Without ``values`` the model is not asked.
    ontology : str or None
        The column of obs with Cell Ontology ids; by default CELLxGENE's, where the file has it.
    parent : str or None
        The stage whose model is asked; by default the last, or the last learned one before it.
    """

    declared: Mapping[str, Any]
    ontology: str | None = None
    parent: str | None = None


@dataclass(frozen=True)
class Harmonised:
    """The proposals for the labels of a file.

    Attributes
    ----------
    label : str
        The column of obs.
    stage : str or None
        The stage whose model was asked; None where no model was.
    unlabelled : int
        Cells without a label, which are in no line.
    proposals : list of Proposal
        Ambiguous ones first.
    """

    label: str
    stage: str | None
    unlabelled: int
    proposals: Sequence[Proposal]

    def to_json(self) -> dict[str, Any]:
        """Return the proposals as JSON values."""
        return {
            "label": self.label,
            "model": self.stage,
            "unlabelled": self.unlabelled,
            "ambiguous": sum(bool(one.reasons) for one in self.proposals),
            "labels": [one.row() for one in self.proposals],
        }


def map_labels(
    file: Path,
    sheet: Path | None,
    options: MapOptions,
    overwrite: bool,
    notice: Notice,
    root: Path | None = None,
) -> Harmonised:
    """Propose a cell type for each label of a file, and write the sheet.

    Parameters
    ----------
    file
        A labelled h5ad file.
    sheet
        The CSV file to write; None writes none.
    notice
        Receives messages: which model was asked, or why none.

    Raises
    ------
    CanalError
        If the file cannot be read as declared, lacks a column, or the sheet may not be written.
    """
    if sheet is not None:
        if sheet.suffix != ".csv":
            raise DataError(f"{sheet}: the sheet is a CSV file: give an output that ends in .csv")
        check_new(sheet, overwrite)
    project = Project.open(root)
    column = str(options.declared.get("label") or "cell_type")
    table = _labels(file, column, options.ontology, notice)
    parent = options.parent or next(reversed(project.config.stages), BACKBONE)
    stage, annotator = _model(project, parent)
    answers: dict[str, Answers] = {}
    if annotator is None:
        notice("no learned model to ask: proposals by name and ontology id alone")
    elif options.declared.get("values") is None:
        stage = None
        notice("--values is not given, so the model is not asked: by name and ontology id alone")
    else:
        answers = _ask(project, file, options.declared, annotator, notice)
        stage = stage if answers else None
        if answers:
            notice(f"the model of stage {stage} was asked about up to {CELLS_ASKED} cells of each label")
    labelled = table[table["label"] != ""]
    labels = [
        Label(str(name), len(own), tuple(sorted({*own["id"]} - {""})), *answers.get(str(name), ()))
        for name, own in labelled.groupby("label", sort=True)
    ]
    if not labels:
        raise DataError(f"{file}: obs[{column!r}] holds no label: name another column with --label")
    proposals = propose(labels, _known(project, parent, annotator))
    if sheet is not None:
        write_map_sheet(sheet, proposals)
    return Harmonised(column, stage, len(table) - len(labelled), proposals)


def _labels(file: Path, name: str, ontology: str | None, notice: Notice) -> "pd.DataFrame":
    """Return the label of each cell, without blanks at its ends, and its ontology id; ``""`` for none."""
    with open_h5ad(file) as opened:
        labels = opened.obs_column(name).str.strip()
        if ontology is None and ID_COLUMN not in opened.obs_columns:
            return labels.to_frame("label").assign(id="")
        ids = opened.obs_column(ontology or ID_COLUMN)
    valid = ids.str.fullmatch(ONTOLOGY_ID)
    if not valid.any():
        problem = (
            f"{file}: obs[{ontology or ID_COLUMN!r}] holds no id of the Cell Ontology, such as CL:0000236; "
            f"it holds {listed(sorted(set(ids)))}"
        )
        if ontology is not None:
            raise DataError(problem)
        notice(f"{problem}: proposals are made without ids")
    return labels.to_frame("label").assign(id=ids.where(valid, ""))


def _model(project: Project, parent: str) -> tuple[str | None, CellAnnotator | None]:
    """Return the stage, ``parent`` or the last before it, whose model is on this disk, and the model."""
    stages = project.config.stages
    if parent != BACKBONE and parent not in stages:
        raise ConfigError(f"no stage {parent!r}{there_are(parent, stages)}")
    while parent != BACKBONE:
        folder = project.layout.model(parent) / "model"
        if folder.is_dir():
            return parent, load_model(folder)
        parent = stages[parent].parent
    return None, None


def _ask(
    project: Project, file: Path, declared: Mapping[str, Any], annotator: CellAnnotator, notice: Notice
) -> dict[str, Answers]:
    """Return the model's answers for cells of each label; none where the file lacks most of its genes."""
    given = {**declared, "label": declared.get("label") or "cell_type", "layer": declared.get("layer") or "X"}
    if given["values"] not in get_args(Values):
        raise ConfigError(
            f"--values {given['values']!r}: expected the units of {file}, {', '.join(get_args(Values))}"
        )
    entry = declare(file, given, None, project.layout.root)
    source = Source.model_validate(entry)
    settings = project.config.prepare
    min_genes = settings.min_genes if source.min_genes is None else source.min_genes
    with scratch_folder("labels") as folder:
        prepare(file, "file", source, PrepareSettings(min_genes, settings.chunk_cells), folder / "prepared")
        prepared = PreparedCells(folder / "prepared" / CELLS)
        lacking = prepared.missing(annotator.genes)
        share = 1 - len(lacking) / len(annotator.genes)
        if share < project.config.gate.coverage_hard:
            notice(
                f"the file has {share:.0%} of the model's {len(annotator.genes)} genes, so the model is not "
                "asked (--gene-column names the column of var with gene symbols): by name and id alone"
            )
            return {}
        ids = cells_to_compare(prepared, most=CELLS_ASKED)
        if not ids:
            notice(f"no cell has {min_genes} expressed genes (--min-genes), so the model is not asked")
            return {}
        labels = prepared.obs.loc[ids, "cell_type_original"].str.strip()
        counted: dict[str, Answers] = {}
        for label, answer, novel in zip(labels, *answers_of(annotator, prepared, ids), strict=True):
            likeliest, assigned = counted.setdefault(label, (Counter(), Counter()))
            likeliest[answer] += 1
            assigned[answer] += not novel
    return counted


def _known(project: Project, parent: str, annotator: CellAnnotator | None) -> Known:
    """Return the types of the model and of the stages that ``parent`` builds on, with their ids."""
    config = project.config
    lineage = [] if parent == BACKBONE else [*config.ancestors(parent), parent]
    learned = () if annotator is None else annotator.labels
    types, ids = dict.fromkeys(learned), dict[str, str]()
    for stage in lineage:
        source = config.sources[config.stages[stage].source]
        ids |= source.ontology
        if source.label_map is not None:
            types |= dict.fromkeys(name for name in source.label_map.values() if name)
        elif project.layout.split(stage).is_file():
            types |= dict.fromkeys(map(str, project.split(stage)["cell_type"].unique()))
    return Known(tuple(types), tuple(learned), ids | dict(annotator.ontology if annotator else {}))
