"""Versions that only keep a number from being given to another one, deleted when all are there.

MLflow numbers versions by the highest number that a model ever had, so a deleted version keeps its number.
"""

from canal.core.errors import RegistryError
from canal.registry.store import TAG, Store
from canal.registry.tracking import parent_run


def hold_number(store: Store, model: str, number: int) -> None:
    """Make a version without artifacts that has this number, unless there is one; it is never ready.

    Raises
    ------
    RegistryError
        If a whole version has the number, or the store gives another one.
    """
    there = {version.number: version for version in store.versions(model)}
    if number in there:
        if there[number].ready:
            raise RegistryError(
                f"{model} {number} is registered, though nothing is known of it: `canal audit`"
            )
        return
    run_id = parent_run(store, "placeholder", "0" * 64)
    with store.speaking():
        made = store.client.create_model_version(
            model, source=f"runs:/{run_id}/placeholder", run_id=run_id, tags={f"{TAG}placeholder": "true"}
        )
    require_number(model, int(made.version), number)


def release_numbers(store: Store, model: str) -> None:
    """Delete every version that is not ready."""
    for version in store.versions(model):
        if not version.ready:
            with store.speaking():
                store.client.delete_model_version(model, str(version.number))


def require_number(model: str, given: int, wanted: int) -> None:
    """Refuse a number that the store gave instead of the one that comes next.

    Raises
    ------
    RegistryError
        Saying how to begin again.
    """
    if given != wanted:
        raise RegistryError(
            f"the store gave {model} the number {given} instead of {wanted}: something else was registered. "
            "Set the store aside (mlflow.db and mlartifacts/), then rebuild again"
        )
