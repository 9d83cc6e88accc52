"""Real servers for tests, each started once for all pytest processes; they end with pytest (`guard`)."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

from filelock import FileLock

EXAMPLES = Path(__file__).parents[2] / "examples" / "server"
GUARD = Path(__file__).with_name("guard.py")
USER, PASSWORD = "admin", "correct/horse@1"
_PATIENCE_S = 240
_ACCOUNTS = f"""[mlflow]
default_permission = READ
database_uri = sqlite:///{{database}}
admin_username = {USER}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 3600
"""


@dataclass(frozen=True)
class Server:
    """Where a server is, what a client's environment needs, its folder (while it runs), and what it says."""

    uri: str
    port: int
    folder: str
    log: str
    env: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    """What only some tests need, by their own names."""

    def wait(self) -> None:
        """Return when the server answers; a server that died is an error that shows what it said."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end and Path(self.folder).is_dir():
            if self._answers():
                return
            time.sleep(0.1)
        raise AssertionError(f"{self.uri} never answered:\n{Path(self.log).read_text()[-4000:]}")

    def _answers(self) -> bool:
        try:
            if self.uri.startswith("s3"):
                return _listens(self.port)  # a question would count among those that need no account
            if self.uri.startswith("http"):
                with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                    return answer.status == 200
            return _postgres_answers(self.uri)
        except OSError:
            return False


class _Expired(BaseHTTPRequestHandler):
    """Answers as S3 does where a session has expired: moto's sessions do not expire."""

    def answer(self) -> None:
        body = (
            b"<?xml version='1.0'?><Error><Code>ExpiredToken</Code>"
            b"<Message>The provided token has expired.</Message></Error>"
        )
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = answer  # noqa: N815 (what the library calls)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering_expired() -> Iterator[str]:
    """Yield the address of an object store that says of every account that it has expired."""
    server = HTTPServer(("127.0.0.1", 0), _Expired)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def shared(kind: str, base: Path, database: Path) -> Server:
    """Return the server of a kind, started by whichever process asks first; it may not answer yet.

    MLflow's servers begin with a copy of ``database``, an empty one: to make their own takes them seconds.
    """
    base.mkdir(parents=True, exist_ok=True)
    state = base / f"{kind}.json"
    with FileLock(f"{state}.lock"):
        if not state.is_file():
            server = _STARTERS[kind](base / f"{kind}.log", database)
            state.write_text(json.dumps(asdict(server)))
        return Server(**json.loads(state.read_text()))


def postgres(base: Path) -> Server:
    """Return a PostgreSQL that answers, for tests that are no tests without one.

    Raises
    ------
    AssertionError
        Saying how to install it.
    """
    reason = why_not("postgres")
    assert reason is None, reason
    server = shared("postgres", base, base)
    server.wait()
    return server


def new_database(server: Server) -> str:
    """Make an empty database in a PostgreSQL server; return its address."""
    import psycopg2

    name = f"d{token_hex(8)}"
    connection = psycopg2.connect(server.uri.replace("+psycopg2", ""))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
    finally:
        connection.close()
    return f"{server.uri.rpartition('/')[0]}/{name}"


def why_not(kind: str) -> str | None:
    """Return why a kind of server cannot be started on this machine, or None."""
    if kind in ("postgres", "team", "objects") and _postgres_programs() is None:
        return "PostgreSQL is not installed here (Debian: apt-get install postgresql)"
    return None


def _start_plain(log: Path, database: Path) -> Server:
    return _start_mlflow(log, database, {}, {})


def _start_with_accounts(log: Path, database: Path) -> Server:
    client = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    config = log.with_suffix(".ini")
    config.write_text(_ACCOUNTS.format(database=log.with_suffix(".db")))
    server = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for tests",
    }
    return _start_mlflow(log, database, server, client, "--app-name", "basic-auth")


def _start_mlflow(
    log: Path, database: Path, env: dict[str, str], client: dict[str, str], *options: str
) -> Server:
    folder, port = log.with_suffix(""), _free_port()
    folder.mkdir()
    shutil.copyfile(database, folder / "server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), *options]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    _run_guarded(command, folder, log, quiet | env)
    return Server(f"http://127.0.0.1:{port}", port, str(folder), str(log), client)


def _start_s3(log: Path, _database: Path) -> Server:
    """Start an object store with two accounts, one of which may only read, checked as S3 checks them.

    moto, from PyPI: it verifies signatures and policies (other servers of that kind take any account), needs
    no container, and keeps everything in memory.
    """
    folder, port = log.with_suffix(""), _free_port()
    folder.mkdir()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    _run_guarded(command, folder, log, {"INITIAL_NO_AUTH_ACTION_COUNT": "6"})  # `_make_accounts` sends six
    server = Server("s3://lab", port, str(folder), str(log))
    server.wait()
    endpoint = f"http://127.0.0.1:{port}"
    writer, reader = _make_accounts(endpoint)
    here = {
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    _client("s3", endpoint, writer).create_bucket(Bucket="lab")
    return replace(server, env=here | writer, other=reader)


def _make_accounts(endpoint: str) -> list[dict[str, str]]:
    may = {"writer": ["s3:*"], "reader": ["s3:Get*", "s3:List*"]}
    client = _client("iam", endpoint, {"AWS_ACCESS_KEY_ID": "first", "AWS_SECRET_ACCESS_KEY": "first"})
    made = []
    for name, actions in may.items():
        client.create_user(UserName=name)
        statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        client.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy)
        key = client.create_access_key(UserName=name)["AccessKey"]
        made.append(
            {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        )
    return made


def _client(service: str, endpoint: str, account: dict[str, str]) -> Any:
    import boto3

    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=account["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=account["AWS_SECRET_ACCESS_KEY"],
    )


def _start_team(log: Path, database: Path) -> Server:
    """Start what examples/server/ describes: accounts, PostgreSQL and an object store behind one server."""
    postgres, objects = (shared(kind, log.parent, database) for kind in ("postgres", "s3"))
    postgres.wait()
    folder, port = log.with_suffix(""), _free_port()
    folder.mkdir()
    address = re.sub(r":[^:@]*@", "@", postgres.uri).rpartition("/")[0]
    tables, accounts = (new_database(postgres).rpartition("/")[2] for _ in range(2))
    config = folder / "basic_auth.ini"
    text = (EXAMPLES / "basic_auth.ini").read_text()
    config.write_text(re.sub(r"(?m)^database_uri = .*", f"database_uri = {address}/{accounts}", text))
    env = {
        "MLFLOW_BACKEND_STORE_URI": f"{address}/{tables}",
        "PGPASSWORD": PASSWORD,
        "MLFLOW_ARTIFACTS_DESTINATION": f"{objects.uri}/mlflow",
        **objects.env,
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for tests",
        "CANAL_SERVER_PORT": str(port),
        "CANAL_SERVER_WORKERS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    _run_guarded([str(EXAMPLES / "mlflow.sh")], folder, log, env)
    client = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    return Server(f"http://127.0.0.1:{port}", port, str(folder), str(log), client, {"database": tables})


def _start_postgres(log: Path, _database: Path) -> Server:
    """Start PostgreSQL, which refuses to be root, in a folder outside of pytest's, which are root's alone."""
    programs, port = _postgres_programs(), _free_port()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="canal-postgres-"))
    secret, cluster = folder / "password", folder / "cluster"
    secret.write_text(PASSWORD)
    who = []
    if os.geteuid() == 0:
        who = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        for path in (folder, secret):
            shutil.chown(path, "postgres", "postgres")
    init = [*who, str(programs / "initdb"), "--pgdata", str(cluster), "--username", USER, "--no-sync"]
    init += ["--auth", "scram-sha-256", "--pwfile", str(secret), "--encoding", "UTF8", "--locale", "C"]
    subprocess.run(init, cwd=folder, check=True, capture_output=True)
    command = [*who, str(programs / "postgres"), "-D", str(cluster), "-p", str(port)]
    for setting in ("listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"):
        command += ["-c", setting]
    _run_guarded(command, folder, log, {})
    uri = f"postgresql+psycopg2://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
    return Server(uri, port, str(folder), str(log))


_STARTERS = {
    "server": _start_plain,
    "accounts": _start_with_accounts,
    "postgres": _start_postgres,
    "s3": _start_s3,
    "team": _start_team,
}


def _run_guarded(command: list[str], folder: Path, log: Path, env: dict[str, str]) -> None:
    """Start a command in its folder under `guard`, which ends it with pytest."""
    pytest = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    foreign = ("MLFLOW_", "PG", "AWS_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with log.open("w") as stream:
        subprocess.Popen(
            [sys.executable, str(GUARD), str(pytest), str(folder), *command],
            cwd=folder,
            env=plain | env,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _postgres_answers(uri: str) -> bool:
    import psycopg2

    try:
        psycopg2.connect(uri.replace("+psycopg2", ""), connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
