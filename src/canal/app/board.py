"""`canal ui`: the board, a team's registry in a browser.

Pages read what `Index` holds; whatever changes something is a form, goes through the functions that the
command line calls, and needs a login. The server listens at this machine alone.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn import Config, Server

from canal.app import board_naming, board_pages, board_work
from canal.app.board_access import CSRF_FIELD, Form, Guard, RefusedError, Visitor, read_form, with_cookie
from canal.app.board_changes import BoardOptions as BoardOptions
from canal.app.board_changes import Changes
from canal.app.board_index import Index, stamp, utc
from canal.app.connections import PATIENCE, PatientProtocol, read_token
from canal.app.project import Project
from canal.core.errors import CanalError, RegistryError, tell
from canal.core.files import system_refusal
from canal.core.packages import lazy_module
from canal.report.board_rendering import icon, script, style
from canal.report.drift_tables import HEADINGS, shown_rows

if TYPE_CHECKING:
    from canal.app import watching
else:  # it reads predictions, with pandas
    watching = lazy_module("canal.app.watching")

Document = dict[str, Any]

HOST = "127.0.0.1"
_PATIENCE_S = 900
"""Seconds in which a request must be complete: a large file may come through a slow tunnel."""
_SWEEP_S = 20
_KEPT = 8
"""Versions of which the page of `canal watch` is kept in memory."""
_CELLS_BYTES = 8 << 20
"""Most bytes of a form that names cells."""


def serve(root: Path | None, options: BoardOptions) -> None:
    """Serve the board until the process is terminated.

    Raises
    ------
    CanalError
        If there is no project, the token file holds no valid token, or the port is taken.
    """
    if options.token_file is not None:
        read_token(options.token_file)
    os.environ[PATIENCE] = str(_PATIENCE_S)
    config = Config(
        application(root, options),
        host=HOST,
        port=options.port,
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    try:
        socket = config.bind_socket()
    except SystemExit as error:  # uvicorn has printed the reason
        raise RegistryError(f"cannot listen at {HOST}:{options.port}: choose another --port") from error
    way = "" if options.token_file else "; for reading: --token-file FILE lets people log in and decide"
    tell(f"the board: open http://{HOST}:{options.port} in a browser; Ctrl-C ends it{way}")
    Server(config).run(sockets=[socket])


def application(root: Path | None, options: BoardOptions) -> Guard:
    """Return the board as an ASGI application."""
    index = Index(root)
    index.config  # noqa: B018 - what is no project is refused before anything listens
    board = Board(index, options)
    names = {HOST, "localhost", "[::1]"}
    hosts = frozenset({*names, *(f"{name}:{options.port}" for name in names)})
    app = Starlette(routes=board.routes(), lifespan=board.lifespan, exception_handlers=board.refusals())
    app.state.board = board
    return Guard(app, hosts)


class Watch:
    """What `canal watch` says of a version, read again when something was labelled."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[object, Document]] = {}

    def page(self, asked: str) -> Document:
        """Return the page of a version, by default of the champion, else of the newest one.

        Raises
        ------
        RefusedError
            If there is no such version.
        """
        index = self._index
        usable = [one for one in index.versions() if not one.retired and not one.erased]
        newest = usable[-1] if usable else None
        version = board_pages.found_version(index, asked) if asked else index.holder("champion") or newest
        if version is None:
            return {"document": None, "headings": HEADINGS, "rows": [], "versions": []}
        with self._lock:
            now = stamp(index.layout.annotations, index.layout.ledger)
            kept = self._kept.get(version.key)
            if kept is None or kept[0] != now:
                project = Project(index.layout, index.config)
                kept = now, watching.watch(project, str(version.number))
                self._kept = {**dict(list(self._kept.items())[-_KEPT:]), version.key: kept}
        document = kept[1]
        rows = shown_rows(document)
        return {"document": document, "headings": HEADINGS, "rows": rows, "versions": usable[::-1]}


Page = Callable[[Request, Visitor], Response]
Change = Callable[[Request, Visitor, Form], Response]


class Board(Changes):
    """A project's board: its pages, and the forms of `Changes`."""

    def __init__(self, index: Index, options: BoardOptions) -> None:
        super().__init__(index, options)
        self.watch = Watch(index)

    def routes(self) -> list[Route]:
        """Return every address: what is read by GET, and what changes something by POST."""
        read: dict[str, Page] = {
            "/": self._versions,
            "/versions/{number}": self._version,
            "/versions/{number}/report": partial(self._kept, kind="report"),
            "/versions/{number}/lineage": partial(self._kept, kind="lineage"),
            "/compare": self._compare,
            "/ledger": self._ledger,
            "/gate": lambda request, who: self.page(request, who, "gate", board_pages.gate_page(self.index)),
            "/data": lambda request, who: self.page(request, who, "data", board_pages.data_page(self.index)),
            "/data/{name}": self._source,
            "/files": self._files,
            "/watch": self._watch,
            "/withdrawn": self._withdrawn,
            "/naming": self._naming,
            "/naming/{sheet}": self._sheet,
            "/drop": self._drop,
            "/jobs/{job}": self._job,
            "/login": lambda request, who: self.page(request, who, "login", {"error": "", "name": ""}),
        }
        change: dict[str, Change] = {
            "/login": self.log_in,
            "/logout": self.log_out,
            "/versions/{number}/promote": self.promote,
            "/versions/{number}/retire": self.retire,
            "/versions/{number}/report": partial(self.write_kept, kind="report"),
            "/versions/{number}/lineage": partial(self.write_kept, kind="lineage"),
            "/rollback": self.rollback,
            "/data/{name}/touched": self.touched,
            "/data/{name}/unlearn": self.unlearn,
            "/naming/{sheet}": self.fill,
            "/drop/{job}/download": self.download,
            "/drop/{job}/forget": self.forget,
            "/drop/{job}/keep": self.keep,
        }
        return [
            *(Route(address, self._reads(page), methods=["GET"]) for address, page in read.items()),
            *(Route(address, self._changes(deed), methods=["POST"]) for address, deed in change.items()),
            Route("/drop", self.receive, methods=["POST"]),
            Route("/static/board.css", _asset(style, "text/css"), methods=["GET"]),
            Route("/static/board.svg", _asset(icon, "image/svg+xml"), methods=["GET"]),
            Route("/static/board.js", _asset(script, "text/javascript"), methods=["GET"]),
        ]

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Read what the first pages need, and remove files whose time has passed; at the end all of them."""
        threading.Thread(target=self.index.warm, name="canal-board-index", daemon=True).start()
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            self.jobs.close()
            self.drops.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            await run_in_threadpool(self.drops.sweep)

    # Requests ---------------------------------------------------------------------------------------------

    def _reads(self, page: Page) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            visitor = self.access.visitor(request)
            response: Response = await run_in_threadpool(page, request, visitor)
            return with_cookie(response, visitor)

        return answer

    def _changes(self, change: Change) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            visitor = self.access.visitor(request)
            form = await read_form(
                request, _CELLS_BYTES if request.url.path.endswith("/unlearn") else 1 << 18
            )
            self.access.require_csrf(visitor, form[CSRF_FIELD])
            response: Response = await run_in_threadpool(change, request, visitor, form)
            return response

        return answer

    def refusals(self) -> dict[Any, Any]:
        """Return what answers errors: a page that says what to do, never a traceback."""

        async def refused(request: Request, error: Exception) -> Response:
            status, message = _told(error)
            if request.url.path == "/drop" and request.method == "POST":
                return PlainTextResponse(message, status)
            visitor = self.access.visitor(request)
            values = {"title": HTTPStatus(status).phrase, "message": message}
            response = await run_in_threadpool(self.page, request, visitor, "message", values)
            response.status_code = status
            return with_cookie(response, visitor)

        return {CanalError: refused, OSError: refused, HTTPException: refused, Exception: refused}

    # Pages ------------------------------------------------------------------------------------------------

    def _versions(self, request: Request, visitor: Visitor) -> Response:
        return self.page(request, visitor, "versions", board_pages.versions_page(self.index))

    def _version(self, request: Request, visitor: Visitor) -> Response:
        number = request.path_params["number"]
        return self.page(
            request, visitor, "version", board_pages.version_page(self.index, number, self.mlflow)
        )

    def _compare(self, request: Request, visitor: Visitor) -> Response:
        asked = request.query_params
        values = board_pages.compare_page(self.index, asked.get("a", ""), asked.get("b", ""))
        return self.page(request, visitor, "compare", values)

    def _ledger(self, request: Request, visitor: Visitor) -> Response:
        asked = request.query_params
        values = board_pages.ledger_page(self.index, asked.get("kind", ""), asked.get("page", "1"))
        return self.page(request, visitor, "ledger", values)

    def _files(self, request: Request, visitor: Visitor) -> Response:
        asked = request.query_params
        values = board_pages.files_page(self.index, asked.get("page", "1"), asked.get("q", "")[:200])
        return self.page(request, visitor, "files", values)

    def _watch(self, request: Request, visitor: Visitor) -> Response:
        asked = request.query_params.get("version", "")
        return self.page(request, visitor, "watch", self.watch.page(asked))

    def _source(self, request: Request, visitor: Visitor) -> Response:
        values = board_pages.source_page(self.index, request.path_params["name"])
        return self.page(request, visitor, "source", values)

    def _withdrawn(self, request: Request, visitor: Visitor) -> Response:
        return self.page(request, visitor, "withdrawn", board_pages.withdrawn_page(self.index))

    def _naming(self, request: Request, visitor: Visitor) -> Response:
        return self.page(request, visitor, "naming", board_naming.naming_page(self.index))

    def _sheet(self, request: Request, visitor: Visitor) -> Response:
        values = {
            "sheet": board_naming.found_sheet(self.index, request.path_params["sheet"]),
            "types": board_naming.learned_types(self.index),
            "saved": "saved" in request.query_params,
        }
        return self.page(request, visitor, "sheet", values)

    def _drop(self, request: Request, visitor: Visitor) -> Response:
        self.drops.sweep()
        values = {
            "most": self.drops.max_bytes,
            "champion": self.index.holder("champion"),
            "versions": self.index.versions(),
            "mine": self.drops.mine(visitor.id),
        }
        return self.page(request, visitor, "drop", values)

    def _job(self, request: Request, visitor: Visitor) -> Response:
        job = self.jobs.find(request.path_params["job"])
        if job is None or (job.owner and job.owner != visitor.id):
            raise RefusedError(404, "this is not here any more: what was done stands in the ledger")
        return self.page(request, visitor, "job", {"job": job, "r": job.result})

    # Pages that are written once --------------------------------------------------------------------------

    def _kept(self, request: Request, visitor: Visitor, kind: str) -> Response:
        """Show whether a page of a version is written, or with ``open`` the page itself."""
        version = board_pages.found_version(self.index, request.path_params["number"])
        against = request.query_params.get("against", "")
        path = self.place(kind, version.key, against)
        if "open" in request.query_params and path.is_file():
            return board_work.kept_response(path)
        written = path.stat().st_mtime if path.is_file() else 0.0
        (changed, _, _) = stamp(self.index.layout.ledger)[0]
        others = [one for one in self.index.versions() if one.number != version.number and not one.erased]
        values = {
            "row": board_pages.row_of(self.index, version),
            "what": {"report": "Page", "lineage": "Lineage"}[kind],
            "about": _ABOUT[kind],
            "address": request.url.path,
            "kept": path.is_file(),
            "when": utc(written)[:16].replace("T", " "),
            "stale": changed > written * 1e9,
            "others": others[::-1] if kind == "report" else None,
            "against": against,
            "query": f"&against={against}" if against.isdecimal() else "",
        }
        return self.page(request, visitor, "kept", values)


_ABOUT = {
    "report": (
        "Not written yet. The page says whether the version is better than another one and where, by the "
        "policy, by type, by cell; it loads both versions, which takes some seconds, and is then kept."
    ),
    "lineage": (
        "Not written yet. The graph leads back to the raw bytes; every file on the way is compared with its "
        "digest, which takes a while, and then it is kept."
    ),
}


def _told(error: Exception) -> tuple[int, str]:
    """Return the status and the message of an error."""
    if isinstance(error, RefusedError):
        return error.status, str(error)
    if isinstance(error, HTTPException):
        return error.status_code, {404: "There is no such page.", 405: "This is not done that way."}.get(
            error.status_code, str(error.detail)
        )
    if isinstance(error, CanalError):
        return 409, str(error)
    told = system_refusal(error) if isinstance(error, OSError) else None
    if told is None:
        tell(f"board: {type(error).__name__}: {error}")
    return 500, told or "This failed by a fault of canal's own; its log says more."


def _asset(read: Callable[[], str], kind: str) -> Callable[[Request], Any]:
    async def answer(_: Request) -> Response:
        return Response(read(), media_type=kind, headers={"cache-control": "no-cache"})

    return answer
