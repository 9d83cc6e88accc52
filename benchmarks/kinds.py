r"""Kinds of hostile and odd inputs: how many of each are answered rightly, now and by an earlier revision.

    python benchmarks/kinds.py --root . --before b42cc87

Every case of `inputs/` is made of 240 cells of the tumour sample, as whole counts, and handed to the gate, or
to annotation with the model of --root. Right is what the case says: the labels that the same cells have as
counts, or a refusal or a warning that names the cause; nothing left behind, nothing else changed. A
traceback, a crash, a process of over 30 s or 8 GiB is never right.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from inputs import bombs, driver, formats, labels, links, names, values
from inputs.case import Case
from scipy.sparse import csr_matrix

from canal.io.h5ad import open_h5ad

if TYPE_CHECKING:
    from anndata import AnnData

REPOSITORY = Path(__file__).resolve().parents[1]
CASES: tuple[Case, ...] = (
    *values.CASES, *values.GATE, *labels.CASES, *names.CASES, *links.CASES, *formats.CASES, *bombs.CASES,
)  # fmt: skip
CELLS = 240
Answer = dict[str, Any]


def main() -> None:
    """Read the arguments, try every case with each revision, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="a project that has learned (make run)")
    parser.add_argument("--before", metavar="REV", help="a revision of this repository to measure beside it")
    parser.add_argument("--only", metavar="WORD", default="", help="cases whose kind or name holds this")
    parser.add_argument("--wrong", action="store_true", help="say what every wrong answer was")
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.only in f"{case.kind}: {case.name}"]
    model, cells = learned(arguments.root)
    tried = Counter(case.kind for case in cases)
    columns: dict[str, Counter[str]] = {}
    for revision in [*([arguments.before] if arguments.before else []), "now"]:
        with source_of(revision) as source:
            found = list(answers(source, model, cells, cases))
        columns[revision] = Counter(case.kind for case, wrong in found if not wrong)
        for case, wrong in found:
            if wrong and (arguments.wrong or revision == "now"):
                print(f"{revision}: {case.kind}: {case.name}: {wrong}")
    show(tried, columns)
    raise SystemExit(any(tried[kind] != columns["now"][kind] for kind in tried))


def show(tried: Counter[str], columns: dict[str, Counter[str]]) -> None:
    """Print kinds, how many cases were tried, and how many were right."""
    heads = [f"right, {name}" for name in columns]
    print(f"\n{'kind':<40} {'tried':>6} " + " ".join(f"{head:>16}" for head in heads))
    for kind, n in [*tried.items(), ("all", tried.total())]:
        right = [column.total() if kind == "all" else column[kind] for column in columns.values()]
        print(f"{kind:<40} {n:>6} " + " ".join(f"{number:>16}" for number in right))


def learned(root: Path) -> tuple[Path, "AnnData"]:
    """Return the model folder of a project's last stage, and cells of its tumour source as whole counts."""
    from canal.app.project import Project

    project = Project.open(root)
    last = list(project.config.stages)[-1]
    source = next((name for name in project.config.sources if name.startswith("tumour")), None)
    if source is None or not project.layout.model(last).is_dir():
        raise SystemExit(f"{root}: no learned project with a tumour source; run `make run` there first")
    return project.layout.model(last) / "model", tumour(project.layout.source(source) / "cells.h5ad")


def tumour(path: Path) -> "AnnData":
    """Return some cells of the tumour sample: 2^x - 1 of a cell are whole multiples of the smallest."""
    import anndata

    with open_h5ad(path) as file:
        matrix = csr_matrix(file.matrix("X").rows(0, file.n_cells)).astype(np.float64)
        cells, genes = file.obs_names(), file.var_names("X")
        types = file.obs_column("cell_type_annotations").to_numpy()
    rows = np.sort(np.random.default_rng(0).choice(len(cells), CELLS, replace=False))
    matrix = matrix[rows]
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        undone = np.exp2(matrix.data[start:stop]) - 1
        matrix.data[start:stop] = np.rint(undone / undone.min())
    adata = anndata.AnnData(matrix.astype(np.float32))
    adata.obs_names, adata.var_names = [f"{cells[row]}-1" for row in rows], genes
    adata.obs["cell_type"] = types[rows]
    return adata


@contextmanager
def source_of(revision: str) -> Iterator[Path]:
    """Give the folder of canal's source at a revision; ``now`` is what lies here."""
    if revision == "now":
        yield REPOSITORY / "src"
        return
    with tempfile.TemporaryDirectory(prefix="canal-before-") as folder:
        archive = subprocess.run(
            ["git", "archive", revision, "src", "benchmarks"], cwd=REPOSITORY, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder) / "src"


def answers(source: Path, model: Path, cells: "AnnData", cases: Sequence[Case]) -> Iterator[tuple[Case, str]]:
    """Yield every case with what was wrong about its answer, empty where nothing was."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(source), str(REPOSITORY / "benchmarks")])}
    command = [sys.executable, driver.__file__, str(model)]
    with (
        tempfile.TemporaryDirectory(prefix="canal-kinds-") as scratch,
        subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as program,
    ):
        truth = values.CASES[0]
        whole = Case(
            truth.kind, "all cells as counts", lambda adata, folder: _written(adata, folder), ("labels",)
        )
        first, _, _ = ask(program, whole, cells, Path(scratch) / "truth")
        if first["labels"] is None:
            raise SystemExit(f"the cells cannot be labelled as counts: {first['said']}")
        for number, case in enumerate(cases):
            folder = Path(scratch) / f"case{number}"
            answer, before, after = ask(program, case, cells, folder)
            yield case, wrong(case, answer, first["labels"], before, after)
            shutil.rmtree(folder, ignore_errors=True)


def _written(adata: "AnnData", folder: Path) -> Path:
    adata.write_h5ad(folder / "in.h5ad")
    return folder / "in.h5ad"


def ask(
    program: "subprocess.Popen[str]", case: Case, cells: "AnnData", folder: Path
) -> tuple[Answer, dict[str, bytes], dict[str, bytes]]:
    """Return the answer to a case, and what lay in its folder before and after."""
    (folder / "made").mkdir(parents=True)
    path = case.make(cells, folder / "made")
    before = held(folder / "made", case)
    job = {
        "path": str(path), "target": str(folder / "made" / case.target), "options": case.options,
        "declared": case.declared, "said": str(folder / "said"), "result": str(folder / "result"),
    }  # fmt: skip
    program.stdin.write(json.dumps(job) + "\n")  # type: ignore[union-attr]
    program.stdin.flush()  # type: ignore[union-attr]
    answer: Answer = json.loads(program.stdout.readline())  # type: ignore[union-attr]
    return answer, before, held(folder / "made", case)


def held(folder: Path, case: Case) -> dict[str, bytes]:
    """Return the names in a folder, with the bytes of files that must not change."""
    return {
        one.name: one.read_bytes() if one.name in case.outside and one.is_file() else b""
        for one in folder.iterdir()
    }


def wrong(
    case: Case, answer: Answer, truth: dict[str, str], before: dict[str, bytes], after: dict[str, bytes]
) -> str:
    """Return what is wrong with an answer, or nothing."""
    said, code = answer["said"].strip(), answer["code"]
    if "Traceback" in said or code not in (0, 1):
        return f"ended with {code}: {said.splitlines()[-1] if said else 'nothing said'}"
    if any(after.get(name) != before[name] for name in before):
        return "a file beside the input was changed"
    told = bool(re.search(case.words, said, re.IGNORECASE)) and bool(said)
    if code == 1:
        if left := sorted(set(after) - set(before)):
            return f"refused, but {', '.join(left)} stayed behind"
        return "" if "refused" in case.right and told else f"refused: {said[:300]}"
    if case.declared is not None:
        fine = "passed" in case.right or ("warned" in case.right and told)
        return "" if fine else f"passed: {said[:300] or 'in silence'}"
    if "warned" in case.right and told:
        return ""
    agree = np.mean([truth.get(cell) == label for cell, label in answer["labels"].items()])
    if "labels" in case.right and agree >= case.agree:
        return ""
    return f"labelled, {agree:.0%} as the counts are: {said[:300] or 'in silence'}"


if __name__ == "__main__":
    main()
