"""A small real project: git, DVC, MLflow and the repository's own pipeline at preset tiny.

It is learned once; a test that changes it works on a copy.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from ruamel.yaml import YAML
from typer.testing import CliRunner

from canal.app.project import Project
from canal.cli import app
from canal.registry.audit.opening import Opening
from tests.support.cells import make_adata, make_document, source_of, write_adata
from tests.support.outputs import complaints, words_of
from tests.support.warm import REPOSITORY, warmly

COPIED = (
    "MLproject",
    "python_env.yaml",
    "dvc.yaml",
    "data.dvc",
    "constraints.txt",
    ".gitignore",
    ".dvcignore",
)
CELLS = {
    "first": {"B": 40, "T": 40, "NK": 30},
    "second": {"B": 30, "T": 30, "Mono": 40},
    "third": {"T": 30, "DC": 40},
}


@dataclass(frozen=True)
class Line:
    """A project folder, and how to run things in it as a person would."""

    root: Path

    def run(self, *command: str, expect: int = 0) -> str:
        """Run a command in the project and return what it printed; any other exit code fails the test."""
        done = subprocess.run(
            command, cwd=self.root, env=warmly(self.root), capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == expect, f"{command} ended with {done.returncode}:\n{output[-6000:]}"
        return output

    def canal(self, *arguments: str) -> str:
        """Run a command of canal in this process, which has imported what it needs; return its output.

        What --json prints is compared with what `canal schema` says of the command.
        """
        done = CliRunner().invoke(app, [*arguments, "--root", str(self.root)])
        assert done.exit_code == 0, f"{arguments}:\n{done.output}{done.exception!r}"
        if "--json" in arguments:
            assert complaints(words_of(arguments), json.loads(done.stdout)) == []
            return done.stdout
        return done.output

    def lose(self, *outs: str) -> None:
        """Delete outs from the folder and from DVC's cache, as if they had never been made."""
        lock = YAML(typ="safe").load(self.root / "dvc.lock")
        digests = {
            out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", ())
        }
        shutil.rmtree(self.root / ".dvc" / "cache" / "runs")
        for out in outs:
            path = self.root / out
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            digest = digests[out]
            (self.root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]).unlink()

    def learn(self) -> str:
        """Run the pipeline and register what it learned, as `make run` does."""
        return self.run("dvc", "repro", "--quiet") + self.canal("registry", "sync")

    def project(self) -> Project:
        """Open the project in this process."""
        return Project.open(self.root)

    def edit(self, change) -> None:
        """Change params.yaml by a function of its document."""
        yaml, path = YAML(), self.root / "params.yaml"
        document = yaml.load(path)
        change(document)
        yaml.dump(document, path)

    def keys(self) -> dict[str, str]:
        """Return the digest of every registered version's key, by number."""
        versions = self.project().store.versions()
        return {str(version.number): version.key for version in versions if version.ready}


def keep_hooks(line: Line) -> None:
    """Declare a hook that keeps what it is told in told.jsonl, after one that fails."""
    code = "import sys; open('told.jsonl', 'a').write(sys.stdin.read() + '\\n')"
    every = ["promote", "rollback", "retire", "unlearn"]
    failing = {"on": every, "command": ["false"], "attempts": 2, "pause_s": 0.01}
    keeping = {"on": every, "command": [sys.executable, "-c", code]}
    line.edit(lambda document: document.update(hooks=[failing, keeping]))


def lay_out(root: Path) -> Line:
    """Make a project folder with the repository's own pipeline, no parameters and no cells yet."""
    root.mkdir(parents=True)
    for name in ("src", "pipelines", "gate"):
        ignored = shutil.ignore_patterns("*.egg-info")  # compiled files are ignored by git and DVC
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
    for name in COPIED:
        shutil.copyfile(REPOSITORY / name, root / name)
    return Line(root)


def begin(line: Line) -> Line:
    """Let a project whose parameters are written be a repository of git and DVC, all committed."""
    line.run("git", "init", "--quiet", "--initial-branch", "main")
    line.run("dvc", "init", "--quiet")
    line.run("git", "add", "--all")
    line.run("git", "commit", "--quiet", "--message", "start")
    return line


def make_project(root: Path) -> Line:
    """Make a project of two stages in a new folder, committed to git, nothing learned yet."""
    line = lay_out(root)
    for seed, (stage, types) in enumerate(CELLS.items()):
        write_adata(make_adata(types, seed=seed), root / "raw" / f"{stage}.h5ad")
    sources = {
        name: source_of(root / "raw" / f"{name}.h5ad").model_dump(mode="json", exclude_unset=True)
        | {"path": f"raw/{name}.h5ad"}
        for name in ("first", "second")
    }
    document = make_document(sources=sources, novelty={"holdouts": ["NK"]})
    YAML().dump(document, root / "params.yaml")
    return begin(line)


@pytest.fixture(scope="session")
def learned(tmp_path_factory) -> tuple[Line, str]:
    """Learn the small project once for all processes of the suite; return it and what learning it printed."""
    return learned_once(tmp_path_factory, "pipeline", make_project)


def learned_once(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    make: Callable[[Path], Line],
    learn: Callable[[Line], str] = Line.learn,
) -> tuple[Line, str]:
    """Make and learn a project once for all processes of the suite; return it and what learning printed."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    line, printed = Line(shared / "project"), shared / "printed.txt"
    with FileLock(f"{shared}.lock"):
        if not printed.is_file():
            make(line.root)
            said = learn(line)
            line.run("git", "add", "--all")
            line.run("git", "commit", "--quiet", "--message", "learned")
            printed.write_text(said)
    return line, printed.read_text()


@pytest.fixture
def line(learned, tmp_path_factory) -> Line:
    """Give a copy of the learned project, as it was when it had just been learned."""
    original, _ = learned
    return copied(original, tmp_path_factory.mktemp("copy") / "project")


@pytest.fixture
def unopened(monkeypatch):
    """Leave the child process out that opens each version: what it finds is tried in test_opening.py."""
    monkeypatch.setattr(Opening, "start", lambda self: self)
    monkeypatch.setattr(Opening, "report", lambda self, log: None)


def copied(original: Line, root: Path) -> Line:
    """Copy a project, and tell its database where it lies now."""
    # A third of shutil's time. Times stay (-p), so that Python's compiled files of src/ do, too.
    subprocess.run(["cp", "-R", "-p", original.root, root], check=True)
    move_database(root, original.root)
    return Line(root)


def move_database(root: Path, before: Path) -> None:
    """Tell a copied MLflow database where its artifacts lie now; MLflow notes absolute paths."""
    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    with sqlite3.connect(root / "mlflow.db") as database:
        for table, column in columns.items():
            change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            database.execute(change, (before.as_uri(), root.as_uri()))
    database.close()
