"""Hooks: a real command and a real server are told of decisions; nothing they do touches the decision."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from canal.app import hooks
from canal.app.hooks import Event, announce
from canal.app.project import Project
from canal.config.layout import Layout
from canal.core.errors import ConfigError
from canal.registry.ledger.ledger import Draft
from tests.faults.forgeries import following
from tests.support.cells import make_config

ENTRY = following([], Draft("promote", "canal-annotator", 2, "k", "r", "A", "reviewed", {"champion": 2}))
EVENT = Event("promote", "A. Person", "reviewed", "second", [ENTRY])
QUICK = {"timeout_s": 5.0, "pause_s": 0.01}


class Server(ThreadingHTTPServer):
    """A server that notes what it is sent, and answers with the statuses given, the last one for good."""

    daemon_threads = True

    def __init__(self) -> None:
        self.statuses: list[Any] = [204]
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/told"


class Handler(BaseHTTPRequestHandler):
    """One request: noted, then answered; the status ``drip`` is a status line that comes letter by letter."""

    server: Server

    def do_POST(self) -> None:
        statuses = self.server.statuses
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers), json.loads(body)))
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if status == "drip":
            for letter in b"HTTP/1.1 200 OK":
                self.wfile.write(bytes([letter]))
                time.sleep(0.3)
            return
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield serving
        serving.shutdown()


def project(root: Path, *declared: dict[str, object]) -> Project:
    """Return a project whose params.yaml declares these hooks of promotions."""
    return Project(Layout(root), make_config(hooks=[{"on": ["promote"], **QUICK, **one} for one in declared]))


def log(root: Path) -> list[dict[str, object]]:
    path = root / "hooks.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def outcomes(root: Path) -> list[tuple[object, ...]]:
    return [(one["attempt"], one["outcome"], one["detail"]) for one in log(root)]


def script(root: Path, text: str) -> list[str]:
    """Write a command that is Python code, and return it."""
    (root / "hook.py").write_text(text)
    return [sys.executable, "hook.py"]


KEEP = "import os, sys; open('told.json', 'w').write(sys.stdin.read()); open('where', 'w').write(os.getcwd())"


def test_a_command_is_handed_the_decision_in_the_project_s_folder(tmp_path, capsys):
    announce(project(tmp_path, {"command": script(tmp_path, KEEP)}), EVENT)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told == {
        "format": 1, "action": "promote", "model": "canal-annotator", "version": 2, "stage": "second",
        "alias": "champion", "aliases": {"champion": 2}, "by": "A. Person", "why": "reviewed",
        "entries": [ENTRY.document],
    }  # fmt: skip
    assert (tmp_path / "where").read_text() == str(tmp_path)
    (line,) = log(tmp_path)
    assert (line["action"], line["version"], line["entry"], line["outcome"]) == ("promote", 2, 1, "done")
    assert "told of the promotion" in capsys.readouterr().err


def test_an_address_is_sent_the_decision_with_a_token_of_the_environment(tmp_path, server, monkeypatch):
    monkeypatch.setenv("CI_TOKEN", "secret-token")
    announce(project(tmp_path, {"url": server.url, "token_from": "CI_TOKEN"}), EVENT)
    ((path, headers, body),) = server.seen
    assert (path, headers["Content-Type"]) == ("/told", "application/json")
    assert headers["Authorization"] == "Bearer secret-token"
    assert body == EVENT.to_json()
    assert outcomes(tmp_path) == [(1, "done", "HTTP 204")]
    assert "secret" not in (tmp_path / "hooks.jsonl").read_text()


def test_what_fails_is_tried_again_and_each_attempt_is_on_record(tmp_path, server, capsys):
    server.statuses = [500, 503, 200]
    announce(project(tmp_path, {"url": server.url}), EVENT)
    tried = [(1, "failed", "HTTP 500"), (2, "failed", "HTTP 503"), (3, "done", "HTTP 200")]
    assert outcomes(tmp_path) == tried
    server.statuses = [500]
    announce(project(tmp_path, {"url": server.url, "attempts": 2}), EVENT)
    assert outcomes(tmp_path)[3:] == [(1, "failed", "HTTP 500"), (2, "failed", "HTTP 500")]
    said = capsys.readouterr().err
    assert "not told of the promotion, which is complete and stays: HTTP 500 (attempt 2 of 2" in said


def test_an_address_in_the_environment_is_shown_by_its_name(tmp_path, server, monkeypatch, capsys):
    named = project(tmp_path, {"url_from": "CHAT"})
    monkeypatch.setenv("CHAT", f"{server.url}/T0/B0/verysecret")
    announce(named, EVENT)
    assert server.seen[0][0] == "/told/T0/B0/verysecret"
    for address in ("http://127.0.0.1:9/T0/B0/verysecret", "file:///etc/verysecret"):
        monkeypatch.setenv("CHAT", address)
        announce(named, EVENT)
    monkeypatch.delenv("CHAT")
    announce(named, EVENT)
    assert {one["hook"] for one in log(tmp_path)} == {"$CHAT"}
    assert outcomes(tmp_path)[1:] == [
        *((number, "failed", "no connection, or none that holds (ConnectionError)") for number in (1, 2, 3)),
        (1, "failed", "the variable CHAT holds no http(s) address"),
        (1, "failed", "the environment has no variable CHAT"),
    ]
    assert "verysecret" not in (tmp_path / "hooks.jsonl").read_text() + capsys.readouterr().err


def test_a_redirect_is_not_followed_with_the_token(tmp_path, server, monkeypatch):
    monkeypatch.setenv("CI_TOKEN", "secret-token")
    server.statuses = [302, 200]
    announce(project(tmp_path, {"url": server.url, "token_from": "CI_TOKEN", "attempts": 1}), EVENT)
    assert [path for path, *_ in server.seen] == ["/told"]
    assert outcomes(tmp_path) == [(1, "failed", "HTTP 302")]


@pytest.mark.parametrize("kind", ["command", "grandchild", "server"])
def test_what_hangs_is_ended_in_time(tmp_path, server, kind):
    server.statuses = ["drip"]
    sleeping = f"import time; time.sleep(60)  # {tmp_path.name}"  # other tests have sleepers, too
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleeping!r}]).wait()"
    place = {"url": server.url}
    if kind != "server":
        place = {"command": script(tmp_path, sleeping if kind == "command" else child)}
    began = time.monotonic()
    announce(project(tmp_path, {**place, "timeout_s": 0.5, "attempts": 2}), EVENT)
    assert time.monotonic() - began < 5
    assert [one[:2] for one in outcomes(tmp_path)] == [(1, "failed"), (2, "failed")]
    assert "within 0.5 s" in str(log(tmp_path)[0]["detail"])
    while time.monotonic() - began < 10:  # a busy machine takes a moment to bury what was killed
        words = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
        left = [one for one in words if sleeping in one or f"{tmp_path}/hook.py" in one]
        if not left:
            break
    assert not left


def test_a_command_that_fails_is_told_without_what_it_said_and_one_that_is_not_there_is_tried_once(
    tmp_path, capsys
):
    failing = script(tmp_path, "import sys; sys.exit('token=s3cret')")
    announce(project(tmp_path, {"command": failing, "attempts": 1}, {"command": ["no-such-program"]}), EVENT)
    assert outcomes(tmp_path)[0] == (1, "failed", "exit code 1")
    said = capsys.readouterr().err
    assert "exit code 1" in said
    assert "s3cret" not in said
    ((attempt, outcome, detail),) = outcomes(tmp_path)[1:]
    assert (attempt, outcome) == (1, "failed")
    assert "it cannot be started" in str(detail)


def test_only_hooks_of_the_action_run_and_no_shell_reads_the_words(tmp_path):
    run = script(tmp_path, "import sys; open('words', 'w').write(repr(sys.argv[1:]))")
    own = {"command": [*run, "$HOME; touch x", "`id`"]}
    announce(project(tmp_path, own, {"on": ["retire", "rollback"], "command": ["no-such-program"]}), EVENT)
    assert (tmp_path / "words").read_text() == "['$HOME; touch x', '`id`']"
    assert not (tmp_path / "x").exists()
    assert len(log(tmp_path)) == 1


def test_a_log_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "hooks.jsonl").mkdir()
    announce(project(tmp_path, {"command": script(tmp_path, KEEP)}), EVENT)
    assert (tmp_path / "told.json").is_file()
    assert "hooks.jsonl could not be written" in capsys.readouterr().err


def test_ctrl_c_ends_a_hook_and_is_on_record(tmp_path, monkeypatch):
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(hooks, "_command", interrupted)
    with pytest.raises(KeyboardInterrupt):
        announce(project(tmp_path, {"command": ["true"]}), EVENT)
    assert outcomes(tmp_path) == [(1, "interrupted", "")]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "give exactly one of command, url and url_from; found none"),
        ({"command": ["x"], "url": "https://x.org"}, "found command, url"),
        ({"command": []}, "hooks.0.command"),
        ({"command": "touch x"}, "hooks.0.command"),
        ({"url": "file:///etc/passwd"}, "hooks.0.url"),
        ({"url": "https://me:pw@x.org"}, "holds a secret"),
        ({"url": "https://x.org/?token=abc"}, "holds a secret"),
        ({"command": ["x"], "token_from": "T"}, "token_from is for an address"),
        ({"url": "https://x.org", "on": ["erase"]}, "hooks.0.on"),
        ({"url": "https://x.org", "on": []}, "hooks.0.on"),
        ({"url": "https://x.org", "token": "abc"}, "hooks.0.token"),
        ({"url_from": "A B"}, "hooks.0.url_from"),
        ({"url": "https://x.org", "attempts": 0}, "hooks.0.attempts"),
    ],
)
def test_hooks_that_are_not_declared_right_are_refused_by_path(wrong, said):
    with pytest.raises(ConfigError, match="hooks") as refused:
        make_config(hooks=[{"on": ["promote"], **wrong}])
    assert said in str(refused.value)
    assert "pw" not in str(refused.value)
    assert "abc" not in str(refused.value)
