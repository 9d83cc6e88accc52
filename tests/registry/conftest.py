"""What tests of the registry share: one lineage in a real local store, made once."""

import os

import pytest

from canal.registry.promotion import promotion
from canal.registry.promotion.moves import moving
from tests.support.registered import OVERRIDDEN, keep_empty, make_models, open_store, register


@pytest.fixture(scope="session")
def registered(tmp_path_factory):
    """Return the folder of a registered lineage; a test that changes it works on a copy.

    Version 2 was deleted and is 3 now, 1 is retired, 3 is the champion.
    """
    root = tmp_path_factory.mktemp("registered") / "project"
    make_models(root)
    store = open_store(root)
    keep_empty(store)
    register(store, "backbone")
    register(store, "first")
    gone = register(store, "second")
    store.client.delete_model_version_tag(gone.model, str(gone.number), "status")
    store.client.delete_model_version(gone.model, str(gone.number))
    register(store, "second")
    with moving(store) as ledger:
        promotion.promote(
            store, ledger, store.version("3"), OVERRIDDEN, promotion.Decision("A. Person", "reviewed")
        )
    with moving(store) as ledger:
        promotion.retire(store, ledger, store.version("1"), promotion.Decision("A. Person", "withdrawn"))
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # opening a store sets it for what it starts
    return root
