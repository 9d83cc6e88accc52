"""A lineage on another's basis: exported, adopted, and the same sums in any order of stages."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import canal.app.pipeline
from canal.core.files import read_json, write_json
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums
from canal.memory.sums import total
from canal.registry.manifest.stage_request import changes, stage_request
from tests.pipeline.conftest import Line, copied
from tests.released.learn import Nothing
from tests.support.cells import gene_names
from tests.support.methods import (
    N_GENES,
    empty_database,
    learn_here,
    learned_by,
    make_line,
    prepare_here,
    step,
    with_database,
    without_pictures,
)

EXACT = {"method": "exact"}
STAGES: tuple[str, ...] = ("first", "second", "third")
ELSEWHERE = "9" * 64


@pytest.fixture(scope="module")
def basis(tmp_path_factory) -> Path:
    """Return the basis of another lineage; three of its genes are in no file of these tests."""
    genes = tuple(gene_names(N_GENES)[::2])
    folder = tmp_path_factory.mktemp("given") / "lab"
    Basis((*genes[:9], "GONE1", *genes[9:], "GONE2", "GONE3"), {"elsewhere": ELSEWHERE}).save(folder)
    return folder / "basis.json"


def adopted(root: Path, basis: Path, stages: tuple[str, ...] = STAGES, **continual: object) -> Line:
    """Make a project on that basis, nothing learned yet."""
    line = make_line(root, {name: {} for name in stages}, continual=continual or EXACT)
    line.canal("basis", "adopt", str(basis), "--json")
    return line


def test_six_orders_of_a_stream_give_the_same_digests(tmp_path, basis, monkeypatch):
    line = adopted(tmp_path / "project", basis)
    without_pictures(monkeypatch)
    prepare_here(line, monkeypatch)
    found = [digests_in(order, line, monkeypatch) for order in itertools.permutations(STAGES)]
    assert len(found) == 6
    assert all(one == found[0] for one in found)
    assert set(found[0]) == {*STAGES, "total"}


def digests_in(order: tuple[str, ...], line: Line, monkeypatch) -> dict[str, str]:
    """Learn the stages in an order of their own; return the digests of their sums and of all together."""
    parents = dict(zip(order, ("backbone", *order), strict=False))

    def reorder(document) -> None:
        document["stages"] = {name: {"source": name, "parent": parents[name]} for name in order}
        document["panel"]["stage"] = order[0]

    line.edit(reorder)
    shutil.rmtree(line.root / "models", ignore_errors=True)
    monkeypatch.setattr(
        canal.app.pipeline, "project_step", lambda project, _, stage, how: how(project, Nothing())
    )
    monkeypatch.chdir(line.root)
    for script in ("split", "panel", "pretrain"):
        step(monkeypatch, script)
    for name in order:
        step(monkeypatch, "finetune", "--stage", name)
    sums = StageSums.load(line.project().layout.model(order[-1]), order)
    assert sums is not None
    own = {name: one.digest for name, one in sums.stages.items()}
    assert own == read_json(line.root / "models" / order[-1] / "key.json")["sums"]
    return own | {"total": total(sums.stages.values(), sums.basis).digest}


def test_requests_name_what_a_basis_is_and_not_where_it_lies(tmp_path, basis):
    line = make_line(tmp_path / "project", dict.fromkeys(STAGES, {}), continual=EXACT)
    before = line.project().config
    said = line.canal("basis", "adopt", str(basis), "--dry-run")
    assert "params.yaml would name it" in said
    assert (line.project().config, (line.root / "bases").exists()) == (before, False)
    line.canal("basis", "adopt", str(basis))
    config, digest = line.project().config, Basis.read(basis).digest
    for stage in ("backbone", "first"):
        found = changes(stage_request(before, stage), stage_request(config, stage))
        assert [(one.path, one.after) for one in found if one.path.startswith("memory")][:1] in (
            [("memory", {"basis": digest})], [("memory.basis", digest)],
        )  # fmt: skip
        assert "bases" not in str(stage_request(config, stage))
    text = (line.root / "params.yaml").read_text()
    again = line.canal("basis", "adopt", str(basis))
    assert "names it already" in again
    assert (line.root / "params.yaml").read_text() == text
    assert YAML(typ="safe").load(text)["memory"]["basis"] == {"path": "bases/lab", "digest": digest}


def test_a_network_and_its_panel_begin_on_an_adopted_basis(tmp_path, basis, tmp_path_factory):
    line = adopted(tmp_path / "project", basis, ("first",), method="combined", max_epochs=1)
    with_database(line, empty_database(tmp_path_factory))
    line.edit(lambda document: document["novelty"].update(holdouts=[]))
    learn_here(line)
    panel, key = read_json(line.root / "panel.json"), read_json(line.root / "models" / "first" / "key.json")
    known = Basis.read(basis)
    assert panel["genes"] == list(known.genes)
    assert panel["basis"] == key["basis"]["digest"] == known.digest
    assert set(panel["origin"].values()) == {"adopted"}
    assert key["basis"]["seen"] == {"elsewhere": ELSEWHERE}
    assert read_json(line.root / "models" / "first" / "sums" / "missing.json")["first"] == [
        "GONE1", "GONE2", "GONE3",
    ]  # fmt: skip
    assert "everything holds" in line.canal("audit", "--recompute")
    out = tmp_path / "out"
    line.canal("basis", "export", "1", "-o", str(out))
    assert (out / "basis.json").read_bytes() == basis.read_bytes()
    other = tmp_path / "other.json"
    write_json(other, read_json(basis) | {"digest": "0" * 64})
    assert "restore" in refused(line, "basis", "adopt", str(other))


@pytest.mark.chaos
def test_a_lineage_that_has_begun_keeps_its_basis(tmp_path, basis, tmp_path_factory):
    line = copied(learned_by("exact", tmp_path_factory), tmp_path / "project")
    before = (line.root / "params.yaml").read_bytes()
    said = refused(line, "basis", "adopt", str(basis))
    assert "has started on a basis of its own" in said
    assert "canal stage relearn backbone" in said
    assert (line.root / "params.yaml").read_bytes() == before
    assert not (line.root / "bases").exists()
    line.canal("stage", "relearn", "backbone")
    line.canal("basis", "adopt", str(basis))
    assert line.project().config.memory.basis is not None


def test_an_adopted_basis_that_is_gone_or_another_is_told(tmp_path, basis, monkeypatch):
    line = adopted(tmp_path / "project", basis)
    folder = line.root / "bases" / "lab"
    Basis.read(basis).save(folder)
    Basis(("A", "B"), {}).save(folder)
    monkeypatch.chdir(line.root)
    from canal.app.beginning import adopted_basis
    from canal.core.errors import SumsError

    with pytest.raises(SumsError, match="run `canal basis adopt` with the latter"):
        adopted_basis(line.project())
    shutil.rmtree(folder)
    with pytest.raises(SumsError, match="missing"):
        adopted_basis(line.project())


def refused(line: Line, *arguments: str) -> str:
    """Return what a command of canal says that refuses."""
    from typer.testing import CliRunner

    from canal.cli import app

    done = CliRunner().invoke(app, [*arguments, "--root", str(line.root)])
    assert done.exit_code != 0
    return f"{done.output}{done.exception}"
