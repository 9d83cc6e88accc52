"""The connection to a project's MLflow store: its address, its client, locks, and errors in plain words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from filelock import FileLock

from canal.config.layout import Layout
from canal.config.sections import BACKBONE, Registry
from canal.core.errors import READ_ONLY, ReadOnlyError, RegistryError, shown_address, without_secrets
from canal.core.packages import named_packages
from canal.core.progress import doing
from canal.core.store_refusals import object_store_refusal
from canal.registry.store.database import Database, update_paths
from canal.registry.store.new_database import ensure_database
from canal.registry.store.refusals import SET_ACCOUNT, UNKNOWN_ACCOUNT, server_refusal
from canal.runtime.startup import quiet_libraries

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Engine


_POSTGRESQL = "postgresql"
_DATABASES = (_POSTGRESQL, "mysql", "mssql")
_OPENING = 0x63616E616C
"""The advisory lock of PostgreSQL under which canal opens a store: "canal" in ASCII."""

_CONNECT_S, _ANSWER_S = 10, 30

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""The tag by which MLflow shows an experiment as one of models, not of prompts."""

_PATIENCE_S = 300

_THROUGH_THE_SERVER = ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")
"""Left to a server, MLflow may send clients to its object store by presigned addresses. Clients often cannot
reach that, and MLflow 3.17 waited for ever for a version of several files (a pool of threads that waits for
itself)."""


def require_answer(uri: str) -> None:
    """Check once that a server or a database answers; MLflow itself would retry ten times, for minutes.

    Raises
    ------
    RegistryError
        If it does not answer within half a minute, or a database refuses the user.
    """
    if uri.startswith(("http://", "https://")):
        _ask_server(uri)
    elif uri.startswith(_DATABASES):
        _ask_database(uri)


@contextmanager
def alone_at(uri: str, patience_s: int) -> Iterator[None]:
    """Hold an advisory lock of PostgreSQL, so that one canal process at a time opens a store.

    Two processes that open an empty database would both create MLflow's tables, and one would crash. A
    tracking server creates its tables itself.

    Raises
    ------
    RegistryError
        If another process holds the lock for longer than ``patience_s`` seconds.
    """
    if not uri.startswith(_POSTGRESQL):
        yield
        return
    import sqlalchemy
    from sqlalchemy.exc import OperationalError

    with _engine(uri) as engine, engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sqlalchemy.text(f"SET lock_timeout = '{patience_s}s'"))
        try:
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_OPENING})"))
        except OperationalError as error:
            raise RegistryError(
                f"another process has been opening {shown_address(uri)} for {patience_s} s "
                f"({_reason(error, uri)}): wait for it, or end it"
            ) from error
        yield


def _ask_server(uri: str) -> None:
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=(_CONNECT_S, _ANSWER_S))
    except requests.exceptions.SSLError:
        return  # the server answers; MLflow has settings of its own for certificates
    except (requests.RequestException, ValueError) as error:
        raise RegistryError(
            f"the MLflow server {shown_address(uri)} does not answer ({_reason(error, uri)}): "
            "is it running, and is MLFLOW_TRACKING_URI right?"
        ) from error


def _ask_database(uri: str) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    os.environ.setdefault("PGCONNECT_TIMEOUT", str(_CONNECT_S))
    try:
        with named_packages(f"the MLflow store {shown_address(uri)}"), _engine(uri) as engine:
            engine.connect().close()
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        raise RegistryError(
            f"cannot open the MLflow store {shown_address(uri)}: {_reason(error, uri)}; is "
            "MLFLOW_TRACKING_URI right, does the database exist, and is its driver installed?"
        ) from error


@contextmanager
def _engine(uri: str) -> "Iterator[Engine]":
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        yield engine
    finally:
        engine.dispose()


def _reason(error: BaseException, uri: str) -> str:
    """Return the innermost cause in one line: the outer ones repeat it."""
    cause: BaseException = error
    while isinstance(
        inner := getattr(cause, "reason", None) or cause.__cause__ or cause.__context__, BaseException
    ):
        cause = inner
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return without_secrets(lines[0], uri)[:300]


class Connection:
    """The connection to a project's MLflow tracking store and registry; see `Store`."""

    def __init__(self, layout: Layout, names: Registry) -> None:
        self.layout = layout
        self.names = names
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or local_uri(layout)
        self.temporary_copies: dict[str, Path] = {}
        """Copies of versions for this process alone, where the project is read-only, by record digest."""

    @property
    def exists(self) -> bool:
        """False only where the local database was never created, so that nothing is registered."""
        return self._file is None or self._file.is_file()

    @property
    def database(self) -> Database | None:
        """The local database, where it can be read without MLflow."""
        database = None if self._file is None else Database(self._file)
        return database if database and database.known else None

    @property
    def opened(self) -> bool:
        """Whether MLflow's client was used in this process, so that connections may be open."""
        return "client" in vars(self)

    @property
    def shown(self) -> str:
        """The address as people may read it: without a password."""
        return shown_address(self.uri)

    def error_line(self, error: BaseException) -> str:
        """Return the first line of an error of MLflow or a database, without a password."""
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        return without_secrets(first, self.uri)

    @property
    def remote(self) -> bool:
        """Whether other folders may use the store: a server, a database, a file outside the project."""
        return self._file is None or self._file.resolve() != self.layout.database.resolve()

    @property
    def _file(self) -> Path | None:
        """The file of a local database; None for a server."""
        path = self.uri.removeprefix("sqlite:///")
        return None if path == self.uri else Path(unquote(path))  # as SQLAlchemy reads it

    @cached_property
    @doing("opening the registry")
    def client(self) -> "MlflowClient":
        """MLflow's client; the first use creates the database and the experiment.

        The paths in a database that was moved here are updated first.

        Raises
        ------
        RegistryError
            If the store cannot be reached, does not know the user, or would write into another folder.
        """
        quiet_libraries()
        require_answer(self.uri)
        for name in _THROUGH_THE_SERVER:
            os.environ.setdefault(name, "false")
        os.environ["MLFLOW_TRACKING_URI"] = self.uri  # what `mlflow run` starts must use the same store
        import mlflow
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        try:
            # Two processes that create the database at once would crash. A read-only project is opened as is.
            locked = self.lock("mlflow", needed=not self.exists)
            with locked as writing, alone_at(self.uri, _PATIENCE_S):
                if writing:
                    self._update_paths()
                    if self._file is not None:
                        ensure_database(self._file)
                client = mlflow.MlflowClient()
                if writing and client.get_experiment_by_name(self.names.experiment) is None:
                    with _unless("RESOURCE_ALREADY_EXISTS"):  # another folder was quicker
                        client.create_experiment(self.names.experiment, self._artifact_root(), KIND)
        except (MlflowException, OSError, _database_error()) as error:
            if getattr(error, "error_code", "") in UNKNOWN_ACCOUNT:
                raise RegistryError(
                    f"the MLflow server {self.shown} wants a user and a password, or refused the ones it "
                    f"got: {SET_ACCOUNT}"
                ) from error
            raise RegistryError(
                f"cannot open the MLflow store {self.shown}: {self.error_line(error)}"
            ) from error
        return client

    @cached_property
    def experiment_id(self) -> str:
        """MLflow's id of the project's experiment."""
        client = self.client
        with self.translated_errors():
            experiment = client.get_experiment_by_name(self.names.experiment)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise RegistryError(
                f"the MLflow experiment {self.names.experiment!r} was deleted: restore it with "
                f"`mlflow experiments restore`, or name another one in params.yaml (registry.experiment)"
            )
        return str(experiment.experiment_id)

    def lock_file(self, name: str) -> Path:
        """Return the file that `lock` holds, for a process that is no canal's."""
        return self.layout.private / "locks" / f"{name}.lock"

    @contextmanager
    def lock(self, name: str, needed: bool = True) -> Iterator[bool]:
        """Hold a lock against other canal processes of this project; give whether it is held.

        In a read-only folder no process writes, so a lock that is not ``needed`` is skipped there.

        Raises
        ------
        RegistryError
            If another process holds it for minutes, or the folder is read-only (`ReadOnlyError`).
        """
        path = self.lock_file(name)
        folder, lock = path.parent, FileLock(path, timeout=_PATIENCE_S)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except TimeoutError as error:
            raise RegistryError(
                f"another process has held {lock.lock_file} for {_PATIENCE_S} s: wait for it, or end it"
            ) from error
        except OSError as error:
            if not needed and error.errno in READ_ONLY:
                yield False
                return
            kind = ReadOnlyError if error.errno in READ_ONLY else RegistryError
            raise kind(f"cannot write {folder}: {error.strerror or error}; nothing was changed") from error
        try:
            yield True
        finally:
            lock.release()

    def update_paths(self) -> int:
        """Update the paths in a local database that was moved or copied here; return how many changed."""
        if self.remote or not self.exists:
            return 0
        with self.lock("mlflow"):
            return self._update_paths()

    def _update_paths(self) -> int:
        return 0 if self.remote else update_paths(self.layout, self.names)

    def make_model(self, model: str) -> None:
        """Create a registered model without versions, unless it exists."""
        if self.model_tags(model):
            return
        client = self.client
        with self.translated_errors(), _unless("RESOURCE_ALREADY_EXISTS"):
            client.create_registered_model(model, description="Made by `canal registry sync`.")

    @property
    def models(self) -> tuple[str, str]:
        """Names of both registered models, that of backbones first."""
        return self.names.backbone, self.names.model

    def model_of(self, stage: str) -> str:
        """Return the name of the registered model whose versions are of a stage, or of backbones."""
        return self.names.backbone if stage == BACKBONE else self.names.model

    def model_tags(self, model: str) -> dict[str, str]:
        """Return the tags of a registered model; none where it does not exist."""
        if not self.exists:
            return {}
        if database := self.database:
            return database.model_tags(model)
        client = self.client
        with self.translated_errors(), _unless("RESOURCE_DOES_NOT_EXIST"):
            return dict(client.get_registered_model(model).tags)
        return {}

    def model_tag(self, model: str, name: str, value: str | None) -> None:
        """Set a tag of a registered model; None removes it."""
        client = self.client
        with self.translated_errors():
            if value is None:
                client.delete_registered_model_tag(model, name)
            else:
                client.set_registered_model_tag(model, name, value)

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Translate errors of MLflow or its store into a `RegistryError` that says what to do.

        Raises
        ------
        RegistryError
            Where a server does not answer, a database is locked, a disk is full, or an account of the server
            or of its object store may not do it.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except Exception as error:
            told = object_store_refusal(error)
            if told is None and not isinstance(error, MlflowException | OSError):
                raise
            told = told or server_refusal(error, self.names) or self.error_line(error)
            raise RegistryError(
                f"the MLflow store {self.shown} refused: {told}; what was begun is finished by the next "
                "`canal registry sync`"
            ) from error

    def _artifact_root(self) -> str | None:
        """Return where artifacts go; None for a server, which knows that itself."""
        here = self.layout.artifacts.as_uri()
        if self._file is not None:
            return here
        if self.uri.startswith(("http://", "https://")):
            return None
        return os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or here


def local_uri(layout: Layout) -> str:
    """Return the address of a project's own database; `canal.app.project` refuses misread paths."""
    return f"sqlite:///{layout.database}"


@contextmanager
def _unless(code: str) -> Iterator[None]:
    """Ignore an error of MLflow with this code."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise


def _database_error() -> type[Exception]:
    """Return the error class of databases; evaluated only when something was raised: its import is slow."""
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError
