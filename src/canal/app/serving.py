"""A version over HTTP: MLflow's scoring server behind limits that its own command does not set.

What a body must be is said before MLflow reads it; clients that are slow or silent are hung up on; a worker
that dies is started anew by uvicorn's supervisor; memory that a large body took is given back.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import hmac
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from canal.app.annotating import serving_version
from canal.app.auditing import audit_project
from canal.app.project import Project
from canal.core.errors import ConfigError, RegistryError, tell

_SETTINGS = "CANAL_SERVING"
"""Environment variable by which workers are told what to serve."""

_HERE = ("127.0.0.1", "localhost", "::1")
_LARGE = 4 << 20
"""Bytes of a body after which freed memory is handed back to the system."""

_SHORTEST_TOKEN = 16
_FORM = '{"dataframe_split": {"columns": [genes], "data": [[values of a cell]]}}'

Answer = tuple[int, str]
"""An HTTP status and what it is answered with."""


@dataclass(frozen=True)
class Serving:
    """How a version is served.

    Attributes
    ----------
    host, port : str and int
        Where it listens.
    workers : int
        Processes, each with a model of its own.
    timeout : int
        Seconds that an answer may take; then it is given up, with 504.
    patience : int
        Seconds in which a request must have come whole, counted from the connection or the last answer.
    max_mb : int
        Megabytes of a request's body.
    token_file : Path or None
        A file with a token that every request for labels must bear; None: anybody who reaches it may ask.
    """

    host: str = "127.0.0.1"
    port: int = 5001
    workers: int = 1
    timeout: int = 60
    patience: int = 60
    max_mb: int = 64
    token_file: Path | None = None


def serve(project: Project, wanted: str | None, how: Serving) -> None:
    """Serve a version (default: the champion, else the newest) until the process is told to end.

    Raises
    ------
    ConfigError
        If the file of the token holds none.
    RegistryError
        If there is no such version, an audit of it finds anything, or the address is taken.
    """
    from uvicorn import Config
    from uvicorn.supervisors import Multiprocess

    if how.token_file is not None:
        _token(how.token_file)
    version = serving_version(project, wanted)
    _require_proof(project, version.number)
    folder = project.store.artifacts(version)
    told = {"folder": str(folder), "max_bytes": how.max_mb << 20, "patience": how.patience}
    told |= {"token_file": str(how.token_file.resolve())} if how.token_file else {}
    os.environ |= {_SETTINGS: json.dumps(told), "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": str(how.timeout)}
    if how.host not in _HERE and how.token_file is None:
        tell(f"{how.host}: anybody who reaches port {how.port} may ask; --token-file asks for a token")
    config = Config(
        "canal.app.serving:application",
        factory=True,
        host=how.host,
        port=how.port,
        workers=how.workers,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        timeout_worker_healthcheck=how.timeout,
    )
    try:
        socket = config.bind_socket()
    except SystemExit as error:  # uvicorn has told why
        raise RegistryError(f"cannot listen at {how.host}:{how.port}: choose another --port") from error
    tell(f"version {version.number} ({version.stage}) answers at http://{how.host}:{how.port}/invocations")
    Multiprocess(config, sockets=[socket]).run()


def _require_proof(project: Project, number: int) -> None:
    """Raise where an audit of the version finds anything: what cannot be proven must not serve."""
    report = audit_project(project, str(number))
    if report.findings:
        first = report.findings[0]
        raise RegistryError(
            f"version {number} is not served: an audit has {len(report.findings)} finding(s), such as "
            f"{first.to_json()}; `canal audit {number}` lists them"
        )


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token in {path}: {error}") from error
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{path} must hold one token of at least {_SHORTEST_TOKEN} letters and digits, such as "
            "`openssl rand -hex 32` prints"
        )
    return token


# In a worker ---------------------------------------------------------------------------------------------


def application() -> Checked:
    """Return the application of a worker, which uvicorn calls for; the model is loaded here."""
    import mlflow
    from mlflow.pyfunc import scoring_server

    told = _told()
    token = _token(Path(told["token_file"])) if "token_file" in told else ""
    return Checked(scoring_server.init(mlflow.pyfunc.load_model(told["folder"])), told["max_bytes"], token)


@cache
def _told() -> dict[str, Any]:
    """Return what this worker was told when it was started."""
    told: dict[str, Any] = json.loads(os.environ[_SETTINGS])
    return told


class PatientProtocol(H11Protocol):
    """HTTP of one connection; it is closed where a request has not come whole after some seconds.

    uvicorn itself waits for ever for the first line, and for a body that comes a byte a minute.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._waiting: asyncio.TimerHandle | None = None
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what has come, and wait for the rest of a request that is not whole."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        from h11 import IDLE, SEND_BODY

        if self.conn.their_state not in (IDLE, SEND_BODY):
            self._stop()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(_told()["patience"], self.transport.close)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


@dataclass(frozen=True)
class Checked:
    """MLflow's application, asked only for bodies that it can read.

    Attributes
    ----------
    app : callable
        An ASGI application.
    max_bytes : int
        What a body may have.
    token : str
        What requests for labels must bear; nothing where it is empty.
    """

    app: Any
    max_bytes: int
    token: str

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http" or scope["path"] != "/invocations" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal, body, whole = self._refused(headers), b"", False
        if refusal is None:
            refusal, body, whole = await self._body(receive)
        if refusal is None and _media_type(headers) == "application/json":
            refusal = await asyncio.to_thread(complaint, body)
        if refusal is not None:
            await _refuse(send, *refusal, None if whole else receive)
        else:
            await self.app(scope, _again(body, receive), send)
        if len(body) > _LARGE:
            del body
            await asyncio.to_thread(give_back)

    def _refused(self, headers: dict[bytes, bytes]) -> Answer | None:
        """Return why a request is refused by its headers alone."""
        borne = headers.get(b"authorization", b"")
        if self.token and not hmac.compare_digest(borne, f"Bearer {self.token}".encode()):
            return 401, "a token is needed: send the header `Authorization: Bearer TOKEN`"
        if not _media_type(headers):
            return 400, (
                f"the body has no content type: send the header `Content-Type: application/json` and {_FORM}"
            )
        try:
            length = int(headers.get(b"content-length", b"0"))
        except ValueError:
            return 400, "Content-Length is no number"
        return self._too_large(length)

    def _too_large(self, length: int) -> Answer | None:
        if length <= self.max_bytes:
            return None
        return 413, f"a body may have {self.max_bytes >> 20} MB: send fewer cells at a time"

    async def _body(self, receive: Any) -> tuple[Answer | None, bytes, bool]:
        """Return why a body is refused, the body, and whether all that the client sends has come."""
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return (400, "the request was cut off"), b"", True
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if refusal := self._too_large(size):
                return refusal, b"", not more
        return None, b"".join(parts), True


def complaint(body: bytes) -> Answer | None:
    """Return why a JSON body cannot be read as cells, or None; MLflow takes true for 1 without a word."""
    try:
        document = json.loads(body)
    except RecursionError:
        return 400, f"the JSON is nested too deep to be cells: send {_FORM}"
    except ValueError as error:
        return 400, f"the body is not valid JSON ({str(error)[:200]}): send {_FORM}"
    if not isinstance(document, dict):
        return 400, f"expected a JSON object, found {type(document).__name__}: send {_FORM}"
    if b"true" not in body and b"false" not in body:
        return None
    split, records = document.get("dataframe_split"), document.get("dataframe_records")
    rows = split.get("data") if isinstance(split, dict) else records
    for number, row in enumerate(rows if isinstance(rows, list) else ()):
        values = row.values() if isinstance(row, dict) else row if isinstance(row, list) else ()
        if any(isinstance(value, bool) for value in values):
            return 400, f"expected numbers, found true or false in cell {number} (counted from 0)"
    return None


def give_back() -> None:
    """Hand memory that is no longer used back to the system, where the C library can."""
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _media_type(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"content-type", b"").decode("latin-1").split(";")[0].strip().lower()


def _again(body: bytes, receive: Any) -> Callable[[], Any]:
    """Return what hands on a body that has been read, and then what comes after it."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Any:
        return left.pop() if left else await receive()

    return next_message


async def _refuse(send: Any, status: int, message: str, receive: Any | None) -> None:
    """Answer with a refusal, and close; `receive` gives what the client is still sending.

    The answer goes out at once, but the connection is closed only once the body has come to its end (or the
    client's patience has): a connection closed on bytes that nobody read is reset, and what the client has
    not yet read of the answer is lost with it (RFC 9112, section 9.6).
    """
    code = {401: "UNAUTHENTICATED", 413: "RESOURCE_EXHAUSTED"}.get(status, "BAD_REQUEST")
    text = json.dumps({"error_code": code, "message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": True})
    while receive is not None and (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
