"""`canal upgrade`: move a project to the canal that runs; what was learned is restored, not learned again."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from canal.app.creating import PARAMS, SAME, USED, is_source, pipeline_files, requirement, write_text
from canal.app.project import Project, git
from canal.config.yaml_file import save, with_sections, with_tune
from canal.core import __version__
from canal.core.errors import ConfigError
from canal.core.files import read_json
from canal.core.packages import DISTRIBUTION

_ADDED_TO = (PARAMS, "requirements.txt", ".dvcignore", ".gitattributes", ".gitignore")
"""Files of which an upgrade keeps every line that it does not understand."""
_REQUIRED = re.compile(rf"^{DISTRIBUTION}\b.*$", re.MULTILINE)


@dataclass(frozen=True)
class Upgraded:
    """What `canal upgrade` changed: each file with ``new`` or ``changed``, and the version of before."""

    before: str | None
    after: str
    files: dict[str, Literal["new", "changed"]]
    left: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


def upgrade(project: Project, dry_run: bool = False) -> Upgraded:
    """Give a project the pipeline of the canal that runs, and its params.yaml what that pipeline compares.

    Nothing is learned again: a step whose code changed restores what was learned (`Project.learned`). Files
    are replaced one by one, ``canal.json`` last: after a kill, a second call completes the upgrade.

    Raises
    ------
    ConfigError
        If a file that is to be replaced has changes that git does not hold, which would be lost.
    """
    root = project.layout.root
    pipeline = {} if is_source(root) else _upgraded_files(root)
    before = project.layout.params.read_text(encoding="utf-8")
    wanted = {PARAMS: with_sections(with_tune(before)), **pipeline}
    files: dict[str, Literal["new", "changed"]] = {}
    for name, text in wanted.items():
        path = root / name
        if not path.is_file():
            files[name] = "new"
        elif path.read_text(encoding="utf-8") != text:
            files[name] = "changed"
    _require_committed(
        root, [name for name, what in files.items() if what == "changed" and name not in _ADDED_TO]
    )
    used = read_json(root / USED) if (root / USED).is_file() else {}
    left: list[str] = []  # what lies in the project and is part of the pipeline no more
    if pipeline:
        scripts = {f"pipelines/{path.name}" for path in (root / "pipelines").glob("*.py")}
        copied = ["src/canal"] if (root / "src" / "canal").is_dir() else []
        left = [*sorted(scripts - {*pipeline}), *copied]
    if not dry_run:
        for name in files:
            if name == PARAMS:
                save(project.layout.params, wanted[name], before)
            else:
                write_text(root / name, wanted[name])
    return Upgraded(used.get("canal"), __version__, files, tuple(left))


def _upgraded_files(root: Path) -> dict[str, str]:
    """Return the files that a project is to have by path; what people wrote into theirs is kept in some."""
    files = pipeline_files()
    for name in SAME:
        path = root / name
        if not path.is_file() or name in ("MLproject", "gate/README.md"):
            continue
        mine = path.read_text(encoding="utf-8")
        if name.startswith(".dvc/"):
            files[name] = mine
        else:  # a list of patterns: the new ones are added
            known = mine.splitlines()
            added = [line for line in files[name].splitlines() if line not in known]
            files[name] = mine if not added else "\n".join([*known, *added]) + "\n"
    required = root / "requirements.txt"
    text = required.read_text(encoding="utf-8") if required.is_file() else ""
    pinned = _REQUIRED.sub(requirement(), text)
    files["requirements.txt"] = pinned if _REQUIRED.search(text) else f"{text}{requirement()}\n"
    return {**files, USED: files.pop(USED)}


def _require_committed(root: Path, names: Sequence[str]) -> None:
    """Raise where one of these files has changes that git does not hold."""
    if not names:
        return
    done = git(root, "status", "--porcelain", "--ignored", "--", *names)
    if done.returncode:
        raise ConfigError(
            f"{root} is in no git repository, so {', '.join(names)}, which `canal upgrade` replaces, would "
            "be lost: git init, git add --all, git commit, then call it again"
        )
    changed = [line[3:].strip('"') for line in done.stdout.splitlines()]
    if changed:
        raise ConfigError(
            f"git does not hold {', '.join(changed)} as it is here, and `canal upgrade` replaces it: commit "
            "it, then call it again; afterwards `git diff HEAD` shows what was replaced"
        )
