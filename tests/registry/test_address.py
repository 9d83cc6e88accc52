"""Addresses are shown without their passwords, however odd these are."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.registry.address import shown, without_secrets

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
    ],
)
def test_what_people_see(uri, expected):
    assert shown(uri) == expected


@given(secret=SECRETS)
def test_a_password_is_neither_shown_nor_repeated(secret):
    written = quote(secret, safe="")
    uri = f"http://somebody:{written}@somewhere:5000/place"
    assert written not in shown(uri)
    said = without_secrets(f"request to {uri} failed, user somebody, password {secret} or {written}", uri)
    assert said == f"request to {shown(uri)} failed, user somebody, password *** or ***"


def test_a_password_of_the_environment_is_not_repeated(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tokentoken")
    assert without_secrets("no hunter2, no tokentoken", "http://x") == "no ***, no ***"
