"""Commands about provenance: ledger, keys, audit, schema, and export and import of a version's bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from canal import app
from canal.cli.parsing import AsJson, KeyFile, Root, examples, note, open_project, show_result, signer
from canal.core.errors import SigningError
from canal.core.progress import count, size
from canal.report.registry_tables import audit_report, ledger_table, reproduction_report

if TYPE_CHECKING:
    from canal.app.project import Project


def add_to(to: typer.Typer) -> None:
    """Add this module's commands, and the groups `ledger` and `keys`, to the command line."""
    to.command(
        epilog=examples("canal audit champion --json", "canal audit --resume", "canal audit 3 --reproduce")
    )(audit)
    to.command(
        epilog=examples(
            "canal schema versions", "canal schema stage add", "canal schema record | jq .required"
        )
    )(schema)
    to.command("export", epilog=examples("canal export champion -o lung-atlas.zip"))(export_version)
    to.command("import", epilog=examples("canal import lung-atlas.zip"))(import_version)
    group = typer.Typer(invoke_without_command=True)
    group.callback(epilog=examples("canal ledger --json | jq '.[].why'", "canal ledger --verify"))(ledger)
    group.command(
        epilog=examples(
            'canal ledger anchor --by "A. Person"',
            "canal ledger anchor --sign ~/.config/canal/key.pem --json",
        )
    )(anchor)
    group.command(
        epilog=examples(
            "canal ledger merge origin/main --dry-run",
            'canal ledger merge --by "A. Person" --why "both labs promoted"',
        )
    )(merge)
    to.add_typer(group, name="ledger")
    keys = typer.Typer(no_args_is_help=True, help="Keys that sign the ledger, and whose they are.")
    keys.command(epilog=examples('canal keys new --name "A. Person" >> keyring.txt'))(new)
    keys.command(epilog=examples("canal keys show ~/.config/canal/key.pem"))(show)
    keys.command(epilog=examples('canal keys add keyring.txt "CI ed25519 BASE64" --roles register'))(add)
    to.add_typer(keys, name="keys")


def ledger(
    context: typer.Context,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check chain, rules, committed states and anchors only; exit code 1 unless all hold.",
        ),
    ] = False,
    catch_up: Annotated[
        bool, typer.Option("--catch-up", help="Fetch entries that only the tracking server has.")
    ] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show who registered, promoted or retired what, when and why."""
    if context.invoked_subcommand is not None:
        return

    project = open_project(root)
    if catch_up:
        note(f"fetched {app.auditing.fetch_entries(project)} entries from {project.store.shown}")
    if verify:
        _verify(project, as_json)
        return
    documents = app.auditing.entries(project)
    show_result(documents if as_json else ledger_table(documents), as_json)


def anchor(
    by: Annotated[
        str | None, typer.Option(help="Who anchors it; by default the key's name, or this user.")
    ] = None,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Name the ledger's last hash in a git tag, to be pushed where nobody can change it.

    Signed by git where user.signingKey is configured, or with --sign; audit compares the ledger with it.
    """
    key = None if sign is None else app.auditing.open_key(sign)
    made = app.auditing.anchor_ledger(open_project(root), by, key)
    if as_json:
        show_result(made.to_json(), as_json)
        return
    signed = made.to_json()["signed"]
    how = f"signed by {signed}" if signed else "not signed: it proves as much as the place where it is kept"
    note(f"{made.tag} names {made.entries} entries, the last with hash {made.document['hash']} ({how})")
    note(f"now push it to where it cannot be changed: git push origin {made.tag}")


def merge(
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[OTHER]",
            help="Branch, commit, or another clone's ledger.jsonl; by default what git merge left unsettled.",
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who merges; kept on record.")] = None,
    why: Annotated[str | None, typer.Option(help="The reason, kept on record.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would come of it.")] = False,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Join the ledger of a clone that also registered or promoted: its entries are appended here anew.

    Aliases stay where this folder has them: what is to serve instead, `canal promote` asks the policy about.
    """
    if (by is None) != (why is None):
        raise typer.BadParameter("a merge goes on record with both, --by and --why")
    decision = None
    if by is not None and why is not None:
        decision = app.promoting.Decision(by, why, signer(sign, by))
    found = app.promoting.merge_ledgers(open_project(root), other, decision, dry_run)
    if as_json:
        show_result({**found.to_json(), "dry_run": dry_run}, as_json)
        return
    if found.new:
        show_result(ledger_table([entry.document for entry in found.new]), as_json)
    would = "would be " if dry_run else ""
    said = {
        "merged": f"{len(found.new) - 1} entries of the other ledger {would}appended anew, and a merge entry",
        "continued": f"the other ledger holds this one: {would}taken as it is",
        "nothing": "this ledger holds the other one: nothing to append",
    }
    note(said[found.outcome])
    for alias, number in found.aliases.items():
        note(f"{alias} {would}moved to {number or 'nothing'} in the store, as the ledger says")
    for number in found.retired:
        note(f"version {number} {would}retired in the store, as the ledger says")
    if found.new and not dry_run:
        note("now commit it: git add ledger.jsonl, then git commit")


def _verify(project: "Project", as_json: bool) -> None:
    found, entries = app.auditing.verify_ledger(project), app.auditing.entries(project)
    head = entries[-1]["hash"] if entries else None
    if as_json:
        document = {
            "entries": len(entries),
            "hash": head,
            "passed": not found.findings,
            "findings": [one.to_json() for one in found.findings],
            "notes": [one.to_json() for one in found.notes],
            "counts": dict(found.counts),
        }
        show_result(document, as_json)
    else:
        for one in found.findings:
            note(f"does not hold: {one}")
        for one in found.notes:
            note(f"note: {one}")
        held = "does not hold" if found.findings else "holds"
        anchored = f", {found.counts['anchors']} anchors" if found.counts["anchors"] else ""
        note(f"the ledger {held}: {len(entries)} entries{anchored}, the last has hash {head or 'none'}")
    if found.findings:
        raise typer.Exit(1)


PrivateFile = Annotated[Path, typer.Argument(metavar="FILE", help="Private key made by canal keys new.")]


def new(
    name: Annotated[str, typer.Option("--name", help="Whose key it is; as --by will say it.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to make; by default ~/.config/canal/key.pem."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a private key, and print the line that a keyring needs."""
    path = output or app.auditing.default_key_file()
    public = app.auditing.new_key(path, name)
    if as_json:
        show_result({**public.to_json(), "file": str(path)}, as_json)
    else:
        show_line(public.line)
    note(f"wrote {path}, which only you can read; the line above is for the keyring (canal keys add)")


def show(file: PrivateFile, as_json: AsJson = False) -> None:
    """Print the public line of a private key."""
    key = app.auditing.open_key(file)
    if not key.name:
        raise SigningError(
            f"{file} does not say whose key it is: give it a first line `# canal signing key of A. Person`"
        )
    public = key.public
    if as_json:
        show_result(public.to_json(), as_json)
        return
    show_line(public.line)


def add(
    keyring: Annotated[Path, typer.Argument(metavar="KEYRING", help="Text file; made where there is none.")],
    line: Annotated[str, typer.Argument(metavar="LINE", help="Public line that canal keys show prints.")],
    roles: Annotated[
        str | None,
        typer.Option(
            metavar="ROLE,ROLE",
            help="May sign: register, promote, rollback, retire, erase, merge, rebuild, anchor; else all.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a public key to a keyring.

    It says whose signatures canal audit --require-signed accepts, and for what.
    """
    key = app.auditing.add_to_keyring(keyring, line, roles)
    if as_json:
        may = None if key.roles is None else sorted(key.roles)
        show_result({**key.to_json(), "keyring": str(keyring), "roles": may}, as_json)
    allowed = "everything" if key.roles is None else ", ".join(sorted(key.roles))
    note(f"{keyring} holds the key of {key.name}, fingerprint {key.fingerprint[:16]}..., for {allowed}")


def show_line(line: str) -> None:
    """Print a line to be copied: never wrapped or coloured."""
    typer.echo(line)


def audit(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="Number or alias; by default every version.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every version, the ledger and the project's files: the default.")
    ] = False,
    reproduce: Annotated[
        bool,
        typer.Option(
            "--reproduce", help="Train the version again in a scratch folder, and compare the bits."
        ),
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Recompute each stage's sums, where its cells are available.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Pass over versions whose files did not change since an audit found nothing in them.",
        ),
    ] = False,
    require_signed: Annotated[
        Path | None,
        typer.Option(
            metavar="KEYRING",
            help="Every ledger entry must be signed by a key of this file that may sign such entries.",
        ),
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Verify everything that was registered, and list findings.

    Exit code 1 if there are any.
    """
    project = open_project(root)
    if reproduce and version is None:
        raise typer.BadParameter("--reproduce needs the number or alias of one version")
    if resume and (recompute or version is not None):
        raise typer.BadParameter("--resume is an audit of every version: leave VERSION and --recompute out")
    depth: Literal["recomputed", "changed", "opened"]
    depth = "recomputed" if recompute else "changed" if resume else "opened"
    report = app.auditing.audit_project(project, None if everything else version, require_signed, depth)
    document = report.to_json()
    if not as_json:
        show_result(audit_report(document), as_json=False)
    passed = not report.findings
    if reproduce and version is not None:
        reproduction = app.auditing.reproduce_version(project, version, note)
        passed = passed and reproduction.reproduced
        document["reproduction"] = reproduction.to_json()
        if not as_json:
            show_result(reproduction_report(document["reproduction"]), as_json=False)
    if as_json:
        show_result(document, as_json)
    if not passed:
        raise typer.Exit(1)


def schema(
    name: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="A command with --json; or key or record, a version's files."),
    ],
) -> None:
    """Print the JSON schema of a command's --json output.

    Or of the files key.json and record.json of a version. Draft 2020-12.
    """
    command = " ".join(name)
    file = command in ("key", "record")
    show_result(app.versions.schema(command) if file else app.versions.output_schema(command), as_json=True)


def export_version(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The ZIP file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    without_cells: Annotated[
        bool,
        typer.Option(
            "--without-cells",
            help="Leave out stored cells and all cell ids: it labels, nothing can be learned.",
        ),
    ] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write a version with its provenance into one file.

    For another team, or for `canal models add`.
    """
    options = app.versions.ExportOptions(overwrite, without_cells, notice=note)
    made = app.versions.export_version(open_project(root), version, output, options)
    if as_json:
        show_result(made.to_json(), as_json)
        return
    note(f"wrote {made.path}: {count(made.files, 'file')}, {size(made.size)}, sha256 {made.sha256}")
    bank, probe, named = (made.holds[name] for name in ("bank", "probe", "named"))
    if bank or probe or named:
        note(
            f"it holds the expression of {bank:,} cells of the example bank and {probe:,} validation "
            f"cells, and the ids of {named:,} cells; --without-cells leaves them out"
        )
    else:
        note("it holds no cell and no cell id; sums by cell type are in it (canal's docs/privacy.md)")
    note("send that sha256 to whoever imports the file, by another channel than the file")


def import_version(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="A file that `canal export` wrote.")],
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Register a version that was learned elsewhere.

    Everything in the file is verified first.
    """
    signed = signer(sign)
    imported = app.versions.import_bundle(open_project(root).store, file, signed)
    if as_json:
        show_result(imported.to_json(), as_json)
        return
    version = imported.version
    name = f"{version.model} {version.number} ({version.stage})"
    note(f"registered {name}" if imported.made else f"nothing to do: already registered as {name}")
    for line in imported.notes:
        note(line)
