"""Options that several commands share, and functions that print results and notes."""

import inspect
import json
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape, render

from canal import app
from canal.core.errors import tell
from canal.report.listing import show

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from canal.app.project import Project, Sign

_WORDS = re.compile(r"""-[a-zA-Z-]+\s(?![-|>])(?:"[^"]*"|'[^']*'|\S+)|"[^"]*"|'[^']*'|\S+""")
"""A word of an example; an option with its value is one."""
_WIDEST = 74
"""Characters of an example's line: with its indentation and rich's margins they are 80."""


def examples(*commands: str) -> str:
    """Return the epilog of a command: examples of it, each on lines of its own that fit in 80 columns.

    A longer one goes on behind a backslash, as a shell reads it, and no option is parted from its value.
    """
    lines = ["Examples:"]
    for command in commands:
        line, indent = "", "  "
        for word in _WORDS.findall(command):
            if line and len(line) + len(word) + 3 > _WIDEST:
                lines.append(f"{indent}{line} \\")
                line, indent = word, "      "
            else:
                line = f"{line} {word}".strip()
        lines.append(indent + line)
    # Markup at both ends keeps rich from stripping the indentation.
    return "\n".join([lines[0], *(f"[cyan]{escape(line)}[/cyan]" for line in lines[1:])])


def flowing(commands: typer.Typer) -> None:
    """Let the help of all commands flow: lines of a docstring end elsewhere than those of a terminal."""
    for one in commands.registered_commands:
        if one.callback is not None:
            one.help = _paragraphs(one.callback)
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            flowing(group.typer_instance)
    about = commands.registered_callback
    if about is not None and about.callback is not None and not isinstance(about.help, str):
        about.help = _paragraphs(about.callback)


def _paragraphs(command: "Callable[..., Any]") -> str:
    """Return a docstring, each of its paragraphs on one line."""
    return "\n\n".join(" ".join(one.split()) for one in (inspect.getdoc(command) or "").split("\n\n"))


def shown_examples(epilog: str) -> list[str]:
    """Return the commands of `examples`, each on one line."""
    return [line.strip() for line in re.sub(r" \\\n +", " ", render(epilog).plain).splitlines()[1:]]


def _project_folder(context: typer.Context, root: Path | None) -> Path | None:
    """Return the folder of ``--root``; without it that of the project around the working directory.

    None where the working directory is the project's folder, or there is no project around it.
    """
    here = Path.cwd()
    if root is not None or app.project.is_project(here):
        return root
    found = app.project.project_above(here)
    if found is not None and not context.resilient_parsing:
        note(f"project: {found}")
    return found


Root = Annotated[
    Path | None,
    typer.Option(
        "--root", callback=_project_folder, help="Project folder; by default this one, or the next above it."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Commit = Annotated[bool, typer.Option("--commit", help="Commit params.yaml to git.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what it would do, and write, fetch and learn nothing.")
]
By = Annotated[str, typer.Option("--by", help="Who decides: a person's name, kept on record.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--sign",
        metavar="FILE",
        envvar="CANAL_SIGN",
        help="Sign what goes into the ledger with this key (canal keys new).",
    ),
]
Why = Annotated[str, typer.Option("--why", help="The reason, kept on record.")]

# How to read a labelled file: `init`, `stage add`, `stage map` and `validate`.
FileValues = Annotated[
    Literal["counts", "log1p_10k", "log2p_10k"] | None,
    typer.Option("--values", help="The units of the file's values."),
]
Label = Annotated[str | None, typer.Option(help="obs column with cell types; by default cell_type.")]
LabelMap = Annotated[
    Path | None,
    typer.Option("--map", help="Sheet of canal stage map; or CSV: label, cell type (empty: drop it)."),
]
Drop = Annotated[
    list[str] | None,
    typer.Option("--drop", metavar="LABEL", help="A label whose cells are left out; may be given often."),
]
Duplicates = Annotated[
    Literal["sum"] | None,
    typer.Option("--duplicates", help="Add up genes of one symbol (counts); by default they are refused."),
]
Layer = Annotated[str | None, typer.Option(help="X, raw or a layer's name; by default X.")]
Batch = Annotated[str | None, typer.Option(help="obs column with batches.")]
GeneColumn = Annotated[str | None, typer.Option(help="var column with gene symbols.")]
MinGenes = Annotated[int | None, typer.Option(min=0, help="Expressed genes a cell must have.")]
Parent = Annotated[str | None, typer.Option(help="Stage to learn on; by default the last.")]
Everything = Annotated[bool, typer.Option("--all", help="List the rules that hold, too.")]


def declared_source(file: Path, options: dict[str, Any], root: Path | None) -> dict[str, Any]:
    """Return the params.yaml entry that the options above declare; tell of labels whose blanks go."""
    declared = {name: value for name, value in options.items() if name not in ("label_map", "drop")}
    source, blank = app.declaring.declare_labelled(
        file, declared, options["label_map"], root, options["drop"] or ()
    )
    if blank:
        examples = ", ".join(map(repr, blank[:5]))
        note(f"{len(blank)} labels begin or end with blanks ({examples}): label_map removes the blanks")
    note(f"the gate judges {file}")
    return source


def show_result(what: "RenderableType | Any", as_json: bool) -> None:
    """Print a table, or a document as JSON."""
    if as_json:
        plain = not (sys.stdout.encoding or "").lower().startswith("utf")
        sys.stdout.write(json.dumps(what, indent=1, sort_keys=True, ensure_ascii=plain, default=str) + "\n")
        return
    show(what)


def note(line: str) -> None:
    """Print a message that is not the result, to the error stream."""
    tell(line)


def complete_model(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the versions and models on the shelf that ``--model`` may name, for completion in a shell."""
    return _beginning(incomplete, lambda: app.models.model_names(ctx.params.get("root")))


MODEL = (
    "A version of the project (by default the champion), FILE.zip of canal export, or a name of canal models."
)
Model = Annotated[str | None, typer.Option(help=MODEL, autocompletion=complete_model)]


def complete_shelved(incomplete: str) -> list[tuple[str, str]]:
    """Return the models on the shelf, for completion in a shell."""
    return _beginning(incomplete, lambda: [(name, "on the shelf") for name in app.shelf.shelf_names()])


def _beginning(incomplete: str, names: "Callable[[], list[tuple[str, str]]]") -> list[tuple[str, str]]:
    with suppress(Exception):  # nobody who types wants to read of a damaged registry
        return [(name, about) for name, about in names() if name.startswith(incomplete)]
    return []


def open_project(root: Path | None) -> "Project":
    """Return the project in ``root``; by default the one in the working directory."""
    return app.project.Project.open(root)


def signer(key: Path | None, by: str | None = None) -> "Sign | None":
    """Return a function that signs the entries of ``by`` (None: those of sync); None without a key."""
    if key is None:
        return None

    return app.auditing.open_key(key).signer(by)
