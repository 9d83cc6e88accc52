"""key.json: what a stage's model is, by digest, without times, paths or ids; keys chain to the backbone.

Same inputs, parameters and code on the same machine give the same key (design: "A model version").
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from canal.core.digests import file_digest, tree_digests
from canal.core.errors import RegistryError
from canal.core.files import read_json, write_json

FORMATS = (1, 2)
"""Of keys that are read: 1 of versions without sums, 2 of those with sums."""

KEY_FILE = "key.json"

Key = dict[str, Any]


def write_key(folder: Path, facts: Mapping[str, Any], parent: str | None) -> Key:
    """Write ``folder/key.json`` over all other files in ``folder`` and return it.

    Parameters
    ----------
    folder : Path
        A finished ``models/<stage>``.
    facts : Mapping
        Stage, branch, data, split, panel and verdict digests, request, params, code, lock and seed.
    parent : str or None
        Digest of the parent's key.json; None for the backbone, where the chain ends.
    """
    files = {path: digest for path, digest in tree_digests(folder).items() if path != KEY_FILE}
    key = {"format": 2 if "sums" in facts else 1, **facts, "files": files, "parent": parent}
    if parent is not None:
        key["teacher"] = files.get("teacher/weights.safetensors")
    write_json(folder / KEY_FILE, key)
    return key


def read_key(folder: Path) -> Key:
    """Return the key of a model folder.

    Raises
    ------
    RegistryError
        If there is none, it is no JSON, or it is of a format this canal does not know.
    """
    path = folder / KEY_FILE
    if not path.is_file():
        raise RegistryError(f"{path} not found: the folder holds no finished model; run the pipeline again")
    try:
        key = read_json(path)
    except ValueError as error:
        raise RegistryError(f"{path} is no JSON ({error}): restore it from DVC or the registry") from error
    if not isinstance(key, dict) or key.get("format") not in FORMATS:
        listed = " and ".join(map(str, FORMATS))
        found = key.get("format") if isinstance(key, dict) else type(key).__name__
        raise RegistryError(f"{path}: this canal reads key formats {listed}, found {found!r}")
    return key


def key_digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's key.json: the name under which a model is known everywhere."""
    read_key(folder)
    return file_digest(folder / KEY_FILE)


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Compare files with their recorded digests.

    Raises
    ------
    RegistryError
        Naming every file that is missing or holds other bytes.
    """
    wrong = [_complaint(folder / path, digest) for path, digest in sorted(digests.items())]
    found = [line for line in wrong if line]
    if found:
        raise RegistryError(
            f"{folder} does not hold what its manifest says ({len(found)} of {len(digests)} files):\n  "
            + "\n  ".join(found)
        )


def _complaint(path: Path, digest: str) -> str:
    if not path.is_file():
        return f"{path.name}: missing ({path})"
    found = file_digest(path)
    return "" if found == digest else f"{path}: sha256 {found[:12]}... instead of {digest[:12]}..."
