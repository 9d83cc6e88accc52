"""One function a command: open the project, call a room, return what it says. Nothing here prints."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.app.project import Project
from canal.core.errors import CanalError, GateError, RegistryError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from canal.annotation.annotate import Summary
    from canal.annotation.options import Options
    from canal.annotation.telling import OnCells
    from canal.app.adopting import Adopted
    from canal.app.importing import Imported, PublishedFiles
    from canal.config.layout import Layout
    from canal.model.load import CellAnnotator, Effort
    from canal.quality.verdict import Verdict
    from canal.registry.ledger.ledger import Sign
    from canal.registry.store.database import Version
    from canal.registry.versions.publish import Synced
    from canal.registry.versions.rebuild import DrawFigures, Rebuilt, Wishes

CHAMPION = "champion"

Notice = Callable[[str], None]


def annotate(
    adata: "AnnData",
    model: str | None = None,
    root: Path | None = None,
    *,
    write: bool = False,
    options: "Options | None" = None,
) -> "pd.DataFrame":
    """Return the labels of an AnnData's cells, one row a cell, in its order.

    X, layers, var and the order of cells are never changed; without ``write`` nothing is.

    Parameters
    ----------
    adata : AnnData
        Cells with counts or log-normalised values in X, or in ``options.layer``.
    model : str, optional
        Number or alias of a version, such as ``"champion"``; by default the champion, else the newest ready
        version.
    root : Path, optional
        The project folder; by default the working directory.
    write : bool
        Whether the columns are also written into ``adata.obs``, the record into ``adata.uns["canal"]`` and,
        where they were asked for, all probabilities into ``adata.obsm["canal_probabilities"]``.
    options : Options, optional
        How the AnnData is read; see `canal.annotation.options.Options`.

    Raises
    ------
    CanalError
        If there is no such version, or the cells cannot be labelled.
    """
    import warnings
    from dataclasses import replace

    from canal.annotation.annotate import annotate_adata
    from canal.annotation.columns import PROBABILITIES, left_over, parted, told_left_over
    from canal.annotation.options import Options
    from canal.annotation.query import check_adata
    from canal.app.annotating import now, provenance
    from canal.core.digests import canonical_json

    check_adata(adata)
    project = Project.open(root)
    version = serving_version(project, model)
    noted = replace(options or Options(), model_name=provenance(version), origin={"time": now()})
    table = annotate_adata(load_annotator(project, version, noted.effort), adata, noted)
    if write:
        columns, matrices = parted(table)
        gone = left_over(adata.obs, columns)
        adata.obs = adata.obs.drop(columns=gone) if gone else adata.obs
        if PROBABILITIES in adata.obsm and PROBABILITIES not in matrices:
            del adata.obsm[PROBABILITIES]
            gone.append(f"obsm {PROBABILITIES}")
        if gone:
            warnings.warn(told_left_over(gone), stacklevel=2)
        for name in columns:
            adata.obs[name] = columns[name].array
        for name, matrix in matrices.items():
            adata.obsm[name] = matrix
        adata.uns["canal"] = canonical_json(table.attrs["canal"])
    return table


def annotate_file(
    source: Path,
    target: Path,
    options: "Options",
    model: str | None,
    notice: Notice,
    root: Path | None = None,
    on_cells: "OnCells | None" = None,
) -> "Summary":
    """Label the cells of a file into a new one, on record; see `canal.annotation.annotate`."""
    from dataclasses import replace

    from canal.annotation.annotate import annotate_h5ad
    from canal.annotation.output import check_target
    from canal.annotation.outputs import Output
    from canal.app.annotating import Origin, logger, provenance

    project = Project.open(root)
    version = serving_version(project, model)
    if model is None and CHAMPION not in version.aliases:
        notice(f"no champion yet: version {version.number} ({version.stage}), the newest ready one, answers")
    check_target(source, target, options.overwrite)
    Output.find(source, target, options.only_obs)  # refused before the input is read for its digest
    with Origin(source) as found:
        noted = replace(options, model_name=provenance(version), origin=found)
        annotator = load_annotator(project, version, options.effort)
        return annotate_h5ad(annotator, source, target, noted, notice, logger(project, notice), on_cells)


def use_machine(threads: int | None, options: "Options", notice: Notice) -> None:
    """Set how many cores annotation uses, and say where the precision asked for is slow on this machine."""
    if threads is not None:
        import numpy  # noqa: F401 - only libraries that are loaded can be limited
        from threadpoolctl import threadpool_limits

        os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is imported
        threadpool_limits(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    if options.dtype == "float32":
        return
    from canal.model.compute import bfloat16_speed, find_device

    if (speed := bfloat16_speed(find_device(options.device))) < 1:
        notice(
            f"bfloat16 is {1 / speed:.0f} times slower than float32 on this machine, which has no "
            "instructions for it; leave --dtype out"
        )


def serving_version(project: Project, model: str | None) -> "Version":
    """Return the version asked for; by default the champion, else the newest ready one.

    Raises
    ------
    RegistryError
        If there is no such version, it was retired, there is none at all, or the store is half rebuilt.
    """
    from canal.registry.store.store import require_rebuilt

    if model is not None:
        return project.store.serving(model)
    require_rebuilt(project.store)
    ready = [version for version in project.store.versions() if version.ready and not version.retired]
    if not ready:
        raise RegistryError("no version is registered yet; run `make run` first")
    champions = [version for version in ready if CHAMPION in version.aliases]
    return (champions or ready)[-1]


def load_annotator(project: Project, version: "Version", effort: "Effort" = "full") -> "CellAnnotator":
    """Return a version's annotator after its files are checked against its key.

    Raises
    ------
    ModelError
        If the fast answer is asked of a version without sums.
    """
    from canal.model.load import load_model
    from canal.registry.versions.history import verified

    folder, _ = verified(project.store, version)
    return load_model(folder / "model", effort)


def validate(file: Path, stage: str | None, root: Path | None = None) -> "Verdict":
    """Judge any h5ad file as if it were a stage's source (default: the last stage's), as that is declared."""
    from dataclasses import replace

    from canal.app.lessons import ask_parent
    from canal.config.edit import last_stage
    from canal.core.errors import ConfigError
    from canal.data.prepare import PrepareSettings
    from canal.quality.gate import judge_file

    project = Project.open(root)
    config = project.config
    stage = stage or last_stage(config)
    if stage not in config.stages:
        raise ConfigError(f"no stage {stage!r}; there are {', '.join(config.stages)}")
    source = config.stages[stage].source
    settings = PrepareSettings(config.min_genes(source), config.prepare.chunk_cells)
    subject = replace(project.candidate(stage), raw=file)
    return judge_file(subject, settings, config.gate, ask=ask_parent(project, stage))


@dataclass(frozen=True)
class Addition:
    """A stage that may be added: the new params.yaml, and what the gate said."""

    name: str
    text: str
    verdict: "Verdict"


def propose_stage(
    name: str,
    source: dict[str, Any],
    parent: str | None,
    root: Path | None = None,
    fixed: bool = False,
    grow: int = 0,
) -> Addition:
    """Declare a new stage and judge its file; nothing is written.

    It is tuned where params.yaml has a section ``tuning``, unless it is to be ``fixed``; it may add ``grow``
    genes to its parent's panel.

    Raises
    ------
    CanalError
        If the declaration breaks a rule or the file cannot be read as declared.
    """
    from canal.app.lessons import ask_parent
    from canal.config.edit import last_stage, parse, with_stage
    from canal.data.prepare import PrepareSettings
    from canal.quality.gate import judge_file

    project = Project.open(root)
    text = project.layout.params.read_text(encoding="utf-8")
    text = with_stage(text, name, source, parent or last_stage(project.config), fixed, grow)
    wished = Project(project.layout, parse(text))
    settings = PrepareSettings(wished.config.min_genes(name), wished.config.prepare.chunk_cells)
    subject = wished.candidate(name)
    ask = ask_parent(wished, name)
    return Addition(name, text, judge_file(subject, settings, wished.config.gate, ask=ask))


def add_stage(addition: Addition, commit: bool, root: Path | None = None) -> None:
    """Write the new params.yaml, and commit it where asked.

    Raises
    ------
    GateError
        If the gate did not pass; params.yaml stays as it was.
    """
    from canal.config.edit import save

    if not addition.verdict.passed:
        raise GateError(f"stage {addition.name!r} was not added: its file does not pass the gate")
    project = Project.open(root)
    save(project.layout.params, addition.text)
    if commit:
        _commit(project, f"Add stage {addition.name}")


def relearn(name: str, commit: bool, root: Path | None = None) -> list[str]:
    """Start a new branch of the lineage from stage ``name`` on; return the stages it touches."""
    from canal.config.edit import save, with_branch

    project = Project.open(root)
    text, touched = with_branch(project.layout.params.read_text(encoding="utf-8"), name)
    save(project.layout.params, text)
    if commit:
        _commit(project, f"Relearn {', '.join(touched)}")
    return touched


def import_backbone(
    files: "PublishedFiles", commit: bool, root: Path | None = None, sign: "Sign | None" = None
) -> "Imported":
    """Make published weights the backbone of the project; see `canal.app.importing`."""
    from canal.app.importing import import_published

    project = Project.open(root)
    imported = import_published(project, files, sign)
    if commit:
        _commit(project, f"Import backbone {imported.folder.name}")
    return imported


def adopt_basis(path: Path, commit: bool, root: Path | None = None) -> "Adopted":
    """Let the project's lineage begin on another's basis; see `canal.app.adopting`."""
    from canal.app.adopting import adopt_basis as adopt

    project = Project.open(root)
    made = adopt(project, path)
    if commit:
        _commit(project, f"Adopt basis {made.digest[:12]}", made.path)
    return made


def registry_sync(project: Project, sign: "Sign | None" = None, made_in: "Layout | None" = None) -> "Synced":
    """Register every finished stage that the registry does not know; ``sign`` signs the ledger's entries.

    Stages lie in the project's folder, or in that of ``made_in``.

    A store without versions beside a ledger that names some was lost, or never came along to this clone: it
    is made again first, with the numbers and aliases that the ledger has; a rebuilding that was interrupted
    is gone on with. A store that came from another folder is told where its files lie now.
    """
    from canal.registry.versions.publish import Synced, sync
    from canal.registry.versions.rebuild import rebuild_lost

    moved = project.store.settle()
    wishes = _wishes(project, None, "the store had no versions, or not all of them", sign=sign)
    if rebuilt := rebuild_lost(project.store, wishes, _figures_for(project)):
        return Synced(rebuilt.made, (), moved)
    layout = made_in or project.layout
    synced = sync(project.store, layout, project.config, lambda stage: _figures(project, stage, layout), sign)
    return replace(synced, moved=moved)


def _figures(project: Project, stage: str, made_in: "Layout | None" = None) -> Path:
    """Return the folder of a stage's figures; they are drawn where evaluate did not run on this machine."""
    from canal.core.files import new_folder
    from canal.registry.manifest.version_folder import key_digest
    from canal.report.collect import draw_figures

    layout = made_in or project.layout
    folder = project.layout.figures(key_digest(layout.model(stage)))
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            draw_figures(layout, stage, temporary)
    return folder


def registry_rebuild(
    project: Project,
    by: str | None,
    why: str | None,
    also: Sequence[Path] = (),
    without: Sequence[int] = (),
    sign: "Sign | None" = None,
) -> "Rebuilt":
    """Make a lost registry again; see `canal.registry.versions.rebuild`.

    Parameters
    ----------
    by, why
        Who and why, for the ledger; by default this user, since the store was lost.
    also
        Other project folders whose models/ and metrics/ are looked through.
    without
        Numbers of versions that are given up.
    sign
        Signs the ledger's entries.
    """
    from canal.registry.versions.rebuild import rebuild

    return rebuild(project.store, _wishes(project, by, why, also, without, sign), _figures_for(project))


def _wishes(
    project: Project,
    by: str | None,
    why: str | None,
    also: Sequence[Path] = (),
    without: Sequence[int] = (),
    sign: "Sign | None" = None,
) -> "Wishes":
    from canal.config.layout import Layout
    from canal.registry.ledger.mirror import user
    from canal.registry.versions.rebuild import Wishes

    folders = [Layout(path.resolve()) for path in also]
    if missing := [str(one.root) for one in folders if not (one.root / "models").is_dir()]:
        raise RegistryError(f"--also {missing[0]}: there is no folder models/; name a project folder")
    return Wishes(by or user(), why or "the store was lost", (project.layout, *folders), without, sign)


def _figures_for(project: Project) -> "DrawFigures":
    return lambda layout, stage: _figures(project, stage, layout)


def _commit(project: Project, message: str, *also: str) -> None:
    import subprocess

    if also:
        subprocess.run(["git", "add", "--", *also], cwd=project.layout.root, check=False)
    done = subprocess.run(
        ["git", "commit", "--quiet", "-m", message, "--", project.layout.params.name, *also],
        cwd=project.layout.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        found = (done.stderr or done.stdout).strip().splitlines()
        raise CanalError(
            f"params.yaml is written, but git would not commit it: {found[-1] if found else '?'}"
        )
