"""Audit of the files in the project folder against the MD5 sums in dvc.lock and data.dvc."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.yaml_file import parse_yaml
from canal.core.digests import file_digest
from canal.core.errors import ConfigError
from canal.core.files import unreadable
from canal.core.progress import doing
from canal.registry.audit.version_files import AuditLog, examples
from canal.registry.ledger.git_history import GitFile
from canal.registry.provenance.registered import RegisteredVersion

LOCK = "dvc.lock"
_DATA = "data.dvc"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Out:
    """A file or folder that DVC tracks, with its recorded MD5."""

    path: str
    md5: str
    listed_in: str


@doing("checking the files of this folder")
def check_workspace(layout: Layout, config: Config, stages: Collection[str], log: AuditLog) -> None:
    """Check the outputs of the pipeline for ``stages``: data, cells, splits, verdicts, models, metrics."""
    if not (layout.root / LOCK).is_file():
        log.note("workspace", "dvc", f"{LOCK} is not there: nothing to compare files with")
        return
    lock, data = (_read(layout.root / name) for name in (LOCK, _DATA))
    if lock is None or data is None:
        name = LOCK if lock is None else _DATA
        what = f"{name} is no YAML that can be read: nothing was compared with it; git checkout -- {name}"
        log.finding("workspace", "dvc", what)
        return
    try:
        outs = list(_outs(lock, data, _wanted(config, stages, _steps(layout.root, lock))))
    except (KeyError, TypeError, AttributeError):
        log.finding("workspace", "dvc", f"{LOCK} or {_DATA} is not as DVC writes it: git checkout -- {LOCK}")
        return
    listings = Listings(caches(layout.root), outs)
    _check_git(layout.root, log)
    sums, missing = Sums(), []
    for out in outs:
        path = layout.root / out.path
        if not path.exists():
            missing.append(out.path)
        elif not os.access(path, os.R_OK) or (path.is_dir() and unreadable(path)):
            what = f"this user may not read {out.path}, or all of it: not compared with {out.listed_in}"
            log.finding("workspace", "dvc", what)
        elif (differing := _differs(path, out, listings, sums)) is not None:
            what = f"{differing} is not what {out.listed_in} has: dvc status, dvc checkout"
            log.finding("workspace", "dvc", what)
    if missing:
        what = f"not in this folder, not compared with {LOCK}: {examples(missing, 8)}; dvc checkout, dvc pull"
        log.note("workspace", "dvc", what)
    log.counts["files of DVC"] += sums.number


def check_origin(member: RegisteredVersion, layout: Layout, config: Config, log: AuditLog) -> None:
    """Check the raw file of a stage's source, if it exists and the version is the project's present one."""
    present = layout.model(member.stage) / "key.json"
    if not member.is_annotator or not present.is_file() or file_digest(present) != member.digest:
        return
    data = member.key["data"]
    raw = layout.source(str(data["source"])) / "cells.h5ad"
    source = config.sources.get(str(data["source"]))
    rest = source.rest if source is not None else None
    if raw.is_file() and (found := file_digest(raw)) != data["source_sha256"]:
        if found == rest:
            what = f"cells of {raw.relative_to(layout.root)} were erased since it was learned from it"
            log.note(member.name, "data", what)
            return
        log.finding(
            member.name, "data", f"{raw.relative_to(layout.root)} is not the file it was learned from"
        )


def _read(path: Path) -> Mapping[str, Any] | None:
    """Return a YAML mapping, empty without a file; None where it cannot be read."""
    try:
        return _parsed(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except UnicodeDecodeError:
        return None


@lru_cache(maxsize=2)
def _parsed(text: str) -> Mapping[str, Any] | None:
    try:
        document = parse_yaml(text, "a file of DVC")
    except ConfigError:
        return None
    return document if isinstance(document, dict) else None


def caches(root: Path) -> list[Path]:
    """Return the folders of DVC's cache: the project's own, and shared ones.

    A shared cache is set in the configuration of the project, the user or the machine; ``dvc config`` would
    read all of them, but takes a second.
    """
    homes = [Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dvc"]
    homes += [Path(one) / "dvc" for one in (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")]
    places = [root / ".dvc" / "config.local", root / ".dvc" / "config", *(home / "config" for home in homes)]
    caches = [root / ".dvc" / "cache"]
    for place in places:
        config = ConfigParser(interpolation=None)
        with suppress(OSError, ValueError, ConfigParserError):
            config.read_string(place.read_text(encoding="utf-8"))
            if named := config.get("cache", "dir", fallback="").strip("'\""):
                caches.insert(0, place.parent / Path(named).expanduser())
    return [cache / "files" / "md5" for cache in caches]


def _check_git(root: Path, log: AuditLog) -> None:
    """Check that dvc.lock is committed: otherwise a changed file could be given a new sum unnoticed."""
    lock = GitFile(root / LOCK)
    if lock.line("rev-parse", "--is-inside-work-tree") != "true":
        log.finding(
            "workspace",
            "dvc",
            f"{LOCK} lies in no git repository: that files are what it says proves nothing, for whoever "
            f"changes one may change both; git init, git add {LOCK}, then commit it",
        )
    elif lock.at("HEAD") != lock.path.read_bytes():  # not `git status`, which runs filters that settings name
        log.note("workspace", "dvc", f"{LOCK} is not committed to git as it lies here: git add {LOCK}")


def _steps(root: Path, lock: Mapping[str, Any]) -> set[str]:
    """Return the steps that ran, or that the project's dvc.yaml has: a group's name without a stage."""
    pipeline = _read(root / "dvc.yaml") or {}
    return {*(lock.get("stages") or {}), *(pipeline.get("stages") or {})}


def _wanted(config: Config, stages: Collection[str], known: set[str]) -> set[str]:
    """Return the names of the pipeline's steps in dvc.lock for the stages as they are configured.

    dvc.lock also keeps the steps of a stage that was removed, and of an older canal, whose dvc.yaml had a
    group ``finetune-tuned`` for tuned stages: it counts until ``finetune`` has run.
    """
    steps = {"ingest", "split", "panel", "pretrain"}
    for stage in stages:
        older = "finetune-tuned" in known or f"finetune@{stage}" not in known
        learning = "finetune-tuned" if older and config.study(stage) else "finetune"
        steps |= {f"{step}@{stage}" for step in ("validate", "tune", learning, "evaluate")}
        steps.add(f"prepare@{config.stages[stage].source}")
    return steps


def _outs(lock: Mapping[str, Any], data: Mapping[str, Any], wanted: set[str]) -> Iterator[Out]:
    """Yield every out of the wanted steps, their inputs in data/, and data/ as a whole."""
    seen = set()
    for name, step in (lock.get("stages") or {}).items():
        if name not in wanted:
            continue
        read = [one for one in step.get("deps", ()) if str(one["path"]).startswith("data/")]
        for one in (*step.get("outs", ()), *read):
            if "md5" in one and (one["path"], one["md5"]) not in seen:
                seen.add((one["path"], one["md5"]))
                yield Out(str(one["path"]), str(one["md5"]), f"{LOCK} ({name})")
    for one in data.get("outs", ()):
        if "md5" in one:
            yield Out(str(one["path"]), str(one["md5"]), _DATA)


def _differs(path: Path, out: Out, listings: "Listings", sums: "Sums") -> str | None:
    """Return the files that differ from DVC's sums, or their folder where DVC's cache has no listing."""
    if path.is_file():
        return None if sums.of(path) == out.md5 else out.path
    here = {one.relative_to(path).as_posix(): sums.of(one) for one in path.rglob("*") if one.is_file()}
    if _listing_md5(here) == out.md5:
        return None
    there = listings.of(out)
    if there is None:
        return f"{out.path}/"
    names = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    return examples([f"{out.path}/{name}" for name in names])


class Listings:
    """Listings of folders in DVC's cache, each checked against the MD5 of its folder."""

    def __init__(self, caches: Sequence[Path], outs: Sequence[Out]) -> None:
        self._caches = caches
        self._outs = outs

    def of(self, out: Out) -> dict[str, str] | None:
        """Return the MD5 of each file of a folder: from its own listing, or that of a folder above it."""
        above = [one for one in self._outs if out.path.startswith(f"{one.path}/")]
        for one in (out, *above):
            start = out.path[len(one.path) :].strip("/")
            prefix = f"{start}/" if start else ""
            files = {
                name.removeprefix(prefix): md5
                for name, md5 in self._cached(one.md5).items()
                if name.startswith(prefix)
            }
            if files and _listing_md5(files) == out.md5:
                return files
        return None

    def _cached(self, md5: str) -> dict[str, str]:
        for cache in self._caches:
            try:
                listing = json.loads((cache / md5[:2] / md5[2:]).read_bytes())
                return {one["relpath"]: one["md5"] for one in listing}
            except (OSError, ValueError, TypeError, KeyError):
                continue
        return {}


def _listing_md5(files: Mapping[str, str]) -> str:
    """Return the MD5 that DVC gives a folder."""
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    content = json.dumps(listing, sort_keys=True).encode()
    return f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}.dir"


class Sums:
    """MD5 sums of files, each read once, though both a folder and a step may list it."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    @property
    def number(self) -> int:
        """How many files were read."""
        return len(self._known)

    def of(self, path: Path) -> str:
        """Return the MD5 of a file."""
        if path not in self._known:
            digest = hashlib.md5(usedforsecurity=False)
            with path.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
            self._known[path] = digest.hexdigest()
        return self._known[path]
