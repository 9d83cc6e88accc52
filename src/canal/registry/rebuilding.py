"""Whether a store that was lost is made again at this moment, or was left half made: its own tag says so."""

from canal.core.errors import RegistryError
from canal.registry.store import TAG, Store

REBUILDING = f"{TAG}rebuilding"
"""The tag of the registered model that says how far the rebuilding got."""

MAKING, NUMBERED, DONE = "making", "numbered", "done"


def rebuilding(store: Store) -> str:
    """Return how far the rebuilding got; nothing where the store was never made again."""
    return store.model_tags(store.names.model).get(REBUILDING, "")


def half_rebuilt(store: Store) -> bool:
    """Whether versions and aliases are not all there yet: a rebuilding was interrupted, or is at work."""
    return rebuilding(store) in (MAKING, NUMBERED)


def require_rebuilt(store: Store) -> None:
    """Refuse a store that holds only a part of its versions.

    Raises
    ------
    RegistryError
        Saying how the rest comes.
    """
    if half_rebuilt(store):
        raise RegistryError(
            f"{store.shown} is half rebuilt: `canal registry rebuild` was interrupted, or is at work. "
            "`canal registry sync` goes on with it; until then nothing is moved, and no version answers"
        )
