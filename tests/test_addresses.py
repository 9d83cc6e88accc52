"""Addresses are shown without their passwords, however odd these are."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.core.errors import shown_address, without_secrets

SECRETS = st.text("abcXYZ019:/@?#&=%+ -_.é", min_size=4, max_size=20)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://ada:pw@host/x", "https://ada:***@host/x"),
        ("postgresql://ada@host/db", "postgresql://ada@host/db"),
        ("postgresql://:pw@host/db", "postgresql://:***@host/db"),
        ("postgresql://ada:p@ss/w:rd@host:5432/db", "postgresql://ada:***@host:5432/db"),
        ("postgresql://host/db?user=ada&password=pw&x=1", "postgresql://host/db?user=ada&password=***&x=1"),
        ("postgresql://a:b@host/db?sslpassword=pw", "postgresql://a:***@host/db?sslpassword=***"),
        ("ada:pw@host:5000", "ada:***@host:5000"),
        ("//ada:pw@host/db", "//ada:***@host/db"),
        ("ada@host", "ada@host"),
        ("/data/ada:b@c/mlflow.db", "/data/ada:b@c/mlflow.db"),
        ("./a:b@c.db", "./a:b@c.db"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("host/cells.h5ad?key=abcd", "host/cells.h5ad?key=***"),
        ("https://host/x?a=1&api_key=abcd&b=2#c", "https://host/x?a=1&api_key=***&b=2#c"),
        (
            "https://host/x?X-Amz-Signature=ab&X-Amz-Credential=cd",
            "https://host/x?X-Amz-Signature=***&X-Amz-Credential=***",
        ),
        ("https://host/x?auth=abcd&sig=ef", "https://host/x?auth=***&sig=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dada%3BPWD%3Dpw", "mssql+pyodbc:///?odbc_connect=***"),
        ("Server=host;UID=ada;PWD=pw;x=1", "Server=host;UID=ada;PWD=***;x=1"),
    ],
)
def test_what_people_see(uri, expected):
    assert shown_address(uri) == expected


@given(secret=SECRETS)
def test_a_password_is_neither_shown_nor_repeated(secret):
    written = quote(secret, safe="")
    uri = f"http://somebody:{written}@somewhere:5000/place"
    assert written not in shown_address(uri)
    said = without_secrets(f"request to {uri} failed, user somebody, password {secret} or {written}", uri)
    assert said == f"request to {shown_address(uri)} failed, user somebody, password *** or ***"


@pytest.mark.parametrize("address", ["ada:hunter2@host/db", "https://hunter2@host", "host/x?key=hunter2"])
def test_what_a_library_repeats_of_it_is_hidden(address):
    said = without_secrets(f"cannot open {address}: no hunter2 at host", address)
    assert said == f"cannot open {shown_address(address)}: no *** at host"
    assert "hunter2" not in said


def test_a_password_of_the_environment_is_not_repeated(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tokentoken")
    assert without_secrets("no hunter2, no tokentoken", "http://x") == "no ***, no ***"
