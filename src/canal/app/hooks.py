"""Hooks of params.yaml: commands and addresses that are told of promotions and other decisions.

They run once the change is complete and its locks are free, one after the other, each with a time limit and a
few attempts. None can undo the change or fail the command: what went wrong is told, and each attempt is a
line of ``hooks.jsonl``.
"""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import requests

from canal.app.project import Project
from canal.config.decisions import Action, Hook
from canal.core.digests import canonical_json
from canal.core.errors import RegistryError, tell
from canal.core.files import append_line
from canal.registry.ledger.ledger import Entry

FORMAT = 1
_LONGEST = 200

Document = dict[str, Any]


class _FailedError(Exception):
    """An attempt that failed; ``final`` where another one would fail the same way."""

    def __init__(self, what: str, final: bool = False) -> None:
        super().__init__(what)
        self.final = final


@dataclass(frozen=True)
class Event:
    """A decision that is complete.

    Attributes
    ----------
    action : str
    by, why : str
        The person and the reason.
    stage : str
        The stage of the version.
    entries : sequence of Entry
        The ledger's entries of the decision, the last about the version.
    facts : Mapping
        What else there is to say, under the name of the action.
    """

    action: Action
    by: str
    why: str
    stage: str
    entries: Sequence[Entry]
    facts: Mapping[str, Any] | None = None

    def to_json(self) -> Document:
        """Return the document that hooks are handed, of format 1."""
        last = self.entries[-1] if self.entries else None
        moved = {alias: number for entry in self.entries for alias, number in entry.aliases.items()}
        mine = [alias for alias, number in moved.items() if last is not None and number == last.version]
        return {
            "format": FORMAT,
            "action": self.action,
            "model": None if last is None else last.model,
            "version": None if last is None else last.version,
            "stage": self.stage,
            "alias": mine[0] if mine else None,
            "aliases": moved,
            "by": self.by,
            "why": self.why,
            "entries": [entry.document for entry in self.entries],
            **({} if self.facts is None else {self.action: dict(self.facts)}),
        }


def announce(project: Project, event: Event) -> None:
    """Tell every hook of params.yaml that asks for the event's action; nothing is raised but Ctrl-C."""
    document = event.to_json()
    for hook in project.config.hooks:
        if event.action in hook.on:
            _run(project, hook, document)


def _run(project: Project, hook: Hook, document: Document) -> None:
    """Try a hook until an attempt succeeds or there is none left; every attempt is logged."""
    content = json.dumps(document, sort_keys=True).encode()
    why, begun = "", 0.0
    for attempt in range(1, hook.attempts + 1):
        begun, outcome, final = time.monotonic(), "done", True
        try:
            why = _command(project, hook, content) if hook.command is not None else _post(hook, content)
        except _FailedError as error:
            why, outcome, final = str(error), "failed", error.final
        except KeyboardInterrupt:
            _log(project, hook, document, (attempt, "interrupted", "", time.monotonic() - begun))
            raise
        _log(project, hook, document, (attempt, outcome, why, time.monotonic() - begun))
        if outcome == "done":
            tell(f"hook {hook.shown}: told of the {_NOUNS[document['action']]}")
            return
        if final:
            break
        if attempt < hook.attempts:
            time.sleep(hook.pause_s * 2 ** (attempt - 1))
    tell(
        f"hook {hook.shown}: not told of the {_NOUNS[document['action']]}, which is complete and stays: "
        f"{why} (attempt {attempt} of {hook.attempts}; hooks.jsonl has each)"
    )


_NOUNS = {"promote": "promotion", "rollback": "rollback", "retire": "retirement", "unlearn": "unlearning"}


def _command(project: Project, hook: Hook, content: bytes) -> str:
    """Run a command with the document as its input, in the project's folder and a group of its own.

    A file takes the place of a pipe, so that a grandchild that keeps it open holds nobody up. What the
    command says is not shown: it may hold what no log is to have.
    """
    with tempfile.TemporaryFile() as given:
        given.write(content)
        given.seek(0)
        try:
            process = subprocess.Popen(
                list(hook.command or ()), cwd=project.layout.root, stdin=given,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise _FailedError(f"it cannot be started: {error}", final=True) from None
        try:
            code = process.wait(hook.timeout_s)
        except subprocess.TimeoutExpired:
            raise _FailedError(f"it did not end within {hook.timeout_s:g} s, and was ended") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code:
            raise _FailedError(f"exit code {code}")
        return "exit code 0"


def _post(hook: Hook, content: bytes) -> str:
    """POST the document as JSON, in a thread: a server that sends byte by byte is given up, too."""
    url = hook.url or _variable(hook.url_from)
    if not url.startswith(("http://", "https://")):
        raise _FailedError(f"the variable {hook.url_from} holds no http(s) address", final=True)
    token = None if hook.token_from is None else _variable(hook.token_from)
    found: list[requests.Response | Exception] = []
    thread = threading.Thread(target=_send, args=(url, token, content, hook.timeout_s, found), daemon=True)
    thread.start()
    thread.join(hook.timeout_s)
    if not found:
        raise _FailedError(f"no answer within {hook.timeout_s:g} s")
    answer = found[0]
    if isinstance(answer, Exception):  # its text may repeat the address
        raise _FailedError(f"no connection, or none that holds ({type(answer).__name__})")
    if not 200 <= answer.status_code < 300:
        raise _FailedError(f"HTTP {answer.status_code}")
    return f"HTTP {answer.status_code}"


def _send(
    url: str, token: str | None, content: bytes, timeout: float, found: list[requests.Response | Exception]
) -> None:
    """Send one request; redirects are not followed, for the token is meant for this address alone."""
    headers = {"Content-Type": "application/json"}
    try:
        with requests.post(
            url, data=content, headers=headers, auth=_bearer(token), timeout=timeout, allow_redirects=False,
            stream=True,
        ) as answer:  # fmt: skip
            found.append(answer)
    except (requests.RequestException, OSError, ValueError) as error:
        found.append(error)


def _bearer(token: str | None) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Return what puts a token on a request; without one nothing, not even a password of ~/.netrc."""

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize


def _variable(name: str | None) -> str:
    value = os.environ.get(name or "", "").strip()
    if not value:
        raise _FailedError(f"the environment has no variable {name}", final=True)
    return value


def _log(project: Project, hook: Hook, document: Document, result: tuple[int, str, str, float]) -> None:
    """Append a line about an attempt to hooks.jsonl; a log that cannot be written is told."""
    attempt, outcome, detail, seconds = result
    entries = document["entries"]
    line = {
        "format": FORMAT,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "action": document["action"],
        "version": document["version"],
        "entry": entries[-1]["seq"] if entries else None,
        "hook": hook.shown,
        "attempt": attempt,
        "outcome": outcome,
        "detail": detail[:_LONGEST],
        "seconds": round(seconds, 3),
    }
    try:
        with project.store.lock("hooks"):
            append_line(project.layout.hooks, canonical_json(line))
    except (OSError, RegistryError) as error:
        tell(f"hook {hook.shown}: {project.layout.hooks.name} could not be written: {error}")
