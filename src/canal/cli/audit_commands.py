"""audit, schema, export, import: what proves a version, and what carries it elsewhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from canal.cli.parsing import AsJson, KeyFile, Root, note, show_result, signer


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    app.command(epilog="Example: canal audit champion --json    canal audit 3 --reproduce")(audit)
    app.command(epilog="Example: canal schema record | jq .required")(schema)
    app.command("export", epilog="Example: canal export champion -o lung-atlas.zip")(export_version)
    app.command("import", epilog="Example: canal import lung-atlas.zip")(import_version)


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
            "--reproduce", help="Learn the version again in a scratch folder, and compare the bits."
        ),
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Add up each stage's sums again, where its cells are there.")
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
    """Recompute everything that was registered, and name what does not hold; exit code 1 if anything."""
    from canal.app.auditing import audit_project
    from canal.app.project import Project
    from canal.app.reproducing import reproduce_version
    from canal.report.registry_tables import audit_report, reproduction_report

    project = Project.open(root)
    if reproduce and version is None:
        raise typer.BadParameter("--reproduce needs the number or alias of one version")
    report = audit_project(project, None if everything else version, require_signed, recompute)
    document = report.to_json()
    if not as_json:
        show_result(audit_report(document), as_json=False)
    passed = not report.findings
    if reproduce and version is not None:
        reproduction = reproduce_version(project, version, note)
        passed = passed and reproduction.reproduced
        document["reproduction"] = reproduction.to_json()
        if not as_json:
            show_result(reproduction_report(document["reproduction"]), as_json=False)
    if as_json:
        show_result(document, as_json)
    if not passed:
        raise typer.Exit(1)


def schema(name: Annotated[Literal["key", "record"], typer.Argument(help="key or record.")]) -> None:
    """Print the JSON schema of key.json or record.json (draft 2020-12)."""
    from canal.registry.manifest.version_folder import schema as published

    show_result(published(name), as_json=True)


def export_version(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The ZIP file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write a version, with the proof of where it comes from, into one file for another team."""
    from canal.app.project import Project
    from canal.registry.transfer.exchange import export_parcel

    made = export_parcel(Project.open(root).store, version, output, overwrite)
    if as_json:
        show_result(made.to_json(), as_json)
        return
    note(f"wrote {made.path}: {made.files} files, {made.size / 1e6:.1f} MB, sha256 {made.sha256}")
    note("whoever imports it should get that sha256 from you by another way")


def import_version(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="What `canal export` wrote.")],
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Register a version that was learned elsewhere, after everything in the file is proven."""
    from canal.app.project import Project
    from canal.registry.transfer.exchange import import_parcel

    signed = signer(sign)
    imported = import_parcel(Project.open(root).store, file, signed)
    if as_json:
        show_result(imported.to_json(), as_json)
        return
    version = imported.version
    name = f"{version.model} {version.number} ({version.stage})"
    note(f"registered {name}" if imported.made else f"nothing to do: it is registered as {name}")
    for line in imported.notes:
        note(line)
