"""Harmonise labels: propose a cell type for each label of a file, and read the sheet that a person decides.

A proposal has three witnesses: the model's answers for the label's cells, Cell Ontology ids, and names. Where
they disagree or are too weak the row is marked, its cell type is left empty, and a person has to fill it in.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from canal.annotation.sheet import read_lines
from canal.core.errors import DataError
from canal.core.files import new_file
from canal.data.prepare import is_no_type
from canal.io.arrays import EXAMPLES
from canal.io.writer import as_text, original, writing

DROP = "drop"
"""What a sheet says of a label whose cells are left out; params.yaml's word for it, null, is read, too."""

COLUMNS = (
    *("label", "n_cells", "cell_type", "ambiguous", "proposed", "by", "model_type", "model_share"),
    *("unassigned", "label_id", "ontology_id", "note"),
)
NEEDED = ("label", "cell_type")

LEAST_SHARE = 0.5
"""Share of a label's cells that the model has to call one type for its answer to count."""
CLEAR_SHARE = 0.8
"""Share from which the model's answer counts where neither id nor name say the same."""
FEWEST_CELLS = 5
_LIKE = 0.75
"""Least similarity (difflib) of a name that is told to be like another."""

BY_ID, BY_NAME, BY_MODEL, BY_LIKENESS, NEW = "ontology id", "name", "model", "similar name", "new type"

ONTOLOGY_ID = re.compile(r"CL:[0-9]{7}")
_GREEK = str.maketrans("αβγδ", "abgd")
_MINUS = re.compile(r"(?<=\w)[-−–](?!\w)")
_CELLS = re.compile(r"\b(cells?|positive)\b")


@dataclass(frozen=True)
class Label:
    """What is known of one label of a file.

    Attributes
    ----------
    name : str
        The label, without blanks at its ends.
    n_cells : int
        Number of its cells.
    ids : tuple of str
        Cell Ontology ids of its cells, as the file has them.
    answers : dict
        How many of its cells the model calls each type; ``""`` for `Unassigned`. Empty without a model.
    """

    name: str
    n_cells: int
    ids: tuple[str, ...] = ()
    answers: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Known:
    """The cell types that a stage may meet: all of them, those of the model, and their ids.

    Attributes
    ----------
    types : tuple of str
        Cell types of the model and of the stages before.
    learned : tuple of str
        Those that the model can answer.
    ids : dict
        Cell Ontology ids by cell type.
    """

    types: tuple[str, ...]
    learned: tuple[str, ...] = ()
    ids: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Proposal:
    """The proposal for one label.

    Attributes
    ----------
    label : Label
    proposed : str
        A cell type, `DROP`, or ``""`` where there is none to propose.
    by : str
        The witness that it follows.
    reasons : tuple of str
        Why a person has to decide; empty where the proposal is clear.
    ontology_id : str
        The Cell Ontology id of the proposed type, where one is known.
    """

    label: Label
    proposed: str
    by: str
    reasons: tuple[str, ...] = ()
    ontology_id: str = ""

    @property
    def cell_type(self) -> str:
        """The proposed type where it is clear, else ``""``."""
        return "" if self.reasons else self.proposed

    @property
    def compared(self) -> int:
        """How many cells the model was asked about."""
        return sum((self.label.answers or {}).values())

    @property
    def model_type(self) -> str:
        """The known type that the model gives most often; ``""`` without one."""
        return _most(self.label)[0]

    @property
    def model_share(self) -> float | None:
        """The share of the cells asked about that the model calls so; None without any."""
        return _most(self.label)[1] / self.compared if self.compared else None

    @property
    def unassigned(self) -> float | None:
        """The share that the model calls Unassigned."""
        return (self.label.answers or {}).get("", 0) / self.compared if self.compared else None

    def row(self) -> dict[str, object]:
        """Return the line of the sheet, with the values of `COLUMNS`."""
        return {
            "label": self.label.name,
            "n_cells": self.label.n_cells,
            "cell_type": self.cell_type,
            "ambiguous": "; ".join(self.reasons),
            "proposed": self.proposed,
            "by": self.by,
            "model_type": self.model_type,
            "model_share": _rounded(self.model_share),
            "unassigned": _rounded(self.unassigned),
            "label_id": " ".join(self.label.ids),
            "ontology_id": self.ontology_id,
            "note": "",
        }


def propose(labels: Sequence[Label], known: Known) -> list[Proposal]:
    """Return a proposal for each label: ambiguous ones first, then by falling number of cells."""
    proposals = [_propose(label, known) for label in labels]
    by_type: dict[str, list[str]] = {}
    for one in proposals:
        if one.proposed not in ("", DROP):
            by_type.setdefault(plain(one.proposed), []).append(one.label.name)
    told = []
    for one in proposals:
        others = [name for name in by_type.get(plain(one.proposed), []) if name != one.label.name]
        if others and one.proposed != DROP:
            one = replace(one, reasons=(*one.reasons, f"{_some(others)} would become the same type"))
        told.append(replace(one, ontology_id=_id_of(one, known, alone=not others)))
    return sorted(told, key=lambda one: (not one.reasons, -one.label.n_cells, one.label.name))


def plain(name: str) -> str:
    """Return a name without what does not tell types apart: case, punctuation, blanks, ``cell``, plurals.

    A minus behind a marker stays (``CD8-`` is not ``CD8+``), and Greek letters are Latin ones (``γδ T``).
    """
    folded = unicodedata.normalize("NFKC", name).casefold().translate(_GREEK)
    words = re.sub(r"[\W_]+", " ", _CELLS.sub(" ", _MINUS.sub(" neg ", folded))).split()
    return "".join(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words)


def _propose(label: Label, known: Known) -> Proposal:
    """Return the proposal for one label, without regard to the others."""
    if is_no_type(label.name):
        return Proposal(label, DROP, BY_NAME)
    by_plain: dict[str, list[str]] = {}
    for name in known.types:
        by_plain.setdefault(plain(name), []).append(name)
    same = [label.name] if label.name in known.types else by_plain.get(plain(label.name), [])
    like = [] if same else get_close_matches(plain(label.name), list(by_plain), n=1, cutoff=_LIKE)
    model_type, n = _most(label)
    asked = sum((label.answers or {}).values())
    share = n / asked if asked else 0.0
    witnesses = {
        BY_ID: next((name for name, term in (known.ids or {}).items() if (term,) == label.ids), ""),
        BY_NAME: same[0] if same else "",
        BY_MODEL: model_type if share >= LEAST_SHARE else "",
    }
    by = next((witness for witness, name in witnesses.items() if name), "")
    proposal = Proposal(label, witnesses.get(by, ""), by)
    reasons = _disagreement(witnesses, share, asked)
    if len(label.ids) > 1:
        reasons.append(f"its cells have {len(label.ids)} ontology ids ({_some(label.ids)})")
    if len(same) > 1:
        reasons.append(f"known types are spelt like it: {_some(same)}")
    if by == BY_MODEL:
        reasons += _doubts_of_model(proposal, share, by_plain[like[0]][0] if like else "")
    elif by:
        reasons += _doubts_of_cells(proposal, known) if not reasons else []
    elif like:
        proposal = replace(proposal, proposed=by_plain[like[0]][0], by=BY_LIKENESS)
        reasons.append(f"no known type has this name; it is like {proposal.proposed!r}")
    else:
        proposal, doubts = _new(proposal, known)
        reasons += doubts
    return replace(proposal, reasons=tuple(reasons))


def _new(proposal: Proposal, known: Known) -> tuple[Proposal, list[str]]:
    """Return the proposal of a label that nothing known speaks for, and what is doubtful of a new type."""
    new = replace(proposal, proposed=proposal.label.name, by=NEW)
    if not known.types or (proposal.unassigned or 0.0) >= LEAST_SHARE:
        return new, []
    if proposal.compared == 0:
        return new, ["no known type has this name or id: a new type, or one of those under another name"]
    counts = Counter({name or "Unassigned": n for name, n in (proposal.label.answers or {}).items()})
    shares = ", ".join(f"{name} {n / proposal.compared:.0%}" for name, n in counts.most_common(3))
    return replace(new, proposed="", by=""), [f"the model calls its cells {shares}, and no name or id tells"]


def _disagreement(witnesses: Mapping[str, str], share: float, asked: int) -> list[str]:
    """Return a sentence where the witnesses name more than one type."""
    if len({name for name in witnesses.values() if name}) < 2:
        return []
    said = {
        BY_ID: "its ontology id says {}",
        BY_NAME: "its name says {}",
        BY_MODEL: f"the model calls {share:.0%} of {asked} cells {{}}",
    }
    return [", ".join(said[by].format(name) for by, name in witnesses.items() if name)]


def _doubts_of_model(proposal: Proposal, share: float, like: str) -> list[str]:
    """Return what is doubtful of a type that the model alone speaks for."""
    doubts = []
    if share < CLEAR_SHARE:
        doubts.append(f"only {share:.0%} of {proposal.compared} cells look like {proposal.proposed}")
    if proposal.compared < FEWEST_CELLS:
        doubts.append(f"the model was asked about {proposal.compared} cells alone")
    if like and like != proposal.proposed:
        doubts.append(f"its name is like {like!r}, the model says {proposal.proposed}")
    return doubts


def _doubts_of_cells(proposal: Proposal, known: Known) -> list[str]:
    """Return what the model's answers say against a type that id or name speak for."""
    if proposal.proposed not in known.learned or proposal.compared < FEWEST_CELLS:
        return []
    share = (proposal.label.answers or {}).get(proposal.proposed, 0) / proposal.compared
    if share >= LEAST_SHARE:
        return []
    return [
        f"only {share:.0%} of {proposal.compared} cells look like {proposal.proposed}, "
        f"{proposal.unassigned or 0.0:.0%} are Unassigned"
    ]


def _id_of(proposal: Proposal, known: Known, alone: bool) -> str:
    """Return the id of the proposed type: the known one, or that of a label which is the type itself."""
    if term := (known.ids or {}).get(proposal.proposed):
        return term
    itself = alone and proposal.by in (BY_NAME, NEW) and proposal.proposed != DROP
    return proposal.label.ids[0] if itself and len(proposal.label.ids) == 1 else ""


def _most(label: Label) -> tuple[str, int]:
    """Return the known type that most of a label's cells are called, and how many."""
    counts = [(name, n) for name, n in (label.answers or {}).items() if name]
    return min(counts, key=lambda item: (-item[1], item[0]), default=("", 0))


def _rounded(share: float | None) -> float | str:
    return "" if share is None else round(share, 3)


# The sheet.


def write_map_sheet(sheet: Path, proposals: Sequence[Proposal]) -> None:
    """Write a sheet with a line for each label, to be decided by a person."""
    with (
        writing(sheet),
        new_file(sheet) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for one in proposals:
            writer.writerow({name: as_text(str(value)) for name, value in one.row().items()})


@dataclass(frozen=True)
class LabelMap:
    """The decisions of a sheet: a cell type or None (left out) by label, and ids by cell type."""

    types: Mapping[str, str | None]
    ontology: Mapping[str, str]


def read_map_sheet(sheet: Path) -> LabelMap:
    """Read a sheet in which a person decided the cell type of every label.

    Raises
    ------
    DataError
        If a label is undecided or stands twice, a cell type is a word for no type, an id is none of the Cell
        Ontology, or a type has two ids or two types have one.
    """
    lines = read_lines(sheet, NEEDED, "canal stage map FILE.h5ad", optional=("ontology_id", "label_id"))
    types: dict[str, str | None] = {}
    undecided, twice, no_types = [], [], []
    for line in lines:
        label, given = original(line["label"]).strip(), original(line["cell_type"]).strip()
        twice += [label] if label in types else []
        undecided += [label] if not given else []
        dropped = given.casefold() in (DROP, "null")
        no_types += [f"{given!r} of {label!r}"] if given and not dropped and is_no_type(given) else []
        types[label] = None if dropped else given
    if undecided:
        raise DataError(
            f"{sheet}: {len(undecided)} of {len(types)} labels are undecided: {_some(undecided)}. Fill in "
            f"the column cell_type of each: a cell type, or `{DROP}` to leave its cells out"
        )
    if twice:
        raise DataError(f"{sheet}: labels with more than one line: {_some(twice)}; keep one of each")
    if no_types:
        raise DataError(
            f"{sheet}: no cell types: {', '.join(no_types[:EXAMPLES])}; write `{DROP}` to leave cells out"
        )
    return LabelMap(types, _ontology(sheet, lines))


def _ontology(sheet: Path, lines: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the ids of the types that a sheet keeps.

    A type that is called as its label has the label's id, unless the line gives it another.
    """
    ids: dict[str, str] = {}
    names: dict[str, str] = {}
    for line in lines:
        cell_type = original(line["cell_type"]).strip()
        own = line["label_id"].strip() if plain(cell_type) == plain(original(line["label"])) else ""
        term = line["ontology_id"].strip() or (own if ONTOLOGY_ID.fullmatch(own) else "")
        if not term or term.casefold() == "unknown" or cell_type.casefold() in (DROP, "null"):
            continue
        if not ONTOLOGY_ID.fullmatch(term):
            problem = (
                f"ontology_id {term[:40]!r} of {cell_type!r}; expected an id of the Cell Ontology, such as"
            )
            raise DataError(f"{sheet}: {problem} CL:0000236, or nothing")
        if ids.setdefault(cell_type, term) != term:
            problem = f"{cell_type!r} has two ontology ids, {ids[cell_type]} and {term}: a type has one"
            raise DataError(f"{sheet}: {problem}; write the same in each of its lines")
        if names.setdefault(term, cell_type) != cell_type:
            problem = f"{term} is the ontology id of two types, {names[term]!r} and {cell_type!r}"
            raise DataError(f"{sheet}: {problem}: write `unknown` where it does not belong")
    return ids


def is_map_sheet(path: Path) -> bool:
    """Return whether a CSV file has the header of a sheet, rather than lines of label and cell type."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            first = stream.readline()
    except (OSError, UnicodeDecodeError):
        return False
    names = re.split(r"[,;\t]", first.strip().replace('"', ""))
    return set(NEEDED) <= set(names)


def _some(names: Sequence[str]) -> str:
    """Return the first of some names, quoted, and how many more there are."""
    more = len(names) - EXAMPLES
    return ", ".join(map(repr, names[:EXAMPLES])) + (f" and {more} more" if more > 0 else "")
