"""`canal unlearn`: versions without a batch or some cells, as if a lineage had never seen them."""

import json
import shutil

import h5py
import pytest
from ruamel.yaml import YAML

from canal.app.auditing import audit_project
from canal.app.backfilling import commit_to_lock
from canal.app.project import Project
from canal.app.tasks import add_up_stage
from canal.app.unlearning import Decision, Withdrawal, unlearn
from canal.core.errors import HistoryError
from canal.data.prepare import prepare
from canal.data.split import SUMMED, read_split
from canal.memory.stage_sums import StageSums
from tests.pipeline.conftest import copied
from tests.support.methods import learn_here, learned_by

pytestmark = pytest.mark.pipeline
ADA = Decision("A. Person", "consent withdrawn")


@pytest.fixture
def line(tmp_path_factory, tmp_path):
    return copied(learned_by("exact", tmp_path_factory), tmp_path / "project")


@pytest.fixture
def combined(tmp_path_factory, tmp_path):
    return copied(learned_by("combined", tmp_path_factory), tmp_path / "project")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A project that every test leaves as it is."""
    return copied(learned_by("exact", tmp_path_factory), tmp_path_factory.mktemp("untouched") / "project")


def sums_of(project, number):
    version = project.store.version(str(number))
    folder = project.store.artifacts(version)
    return StageSums.load(folder, list(project.config.stages)), folder


@pytest.mark.parametrize("method", ["exact", "combined"])
def test_a_batch_leaves_and_its_sums_are_those_of_a_lineage_that_never_saw_it(method, request):
    line = request.getfixturevalue("line" if method == "exact" else "combined")
    project = line.project()
    made = unlearn(project, Withdrawal("second", batch="b1"), ADA)
    assert list(made.versions) == ["second", "third"]
    again = Project.open(line.root)
    for stage in ("second", "third"):
        assert again.learned(stage).number == made.versions[stage]["after"]
    sums, _ = sums_of(again, made.versions["third"]["after"])
    split = read_split(again.layout.split("second"))
    assert "b1" not in set(split["batch"])
    never_saw, _, _ = add_up_stage(again, "second", sums.basis)  # reads only the rows of the split
    assert sums.stages["second"].digest == never_saw.digest
    assert sums.stages["second"].n_cells == int(split["set"].isin(SUMMED).sum())
    assert [str(one) for one in audit_project(again).findings] == []
    entry = json.loads((line.root / "ledger.jsonl").read_text().splitlines()[-1])
    assert (entry["who"], entry["why"]) == ("A. Person", "consent withdrawn")
    assert learn_here(line) == []  # what was unlearned is never learned again


def named(line, n):
    """The first training cells of the second stage, by name."""
    split = read_split(line.project().layout.split("second"))
    return tuple(split[split["set"] == "train"]["cell_id"][:n])


def test_single_cells_leave_by_the_prepared_file_and_not_without_it(line):
    project, cells = line.project(), named(line, 3)
    shown = unlearn(project, Withdrawal("second", cells=cells), ADA, dry_run=True)
    assert (shown.n_cells, shown.n_summed, shown.versions["third"]["after"]) == (3, 3, None)
    before = {path: path.read_bytes() for path in (line.root / "params.yaml", line.root / "ledger.jsonl")}
    prepared = project.layout.prepared("second") / "cells.h5ad"
    kept = prepared.read_bytes()
    prepared.unlink()
    with pytest.raises(HistoryError, match=r"need the prepared file .* is gone: restore it"):
        unlearn(project, Withdrawal("second", cells=cells), ADA)
    assert {path: path.read_bytes() for path in before} == before  # a dry run and a refusal change nothing
    prepared.write_bytes(kept)
    made = unlearn(project, Withdrawal("second", cells=cells), ADA)
    again = Project.open(line.root)
    sums, _ = sums_of(again, made.versions["third"]["after"])
    assert sums.stages["second"].digest == add_up_stage(again, "second", sums.basis)[0].digest
    assert audit_project(again, recompute=True).findings == ()


def test_more_cells_leave_later_from_a_file_that_was_prepared_without_the_first(line):
    first, later = named(line, 5)[:3], named(line, 5)[3:]
    unlearn(line.project(), Withdrawal("second", cells=first), ADA)
    source = Project.open(line.root).config.sources["second"]
    into = line.root / "prepared" / "second"
    shutil.rmtree(into)
    prepare(line.root / "raw" / "second.h5ad", "second", source, line.project().config.prepare, into)
    made = unlearn(Project.open(line.root), Withdrawal("second", cells=later), ADA)
    again = Project.open(line.root)
    sums, _ = sums_of(again, made.versions["third"]["after"])
    assert sums.stages["second"].digest == add_up_stage(again, "second", sums.basis)[0].digest
    assert not {*first, *later} & set(read_split(again.layout.split("second"))["cell_id"])
    assert audit_project(again, recompute=True).findings == ()


def test_steps_that_dvc_yaml_has_no_longer_are_passed_over(learned, tmp_path):
    line = copied(learned[0], tmp_path / "project")
    lock = line.root / "dvc.lock"
    document = YAML(typ="safe").load(lock)
    document["stages"]["finetune-tuned@second"] = document["stages"]["finetune@second"]
    YAML().dump(document, lock)
    model = line.root / "models" / "second" / "history.json"
    model.write_text(model.read_text() + "\n")
    assert "models/second" in line.run("dvc", "status", "finetune@second")
    commit_to_lock(line.project().layout, ["finetune-tuned@second", "finetune@second"], "again")
    assert "up to date" in line.run("dvc", "status", "finetune@second")


def test_a_prepared_file_with_other_values_of_the_cells_is_refused(line):
    project, cells = line.project(), named(line, 2)
    path = project.layout.prepared("second") / "cells.h5ad"
    with h5py.File(path, "r+") as file:
        file["X/data"][...] = file["X/data"][...] + 1
    with pytest.raises(HistoryError, match="is another one: restore it"):
        unlearn(project, Withdrawal("second", cells=cells), ADA)


def test_cells_of_the_first_stage_may_have_chosen_the_basis(line):
    made = unlearn(line.project(), Withdrawal("first", batch="b2"), ADA)
    assert list(made.versions) == ["first", "second", "third"]
    assert made.basis["first"] == "same" or made.basis["first"]["other"]
    assert audit_project(Project.open(line.root)).findings == ()
    assert learn_here(line) == []


def test_what_only_a_network_learned_cannot_be_unlearned(combined):
    with pytest.raises(HistoryError, match="first keeps no sums, and a network cannot unlearn"):
        unlearn(combined.project(), Withdrawal("first", batch="b2"), ADA)


def test_the_champion_is_named_until_it_is_replaced_and_the_others_can_be_retired(line):
    line.canal("promote", "3", "--by", "A. Person", "--why", "reviewed")
    said = json.loads(
        line.canal(
            *("unlearn", "second", "--batch", "b1", "--by", "A. Person", "--why", "consent withdrawn"),
            *("--retire", "--json"),
        )
        .partition("{")[2]
        .join(["{", ""])
    )
    assert said["champion"] == 3
    assert said["retired"] == [2]
    project = line.project()
    assert [one.number for one in project.store.versions() if one.retired] == [2]
    line.canal("promote", "candidate", "--by", "A. Person", "--why", "without the cells")
    assert "consent withdrawn" in (line.root / "ledger.jsonl").read_text()


@pytest.mark.parametrize(
    ("withdrawal", "message"),
    [
        (Withdrawal("nowhere", batch="b1"), "no source 'nowhere' in params.yaml; there are first"),
        (Withdrawal("first"), "the lineage starts with first: panel and backbone are of its cells"),
        (Withdrawal("third"), "nothing was learned on third, so what remains is the version of second"),
        (Withdrawal("second", batch="b9"), "second has no batch 'b9' of second: batches such as b1, b2"),
        (Withdrawal("second", cells=("nobody",)), "second has no 1 named cells .* second:nobody"),
    ],
)
def test_what_cannot_be_unlearned_is_refused(untouched, withdrawal, message):
    before = (untouched.root / "params.yaml").read_bytes()
    with pytest.raises(HistoryError, match=message):
        unlearn(untouched.project(), withdrawal, ADA)
    assert (untouched.root / "params.yaml").read_bytes() == before


def test_a_whole_source_leaves_with_its_stage_and_the_next_one_builds_on_the_one_before(line):
    made = unlearn(line.project(), Withdrawal("second"), ADA)
    assert made.versions == {"second": {"before": 2, "after": None}, "third": {"before": 3, "after": 4}}
    assert made.lost_types == ("Mono",)
    again = Project.open(line.root)
    assert list(again.config.stages) == ["first", "third"]
    assert again.config.stages["third"].parent == "first"
    assert "second" not in again.config.sources
    sums, _ = sums_of(again, 4)
    assert list(sums.stages) == ["first", "third"]
    for stage in sums.stages:
        assert sums.stages[stage].digest == add_up_stage(again, stage, sums.basis)[0].digest
    assert [str(one) for one in audit_project(again).findings] == []
    assert learn_here(line) == []


def test_a_stage_cannot_lose_all_its_cells(untouched):
    split = read_split(untouched.project().layout.split("second"))
    with pytest.raises(
        HistoryError, match="all training cells of second would leave, .* `canal impact second`"
    ):
        unlearn(untouched.project(), Withdrawal("second", cells=tuple(split["cell_id"])), ADA)


@pytest.mark.parametrize("at", ["registry_sync", "save", "_install"])
def test_a_kill_is_completed_by_the_next_call(line, monkeypatch, at):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"canal.app.remaking.{at}", killed)
        with pytest.raises(KeyboardInterrupt):
            unlearn(line.project(), Withdrawal("second", batch="b1"), ADA)
    made = unlearn(line.project(), Withdrawal("second", batch="b1"), ADA)
    assert made.versions["third"]["after"] == 5
    assert len(line.project().store.versions()) == 5
    assert audit_project(Project.open(line.root)).findings == ()


def test_what_remains_can_leave_in_turn(line):
    unlearn(line.project(), Withdrawal("second", batch="b1"), ADA)
    made = unlearn(Project.open(line.root), Withdrawal("second", cells=named(line, 2)), ADA)
    again = Project.open(line.root)
    assert again.learned("second").branch == 3
    sums, folder = sums_of(again, made.versions["third"]["after"])
    assert sums.stages["second"].digest == add_up_stage(again, "second", sums.basis)[0].digest
    assert audit_project(again, recompute=True).findings == ()


def test_an_audit_finds_that_other_cells_left_than_the_key_says(line, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("canal.app.unlearning._counts", lambda _: (5, 5, "0" * 64))
        unlearn(line.project(), Withdrawal("second", batch="b1"), ADA)
    findings = [one for one in audit_project(Project.open(line.root)).findings if one.check == "unlearned"]
    assert [one.subject for one in findings] == ["version 4", "version 5"]
    assert [one.what for one in findings if "key.json says that 5 cells left" not in one.what] == []
