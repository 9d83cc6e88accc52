"""A bundle made by hand, and bundles that an enemy makes of it."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from canal.core.digests import file_digest
from canal.data.split import read_split
from canal.registry.ledger.ledger import Draft, Ledger
from canal.registry.transfer.bundle import About, Content, Manifest, parse_manifest, write_bundle
from tests.support.lineage import Spec, add_records, make_lineage, make_specs

MODEL = "canal-annotator"


def make_files(root: Path, specs: Mapping[str, Spec] | None = None) -> tuple[About, dict[str, Path | bytes]]:
    """Return what `canal export` puts into the bundle of a second stage, made by hand in ``root``."""
    folders = make_lineage(root, dict(specs or make_specs()))
    records = add_records(folders)
    keys = {stage: file_digest(folder / "key.json") for stage, folder in folders.items()}
    ledger = Ledger(root / "ledger.jsonl")
    for number, stage in enumerate(folders):
        model = "canal-backbone" if stage == "backbone" else MODEL
        draft = Draft("register", model, max(1, number), keys[stage], records[stage], "sync")
        ledger.append(ledger.next(draft))
    newest = list(folders)[-1]
    files: dict[str, Path | bytes] = {
        f"version/{path.relative_to(folders[newest]).as_posix()}": path
        for path in folders[newest].rglob("*")
        if path.is_file()
    }
    for stage in list(folders)[:-1]:
        for path in folders[stage].rglob("*"):
            name = path.relative_to(folders[stage]).as_posix()
            if path.is_file() and not name.startswith(("metrics/", "bank/", "probe/", "history")):
                files[f"ancestors/{keys[stage]}/{name}"] = path
    files["ledger.jsonl"] = ledger.path
    return About(MODEL, 2, keys[newest], records[newest]), files


def make_bundle(root: Path, specs: Mapping[str, Spec] | None = None) -> Path:
    """Write the bundle of a second stage and return its path."""
    about, files = make_files(root / "made", specs)
    write_bundle(root / "bundle.zip", about, files)
    return root / "bundle.zip"


Members = list[tuple[zipfile.ZipInfo, bytes]]


def remade(path: Path, target: Path, change: Callable[[Members], Members]) -> Path:
    """Write a bundle again with other members, as zipfile lets anybody do."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for info, content in change(members):
            archive.writestr(info, content, compress_type=info.compress_type)
    return target


def member(
    name: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644
) -> tuple[zipfile.ZipInfo, bytes]:
    """Return one member."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, mode << 16
    return info, content


def with_listing(members: Members, change: Callable[[dict[str, Content]], None]) -> Members:
    """Return members with another list of files in the manifest."""
    first, content = members[0]
    manifest = parse_manifest(content)
    files = dict(manifest.files)
    change(files)
    text = Manifest(manifest.model, manifest.version, manifest.key, manifest.record, files).text()
    return [member(first.filename, text.encode()), *members[1:]]


def named_cells(*splits: Path) -> set[str]:
    """Return what tells the cells of splits: ids without their source, and digests of their content."""
    tables = [read_split(path) for path in splits]
    ids = {name.partition(":")[2] for table in tables for name in table["cell_id"]}
    return ids | {digest for table in tables for digest in table["cell_digest"]}


def members_naming(bundle: Path, cells: set[str]) -> dict[str, set[str]]:
    """Return the members of a bundle that hold any of these texts, with those that they hold."""
    found = {}
    with zipfile.ZipFile(bundle) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if there := {cell for cell in cells if cell.encode() in content}:
                found[name] = there
    return found
