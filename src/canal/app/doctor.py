"""`canal doctor`: whether canal, its packages, the project, its registry and the machine are in order.

For when other commands fail: it works outside of projects and in damaged ones, each check by itself, and
changes nothing.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from packaging.markers import Marker

from canal.app.creating import require_used
from canal.app.planning import require_mergeable
from canal.app.project import Project, last_line
from canal.config.layout import Layout
from canal.config.yaml_file import parse_yaml
from canal.core import __version__
from canal.core.errors import CanalError
from canal.core.files import read_json
from canal.core.packages import DISTRIBUTION, EXTRAS, install_hint, other_canal
from canal.core.progress import first_names
from canal.registry.ledger.ledger import ledger_aliases
from canal.registry.ledger.mirror import mirrored
from canal.registry.manifest.stage_request import uncommitted_files
from canal.registry.promotion.moves import ledger_of
from canal.registry.store.store import half_rebuilt
from canal.runtime.startup import own_code

State = Literal["ok", "look", "broken"]

_PYTHON = ((3, 11), (3, 14))
_LITTLE, _TOO_LITTLE = 5e9, 5e8
"""Bytes of free disk below which a run may fail, and will."""
_ANSWER_S = 60
_UNREAD = ("not checked: params.yaml cannot be read", "mend params.yaml, then run this again")


_REMOTE = """
import json, sys
from dvc.repo import Repo

with Repo() as repo:
    odb = repo.cloud.get_remote_odb(None, "status")

    def whole(oid):
        if not odb.exists(oid) or not oid.endswith(".dir"):
            return odb.exists(oid)
        return all(odb.exists(one["md5"]) for one in json.loads(odb.fs.cat_file(odb.oid_to_path(oid))))

    json.dump([oid for oid in sys.argv[1:] if not whole(oid)], sys.stdout)
"""
"""Asks DVC which outs its default remote lacks, or has without all of their files."""


@dataclass(frozen=True)
class Check:
    """One check: ``ok``, worth a ``look``, or ``broken``; what was found, and how to mend it."""

    name: str
    state: State
    found: str
    mend: str = ""


def doctor(folder: Path) -> list[dict[str, Any]]:
    """Return the result of each check of canal, the project in ``folder`` if there is one, and the machine.

    A check that fails itself is broken, with what it said.
    """
    examined = _Examined(Layout(folder.resolve()))
    of_project = (
        ("params.yaml", examined.params), ("pipeline", examined.pipeline), ("git", examined.git),
        ("DVC", examined.dvc), ("registry", examined.registry), ("ledger", examined.ledger),
        ("locks", examined.locks), ("caches", examined.caches),
    )  # fmt: skip
    checks = (
        ("canal", examined.canal), ("packages", examined.packages), ("project", examined.project),
        *(of_project if examined.is_project else ()), ("machine", examined.machine),
    )  # fmt: skip
    found: list[Check] = []
    for name, check in checks:
        try:
            found += check()
        except CanalError as error:
            found.append(Check(name, "broken", str(error), "see the message"))
        except Exception as error:  # whatever is damaged, the other checks are still of use
            found.append(Check(name, "broken", f"could not be checked: {type(error).__name__}: {error}"))
    return [asdict(one) for one in found]


class _Examined:
    """A folder that may be a project's, and the checks of it, of canal and of the machine."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @property
    def is_project(self) -> bool:
        return self.layout.params.exists() or (self.layout.root / "dvc.yaml").exists()

    @cached_property
    def opened(self) -> Project | None:
        """The project; None where its parameters cannot be read, which the check of params.yaml says."""
        try:
            return Project.open(self.layout.root)
        except CanalError:
            return None

    def canal(self) -> Iterator[Check]:
        """Look at Python, this canal, another package of that name, and the extras."""
        ours = ".".join(map(str, sys.version_info[:3]))
        lowest, beyond = (".".join(map(str, one)) for one in _PYTHON)
        fits = _PYTHON[0] <= sys.version_info[:2] < _PYTHON[1]
        mend = "" if fits else f"make an environment with a Python from {lowest} on, below {beyond}"
        found = f"canal {__version__} in {Path(__file__).parents[1]}, Python {ours}"
        yield Check("Python", "ok" if fits else "broken", found, mend)
        if clash := other_canal():
            yield Check("another canal", "broken", clash, "see the message")
        lacking = {}
        for extra, (what, modules) in EXTRAS.items():
            if gone := [module for module in modules if find_spec(module) is None]:
                lacking[extra] = f"{extra}: {what} ({', '.join(gone)} missing)"
        present = [extra for extra in EXTRAS if extra not in lacking]
        absent = f"; absent: {'; '.join(lacking.values())}" if lacking else ""
        mend = f"only where you need one: {install_hint('EXTRA')}" if lacking else ""
        yield Check("extras", "ok", f"installed: {', '.join(present) or 'none'}{absent}", mend)

    def packages(self) -> Iterator[Check]:
        """Compare installed packages with the project's pins, where it has some."""
        pins = self.layout.root / "constraints.txt"
        if not pins.is_file():
            yield Check("packages", "ok", "the project pins none (no constraints.txt)")
            return
        pinned, others = 0, []
        for line in pins.read_text(encoding="utf-8").splitlines():
            pin, _, marker = line.partition("#")[0].partition(";")
            name, separator, wanted = pin.strip().partition("==")
            if not separator or (marker.strip() and not Marker(marker.strip()).evaluate()):
                continue  # of another Python or system
            try:
                installed = version(name.partition("[")[0].strip())
            except PackageNotFoundError:
                continue  # of an extra that is not installed
            pinned += 1
            if installed.partition("+")[0] != wanted.strip().partition("+")[0]:
                others.append(f"{name} {installed} (pinned: {wanted.strip()})")
        if others:
            mend = f"pip install -c {pins.name} {DISTRIBUTION}"
            yield Check(
                "packages",
                "look",
                f"{len(others)} of {pinned} are not as pinned: {first_names(others)}",
                mend,
            )
        else:
            yield Check("packages", "ok", f"{pinned} are as {pins.name} pins them")

    def project(self) -> Iterator[Check]:
        if not self.is_project:
            found = f"{self.layout.root} is in no project"
            yield Check(
                "project", "look", found, "canal init NAME begins one; canal annotate --model needs none"
            )
            return
        gone = [name for name in EXTRAS["project"][1] if find_spec(name) is None]
        if gone:
            yield Check(
                "project", "broken", f"packages are missing: {', '.join(gone)}", install_hint("project")
            )
        writable = os.access(self.layout.root, os.W_OK)
        found = f"{self.layout.root}{'' if writable else ', read-only for this user'}"
        yield Check(
            "project", "ok" if writable else "look", found, "" if writable else "copy it to learn in it"
        )

    def params(self) -> Iterator[Check]:
        stages = list((self.opened or Project.open(self.layout.root)).config.stages)
        yield Check("params.yaml", "ok", f"{len(stages)} stages: {first_names(stages)}")

    def pipeline(self) -> Iterator[Check]:
        require_mergeable(self.layout.root)
        require_used(self.layout.root, renew=False)
        yield Check("pipeline", "ok", f"is that of canal {__version__}")

    def git(self) -> Iterator[Check]:
        if shutil.which("git") is None:
            yield Check("git", "broken", "git is not installed", "install git")
            return
        changed = uncommitted_files(self.layout.root)
        if changed is None:
            mend = "git init, git add --all, git commit"
            yield Check("git", "look", "the folder is no git repository with a commit", mend)
        elif changed:
            found = f"not committed as they are here: {first_names(changed)}"
            yield Check("git", "look", found, "git status, then commit: what is learned now counts as dirty")
        else:
            yield Check("git", "ok", "code and parameters are committed")

    def dvc(self) -> Iterator[Check]:
        """Look for the files of dvc.lock here, in DVC's cache, then on its remote."""
        path = self.layout.root / "dvc.lock"
        if not path.is_file():
            yield Check("DVC", "look", "nothing was learned here yet (no dvc.lock)", "canal run")
            return
        document = parse_yaml(path.read_bytes(), path.name) or {}
        outs = {
            str(out["path"]): str(out.get("md5", ""))
            for step in (document.get("stages") or {}).values()
            for out in step.get("outs") or ()
        }
        gone = [name for name in outs if not (self.layout.root / name).exists()]
        lost = [name for name in gone if not self.cached(outs[name])]
        settings = (self.layout.root / ".dvc" / name for name in ("config.local", "config"))
        texts = [path.read_text(encoding="utf-8") for path in settings if path.is_file()]
        found_remote = re.search(r"^\s*remote\s*=\s*(\S+)", "\n".join(texts), flags=re.MULTILINE)
        remote = found_remote[1] if found_remote else ""
        what = f"{len(outs)} outs in dvc.lock"
        if lost and remote:
            yield self.on_remote({name: outs[name] for name in lost}, remote)
        elif lost:
            found = f"{what}; neither here nor in DVC's cache, and there is no remote: {first_names(lost)}"
            yield Check(
                "DVC", "broken", found, "copy .dvc/cache from where they were learned; else canal plan"
            )
        elif gone:
            found = f"{what}; in DVC's cache, but not here: {first_names(gone)}"
            yield Check("DVC", "look", found, "dvc checkout")
        else:
            yield Check("DVC", "ok", f"{what}, all here{f'; remote {remote}' if remote else '; no remote'}")

    def cached(self, digest: str) -> bool:
        """Whether DVC's cache holds a file, or a folder with all of its files."""
        cache = self.layout.root / ".dvc" / "cache" / "files" / "md5"
        path = cache / digest[:2] / digest[2:]
        if not path.is_file() or not digest.endswith(".dir"):
            return path.is_file()
        return all((cache / one["md5"][:2] / one["md5"][2:]).is_file() for one in read_json(path))

    def on_remote(self, lost: dict[str, str], remote: str) -> Check:
        """Ask DVC's remote for outs that are neither here nor in the cache; nothing is fetched."""
        done = subprocess.run(
            [sys.executable, "-c", _REMOTE, *lost.values()], cwd=self.layout.root, env=own_code(),
            capture_output=True, text=True, check=False, timeout=_ANSWER_S,
        )  # fmt: skip
        if done.returncode:
            said = f"{first_names([*lost])}: not here, and remote {remote} says: {last_line(done)}"
            return Check("DVC", "broken", said, "mend the remote's address or access, then dvc pull")
        absent = json.loads(done.stdout)
        if nowhere := [name for name, digest in lost.items() if digest in absent]:
            found = f"neither here nor on remote {remote}: {first_names(nowhere)}"
            return Check("DVC", "broken", found, "dvc push where they were learned, then dvc pull here")
        return Check("DVC", "look", f"only on remote {remote}: {first_names([*lost])}", "dvc pull")

    def registry(self) -> Iterator[Check]:
        if self.opened is None:
            yield Check("registry", "look", *_UNREAD)
            return
        store, entries = self.opened.store, ledger_of(self.opened.store).entries()
        registered = {entry.version for entry in entries if entry.kind == "register"}
        if not store.exists and not registered:
            yield Check("registry", "ok", f"{store.shown}: no version yet")
            return
        if not store.exists:
            found = f"{store.shown} is gone; the ledger names {len(registered)} versions"
            yield Check("registry", "broken", found, "canal registry rebuild")
            return
        if store.uri.startswith("sqlite") and store.database is None:
            found = f"{store.shown} is no database of the installed MLflow"
            mend = (
                "mlflow db upgrade, if an older one wrote it; else move it away, then canal registry rebuild"
            )
            yield Check("registry", "broken", found, mend)
            return
        if half_rebuilt(store):
            yield Check("registry", "broken", f"{store.shown} is half rebuilt", "canal registry sync")
        versions = [one for one in (*store.versions(), *store.versions(store.names.backbone)) if one.ready]
        away = [] if store.remote else [one for one in versions if store.local_artifacts(one) is None]
        if lost := [f"version {one.number} ({one.stage})" for one in away if not one.erased]:
            mend = f"bring back {self.layout.artifacts.name}/, or canal registry rebuild"
            yield Check("registry", "broken", f"files are missing: {first_names(lost)}", mend)
        else:
            yield Check("registry", "ok", f"{store.shown}: {len(versions)} versions, backbones included")
        here = {alias: one.number for one in store.versions() for alias in one.aliases}
        said = {name: one for name, one in ledger_aliases(entries, store.names.model).items() if one}
        if differ := sorted(name for name in {*here, *said} if here.get(name) != said.get(name)):
            found = ", ".join(f"{name}: {here.get(name)}, ledger {said.get(name)}" for name in differ)
            yield Check(
                "aliases", "broken", f"registry and ledger disagree: {found}", "canal audit, canal ledger"
            )

    def ledger(self) -> Iterator[Check]:
        if self.opened is None:
            yield Check("ledger", "look", *_UNREAD)
            return
        store = self.opened.store
        entries = ledger_of(store).entries()
        if self.layout.pending.is_file():
            yield Check("ledger", "look", "a move of aliases was interrupted", "canal registry sync")
        if store.remote and entries:
            further = len(mirrored(store)) - len(entries)
            if further > 0:
                found = f"{store.shown} has {further} further entries"
                yield Check("ledger", "look", found, "canal ledger --catch-up")
            elif further:
                found = f"{store.shown} lacks {-further} entries of this ledger"
                yield Check("ledger", "broken", found, "canal audit")
        yield Check("ledger", "ok", f"{len(entries)} entries, and their chain holds")

    def locks(self) -> Iterator[Check]:
        """Look for locks that a process holds, and DVC's file of locks that a kill truncated."""
        held = list[str]()
        for path in sorted(self.layout.private.glob("locks/*.lock")):
            with path.open("rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing the file gives it back
                except OSError:
                    held.append(path.stem)
        if held:
            found = f"a process of canal is at work here: {', '.join(held)}"
            yield Check("locks", "look", found, "wait for it, or end it")
        path = self.layout.root / ".dvc" / "tmp" / "rwlock"
        try:
            json.loads(path.read_bytes() if path.is_file() else b"{}")
        except ValueError:
            yield Check(
                "locks", "look", f"{path.name} of DVC was truncated by a kill", "canal run removes it"
            )
        else:
            if not held:
                yield Check("locks", "ok", "none is held")

    def caches(self) -> Iterator[Check]:
        places = {
            ".canal": (self.layout.private, "may be deleted while nothing runs"),
            ".dvc/cache": (self.layout.root / ".dvc" / "cache", "dvc gc --workspace --all-commits"),
        }
        for name, (folder, mend) in places.items():
            files = (Path(above) / one for above, _, names in os.walk(folder) for one in names)
            size = sum(path.lstat().st_size for path in files)  # links are not followed
            yield Check("caches", "ok", f"{name}: {size / 1e6:,.0f} MB", f"if too large: {mend}")

    def machine(self) -> Iterator[Check]:
        """Look at the disk, at cores, threads and memory."""
        free = shutil.disk_usage(self.layout.root).free
        state: State = "broken" if free < _TOO_LITTLE else "look" if free < _LITTLE else "ok"
        yield Check("disk", state, f"{free / 1e9:,.1f} GB free", "" if state == "ok" else "make room")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = os.environ.get("OMP_NUM_THREADS", "")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found = f"{cores} cores, {memory / 1e9:,.0f} GB of memory"
        if threads.isdecimal() and int(threads) > cores:
            mend = "unset OMP_NUM_THREADS"
            yield Check("machine", "look", f"{found}; OMP_NUM_THREADS={threads} asks for more threads", mend)
        else:
            yield Check("machine", "ok", f"{found}{f'; OMP_NUM_THREADS={threads}' if threads else ''}")
