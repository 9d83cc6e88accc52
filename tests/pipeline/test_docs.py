"""Every command and Python block of README and docs, run on the shipped params.yaml with synthetic cells."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import canal
from canal.app.watching import ALARM_CODE
from canal.cli import app
from canal.core.errors import PolicyError
from canal.registry.promotion.moves import moving
from canal.registry.promotion.promotion import Decision, promote
from tests.pipeline.conftest import Line, copied, learned_once
from tests.support.cells import make_adata, write_adata
from tests.support.formats import write_10x_v3
from tests.support.registered import OVERRIDDEN
from tests.support.shipped import GENES, labelled_as, make_shipped, shipped
from tests.support.warm import REPOSITORY, warmly

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("docs")]

OWN = "docs/own.md"
"""The page about a project of one's own: its commands run in an empty folder, tests/pipeline/test_own.py."""

PAGES = (
    "README.md",
    *sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md")),
)
NOT_RUN = {
    (
        "README.md",
        "canal init ../pancreas --first islets.h5ad --label cell_type --values counts --batch donor",
    ): ("makes a folder outside of any project: tests/pipeline/test_own.py"),
    ("docs/backends.md", 'canal promote candidate --by "Ben" --why "reviewed"'): (
        "needs a server on which another folder moved something: tests/backends/test_mirror.py"
    ),
    ("docs/backends.md", "canal ledger --catch-up"): "the same",
    (
        "docs/board.md",
        "canal ui --token-file token",
    ): "runs until it is told to end: tests/browser/test_board.py",
    ("docs/serving.md", "canal serve"): "runs until it is told to end: tests/pipeline/test_serve.py",
    ("docs/tuning.md", "canal tune run kang-ctrl"): "needs a PostgreSQL: tests/tuning/test_many_machines.py",
    ("docs/tuning.md", "canal registry ui"): "runs until it is told to end: tests/registry/test_decisions.py",
    ("docs/registry.md", 'canal ledger anchor --by "A. Person"'): (
        "the line before commits the ledger, and is no command of canal: tests/pipeline/test_walk.py"
    ),
    ("docs/registry.md", 'canal ledger merge --by "A. Person" --why "both labs promoted"'): (
        "needs a merge that git left unsettled: tests/registry/test_ledger_merge.py"
    ),
    (
        "docs/withdraw.md",
        'canal erase tumour --cells withdrawn.txt --by "A. Person" --why "consent withdrawn" --confirm TOKEN',
    ): "a person copies the token that the line before it prints: tests/pipeline/test_erase.py",
    (
        "docs/guide.md",
        "canal backbone import panglao_pretrain.pth --genes panglao_10000.h5ad "
        "--gene2vec gene2vec_16906.npy --commit",
    ): "weights of another group, at another size of the network: tests/test_importing.py",
    (
        "docs/scale.md",
        "canal annotate atlas/*.h5ad -o atlas-labels --engine dask --scheduler tcp://node1:8786",
    ): "needs a cluster: tests/pipeline/test_many_files.py",
    (
        "docs/scale.md",
        "canal annotate 's3://lab/atlas/*.h5ad' s3://lab/atlas/cord.zarr -o s3://lab/labels",
    ): "needs an object store: tests/annotation/test_object_store.py",
    ("docs/scale.md", "canal annotate 's3://lab/atlas/*.h5ad' -o s3://lab/labels --shard 3/8"): "the same",
    ("docs/scale.md", "canal collect s3://lab/labels"): "the same",
    ("docs/scale.md", "canal annotate s3://lab/atlas/donor1.h5ad -o s3://lab/donor1.parquet"): "the same",
}
"""Commands that cannot run here, and why; a page that loses one of them fails."""

PYTHON_NOT_RUN = {
    ("docs/annotate.md", "sc.pp.neighbors"): (
        "scanpy compiles its neighbours and UMAP first: tests/report/test_plots.py looks at X_canal"
    ),
}
"""Python blocks that are not run, by a line in them, and why; a page that loses one of them fails."""

OTHERS = {
    ".venv/bin/python": "installs packages",
    "cd": "the tests have folders of their own",
    "curl": "asks a server: tests/pipeline/test_serve.py",
    "dvc": "another machine's remote",
    "export": "of one shell",
    "git": "commits what the commands before it wrote: tests/pipeline/test_own.py and test_walk.py run these",
    "make": "each is a job of minutes to hours; `make run` is run",
    "mlflow": "a server that does not end: tests/backends",
    "openssl": "makes a secret",
    "optuna-dashboard": "a server that does not end",
    "pip": "installs packages: tests/test_installed.py",
    "python": "examples and benchmarks: tests/pipeline/test_examples.py, tests/benchmarks",
    "source": "of one shell",
    "tools/setup.sh": "makes the environment that runs this",
}
"""What a reader types beside canal's commands, by its first word, and why it is not run here."""

MAY_REFUSE = ("canal promote", "canal audit --require-signed")
"""Commands that may end with exit code 1: a policy judges the model, and most entries are not signed."""

MAY_ALARM = "canal watch"
"""The command that may end with exit code 3: the files of the pages hold a type that nobody has seen."""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Line:
    """Give the shipped project, learned, with the files that the pages speak of and a champion."""
    line, _ = learned_once(tmp_path_factory, "shipped", make_shipped)
    marker = line.root / "your.h5ad"
    if not marker.exists():
        write_files(line.root)
    return line


def write_files(root: Path) -> None:
    """Write the files of a reader: cells of known types and of one that nobody has seen."""
    document = shipped()
    shown = re.search(
        r"canal validate lung.h5ad --stage (\S+)", (REPOSITORY / "docs" / "gate.md").read_text()
    )
    source = document["sources"][document["stages"][shown[1]]["source"]]
    lung = labelled_as(source, seed=78)
    lung.obs["donor"] = lung.obs["batch"]
    write_adata(lung, root / "lung.h5ad")
    names = {name: (source["label_map"].get(name) or "") for name in lung.obs["cell_type"].unique()}
    for file in ("map.csv", "names.csv"):  # a page may write its own map.csv, in which names.csv decides
        (root / file).write_text("".join(f"{name},{kind}\n" for name, kind in names.items()))
    types = [name for source in document["sources"].values() for name in source["label_map"].values() if name]
    known = dict.fromkeys(list(dict.fromkeys(types))[:3], 25)
    cells = make_adata(known | {"never seen": 800}, GENES, seed=77, batches=("d1", "d2", "d3"))
    cells.obs["donor"] = cells.obs["batch"]
    write_10x_v3(cells, root).rename(root / "filtered_feature_bc_matrix.h5")
    cells.obs["cell_type_annotations"] = cells.obs["cell_type"]
    cells.obsm["X_umap"] = np.random.default_rng(0).normal(size=(cells.n_obs, 2))  # so that none is computed
    for name in ("tumour", "new", "your"):
        write_adata(cells, root / f"{name}.h5ad")
    (root / "atlas").mkdir()
    for name in ("donor1", "donor2"):
        write_adata(cells, root / "atlas" / f"{name}.h5ad")
    withdrawn = anndata.read_h5ad(root / "raw" / "tumour.h5ad").obs_names[:3]
    (root / "withdrawn.txt").write_text("\n".join(withdrawn))


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Return the code blocks of a page in their order, each with its language."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.findall(r"^ *```([a-z]*)\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)


def commands_in(block: str) -> list[str]:
    """Return the lines of a code block that a reader would type, without prompts and comments.

    A block that shows a prompt shows what the command prints as well, which may name commands in turn.
    """
    lines = [line.strip() for line in block.splitlines()]
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [re.sub(r"\s+#.*$", "", line) for line in lines if re.match(r"canal |make run|\w+=\$\(", line)]


def commands_of(page: str) -> list[str]:
    """Return the commands of a page in their order."""
    return [line for _, block in blocks_of(page) for line in commands_in(block)]


def python_in(block: str) -> str:
    """Return what a reader would run of a Python block: where it shows prompts, the lines behind them."""
    shown = re.findall(r"^(?:>>>|\.\.\.) ?(.*)$", block, re.MULTILINE)
    return "\n".join(shown) if shown else block


def is_python(page: str, language: str, block: str) -> bool:
    """Whether a block is Python that is to be run."""
    skipped = (line for name, line in PYTHON_NOT_RUN if name == page)
    return language == "python" and not any(line in block for line in skipped)


def words_of(line: str, before: list[str], root: Path) -> list[str]:
    """Return the words of a command as a shell gives them to it, after earlier assignments."""
    script = "\n".join([*before, re.sub(r"^canal ", "printf '%s\\\\0' ", line)])
    done = subprocess.run(["bash", "-euc", script], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.removesuffix("\0").split("\0")


def run(line: str, before: list[str], root: Path) -> str:
    """Run a command in this process, as a reader would in ``root``, and return what it printed."""
    command, _, more = re.match(r"(.*?)(\s+(?:>>|\|\|)\s+(.*))?$", line).groups(default="")
    done = CliRunner().invoke(app, words_of(command, before, root))
    refusal = done.exit_code == 1 and isinstance(done.exception, (PolicyError, SystemExit))
    alarmed = done.exit_code == ALARM_CODE and line.startswith(MAY_ALARM)
    well = done.exit_code == 0 or alarmed or (refusal and (line.startswith(MAY_REFUSE) or "||" in line))
    assert well, f"{line}: {done.exit_code} {done.exception!r}\n{done.output[-3000:]}"
    if ">>" in line:
        (root / more).write_text(done.stdout)
    return done.output


def fill_in(sheet: Path) -> None:
    """Name the groups of a sheet of `canal novel`, as a person does between two commands."""
    with sheet.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["cell_type"] = "never seen"
    with sheet.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def decide(sheet: Path) -> None:
    """Decide what each label of a sheet of `canal stage map` is, as a person does between two commands."""
    with (sheet.parent / "names.csv").open(newline="") as stream:
        names = dict(csv.reader(stream))
    with sheet.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["cell_type"] = names[row["label"]] or "drop"
    with sheet.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def steps_of(page: str) -> list[tuple[bool, str]]:
    """Return what a page has to run, in its order: whether it is Python, and the command or the block."""
    steps: list[tuple[bool, str]] = []
    for language, block in blocks_of(page):
        if is_python(page, language, block):
            steps.append((True, python_in(block)))
        elif language != "python":
            steps += [(False, line) for line in commands_in(block)]
    return steps


def run_python(block: str, names: dict[str, Any], page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a Python block in the project's folder, with the names of the blocks before it on the page."""
    with monkeypatch.context() as patch:
        if "mlflow" in block:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd() / 'mlflow.db'}")
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if page != OWN and steps_of(page)])
def test_every_command_of_a_page_runs(project, tmp_path, monkeypatch, page):
    line = copied(project, tmp_path / "project")
    monkeypatch.chdir(line.root)
    monkeypatch.delenv("XDG_CONFIG_HOME")  # the pages speak of ~/.config
    for name, value in warmly(line.root).items():
        if name.startswith("GIT_"):
            monkeypatch.setenv(name, value)
    names = {"adata": anndata.read_h5ad("your.h5ad"), "anndata": anndata, "canal": canal}
    before: list[str] = []
    skipped = {command for name, command in NOT_RUN if name == page}
    if page != "docs/registry.md":  # which promotes by itself
        store = line.project().store
        with moving(store) as ledger:
            for version in ("1", "2"):
                promote(
                    store, ledger, store.version(version), OVERRIDDEN, Decision("A. Person", "for the pages")
                )
    done: list[str] = []
    for in_python, command in steps_of(page):
        if in_python:
            run_python(command, names, page, monkeypatch)
            continue
        if command == "make run":
            if any(one.startswith("canal stage add") for one in done):
                line.run("dvc", "repro", "--quiet", "split")  # as much of it as the commands behind it need
        elif not command.startswith("canal "):
            before.append(command)
        elif command not in skipped:
            if named := re.search(r" -o (\S+)", command):  # another example of the page may have written it
                for left in line.root.glob(f"{Path(named[1]).stem}.*"):
                    left.unlink()
            output = run(command, before, line.root)
            assert "Traceback" not in output
            if command.startswith(("canal novel", "canal stage map")):
                fill = fill_in if command.startswith("canal novel") else decide
                fill(line.root / re.search(r"-o (\S+)", command)[1])
        done.append(command)


def test_commands_that_are_not_run_are_still_on_their_pages():
    gone = [entry for entry in NOT_RUN if entry[1] not in commands_of(entry[0])]
    assert gone == []


def test_python_blocks_that_are_not_run_are_still_on_their_pages():
    held = {(page, line) for page, line in PYTHON_NOT_RUN for _, block in blocks_of(page) if line in block}
    assert held == PYTHON_NOT_RUN.keys()


def test_what_else_a_reader_types_is_listed_with_a_reason():
    """A block that begins with a command, or shows prompts, holds commands alone; others show output."""
    typed = set()
    for page in PAGES:
        for language, block in blocks_of(page):
            lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
            lines = [line for line in lines if line and not line.startswith("#")]
            if language not in ("", "bash") or not lines:
                continue
            prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
            if not prompted and lines[0].split()[0] in {"canal", *OTHERS}:
                prompted = lines
            typed |= {line.split()[0] for line in prompted if not re.match(r"canal |make run|\w+=\$\(", line)}
    assert sorted(typed - OTHERS.keys()) == []
    assert sorted(OTHERS.keys() - typed) == []


def test_what_the_text_calls_a_command_is_one_with_such_options():
    """Of commands within sentences, such as `canal stage add NAME`, name and options are real."""
    root, wrong = typer.main.get_command(app), []
    for page in (*PAGES, "CONTRIBUTING.md"):
        for said in re.findall(r"`canal ([^`]+)`", (REPOSITORY / page).read_text(encoding="utf-8")):
            at: Any = root
            words = re.split(r"[\s|\\\[\]]+", said)
            while words and words[0] in getattr(at, "commands", ()):
                at = at.commands[words.pop(0)]
            known = {name for one in at.params for name in one.opts} | {"--help"}
            options = [word for word in words if re.match(r"--?[a-z]", word)]
            named = not hasattr(at, "commands") or not words or words[0].startswith("-")
            if not named or not set(options) <= known:
                wrong.append(f"{page}: canal {said}")
    assert wrong == []


def test_every_source_and_a_cell_of_it_is_followed_forward(project, monkeypatch):
    """A tuned stage keeps L in its choice: this ended in KeyError 'bank_size' on the shipped stream."""
    monkeypatch.chdir(project.root)
    document = shipped()
    assert any(one.get("tune") for one in document["stages"].values())  # else nothing is shown here
    for stage, declared in document["stages"].items():
        source = declared["source"]
        split = (project.root / "splits" / f"{stage}.csv").read_text().splitlines()
        cell = next(row.split(",")[0] for row in split if ",train," in row or row.endswith(",train"))
        for words in (
            ["impact", source, "--json"],
            ["impact", source, "--cell", cell, "--json"],
            ["lineage", "--data", source, "--json"],
            ["lineage", "--cell", cell, "--json"],
        ):
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, f"{words}: {done.exception!r}"
            assert json.loads(done.stdout)
