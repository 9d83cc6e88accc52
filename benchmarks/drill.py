"""A consent is withdrawn: some cells leave a learned project, and canal is asked whether it tells the truth.

    python benchmarks/drill.py --data ~/cells              # a donor leaves kang in the stream immune
    python benchmarks/drill.py --root . --cells 40         # 40 cells leave a finished project's second stage
    python benchmarks/drill.py --root /tmp/immune --source kang --batch ctrl-101

The project is copied. A file is labelled and a version exported while the cells are still known; then they
are unlearned, the new version is promoted, and they are erased. Every check is a line; the exit code is 1 if
one fails. Without ``--root`` the stream immune is learned first, by sums alone.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

from canal.app.project import Project
from canal.app.tasks import add_up_stage
from canal.data.split import SUMMED, read_split
from canal.memory.stage_sums import StageSums

WHO = ("--by", "A. Person", "--why", "consent withdrawn")
_LOOKED_FOR = 20
"""Names that every file is searched for."""


@dataclass
class Drill:
    """A project in which the drill runs, and what came out of it.

    Attributes
    ----------
    root : Path
    program, environment
        How canal is started; by default in this process's own environment.
    checks : list of (str, bool, str)
        What was asked, whether the answer is right, and the answer.
    seconds : dict
        By command.
    """

    root: Path
    program: tuple[str, ...] = (sys.executable, "-m", "canal.cli")
    environment: dict[str, str] | None = None
    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def canal(self, *command: str) -> tuple[int, str]:
        """Return exit code and output of a command of canal."""
        began = time.perf_counter()
        done = subprocess.run(
            [*self.program, *command],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        name = " ".join(one for one in command[:2] if one.isalpha())
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        return done.returncode, done.stdout + done.stderr

    def done(self, *command: str) -> str:
        """Return the output of a command that must succeed."""
        code, said = self.canal(*command)
        if code:
            raise SystemExit(f"canal {' '.join(command)} ended with {code}:\n{said}")
        return said

    def promote(self, why: str) -> None:
        """Promote the newest version; rules that fail in a drill, such as a clean commit, are overridden."""
        command = ("promote", "candidate", "--by", "A. Person", "--why", why)
        code, said = self.canal(*command)
        if code:
            failed = re.search(r"rules? fails? \(([^)]*)\)", " ".join(said.split()))
            rules = failed[1].split(", ") if failed else []
            self.done(*command, *(part for rule in rules for part in ("--override", rule)))

    def check(self, asked: str, right: bool, said: str = "") -> None:
        """Note the answer to a question."""
        self.checks.append((asked, right, " ".join(said.split())[:300]))


def drill(run: Drill, source: str, batch: str | None, n_cells: int, query: Path) -> None:
    """Let a batch, or some training cells, of a source leave the project, and check what is said of it.

    ``query`` is a file of cells to label.
    """
    project = Project.open(run.root)
    stage = next(name for name, one in project.config.stages.items() if one.source == source)
    gone = leaving(project, stage, batch, n_cells)
    names = [cell.partition(":")[2] for cell in gone]
    which: tuple[str, ...] = ("--batch", batch) if batch is not None else ("--cells", "leaving.txt")
    if batch is None:
        (run.root / "leaving.txt").write_text("\n".join(names))
    if champion(project) is None:
        run.promote("serves before the drill")
    before = champion(project)
    before_file, after_file = (str(query.with_name(name)) for name in ("before.h5ad", "after.h5ad"))
    run.done("annotate", str(query), "-o", before_file, "--model", "champion")
    run.done("export", str(before), "-o", "before.zip")
    code, said = run.canal("impact", source, *(("--batch", batch) if batch else ("--cell", names[0])))
    run.check("impact names unlearn and the champion", not code and "canal unlearn" in said, said)

    unlearned = json.loads(json_of(run.done("unlearn", source, *which, *WHO, "--json")))
    run.check("the champion that holds the cells is named", unlearned["champion"] == before)
    after = unlearned["versions"][stage]["after"]
    run.check("the sums are those of the cells that remain", same_sums(run.root, stage, after))
    run.promote("without the cells")

    plan = json.loads(json_of(run.done("erase", source, *which, *WHO, "--dry-run", "--json")))
    held = places_of(run.root, names)
    run.check("before it is erased, the cells are there", bool(held), ", ".join(held[:5]))
    run.done("erase", source, *which, *WHO, "--confirm", plan["token"])
    (run.root / "leaving.txt").unlink(missing_ok=True)
    told = [str(one).partition(": ")[0] for one in plan["unreached"]]
    held = [path for path in places_of(run.root, names) if path not in told]
    held = [path for path in held if batch is not None or not excludes(run.root / path)]
    run.check("afterwards no file names them but what was listed", not held, ", ".join(held[:5]))
    run.check("the exported bundle is listed as out of reach", "before.zip" in json.dumps(plan["unreached"]))

    labelled = f"{query.name}: labelled by version {before}"
    run.check("so is the file that was labelled", labelled in json.dumps(plan["unreached"]))

    code, said = run.canal("audit", "--all")
    run.check("audit finds nothing damaged, and says who erased", not code and "erased" in said, said)
    code, said = run.canal("annotate", str(query), "-o", after_file, "--model", "champion")
    run.check("the new champion labels the file", not code, said)
    for refused in (
        ("annotate", str(query), "-o", "refused.h5ad", "--model", str(before)),
        ("promote", str(before), *WHO),
        ("rollback", "--to", str(before), *WHO),
        ("export", str(before), "-o", "refused.zip"),
    ):
        code, said = run.canal(*refused)
        run.check(
            f"{refused[0]} of the erased version is refused", bool(code) and "Traceback" not in said, said
        )
    code, said = run.canal("who", before_file)
    run.check("who says that the file's version is gone", "erased" in said or "retired" in said, said)
    code, said = run.canal("import", "before.zip")
    run.check("the bundle is not taken back", bool(code) and "erased" in said, said)
    code, said = run.canal("report")
    run.check("the report can be written", not code, said)


def leaving(project: Project, stage: str, batch: str | None, n_cells: int) -> list[str]:
    """Return the names of the cells that leave, as splits have them."""
    split = read_split(project.layout.split(stage))
    if batch is not None:
        return list(split[split["batch"] == batch]["cell_id"])
    ids = sorted(split[split["set"] == "train"]["cell_id"])
    return random.Random(0).sample(ids, n_cells)


def champion(project: Project) -> int | None:
    """Return the number of the version that serves."""
    return next((one.number for one in project.store.versions() if "champion" in one.aliases), None)


def same_sums(root: Path, stage: str, number: int) -> bool:
    """Whether a version's sums of a stage are, byte for byte, those of the cells that its split has now."""
    project = Project.open(root)
    folder = project.store.artifacts(project.store.version(str(number)))
    sums = StageSums.load(folder, (*project.config.ancestors(stage), stage))
    assert sums is not None
    split = read_split(project.layout.split(stage))
    counted = int(split["set"].isin(SUMMED).sum())
    own = add_up_stage(project, stage, sums.basis)[0]
    return sums.stages[stage].digest == own.digest and own.n_cells == counted


def json_of(said: str) -> str:
    """Return the JSON document in what a command printed."""
    return said[said.index("{") : said.rindex("}") + 1]


def places_of(root: Path, names: Sequence[str]) -> list[str]:
    """Return the files of a project that name one of the cells, `_LOOKED_FOR` of them at most.

    Texts of HDF5 files, which may be compressed, are read; all other files are searched as they are. The
    folder of git, out of which nothing can be taken, is left out.
    """
    wanted = set(random.Random(1).sample(sorted(names), min(len(names), _LOOKED_FOR)))
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in (".git", ".venv")]
        paths = [path for path in (Path(folder) / name for name in files) if not path.is_symlink()]
        found += [path.relative_to(root).as_posix() for path in paths if any(names_in(path, wanted))]
    return sorted(found)


def excludes(path: Path) -> bool:
    """Whether a file names cells because it says that they are left out, as `canal erase` tells.

    These are params.yaml, what DVC compares with it, and the requests of later versions.
    """
    if path.name in ("params.yaml", "dvc.lock") or "runs" in path.parts:
        return True
    content = path.read_bytes()
    return content.startswith(b"{") and b'"request"' in content


def names_in(path: Path, wanted: set[str]) -> Iterator[str]:
    """Yield the wanted names that a file holds."""
    content = path.read_bytes()
    yield from (name for name in wanted if name.encode() in content)
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            texts: list[h5py.Dataset] = []
            file.visititems(lambda _, item: texts.append(item) if _is_text(item) else None)
            for item in texts:
                held = {str(one).rpartition(":")[2] for one in np.ravel(item.asstr()[()])}
                yield from wanted & held
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                inside = archive.read(member)
                yield from (name for name in wanted if name.encode() in inside)


def _is_text(item: Any) -> bool:
    return isinstance(item, h5py.Dataset) and h5py.check_string_dtype(item.dtype) is not None


def main() -> int:
    """Copy or learn a project, run the drill, and print its checks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the files of immune, to learn it first")
    parser.add_argument("--root", type=Path, help="a finished project in place of immune")
    parser.add_argument("--source", help="by default that of the second stage")
    parser.add_argument("--batch", help="the batch that leaves; immune: the first of kang's by name")
    parser.add_argument("--cells", type=int, default=40, help="without a batch: so many training cells")
    arguments = parser.parse_args()
    if (arguments.root is None) == (arguments.data is None):
        parser.error("give --data FOLDER, with the files of immune, or --root PROJECT")
    with TemporaryDirectory(prefix="canal-drill-") as folder:
        root = Path(folder) / "project"
        if arguments.root is None:
            learn_immune(arguments.data, root)
        else:
            copy(Project.open(arguments.root), root)
        project = Project.open(root)
        stage = list(project.config.stages)[1]
        source = arguments.source or project.config.stages[stage].source
        batch = arguments.batch
        if arguments.root is None and batch is None:
            batch = min(read_split(project.layout.split(stage))["batch"])
        query = project.layout.root / (project.config.sources[source].path or "")
        if not query.is_file():
            query = next(project.layout.source(source).glob("*.h5ad"))
        shutil.copyfile(query, Path(folder) / "query.h5ad")
        run = Drill(root)
        drill(run, source, batch, arguments.cells, Path(folder) / "query.h5ad")
    return report(run)


def report(run: Drill) -> int:
    """Print what was asked and answered; return 1 if an answer is wrong."""
    for asked, right, said in run.checks:
        print(f"{'ok   ' if right else 'WRONG'} {asked}" + ("" if right else f": {said}"))
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in run.seconds.items())
    wrong = sum(not right for _, right, _ in run.checks)
    print(f"{len(run.checks) - wrong} of {len(run.checks)} answers are right; {took}")
    return int(wrong > 0)


def copy(project: Project, root: Path) -> None:
    """Copy a project, with DVC's cache and git's history, and commit what is new in the copy."""
    shutil.copytree(
        project.layout.root, root, symlinks=True, ignore=shutil.ignore_patterns(".venv", "__pycache__")
    )
    Project.open(root).store.update_paths()
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "before the drill"], cwd=root, check=False)


def learn_immune(data: Path, root: Path) -> None:
    """Learn the stream immune by sums alone."""
    script = Path(__file__).with_name("stream.py")
    command = (sys.executable, str(script), "immune", "--data", str(data), "--into", str(root))
    subprocess.run([*command, "--set", "continual.method=exact"], check=True)


if __name__ == "__main__":
    sys.exit(main())
