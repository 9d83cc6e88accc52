"""What the board does besides reading: decisions, pages that take long, and what cells have touched.

Each is a job: a thread works, the browser is shown how far it is. Decisions go through the functions that
the command line calls, one at a time, so policy, reasons, locks, hooks and ledger are the same.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from starlette.responses import Response

from canal.app.board_access import RefusedError
from canal.core.digests import json_digest
from canal.core.errors import CanalError, PolicyError, tell
from canal.core.files import new_file, system_refusal
from canal.core.packages import lazy_module

if TYPE_CHECKING:
    from canal.app import auditing, impact, project, promoting, reviewing, unlearning, versions
    from canal.report import lineage_page
else:  # with them come libraries that take seconds, and most pages need none
    auditing, impact, project, promoting, reviewing, unlearning, versions = (
        lazy_module(f"canal.app.{name}")
        for name in ("auditing", "impact", "project", "promoting", "reviewing", "unlearning", "versions")
    )
    lineage_page = lazy_module("canal.report.lineage_page")

Document = dict[str, Any]
State = Literal["waiting", "working", "done", "refused"]

_KEPT, _WAITING = 100, 16
_LINES = 12


@dataclass
class Job:
    """Something that takes longer than a page may.

    Attributes
    ----------
    id : str
        Names its page; nobody can guess it.
    kind, title : str
        Which template shows its result, and what it is called meanwhile.
    owner : str
        Id of the visitor who may see it; empty: everybody who knows its address.
    state : str
    lines : list of str
        What it has told so far, the newest last.
    done, total : int
        Cells, where it counts some.
    result : dict
        What its page shows; of a refused job ``error``, and whatever was found before.
    """

    kind: str
    title: str
    owner: str = ""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    state: State = "waiting"
    lines: list[str] = field(default_factory=list)
    done: int = 0
    total: int = 0
    result: Document = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state in ("done", "refused")

    @property
    def seconds(self) -> float:
        """Seconds that it took, or has taken so far."""
        return (self.ended or time.monotonic()) - self.began

    def note(self, line: str) -> None:
        """Keep a line of what it does."""
        self.lines = [*self.lines, str(line)][-_LINES:]

    def count(self, done: int, total: int) -> None:
        """Keep how many cells are done."""
        self.done, self.total = done, total


class Jobs:
    """Jobs in threads of their own: decisions one after the other, and files of cells beside them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._pools = {name: ThreadPoolExecutor(1, f"canal-board-{name}") for name in ("deeds", "files")}

    def start(self, job: Job, work: Callable[[Job], Document], pool: str = "deeds") -> Job:
        """Begin a job, once those before it have ended.

        Raises
        ------
        RefusedError
            If too many are waiting.
        """
        with self._lock:
            if sum(not one.over for one in self._jobs.values()) >= _WAITING:
                raise RefusedError(503, "too much is being done already: wait for it, and send it again")
            self._jobs[job.id] = job
            for old in [one.id for one in self._jobs.values() if one.over][:-_KEPT]:
                del self._jobs[old]
        self._pools[pool].submit(_run, job, work)
        return job

    def find(self, id_: str) -> Job | None:
        """Return a job by its id; None where there is none, or not any more."""
        with self._lock:
            return self._jobs.get(id_)

    def running(self) -> list[Job]:
        """Return the jobs that have not ended, oldest first, but those of one visitor alone."""
        with self._lock:
            return [one for one in self._jobs.values() if not one.over and not one.owner]

    def close(self) -> None:
        """Begin no further job; the one at work ends by itself."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def _run(job: Job, work: Callable[[Job], Document]) -> None:
    job.state = "working"
    try:
        job.result = work(job)
        state: State = "done"
    except Exception as error:
        state = "refused"
        told = str(error) if isinstance(error, CanalError) else None
        if told is None and isinstance(error, OSError):
            told = system_refusal(error)
        if told is None:
            tell(f"board: {job.title} failed: {type(error).__name__}: {error}")
            told = f"this failed by a fault of canal's own ({type(error).__name__}): its log says more"
        job.result = {**job.result, "error": told}
    job.ended = time.monotonic()
    job.state = state


# Decisions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deed:
    """Who decides, why, and the key that signs the entry, where one is used."""

    by: str
    why: str
    key: Path | None = None

    def decision(self) -> promoting.Decision:
        """Return the decision; a person and a reason that cannot be kept on record are refused."""
        sign = None if self.key is None else auditing.open_key(self.key).signer(self.by)
        return promoting.Decision(self.by, self.why, sign)


@dataclass(frozen=True)
class Promotion:
    """What a promotion is asked to let pass; see `canal.app.promoting.judge_version`."""

    number: int
    overrides: Sequence[str] = ()
    too_few: str = ""


def judge(root: Path, wanted: Promotion, job: Job) -> Document:
    """Judge a version by the policy, and change nothing."""
    opened = project.Project.open(root)
    judgement = promoting.judge_version(opened, str(wanted.number), wanted.overrides, wanted.too_few)
    return {**judgement.to_json(), "passed": judgement.passed, "asked": wanted, "entry": None}


def promote(root: Path, wanted: Promotion, deed: Deed, job: Job) -> Document:
    """Judge a version, and let it serve if it passes."""
    opened, decision = project.Project.open(root), deed.decision()
    judgement = promoting.judge_version(opened, str(wanted.number), wanted.overrides, wanted.too_few)
    shown = {**judgement.to_json(), "passed": judgement.passed, "asked": wanted, "entry": None}
    job.result = shown
    job.note("judged; writing the decision")
    try:
        entry = promoting.promote(opened, judgement, decision)
    except PolicyError:
        reviewing.write_decision(opened, judgement)
        raise
    reviewing.write_decision(opened, judgement)
    return {**shown, "entry": entry.document}


def rollback(root: Path, to: str | None, deed: Deed, job: Job) -> Document:
    """Let a version serve again, by default the one before."""
    entry = promoting.rollback(project.Project.open(root), to, deed.decision())
    return {"entry": entry.document}


def retire(root: Path, number: int, deed: Deed, job: Job) -> Document:
    """Let a version never serve again."""
    entry = promoting.retire(project.Project.open(root), str(number), deed.decision())
    return {"entry": entry.document}


@dataclass(frozen=True)
class Leaving:
    """Cells that are to leave: a batch of a source, or cells by name, and what else is asked."""

    source: str
    batch: str | None = None
    cells: tuple[str, ...] = ()
    retire: bool = False


def unlearn(root: Path, leaving: Leaving, deed: Deed, dry_run: bool, job: Job) -> Document:
    """Register versions without some cells, or say what would be made."""
    opened, decision = project.Project.open(root), deed.decision()
    withdrawal = unlearning.Withdrawal(leaving.source, leaving.batch, leaving.cells)
    made = unlearning.unlearn(opened, withdrawal, decision, job.note, dry_run)
    retired = unlearning.retire_holding(opened, made, decision) if leaving.retire and not dry_run else ()
    return {**made.to_json(), "retired": list(retired), "dry_run": dry_run, "asked": leaving, "why": deed.why}


# Pages that take long -------------------------------------------------------------------------------------


def touched(root: Path, source: str, batch: str | None, job: Job) -> Document:
    """Return what a data set, or a donor of it, contributed to; see `canal impact`."""
    return impact.impact(project.Project.open(root), impact.CellQuery(source, batch, None)).to_json()


def kept_page(private: Path, kind: str, *facts: object) -> Path:
    """Return where a page lies that follows from some facts, written already or not."""
    return private / "board" / f"{kind}-{json_digest(list(facts))}.html"


def write_report(root: Path, number: int, against: str | None, kept: Path, job: Job) -> Document:
    """Write the page of a version, as `canal report` does, to where it is kept."""
    folder = kept.with_suffix("")
    page, document = reviewing.write_pages(project.Project.open(root), folder, str(number), against)
    with new_file(kept) as temporary:
        temporary.write_bytes(page.read_bytes())
    for one in folder.iterdir():
        one.unlink()
    folder.rmdir()
    return {"number": number, "page": kept.name, "address": f"/versions/{number}/report"}


def write_lineage(root: Path, number: int, kept: Path, job: Job) -> Document:
    """Write the graph of a version's lineage, as `canal lineage --html` does, to where it is kept."""
    lineage_page.write_lineage(versions.backward(project.Project.open(root), str(number)), kept)
    return {"number": number, "page": kept.name, "address": f"/versions/{number}/lineage"}


_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def kept_response(path: Path) -> Response:
    """Return a page that canal wrote, apart from the board: sandboxed, and with its own scripts alone.

    Its origin is of its own, so that nothing in it reaches the board, its cookie or its forms. Vega compiles
    the expressions of a chart, which counts as evaluating text.
    """
    text = path.read_text(encoding="utf-8")
    digests = (b64encode(sha256(one.encode()).digest()).decode() for one in _SCRIPT.findall(text))
    scripts = " ".join(f"'sha256-{one}'" for one in digests)
    allowed = f"{scripts} 'unsafe-eval'" if scripts else "'none'"
    policy = (
        "sandbox allow-scripts allow-popups; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src {allowed}; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Response(text, media_type="text/html", headers={"content-security-policy": policy})
