"""Hand a version to another laboratory as one file, and label with it there, with nothing taken on trust.

    python examples/hand_over.py candidate --project . --cells new.h5ad --elsewhere handed
    python examples/hand_over.py candidate --project . --cells new.h5ad --elsewhere handed --without-cells

In the project runs `canal export`. In the new folder --elsewhere the rest, as the other laboratory would do
it: the file's SHA-256 is compared with the one that came by another channel, `canal models show` proves all
that the file claims (every digest, the keys of all ancestors) and says what it is, `canal annotate` labels,
and `canal who` tells from the labelled file alone which version labelled it.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(*words: str | Path, cwd: Path) -> Any:
    """Run a command of canal in a folder and return its JSON document; its refusal ends the script."""
    print(f"{cwd}$ canal {' '.join(map(str, words))}")
    command = [sys.executable, "-m", "canal.cli", *map(str, words), "--json"]
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # canal has said why
    return json.loads(done.stdout)


def hand_over(version: str, project: Path, cells: Path, elsewhere: Path, without_cells: bool) -> None:
    """Export a version, verify it in an empty folder, and label cells with it there."""
    bundle = elsewhere / "handed-over.zip"
    options = ["--without-cells"] if without_cells else []
    made = run("export", version, "-o", bundle, *options, cwd=project)
    digest = made["sha256"]  # goes to the other laboratory by another channel than the file

    found = hashlib.sha256(bundle.read_bytes()).hexdigest()
    if found != digest:
        sys.exit(f"hand_over: {bundle.name} is not what was sent: expected {digest}, found {found}")
    about = run("models", "show", bundle, cwd=elsewhere)
    print(f"proven: {about['model']} {about['version']} ({about['stage']}), {about['genes']} genes, types:")
    for one in about["types"]:
        print(f"  {one['type']}, learned from {one['cells']:,} cells")

    shutil.copyfile(cells, elsewhere / "cells.h5ad")
    run("annotate", "cells.h5ad", "-o", "labelled.h5ad", "--model", bundle, cwd=elsewhere)
    said = run("who", "labelled.h5ad", cwd=elsewhere)
    if said["record"]["model"]["key"] != about["key"] or said["genuine"] is not True:
        sys.exit("hand_over: the record of labelled.h5ad does not name the version that was handed over")
    for cell_type, number in said["record"]["cell_types"].items():
        print(f"{number:>7,}  {cell_type}")
    print(f"labelled.h5ad was labelled by the version with key {about['key'][:12]}...")


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="number or alias of a version in the project")
    parser.add_argument("--project", type=Path, default=Path(), help="project folder")
    parser.add_argument("--cells", type=Path, required=True, help="h5ad file to label elsewhere")
    parser.add_argument("--elsewhere", type=Path, required=True, help="new folder, outside of any project")
    parser.add_argument(
        "--without-cells", action="store_true", help="hand over no stored cell and no cell id"
    )
    given = parser.parse_args()
    if given.elsewhere.exists() and any(given.elsewhere.iterdir()):
        sys.exit(f"hand_over: {given.elsewhere} is not empty: name a new folder")
    if not given.cells.is_file():
        sys.exit(f"hand_over: {given.cells}: no such file")
    given.elsewhere.mkdir(parents=True, exist_ok=True)
    hand_over(
        given.version,
        given.project.resolve(),
        given.cells.resolve(),
        given.elsewhere.resolve(),
        given.without_cells,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
