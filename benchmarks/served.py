"""A version behind `mlflow models serve`, and questions to ask it whose right answers are known."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import requests
from anndata import AnnData
from scipy.sparse import csr_matrix

from canal.annotation.annotate import annotate_adata
from canal.annotation.options import Options
from canal.annotation.service import TOTALS
from canal.config.layout import Layout
from canal.config.sections import Registry
from canal.model.annotator import Annotator
from canal.registry.manifest.version_folder import write_key
from canal.registry.store.database import Version
from canal.registry.store.store import Store
from canal.registry.store.tracking import parent_run
from canal.registry.versions.publish import Publication, publish

_PATIENCE_S = 240
_TOLERANCE = 1e-4
_OTHERS = 40


def champion_of(root: Path, annotator: Annotator) -> Version:
    """Register an annotator in a new MLflow store in ``root`` and let it serve."""
    store = Store(Layout(root), Registry())
    folder = store.layout.model("served")
    annotator.save(folder / "model")
    facts = {"stage": "served", "branch": 1, "request": {}, "request_digest": "0" * 64}
    write_key(folder, facts, parent=None)
    run = parent_run(store, "served", facts["request_digest"])
    version = publish(store, Publication(store.names.model, folder, run, None, {}, pyfunc=True))
    store.point(version.model, "champion", version.number)
    return version


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    process: psutil.Process

    @property
    def memory(self) -> int:
        """Resident bytes of all its processes."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(one.memory_info().rss for one in family)

    def ask(self, body: bytes, session: requests.Session | None = None) -> requests.Response:
        """Post a JSON body."""
        return (session or requests).post(
            f"{self.url}/invocations", body, headers={"Content-Type": "application/json"}, timeout=300
        )


@contextmanager
def serving(root: Path, log: Path) -> Iterator[Server]:
    """Yield the champion of a project behind a server on a free port of this machine; end the server.

    Raises
    ------
    RuntimeError
        If it ends, or does not answer within four minutes; shows what it said.
    """
    port = _free_port()
    store = Store(Layout(root), Registry())
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{store.names.model}@champion",
    ]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn by its name
    own = {"MLFLOW_TRACKING_URI": store.uri, "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=os.environ | own, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        _wait(server, process, log)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        try:
            if requests.get(f"{server.url}/ping", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    raise RuntimeError(f"{server.url} does not answer:\n{log.read_text()[-4000:]}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(frozen=True, eq=False)
class Question:
    """A body, the status it must be answered with, and what must be in the answer."""

    name: str
    body: bytes
    status: int
    said: str = ""
    wanted: pd.DataFrame | None = None

    def complaint(self, answer: requests.Response) -> str:
        """Return what is wrong with an answer, or ``""``."""
        if answer.status_code != self.status:
            return f"{self.name}: HTTP {answer.status_code} instead of {self.status}: {answer.text[:300]}"
        if self.wanted is None:
            return "" if self.said in answer.text else f"{self.name}: no {self.said!r} in {answer.text[:300]}"
        return self._difference(pd.DataFrame(answer.json()["predictions"]))

    def _difference(self, found: pd.DataFrame) -> str:
        try:
            pd.testing.assert_frame_equal(found, self.wanted, check_dtype=False, rtol=0, atol=_TOLERANCE)
        except AssertionError as error:
            return f"{self.name}: {error}"
        return ""


def right_questions(annotator: Annotator, sizes: tuple[int, ...], seed: int = 0) -> list[Question]:
    """Return cells as counts and as logarithms, with what `canal annotate` says to whole transcriptomes."""
    questions = []
    for size in sizes:
        counts = _counts(annotator, size, seed)
        totals = counts.sum(axis=1)
        logs = pd.DataFrame(
            np.log1p(counts.to_numpy() / totals.to_numpy()[:, None] * 1e4), columns=counts.columns
        ).astype(np.float32)
        genes = list(annotator.genes)
        for units, whole, sent in (
            ("counts", counts, counts[genes].assign(**{TOTALS: totals})),
            ("log1p_10k", logs, logs[genes]),
        ):
            adata = AnnData(csr_matrix(whole.to_numpy()), var=pd.DataFrame(index=list(whole.columns)))
            wanted = annotate_adata(annotator, adata, Options(values=units, device="cpu"))
            wanted = wanted.reset_index(drop=True).astype(
                dict.fromkeys(wanted.select_dtypes("category"), object)
            )
            questions.append(Question(f"{size} cells, {units}", _body(sent), 200, wanted=wanted))
    return questions


def wrong_questions(annotator: Annotator, megabytes: float) -> list[Question]:
    """Return bodies that must be refused, two of them of that many megabytes."""
    genes, size = list(annotator.genes), int(megabytes * 1e6)
    row = [0.5] * len(genes)
    many = pd.DataFrame([row] * (size // (4 * len(genes))), columns=genes).astype(np.float32)
    many.iloc[-1, 0] = np.nan
    nan = pd.DataFrame([[np.nan, *row[1:]]], columns=genes)
    return [
        Question("malformed", b'{"dataframe_split": {"columns": [', 400, "valid JSON"),
        Question("empty", b"", 400, "valid JSON"),
        Question("no text", b"\xff\xfe\x00" * 10, 400, "valid JSON"),
        Question("NaN", _body(nan), 400, "missing or NaN"),
        Question("unknown columns", _body(pd.DataFrame({"x": [1.0]})), 400, f"0 of the model's {len(genes)}"),
        Question("counts without totals", _body(nan.fillna(0) * 6), 400, TOTALS),
        Question("huge, malformed", b"[1" + b", 2" * (size // 3), 400, "valid JSON"),
        Question("huge, one NaN", _body(many), 400, "missing or NaN"),
    ]


def _counts(annotator: Annotator, size: int, seed: int) -> pd.DataFrame:
    """Return counts of the model's genes and of some others, half of them zero."""
    random = np.random.default_rng([seed, size])
    names = [*annotator.genes, *(f"OTHER{i}" for i in range(_OTHERS))]
    counts = random.poisson(2.0, size=(size, len(names))) * (random.random((size, len(names))) < 0.5)
    counts[:, -1] += 1  # no cell is without counts
    return pd.DataFrame(counts.astype(np.float32), columns=names)


def _body(table: pd.DataFrame) -> bytes:
    split: dict[str, Any] = {"columns": list(table.columns), "data": table.to_numpy().tolist()}
    return json.dumps({"dataframe_split": split}).encode()
