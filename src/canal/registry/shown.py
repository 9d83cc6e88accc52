"""What MLflow loads and shows of a project's versions: rows of its database, or what a server's API says.

`docs/registry.md` lists these fields; `canal.registry.checks.shown` compares each with what canal knows.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from canal.registry.store import Store

Points = tuple[tuple[int, float], ...]
"""Steps and values of a metric."""

Measured = tuple[str, str, str, float]
"""A metric of a logged model: its name, name and digest of the data set it belongs to or "", its value."""

PARENT_RUN, ENTRY_POINT, RUN_NAME = "mlflow.parentRunId", "mlflow.project.entryPoint", "mlflow.runName"
ACTIVE = "active"
OF_MLFLOW = "mlflow."


@dataclass(frozen=True)
class ShownVersion:
    """One row of ``model_versions`` with its tags; ``location`` is where MLflow serves it from."""

    model: str
    number: int
    source: str
    location: str
    run_id: str
    run_link: str
    status: str
    status_message: str
    stage: str
    description: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownModel:
    """One row of ``logged_models``: where the artifacts of a version lie."""

    id: str
    name: str
    location: str
    status: str
    status_message: str
    kind: str
    lifecycle: str
    run_id: str
    experiment: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: frozenset[Measured] = frozenset()
    tags: tuple[str, ...] = ()
    """Names of tags, but those of MLflow's own making (``mlflow.``)."""


@dataclass(frozen=True)
class ShownRun:
    """One row of ``runs`` with tags, parameters, and the last value of each metric."""

    id: str
    name: str
    lifecycle: str
    location: str
    experiment: str
    started: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    latest: Mapping[str, float]

    @property
    def steps(self) -> frozenset[str]:
        """Which step of a stage it was: canal's word and MLflow's, which are one unless a tag was changed."""
        return frozenset(self.tags.get(name, "") for name in ("canal.step", ENTRY_POINT)) - {""}


@dataclass(frozen=True)
class Shown:
    """Everything that MLflow loads or shows of a project's versions.

    Attributes
    ----------
    experiment : str
        Id of the project's experiment.
    home : str
        The address below which its artifacts lie; all others begin with it.
    lifecycle : str
        Whether the experiment is active.
    aliases : Mapping
        By registered model.
    history : callable
        Returns all points of all metrics of a run.
    """

    experiment: str
    home: str
    lifecycle: str
    versions: Mapping[tuple[str, int], ShownVersion]
    models: Mapping[str, ShownModel]
    runs: Mapping[str, ShownRun]
    aliases: Mapping[str, Mapping[str, int]]
    history: Callable[[str], Mapping[str, Points]]

    def address(self, place: str) -> str:
        """Return an address below that of the experiment: a project that was moved moves all of them."""
        return f"{self.home.rstrip('/')}/{place}"

    def below(self, run_id: str) -> Iterator[ShownRun]:
        """Yield the runs below a run that were not deleted, oldest first."""
        runs = (run for run in self.runs.values() if run.tags.get(PARENT_RUN) == run_id)
        yield from sorted((run for run in runs if run.lifecycle == ACTIVE), key=lambda run: run.started)


def read_shown(store: Store) -> Shown:
    """Return what MLflow has; a local database is read without MLflow.

    Raises
    ------
    RegistryError
        If the database or the server cannot be read.
    """
    if not store.exists:
        return Shown("", "", ACTIVE, {}, {}, {}, {}, lambda _: {})
    if database := store.database:
        from canal.registry.shown_tables import read_tables

        return read_tables(database, store.names)
    from canal.registry.shown_client import read_client

    return read_client(store)
