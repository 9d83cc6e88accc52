"""Harmonise labels: propose a cell type for each label of a file, in a sheet that a person decides.

A proposal has three witnesses: the model's answers for the label's cells, Cell Ontology ids, and names. Where
they disagree or are too weak, and where a type would be new, the row is marked, its cell type is left empty,
and a person has to fill it in. That cells are Unassigned proves nothing here: in a data set of another
platform those of known types often are.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from canal.core.files import new_file
from canal.data.prepare import is_no_type
from canal.io.arrays import EXAMPLES
from canal.io.writer import as_text, writing

DROP = "drop"
"""What a sheet says of a label whose cells are left out; params.yaml's word for it, null, is read, too."""

COLUMNS = (
    *("label", "n_cells", "cell_type", "ambiguous", "proposed", "by", "model_type", "model_share"),
    *("likeliest_share", "unassigned", "label_id", "ontology_id", "note"),
)

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
    likeliest : dict
        For how many of the cells that the model was asked about each type is the likeliest; empty without a
        model.
    assigned : dict
        How many of them it calls so; the others are Unassigned.
    """

    name: str
    n_cells: int
    ids: tuple[str, ...] = ()
    likeliest: Mapping[str, int] = field(default_factory=dict)
    assigned: Mapping[str, int] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """How many of its cells the model was asked about."""
        return sum(self.likeliest.values())

    @property
    def model_type(self) -> str:
        """The type that is the likeliest for most of them; ``""`` without any."""
        return min(self.likeliest, key=lambda name: (-self.likeliest[name], name), default="")

    def share(self, counts: Mapping[str, int], name: str) -> float:
        """Return the share of a type in `likeliest` or `assigned`."""
        return counts.get(name, 0) / max(1, self.asked)

    @property
    def unassigned(self) -> float:
        """The share that the model calls Unassigned."""
        return 1 - sum(self.assigned.values()) / max(1, self.asked)


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

    def row(self) -> dict[str, object]:
        """Return the line of the sheet, with the values of `COLUMNS`."""
        one = self.label
        shares = {
            "model_share": one.share(one.assigned, one.model_type),
            "likeliest_share": one.share(one.likeliest, one.model_type),
            "unassigned": one.unassigned,
        }
        return {
            "label": one.name,
            "n_cells": one.n_cells,
            "cell_type": self.cell_type,
            "ambiguous": "; ".join(self.reasons),
            "proposed": self.proposed,
            "by": self.by,
            "model_type": one.model_type,
            **{name: round(share, 3) if one.asked else "" for name, share in shares.items()},
            "label_id": " ".join(one.ids),
            "ontology_id": self.ontology_id,
            "note": "",
        }


def propose(labels: Sequence[Label], known: Known) -> list[Proposal]:
    """Return a proposal for each label: ambiguous ones first, then by falling number of cells."""
    proposals = [_propose(label, known) for label in labels]
    by_type: dict[str, list[str]] = {}
    for one in proposals:
        if one.by not in (BY_LIKENESS, "") and one.proposed != DROP:
            by_type.setdefault(plain(one.proposed), []).append(one.label.name)
    by_id = defaultdict[tuple[str, ...], list[str]](list)
    for one in proposals:
        by_id[one.label.ids if one.by == NEW else ()].append(one.label.name)
    told = []
    for one in proposals:
        same = [] if one.proposed == DROP else by_type.get(plain(one.proposed), [])
        others = [name for name in same if name != one.label.name]
        if others and one.by != BY_LIKENESS:
            one = replace(one, reasons=(*one.reasons, f"{quoted_names(others)} would become the same type"))
        sharing = by_id[one.label.ids] if one.by == NEW and len(one.label.ids) == 1 else []
        if same_id := [name for name in sharing if name != one.label.name]:
            reason = f"{quoted_names(same_id)}: the same ontology id, {one.label.ids[0]}; one type, or two?"
            one = replace(one, reasons=(*one.reasons, reason))
        told.append(replace(one, ontology_id=_id_of(one, known, alone=not others and not same_id)))
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
    same = [label.name] if label.name in known.types else []
    same = same or [name for name in known.types if plain(name) == plain(label.name)]
    like = "" if same else _like(label.name, known.types)
    share = label.share(label.assigned, label.model_type)
    witnesses = {
        BY_ID: next((name for name, term in (known.ids or {}).items() if (term,) == label.ids), ""),
        BY_NAME: same[0] if same else "",
        BY_MODEL: label.model_type if share >= LEAST_SHARE else "",
    }
    by = next((witness for witness, name in witnesses.items() if name), "")
    proposal = Proposal(label, witnesses.get(by, ""), by)
    reasons = _disagreement(witnesses, share, label.asked)
    if len(label.ids) > 1:
        reasons.append(f"its cells have {len(label.ids)} ontology ids ({quoted_names(label.ids)})")
    if len(same) > 1:
        reasons.append(f"known types are spelt like it: {quoted_names(same)}")
    if by == BY_MODEL:
        reasons += _doubts_of_model(proposal, share, like)
    elif by:
        reasons += _doubts_of_cells(proposal, known) if not reasons else []
    elif like:
        proposal = replace(proposal, proposed=like, by=BY_LIKENESS)
        reasons.append(f"no known type has this name; it is like {like!r}{_told(label)}")
    else:
        proposal = replace(proposal, proposed=label.name, by=NEW)
        reasons += [f"no known type has this name or id{_told(label)}"] if known.types else []
    return replace(proposal, reasons=tuple(reasons))


def _like(label: str, types: Sequence[str]) -> str:
    """Return the known type whose words are all in a label, or whose name is near it; ``""`` without one.

    Markers with other numbers are other markers: CD16 is not near CD14.
    """
    words = {plain(word) for word in re.split(r"[\s_,/]+", label)}
    within = [name for name in types if {plain(word) for word in re.split(r"[\s_,/]+", name)} <= words]
    if within:
        return max(within, key=len)
    same_numbers = {
        plain(name): name for name in types if re.findall(r"\d+", name) == re.findall(r"\d+", label)
    }
    near = get_close_matches(plain(label), list(same_numbers), n=1, cutoff=_LIKE)
    return same_numbers[near[0]] if near else ""


def _told(label: Label) -> str:
    """Return what the model says of a label's cells, as the end of a sentence."""
    if not label.asked:
        return ""
    share = label.share(label.likeliest, label.model_type)
    return f"; {label.unassigned:.0%} of its cells are Unassigned, {share:.0%} most like {label.model_type}"


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
    doubts, asked = [], proposal.label.asked
    if share < CLEAR_SHARE and like != proposal.proposed:
        doubts.append(f"the model calls only {share:.0%} of {asked} cells {proposal.proposed}")
    if asked < FEWEST_CELLS:
        doubts.append(f"the model was asked about {asked} cells alone")
    if like and like != proposal.proposed:
        doubts.append(f"its name is like {like!r}, the model says {proposal.proposed}")
    return doubts


def _doubts_of_cells(proposal: Proposal, known: Known) -> list[str]:
    """Return what the model's answers say against a type that id or name speak for."""
    label, own = proposal.label, proposal.proposed
    if own not in known.learned or label.asked < FEWEST_CELLS:
        return []
    share = label.share(label.likeliest, own)
    if share >= LEAST_SHARE:
        return []
    most = label.share(label.likeliest, label.model_type)
    return [f"{most:.0%} of {label.asked} cells look most like {label.model_type}, {share:.0%} like {own}"]


def _id_of(proposal: Proposal, known: Known, alone: bool) -> str:
    """Return the id of the proposed type: the known one, or that of a label which is the type itself."""
    known_id = (known.ids or {}).get(proposal.proposed)
    itself = alone and proposal.by in (BY_NAME, NEW) and proposal.proposed != DROP
    return known_id or (proposal.label.ids[0] if itself and len(proposal.label.ids) == 1 else "")


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


def quoted_names(names: Sequence[str]) -> str:
    """Return the first of some names, quoted, and how many more there are."""
    more = len(names) - EXAMPLES
    return ", ".join(map(repr, names[:EXAMPLES])) + (f" and {more} more" if more > 0 else "")
