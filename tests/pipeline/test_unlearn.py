"""`canal unlearn`: versions without a batch or some cells, as if a lineage had never seen them."""

import json
import resource
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import h5py
import pytest
from filelock import FileLock
from ruamel.yaml import YAML
from typer.testing import CliRunner

from canal.app.auditing import audit_project
from canal.app.backfilling import commit_to_lock
from canal.app.impact import CellQuery, impact
from canal.app.project import Project
from canal.app.tasks import add_up_stage
from canal.app.unlearning import Decision, Withdrawal, unlearn
from canal.cli import app
from canal.continual.bank import PROBE, Probe
from canal.core.errors import ConfigError, HistoryError
from canal.data.prepare import prepare
from canal.data.split import SUMMED, read_split
from canal.memory.stage_sums import StageSums
from canal.model.annotator import GENES
from canal.model.storage import read_names
from canal.registry.transfer.proof import held_cells, proven_bundle
from tests.pipeline.conftest import copied, keep_hooks
from tests.support.bundle_files import members_naming, named_cells
from tests.support.methods import learn_here, learned_by, without_pictures

pytestmark = pytest.mark.pipeline
ADA = Decision("A. Person", "consent withdrawn")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    without_pictures(monkeypatch)


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


@pytest.mark.chaos
def test_what_was_unlearned_is_handed_on_without_cells(line, tmp_path):
    """Cells that left one by one are named in key.json, which says what was excluded (docs/models.md)."""
    cells = named_cells(*(line.root / "splits" / f"{stage}.csv" for stage in ("first", "second", "third")))
    gone = set(named(line, 2))
    by_batch = unlearn(line.project(), Withdrawal("first", batch="b1"), ADA).versions["third"]["after"]
    by_name = unlearn(line.project(), Withdrawal("second", cells=tuple(gone)), ADA).versions["third"]["after"]
    for number, left in ((by_batch, set()), (by_name, {one.partition(":")[2] for one in gone})):
        bundle = tmp_path / f"{number}.zip"
        line.canal("export", str(number), "-o", str(bundle), "--without-cells")
        found = members_naming(bundle, cells)
        assert set().union(*found.values()) == left
        assert all(name.endswith("key.json") for name in found)
        with proven_bundle(bundle) as (_, _, chain):
            assert held_cells(chain) == {"bank": 0, "probe": 0, "named": 0}


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
    assert audit_project(again, depth="recomputed").findings == ()


@pytest.mark.chaos
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
    assert audit_project(again, depth="recomputed").findings == ()


def test_steps_that_dvc_yaml_has_no_longer_are_passed_over(learned, tmp_path):
    line = copied(learned[0], tmp_path / "project")
    lock = line.root / "dvc.lock"
    document = YAML(typ="safe").load(lock)
    document["stages"]["finetune-tuned@second"] = document["stages"]["finetune@second"]
    YAML().dump(document, lock)
    model = line.root / "models" / "second" / "history.json"
    model.write_text(model.read_text() + "\n")
    assert "models/second" in line.run("dvc", "status", "finetune@second")
    commit_to_lock(line.project().store, ["finetune-tuned@second", "finetune@second"], "again")
    assert "up to date" in line.run("dvc", "status", "finetune@second")


def test_a_process_of_dvc_that_a_killed_command_left_is_waited_for(learned, tmp_path):
    """It writes dvc.lock in place, so that a part of it is there meanwhile."""
    line = copied(learned[0], tmp_path / "project")
    path, whole = line.root / "dvc.lock", (line.root / "dvc.lock").read_bytes()
    began = Event()

    def orphan():
        with FileLock(line.project().layout.private / "locks" / "dvc.lock"):
            path.write_bytes(b"")
            began.set()
            time.sleep(1)
            path.write_bytes(whole)

    (line.project().layout.private / "locks").mkdir(parents=True, exist_ok=True)
    thread = Thread(target=orphan)
    thread.start()
    began.wait()
    commit_to_lock(line.project().store, ["finetune@second"], "again")
    thread.join()
    assert YAML(typ="safe").load(path) == YAML(typ="safe").load(whole.decode())


def test_a_prepared_file_with_other_values_of_the_cells_is_refused(line):
    project, cells = line.project(), named(line, 2)
    path = project.layout.prepared("second") / "cells.h5ad"
    with h5py.File(path, "r+") as file:
        file["X/data"][...] = file["X/data"][...] + 1
    with pytest.raises(HistoryError, match="is another one: restore it"):
        unlearn(project, Withdrawal("second", cells=cells), ADA)


@pytest.mark.chaos
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
    keep_hooks(line)
    line.run("git", "commit", "--quiet", "--all", "--message", "hooks")
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
    told = [json.loads(text) for text in (line.root / "told.jsonl").read_text().splitlines()]
    assert [one["action"] for one in told] == ["promote", "unlearn", "retire", "promote"]
    unlearned = told[1]
    assert (unlearned["version"], unlearned["stage"], unlearned["alias"]) == (5, "third", "candidate")
    assert unlearned["unlearn"]["versions"] == said["versions"]
    assert [one["version"] for one in unlearned["entries"]] == [4, 5]
    assert unlearned["why"] == "consent withdrawn"
    assert (told[2]["version"], told[2]["entries"][0]["kind"]) == (2, "retire")


@pytest.mark.parametrize(
    ("withdrawal", "message"),
    [
        (Withdrawal("nowhere", batch="b1"), "no source 'nowhere' in params.yaml; there are first"),
        (Withdrawal("first"), "the lineage starts with first: panel and backbone are of its cells"),
        (Withdrawal("third"), "nothing was learned on third, so what remains is the version of second"),
        (Withdrawal("second", batch="b9"), "second has no batch 'b9' of second: batches such as b1, b2"),
        (Withdrawal("second", cells=("nobody",)), "second has no 1 of the 1 named cells .* second:nobody"),
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


@pytest.mark.parametrize(
    ("query", "offered"),
    [
        (CellQuery("second", batch="b1"), "canal unlearn second --batch b1"),
        (CellQuery("second"), "canal unlearn second --by"),
        (CellQuery("first"), None),  # the lineage begins with it
        (CellQuery("third"), None),  # nothing was learned after it
    ],
)
def test_impact_offers_what_can_be_unlearned(untouched, query, offered):
    steps = impact(untouched.project(), query).steps
    found = [step for step in steps if step.text.startswith("canal unlearn")]
    assert [step.text.startswith(offered) for step in found] == ([True] if offered else [])


def test_impact_says_how_long_the_newest_runs_took_to_learn_the_stages(line):
    store = line.project().store
    runs = [
        ("second", "finetune", 40),
        ("second", "finetune", 30),
        ("third", "evaluate", 5),
        ("first", "tune", 9),
    ]
    for start, (stage, step, seconds) in enumerate(runs, 1):
        tags = {"canal.stage": stage, "canal.step": step}
        run = store.client.create_run(store.experiment_id, start_time=start * 1000, tags=tags)
        store.client.set_terminated(run.info.run_id, end_time=(start + seconds) * 1000)
    steps = impact(line.project(), CellQuery("second")).steps
    offer = next(one for one in steps if "unlearn" in one.text)
    assert offer.why.endswith("; learning second and third took 35 s")


def test_types_with_few_probe_cells_are_named_as_not_calibrated(untouched):
    project = untouched.project()
    shown = unlearn(project, Withdrawal("second", batch="b1"), ADA, dry_run=True)
    folder = project.store.artifacts(project.store.version("3"))
    probe = Probe.load(folder / PROBE, read_names(folder / "model", GENES)).cells
    left = set(read_split(project.layout.split("second")).query("batch != 'b1'")["cell_id"])
    of_second = [name == "second" for name in probe.stages]
    kept = [
        type_
        for type_, own, id_ in zip(probe.cell_types, of_second, probe.cell_ids, strict=True)
        if not own or id_ in left
    ]
    assert shown.not_calibrated == tuple(name for name in sorted(set(kept)) if kept.count(name) < 20)
    assert shown.not_calibrated


def test_a_stage_cannot_lose_all_its_cells(untouched):
    split = read_split(untouched.project().layout.split("second"))
    with pytest.raises(
        HistoryError, match="all training cells of second would leave, .* `canal impact second`"
    ):
        unlearn(untouched.project(), Withdrawal("second", cells=tuple(split["cell_id"])), ADA)


@pytest.mark.parametrize("at", [pytest.param("registry_sync", marks=pytest.mark.chaos), "save", "_install"])
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


@pytest.mark.chaos
def test_of_two_people_at_once_the_second_goes_on_from_the_first(line):
    people = {
        "A. Person": ("--batch", "b1"),
        "B. Person": ("--cells", "gone.txt"),
    }
    (line.root / "gone.txt").write_text("\n".join(named(line, 2)))
    with ThreadPoolExecutor() as pool:
        commands = [
            ("canal", "unlearn", "second", *which, "--by", who, "--why", "asked")
            for who, which in people.items()
        ]
        list(pool.map(lambda command: line.run(*command), commands))
    again = Project.open(line.root)
    excluded = again.config.sources["second"].exclude
    assert (excluded.batches, len(excluded.cells)) == (("b1",), 2)
    left = set(read_split(again.layout.split("second"))["batch"])
    assert "b1" not in left
    sums, _ = sums_of(again, again.learned("third").number)
    assert sums.stages["second"].digest == add_up_stage(again, "second", sums.basis)[0].digest
    assert audit_project(again).findings == ()


def test_an_editor_that_saves_params_yaml_meanwhile_loses_nothing(line):
    params = line.root / "params.yaml"

    def edits(_):
        params.write_text(params.read_text() + "# a comment of a person\n")

    with pytest.raises(ConfigError, match="was changed while this command ran, .* call the command again"):
        unlearn(line.project(), Withdrawal("second", batch="b1"), ADA, edits)
    assert "# a comment of a person" in params.read_text()
    unlearn(Project.open(line.root), Withdrawal("second", batch="b1"), ADA)
    assert "# a comment of a person" in params.read_text()
    assert audit_project(Project.open(line.root)).findings == ()


def test_on_a_full_disk_it_is_refused_and_works_afterwards(line):
    withdrawn = ("unlearn", "second", "--batch", "b1", "--by", "A. Person", "--why", "asked")
    before = {path: path.read_bytes() for path in (line.root / "params.yaml", line.root / "ledger.jsonl")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        done = CliRunner().invoke(app, [*withdrawn, "--root", str(line.root)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert {path: path.read_bytes() for path in before} == before
    line.canal(*withdrawn)
    assert audit_project(Project.open(line.root)).findings == ()


@pytest.mark.chaos
def test_what_remains_can_leave_in_turn(line):
    unlearn(line.project(), Withdrawal("second", batch="b1"), ADA)
    made = unlearn(Project.open(line.root), Withdrawal("second", cells=named(line, 2)), ADA)
    again = Project.open(line.root)
    assert again.learned("second").branch == 3
    sums, folder = sums_of(again, made.versions["third"]["after"])
    assert sums.stages["second"].digest == add_up_stage(again, "second", sums.basis)[0].digest
    assert audit_project(again, depth="recomputed").findings == ()


def test_an_audit_finds_that_other_cells_left_than_the_key_says(line, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("canal.app.unlearning._counts", lambda _: (5, 5, "0" * 64))
        unlearn(line.project(), Withdrawal("second", batch="b1"), ADA)
    findings = [one for one in audit_project(Project.open(line.root)).findings if one.check == "unlearned"]
    assert [one.subject for one in findings] == ["version 4", "version 5"]
    assert [one.what for one in findings if "key.json says that 5 cells left" not in one.what] == []
