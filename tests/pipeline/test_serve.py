"""`canal serve` on a learned project: right answers, odd bodies, slow clients, a killed worker, memory."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from canal.app.serving import body_error

TOKEN = "a" * 32
MIB = 1 << 20


class Served:
    """A server in a process of its own."""

    def __init__(self, line, *options):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        command = [sys.executable, "-m", "canal.cli", "serve", "--port", str(self.port), *options]
        self.log = line.root / "served.log"
        with self.log.open("w") as stream:
            env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
            self.process = subprocess.Popen(command, cwd=line.root, env=env, stdout=stream, stderr=stream)
        self.url = f"http://127.0.0.1:{self.port}"
        self.wait()

    def wait(self):
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/ping", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.1)
        raise AssertionError(f"no answer: {self.log.read_text()}")

    def ask(self, body, **headers):
        kind = {"Content-Type": "application/json"}
        return requests.post(f"{self.url}/invocations", body, headers=kind | headers, timeout=120)

    def workers(self):
        children = psutil.Process(self.process.pid).children()
        alive = [one for one in children if one.status() != psutil.STATUS_ZOMBIE]
        return [one for one in alive if "spawn_main" in str(one.cmdline())]

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0


@pytest.fixture(scope="module")
def served(learned, tmp_path_factory):
    from tests.pipeline.conftest import copied

    line = copied(learned[0], tmp_path_factory.mktemp("served") / "project")
    (line.root / "token").write_text(f"{TOKEN}\n")
    server: Any = Served(line, "--patience", "2", "--max-mb", "8")
    server.line = line
    yield server
    server.end()


@pytest.fixture(scope="module")
def cells(served):
    """The body of some cells' logarithms, and the columns that `canal annotate` gives them."""
    project = served.line.project()
    stage = list(project.config.stages)[-1]
    chosen = project.cells(stage, "test").expression[:12]
    genes = list(project.panel)
    rows = (chosen * np.log(2)).tolist()  # canal's expression is of base 2
    return {"dataframe_split": {"columns": genes, "data": rows}}


def body(cells, **changes):
    return json.dumps(cells | changes).encode()


def test_it_answers_what_python_answers(served, cells):
    from canal.app.models import load_annotator, serving_version

    project = served.line.project()
    annotator = load_annotator(project, serving_version(project, None))
    answer = served.ask(body(cells))
    assert answer.status_code == 200, answer.text
    values = np.array(cells["dataframe_split"]["data"], dtype=np.float32) / np.float32(np.log(2))
    said = annotator.predict(values)
    found = answer.json()["predictions"]
    assert [one["canal_best_type"] for one in found] == said.labels
    np.testing.assert_allclose([one["canal_confidence"] for one in found], said.confidence, atol=1e-4)


def test_odd_bodies_are_refused_and_say_why(served, cells):
    whole = body(cells)
    with_truth = json.loads(whole)
    with_truth["dataframe_split"]["data"][3][0] = True
    deep = b"[" * 100_000 + b"]" * 100_000
    for sent, headers, status, said in (
        (whole, {"Content-Type": None}, 400, "no content type"),
        (whole, {"Content-Type": ""}, 400, "no content type"),
        (json.dumps(with_truth), {}, 400, "true or false in cell 3"),
        (deep, {}, 400, "nested too deep"),
        (b"[1, 2]", {}, 400, "expected a JSON object, found list"),
        (whole[:-9], {}, 400, "not valid JSON"),
        (b"", {}, 400, "not valid JSON"),
        (b" " * (9 * MIB), {}, 413, "8 MB"),
        ((b" " * MIB for _ in range(9)), {}, 413, "8 MB"),
        (whole, {"Content-Type": "text/html"}, 415, "content types"),
    ):
        answer = served.ask(sent, **headers)
        assert (answer.status_code, said in answer.text) == (status, True), (said, answer.text[:300])
    assert served.ask(body(cells, params={"probabilities": True})).status_code == 200


@pytest.mark.parametrize("length", [f"Content-Length: {9 * MIB}", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("kind", "status"), [("Content-Type: application/json", b"413"), ("X-Kind: none", b"400")]
)
def test_a_refusal_reaches_a_client_that_sends_its_whole_body_first(served, length, kind, status):
    begin, end = (b"%x\r\n" % MIB, b"\r\n") if "chunked" in length else (b"", b"")
    with socket.create_connection(("127.0.0.1", served.port)) as one:
        one.sendall(f"POST /invocations HTTP/1.1\r\nHost: x\r\n{kind}\r\n{length}\r\n\r\n".encode())
        for _ in range(9):
            one.sendall(begin + b" " * MIB + end)
            time.sleep(0.05)  # time enough for a server that hangs up at once to do so
        one.sendall(b"0\r\n\r\n" if begin else b"")
        one.settimeout(30)
        answer = b"".join(iter(lambda: one.recv(1 << 16), b""))
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert json.loads(text)["message"]


HALF = (
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
)


@pytest.mark.parametrize("sent", [b"", b"POST /invoc", HALF])
def test_a_client_that_is_silent_or_slow_is_hung_up_on(served, cells, sent):
    with socket.create_connection(("127.0.0.1", served.port)) as one:
        one.sendall(sent)
        one.settimeout(30)
        began = time.monotonic()
        assert one.recv(1000) == b""
        assert 1 < time.monotonic() - began < 20
    assert served.ask(body(cells)).status_code == 200


@pytest.mark.chaos
def test_memory_comes_back_after_large_bodies(served, cells):
    split = cells["dataframe_split"]
    many = split["data"] * (6 * MIB // len(body(cells)))
    # Refused late, so that no network works on it: there is one index, and rows are many.
    large = json.dumps({"dataframe_split": {**split, "data": many, "index": [0]}}).encode()
    assert served.ask(large).status_code == 400
    (worker,) = served.workers()
    before = worker.memory_info().rss
    for _ in range(20):
        served.ask(large)
    end = time.monotonic() + 30  # it is handed back once the answer has gone out
    while worker.memory_info().rss - before > 40 * MIB and time.monotonic() < end:
        time.sleep(0.1)
    assert worker.memory_info().rss - before < 40 * MIB


def test_a_killed_worker_comes_back(served, cells):
    (worker,) = served.workers()
    os.kill(worker.pid, signal.SIGSTOP)
    time.sleep(1.5)  # the supervisor now waits for its answer, a minute at most
    os.kill(worker.pid, signal.SIGKILL)
    end = time.monotonic() + 30
    others: list[psutil.Process] = []
    while not others and time.monotonic() < end:
        others = [one for one in served.workers() if one.pid != worker.pid]
        time.sleep(0.1)
    assert others
    served.wait()
    assert served.ask(body(cells)).status_code == 200


def test_where_a_token_is_asked_for_nobody_else_is_answered(served, cells):
    server = Served(served.line, "--token-file", "token")
    try:
        for given in ({}, {"Authorization": "Bearer " + "b" * 32}, {"Authorization": TOKEN}):
            answer = server.ask(body(cells), **given)
            assert answer.status_code == 401
            assert TOKEN not in answer.text
        assert server.ask(body(cells), Authorization=f"Bearer {TOKEN}").status_code == 200
        assert TOKEN not in server.log.read_text()
    finally:
        server.end()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("9",), "no version '9'"),
        (("--token-file", "nowhere"), "cannot read the token in nowhere"),
        (("--token-file", "short"), "one token of at least 16"),
    ],
)
def test_what_cannot_be_served_is_refused(line, options, said):
    (line.root / "short").write_text("abc")
    assert said in line.run("canal", "serve", *options, expect=1)


def test_a_port_that_is_taken_is_told(line):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        assert f"cannot listen at 127.0.0.1:{port}" in line.run(
            "canal", "serve", "--port", str(port), expect=1
        )


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        pytest.param("mlflow.pyfunc", "3 in all (ModuleNotFoundError: ", marks=pytest.mark.chaos),
        ("canal.app.serving", "1 in all (each ended "),
    ],
)
def test_a_worker_that_cannot_load_the_model_is_not_tried_for_ever(line, tmp_path, missing, said):
    """The supervisor restarted it twice a second, and said nothing but that a child had died."""
    broken = f"import sys\nif 'spawn_main' in str(sys.orig_argv):\n    sys.modules[{missing!r}] = None\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    done = subprocess.run(
        [sys.executable, "-m", "canal.cli", "serve", "--port", port],
        cwd=line.root, env=env | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"is not served: its workers ended before they had loaded it, {said}" in last


def test_a_version_that_cannot_be_proven_is_not_served(line):
    for path in line.root.glob("mlartifacts/models/*/artifacts/model/labels.json"):
        path.write_text(path.read_text() + " ")
    said = line.run("canal", "serve", expect=1)
    assert "is not served" in said
    assert "canal audit" in said


@pytest.mark.parametrize(
    ("sent", "wrong"),
    [
        ({"dataframe_records": [{"A": 1, "B": 0.5}]}, ""),
        ({"dataframe_records": [{"A": 1}, {"A": False}]}, "cell 1"),
        ({"dataframe_split": {"data": [[1, 2]]}, "params": {"probabilities": True}}, ""),
        ({"dataframe_split": {"data": "true"}}, ""),
        ({"dataframe_split": [True]}, ""),
    ],
)
def test_truth_values_are_no_numbers(sent, wrong):
    found = body_error(json.dumps(sent).encode())
    assert (found is not None) == bool(wrong)
    assert not wrong or wrong in found[1]
