import sqlite3
from contextlib import closing

import pytest

from canal.core.errors import RegistryError
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


def test_a_file_that_cannot_be_opened_is_never_answered_by_the_one_before(tmp_path):
    """The connection is kept: one that could not be made left the earlier file's in its place."""
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    with closing(sqlite3.connect(one)) as file:
        file.execute("CREATE TABLE experiments (name TEXT)")
        file.execute("INSERT INTO experiments VALUES ('one')")
        file.commit()
    other.mkdir()  # SQLite opens no folder
    for gone in (other, tmp_path / "none.db"):
        assert Database(one).rows("SELECT name FROM experiments") == [("one",)]
        for _ in range(2):
            with pytest.raises(RegistryError, match="cannot read"):
                Database(gone).rows("SELECT name FROM experiments")


def test_what_is_written_or_put_in_its_place_is_read(tmp_path):
    path = tmp_path / "mlflow.db"
    for name in ("first", "second"):
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as file:
            file.execute("CREATE TABLE experiments (name TEXT)")
            for rows in range(1, 3):
                file.execute("INSERT INTO experiments VALUES (?)", (name,))
                file.commit()
                assert Database(path).rows("SELECT name FROM experiments") == [(name,)] * rows
