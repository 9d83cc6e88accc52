"""A team's registry as in examples/server: what an account may not do, and where secrets are not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from mlflow.store.artifact import s3_artifact_repo

from canal.core.errors import RegistryError
from tests.support.servers import PASSWORD, USER, answering_expired

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("backends")]

SECRET = "hunter2-secret"


def refused(act) -> str:
    """Return the one message of an act that canal refuses, which holds no secret."""
    with pytest.raises(RegistryError) as told:
        act()
    text = str(told.value)
    assert len(text.splitlines()) == 1
    secrets = [SECRET, PASSWORD, os.environ.get("AWS_SECRET_ACCESS_KEY", SECRET)]
    assert not [one for one in secrets if one in text], text
    return text


class TestAccountsOfTheServer:
    """basic_auth.ini gives who has an account the right to read, and asks for more by name."""

    @pytest.fixture
    def team(self, use, new_folder):
        server = use("team")
        folder = new_folder("ada")
        folder.sync()
        return server, folder

    def test_a_reader_reads_and_is_told_what_it_lacks(self, team, new_folder, monkeypatch):
        server, ada = team
        requests.post(
            f"{server.uri}/api/2.0/mlflow/users/create",
            json={"username": "reader", "password": SECRET},
            auth=(USER, PASSWORD),
            timeout=60,
        ).raise_for_status()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
        assert [one.number for one in ada.project().store.versions()] == [1, 2]
        text = refused(lambda: ada.promote(1))
        assert "the account 'reader' may not change this: ask whoever looks after the server for EDIT" in text
        assert ada.ledger()[-1].kind == "register"
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        ada.promote(1)

    def test_a_wrong_account_is_told_so(self, team, monkeypatch):
        _, ada = team
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
        assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refused(lambda: ada.promote(1))
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refused(lambda: ada.promote(1))


class TestAccountsOfTheObjectStore:
    """Where each machine reaches the object store itself, its account decides."""

    @pytest.fixture
    def direct(self, use, new_folder, monkeypatch):
        """Keep no account: a process of canal has one all its life, for which libraries keep a client."""
        server = use("objects")
        keeps = s3_artifact_repo._cached_get_s3_client

        def anew(*arguments, **options):
            monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
            return keeps.__wrapped__(*arguments, **options)

        monkeypatch.setattr(s3_artifact_repo, keeps.__name__, anew)
        return server, new_folder("ada")

    def test_one_that_may_only_read_registers_nothing_and_fetches(self, direct, new_folder, monkeypatch):
        server, ada = direct
        with monkeypatch.context() as patch:
            for name, value in server.other.items():
                patch.setenv(name, value)
            text = refused(ada.register)
            assert "the account of the object store may not write there (AccessDenied for PutObject)" in text
        assert ada.ledger() == []
        ada.register()
        for name, value in server.other.items():
            monkeypatch.setenv(name, value)
        ben = new_folder("ben")
        ben.canal("ledger", "--catch-up")
        store = ben.project().store
        assert (store.artifacts(store.version("2")) / "key.json").is_file()

    @pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
    def test_a_wrong_one(self, direct, new_folder, monkeypatch, name):
        _, ada = direct
        with monkeypatch.context() as patch:
            patch.setenv(name, SECRET)
            assert "does not know the account, or its secret is wrong" in refused(ada.register)
        ada.register()
        monkeypatch.setenv(name, SECRET)
        ben = new_folder("ben").project().store
        text = refused(lambda: ben.artifacts(ben.version("2")))
        assert "cannot be downloaded" in text
        assert "secret is wrong" in text

    def test_none(self, direct, monkeypatch, tmp_path):
        _, ada = direct
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        assert "the object store wants an account, and none is set: set AWS_ACCESS_KEY_ID" in refused(
            ada.register
        )

    def test_one_that_has_expired(self, direct, monkeypatch):
        _, ada = direct
        monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
        with answering_expired() as endpoint:
            for name in ("MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL"):
                monkeypatch.setenv(name, endpoint)
            text = refused(ada.register)
        assert "has expired (ExpiredToken): log in again, or renew AWS_ACCESS_KEY_ID" in text

    def test_one_that_does_not_answer(self, direct, monkeypatch):
        _, ada = direct
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "the object store does not answer" in refused(ada.register)


def ran(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def dvc(*arguments: str, cwd: Path) -> str:
    return ran(sys.executable, "-m", "dvc", *arguments, cwd=cwd)


def test_dvc_keeps_its_files_in_the_same_store(use, tmp_path):
    """Who clones the project fetches by the same account, which stands in no file of it."""
    use("objects")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    ran("git", "init", "--quiet", cwd=one)
    dvc("init", "--quiet", cwd=one)
    dvc("remote", "add", "--default", "lab", "s3://lab/dvc", cwd=one)
    dvc("remote", "modify", "lab", "endpointurl", os.environ["AWS_ENDPOINT_URL"], cwd=one)
    (one / "cells.h5ad").write_bytes(os.urandom(100_000))
    dvc("add", "--quiet", "cells.h5ad", cwd=one)
    dvc("push", "--quiet", cwd=one)
    ran("git", "add", "--all", cwd=one)
    ran("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "x", cwd=one)
    ran("git", "clone", "--quiet", str(one), str(two), cwd=tmp_path)
    dvc("pull", "--quiet", cwd=two)
    assert (two / "cells.h5ad").read_bytes() == (one / "cells.h5ad").read_bytes()
    assert not holding(tmp_path, [os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]])


def holding(folder: Path, secrets: list[str]) -> list[Path]:
    """Return the files below a folder that hold one of the secrets, as it is or as an address quotes it."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(one.encode() in path.read_bytes() for one in secrets)
    ]


@pytest.mark.parametrize("kind", ["team", "objects"])
def test_secrets_are_in_no_record_log_ledger_or_tag(use, new_folder, tmp_path, monkeypatch, kind):
    """A version's whole life, then every file, every table and every object is searched."""
    import boto3

    server = use(kind)
    folder = new_folder("ada")
    folder.sync()
    folder.promote(1)
    folder.promote(2)
    said, moved = "", ["rollback", "--by", "Ada", "--why", "a mistake"]
    for command in (moved, ["versions"], ["ledger"], ["show", "2"], ["doctor"], ["status"]):
        done = subprocess.run(
            [sys.executable, "-m", "canal.cli", *command, "--root", str(folder.root)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode in (0, 1, 3), done.stderr
        assert done.returncode == 0 or command[0] in ("doctor", "status"), done.stderr
        said += done.stdout + done.stderr
    objects = json.loads((Path(server.log).parent / "s3.json").read_text())
    secrets = [PASSWORD, PASSWORD.replace("/", "%2F").replace("@", "%40")]
    secrets.append(objects["env"]["AWS_SECRET_ACCESS_KEY"])
    assert not [one for one in secrets if one in said]
    assert holding(folder.root, secrets) == []
    postgres = json.loads((Path(server.log).parent / "postgres.json").read_text())
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    dump = ["pg_dumpall", "--no-password", "--dbname", postgres["uri"].replace("+psycopg2", "")]
    (tmp_path / "tables.sql").write_text(ran(*dump, cwd=tmp_path))
    assert "canal.ledger.1" in (tmp_path / "tables.sql").read_text()
    client = boto3.client(
        "s3",
        endpoint_url=objects["env"]["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=objects["env"]["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=objects["env"]["AWS_SECRET_ACCESS_KEY"],
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="lab")
    keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
    assert len(keys) > 10
    for number, key in enumerate(keys):
        client.download_file("lab", key, str(tmp_path / f"object-{number}"))
    for log in Path(server.log).parent.glob("*.log"):
        shutil.copyfile(log, tmp_path / log.name)
    assert holding(tmp_path, secrets) == []
