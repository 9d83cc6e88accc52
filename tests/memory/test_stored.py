"""Every file of the exact memory, damaged in some 250 of its bytes: refused, or of the same meaning."""

import json

import numpy as np
import pytest

from canal.core.errors import CanalError, SumsError
from canal.memory.answer import ExactAnnotator
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Sums
from tests.support.sums import make_cells, make_exact, make_sums, same

STAGES = ("first", "second")
TWO = {"first": ("B", "T"), "second": ("B", "T")}
CELLS, _ = make_cells(("B", "T"), 3, 4, "third")


def tiny():
    return make_sums(TWO, n=4, n_genes=4, missing={"second": ("GENE002",)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder of sums alone."""
    folder = tmp_path_factory.mktemp("model")
    make_exact(tiny()).with_ontology({"B": "CL:0000236"}).save(folder / "model" / "exact")
    tiny().save(folder)
    return folder


def sums_alike(one, other):
    return (one.basis.digest, dict(one.missing), one.basis.seen) == (
        other.basis.digest,
        dict(other.missing),
        other.basis.seen,
    ) and all(one.stages[name].digest == other.stages[name].digest for name in STAGES)


def answers_alike(one, other):
    return same(one, other, CELLS) and one.ontology == other.ontology and one.genes == other.genes


READERS = {
    "sums/first.safetensors": (lambda folder: StageSums.load(folder, STAGES), sums_alike),
    "sums/missing.json": (lambda folder: StageSums.load(folder, STAGES), sums_alike),
    "model/exact/basis/basis.json": (lambda folder: StageSums.load(folder, STAGES), sums_alike),
    "model/exact/weights.safetensors": (lambda folder: load_exact(folder), answers_alike),
    "model/exact/solution.json": (lambda folder: load_exact(folder), answers_alike),
    "model/exact/answer.json": (lambda folder: load_exact(folder), answers_alike),
}


def load_exact(folder):
    return ExactAnnotator.load(folder / "model" / "exact")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("change", [1, 0xFF], ids=["lowest bit", "all bits"])
def test_a_damaged_byte_is_refused_or_means_the_same(folder, name, change):
    """But for whose cells chose a basis, which its digest leaves out: the key of a version holds it."""
    read, alike = READERS[name]
    path, right = folder / name, read(folder)
    whole = path.read_bytes()
    seen = whole.index(b'"seen"') if b'"seen"' in whole else len(whole)
    places = [*range(0, seen, max(1, len(whole) // 150)), *range(8, min(seen, 100))]
    try:
        for place in places:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            try:
                found = read(folder)
            except CanalError:
                continue
            assert alike(found, right), f"byte {place} of {name}: {whole[max(0, place - 20) : place + 20]!r}"
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", READERS)
def test_what_is_cut_short_empty_or_gone_is_refused(folder, name):
    path, read = folder / name, READERS[name][0]
    whole = path.read_bytes()
    try:
        for length in (0, 1, 8, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:length])
            with pytest.raises(SumsError):
                read(folder)
        if name != "sums/first.safetensors":  # sums may begin at a later stage
            path.unlink()
            with pytest.raises(SumsError):
                read(folder)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".json")])
@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"', "{}", "{", "\ufeff{}", "[" * 9000], ids=range(8))
def test_another_document_is_refused(folder, name, text):
    path, read = folder / name, READERS[name][0]
    whole = path.read_bytes()
    try:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SumsError):
            read(folder)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["basis/basis.json", "solution.json", "answer.json"])
def test_an_unknown_format_is_refused(folder, name):
    path = folder / "model" / "exact" / name
    whole = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(whole) | {"format": 9}))
        with pytest.raises(SumsError, match="format that this canal does not know"):
            load_exact(folder)
    finally:
        path.write_text(whole)


def test_sums_of_an_unknown_format_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("canal.memory.sums.FORMAT", "9")
    tiny().stages["first"].save(tmp_path / "x.safetensors")
    monkeypatch.undo()
    with pytest.raises(SumsError, match="reads sums of format 1, found 9"):
        Sums.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"genes": ["GENE000", "GENE000"]},
        {"genes": []},
        {"genes": "GENE000"},
        {"genes": [1, 2]},
        {"genes": ["\ud800"]},
        {"seen": []},
        {"digest": "0" * 64},
        {"levels": {"steps_per_doubling": 8, "highest": 63}},
    ],
    ids=str,
)
def test_a_basis_of_other_values_is_refused(folder, tmp_path, change):
    path = folder / "model" / "exact" / "basis" / "basis.json"
    (tmp_path / "basis.json").write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SumsError):
        Basis.load(tmp_path)


def test_sums_of_a_stage_that_is_none_of_the_lineage_are_refused(folder):
    with pytest.raises(SumsError, match=r"sums of second, which is no stage of this lineage \(first\)"):
        StageSums.load(folder, ("first",))


def test_a_folder_without_sums_has_none(tmp_path):
    assert StageSums.load(tmp_path, STAGES) is None


def test_genes_that_have_sums_are_not_missing(folder):
    path = folder / "sums" / "missing.json"
    whole = path.read_text()
    try:
        path.write_text(json.dumps({"first": ["GENE001"], "second": ["GENE002"]}))
        with pytest.raises(SumsError, match="must name genes of the basis that have no sums"):
            StageSums.load(folder, STAGES)
    finally:
        path.write_text(whole)


def test_a_weight_beyond_exact_products_is_refused(tmp_path):
    """Even -2**63, whose amount is no int64."""
    for weight in (2**52, -(2**63)):
        annotator = make_exact(tiny())
        annotator.classifier.own.weights[0, 0] = weight
        annotator.save(tmp_path / "exact")
        with pytest.raises(SumsError, match="do not fit together"):
            ExactAnnotator.load(tmp_path / "exact")


def test_equal_memories_are_equal_bytes(tmp_path):
    for name in ("one", "other"):
        make_exact(tiny()).save(tmp_path / name / "model" / "exact")
        tiny().save(tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file


def test_a_loaded_memory_answers_with_the_same_bits(folder):
    cells = np.random.default_rng(1).gamma(2, 1, (300, 4)).astype(np.float32)
    for gone in ((), ("GENE002",), ("GENE000", "GENE003")):
        assert same(load_exact(folder).without(gone), make_exact(tiny()).without(gone), cells)
    assert load_exact(folder).digest() == make_exact(tiny()).digest()
