"""`canal audit`: verify every version from its files; with --reproduce, train a version again and compare."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from canal.app.project import Project
from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.stage_sections import Source
from canal.config.yaml_file import load_config
from canal.core.digests import file_digest
from canal.core.errors import AuditError, LedgerError
from canal.core.files import read_json, scratch_folder
from canal.registry.audit.chain import differing_tensors
from canal.registry.audit.committed_ledger import check_committed
from canal.registry.audit.full_audit import Depth, Report, audit
from canal.registry.audit.ledger_entries import check_anchors, check_entries
from canal.registry.audit.version_files import AuditLog
from canal.registry.ledger.git_history import Anchor, GitFile, make_anchor
from canal.registry.ledger.ledger import plain_name
from canal.registry.ledger.mirror import user
from canal.registry.ledger.signing import SigningKey as SigningKey
from canal.registry.ledger.signing import add_to_keyring as add_to_keyring
from canal.registry.ledger.signing import default_key_file as default_key_file
from canal.registry.ledger.signing import new_key as new_key
from canal.registry.ledger.signing import open_key as open_key
from canal.registry.ledger.signing import read_keyring
from canal.registry.manifest.stage_request import code_digest, cpu_capability, lock_digest, request_digest
from canal.registry.manifest.version_folder import KEY_FILE, Key, Record, read_record
from canal.registry.promotion.moves import catch_up, ledger_of
from canal.registry.provenance.registered import ancestry
from canal.registry.versions.history import learned_request, restore_model, verified


def audit_project(
    project: Project, wanted: str | None = None, keyring: Path | None = None, depth: Depth = "opened"
) -> Report:
    """Audit every version, or the version that a number or alias names.

    Parameters
    ----------
    project : Project
    wanted : str, optional
        Number or alias.
    keyring : Path, optional
        The trusted keys: a ledger entry that is not signed by a key allowed to sign it is a finding.
    depth : str
        How far it goes: ``changed`` passes over versions that an audit found nothing in and whose files did
        not change; ``recomputed`` recomputes sums from the prepared cells, where those still exist.

    Raises
    ------
    RegistryError
        If there is no such ready version, or the keyring cannot be read.
    """
    trusted = None if keyring is None else read_keyring(keyring)
    versions = None if wanted is None else [project.store.version(wanted)]
    return audit(project.store, project.layout, project.config, versions, depth, trusted)


TOLERANCE = 0.05
"""Tolerated difference of accuracies on another machine: predictions of a few cells of a stage may differ."""

_WEIGHTS = ("model/weights.safetensors", "model/exact/weights.safetensors")
_EVALUATION = "metrics/evaluation.json"

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Reproduction:
    """The result of training a version again.

    Attributes
    ----------
    version : int
    commit : str
        The git commit whose code and parameters were used.
    same_machine : bool
        Whether this machine must give the same bits: same system, same vector instructions, float32.
    same_key : bool
        Whether the new key, and so every file it names, is identical.
    differing : tuple of str
        Tensors whose bits differ.
    accuracy : Mapping
        By stage, where bits differ: ``[registered, trained again]``.
    reproduced : bool
        Whether bits are identical; on another machine, whether every accuracy is within `TOLERANCE`.
    seconds : float
    """

    version: int
    commit: str
    same_machine: bool
    same_key: bool
    differing: tuple[str, ...] = ()
    accuracy: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    reproduced: bool = True
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


def reproduce_version(project: Project, wanted: str, notice: Notice) -> Reproduction:
    """Train a version again in a scratch folder, and compare the results.

    Raises
    ------
    AuditError
        If the version was learned elsewhere, from uncommitted code or in another environment, if its data are
        gone, or if training fails.
    """
    began = time.monotonic()
    version = project.store.version(wanted)
    folder, key = verified(project.store, version)
    record = read_record(folder)
    commit = _commit(project, version.number, key, record)
    for one in ancestry(project.store, version)[1:]:
        if "unlearned" in one.key:
            raise AuditError(
                f"version {version.number} was learned on {one.name}, which cells have left since; trained "
                "again, it would have them: use `canal audit --recompute`, which verifies the sums"
            )
        if "backfilled" in one.key:
            raise AuditError(
                f"version {version.number} was learned on {one.name}, to which sums were added later; "
                "trained again, it would lack those sums: use `canal audit --recompute`, which verifies them"
            )
    with _worktree(project.layout.root, commit) as tree:
        config = load_config(tree.params)
        _check_tree(tree, config, (key, learned_request(project.store, version)), commit)
        _link_data(project, config, tree)
        _restore_backbone(project, config, tree)
        notice(f"training {version.stage} again at commit {commit[:12]}, with its ancestors")
        _repro(tree.root, f"finetune@{version.stage}")
        again = tree.model(version.stage)
        same_key = file_digest(again / KEY_FILE) == version.key
        differing = () if same_key else _differing(folder, again)
        # Bits must be identical on the same system and processor, with float32 throughout.
        here = (platform.platform(), cpu_capability())
        exact = config.compute.dtype == "float32" and config.cache.dtype == "float32"
        same_machine = exact and here == (record["platform"], record.get("cpu"))
        accuracy: dict[str, tuple[float | None, float | None]] = {}
        if differing:
            notice(f"{len(differing)} tensors differ; evaluating the new model")
            _repro(tree.root, f"evaluate@{version.stage}")
            accuracy = _accuracies(folder / _EVALUATION, tree.metrics(version.stage) / "evaluation.json")
    near = all(_near(*pair) for pair in accuracy.values())
    return Reproduction(
        version=version.number,
        commit=commit,
        same_machine=same_machine,
        same_key=same_key,
        differing=differing,
        accuracy=accuracy,
        reproduced=not differing or (near and not same_machine),
        seconds=time.monotonic() - began,
    )


def _differing(one: Path, other: Path) -> tuple[str, ...]:
    """Return the tensors of network and sums whose bits differ; files that only one folder has."""
    names = []
    for name in _WEIGHTS:
        left, right = one / name, other / name
        if left.is_file() and right.is_file():
            names += differing_tensors(left, right)
        elif left.is_file() or right.is_file():
            names.append(name)
    return tuple(names)


def _commit(project: Project, number: int, key: Key, record: Record) -> str:
    """Return the commit to train a version from; raises where it cannot be trained again."""
    if "imported_from" in record:
        raise AuditError(f"version {number} was learned elsewhere: reproduce it in the project it came from")
    if "backfilled" in key:
        raise AuditError(
            f"version {number} is the version with key {key['backfilled'][:12]}... and sums that were added "
            "later: reproduce that version; `canal audit --recompute` verifies the sums"
        )
    if "merged" in key:
        raise AuditError(
            f"version {number} has the sums of two lineages, and was not trained: `canal audit` verifies "
            "them against those of its parents"
        )
    if "unlearned" in key:
        raise AuditError(
            f"version {number} is the version with key {key['unlearned']['version'][:12]}... without "
            f"{key['unlearned']['n_cells']:,} cells, and was not trained: `canal audit` verifies its sums "
            "against its split, `canal audit --recompute` against the cells"
        )
    commit, root = record["git_commit"], project.layout.root
    if commit is None or record["dirty"]:
        what = "outside git" if commit is None else "from code or parameters that no commit holds"
        raise AuditError(f"version {number} was registered {what}, so it cannot be reproduced")
    if key["lock"] != lock_digest(root):
        raise AuditError(
            f"version {number} was learned with another constraints.txt (sha256 {str(key['lock'])[:12]}...) "
            f"than this environment ({str(lock_digest(root))[:12]}...): check out commit {commit[:12]}, make "
            "its environment, and reproduce the version there"
        )
    if _git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise AuditError(
            f"commit {commit} of version {number} is not in this repository: fetch it (git fetch)"
        )
    return str(commit)


@contextmanager
def _worktree(root: Path, commit: str) -> Iterator[Layout]:
    """Yield a git worktree of the project at a commit, in a scratch folder that is removed afterwards."""
    try:
        with scratch_folder("reproduce") as scratch:
            tree = scratch / "tree"
            if _git(root, "worktree", "add", "--quiet", "--detach", str(tree), commit) is None:
                raise AuditError(f"git could not make a worktree of commit {commit} in {scratch}")
            inside = _git(root, "rev-parse", "--show-prefix") or ""
            layout = Layout(tree / inside)
            # A cache of its own: from the project's, DVC would fetch the model that is to be learned again.
            private = layout.root / ".dvc" / "config.local"
            private.parent.mkdir(exist_ok=True)
            private.write_text(
                f"[core]\n    no_scm = true\n[cache]\n    dir = {scratch / 'cache'}\n", encoding="utf-8"
            )
            yield layout
    finally:
        _git(root, "worktree", "prune")  # unregister the removed worktree


def _check_tree(tree: Layout, config: Config, learned: tuple[Key, str], commit: str) -> None:
    """Raise unless the commit holds the version's code and request; the record names a later one at times.

    ``learned`` are the version's key, and the digest of its request as requests are written today.
    """
    key, request = learned
    stage = key["stage"]
    if code_digest(tree.root, tree.root / "src" / "canal") != key["code"]:
        raise AuditError(
            f"commit {commit[:12]} holds other code than the version was learned with: the version was "
            "registered at a later commit, or the code was changed before it was committed"
        )
    if stage not in config.stages or request_digest(config, stage) != request:
        raise AuditError(f"params.yaml of commit {commit[:12]} asks for another {stage!r} than was learned")


def _link_data(project: Project, config: Config, tree: Layout) -> None:
    """Link the raw files of all sources into the worktree, so that ingest needs no network."""
    used = {stage.source for stage in config.stages.values()}
    for name, source in config.sources.items():
        if name in used and not source.available:
            raise AuditError(
                f"source {name!r} was marked available: false at that commit: nothing to learn from"
            )
        path = (
            tree.root / source.path if source.path else tree.private / "downloads" / f"{source.sha256}.h5ad"
        )
        if not source.available or path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(_find_bytes(project.layout, name, source))


def _find_bytes(layout: Layout, name: str, source: Source) -> Path:
    """Return a file of the project with the bytes of a source."""
    paths = [
        layout.private / "downloads" / f"{source.sha256}.h5ad",
        layout.source(name) / "cells.h5ad",
        layout.incoming / name / "cells.h5ad",
    ]
    paths += [layout.root / source.path] if source.path else []
    for path in paths:
        if path.is_file() and file_digest(path) == source.sha256:
            return path
    raise AuditError(
        f"no file of this project has the bytes of source {name!r} (sha256 {source.sha256[:12]}...): restore "
        "them (`dvc pull`), then reproduce again"
    )


def _restore_backbone(project: Project, config: Config, tree: Layout) -> None:
    """Restore an imported backbone to the path that params.yaml of the commit names."""
    wanted = config.backbone.imported
    if wanted is None:
        return
    for version in project.store.versions(config.registry.backbone):
        if version.ready and version.key == wanted.key:
            restore_model(project.store, version, tree.root / wanted.path)
            return
    raise AuditError(
        f"the imported backbone with key {wanted.key[:12]}... is not registered: import it again"
    )


def _repro(root: Path, target: str) -> None:
    """Run `dvc repro` up to a step in the worktree, with its own code and MLflow store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(root / ".dvc" / "site"),
    }
    # The libraries are this canal's to import, the code that runs is the worktree's.
    dvc = ["env", f"PYTHONPATH={root / 'src'}", sys.executable, "-m", "dvc", "repro", "--quiet", target]
    command = [sys.executable, "-m", "canal.runtime.warm", *dvc]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise AuditError(f"{target} failed in the worktree:\n  {tail}")


def _accuracies(one: Path, other: Path) -> dict[str, tuple[float | None, float | None]]:
    before, after = read_json(one)["row"], read_json(other)["row"]
    return {stage: (before.get(stage), after.get(stage)) for stage in {**before, **after}}


def _near(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return before is after
    return abs(before - after) <= TOLERANCE


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's output, or None where git fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def entries(project: Project) -> list[dict[str, Any]]:
    """Return the ledger's entries, oldest first, as JSON documents."""
    return [entry.document for entry in ledger_of(project.store).entries()]


def fetch_entries(project: Project) -> int:
    """Bring the entries that the tracking server has and this folder has not; return how many."""
    return len(catch_up(project.store))


def verify_ledger(project: Project) -> AuditLog:
    """Check the ledger by itself: chain, rules, committed states, anchors; no version is looked at.

    Raises
    ------
    LedgerError
        If the chain does not hold; names every line.
    """
    ledger, log = ledger_of(project.store), AuditLog()
    entries, git = ledger.entries(), GitFile(ledger.path)
    check_committed(git, ledger.path.read_bytes() if ledger.path.is_file() else b"", log)
    keyring = check_entries(entries, project.store, None, log)
    check_anchors(git, entries, keyring, log)
    return log


def anchor_ledger(project: Project, by: str | None, key: SigningKey | None) -> Anchor:
    """Anchor the ledger as it is, if it holds; see `canal.registry.ledger.git_history`.

    Raises
    ------
    LedgerError
        If something of it does not hold, it is not committed, or git refuses.
    """
    if by is not None and key is not None:
        key.signer(by)
    who = plain_name(by or (key.name if key else "") or user(), "the person (--by)")
    found = verify_ledger(project)
    if found.findings:
        raise LedgerError(
            "nothing was anchored, because the ledger does not hold: "
            f"{'; '.join(map(str, found.findings[:5]))}"
        )
    ledger = ledger_of(project.store)
    return make_anchor(GitFile(ledger.path), ledger.entries(), who, key)
