"""`canal merge`: two lineages on one basis become one version, as if one had learned both."""

import json
import os

import pytest

from canal.app.auditing import audit_project
from canal.app.joining_lineages import Decision, Joining, Overlap, merge
from canal.app.project import Project
from canal.app.sharing import OverlapKey
from canal.app.tasks import stage_task
from canal.app.unlearning import Withdrawal, unlearn
from canal.core.errors import DataError, HistoryError, RegistryError, SumsError, TrainingError
from canal.core.files import read_json
from canal.memory.joining import all_sums
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums
from tests.pipeline.conftest import copied
from tests.support.bundle_files import members_naming, named_cells
from tests.support.methods import learn_here, learned_by, without_pictures
from tests.support.sites import learned_sites

pytestmark = pytest.mark.pipeline
ADA = Decision("A. Person", "two hospitals")
ONCE = Overlap("once")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return learned_sites(tmp_path_factory)


@pytest.fixture(scope="module")
def bundles(sites, tmp_path_factory):
    """The versions of the other sites, as they hand them over."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("second", "third"):
        sites[name].canal("export", "1", "-o", str(folder / f"{name}.zip"))
    return folder


@pytest.fixture
def line(sites, tmp_path):
    return copied(sites["first"], tmp_path / "project")


@pytest.fixture
def joint(tmp_path_factory, tmp_path):
    """A lineage that has learned the cells of both sites, and more."""
    return copied(learned_by("exact", tmp_path_factory), tmp_path / "joint")


def sums_of(project, number):
    folder = project.store.artifacts(project.store.version(str(number)))
    key = read_json(folder / "key.json")
    sums = StageSums.load(folder, list(key["sums"]))
    assert sums is not None
    return sums, key


def opened(line):
    """Open another project in this process, which would go on with the store of the one before."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return line.project()


def found(project):
    return [str(one) for one in audit_project(project).findings]


def test_two_lineages_become_the_sums_of_one_that_learned_both(line, joint, bundles):
    learned_both, _ = sums_of(opened(joint), 2)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    line.canal("import", str(bundles / "second.zip"))
    shown = merge(line.project(), Joining("1", "2"), ADA, dry_run=True)
    by = ("--by", "A. Person", "--why", "two hospitals")
    printed = json.loads(line.canal("merge", "2", "1", *by, "--dry-run", "--json"))
    assert (shown.version, printed["version"]) == (None, None)
    assert len(line.project().store.versions()) == 2
    said = line.canal("merge", "2", "1", *by)
    assert "it has no network: the next stage has no teacher" in said
    assert "new types: Mono" in said
    assert "not calibrated, for no validation cell is here: Mono" in said
    project = Project.open(line.root)
    sums, key = sums_of(project, 3)
    assert project.learned("first").number == 3
    assert {name: one.digest for name, one in sums.stages.items()} == {
        name: one.digest for name, one in learned_both.stages.items()
    }
    assert {shown.sums, printed["sums"]} == {key["merged"]["sums"], all_sums(learned_both).digest}
    assert key["merged"]["equals"] == "joint learning of both lineages"
    assert learn_here(line) == []  # what was merged is not learned again
    line.canal("export", "3", "-o", str(line.root / "bare.zip"), "--without-cells")
    cells = named_cells(*(joint.root / "splits" / f"{stage}.csv" for stage in ("first", "second")))
    assert members_naming(line.root / "bare.zip", cells) == {}
    assert set().union(*members_naming(bundles / "second.zip", cells).values()) < cells
    line.canal("export", "3", "-o", str(line.root / "whole.zip"))
    assert set().union(*members_naming(line.root / "whole.zip", cells).values()) == cells
    left = unlearn(Project.open(line.root), Withdrawal("first", batch="b1"), ADA)  # own cells can leave still
    again, _ = sums_of(project, left.versions["first"]["after"])
    assert again.stages["second"].digest == sums.stages["second"].digest
    assert again.stages["first"].n_cells < sums.stages["first"].n_cells
    assert found(Project.open(line.root)) == []


@pytest.mark.chaos
def test_two_parents_stand_everywhere(line, bundles, sites, tmp_path):
    line.canal("import", str(bundles / "second.zip"))
    merge(line.project(), Joining("1", "2"), ADA)
    graph = json.loads(line.canal("lineage", "3", "--json"))
    parents = [one["origin"] for one in graph["edges"] if one["kind"] == "merged from"]
    assert parents == ["version:canal-annotator/1", "version:canal-annotator/2"]
    tree = line.canal("lineage", "3")
    assert "merged from canal-annotator 1" in tree
    assert "merged from canal-annotator 2" in tree
    line.canal("lineage", "3", "--html", str(tmp_path / "page.html"))
    assert "merged from" in (tmp_path / "page.html").read_text()
    line.canal("report", "3", "-o", str(tmp_path / "report"))
    card = (tmp_path / "report" / "README.md").read_text()
    assert "- second: merged from another lineage" in card
    impact = json.loads(line.canal("impact", "second", "--json"))
    assert {(one["version"], one["grade"]) for one in impact["versions"]} >= {(2, "learned"), (3, "learned")}
    shown = json.loads(line.canal("show", "3", "--json"))
    assert (shown["parent"], shown["method"]["merged"]["overlap"]["checked"]) == (1, "content digests")
    line.canal(
        "annotate", str(line.root / "raw/query.h5ad"), "-o", str(tmp_path / "out.h5ad"), "--model", "3"
    )
    who = json.loads(line.canal("who", str(tmp_path / "out.h5ad"), "--json"))["registry"]
    assert who["merged"] == {"of": [1, 2], "equals": "joint learning of both lineages"}
    line.canal("export", "3", "-o", str(tmp_path / "merged.zip"))
    other = copied(sites["third"], tmp_path / "other")
    opened(other)
    other.canal("import", str(tmp_path / "merged.zip"))
    assert found(other.project()) == []
    far = json.loads(other.canal("lineage", "2", "--json"))
    labels = {one["id"]: one["label"] for one in far["nodes"]}
    assert [labels[one["origin"]] for one in far["edges"] if one["kind"] == "merged from"] == [
        "canal-annotator elsewhere (first)",
        "canal-annotator elsewhere (second)",
    ]


@pytest.mark.chaos
def test_what_is_learned_on_a_merged_version_has_no_teacher_and_keeps_its_sums(line, bundles, capsys):
    line.canal("import", str(bundles / "second.zip"))
    merge(line.project(), Joining("1", "2"), ADA)

    def one_more(document):
        third = {"source": "third", "parent": "first"}
        document["sources"]["third"] = {**document["sources"]["first"], "path": "raw/third.h5ad"}
        document["stages"]["third"] = third

    line.edit(one_more)
    from canal.core.digests import file_digest

    raw = line.root / "raw" / "third.h5ad"
    line.edit(lambda document: document["sources"]["third"].update(sha256=file_digest(raw)))
    assert "finetune third" in learn_here(line)
    assert "third: first was merged without a network: there is no teacher" in capsys.readouterr().err
    sums, _ = sums_of(Project.open(line.root), 4)
    assert set(sums.stages) == {"second", "first", "third"}
    assert found(Project.open(line.root)) == []
    line.edit(lambda document: document["stages"]["third"].update(continual={"method": "combined"}))
    with pytest.raises(AssertionError, match="was merged without a network, so there is no teacher"):
        line.canal("versions")


def test_cells_that_left_do_not_come_back_by_a_merge(joint):
    unlearn(joint.project(), Withdrawal("second", batch="b1"), ADA)
    project = Project.open(joint.root)
    number = str(project.learned("third").number)
    with pytest.raises(HistoryError, match="cells of version 3 .* are excluded by params.yaml"):
        merge(project, Joining(number, "3", overlap=ONCE), ADA)


@pytest.mark.chaos
def test_a_version_that_cells_left_is_merged_and_its_audit_holds(joint, bundles):
    unlearn(joint.project(), Withdrawal("second", batch="b1"), ADA)
    joint.canal("import", str(bundles / "second.zip"))
    project = Project.open(joint.root)
    merge(project, Joining(str(project.learned("third").number), "6", overlap=ONCE), ADA)
    assert found(Project.open(joint.root)) == []


@pytest.mark.parametrize(("at", "named"), [("take_over", "candidate"), ("register", "1")])
def test_an_alias_that_moved_with_a_killed_merge_completes_it(line, bundles, monkeypatch, at, named):
    line.canal("import", str(bundles / "second.zip"))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"canal.app.joining_lineages.{at}", killed)
        with pytest.raises(KeyboardInterrupt):
            merge(line.project(), Joining("1", "2"), ADA)
    made = merge(Project.open(line.root), Joining(named, "2"), ADA)
    assert Project.open(line.root).learned("first").number == made.version == 3
    assert merge(Project.open(line.root), Joining("candidate", "2"), ADA).version == 3
    assert found(Project.open(line.root)) == []


@pytest.mark.chaos
def test_cells_of_both_are_refused_or_counted_once(joint, sites, bundles, tmp_path):
    key, wrong, bundle = tmp_path / "key", tmp_path / "wrong", tmp_path / "site.canal"
    key.write_text("a secret of the two sites")
    wrong.write_text("another secret of two sites")
    opened(sites["second"])
    sites["second"].canal("share", "1", "-o", str(bundle), "--min-cells", "5", "--overlap-key", str(key))
    original = all_sums(sums_of(opened(joint), 3)[0])
    unlearn(joint.project(), Withdrawal("second", batch="b1"), ADA)  # the other batch is of both then
    joint.canal("import", str(bundles / "second.zip"))
    project = Project.open(joint.root)
    number, ours, theirs = str(project.learned("third").number), OverlapKey.read(key), OverlapKey.read(wrong)

    def merged(other, overlap, dry_run=True):
        return merge(project, Joining(number, other, overlap=overlap), ADA, dry_run=dry_run)

    with pytest.raises(SumsError, match=r"16 summed cells of version 6 .* \(16 of second\).*--overlap once"):
        merged("6", Overlap())
    with pytest.raises(SumsError, match="16 summed cells of site.canal"):
        merged(str(bundle), Overlap("refuse", ours))
    with pytest.raises(SumsError, match="made with another overlap key"):
        merged(str(bundle), Overlap("once", theirs))
    assert merged(str(bundle), Overlap()).overlap == {"checked": "not checked", "cells": 0}
    keyed = merged(str(bundle), Overlap("once", ours))
    assert (keyed.sums, keyed.overlap["checked"]) == (original.digest, "keyed digests")
    prepared = project.layout.prepared("second") / "cells.h5ad"
    kept = prepared.read_bytes()
    prepared.unlink()
    with pytest.raises(HistoryError, match="whose prepared file is gone"):
        merged("6", ONCE)
    prepared.write_bytes(kept)
    made = merged("6", ONCE, dry_run=False)
    assert made.sums == original.digest  # the cells that had left are back, and no cell is counted twice
    assert made.overlap["cells"] == 16
    again = Project.open(joint.root)
    assert found(again) == []
    _, key_json = sums_of(again, made.version)
    assert next(iter(key_json["merged"]["stages"])).startswith("second-")


def test_all_common_cells_leave_nothing_to_add(joint, bundles):
    joint.canal("import", str(bundles / "second.zip"))
    with pytest.raises(SumsError, match="all cells of .* are in .* already: there is nothing to add"):
        merge(joint.project(), Joining("3", "4", overlap=ONCE), ADA)


@pytest.fixture(scope="module")
def untouched(sites, bundles, tmp_path_factory):
    """The first site with the versions of both others, which every test leaves as it is."""
    line = copied(sites["first"], tmp_path_factory.mktemp("untouched") / "project")
    for name in ("second", "third"):
        line.canal("import", str(bundles / f"{name}.zip"))
    return line


@pytest.mark.parametrize(
    ("joining", "error", "message"),
    [
        (Joining("2", "3"), HistoryError, "one of both has to be the newest version .* of another project"),
        (Joining("1", "1"), RegistryError, "1 and 1 are one version: a merge needs two lineages"),
        (Joining("1", "9"), RegistryError, "9"),
        (Joining("1", "2", network="2"), HistoryError, "only the network of version 1"),
        (Joining("1", "2", network="1"), HistoryError, "version 1 .first. has no network"),
        (Joining("1", "2", same=("NK",)), SumsError, "--same NK: no such type is in both"),
    ],
)
def test_what_cannot_be_merged_is_refused(untouched, joining, error, message):
    before = (untouched.root / "params.yaml").read_bytes()
    with pytest.raises(error, match=message):
        merge(untouched.project(), joining, ADA)
    assert (untouched.root / "params.yaml").read_bytes() == before
    assert len(untouched.project().store.versions()) == 3


def test_there_is_no_third_way_with_common_cells():
    with pytest.raises(SumsError, match="--overlap is refuse or once, found 'twice'"):
        Overlap("twice")


def test_a_name_with_two_meanings_is_refused_unless_a_person_says_otherwise(untouched, tmp_path):
    table = tmp_path / "names.csv"
    table.write_text("B,T\nT,B\n")
    with pytest.raises(
        SumsError, match=r"2 names seem to mean other cells [\s\S]* looks exchanged with T[\s\S]*--same 'B'"
    ):
        merge(untouched.project(), Joining("1", "2", names=table), ADA)
    said = merge(untouched.project(), Joining("1", "2", table, ("B", "T")), ADA, dry_run=True)
    assert said.meanings["B"]["exchanged"] == "T"
    table.write_text("B,B cell\nMono,Monocyte\n")
    said = merge(untouched.project(), Joining("1", "2", table), ADA, dry_run=True)
    assert said.new_types == ("B cell", "Monocyte")
    (tmp_path / "names.yaml").write_text("T: NK\n")
    with pytest.raises(SumsError, match="NK: its cells there are"):
        merge(untouched.project(), Joining("1", "2", tmp_path / "names.yaml"), ADA)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "Basophil,B\n", "names Basophil, which the other lineage has not; it has B, Mono, T"),
        ("a.csv", "B,B cell,more\n", "must hold two names in each line"),
        ("a.csv", "", "found nothing"),
        ("a.csv", "B,unassigned\n", "no cell type is called Unassigned"),
        ("a.csv", "B,B\u202e\n", "a.csv: the cell type"),
        ("a.csv", "B,X\nB,Y\n", "names a type of theirs twice"),
        ("a.yaml", "- B\n", "must hold two names in each line"),
        ("a.yaml", "B: [", "no table of two columns"),
    ],
)
def test_a_table_of_names_is_checked(untouched, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        merge(untouched.project(), Joining("1", "2", tmp_path / name), ADA, dry_run=True)
    with pytest.raises(DataError, match="no such file"):
        merge(untouched.project(), Joining("1", "2", tmp_path / "none.csv"), ADA, dry_run=True)


def test_sums_of_two_bases_are_refused_with_the_way_to_one(untouched, monkeypatch):
    load = StageSums.load

    def of_another_basis(folder, stages):
        sums = load(folder, stages)
        other = "second" in sums.stages
        return StageSums(Basis(sums.basis.genes[::-1], {}), sums.stages, sums.missing) if other else sums

    monkeypatch.setattr(StageSums, "load", of_another_basis)
    with pytest.raises(SumsError, match=r"of two bases, \w{12}\.\.\. here and \w{12}.*canal basis adopt"):
        merge(untouched.project(), Joining("1", "2"), ADA)


def test_a_kill_is_completed_by_the_next_call(line, bundles, monkeypatch):
    line.canal("import", str(bundles / "second.zip"))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("canal.app.remaking._install", killed)
        with pytest.raises(KeyboardInterrupt):
            merge(line.project(), Joining("1", "2"), ADA)
    made = merge(line.project(), Joining("1", "2"), ADA)
    assert made.version == 3
    assert merge(Project.open(line.root), Joining("1", "2"), ADA).version == 3  # done already
    assert len(line.project().store.versions()) == 3
    assert found(Project.open(line.root)) == []


@pytest.mark.chaos
def test_a_network_is_kept_and_knows_no_type_of_the_other_lineage(tmp_path_factory, bundles, tmp_path):
    line = copied(learned_by("combined", tmp_path_factory), tmp_path / "project")
    line.canal("import", str(bundles / "third.zip"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("canal.continual.combining.WEIGHTS", (0.5,))
        made = merge(line.project(), Joining("3", "4", network="3"), ADA)
    project = Project.open(line.root)
    assert found(project) == []
    sums, key = sums_of(project, made.version)
    assert key["merged"]["network"] == project.store.version("3").key
    assert next(name for name in sums.stages if name not in project.config.stages).startswith("third-")
    folder = project.store.artifacts(project.store.version(str(made.version))) / "model"
    assert set(read_json(folder / "labels.json")) - set(read_json(folder / "network_labels.json")) == {"Mast"}
    same = project.store.artifacts(project.store.version("3")) / "model" / "weights.safetensors"
    assert (folder / "weights.safetensors").read_bytes() == same.read_bytes()
    raw, out = line.root / "raw" / "query.h5ad", tmp_path / "out.csv"
    line.canal("annotate", str(raw), "-o", str(out), "--model", str(made.version))
    assert "Mast" in out.read_text()  # by its sums
    assert learn_here(line) == []

    def one_more(document):
        fourth = {"source": "first", "parent": "third"}
        document["stages"]["fourth"] = fourth

    line.edit(one_more)
    with pytest.raises(TrainingError, match="that of third does not know Mast, which were merged in as sums"):
        stage_task(line.project(), "fourth", 10)
