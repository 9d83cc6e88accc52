"""`canal init`, `plan` and `upgrade`: a project has the files at the top of canal's source."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from shutil import which
from typing import get_args

import click
import pytest
from ruamel.yaml import YAML
from typer.main import get_command
from typer.testing import CliRunner

from canal.app import at_work, planning, upgrading
from canal.app.creating import (
    USED,
    FirstStage,
    Wish,
    create,
    of_installed,
    require_used,
    used_canal,
    write_text,
)
from canal.app.declaring import free_name, propose_stage
from canal.app.planning import not_fetched, plan, uncommitted
from canal.app.project import Project
from canal.app.upgrading import upgrade
from canal.cli import app
from canal.config.sections import Values
from canal.config.yaml_file import load_config, with_stage
from canal.core import __version__
from canal.core.errors import ConfigError, GateError
from canal.core.files import read_json
from tests.support.cells import make_adata, source_of, write_adata
from tests.support.warm import REPOSITORY, environment

STAGED = {"path": "x.h5ad", "sha256": "0" * 64, "label": "cell_type", "values": "counts", "layer": "X"}
"""What params.yaml says of a stage's file, which need not be there to be looked at."""


@pytest.fixture(autouse=True)
def person(monkeypatch):
    """Give git a name to commit by, and no settings of a user."""
    for name, value in environment(REPOSITORY).items():
        if name.startswith("GIT_"):
            monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a project without a stage; a test that changes it works on a copy."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(REPOSITORY).items():
            if name.startswith("GIT_"):
                patch.setenv(name, value)
        return create(tmp_path_factory.mktemp("made") / "blood", Wish()).root


@pytest.fixture
def project(made, tmp_path):
    return shutil.copytree(made, tmp_path / "blood")


def cells(path: Path, n_per_type=None, **options):
    """Write cells that express enough genes for the defaults."""
    return write_adata(make_adata(n_per_type or {"B": 40, "T": 40, "NK": 30}, n_genes=700, **options), path)


def first(path: Path) -> FirstStage:
    return FirstStage("first", source_of(path).model_dump(mode="json", exclude_unset=True))


def canal(*words, expect=0):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == expect, f"{words}: {done.exit_code} {done.exception!r}\n{done.output}"
    return f"{done.output}{done.exception or ''}"


def git(root, *words):
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# The files.


def test_the_files_are_those_at_the_top_of_the_source(made):
    scripts = {path.name for path in (REPOSITORY / "pipelines").glob("*.py")}
    assert {path.name for path in (made / "pipelines").iterdir()} == scripts
    names = [".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitattributes", ".gitignore"]
    for name in (*names, *(f"pipelines/{one}" for one in scripts)):
        assert (made / name).read_bytes() == (REPOSITORY / name).read_bytes(), name
    project = (REPOSITORY / "MLproject").read_text()
    assert (made / "MLproject").read_text() == project.replace("PYTHONPATH=src ", "")
    assert "src" not in (made / "MLproject").read_text()


def test_steps_are_those_of_the_source_but_depend_on_the_installed_code(made):
    yaml = YAML(typ="safe")
    source, own = (yaml.load(root / "dvc.yaml")["stages"] for root in (REPOSITORY, made))
    assert list(own) == list(source)
    rooms = set()
    for name, entry in source.items():
        before, after = (one.get("do", one) for one in (entry, own[name]))
        used = {one.removeprefix("src/canal/") for one in before["deps"] if one.startswith("src/")}
        rooms |= used
        params = [one for one in after["params"] if not isinstance(one, dict)]
        assert params == before["params"]
        assert after["deps"] == [one for one in before["deps"] if not one.startswith("src/")]
        code = {key for one in after["params"] if isinstance(one, dict) for key in one[USED]}
        assert code == {f"code.{room}" for room in used}
        rest = {"deps", "params"}
        assert {k: v for k, v in after.items() if k not in rest} == {
            k: v for k, v in before.items() if k not in rest
        }
    assert rooms <= set(used_canal()["code"])
    assert "src/canal" not in (made / "dvc.yaml").read_text()


def test_comments_of_the_pipeline_stay(made):
    text = (REPOSITORY / "dvc.yaml").read_text()
    kept = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert kept
    assert all(line.strip() in of_installed(text) for line in kept)


def test_a_project_is_committed_clean_and_says_what_comes_next(made):
    assert git(made, "status", "--porcelain") == ""
    assert git(made, "log", "--format=%s") == "Begin blood"
    readme = (made / "README.md").read_text()
    commands = re.findall(r"^canal [a-z]+ .*$", readme, re.MULTILINE)
    assert commands[0].startswith("canal stage add NAME --file")
    config = load_config(made / "params.yaml")
    assert (config.stages, config.continual.method) == ({}, "exact")
    assert config.registry.model == "blood-annotator"
    assert (made / "requirements.txt").read_text() == f"canal-cells[project]=={__version__}\n"
    workflow = YAML(typ="safe").load(made / ".github" / "workflows" / "canal.yml")
    steps = "\n".join(step.get("run", "") for step in workflow["jobs"]["canal"]["steps"])
    assert all(one in steps for one in ("canal plan", "canal run", "canal audit", "dvc pull"))


def test_every_command_of_a_projects_readme_is_one_that_canal_reads(made):
    """It named a second version for `canal compare`, which takes one."""
    commands = re.findall(r"^canal .*$", (made / "README.md").read_text(), re.MULTILINE)
    assert len(commands) > 8
    for line in commands:
        group, words = get_command(app), shlex.split(line, comments=True)[1:]
        while isinstance(group, click.Group):
            group = group.commands[words.pop(0)]
        group.make_context("canal", words)


def test_the_demo_has_the_shipped_parameters_and_data(tmp_path):
    root = create(tmp_path / "demo", Wish(demo=True)).root
    for name in ("params.yaml", "data.dvc"):
        assert (root / name).read_bytes() == (REPOSITORY / name).read_bytes()
    planned = plan(Project.open(root))
    assert [one.fate for one in planned.stages] == ["learn"] * 5
    assert "data.dvc" in {*planned.steps, *planned.perhaps}
    assert not planned.refused


def test_a_file_begins_the_lineage_with_what_its_cells_ask_for(tmp_path):
    """Its gate needs no panel, which the first stage is still to choose."""
    path = cells(tmp_path / "Blood Cells.h5ad")
    root = tmp_path / "lineage"
    words = ("--values", "counts", "--batch", "batch", "--min-genes", "150")
    said = canal("init", root, "--first", path, *words, "--method", "combined")
    assert "passed: 0 errors" in said
    config = load_config(root / "params.yaml")
    assert (list(config.stages), config.root_stage) == (["blood-cells"], "blood-cells")
    assert config.stages["blood-cells"].parent == "backbone"
    assert config.continual.method == "combined"
    assert config.sources["blood-cells"].path == str(path)
    assert config.min_genes("blood-cells") == 150
    assert git(root, "status", "--porcelain") == ""
    assert "stage add NAME" not in (root / "README.md").read_text().partition("## Label")[0]


def test_a_file_that_the_gate_refuses_leaves_no_project(tmp_path):
    path = cells(tmp_path / "few.h5ad", {"B": 20, "T": 3})
    seen = []
    with pytest.raises(GateError, match="stage 'first' was not added"):
        create(tmp_path / "lineage", Wish(first=first(path)), seen.append)
    assert [verdict.passed for verdict in seen] == [False]
    assert [one.name for one in tmp_path.iterdir()] == ["few.h5ad"]


@pytest.mark.parametrize("with_file", [True, False])
def test_a_dry_run_writes_nothing(tmp_path, with_file):
    path = cells(tmp_path / "cells.h5ad")
    given = ("--first", path, "--values", "counts") if with_file else ()
    said = canal("init", tmp_path / "lineage", *given, "--dry-run")
    assert f"would make {tmp_path / 'lineage'}, of 26 files: .dvc/config, " in said
    assert [one.name for one in tmp_path.iterdir()] == ["cells.h5ad"]


def test_an_empty_folder_is_filled_and_any_other_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert create(tmp_path / "empty", Wish()).problem is None
    with pytest.raises(ConfigError, match="is a project already"):
        create(tmp_path / "empty", Wish())
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        create(tmp_path / "file", Wish())
    with pytest.raises(ConfigError, match="lies in the git repository"):
        create(tmp_path / "empty" / "inner" / "most", Wish())
    for name in ("Upper", "with blank", "-x", "x" * 65):
        with pytest.raises(ConfigError, match="is not a project's name"):
            create(tmp_path / name, Wish())


def test_a_project_can_be_made_in_the_working_folder(tmp_path, monkeypatch):
    """`mkdir atlas; cd atlas; canal init .` left the shell in a folder that was gone, and a traceback."""
    here = tmp_path / "atlas"
    here.mkdir(mode=0o750)
    monkeypatch.chdir(here)
    inode, mode = here.stat().st_ino, here.stat().st_mode
    done = CliRunner().invoke(app, ["init", ".", "--demo"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert (here.stat().st_ino, here.stat().st_mode) == (inode, mode)
    assert Path("params.yaml").is_file()
    assert subprocess.run(["git", "status", "--short"], capture_output=True, check=True).stdout == b""
    assert [one.name for one in tmp_path.iterdir()] == ["atlas"]


def test_a_lineage_of_mouse_genes_is_begun_by_an_option(tmp_path):
    canal("init", tmp_path / "lineage", "--species", "mouse")
    assert load_config(tmp_path / "lineage" / "params.yaml").gate.species == "mouse"
    assert "gate: {species: mouse}" in (tmp_path / "lineage" / "params.yaml").read_text()


def test_a_folder_that_is_a_project_is_refused_before_the_file_is_read(tmp_path, made):
    said = canal("init", made, "--first", tmp_path / "no.h5ad", "--values", "counts", expect=1)
    assert "is a project already: `canal stage add NAME" in said
    assert "the gate judges" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--label", "x"), "--label: of which file"),
        (("--map", "x.csv", "--values", "counts"), "--map, --values: of which file"),
        (("--min-genes", "0"), "--min-genes: of which file"),
        (("--first", "no.h5ad"), "--values, the units of no.h5ad, is missing"),
        (("--first", "no.h5ad", "--values", "counts"), "no.h5ad: no such file; give"),
        (("--first", "no.h5ad", "--values", "counts", "--demo"), "give one of the two"),
        (("--demo", "--method", "exact"), "leave one of --method and --demo out"),
        (("--demo", "--species", "mouse"), "leave one of --species and --demo out"),
    ],
)
def test_words_that_do_not_fit_are_refused_before_anything_is_made(tmp_path, words, message):
    assert message in canal("init", tmp_path / "lineage", *words, expect=1)
    assert list(tmp_path.iterdir()) == []


def test_a_typo_in_an_option_is_told_of_the_option(project, tmp_path):
    """The answer was "params.yaml has 1 problem", in a file that the user had not seen yet."""
    path = cells(tmp_path / "cells.h5ad")
    said = canal("init", tmp_path / "lineage", "--first", path, "--values", "count", expect=2)
    assert "'--values'" in said
    assert all(one in said for one in get_args(Values))
    declared = ("--file", path, "--values", "counts", "--root", project)
    for words, message in (
        (("donors", *declared, "--parent", "backbon"), "--parent: 'backbon' is no stage above this one"),
        (("Donors", *declared), "the stage's name: 'Donors' is not a name: use 1-64 of"),
        (("donors", *declared, "--grow", "5"), "--grow: the first stage chooses the whole panel"),
    ):
        refused = canal("stage", "add", *words, expect=1)
        assert message in refused
        assert "params.yaml" not in refused
    with pytest.raises(
        ConfigError, match=r"^--values: expected 'counts', .*, found 'count'; did you mean 'cou"
    ):
        propose_stage("a", first(path).source | {"values": "count"}, None, project)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("lung.h5ad", "lung"),
        ("Lung (donor 3).h5ad", "lung-donor-3"),
        ("x.h5ad", "x-2"),
        ("細胞.h5ad", "file"),
    ],
)
def test_a_judged_file_is_called_by_its_name(project, file, name):
    """Not "new-1", which nobody had named."""
    path = project / "params.yaml"
    path.write_text(with_stage(path.read_text(), "x", STAGED, None))
    assert free_name(Path(file), project) == name


def test_a_status_beside_a_run_says_so_and_asks_for_nothing_that_the_run_does(project):
    path = project / "params.yaml"
    path.write_text(with_stage(path.read_text(), "x", STAGED, None))
    before = canal("status", "--root", project)
    assert "asks for what is not learned: backbone" in before
    assert "git commit" in before
    assert not (project / ".canal" / "locks" / "run.lock").exists()  # looking makes no file
    with at_work.run_lock(project, patience_s=0):
        said = canal("status", "--root", project)
        document = json.loads(canal("status", "--json", "--root", project))
    assert "at work in this folder" in said
    assert "asks for what is not learned" not in said
    assert "git commit" not in said
    assert document["running"]
    assert canal("status", "--root", project) == before


def test_without_a_name_git_keeps_the_files_uncommitted_and_it_is_said(tmp_path, monkeypatch):
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    said = canal("init", tmp_path / "lineage")
    assert "but not committed: git does not know who you are: git config --global user.name" in said
    root = tmp_path / "lineage"
    assert "params.yaml" in git(root, "status", "--porcelain")
    words = ("-c", "user.name=A", "-c", "user.email=a@lab", "commit", "--quiet", "--message", "Begin")
    git(root, *words)
    assert git(root, "status", "--porcelain") == ""


def test_an_old_git_and_a_users_list_of_ignored_files_make_the_same_repository(tmp_path, monkeypatch):
    """`git init --initial-branch` came with 2.28; `*.yaml` on the list left params.yaml out of the commit."""
    old = tmp_path / "old" / "git"
    old.parent.mkdir()
    old.write_text(f'#!/bin/sh\ncase "$*" in *--initial-branch*) exit 129;; esac\nexec {which("git")} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent), prepend=":")
    (tmp_path / "ignored").write_text("*.yaml\n*.json\ngate\n")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.excludesFile")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(tmp_path / "ignored"))
    made = create(tmp_path / "lineage", Wish())
    assert (made.problem, git(made.root, "branch", "--show-current")) == (None, "main")
    assert sorted(git(made.root, "ls-files").splitlines()) == sorted(made.files)


def test_a_repository_that_git_cannot_make_leaves_no_project(tmp_path, monkeypatch):
    broken = tmp_path / "broken" / "git"
    broken.parent.mkdir()
    broken.write_text(
        f'#!/bin/sh\ncase "$1" in add) echo "No space left" >&2; exit 128;; esac\nexec {which("git")} "$@"\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent), prepend=":")
    with pytest.raises(ConfigError, match=r"git cannot begin a repository here \(git add: No space left\)"):
        create(tmp_path / "lineage", Wish())
    assert not (tmp_path / "lineage").exists()


# A plan's warnings.


def test_a_pipeline_of_another_canal_is_refused_before_dvc_reads_it(project):
    """DVC's own error about the old pipeline took the place of the command that mends it."""
    (project / USED).unlink()
    (project / "dvc.yaml").write_text("stages: {tune: {foreach: '${finetune.tuned}', do: {cmd: 'true'}}}")
    with pytest.raises(ConfigError, match=r"DVC cannot read .* 'finetune\.tuned'"):
        planning.dvc_steps(project)
    path = cells(project / "cells.h5ad")
    canal("stage", "add", "donors", "--file", path, "--values", "counts", "--root", project)
    assert "`canal upgrade` gives it" in canal("plan", "--root", project, expect=1)


def test_what_no_commit_holds_is_told_before_it_is_learned(project, tmp_path):
    """Such a version can never be promoted by rule `clean`, and is never learned again."""
    path = cells(tmp_path / "cells.h5ad")
    words = ("stage", "add", "donors", "--file", path, "--values", "counts", "--root", project)
    assert 'next: git commit -m "Add stage donors" params.yaml, then canal run' in canal(*words)
    warning = "git does not hold params.yaml as it is here: what is learned now fails"
    assert [one.partition(" the policy")[0] for one in plan(Project.open(project)).warnings] == [warning]
    git(project, "commit", "--quiet", "-m", "Add stage donors", "params.yaml")
    planned = plan(Project.open(project))
    assert planned.warnings == ()
    (project / "ledger.jsonl").write_text("{}\n")
    assert "`dvc pull` brings" in not_fetched(Project.open(project), planned.stages)
    shutil.rmtree(project / ".git")
    assert "no git repository with a commit" in uncommitted(project, planned.stages)


# A project without a stage.


@pytest.mark.parametrize("words", [("plan",), ("run",), ("run", "--dry-run"), ("validate", "x.h5ad")])
def test_without_a_stage_the_command_that_adds_one_is_named(project, words, monkeypatch):
    monkeypatch.chdir(project)
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 1
    assert "Traceback" not in done.output


def test_the_first_stage_is_added_without_naming_a_parent(project, tmp_path):
    path = cells(tmp_path / "cells.h5ad")
    words = ("stage", "add", "donors", "--file", path, "--values", "counts", "--root", project)
    before = (project / "params.yaml").read_text()
    said = canal(*words, "--dry-run")
    assert "+  donors:\n+    source: donors\n+    parent: backbone" in said
    assert (project / "params.yaml").read_text() == before
    canal(*words, "--commit")
    assert git(project, "log", "-1", "--format=%s") == "Add stage donors"
    assert load_config(project / "params.yaml").panel.stage == "donors"
    assert "would start a new branch for donors" in canal(
        "stage", "relearn", "donors", "--dry-run", "--root", project
    )
    assert load_config(project / "params.yaml").stages["donors"].branch == 1


# The canal that a project uses.


def test_another_version_is_refused_until_the_project_is_upgraded(project):
    used = read_json(project / USED)
    (project / USED).write_text(json.dumps({**used, "canal": "0.0.1"}))
    with pytest.raises(ConfigError, match=r"uses canal 0\.0\.1 and this is canal .*: `canal upgrade`"):
        require_used(project)
    with pytest.raises(ConfigError, match=r"git does not hold canal\.json as it is here"):
        upgrade(Project.open(project))
    git(project, "commit", "--quiet", "--all", "--message", "older")
    moved = upgrade(Project.open(project))
    assert (moved.before, moved.after, moved.files) == ("0.0.1", __version__, {USED: "changed"})
    require_used(project)
    assert upgrade(Project.open(project)).files == {}


def test_code_that_changed_within_a_version_runs_the_steps_that_use_it_again(project, capsys):
    used = read_json(project / USED)
    used["code"]["data"] = "0" * 64
    (project / USED).write_text(json.dumps(used))
    require_used(project, renew=False)
    assert read_json(project / USED) == used
    require_used(project)
    assert read_json(project / USED) == used_canal()
    assert "the installed canal's code has changed" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"code": {}}', "{"])
def test_a_damaged_canal_json_is_named(project, content):
    (project / USED).write_text(content)
    with pytest.raises(ConfigError, match=r"canal\.json is not as canal writes it: git checkout"):
        require_used(project)


def test_an_upgrade_keeps_what_people_wrote(project):
    """Patterns, requirements and parameters are added to; a changed script is in git, or not replaced."""
    (project / ".gitignore").write_text("my notes/\n")
    (project / "requirements.txt").write_text("scanpy\ncanal-cells[project]==0.0.1  # ours\nseaborn\n")
    (project / "pipelines" / "ours.py").write_text("print('ours')\n")
    (project / "params.yaml").write_text((project / "params.yaml").read_text().replace("memory: {}\n", ""))
    said = canal("upgrade", "--dry-run", "--root", project)
    assert "params.yaml: would be changed" in said
    assert "memory" not in (project / "params.yaml").read_text()
    moved = upgrade(Project.open(project))
    assert set(moved.files) == {"params.yaml", ".gitignore", "requirements.txt"}
    assert moved.left == ("pipelines/ours.py",)
    ignored = (project / ".gitignore").read_text().splitlines()
    assert ignored[0] == "my notes/"
    assert "/mlflow.db" in ignored
    required = (project / "requirements.txt").read_text().splitlines()
    assert required == ["scanpy", f"canal-cells[project]=={__version__}", "seaborn"]
    script = project / "pipelines" / "split.py"
    script.write_text("mine")
    with pytest.raises(ConfigError, match=r"git does not hold pipelines/split\.py as it is here"):
        upgrade(Project.open(project))
    assert script.read_text() == "mine"


def test_canals_own_source_is_no_project_that_is_upgraded(tmp_path):
    root = tmp_path / "source"
    shutil.copytree(REPOSITORY / "src" / "canal", root / "src" / "canal")
    shutil.copyfile(REPOSITORY / "params.yaml", root / "params.yaml")
    require_used(root)
    assert upgrade(Project.open(root)).files == {}
    (root / "src" / "canal" / "core" / "digests.py").write_text("")
    with pytest.raises(ConfigError, match="another copy of canal's source"):
        require_used(root)


def test_a_kill_before_the_last_file_is_mended_by_a_second_call(project, monkeypatch):
    for name in ("MLproject", "dvc.yaml", "python_env.yaml", USED):
        (project / name).unlink()
    git(project, "commit", "--quiet", "--all", "--message", "none of them")
    done = []

    def killed(path, text):
        if path.name == "python_env.yaml":
            raise KeyboardInterrupt
        done.append(path.name)
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(upgrading, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            upgrade(Project.open(project))
    assert (set(done), (project / USED).exists()) == ({"MLproject", "dvc.yaml"}, False)
    moved = upgrade(Project.open(project))
    assert list(moved.files) == ["python_env.yaml", USED]
    require_used(project)
