"""`canal.learn`: teach a lineage a labelled data set from Python, as the commands do, the gate included."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Required, TypedDict, Unpack

from canal.app.creating import Wish, create
from canal.app.declaring import declare_labelled, propose_stage
from canal.app.project import Project, git, last_line
from canal.app.running import changed_files
from canal.app.versions import version_view
from canal.config.layout import name_from
from canal.config.sections import Method
from canal.config.stage_sections import Source
from canal.config.yaml_file import save
from canal.core.digests import file_digest
from canal.core.errors import CanalError, ConfigError, DataError, GateError, did_you_mean, tell, there_are
from canal.core.files import new_file, scratch_folder
from canal.quality.verdict import Verdict
from canal.runtime.startup import own_code

if TYPE_CHECKING:
    from anndata import AnnData

Say = Callable[[str], None]


class Reading(TypedDict, total=False):
    """How labelled cells are read, as a source of params.yaml says it.

    ``values`` is ``counts``, ``log1p_10k`` (natural logarithm of counts per 10,000) or ``log2p_10k``;
    ``label`` and ``batch`` are columns of ``obs``, ``gene_column`` one of ``var``; ``label_map`` maps a
    published label to the lineage's cell type, None drops it; ``layer`` is ``X``, ``raw`` or a layer's name;
    cells that express fewer than ``min_genes`` genes are dropped.
    """

    values: Required[str]
    label: str
    batch: str
    label_map: Mapping[str, str | None]
    layer: str
    gene_column: str
    min_genes: int


def learn(
    cells: "AnnData | str | Path",
    into: str | Path,
    stage: str | None = None,
    method: Method = "exact",
    say: Say = tell,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Teach a lineage a labelled data set: the same line as by commands, the gate included.

    The project is made where there is none (`canal init`); the cells become its next stage if they pass the
    gate, and are learned (`canal run`). What is new is committed. The same call again learns nothing.

    Parameters
    ----------
    cells : AnnData, str or Path
        Cells with a type each: an AnnData, which is written to ``cells/STAGE.h5ad`` of the project, or the
        path of an h5ad file, which stays where it is.
    into, stage, method : str or Path, str, str
        The project's folder; the stage's name, by default the file's; who learns (`canal init --method`).
    say : callable
        Is handed each line of progress; by default they go to the error stream.
    **reading
        ``values`` (required), ``label`` (by default ``cell_type``) and more: see `Reading`.

    Returns
    -------
    dict
        The version that was learned, as ``canal show V --json`` describes it.

    Raises
    ------
    GateError
        If the cells do not pass the gate; names each rule and what to do. Nothing is left of the call.
    CanalError
        If the declaration breaks a rule, or learning is refused or fails.
    """
    root = Path(into).resolve()
    name = stage or (name_from(Path(cells).stem, "cells") if isinstance(cells, str | Path) else "")
    _require_words(name, reading)
    begun, empty = not (root / "params.yaml").is_file(), root.is_dir()
    if begun:
        beside = [one.parent.name for one in root.parent.glob("*/params.yaml")]
        made = create(root, Wish(method))
        unsaved = f", not committed: {made.problem}" if made.problem else ""
        say(f"made {made.root}, a new project{unsaved}{did_you_mean(root.name, beside)}")
    try:
        _add(Project.open(root), name, cells, reading, say)
    except BaseException:
        if begun:
            shutil.rmtree(root)
            if empty:
                root.mkdir()
        raise
    _run(root, say)
    project = Project.open(root)
    version = project.learned(name)
    if version is None:
        raise CanalError(f"stage {name!r} was not registered: `canal run` in {root} says why")
    _commit(root, f"Learn {name}", changed_files(root), say)
    return version_view(project, str(version.number))


def _require_words(stage: str, reading: Mapping[str, Any]) -> None:
    """Refuse a call that lacks a stage's name or the cells' units, or has unknown options."""
    if not stage:
        raise ConfigError("stage is missing: cells in memory have no name; give the stage one, stage='blood'")
    known = [*Reading.__annotations__]
    if unknown := [name for name in reading if name not in known]:
        raise ConfigError(f"canal.learn has no option {', '.join(unknown)}{there_are(unknown[0], known)}")
    if "values" not in reading:
        raise ConfigError("values is missing: what the cells' values are, counts, log1p_10k or log2p_10k")


def _add(
    project: Project, name: str, cells: "AnnData | str | Path", reading: Mapping[str, Any], say: Say
) -> None:
    """Add the cells to params.yaml as a stage and commit it, unless they are that stage already."""
    root, target = project.layout.root, project.layout.taught(name)
    written = not isinstance(cells, str | Path) and _written(cells, target)
    file = Path(cells) if isinstance(cells, str | Path) else target
    try:
        declared = {name: value for name, value in reading.items() if name != "label_map"}
        source, _ = declare_labelled(file, declared, reading.get("label_map"), root)
        if name in project.config.stages:
            _require_same(project, name, source)
            return
        addition = propose_stage(name, source, None, root)
        if not addition.verdict.passed:
            raise GateError(_refusal(name, addition.verdict))
        save(project.layout.params, addition.text, addition.before)
    except BaseException:
        if written:
            target.unlink(missing_ok=True)
        raise
    say(f"stage {name} passed the gate ({len(addition.verdict.rules)} rules) and stands in params.yaml")
    _commit(root, f"Add stage {name}", [project.layout.params.name], say)


def _written(cells: "AnnData", target: Path) -> bool:
    """Write cells to a file of the project; return whether it is new.

    Raises
    ------
    ConfigError
        If the file is there already, with other cells.
    """
    if not hasattr(cells, "write_h5ad"):
        raise DataError(f"cells must be an AnnData or the path of an h5ad file, found {type(cells).__name__}")
    with scratch_folder("learn") as scratch:
        made = scratch / target.name
        try:
            cells.write_h5ad(made)
        except OSError:
            raise
        except Exception as error:  # anndata has no kind of its own for what HDF5 cannot hold
            said = " ".join(str(error).split())[:200]
            raise DataError(
                f"anndata cannot write these cells ({said}): remove what no h5ad file holds; only obs, var, "
                "X, raw and layers are needed"
            ) from error
        if target.is_file():
            if file_digest(made) != file_digest(target):
                raise ConfigError(f"{target} holds other cells than these: give the stage another name")
            return False
        with new_file(target) as temporary:
            shutil.copyfile(made, temporary)
    return True


def _require_same(project: Project, name: str, source: Mapping[str, Any]) -> None:
    """Raise unless a stage of params.yaml learns these cells, read this way."""
    own = project.config.stages[name].source
    declared, asked = project.config.sources[own], Source.model_validate(dict(source))
    if (declared.sha256, declared.declaration()) != (asked.sha256, asked.declaration()):
        raise ConfigError(
            f"params.yaml has a stage {name!r} of other cells, or read otherwise: give this one another name"
        )


def _refusal(name: str, verdict: Verdict) -> str:
    lines = [
        f"{rule.rule}: expected {rule.expected}; found {rule.found}; {rule.hint}"
        for rule in verdict.failures("error")
    ]
    return f"stage {name!r} was not added: its cells do not pass the gate:\n  " + "\n  ".join(lines)


def _run(root: Path, say: Say) -> None:
    """Run `canal run` in a process of its own, so that this one keeps its folder, environment and memory."""
    command = [sys.executable, "-m", "canal.cli", "run"]
    said: list[str] = []
    with subprocess.Popen(
        command, cwd=root, env=own_code(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for line in process.stdout or ():
            said.append(line.rstrip())
            say(said[-1])
    if process.returncode:
        raise CanalError(
            f"`canal run` in {root} ended with exit code {process.returncode}; its last lines:\n  "
            + "\n  ".join(said[-5:])
        )


def _commit(root: Path, message: str, names: Sequence[str], say: Say) -> None:
    """Commit files to git; where git refuses, say so and go on: nothing is lost by it."""
    if not names:
        return
    git(root, "add", "--", *names)
    done = git(root, "commit", "--quiet", "--message", message, "--", *names)
    if done.returncode:
        say(f"git did not commit {', '.join(names)}: {last_line(done)}")
