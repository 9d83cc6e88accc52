"""What a test of a back end stands on: the store's address, and project folders made by hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.folders import Folder, make_folder
from tests.support.registered import make_models
from tests.support.servers import Server, new_database, shared, why_not

KINDS = ("sqlite", "server", "accounts", "postgres")
EXTRA = ("team", "objects")
"""Kinds that tests of `make chaos` alone ask for: they start by themselves."""


@pytest.fixture(scope="session")
def servers(tmp_path_factory, empty_database) -> Callable[[], Callable[[str], Server]]:
    """Start every server that this machine has when the first is asked for: they get ready together."""
    base = _place(tmp_path_factory)

    @cache
    def started() -> Callable[[str], Server]:
        found = {kind: shared(kind, base, empty_database) for kind in KINDS[1:] if why_not(kind) is None}

        @cache
        def ready(kind: str) -> Server:
            found[kind].wait()
            return found[kind]

        return ready

    return started


def _place(tmp_path_factory) -> Path:
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "servers"


def _extra(kind: str, base: Path, database: Path) -> Server:
    """Start what examples/server describes, or what it stands on, for clients that reach that themselves."""
    if kind == "team":
        server = shared(kind, base, database)
        server.wait()
        return server
    tables, objects = (shared(one, base, database) for one in ("postgres", "s3"))
    tables.wait()
    objects.wait()
    env = {**objects.env, "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"{objects.uri}/direct"}
    return replace(tables, uri=new_database(tables), env=env, other=objects.other)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """Give a database that MLflow made, which takes it seconds."""
    from mlflow import MlflowClient

    from canal.runtime.startup import quiet_libraries

    quiet_libraries()
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def use(servers, empty_database, monkeypatch, tmp_path, tmp_path_factory) -> Callable[[str], Server | None]:
    """Set the environment for a store of some kind; sqlite is a file that several project folders share."""

    def choose(kind: str) -> Server | None:
        if kind in EXTRA:
            assert why_not(kind) is None, why_not(kind)
            server = _extra(kind, _place(tmp_path_factory), empty_database)
            for name, value in {"MLFLOW_TRACKING_URI": server.uri, **server.env}.items():
                monkeypatch.setenv(name, value)
            return server
        ready = servers()  # they start while the tests on sqlite, which are first, run
        if kind == "sqlite":
            shutil.copyfile(empty_database, tmp_path / "shared.db")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
            return None
        if reason := why_not(kind):
            pytest.skip(reason)
        server = ready(kind)
        for name, value in {"MLFLOW_TRACKING_URI": server.uri, **server.env}.items():
            monkeypatch.setenv(name, value)
        return server

    return choose


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Give a backbone and two stages, made by hand."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def new_folder(models, tmp_path, request) -> Callable[[str], Folder]:
    """Make project folders that share the names of their registered models, which no other test has."""
    name = f"t{sha256(request.node.nodeid.encode()).hexdigest()[:12]}"

    def make(place: str) -> Folder:
        return make_folder(models, tmp_path / place, name)

    return make
