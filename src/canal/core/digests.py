"""SHA-256 digests of files, folders and JSON documents."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BLOCK = 1 << 18
"""Bytes read at a time, few enough for the processor's cache."""


def file_digest(path: Path, given_up: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits, read in blocks of 256 KiB.

    Reading stops once ``given_up`` returns True; the digest is then incomplete and must not be used.
    """
    digest, block = hashlib.sha256(), bytearray(_BLOCK)
    view = memoryview(block)
    with path.open("rb", buffering=0) as stream:
        while (size := stream.readinto(block)) and not given_up():
            digest.update(view[:size])
    return digest.hexdigest()


def canonical_json(document: Any) -> str:
    """Return ``document`` as JSON with sorted keys and no spaces: equal documents, equal text."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def json_digest(document: Any) -> str:
    """Return the SHA-256 of a document's canonical JSON."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()


def tree_digests(folder: Path, given_up: Callable[[], bool] = lambda: False) -> dict[str, str]:
    """Return ``{relative path: SHA-256}`` of every file below ``folder``, by path; see `file_digest`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path, given_up) for path in files}
