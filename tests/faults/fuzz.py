"""Hand 1,000 mutated inputs to canal: each is answered rightly, or refused by one message: `make fuzz`.

    python -m tests.faults.fuzz
    python -m tests.faults.fuzz --only 417     # one of them, and what was said of it

Each input has a number, which decides all that is drawn. It is handed to the command line as a user would,
in a process forked for it, with bounds on time and memory. Right is an answer whose labels are those of the
cells as anndata reads them, or a refusal: one short message, nothing left behind, the input as it was.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.runtime.startup import begin
from tests.faults.mutations import drawn
from tests.faults.specimens import GENES, IN, KINDS, OUT, PROJECT, Command, make_all

if TYPE_CHECKING:
    import pandas as pd

    from canal.model.annotator import Annotator
    from canal.quality.verdict import Subject

SECONDS, WAIT, MEMORY, LONGEST = 20, 120, 1 << 30, 2000
"""Bounds: of processor time, of waiting, of memory beyond what a process has, of a message's characters."""

ANSWERED, REFUSED, CRASHED, LONG, OTHERWISE = 0, 1, 70, 71, 72
_MODULES = (
    *("anndata", "great_expectations", "igraph", "mlflow", "pandas", "pyarrow.parquet", "rich.progress"),
    *(
        "scipy.stats",
        "sklearn.neighbors",
        "torch",
        "zarr",
        "canal.app.annotating",
        "canal.app.discovering",
        "canal.app.promoting",
    ),
    *(
        "canal.report.terminal",
        "canal.quality.gate",
        "canal.annotation.novel",
        "canal.app.discovering",
        "canal.cli",
    ),
    *(
        "canal.registry.transfer.exchange",
        "canal.registry.audit.full_audit",
        "canal.report.cell_tables",
        "canal.app.impact",
    ),
)
_SCHEDULE = [kind for kind in KINDS for _ in range(kind.share)]


@dataclass(frozen=True)
class Trial:
    """One input: its number, its kind, and how it ended; ``wrong`` is empty where that was right."""

    number: int
    kind: str
    command: Command
    outcome: str
    said: str
    wrong: str


def main() -> None:
    """Try all numbers, print the table; exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="the first number")
    parser.add_argument("--count", type=int, default=1000, help="how many")
    parser.add_argument("--only", type=int, action="append", help="this number; what was said of it is shown")
    parser.add_argument("--keep", type=Path, help="a new folder in which the inputs stay")
    arguments = parser.parse_args()
    numbers = arguments.only or range(arguments.first, arguments.first + arguments.count)
    with tempfile.TemporaryDirectory(prefix="canal-fuzz-") as scratch:
        found = []
        for trial in trials(numbers, arguments.keep or Path(scratch), keep=arguments.keep is not None):
            found.append(trial)
            if trial.wrong or arguments.only:
                sys.stdout.write(f"{trial.number}: {trial.kind}: canal {' '.join(trial.command)}: ")
                sys.stdout.write(
                    f"{trial.outcome} {trial.wrong}\n{trial.said if arguments.only else trial.said[-900:]}\n"
                )
    sys.stdout.write(table(found))
    sys.exit(any(trial.wrong for trial in found))


def table(found: Iterable[Trial]) -> str:
    """Return kinds, and how many inputs of each were tried, answered, refused and wrong."""
    outcomes = Counter((trial.kind, trial.outcome) for trial in found)
    names = ("answered", "refused", "wrong")
    lines = [f"{'kind':<24}{'tried':>8}" + "".join(f"{name:>10}" for name in names)]
    for kind in [*(kind.name for kind in KINDS), "all"]:
        own = [(how, n) for (one, how), n in outcomes.items() if kind in (one, "all")]
        counts = [sum(n for how, n in own if how == name) for name in names]
        lines.append(f"{kind:<24}{sum(counts):>8}" + "".join(f"{n:>10}" for n in counts))
    return "\n".join(lines) + "\n"


def trials(numbers: Iterable[int], scratch: Path, keep: bool = False) -> Iterator[Trial]:
    """Yield what became of the inputs with these numbers."""
    annotator = prepare(scratch)
    for number in numbers:
        yield tried(number, annotator, scratch)
        if not keep:
            clear(scratch / str(number))


def prepare(scratch: Path) -> Annotator:
    """Import what is slow, once, make the valid inputs below ``scratch``, and return a model."""
    begin()
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # its own one reserves a gibibyte of addresses
    warnings.simplefilter("ignore")
    for name in _MODULES:
        import_module(name)
    import torch

    from tests.support.models import make_annotator

    torch.set_num_threads(1)
    annotator = _calling_some_novel(make_annotator())
    _made(scratch / "seeds", annotator)
    gc.freeze()
    return annotator


def _made(folder: Path, annotator: Annotator) -> None:
    """Make the valid inputs in a process of its own: threads of a computation would not survive a fork."""
    child = os.fork()
    if child == 0:
        try:
            make_all(folder, annotator)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - told, and the parent ends
            traceback.print_exc()
        finally:
            os._exit(CRASHED)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the valid inputs could not be made")


def tried(number: int, annotator: Annotator, scratch: Path, mutated: bool = True) -> Trial:
    """Make one input, hand it to its command, and judge what became of it."""
    rng, folder = np.random.default_rng([19, number]), scratch / str(number)
    kind = _SCHEDULE[
        (number * 7) % len(_SCHEDULE)
    ]  # 7 and 50 share no factor: any fifty numbers are all kinds
    seed, command = drawn(rng, kind.seeds), drawn(rng, kind.commands)
    _lay_out(scratch / "seeds", folder, seed)
    if mutated:
        kind.mutate(folder / seed, rng)
    command = [seed if one == IN else one for one in command]
    before = held(folder)
    code, said = _forked(annotator, command, folder)
    return Trial(number, kind.name, command, *_judged(code, said, before, held(folder)))


def _lay_out(seeds: Path, folder: Path, seed: str) -> None:
    """Give a trial its input with what lies beside it, a project, room for output, and somebody's files."""
    folder.mkdir(parents=True)
    for name in (PROJECT, *({Path(seed).parts[0]} - {PROJECT, "cells"})):
        shutil.copytree(seeds / name, folder / name)
    for name in (OUT, "tmp", "cells/outside"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if seed.startswith("cells"):
        stem = Path(seed).stem
        for one in (seeds / "cells").iterdir():
            if one.stem in (stem, f"{stem}.cells") or (stem == "sheet" and one.name == "labelled.h5ad"):
                (shutil.copytree if one.is_dir() else shutil.copyfile)(one, folder / "cells" / one.name)
    (folder / "cells" / "outside" / "secret.txt").write_bytes(b"secret! " * 100)
    shutil.copyfile(seeds / "cells" / "csr.h5ad", folder / "cells" / "outside" / "other.h5ad")


def clear(folder: Path) -> None:
    """Remove a trial's folder, whatever rights are on what lies in it."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o600)
    shutil.rmtree(folder)


def held(folder: Path) -> dict[str, str]:
    """Return all that lies in a folder but locks: its kind and rights, and the digest of its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if name.startswith(f"{PROJECT}/.canal") or name in ("said", "printed"):
            continue
        data = path.read_bytes() if stat.S_ISREG(mode) and mode & 0o400 else b""
        if name.endswith("ledger.jsonl"):
            data = data[
                : data.rfind(b"\n") + 1
            ]  # whoever writes removes what a kill left behind the last line
        digest = sha256(data).hexdigest()
        found[name] = f"{oct(mode)} {digest}"
    return found


def _judged(code: int, said: str, before: dict[str, str], after: dict[str, str]) -> tuple[str, str, str]:
    """Return the outcome, what was said, and what is wrong."""
    made = sorted(set(after) - set(before))
    changed = [name for name in before if after.get(name) != before[name]]
    ends = {
        CRASHED: "a traceback", LONG: "a message that is too long", OTHERWISE: "answered wrongly",
        -signal.SIGXCPU: f"over {SECONDS} s of processor time", -signal.SIGALRM: "it waits for ever",
    }  # fmt: skip
    wrong = ends.get(code, "" if code in (ANSWERED, REFUSED) else f"ended with {code}")
    if code == REFUSED:
        if not said.strip():
            wrong = "refused without a word"
        elif made or changed:
            wrong = f"refused, but left {made[:5]}, changed {changed[:5]}"
    elif code == ANSWERED:
        project = [one for one in changed if not one.startswith(PROJECT)]
        if beside := [one for one in made if not one.startswith((OUT, PROJECT))] + project:
            wrong = f"answered, but changed {beside[:5]}"
    if not wrong and "Traceback" in said:
        wrong = "a traceback was shown"
    return "wrong" if wrong else {ANSWERED: "answered", REFUSED: "refused"}[code], said, wrong


# --- in a process of its own ----------------------------------------------------------------------------


def _forked(annotator: Annotator, command: Command, folder: Path) -> tuple[int, str]:
    """Return how a command ended, a signal as a negative number, and what it said."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            os._exit(_performed(annotator, command, folder))
        finally:
            os._exit(CRASHED)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = [folder / name for name in ("printed", "said")]
    return code, "\n".join(path.read_text(errors="replace") for path in texts if path.is_file())


def _performed(annotator: Annotator, command: Command, folder: Path) -> int:
    os.setsid()
    os.chdir(folder)
    for number, name in ((1, "printed"), (2, "said")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600), number)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
    os.environ["HOME"] = str(folder / "tmp")
    faulthandler.dump_traceback_later(WAIT - 5)
    signal.alarm(WAIT)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        return _spoken(annotator, command)
    finally:
        sys.stdout.flush()


def _spoken(annotator: Annotator, command: Command) -> int:
    """Run a command as `canal.cli.main` does, but leave the process as it is."""
    from canal.core.errors import DISK_FULL, CanalError, tell

    try:
        return _run(annotator, command)
    except CanalError as error:
        tell(f"canal: {error}")
        return REFUSED if len(str(error)) <= LONGEST else LONG
    except OSError as error:
        traceback.print_exc()
        return REFUSED if error.errno in DISK_FULL else CRASHED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ANSWERED if end.code is None else CRASHED
    except BaseException:  # noqa: BLE001 - whatever it was, it is told
        traceback.print_exc()
        return CRASHED


def _run(annotator: Annotator, command: Command) -> int:
    """Run a command with a model that needs no training, and a gate that needs no earlier cells."""
    import canal.app.models
    from canal.app.project import Project
    from canal.cli import app

    canal.app.models.load_annotator = lambda project, version, effort="full": annotator
    Project.candidate = _candidate  # type: ignore[method-assign, assignment]
    if command[0] == "import":
        _import(Path(command[1]))
        return ANSWERED
    code = app([*command, "--root", PROJECT], standalone_mode=False)
    if command[0] == "annotate":
        _check_labels(annotator, command)
    return code or ANSWERED


def _candidate(project: Any, stage: str) -> Subject:
    from canal.quality.verdict import Subject

    name = project.config.stages[stage].source
    raw = project.layout.root / (project.config.sources[name].path or "")
    return Subject(stage, name, project.config.sources[name], raw, list(GENES), earlier={}, chunk_cells=50)


def _import(path: Path) -> None:
    """Do what `canal import` does before anything is registered."""
    from canal.registry.transfer.bundle import unpacked
    from canal.registry.transfer.proof import prove

    with unpacked(path) as (folder, manifest):
        prove(folder, manifest)


def _check_labels(annotator: Annotator, command: Command) -> None:
    """Raise unless the labels that were written are whole, and those of the cells as anndata reads them."""
    found = _labels(Path(command[command.index("-o") + 1]))
    numbers = found[["canal_confidence", "canal_novelty"]].to_numpy(dtype=np.float64)
    if set(found["canal_best_type"].astype(str)) - set(annotator.labels) or not np.isfinite(numbers).all():
        _otherwise("strange types, or numbers that are none")
    if (wanted := _as_anndata_reads(annotator, command)) is None:
        return
    if len(wanted) != len(found):
        _otherwise(f"{len(found)} cells are labelled, and anndata reads {len(wanted)}")
    same = np.mean(
        wanted["canal_cell_type"].astype(str).to_numpy() == found["canal_cell_type"].astype(str).to_numpy()
    )
    if same < 1:
        _otherwise(f"{1 - same:.0%} of the cells have another label than as anndata reads them")


def _otherwise(what: str) -> None:
    sys.stderr.write(f"{what}\n")
    sys.stderr.flush()
    os._exit(OTHERWISE)


def _labels(path: Path) -> pd.DataFrame:
    """Read the output again; of a copy the labels alone, for what else was damaged in the input stays so."""
    import anndata
    import h5py
    import pandas as pd
    import zarr

    if path.suffix == ".csv":
        return pd.read_csv(path, index_col=0, dtype={"canal_cell_type": str}, keep_default_na=False)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    columns = ("canal_cell_type", "canal_best_type", "canal_confidence", "canal_novelty")
    if path.suffix == ".zarr":
        obs = zarr.open_group(str(path), mode="r", use_consolidated=False)["obs"]
        return pd.DataFrame({name: np.asarray(anndata.io.read_elem(obs[name])) for name in columns})
    with h5py.File(path) as file:
        return pd.DataFrame({name: np.asarray(anndata.io.read_elem(file["obs"][name])) for name in columns})


def _as_anndata_reads(annotator: Annotator, command: Command) -> pd.DataFrame | None:
    """Return the labels of the cells in memory; None where anndata cannot read them or they are refused."""
    import anndata
    from scipy.sparse import csr_matrix

    from canal.annotation.annotate import annotate_adata
    from canal.annotation.options import Options

    path = Path(command[1])
    if path.suffix not in (".h5ad", ".zarr") or {"--gene-map", "--aliases", "--species"} & set(command):
        return None
    try:
        cells = (anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad)(path)
        part: Any = cells.raw if "--use-raw" in command else cells
        matrix = csr_matrix(part.layers["counts"] if "counts" in command and "--layer" in command else part.X)
        matrix.check_format(full_check=True)
        plain = anndata.AnnData(matrix, obs=cells.obs, var=part.var)
        values = "counts" if "--values" in command else "auto"
        vote = command[command.index("--vote") + 1] if "--vote" in command else None
        return annotate_adata(annotator, plain, Options(values=values, force="--force" in command, vote=vote))
    except Exception:  # noqa: BLE001 - anndata raises anything
        return None


def _calling_some_novel(annotator: Annotator) -> Annotator:
    from canal.model.head import NoveltyRule
    from tests.support.models import make_expression

    rule = NoveltyRule(0.8, -3.0, 0.0, 0.5)
    scores = rule.score(annotator.predict(make_expression(100, seed=3)).logits)
    return annotator.with_novelty(NoveltyRule(0.8, -3.0, 0.0, float(np.quantile(scores, 0.7))))


if __name__ == "__main__":
    main()
