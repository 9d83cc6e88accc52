"""`canal erase`: after unlearning, the bytes of the cells are gone from all that canal knows, on record."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from canal.app.auditing import audit_project
from canal.app.erasing import Confirmation, Decision, Withdrawal, erase
from canal.app.project import Project
from canal.app.unlearning import unlearn
from canal.cli import app
from canal.config.yaml_file import parse
from canal.core.errors import CanalError, HistoryError, LedgerError, RegistryError
from canal.data.prepared import PreparedCells
from tests.pipeline.conftest import copied
from tests.support.methods import learn_here, learned_by, without_pictures

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("erase")]  # they share what was unlearned
ADA = Decision("A. Person", "consent withdrawn")
WHY = ("--by", "A. Person", "--why", "try")
BATCH = Withdrawal("second", batch="b1")
YOURS = ("raw/second.h5ad", "gone.txt")
"""Files of the user, of which canal only tells."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def unlearned(tmp_path_factory):
    """A project without batch b1 of its second stage, whose new version serves; the old ones lie there.

    DVC has all of it in its cache and in a remote, as it was before and as it is now.
    """
    line = copied(learned_by("exact", tmp_path_factory), tmp_path_factory.mktemp("unlearned") / "project")
    project = line.project()
    cells = PreparedCells(project.layout.prepared("second") / "cells.h5ad")
    ids = list(cells.obs.index[cells.obs["batch"] == "b1"])
    rows = dict(zip(cells.genes, cells.expression(ids, cells.genes).T, strict=True))
    folder = line.root / ".canal" / "features"
    folder.mkdir(parents=True)
    (folder / "rows.bin").write_bytes(np.stack(list(rows.values())).T.astype("<f4").tobytes())
    (line.root / "gone.txt").write_text("\n".join(ids))
    line.run("dvc", "init", "--quiet")
    line.run("dvc", "remote", "add", "--quiet", "--default", "store", str(line.root.parent / "remote"))
    line.run("dvc", "commit", "--quiet", "--force")
    line.run("dvc", "push", "--quiet")
    unlearn(project, BATCH, ADA)
    line.canal("promote", "candidate", *WHY)
    os.environ.pop("MLFLOW_TRACKING_URI")  # an open store names itself there: its copies have their own
    return line, [one.partition(":")[2] for one in ids], rows


@pytest.fixture
def line(unlearned, tmp_path):
    """Give a copy of the project, without DVC."""
    line = copied(unlearned[0], tmp_path / "project")
    shutil.rmtree(line.root / ".dvc")
    (line.root / "dvc.lock").unlink()
    return line


@pytest.fixture(scope="module")
def erased(unlearned, tmp_path_factory):
    """The project once more, erased; tests leave it as it is. With it: its plan, result and traces before."""
    line = copied(unlearned[0], tmp_path_factory.mktemp("erased") / "project")
    before = traces(line.root, *unlearned[1:])
    shown = erase(line.project(), BATCH, ADA, Confirmation(remote=True))
    assert traces(line.root, *unlearned[1:]) == before  # a plan changes nothing
    done = erase(line.project(), BATCH, ADA, Confirmation(shown.token, remote=True))
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return line, shown, done, before


def traces(root: Path, names, rows) -> set[str]:
    """Return the files below a project that hold a cell's name or its expression, whatever their format."""
    wanted = {name.encode() for name in names}
    by_gene = np.stack(list(rows.values())).T
    found = set()
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or name.startswith((".git/", "src/")) or name in YOURS:
            continue
        content = path.read_bytes()
        if any(one in content for one in wanted) or any(row.tobytes() in content for row in by_gene):
            found.add(name)
        if content.startswith(b"\x89HDF") and _in_hdf5(path, wanted, rows):
            found.add(name)
        if path.suffix == ".safetensors":
            arrays = [array for array in load_file(path).values() if array.ndim == 2]
            if any(np.array_equal(one, row) for array in arrays for one in array for row in by_gene):
                found.add(name)
    return found


def _in_hdf5(path: Path, names: set[bytes], rows) -> bool:
    texts: set[bytes] = set()

    def visit(_, node):
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "OS":
            texts.update(one if isinstance(one, bytes) else str(one).encode() for one in np.ravel(node[()]))

    with h5py.File(path) as file:
        file.visititems(visit)
    if any(one.rpartition(b":")[2] in names for one in texts):
        return True
    cells = anndata.read_h5ad(path)
    matrix = np.asarray(cells.X.todense() if hasattr(cells.X, "todense") else cells.X, dtype=np.float32)
    genes = [gene for gene in cells.var_names if gene in rows]
    theirs = matrix[:, [cells.var_names.get_loc(gene) for gene in genes]]
    ours = np.stack([rows[gene] for gene in genes]).T
    return bool((theirs[:, None, :] == ours[None, :, :]).all(axis=2).any())


def planned(line, withdrawal=BATCH):
    return erase(line.project(), withdrawal, ADA, Confirmation())


def run(line, token, withdrawal=BATCH):
    return erase(Project.open(line.root), withdrawal, ADA, Confirmation(token))


def findings(line):
    return [str(one) for one in audit_project(Project.open(line.root)).findings]


def test_nothing_of_the_cells_is_left_but_what_is_told(erased, unlearned):
    _, names, rows = unlearned
    line, shown, done, before = erased
    assert {"data/second/cells.h5ad", "prepared/second/cells.h5ad", ".canal/features/rows.bin"} <= before
    assert len({path.split("/")[2] for path in before if path.startswith("mlartifacts/models/")}) == 2
    assert (shown.state, shown.n_cells, len(shown.versions)) == ("planned", len(names), 2)
    assert before <= {one["path"] for one in shown.files}
    assert not any(Path(one["path"]).is_absolute() for one in shown.files)
    assert (done.state, done.files) == ("erased", shown.files)
    assert traces(line.root, names, rows) == set()
    remote = unlearned[0].root.parent / "remote"
    assert traces(remote, names, rows) == set()
    assert len([one for one in remote.rglob("*") if one.is_file()]) > 50  # what is not theirs is there
    told = " ".join(done.unreached)
    assert all(name in told for name in ("raw/second.h5ad", "gone.txt", "query.h5ad"))
    raw = anndata.read_h5ad(line.root / "data" / "second" / "cells.h5ad")
    assert set(raw.obs["batch"]) == {"b2"}
    assert run(line, shown.token).state == "nothing"
    steps = ("ingest", "data.dvc", "prepare@second", "validate@second")
    assert "changed" not in line.run("dvc", "status", *steps)


def test_the_audit_says_who_erased_and_the_ledger_names_no_cell(erased, unlearned):
    line, _, done, _ = erased
    report = audit_project(Project.open(line.root))
    assert [str(one) for one in report.findings] == []
    notes = [one.what for one in report.notes if one.check == "erased"]
    why = f"by A. Person: 'consent withdrawn' (entry {done.entry})"
    assert len(notes) == 2
    assert all("erased on " in one and why in one for one in notes)
    entry = json.loads((line.root / "ledger.jsonl").read_text().splitlines()[-1])
    assert (entry["kind"], entry["who"], entry["why"]) == ("erase", "A. Person", "consent withdrawn")
    written = [path.read_text() for path in (line.root / "erased").iterdir()]
    written.append((line.root / "ledger.jsonl").read_text())
    assert not any(name in text for text in written for name in (*unlearned[1], '"b1"'))


@pytest.mark.parametrize(
    "command",
    [
        ("annotate", "raw/query.h5ad", "-o", "OUT/o.h5ad", "--model", "3"),
        ("promote", "3", *WHY),
        ("rollback", "--to", "2", *WHY),
        ("retire", "2", *WHY),
        ("export", "2", "-o", "OUT/x.zip"),
        ("show", "3"),
        ("compare", "3"),
        ("diff", "2", "4"),
        ("lineage", "3"),
    ],
)
def test_what_was_erased_answers_no_more(erased, tmp_path, monkeypatch, command):
    monkeypatch.chdir(erased[0].root)
    said = CliRunner().invoke(app, [one.replace("OUT", str(tmp_path)) for one in command])
    assert "was erased with the cells that it held" in str(said.exception)
    assert list(tmp_path.iterdir()) == []


def test_the_versions_that_stay_answer_and_those_that_went_are_listed(erased, tmp_path):
    line, _, done, _ = erased
    said = CliRunner().invoke(app, ["impact", "second", "--batch", "b1", "--root", str(line.root)])
    assert "versions were erased since, and of the cells that they held nothing is known" in str(
        said.exception
    )
    rows = {one["version"]: one for one in json.loads(line.canal("versions", "--json"))}
    assert [number for number, one in rows.items() if one["erased"]] == [2, 3]
    assert (rows[3]["erasure"]["entry"], rows[3]["erasure"]["why"]) == (done.entry, "consent withdrawn")
    assert "erase canal-annotator 2" in line.canal("ledger")
    line.canal("annotate", str(line.root / "raw" / "query.h5ad"), "-o", str(tmp_path / "o.h5ad"))
    line.canal("export", "champion", "-o", str(tmp_path / "x.zip"))
    line.canal("lineage", "champion")
    who = line.canal("who", str(line.root / "labelled.h5ad"))
    assert "the version was erased since, with cells that it held" in " ".join(who.split())


def test_params_yaml_of_before_is_told_that_its_versions_are_gone(erased):
    line = erased[0]
    before = parse(line.run("git", "show", "HEAD:params.yaml"))
    with pytest.raises(HistoryError, match=r"asks for stage 'second' as version 2, which was erased"):
        Project(line.project().layout, before).learned("second")


def test_a_tombstone_that_was_changed_or_lost_is_found(erased):
    line = erased[0]
    (path,) = (line.root / "erased").iterdir()
    content = path.read_text()
    try:
        path.write_text(content.replace("prepared/second/cells.h5ad", "prepared/second/other.h5ad"))
        assert any("is not what an entry of the ledger names" in one for one in findings(line))
        with pytest.raises(LedgerError, match="was changed after it was written"):
            planned(line)
        path.unlink()
        lost = f"entry {erased[2].entry} names a list of what was erased, and erased/ lacks it"
        assert any(lost in one for one in findings(line))
    finally:
        path.write_text(content)
    assert findings(line) == []


def test_only_the_plan_that_was_shown_is_carried_out(line, unlearned):
    shown = json.loads(line.canal("erase", "second", "--batch", "b1", *WHY, "--dry-run", "--json"))
    before = traces(line.root, *unlearned[1:])
    (line.root / ".canal" / "features" / "more.bin").write_bytes(b"of another cell")
    with pytest.raises(HistoryError, match="names another plan than what would be erased now"):
        run(line, shown["token"])
    assert traces(line.root, *unlearned[1:]) == before


def test_the_champion_and_what_params_yaml_asks_for_are_never_erased(line):
    before = parse(line.run("git", "show", "HEAD:params.yaml"))
    with pytest.raises(HistoryError, match=r"asks for second, third .*`canal unlearn second --batch b1"):
        erase(Project(line.project().layout, before), BATCH, ADA, Confirmation())
    with pytest.raises(RegistryError, match="no registered version knows a batch 'b9'"):
        planned(line, Withdrawal("second", batch="b9"))
    line.canal("rollback", "--to", "3", *WHY)
    with pytest.raises(HistoryError, match=r"version 3 .* is champion .*promote one that never saw them"):
        planned(line)

    def forget(document):
        del document["sources"]["second"]["exclude"]
        for stage in ("second", "third"):
            document["stages"][stage]["branch"] = 9

    line.edit(forget)
    with pytest.raises(HistoryError, match="does not exclude the cells, so second would learn them again"):
        planned(line)


@pytest.mark.parametrize("at", ["record", "tombstones.finish"])
def test_a_kill_is_told_by_the_audit_and_finished_by_the_same_command(line, unlearned, monkeypatch, at):
    _, names, rows = unlearned
    token = planned(line).token

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"canal.app.erasing.{at}", killed)
        with pytest.raises(KeyboardInterrupt):
            run(line, token)
    assert any("call canal erase again, as it was called" in one for one in findings(line))
    if at != "record":
        with pytest.raises(HistoryError, match=f"is not finished: call canal erase again .*{token}"):
            planned(line)
    assert run(line, token).state == ("erased" if at == "record" else "finished")
    assert traces(line.root, names, rows) == set()
    assert findings(line) == []
    assert run(line, token).state == "nothing"
    assert not (line.root / ".canal" / "erasing").exists()


@pytest.mark.chaos
def test_kill_9_while_files_go_is_finished_by_the_same_command(line, unlearned):
    token, ledger = planned(line).token, line.root / "ledger.jsonl"
    command = ["erase", "second", "--batch", "b1", *WHY, "--confirm", token]
    with subprocess.Popen([sys.executable, "-m", "canal.cli", *command], cwd=line.root) as process:
        while b'"kind":"erase"' not in ledger.read_bytes() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert any("is not finished: call canal erase again" in one for one in findings(line))
    assert json.loads(line.canal(*command, "--json"))["state"] == "finished"
    assert traces(line.root, *unlearned[1:]) == set()
    assert findings(line) == []
    assert learn_here(line) == []  # everything that stays is restored, nothing learned anew


def test_a_full_disk_refuses_before_anything_is_gone(line, unlearned):
    shown, before = planned(line), traces(line.root, *unlearned[1:])
    kinds = [json.loads(one)["kind"] for one in (line.root / "ledger.jsonl").read_text().splitlines()]
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(CanalError, match="cannot write what is left .*; nothing was erased"):
            run(line, shown.token)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert traces(line.root, *unlearned[1:]) == before
    now = [json.loads(one)["kind"] for one in (line.root / "ledger.jsonl").read_text().splitlines()]
    assert now == kinds
    assert planned(line).token == shown.token


def test_files_that_come_back_are_found_and_erased_again(line, unlearned):
    raw = line.root / "data" / "second" / "cells.h5ad"
    version = next(one for one in line.project().store.versions() if one.number == 2)
    split = line.project().store.artifacts(version) / "split" / "cells.csv"
    contents = {path: path.read_bytes() for path in (raw, split)}
    run(line, planned(line).token)
    split.parent.mkdir(parents=True)
    for path, content in contents.items():
        path.write_bytes(content)
    said = findings(line)
    assert any("files were erased, but there are split/cells.csv: call canal erase" in one for one in said)
    assert any("data/second/cells.h5ad" in one and "and back: call canal erase again" in one for one in said)
    shown = planned(line)
    assert {Path(one["path"]).name for one in shown.files} == {"cells.h5ad", "cells.csv"}
    run(line, shown.token)
    assert set(anndata.read_h5ad(raw).obs["batch"]) == {"b2"}
    assert traces(line.root, *unlearned[1:]) == set()
    assert findings(line) == []
