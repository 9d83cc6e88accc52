"""Harmonising labels: what is proposed, what is left to a person, and what a sheet may say."""

import csv

import pytest

from canal.annotation.harmonise import (
    COLUMNS,
    Known,
    Label,
    plain,
    propose,
    write_map_sheet,
)
from canal.annotation.label_maps import is_map_sheet, read_map_sheet
from canal.core.errors import DataError

KNOWN = Known(
    types=("B", "CD4 T", "CD8 T", "NK", "CD14 Mono", "gdT"),
    learned=("B", "CD4 T", "CD8 T", "NK", "CD14 Mono"),
    ids={"B": "CL:0000236", "NK": "CL:0000623", "CD4 T": "CL:0000624"},
)


def proposed(*labels, known=KNOWN):
    """Return the proposals by label."""
    return {one.label.name: one for one in propose(labels, known)}


def asked(name, *ids, novel=0, **likeliest):
    """Return a label whose cells have these likeliest types; ``novel`` of the first type are novel."""
    counts = {types.replace("_", " "): n for types, n in likeliest.items()}
    first, *_ = counts
    return Label(name, 9, ids, counts, counts | {first: counts[first] - novel})


def of(label, known=KNOWN):
    (one,) = proposed(label, known=known).values()
    return one


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CD4+ T", "CD4 T"),
        ("cd4_t", "CD4 T"),
        ("CD4-positive T cell", "CD4 T"),
        ("B cells", "B"),
        ("γδ T", "gdT"),
        ("CD14+ Monos", "CD14 Mono"),
        ("NK\u00a0cell", "NK"),
    ],
)
def test_spellings_of_one_name_are_one(one, other):
    assert plain(one) == plain(other)


@pytest.mark.parametrize(
    ("one", "other"), [("CD8- T", "CD8+ T"), ("CD14 Mono", "CD16 Mono"), ("B", "NK"), ("T", "T reg")]
)
def test_what_tells_types_apart_stays(one, other):
    assert plain(one) != plain(other)


def test_witnesses_that_agree_make_a_clear_row():
    one = of(asked("CD4+ T cells", "CL:0000624", CD4_T=100, novel=10))
    assert (one.cell_type, one.by, one.reasons) == ("CD4 T", "ontology id", ())
    row = one.row()
    assert (row["model_type"], row["model_share"], row["likeliest_share"]) == ("CD4 T", 0.9, 1.0)
    assert row["unassigned"] == pytest.approx(0.1)
    assert one.ontology_id == "CL:0000624"


def test_witnesses_that_disagree_are_left_to_a_person():
    one = of(asked("NK", "CL:0000236", CD8_T=70, NK=30))
    assert (one.cell_type, one.proposed) == ("", "B")
    assert one.reasons == (
        "its ontology id says B, its name says NK, the model calls 70% of 100 cells CD8 T",
    )


def test_a_known_name_stays_clear_where_all_cells_of_a_platform_are_unassigned():
    """As Kang's monocytes are by the sums of Zheng's sorted cells, and yet most like their type."""
    assert of(asked("CD14 Mono", CD14_Mono=90, NK=10, novel=90)).cell_type == "CD14 Mono"


@pytest.mark.parametrize(
    ("label", "proposal", "reason"),
    [
        (asked("xyz", NK=9, B=1), "NK", ""),
        (asked("xyz", NK=7, B=3), "NK", "the model calls only 70% of 10 cells NK"),
        (asked("Naive CD4 T", CD4_T=7, B=3), "CD4 T", ""),
        (asked("xyz", NK=4), "NK", "the model was asked about 4 cells alone"),
        (asked("CD8 TEM", NK=10), "NK", "its name is like 'CD8 T', the model says NK"),
        (Label("CD8 TEM", 9), "CD8 T", "no known type has this name; it is like 'CD8 T'"),
        (
            asked("activated B", B=10, novel=9),
            "B",
            "it is like 'B'; 90% of its cells are Unassigned, 100% most like B",
        ),
        (Label("CD16 Mono", 9), "CD16 Mono", "no known type has this name or id"),
        (
            asked("Mast", NK=8, B=2, novel=8),
            "Mast",
            "no known type has this name or id; 80% of its cells are Unassigned, 80% most like NK",
        ),
        (asked("B", NK=8, B=2, novel=8), "B", "80% of 10 cells look most like NK, 20% like B"),
        (asked("gd T", CD8_T=10, novel=8), "gdT", ""),  # which no model has learned
        (Label("B", 9, ("CL:0000236", "CL:0000788")), "B", "its cells have 2 ontology ids"),
        (asked("Unknown", B=10), "drop", ""),
    ],
)
def test_each_doubt_is_said_in_words(label, proposal, reason):
    one = of(label)
    assert one.proposed == proposal
    assert one.cell_type == ("" if reason else proposal)
    assert bool(one.reasons) == bool(reason)
    assert reason in "; ".join(one.reasons)


def test_labels_that_would_become_one_type_are_marked_and_come_first():
    rows = proposed(Label("NK", 90), Label("B", 20), Label("b cells", 30))
    assert list(rows) == ["b cells", "B", "NK"]
    assert rows["B"].reasons == ("'b cells' would become the same type",)
    assert rows["NK"].reasons == ()


def test_two_new_labels_that_differ_in_spelling_alone_are_marked():
    rows = proposed(Label("Mast cell", 90), Label("mast", 20), known=Known(()))
    assert all(one.reasons for one in rows.values())


def test_names_with_any_signs_go_through_a_sheet_unchanged(tmp_path):
    """As mlflow/mlflow#9425 and #1164 report them: nothing of a name is lost on the way."""
    names = ["CD4+ T", "γδ T", "NK/T (CD56++)", "Mono, CD14%", "50", "B\u00a0cell", "'=x", "-", 'a "b"; c']
    write_map_sheet(tmp_path / "map.csv", propose([Label(name, 9) for name in names], Known(())))
    read = read_map_sheet(tmp_path / "map.csv")
    assert read.types == {name: None if name == "-" else name for name in names}


def test_one_type_in_three_spellings_is_left_to_a_person():
    """As in chanzuckerberg/cellxgene-census#1434; blanks at the ends are gone before."""
    rows = proposed(Label("CD8 T", 20), Label("CD8 t", 10), Label("CD4 T", 30))
    assert [label for label, one in rows.items() if one.reasons] == ["CD8 T", "CD8 t"]


def test_without_known_types_every_label_is_a_type_with_its_id():
    one = of(Label("Mast", 9, ("CL:0000097",)), known=Known(()))
    assert (one.cell_type, one.by, one.ontology_id) == ("Mast", "new type", "CL:0000097")


def test_the_id_of_a_finer_label_is_not_given_to_the_type_it_joins():
    one = of(asked("xyz", "CL:0000895", CD8_T=10))
    assert (one.cell_type, one.ontology_id) == ("CD8 T", "")


# The sheet.


def decided(path, **types):
    """Write a sheet and decide some of its labels, as a person does."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["cell_type"] = types.get(row["label"], row["cell_type"])
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def sheet(tmp_path):
    labels = [
        Label("CD4+ T", 9, ("CL:0000624",)),
        Label("=SUM(1)", 9),
        Label("Mast", 9, ("CL:0000097",)),
        Label("doublet", 9),
    ]
    write_map_sheet(tmp_path / "map.csv", propose(labels, KNOWN))
    return tmp_path / "map.csv"


def test_an_undecided_label_is_refused_by_name(sheet):
    with pytest.raises(DataError, match=r"2 of 4 labels are undecided: '=SUM\(1\)', 'Mast'. Fill in"):
        read_map_sheet(sheet)


def test_a_decided_sheet_gives_types_and_ids(sheet):
    read = read_map_sheet(decided(sheet, **{"'=SUM(1)": "NK", "Mast": "mast cell"}))
    assert read.types == {"CD4+ T": "CD4 T", "=SUM(1)": "NK", "Mast": "mast cell", "doublet": None}
    assert read.ontology == {"CD4 T": "CL:0000624", "mast cell": "CL:0000097"}


def test_a_sheet_from_a_spreadsheet_of_another_country_is_read(tmp_path):
    path = tmp_path / "map.csv"
    path.write_bytes(b"\xef\xbb\xbfcell_type;label\r\nB;b-cells\r\nnull;junk\r\n")
    assert is_map_sheet(path)
    assert read_map_sheet(path).types == {"b-cells": "B", "junk": None}


def test_in_a_table_of_label_and_type_alone_an_empty_type_leaves_cells_out(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("label,cell_type\nb-cells,B\njunk,\n")
    assert read_map_sheet(path).types == {"b-cells": "B", "junk": None}
    assert read_map_sheet(path).ontology == {}
    path.write_text("label,cell_type,note\nb-cells,B\njunk,\n")
    with pytest.raises(DataError, match="1 of 2 labels are undecided: 'junk'"):
        read_map_sheet(path)


def test_two_columns_without_a_header_are_no_sheet(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("b-cells,B\njunk,\n")
    assert not is_map_sheet(path)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("B,B,\nB,NK,\n", "more than one line: 'B'"),
        ("B,unknown,\n", "no cell types: 'unknown' of 'B'; write `drop`"),
        ("B,B,CL:12\n", "ontology_id 'CL:12' of 'B'; expected an id"),
        ("b,B,CL:0000236\nb2,B,CL:0000788\n", "'B' has two ontology ids"),
        ("b,B,CL:0000236\nn,NK,CL:0000236\n", "CL:0000236 is the ontology id of two types, 'B' and 'NK'"),
    ],
)
def test_what_a_sheet_may_not_say_is_refused(tmp_path, lines, told):
    path = tmp_path / "map.csv"
    path.write_text(f"label,cell_type,ontology_id\n{lines}")
    with pytest.raises(DataError, match=told):
        read_map_sheet(path)


def test_a_type_that_is_called_as_its_label_keeps_the_labels_id(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text(
        "label,cell_type,ontology_id,label_id\n"
        "Mast cells,mast,,CL:0000097\nCD4 naive,CD4 T,,CL:0000895\nB,B,unknown,CL:0000236\n"
    )
    assert read_map_sheet(path).ontology == {"mast": "CL:0000097"}


def test_an_id_unknown_is_none(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("label,cell_type,ontology_id\nB,B,unknown\nx,drop,CL:0000236\n")
    assert read_map_sheet(path).ontology == {}


def test_labels_that_share_an_id_are_a_persons_to_tell_apart(tmp_path):
    """Authors' labels are finer than the ontology: canal refused the very sheet that it had filled in."""
    naive, memory = (Label(f"{one} T", 30, ("CL:0000084",)) for one in ("naive", "memory"))
    rows = proposed(naive, memory, Label("NK", 30, ("CL:0000623",)), known=Known(()))
    assert rows["naive T"].reasons == ("'memory T': the same ontology id, CL:0000084; one type, or two?",)
    assert (rows["NK"].cell_type, rows["NK"].ontology_id) == ("NK", "CL:0000623")
    sheet = tmp_path / "map.csv"
    write_map_sheet(sheet, list(rows.values()))
    lines = list(csv.DictReader(sheet.open()))
    for line in lines:
        line["cell_type"] = line["cell_type"] or line["label"]
    with sheet.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    read = read_map_sheet(sheet)
    assert read.types == {"naive T": "naive T", "memory T": "memory T", "NK": "NK"}
    assert read.ontology == {"NK": "CL:0000623"}
    sheet.write_text(sheet.read_text().replace("30,memory T", "30,drop"))
    assert read_map_sheet(sheet).ontology == {"NK": "CL:0000623", "naive T": "CL:0000084"}
