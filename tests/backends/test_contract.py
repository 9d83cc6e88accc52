"""What the registry promises, on each back end."""

import pytest

from canal.core.errors import LedgerError, RegistryError
from canal.registry.ledger.signing import new_key, open_key, signature_findings
from canal.registry.versions import rebuild
from canal.registry.versions.history import verified
from tests.backends.conftest import EXTRA, KINDS
from tests.support.registered import no_figures, state

pytestmark = pytest.mark.xdist_group("backends")  # servers and databases are made once


@pytest.fixture(
    params=[
        *(one for one in KINDS if one != "accounts"),  # which test_downloads and test_unreachable ask, too
        *(pytest.param(one, marks=pytest.mark.chaos) for one in ("accounts", *EXTRA)),
    ]
)
def backend(request, use):
    """Use each back end in turn."""
    use(request.param)
    return request.param


class TestBackend:
    """One contract for sqlite, an MLflow server, one with accounts, and PostgreSQL.

    And, in `make chaos`, for a team's server (accounts, PostgreSQL, an object store) and for clients that
    reach PostgreSQL and the object store themselves.
    """

    def test_a_version_lives(self, backend, new_folder, tmp_path):
        folder, pem = new_folder("a"), tmp_path / "key.pem"
        public = new_key(pem, "Ada")
        sign = open_key(pem).sign
        assert [version.number for version in folder.sync(sign).made] == [1, 1, 2]
        assert folder.sync().made == ()
        assert folder.aliases() == {"candidate": 2}
        store = folder.project().store
        assert (verified(store, store.version("candidate"))[0] / "MLmodel").is_file()

        folder.promote(1, sign=sign)
        folder.promote(2, sign=sign)
        assert folder.aliases() == {"candidate": 2, "champion": 2, "previous": 1}
        decision = ["--by", "Ada", "--why", "T cells look wrong", "--sign", str(pem)]
        folder.canal("rollback", *decision)
        assert folder.aliases() == {"candidate": 2, "champion": 1, "previous": 2}
        folder.canal("retire", "2", *decision)
        assert folder.aliases() == {"candidate": 1, "champion": 1}
        with pytest.raises(RegistryError, match="was retired"):
            folder.project().store.serving("2")

        kinds = [entry.kind for entry in folder.ledger()]
        assert kinds == ["register"] * 3 + ["promote", "promote", "rollback", "retire"]
        assert signature_findings(folder.ledger(), {public.fingerprint: public}) == []
        assert folder.findings() == []

    def test_two_folders_use_one_store(self, backend, new_folder):
        ada, ben = new_folder("ada"), new_folder("ben")
        ada.register()
        ada.promote(1)
        with pytest.raises(LedgerError, match="ends with entry 0, .* has 3.*--catch-up"):
            ben.promote(2, by="Ben")
        assert ada.aliases()["champion"] == 1
        ben.canal("ledger", "--catch-up")
        assert ben.ledger() == ada.ledger()
        ben.promote(2, by="Ben")
        assert ben.aliases() == {"candidate": 2, "champion": 2, "previous": 1}
        with pytest.raises(LedgerError, match="--catch-up"):
            ada.canal("rollback", "--by", "Ada", "--why", "a mistake")
        ada.canal("ledger", "--catch-up")
        assert ada.aliases() == ben.aliases()

    @pytest.mark.parametrize(
        "backend", [pytest.param("server", marks=pytest.mark.chaos), "postgres"], indirect=True
    )
    def test_a_store_that_lost_its_models_is_made_again(self, backend, new_folder):
        folder = new_folder("a")
        folder.sync()
        folder.promote(1)
        store = folder.project().store
        before = state(store)
        for model in (store.names.backbone, store.names.model):
            store.client.delete_registered_model(model)
        assert state(folder.project().store) == []

        options = rebuild.RebuildOptions("Ada", "the disk died", (store.layout,))
        made = rebuild.rebuild(folder.project().store, options, no_figures)
        assert made.gone == ()
        assert state(folder.project().store) == before
        assert folder.aliases() == {"candidate": 2, "champion": 1}
        assert folder.findings() == []
