"""Who may do what on the board: hosts, sessions, the login, forms, and the headers of every answer.

A browser sends what any page tells it to. So a change needs a form with a secret that other pages cannot
read, from this very address, and a login; and no answer may be framed, sniffed or run anything but its own.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from canal.app.connections import read_token
from canal.core.errors import CanalError
from canal.registry.ledger.ledger import plain_name

COOKIE = "canal_board"
CSRF_FIELD, CSRF_HEADER = "csrf", "x-csrf"

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # none at all would hide from the board where a form comes from
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_LOGGED_IN_S = 8 * 3600
_TRIES, _WITHIN_S = 8, 60.0
_MOST_SESSIONS = 200
_MOST_FIELDS = 200
_ID_DIGITS = 64


class RefusedError(CanalError):
    """A request that is not done; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Visitor:
    """Who asks: the id of the browser's cookie, the secret of its forms, and the person who logged in."""

    id: str
    csrf: str
    name: str = ""
    is_new: bool = False

    @property
    def may_decide(self) -> bool:
        """Whether a person has logged in."""
        return bool(self.name)


@dataclass
class Access:
    """Sessions and the login of a board; nothing of it outlives the process.

    Attributes
    ----------
    token_file : Path or None
        The file with the token that a login needs; None: nobody can log in, and the board is for reading.
    """

    token_file: Path | None = None
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _people: dict[str, tuple[str, float]] = field(default_factory=dict)
    _failures: deque[float] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def visitor(self, request: Request) -> Visitor:
        """Return who sends a request; one without a cookie of ours gets a new id."""
        given = request.cookies.get(COOKIE, "")
        if len(given) != _ID_DIGITS or not given.isalnum():
            return self._visitor(secrets.token_hex(_ID_DIGITS // 2), is_new=True)
        return self._visitor(given)

    def _visitor(self, id_: str, is_new: bool = False) -> Visitor:
        name, until = self._people.get(id_, ("", 0.0))
        name = name if time.monotonic() < until else ""
        csrf = hmac.new(self._secret, id_.encode(), sha256).hexdigest()
        return Visitor(id_, csrf, name, is_new)

    def log_in(self, token: str, name: str) -> Visitor:
        """Return the visitor of a new session, under a new id, so that nobody can have planted it.

        Raises
        ------
        RefusedError
            If there is no login, the token is another one, or there were too many tries.
        RegistryError
            If the name cannot be kept on record.
        """
        if self.token_file is None:
            raise RefusedError(403, "this board is for reading: it was started without --token-file")
        with self._lock:
            self._check_token(self.token_file, token)
            name, now = plain_name(name, "your name"), time.monotonic()
            for id_ in [one for one, (_, until) in self._people.items() if now > until]:
                del self._people[id_]
            if len(self._people) >= _MOST_SESSIONS:
                self._people.pop(next(iter(self._people)))
            id_ = secrets.token_hex(_ID_DIGITS // 2)
            self._people[id_] = name, now + _LOGGED_IN_S
        return self._visitor(id_, is_new=True)

    def _check_token(self, path: Path, token: str) -> None:
        """Raise unless it is the token, which is read anew each time: one that was changed holds at once."""
        now = time.monotonic()
        while self._failures and now - self._failures[0] > _WITHIN_S:
            self._failures.popleft()
        if len(self._failures) >= _TRIES:
            raise RefusedError(429, f"too many wrong tokens: try again in {_WITHIN_S:.0f} seconds")
        if not hmac.compare_digest(token.encode(), read_token(path).encode()):
            self._failures.append(now)
            raise RefusedError(403, "this is not the token of the file that the board was started with")

    def log_out(self, visitor: Visitor) -> None:
        """End a session."""
        with self._lock:
            self._people.pop(visitor.id, None)

    def require_csrf(self, visitor: Visitor, given: str) -> None:
        """Raise unless a form carries the secret of the visitor's own pages."""
        if visitor.is_new or not hmac.compare_digest(given.encode(), visitor.csrf.encode()):
            raise RefusedError(
                403, "this form is out of date, or not from the board: open the page again, and send it there"
            )


def with_cookie(response: Response, visitor: Visitor) -> Response:
    """Return an answer that also gives a new visitor the cookie of its id."""
    if visitor.is_new:
        cookie = f"{COOKIE}={visitor.id}; Path=/; HttpOnly; SameSite=Strict"
        response.headers.append("set-cookie", cookie)
    return response


class Form(Mapping[str, str]):
    """The fields of a form; a field that is missing is empty. ``all`` gives each value of one."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def __getitem__(self, name: str) -> str:
        return next((value for key, value in self._pairs if key == name), "")

    def __iter__(self) -> Any:
        return iter(dict(self._pairs))

    def __len__(self) -> int:
        return len(dict(self._pairs))

    def all(self, name: str) -> list[str]:
        """Return every value of a field that is not empty."""
        return [value for key, value in self._pairs if key == name and value]


async def read_form(request: Request, most_bytes: int = 1 << 20) -> Form:
    """Return the fields of a form's body.

    Raises
    ------
    RefusedError
        If it is no form of the kind that the board's pages send, or too large.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != (
        "application/x-www-form-urlencoded"
    ):
        raise RefusedError(
            415, "expected the fields of a form of the board (application/x-www-form-urlencoded)"
        )
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > most_bytes:
                raise RefusedError(413, f"a form may have {most_bytes >> 10} kB: send less at a time")
    except ClientDisconnect as error:
        raise RefusedError(400, "the form was cut off") from error
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise RefusedError(400, "the form cannot be read: open the page again, and send it there") from error
    return Form(pairs)


@dataclass(frozen=True)
class Guard:
    """An ASGI application behind checks of host and origin, that sets the headers of every answer.

    Attributes
    ----------
    app : callable
        An ASGI application.
    hosts : frozenset of str
        What the header Host may be. Another name means that somebody's domain points to this machine, whose
        pages would then count as the board's own (DNS rebinding).
    """

    app: Any
    hosts: frozenset[str]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                more = [
                    (name.encode(), value.encode())
                    for name, value in _HEADERS.items()
                    if name.encode() not in there
                ]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        if (why := self._refusal(scope)) is not None:
            await send_guarded(
                {
                    "type": "http.response.start",
                    "status": 403,
                    "headers": [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")],
                }
            )
            await send_guarded({"type": "http.response.body", "body": f"{why}\n".encode()})
            return
        await self.app(scope, receive, send_guarded)

    def _refusal(self, scope: Any) -> str | None:
        """Return why a request is refused by its headers, or None."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if host.lower() not in self.hosts:
            return "the board answers at 127.0.0.1 and localhost alone: open the address that it printed"
        site = headers.get(b"sec-fetch-site", "")
        navigates = headers.get(b"sec-fetch-dest", "document") == "document"
        if scope["method"] in ("GET", "HEAD"):
            # Another site may link to a page, but not have it fetched behind its reader's back.
            return "fetched by another site" if site == "cross-site" and not navigates else None
        origin = headers.get(b"origin")
        if site not in ("", "same-origin", "none") or (
            origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        ):
            return "sent by a page of another address: open the board, and send it there"
        return None


def person_of(visitor: Visitor) -> str:
    """Return the name of the person who has logged in.

    Raises
    ------
    RefusedError
        If nobody has.
    """
    if not visitor.may_decide:
        raise RefusedError(403, "log in first: a change names the person who makes it")
    return visitor.name
