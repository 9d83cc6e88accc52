"""Fetching one file over http(s): resumes where it was cut off, and keeps only the declared bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from canal.core.digests import file_digest
from canal.core.errors import SourceError
from canal.core.messages import shown_address, without_secrets

if TYPE_CHECKING:
    import requests

ATTEMPTS = 5
_TIMEOUT = (10, 60)
_BLOCK = 1 << 18
"""Bytes written at a time: at most so many are lost when a transfer is cut."""
_REPORT = 64 << 20
_WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}
_RANGE_NOT_SATISFIABLE = 416


class _InterruptedError(Exception):
    """The transfer stopped for a reason that may pass."""


def download(
    url: str,
    sha256: str,
    part: Path,
    progress: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch ``url`` into ``part``, going on from the bytes that are there already.

    Tries `ATTEMPTS` times, waiting 1, 2, 4, ... seconds between.

    Raises
    ------
    SourceError
        If the server refuses, cannot be reached (what came is kept for the next run), or sends other bytes
        than declared (they are deleted).
    """
    import requests

    problem = ""
    with requests.Session() as session:
        for attempt in range(ATTEMPTS):
            if attempt:
                progress(f"{shown_address(url)}: {problem}; trying again")
                wait(2.0 ** (attempt - 1))
            try:
                _transfer(session, url, part, progress)
                _verify(url, sha256, part)
                return
            except (_InterruptedError, requests.RequestException) as error:
                problem = _cause(error, url)
    kept = part.stat().st_size if part.is_file() else 0
    raise SourceError(
        f"{shown_address(url)}: {ATTEMPTS} attempts failed, the last with: {problem}. Is the network there? "
        f"{kept} bytes are kept; the next run goes on from them"
    )


def _transfer(session: requests.Session, url: str, part: Path, progress: Callable[[str], None]) -> None:
    """Append to ``part`` what it lacks; start over where the server cannot resume."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if have and response.status_code == _RANGE_NOT_SATISFIABLE:
            return  # nothing is missing; the checksum decides
        _check_status(url, response)
        resumes = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        received = have if resumes else 0
        reported = received
        with part.open("ab" if resumes else "wb") as stream:
            for block in response.iter_content(_BLOCK):
                stream.write(block)
                received += len(block)
                if received - reported >= _REPORT:
                    progress(f"{shown_address(url)}: {received / 1e6:.0f} MB")
                    reported = received


def _check_status(url: str, response: requests.Response) -> None:
    status = f"the server answered {response.status_code} {response.reason}"
    if response.status_code in _WORTH_RETRYING:
        raise _InterruptedError(status)
    if response.status_code not in (200, 206):
        raise SourceError(f"{shown_address(url)}: {status}; check the address")


def _verify(url: str, sha256: str, part: Path) -> None:
    found = file_digest(part)
    if found != sha256:
        size = part.stat().st_size
        part.unlink()
        raise SourceError(
            f"{shown_address(url)}: expected sha256 {sha256}, found {found} ({size} bytes, deleted); "
            "the file has changed or the declared sum is wrong"
        )


def _cause(error: Exception, url: str) -> str:
    """Return one line that says what went wrong, without what is secret in the address."""
    return without_secrets(" ".join(str(error).split()), url)[:200] or type(error).__name__
