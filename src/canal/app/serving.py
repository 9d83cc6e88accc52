"""`canal serve`: MLflow's scoring server over HTTP, with limits that `mlflow models serve` does not set.

Bodies are checked before MLflow reads them; slow or silent clients are disconnected; a worker that dies is
restarted by uvicorn's supervisor; memory of a large body is returned to the system.
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
from socket import socket
from typing import Any

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from canal.app.auditing import audit_project
from canal.app.connections import PATIENCE, PatientProtocol, read_token
from canal.app.models import serving_version
from canal.app.project import Project
from canal.core.errors import RegistryError, tell
from canal.core.files import scratch_folder
from canal.core.progress import doing

_SETTINGS = "CANAL_SERVING"
"""Environment variable that passes the settings to workers."""

_HERE = ("127.0.0.1", "localhost", "::1")
_LARGE = 4 << 20
"""Size of a body in bytes from which on freed memory is returned to the system."""

_MOST_LOST = 3
"""Workers that may end before they have loaded the model, after which it is not tried again."""
_REASON = "reason"
"""The file in which a worker says why it could not load the model."""

_FORM = '{"dataframe_split": {"columns": [genes], "data": [[values of a cell]]}}'

Answer = tuple[int, str]
"""An HTTP status and the message of its body."""


@dataclass(frozen=True)
class ServeOptions:
    """How a version is served.

    Attributes
    ----------
    host, port : str and int
        The address to listen at.
    workers : int
        Processes, each with its own model.
    timeout : int
        Most seconds for an answer; then status 504.
    patience : int
        Seconds in which a request must be complete, counted from the connection or the last answer.
    max_mb : int
        Most megabytes of a request's body.
    token_file : Path or None
        A file with a bearer token that requests for labels need; None: no token.
    """

    host: str = "127.0.0.1"
    port: int = 5001
    workers: int = 1
    timeout: int = 60
    patience: int = 60
    max_mb: int = 64
    token_file: Path | None = None


class Supervisor(Multiprocess):
    """Notices at once that a worker died while it was asked whether it lives.

    Parameters
    ----------
    config, sockets
        As for uvicorn's own.
    loaded
        A folder: a worker that has loaded the model puts a file there, and one that cannot says why.

    Attributes
    ----------
    lost : int
        Workers that ended before they had loaded the model.
    """

    def __init__(self, config: Config, sockets: list[socket], loaded: Path) -> None:
        super().__init__(config, sockets)
        self._loaded, self._given_up = loaded, False
        self.lost = 0

    def keep_subprocess_alive(self) -> None:
        """Restart dead workers; a pipe of which only the worker has the other end breaks with it.

        One that cannot load the model would fail for ever: after a few of them nothing is restarted. They
        are counted once uvicorn is done with them: a worker may end while it is asked whether it lives.
        """
        asked = list(self.processes)
        for process in asked:
            process.child_conn.close()
        super().keep_subprocess_alive()
        ended = [process for process in asked if process.exitcode is not None]
        self.lost += sum(not (self._loaded / str(process.pid)).exists() for process in ended)
        broken = any(process.exitcode == STARTUP_FAILURE for process in ended)  # uvicorn gives up by itself
        if self.lost >= _MOST_LOST or broken:
            self._given_up = True
            self.should_exit.set()

    @property
    def why_lost(self) -> str | None:
        """Why workers ended before they had loaded the model; None where few enough did."""
        if not self._given_up:
            return None
        reason = self._loaded / _REASON
        return reason.read_text(encoding="utf-8") if reason.is_file() else "each ended without a word"


def serve(project: Project, wanted: str | None, options: ServeOptions) -> None:
    """Serve a version (default: the champion, else the newest) until the process is terminated.

    Raises
    ------
    ConfigError
        If the token file holds no valid token.
    RegistryError
        If there is no such version, its audit has findings, or the address is taken.
    """
    if options.token_file is not None:
        read_token(options.token_file)
    version = serving_version(project, wanted)
    _require_clean_audit(project, version.number)
    folder = project.store.artifacts(version)
    settings = {"folder": str(folder), "max_bytes": options.max_mb << 20}
    settings |= {"token_file": str(options.token_file.resolve())} if options.token_file else {}
    if options.host not in _HERE and options.token_file is None:
        tell(
            f"{options.host}: everybody who can reach port {options.port} may send requests; --token-file "
            "requires a token"
        )
    config = Config(
        "canal.app.serving:application",
        factory=True,
        host=options.host,
        port=options.port,
        workers=options.workers,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        timeout_worker_healthcheck=options.timeout,
    )
    try:
        listening = config.bind_socket()
    except SystemExit as error:  # uvicorn has printed the reason
        raise RegistryError(
            f"cannot listen at {options.host}:{options.port}: choose another --port"
        ) from error
    tell(
        f"version {version.number} ({version.stage}) answers at http://{options.host}:{options.port}/invocations"
    )
    with scratch_folder("serve") as loaded:
        os.environ |= {
            _SETTINGS: json.dumps({**settings, "loaded": str(loaded)}),
            PATIENCE: str(options.patience),
            "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": str(options.timeout),
        }
        supervisor = Supervisor(config, [listening], loaded)
        supervisor.run()
        if (why := supervisor.why_lost) is not None:
            raise RegistryError(
                f"version {version.number} is not served: its workers ended before they had loaded it, "
                f"{supervisor.lost} in all ({why}). A lack of memory ends a worker without a word: "
                f"try --workers 1; `canal audit {version.number}` looks at its files, `canal doctor` at the "
                "packages"
            )


@doing("auditing the version before it serves")
def _require_clean_audit(project: Project, number: int) -> None:
    """Raise where an audit of the version has findings: only verified versions serve."""
    report = audit_project(project, str(number))
    if report.findings:
        first = report.findings[0]
        raise RegistryError(
            f"version {number} is not served: an audit has {len(report.findings)} finding(s), such as "
            f"{first.to_json()}; `canal audit {number}` lists them"
        )


# In a worker ---------------------------------------------------------------------------------------------


def application() -> Checked:
    """Return the application of a worker, for uvicorn; loads the model."""
    settings = _worker_settings()
    loaded = Path(settings["loaded"])
    try:
        import mlflow
        from mlflow.pyfunc import scoring_server

        token = read_token(Path(settings["token_file"])) if "token_file" in settings else ""
        served = scoring_server.init(mlflow.pyfunc.load_model(settings["folder"]))
    except Exception as error:  # whatever it is, the supervisor tells it once
        (loaded / _REASON).write_text(f"{type(error).__name__}: {str(error)[:500]}", encoding="utf-8")
        raise SystemExit(1) from error
    (loaded / str(os.getpid())).touch()
    return Checked(served, settings["max_bytes"], token)


@cache
def _worker_settings() -> dict[str, Any]:
    """Return the settings of this worker, from the environment."""
    settings: dict[str, Any] = json.loads(os.environ[_SETTINGS])
    return settings


@dataclass(frozen=True)
class Checked:
    """MLflow's application behind checks of headers and body.

    Attributes
    ----------
    app : callable
        An ASGI application.
    max_bytes : int
        Most bytes of a body.
    token : str
        The bearer token that requests for labels need; empty for none.
    """

    app: Any
    max_bytes: int
    token: str

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Refuse a request, or pass it on to MLflow."""
        if scope["type"] != "http" or scope["path"] != "/invocations" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal, body, whole = self._refused(headers), b"", False
        if refusal is None:
            refusal, body, whole = await self._body(receive)
        if refusal is None and _media_type(headers) == "application/json":
            refusal = await asyncio.to_thread(body_error, body)
        if refusal is not None:
            await _refuse(send, *refusal, None if whole else receive)
        else:
            await self.app(scope, _again(body, receive), send)
        if len(body) > _LARGE:
            del body
            await asyncio.to_thread(release_memory)

    def _refused(self, headers: dict[bytes, bytes]) -> Answer | None:
        """Return the refusal of a request by its headers, or None."""
        authorization = headers.get(b"authorization", b"")
        if self.token and not hmac.compare_digest(authorization, f"Bearer {self.token}".encode()):
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
        """Return the refusal of a body or None, the body, and whether the request is complete."""
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


def body_error(body: bytes) -> Answer | None:
    """Return why a JSON body cannot be read as cells, or None; MLflow would silently read true as 1."""
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


def release_memory() -> None:
    """Return unused memory to the system, where the C library can."""
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _media_type(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"content-type", b"").decode("latin-1").split(";")[0].strip().lower()


def _again(body: bytes, receive: Any) -> Callable[[], Any]:
    """Return a receive function that replays a body, then receives further messages."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Any:
        return left.pop() if left else await receive()

    return next_message


async def _refuse(send: Any, status: int, message: str, receive: Any | None) -> None:
    """Send a refusal and close the connection; ``receive`` drains what the client is still sending.

    The answer is sent at once, but the connection is closed only after the whole body was read (or the timer
    ran out): closing a connection with unread bytes resets it, and the client loses what it has not yet read
    of the answer (RFC 9112, section 9.6).
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
