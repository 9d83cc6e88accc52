"""A store that does not answer, or refuses: one clear message in bounded time, and never a password."""

import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from canal.core.errors import RegistryError
from canal.core.packages import MissingPackageError
from canal.registry.store import connection as address
from canal.registry.store.store import Store
from tests.support.installed import messages
from tests.support.servers import PASSWORD, why_not

pytestmark = pytest.mark.xdist_group("backends")  # servers and databases are made once

SECRET = "hunter2-secret"


def store(folder):
    return folder.project().store


@pytest.fixture
def closed_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield one.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_nobody_there(new_folder, monkeypatch, closed_port, scheme):
    folder = new_folder("a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://ada:{SECRET}@127.0.0.1:{closed_port}/x")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "canal.cli", "versions", "--root", str(folder.root)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert time.monotonic() - began < 60
    assert done.returncode == 1
    (line,) = messages(done.stderr)
    assert line.startswith("canal: ")
    assert f"{scheme}://ada:***@127.0.0.1:{closed_port}" in done.stderr
    assert "MLFLOW_TRACKING_URI" in done.stderr
    assert SECRET not in done.stderr + done.stdout


def test_a_server_that_never_answers(new_folder, monkeypatch):
    monkeypatch.setattr(address, "_ANSWER_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RegistryError, match=r"does not answer \(no answer in time\)"):
            store(new_folder("a")).versions()


def test_a_database_whose_driver_is_missing_names_the_extra(new_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg2://ada:{SECRET}@127.0.0.1:1/x")
    with pytest.raises(
        MissingPackageError, match=r'driver: pip install "canal-cells\[postgres\]"'
    ) as refused:
        store(new_folder("a")).versions()
    assert SECRET not in str(refused.value)


class Stub(BaseHTTPRequestHandler):
    """A server that knows one experiment and answers no more after that."""

    def do_GET(self):
        experiment = {
            "experiment_id": "1",
            "name": "x",
            "lifecycle_stage": "active",
            "artifact_location": "x",
        }
        body = json.dumps({"experiment": experiment}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_server_that_goes_away(new_folder, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:{SECRET}@127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    opened = store(new_folder("a"))
    assert opened.client
    server.shutdown()
    server.server_close()
    moves = (
        opened.versions,
        lambda: opened.model_tags("x"),
        lambda: opened.point("x", "champion", 1),
        lambda: opened.tag("x", 1, "a", "b"),
    )
    for move in moves:
        with pytest.raises(RegistryError, match=r"http://ada:\*\*\*@127.0.0.1.* refused: ") as refused:
            move()
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize("kind", ["accounts", "postgres"])
def test_a_wrong_password(use, new_folder, monkeypatch, kind):
    server = use(kind)
    if kind == "accounts":
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    else:
        monkeypatch.setenv(
            "MLFLOW_TRACKING_URI", f"postgresql+psycopg2://ada:{SECRET}@127.0.0.1:{server.port}/x"
        )
    began = time.monotonic()
    with pytest.raises(
        RegistryError, match=r"MLFLOW_TRACKING_PASSWORD|password authentication failed"
    ) as said:
        store(new_folder("a")).versions()
    assert time.monotonic() - began < 30
    assert SECRET not in str(said.value)


def test_no_account_at_all(use, new_folder, monkeypatch):
    use("accounts")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    with pytest.raises(RegistryError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        store(new_folder("a")).versions()


needs_postgres = pytest.mark.skipif(why_not("postgres") is not None, reason=str(why_not("postgres")))


@pytest.fixture
def database(use):
    """Give a connection to PostgreSQL, of a person who looks after it."""
    import psycopg2

    connection = psycopg2.connect(use("postgres").uri.replace("+psycopg2", ""))
    connection.autocommit = True
    yield connection.cursor()
    connection.close()


@needs_postgres
def test_a_store_is_opened_by_one_at_a_time(database, new_folder, monkeypatch):
    """Also by folders on other machines, which no lock of a file keeps out."""
    database.execute("SELECT pg_advisory_lock(%s)", [address._OPENING])
    with monkeypatch.context() as patch:
        patch.setattr("canal.registry.store.connection._PATIENCE_S", 1)
        with pytest.raises(
            RegistryError, match=r"another process has been opening .* for 1 s .*lock timeout"
        ):
            store(new_folder("a")).versions()
    opened = []
    other = threading.Thread(target=lambda: opened.append(store(new_folder("b")).versions()))
    other.start()
    other.join(1)
    assert opened == []
    database.execute("SELECT pg_advisory_unlock(%s)", [address._OPENING])
    other.join(60)
    assert opened == [[]]
    database.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    assert database.fetchone() == (0,)


@needs_postgres
def test_an_account_that_may_not_make_tables(database, new_folder, monkeypatch, use):
    uri = use("postgres").uri
    database.execute(f"CREATE ROLE reader LOGIN PASSWORD '{SECRET}'")
    database.execute("CREATE DATABASE bare")
    there = uri.rpartition("@")[2].replace("/postgres", "/bare")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg2://reader:{SECRET}@{there}")
    with pytest.raises(RegistryError, match="cannot open the MLflow store .* permission denied") as said:
        store(new_folder("a")).versions()
    assert SECRET not in str(said.value)


@needs_postgres
def test_the_account_of_a_database_stays_out_of_what_people_see(use, new_folder):
    server = use("postgres")
    opened = store(new_folder("a"))
    assert opened.versions() == []
    assert opened.shown == f"postgresql+psycopg2://admin:***@127.0.0.1:{server.port}/postgres"
    assert PASSWORD not in opened.error_line(ValueError(f"bad {server.uri} or {PASSWORD}"))


def test_only_the_project_s_own_file_is_its_alone(new_folder, monkeypatch, tmp_path):
    folder = new_folder("a")
    own = f"sqlite:///{folder.root / 'mlflow.db'}"
    for uri, shared in (
        (None, False),
        (own, False),
        (f"sqlite:///{tmp_path / 'x.db'}", True),
        ("http://x", True),
    ):
        if uri:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert store(folder).remote is shared


def test_every_page_of_versions_is_read(new_folder, monkeypatch, use):
    use("sqlite")
    folder = new_folder("a")
    folder.register()
    monkeypatch.setattr("canal.registry.store.store._PAGE", 1)
    monkeypatch.setattr(Store, "database", None)
    assert [version.number for version in store(folder).versions()] == [1, 2]
