"""The table of kinds: what counts as right, and that a whole program is asked."""

import kinds
import pytest
from inputs import formats, links, names
from inputs.case import Case

from tests.support.cells import make_adata
from tests.support.models import make_annotator

TRUTH = {"a": "B", "b": "NK"}
LABELS = {"code": 0, "said": "", "labels": TRUTH}
REFUSED = {"code": 1, "said": "in.h5ad leads elsewhere by a link", "labels": None}


def case(*right, **more):
    return Case("kind", "name", formats.write_10x_folder, right, "link", **more)


def wrong(one, answer, before=None, after=None):
    before = before or {"in.h5ad": b""}
    return kinds.wrong(one, answer, TRUTH, before, {**before, **(after or {})})


@pytest.mark.parametrize(
    ("one", "answer"),
    [
        (case("labels"), LABELS),
        (case("refused"), REFUSED),
        (case("warned"), {**LABELS, "said": "warning: a link"}),
        (case("passed", declared={}), LABELS),
    ],
)
def test_what_is_right(one, answer):
    assert wrong(one, answer) == ""


@pytest.mark.parametrize(
    ("one", "answer", "said"),
    [
        (case("labels"), {**LABELS, "labels": {"a": "NK", "b": "B"}}, "labelled, 0% as the counts are"),
        (case("refused"), LABELS, "labelled, 100%"),
        (case("refused"), {**REFUSED, "said": "no"}, "refused: no"),
        (case("labels"), REFUSED, "refused: in.h5ad"),
        (case("refused"), {**REFUSED, "said": "Traceback (most recent call last) link"}, "ended with 1"),
        (case("refused"), {**REFUSED, "code": -11}, "ended with -11"),
        (case("warned", declared={}), LABELS, "passed: in silence"),
    ],
)
def test_what_is_wrong(one, answer, said):
    assert wrong(one, answer).startswith(said)


def test_a_file_beside_that_changes_or_stays_is_wrong():
    one = case("refused", outside=("other.h5ad",))
    assert "was changed" in wrong(one, REFUSED, {"other.h5ad": b"1"}, {"other.h5ad": b"2"})
    assert "labels.csv stayed behind" in wrong(one, REFUSED, after={"labels.csv": b""})


@pytest.mark.chaos
def test_programs_are_asked_for_real(tmp_path):
    cells = make_adata({"B": 20, "NK": 20}, n_genes=20)
    make_annotator().save(tmp_path / "model")
    asked = [
        next(one for one in formats.CASES if one.name == "CellRanger's .h5"),
        next(one for one in formats.CASES if one.name == "MuData"),
        next(one for one in links.CASES if one.name == "X is an external link"),
        next(one for one in links.CASES if one.name == "the path is a symlink"),
    ]
    found = list(kinds.answers(kinds.REPOSITORY / "src", tmp_path / "model", cells, asked))
    assert [(one.name, said) for one, said in found] == [(one.name, "") for one in asked]


def test_every_case_makes_its_input(tmp_path):
    cells = make_adata({"CD8_T": 12, "B": 12}, n_genes=60)
    once = [one for one in (*links.CASES, *formats.CASES, *names.CASES) if "columns" not in one.name]
    for number, one in enumerate(once):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = one.make(cells, folder)
        assert path.is_symlink() or path.exists(), one.name


def test_every_case_has_a_name_of_its_own_and_a_right_answer():
    assert len({(one.kind, one.name) for one in kinds.CASES}) == len(kinds.CASES)
    assert all(one.right for one in kinds.CASES)
