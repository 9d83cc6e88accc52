"""`canal init`: the files of a project, which are those at the top of canal's own source.

The source's steps depend on the folders of its code; a project's depend on ``canal.json``, which names the
installed canal by its version and each of its packages by the digest of its code. A canal whose code differs
so runs the steps that use it again: they restore what was learned.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from ruamel.yaml.comments import CommentedMap

from canal.app.declaring import Addition, add_stage, propose_stage
from canal.app.project import git, last_line
from canal.app.streams import Stream
from canal.config.layout import Layout
from canal.config.layout import name_from as name_from
from canal.config.sections import NAME_PATTERN, Method, Species
from canal.config.yaml_file import dumped, load_config, round_trip, save, with_sections
from canal.core import __version__
from canal.core.digests import file_digest, json_digest
from canal.core.errors import ConfigError, GateError, tell
from canal.core.files import new_file, new_folder, read_json, scratch_folder
from canal.core.packages import DISTRIBUTION
from canal.data.prepare import PrepareSettings
from canal.quality.gate import judge_file
from canal.quality.verdict import Subject, Verdict

USED = "canal.json"
"""The file of a project that names the canal which it uses."""

_PACKAGE = Path(__file__).resolve().parents[1]
_TEMPLATES = Path(__file__).parent / "templates"
SAME = (
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvcignore",
    ".gitattributes",
    ".gitignore",
    "MLproject",
    "gate/README.md",
)
PARAMS = "params.yaml"
_OWN_CODE = "src/canal/"
_LOCAL = "PYTHONPATH=src "
_NOT_FETCHED = "deps:\n- path: incoming\nouts:\n- path: data\n"


def top_files() -> Path:
    """Return the folder with the files at the top of canal's source: of the wheel, or of a source tree."""
    shipped = _TEMPLATES / "top"
    return shipped if shipped.is_dir() else _PACKAGE.parents[1]


def used_canal() -> dict[str, Any]:
    """Return the content of ``canal.json`` for the canal that runs: its version, its code by digest."""
    rooms = sorted(path for path in _PACKAGE.iterdir() if (path / "__init__.py").is_file())
    return {"canal": __version__, "code": {room.name: json_digest(_code(room)) for room in rooms}}


def pipeline_files() -> dict[str, str]:
    """Return the files of a project that come with a version of canal, by path."""
    top = top_files()
    names = [*SAME, *sorted(f"pipelines/{path.name}" for path in (top / "pipelines").glob("*.py"))]
    files = {name: (top / name).read_text(encoding="utf-8") for name in names}
    files["MLproject"] = files["MLproject"].replace(_LOCAL, "")
    files["dvc.yaml"] = of_installed((top / "dvc.yaml").read_text(encoding="utf-8"))
    files["python_env.yaml"] = (
        "# What `mlflow run` installs where it is not told `--env-manager local`.\n"
        f'python: "3.11"\nbuild_dependencies: [pip, setuptools]\ndependencies: ["{requirement()}"]\n'
    )
    files[USED] = _as_text(used_canal())
    return files


def of_installed(text: str) -> str:
    """Return the text of the source's dvc.yaml with dependencies on the installed canal's code.

    Dependencies on ``src/canal/PACKAGE`` become a parameter, ``code.PACKAGE`` of ``canal.json``.
    """
    document = round_trip().load(text)
    for entry in document["stages"].values():
        step = entry.get("do", entry)
        rooms = [one.removeprefix(_OWN_CODE) for one in step["deps"] if str(one).startswith(_OWN_CODE)]
        for room in rooms:
            step["deps"].remove(f"{_OWN_CODE}{room}")
        if rooms:
            code = CommentedMap({USED: [f"code.{room}" for room in rooms]})
            code.fa.set_flow_style()
            step["params"].append(code)
    return dumped(document)


def _as_text(used: dict[str, Any]) -> str:
    return json.dumps(used, indent=1) + "\n"


def requirement() -> str:
    """Return the canal that a project needs, as pip reads it."""
    return f"{DISTRIBUTION}[project]=={__version__}"


@dataclass(frozen=True)
class FirstStage:
    """The first stage of a new project: its name and the declaration of its source."""

    name: str
    source: dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What a new project is to be.

    Attributes
    ----------
    method
        Who learns: ``exact``, ``combined`` or ``published`` (`canal.config.sections.Continual`).
    first
        The first stage; None leaves it to `canal stage add`.
    demo
        Whether it is to learn canal's embedded data, with the parameters that canal comes with.
    stream
        The stream of a published experiment that it is to learn.
    species
        Whose genes it learns, ``human`` or ``mouse``; a stream names its own.
    """

    method: Method = "exact"
    first: FirstStage | None = None
    demo: bool = False
    stream: Stream | None = None
    species: Species = "human"


@dataclass(frozen=True)
class Created:
    """A new project: its folder and files, the gate's verdict on its first stage, and whether git has it.

    ``problem`` is what git said where it did not commit the files.
    """

    root: Path
    files: tuple[str, ...]
    addition: Addition | None
    problem: str | None


def create(
    target: Path, wish: Wish, judged: Callable[[Verdict], None] = lambda _: None, dry_run: bool = False
) -> Created:
    """Make a project in a new folder: a repository of git and DVC with the pipeline of the installed canal.

    The folder is there once everything in it is; a refusal leaves nothing.

    Parameters
    ----------
    target
        A folder that does not exist, or is empty; its name is the project's.
    judged
        Is handed the gate's verdict on the first stage, or on each file of a stream.
    dry_run
        Whether to make it in a scratch folder only, which is removed.

    Raises
    ------
    ConfigError
        If the folder is not empty, lies in a repository of git, or its name is no name.
    GateError
        If the first stage's file, or one of a stream, does not pass the gate.
    """
    require_room(target)
    target = target.resolve()
    place = scratch_folder("init", target.parent if target.parent.is_dir() else None)
    with place if dry_run else _content_of(target) as folder:
        files = _new_files(target.name, wish)
        for name, text in files.items():
            write_text(folder / name, text)
        addition = None
        if wish.first is not None:
            addition = propose_stage(wish.first.name, wish.first.source, None, folder)
            judged(addition.verdict)
            try:
                add_stage(addition, commit=False, root=folder)
            except GateError as error:
                raise GateError(f"no project was made: {error}") from error
        if wish.stream is not None:
            _require_stream(wish.stream, folder, judged)
        problem = _begin_git(folder, target.name, [*files])
    return Created(target, tuple(files), addition, problem)


@contextmanager
def _content_of(target: Path) -> Iterator[Path]:
    """Yield a folder whose content is the target's when the block ends without an error.

    A folder that is there stays the same one: a shell may work in it, and it has rights of its own.
    """
    if not target.exists():
        with new_folder(target) as folder:
            yield folder
        return
    with scratch_folder("init", target.parent) as folder:  # beside it: paths of files are relative to it
        yield folder
        for path in sorted(folder.iterdir(), key=lambda one: one.name == PARAMS):
            shutil.move(path, target / path.name)  # params.yaml comes last: without it there is no project


def _require_stream(stream: Stream, folder: Path, judged: Callable[[Verdict], None]) -> None:
    """Judge each file of a stream by itself, before there is a panel or a stage to compare it with.

    Raises
    ------
    GateError
        If a file does not pass.
    """
    layout = Layout(folder)
    config = load_config(layout.params)
    refused = []
    for one in stream.sources:
        source = config.sources[one.stage]
        raw = folder / str(source.path)
        settings = PrepareSettings(config.min_genes(one.stage), config.prepare.chunk_cells)
        subject = Subject(one.stage, one.stage, source, raw, [], own_rules=layout.own_rules)
        verdict = judge_file(subject, settings, config.gate)
        judged(verdict)
        refused += [] if verdict.passed else [f"{one.stage} ({raw})"]
    if refused:
        raise GateError(f"no project was made: {', '.join(refused)} did not pass the gate")


def require_room(target: Path) -> None:
    """Refuse a folder that no project can be made in; a caller asks before it reads a file of cells.

    Raises
    ------
    ConfigError
        If the folder is not empty, lies in a repository of git, or its name is no name.
    """
    target = target.resolve()
    if not NAME_PATTERN.fullmatch(target.name):
        raise ConfigError(
            f"{target.name[:80]!r} is not a project's name: use 1-64 of a-z, 0-9, '-' and '_', beginning and "
            "ending with a letter or digit (its registry is named after it)"
        )
    if (target / PARAMS).is_file():
        raise ConfigError(
            f"{target} is a project already: `canal stage add NAME --file FILE.h5ad` teaches it a data set, "
            "`canal upgrade` moves it to this canal; a new project needs another folder"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"{target} exists and is not empty: `canal init` makes a new folder; give another name"
        )
    if shutil.which("git") is None:
        raise ConfigError("git is not installed, and a project is a repository of git: install git")
    above = next(path for path in target.parents if path.is_dir())
    inside = git(above, "rev-parse", "--show-toplevel")
    if inside.returncode == 0:
        raise ConfigError(
            f"{target} lies in the git repository {inside.stdout.strip()}, and a project is a repository of "
            "its own: give a folder outside of it"
        )


def _new_files(name: str, wish: Wish) -> dict[str, str]:
    """Return the files of a new project by path."""
    top, files = top_files(), pipeline_files()
    if wish.demo:
        files |= {one: (top / one).read_text(encoding="utf-8") for one in (PARAMS, "data.dvc")}
    else:
        gate = "{}" if wish.species == "human" else f"{{species: {wish.species}}}"
        text = _filled(PARAMS, method=wish.method, model=name, gate=gate)
        text = text if wish.stream is None else wish.stream.params(text, wish.method)
        files |= {PARAMS: text, "data.dvc": _NOT_FETCHED}
    begun = wish.demo or wish.first is not None or wish.stream is not None
    step = "" if begun else "canal stage add NAME --file FILE.h5ad --label COLUMN --values counts --commit\n"
    files["README.md"] = _filled("README.md", name=name, distribution=DISTRIBUTION, first_stage=step)
    files[".github/workflows/canal.yml"] = _filled("canal.yml")
    files["requirements.txt"] = f"{requirement()}\n"
    return files


def _filled(template: str, **values: str) -> str:
    return Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def write_text(path: Path, text: str) -> None:
    """Write a file of a project atomically; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _begin_git(folder: Path, name: str, files: Sequence[str]) -> str | None:
    """Make a repository of git and commit the files; return what git said if it did not commit.

    The branch is named by ``symbolic-ref``, which every git has (``init --initial-branch`` came with 2.28).
    Files are added by name, for a user's own list of ignored files may hold ``*.yaml``.

    Raises
    ------
    ConfigError
        If git cannot make the repository, as on a full disk.
    """
    for arguments in (
        ("init", "--quiet"),
        ("symbolic-ref", "HEAD", "refs/heads/main"),
        ("add", "--force", "--", *files),
    ):
        if said := _refused(folder, *arguments):
            raise ConfigError(f"git cannot begin a repository here ({said}); nothing was made")
    said = _refused(folder, "commit", "--quiet", "--message", f"Begin {name}")
    if not said or (git(folder, "config", "user.name").stdout and git(folder, "config", "user.email").stdout):
        return said
    return (
        'git does not know who you are: git config --global user.name "A. Person"; git config --global '
        "user.email person@lab.org"
    )


def _refused(folder: Path, *arguments: str) -> str | None:
    """Return what git said where a command of it failed."""
    done = git(folder, *arguments)
    return f"git {arguments[0]}: {last_line(done)}" if done.returncode else None


# A project and the canal that runs.


def is_source(root: Path) -> bool:
    """Whether a folder is canal's own source, as the canal that runs has it: its pipeline depends on that."""
    own = root / "src" / "canal"
    if not own.is_dir() or (root / USED).exists():
        return False
    return own.resolve() == _PACKAGE or _code(own) == _code(_PACKAGE)


def _code(package: Path) -> dict[str, str]:
    """Return the digests of a package's modules, by path."""
    return {path.relative_to(package).as_posix(): file_digest(path) for path in package.rglob("*.py")}


def require_used(root: Path, renew: bool = True) -> None:
    """Raise unless a project's pipeline is that of the canal that runs.

    Where only digests of code differ, as after a change of a development version, ``canal.json`` is made anew
    if ``renew``.

    Raises
    ------
    ConfigError
        If the project was made for another version, or for a canal of before projects had ``canal.json``.
    """
    path = root / USED
    if is_source(root):
        return
    if not path.is_file():
        raise ConfigError(
            f"{root} has no {USED}: its pipeline is that of an older canal, or of another copy of canal's "
            f"source, and this is canal {__version__}. `canal upgrade` gives it this one's pipeline; what "
            "was learned is restored, never learned again"
        )
    try:
        used = read_json(path)
        before = used["canal"]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not as canal writes it: git checkout -- {USED}, or canal upgrade"
        ) from error
    if before != __version__:
        raise ConfigError(
            f"the project uses canal {str(before)[:40]} and this is canal {__version__}: `canal upgrade` "
            f"moves it here; or install the former, `pip install {DISTRIBUTION}=={str(before)[:40]}`"
        )
    if renew and used != (now := used_canal()):
        write_text(path, _as_text(now))
        tell(f"{USED}: the installed canal's code has changed; steps that use it run again, and restore")


def complete_project(root: Path) -> None:
    """Add what DVC asks for and an older project lacks: sections of params.yaml, a folder ``gate``."""
    layout = Layout(root)
    before = layout.params.read_text(encoding="utf-8")
    if (text := with_sections(before)) != before:
        added = [line for line in text.splitlines() if line and line not in before.splitlines()]
        save(layout.params, text, before)
        tell(f"added to {PARAMS}, for DVC to compare: {'; '.join(added)}; nothing else changes")
    layout.own_rules.mkdir(exist_ok=True)
