import sqlite3

import pytest

from canal.registry.store.database import SCHEMA, Database


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "a folder?" / "mlflow.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.executescript(
            f"""
            CREATE TABLE alembic_version (version_num);
            INSERT INTO alembic_version VALUES ('{SCHEMA}');
            """
        )
    connection.close()
    return Database(path)


def test_the_known_schema_is_read(database):
    assert database.known


@pytest.mark.parametrize(
    "change", ["UPDATE alembic_version SET version_num = 'other'", "DROP TABLE alembic_version"]
)
def test_any_other_schema_is_left_to_mlflow(database, change):
    with sqlite3.connect(database.path) as connection:
        connection.execute(change)
    connection.close()
    assert not database.known


def test_a_file_that_is_no_database_is_left_to_mlflow(tmp_path):
    path = tmp_path / "mlflow.db"
    assert not Database(path).known
    assert not path.exists()
    path.write_bytes(b"no database" * 100)
    assert not Database(path).known
