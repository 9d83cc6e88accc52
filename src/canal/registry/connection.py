"""A project's MLflow store: where it is, how it is opened once and spoken to, and where its files lie."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from canal.config.layout import Layout
from canal.config.sections import Registry
from canal.core.errors import READ_ONLY, ReadOnlyError, RegistryError
from canal.core.messages import shown_address, without_secrets
from canal.registry import address
from canal.registry.database import Database, ensure_database
from canal.registry.moved import inside, local_path, settle
from canal.runtime.startup import quiet_libraries

if TYPE_CHECKING:
    from mlflow import MlflowClient

READY = "ready"
LOGGED = "models:/"
"""How the address of a logged model begins, which is where a version's artifacts are."""

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""By this MLflow shows an experiment as one of models, not of prompts."""

_PATIENCE_S = 300


@dataclass(frozen=True)
class Version:
    """One registered version, whole or not.

    ``commit`` and ``dirty`` say which code it was registered with; ``imported`` where it was learned, if not
    in this project; ``figures`` is what `canal.registry.pages.Pages.tags` told MLflow of it, if anything.
    """

    model: str
    number: int
    stage: str
    branch: int
    key: str
    request: str
    record: str
    parent: str
    status: str
    aliases: tuple[str, ...]
    run_id: str
    source: str
    created: int
    retired: bool = False
    commit: str = ""
    dirty: bool = True
    imported: str = ""
    figures: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def ready(self) -> bool:
        """Whether all its parts were registered; nothing else may be used."""
        return self.status == READY


class Connection:
    """A project's MLflow tracking store and registry, as it is opened and spoken to; see `Store`."""

    def __init__(self, layout: Layout, names: Registry) -> None:
        self.layout = layout
        self.names = names
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or local_uri(layout)
        self.lent: dict[str, Path] = {}
        """Copies of versions outside of a project that may only be read, by the digest of their record."""

    @property
    def exists(self) -> bool:
        """False only where the local database was never made: then nothing is registered."""
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

    def said(self, error: BaseException) -> str:
        """Return the first line of what MLflow or a database said, without a password."""
        return without_secrets(_first_line(error), self.uri)

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
    def client(self) -> "MlflowClient":
        """MLflow's client; the first use makes the database and the experiment.

        A database that came along from another folder is told first where its files lie now.

        Raises
        ------
        RegistryError
            If the store cannot be reached, does not know the user, or would write into another folder.
        """
        quiet_libraries()
        address.require_answer(self.uri)
        os.environ["MLFLOW_TRACKING_URI"] = self.uri  # what `mlflow run` starts must use the same store
        import mlflow
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        try:
            # Two processes that make a new database at once crash each other. Where nothing may be written,
            # what was made before is opened as it is.
            locked = self.lock("mlflow", needed=not self.exists)
            with locked as writing, address.alone_at(self.uri, _PATIENCE_S):
                if writing:
                    self._settle()
                    if self._file is not None:
                        ensure_database(self._file)
                client = mlflow.MlflowClient()
                if writing:
                    self._make_experiment(client)
        except (MlflowException, OSError, _database_error()) as error:
            raise RegistryError(_unopened(self, error)) from error
        return client

    @cached_property
    def experiment_id(self) -> str:
        """MLflow's id of the project's experiment."""
        client = self.client
        with self.speaking():
            experiment = client.get_experiment_by_name(self.names.experiment)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise RegistryError(
                f"the MLflow experiment {self.names.experiment!r} was deleted: restore it with "
                f"`mlflow experiments restore`, or name another one in params.yaml (registry.experiment)"
            )
        return str(experiment.experiment_id)

    @contextmanager
    def lock(self, name: str, needed: bool = True) -> Iterator[bool]:
        """Hold a lock that keeps other canal processes of this project out; give whether it is held.

        Where nothing may be written nobody here writes: a lock that is not ``needed`` is then done without.

        Raises
        ------
        RegistryError
            If it cannot be had: another process holds it for minutes, or the folder is read-only
            (`ReadOnlyError`).
        """
        from filelock import FileLock

        folder = self.layout.private / "locks"
        lock = FileLock(folder / f"{name}.lock", timeout=_PATIENCE_S)
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

    def settle(self) -> int:
        """Tell a local database that was moved or copied here where its files lie; return how many paths."""
        if self.remote or not self.exists:
            return 0
        with self.lock("mlflow"):
            return self._settle()

    def _settle(self) -> int:
        return 0 if self.remote else settle(self.layout, self.names)

    def make_model(self, model: str) -> None:
        """Make a registered model without versions, unless it is there."""
        from mlflow.exceptions import MlflowException

        if self.model_tags(model):
            return
        client = self.client
        with self.speaking():
            try:
                client.create_registered_model(model, description="Made by `canal registry sync`.")
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise

    def model_tags(self, model: str) -> dict[str, str]:
        """Return the tags of a registered model; none where it was never made."""
        if not self.exists:
            return {}
        if database := self.database:
            return database.model_tags(model)
        client = self.client
        from mlflow.exceptions import MlflowException

        with self.speaking():
            try:
                return dict(client.get_registered_model(model).tags)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise

    def model_tag(self, model: str, name: str, value: str | None) -> None:
        """Set a tag of a registered model; None removes it."""
        client = self.client
        with self.speaking():
            if value is None:
                client.delete_registered_model_tag(model, name)
            else:
                client.set_registered_model_tag(model, name, value)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Turn what MLflow or its store refuses into an error for people.

        Raises
        ------
        RegistryError
            Where a server does not answer, a database is locked or a disk is full.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            raise RegistryError(
                f"the MLflow store {self.shown} refused: {self.said(error)}; what was begun is finished by "
                "the next `canal registry sync`"
            ) from error

    def local_artifacts(self, version: Version) -> Path | None:
        """Return the folder of a version's artifacts where it lies on this disk, else None.

        Those of the project's own store lie in the project, whatever the database says: it may have been
        moved or copied here.
        """
        database, model_id = self.database, version.source.removeprefix(LOGGED)
        location = database.artifact_location(model_id) if database else None
        folder = None if location is None else local_path(location)
        if folder is None:
            return None
        if not self.remote:
            folder = _own(self.layout, folder, version)
        return folder if folder.is_dir() else None

    def _make_experiment(self, client: "MlflowClient") -> None:
        from mlflow.exceptions import MlflowException

        if client.get_experiment_by_name(self.names.experiment) is not None:
            return
        try:
            client.create_experiment(self.names.experiment, self._artifact_root(), KIND)
        except MlflowException as error:  # another folder was quicker
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _artifact_root(self) -> str | None:
        """Return where artifacts go; a server knows that itself, a database does not."""
        here = self.layout.artifacts.as_uri()
        if self._file is not None:
            return here
        if self.uri.startswith(("http://", "https://")):
            return None
        return os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or here


def local_uri(layout: Layout) -> str:
    """Return the address of a project's own database; `canal.app.project` refuses misread paths."""
    return f"sqlite:///{layout.database}"


def _own(layout: Layout, folder: Path, version: Version) -> Path:
    """Return where artifacts lie in the project, whose database says that they lie in ``folder``.

    Raises
    ------
    RegistryError
        If that is another folder's, and this project has no such files.
    """
    here = inside(layout, folder)
    if here is None or not (here.is_dir() or folder.is_relative_to(layout.root)):
        raise RegistryError(
            f"version {version.number} ({version.stage}): {layout.database.name} says that its files lie in "
            f"{folder}, which is not in this project, and {here or layout.artifacts} is not there. Was the "
            "project copied without its mlartifacts/? Bring that folder along, too (docs/registry.md, Move, "
            "copy, back up)"
        )
    return here


def _database_error() -> type[Exception]:
    """Return what a database raises; asked for once something was raised, for its import takes a while."""
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError


def _unopened(store: Connection, error: BaseException) -> str:
    """Return why a store that answers cannot be opened."""
    if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return (
            f"the MLflow server {store.shown} wants a user and a password, or refused the ones it got: "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return f"cannot open the MLflow store {store.shown}: {store.said(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
