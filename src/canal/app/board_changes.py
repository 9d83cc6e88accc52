"""The forms of the board: each checks who sends it and what it says, and begins a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from canal.app import board_naming, board_pages, board_work
from canal.app.board_access import (
    CSRF_HEADER,
    Access,
    Form,
    RefusedError,
    Visitor,
    person_of,
    with_cookie,
)
from canal.app.board_drop import Drops
from canal.app.board_index import Index
from canal.app.board_work import Deed, Job, Jobs, Leaving, Promotion
from canal.core import __version__
from canal.core.errors import CanalError
from canal.report.board_rendering import render

PAGES = (
    ("/", "Versions"),
    ("/drop", "Label a file"),
    ("/compare", "Compare"),
    ("/data", "Data"),
    ("/files", "Files"),
    ("/watch", "Watch"),
    ("/gate", "Gate"),
    ("/ledger", "Ledger"),
    ("/withdrawn", "Withdrawals"),
    ("/naming", "Novel groups"),
)
"""The pages in every page's head: address and name."""


@dataclass(frozen=True)
class BoardOptions:
    """How a board is served.

    Attributes
    ----------
    port : int
        Where it listens at 127.0.0.1.
    token_file : Path or None
        The file with the token of the login; None: the board is for reading.
    mlflow : str or None
        Where MLflow's own pages are, for links to them; None: at the tracking server, if there is one.
    max_mb : int
        Most megabytes of a file that is dropped.
    sign : Path or None
        The key that signs entries of the ledger.
    """

    port: int = 5002
    token_file: Path | None = None
    mlflow: str | None = None
    max_mb: int = 2000
    sign: Path | None = None


class Changes:
    """What a board holds, and its forms.

    Parameters
    ----------
    index
        What the pages show.
    options
        How it is served.
    """

    def __init__(self, index: Index, options: BoardOptions) -> None:
        self.index, self.options = index, options
        self.root = index.layout.root
        self.access = Access(options.token_file)
        self.jobs = Jobs()
        self.drops = Drops(index.layout, options.max_mb)

    def page(self, request: Request, visitor: Visitor, template: str, values: dict[str, Any]) -> Response:
        """Return a page."""
        here = request.url.path
        about = {
            "name": self.root.name,
            "root": str(self.root),
            "version": __version__,
            "model": self.index.config.registry.model,
            "mlflow": self.mlflow,
            "logs_in": self.options.token_file is not None,
            "pages": PAGES,
            "here": here,
            "running": [one for one in self.jobs.running() if here != f"/jobs/{one.id}"],
        }
        text = render(template, {**values, "board": about, "visitor": visitor})
        return Response(text, media_type="text/html")

    @property
    def mlflow(self) -> str | None:
        """Where MLflow's own pages are; None where that is not known."""
        if self.options.mlflow:
            return self.options.mlflow.rstrip("/")
        uri = self.index.store.shown
        return uri.rstrip("/") if uri.startswith(("http://", "https://")) else None

    def started(self, job: Job, work: Callable[[Job], dict[str, Any]], pool: str = "deeds") -> Response:
        """Begin a job, and send the browser to its page."""
        self.jobs.start(job, work, pool)
        return RedirectResponse(f"/jobs/{job.id}", 303)

    def place(self, kind: str, key: str, against: str) -> Path:
        """Return where a page of a version is kept."""
        return board_work.kept_page(self.index.layout.private, kind, key, against if kind == "report" else "")

    def write_kept(self, request: Request, visitor: Visitor, form: Form, kind: str) -> Response:
        """Write a page of a version that takes long, to where it is kept."""
        version = board_pages.found_version(self.index, request.path_params["number"])
        against = form["against"] if kind == "report" else ""
        if against:
            board_pages.found_version(self.index, against)
        path = self.place(kind, version.key, against)
        job = Job(kind, f"writing the {'page' if kind == 'report' else kind} of version {version.number}")
        if kind == "report":
            work = partial(board_work.write_report, self.root, version.number, against or None, path)
        else:
            work = partial(board_work.write_lineage, self.root, version.number, path)
        return self.started(job, work)

    # Changes ----------------------------------------------------------------------------------------------

    def log_in(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """Begin a session with a person's name."""
        try:
            known = self.access.log_in(form["token"], form["name"])
        except CanalError as error:
            response = self.page(request, visitor, "login", {"error": str(error), "name": form["name"]})
            response.status_code = error.status if isinstance(error, RefusedError) else 400
            return response
        self.drops.hand_over(visitor.id, known.id)
        self.access.log_out(visitor)
        return with_cookie(RedirectResponse("/", 303), known)

    def log_out(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """End a session."""
        self.access.log_out(visitor)
        return RedirectResponse("/", 303)

    def _deed(self, visitor: Visitor, form: Form) -> Deed:
        return Deed(person_of(visitor), form["why"], self.options.sign)

    def promote(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """Judge a version, and let it serve if that is asked and it passes."""
        deed = self._deed(visitor, form)
        version = board_pages.found_version(self.index, request.path_params["number"])
        overrides = [rule for given in form.all("override") for rule in given.split()]
        wanted = Promotion(version.number, overrides, form["too_few"].strip())
        if form["do"] == "judge":
            job = Job("judge", f"judging version {version.number}")
            return self.started(job, partial(board_work.judge, self.root, wanted))
        deed.decision()  # a missing reason is told before minutes of judging
        job = Job("promote", f"judging and promoting version {version.number}")
        return self.started(job, partial(board_work.promote, self.root, wanted, deed))

    def retire(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """Let a version never serve again."""
        deed = self._deed(visitor, form)
        version = board_pages.found_version(self.index, request.path_params["number"])
        job = Job("retire", f"retiring version {version.number}")
        return self.started(job, partial(board_work.retire, self.root, version.number, deed))

    def rollback(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """Let an earlier version serve again."""
        deed = self._deed(visitor, form)
        if to := form["to"]:
            board_pages.found_version(self.index, to)
        job = Job("rollback", f"rolling back to {f'version {to}' if to else 'the version before'}")
        return self.started(job, partial(board_work.rollback, self.root, to or None, deed))

    def touched(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """Find where a data set, or a donor of it, was used."""
        name = board_pages.source_page(self.index, request.path_params["name"])["name"]
        batch = form["batch"] if "batch" in set(form) else None
        job = Job("touched", f"finding where {name} was used")
        return self.started(job, partial(board_work.touched, self.root, name, batch))

    def unlearn(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """Say what would be made without some cells; or make it, once that was seen."""
        deed = self._deed(visitor, form)
        name = board_pages.source_page(self.index, request.path_params["name"])["name"]
        cells = tuple(dict.fromkeys(one.strip() for one in form["cells"].splitlines() if one.strip()))
        if not cells and not form["batch"]:
            raise RefusedError(
                400, "choose a donor, or name cells: a whole data set leaves by `canal unlearn`"
            )
        leaving = Leaving(name, form["batch"] or None, cells, bool(form["retire"]))
        dry_run = form["do"] != "unlearn"
        deed.decision()
        job = Job("unlearn", f"{'planning to take' if dry_run else 'taking'} cells out of {name}")
        return self.started(job, partial(board_work.unlearn, self.root, leaving, deed, dry_run))

    def fill(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """Write names of groups into their sheet."""
        person_of(visitor)
        sheet = board_naming.found_sheet(self.index, request.path_params["sheet"])
        types = {name.removeprefix("group-"): form[name] for name in form if name.startswith("group-")}
        board_naming.fill(sheet["path"], types)
        return RedirectResponse(f"/naming/{sheet['id']}?saved=1", 303)

    # A file -----------------------------------------------------------------------------------------------

    async def receive(self, request: Request) -> Response:
        """Receive a file as the body of a request, and label it."""
        visitor = self.access.visitor(request)
        self.access.require_csrf(visitor, request.headers.get(CSRF_HEADER, ""))
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 16):
            raise RefusedError(411, "the request does not say how large the file is")
        self.drops.check(int(length))
        wanted = request.headers.get("x-model", "")
        if wanted:
            board_pages.found_version(self.index, wanted)
        name = unquote(request.headers.get("x-file-name", ""))[:1000]
        file = await self.drops.receive(name, request.stream(), visitor.id)
        self.jobs.start(file.job, lambda _: self.drops.label(file, wanted), "files")
        return Response(status_code=201, headers={"location": f"/jobs/{file.job.id}"})

    def download(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """Hand back a labelled file, and forget it."""
        file = self.drops.find(request.path_params["job"], visitor.id)
        if file.job.state != "done":
            raise RefusedError(409, "this file is not labelled yet")
        name, forget = file.labelled.name, BackgroundTask(self.drops.forget, file)
        return FileResponse(file.labelled, filename=name, media_type="application/x-hdf5", background=forget)

    def forget(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """Forget a file."""
        self.drops.forget(self.drops.find(request.path_params["job"], visitor.id))
        return RedirectResponse("/drop", 303)

    def keep(self, request: Request, visitor: Visitor, form: Form) -> Response:
        """Keep a labelled file, and group its novel cells."""
        person_of(visitor)
        file = self.drops.find(request.path_params["job"], visitor.id)
        least = form["min_cells"]
        if not (least.isascii() and least.isdecimal() and 0 < int(least[:7]) <= 100_000):
            raise RefusedError(400, "the smallest group has from 1 to 100,000 cells")
        job = Job("keep", f"keeping {file.name}, and grouping its novel cells", visitor.id)
        return self.started(job, partial(self.drops.keep, file, int(least)), "files")
