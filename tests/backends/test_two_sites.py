"""Two sites promote at the same moment, again and again: one wins, the other is told, nothing is lost."""

import multiprocessing
import shutil
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from canal.core.errors import LedgerError
from canal.registry.ledger import mirror
from canal.registry.ledger.ledger import follows
from canal.registry.promotion.moves import catch_up
from tests.support.folders import Folder

pytestmark = pytest.mark.xdist_group("backends")  # servers and databases are made once


def site(root: Path, name: str, orders: Connection) -> None:
    """Promote the version ordered, as one command after the other would; answer what came of it."""
    folder = Folder(root)
    with suppress(EOFError):
        while True:
            what = orders.recv()
            try:
                if what == "catch up":
                    catch_up(folder.project().store)
                    orders.send("caught up")
                else:
                    orders.send(folder.promote(what, by=name).hash)
            except LedgerError as error:
                orders.send(error)


@pytest.fixture
def sites(new_folder):
    """Start a process for each of two folders; give functions that order both at once."""
    started = []

    def start():
        for name in ("ada", "ben"):
            here, there = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=site, args=(new_folder(name).root, name.title(), there), daemon=True
            )
            process.start()
            there.close()
            started.append((process, here))

        def order(what):
            if what == "catch up":  # in turn: it takes a claim, too
                return [orders.send(what) or orders.recv() for _, orders in started]
            for _, orders in started:
                orders.send(what)
            return [orders.recv() for _, orders in started]

        return order

    yield start
    for process, orders in started:
        orders.close()
        process.join(60)


def rounds(order, folders: list[Folder], number: int) -> None:
    """Let both promote the version that is not the champion; afterwards each ledger has each move once."""
    won = []
    for turn in range(number):
        answers = order(1 + turn % 2)
        winners = [one for one in answers if isinstance(one, str)]
        losers = [one for one in answers if isinstance(one, LedgerError)]
        assert len(winners) == len(losers) == 1, answers
        assert "canal ledger --catch-up" in str(losers[0]) or "at this moment" in str(losers[0])
        won.append(winners[0])
        assert order("catch up") == ["caught up"] * 2
    ledgers = [one.ledger() for one in folders]
    assert ledgers[0] == ledgers[1]
    assert [one.hash for one in ledgers[0] if one.kind == "promote"] == won
    assert all(follows(after, before) for before, after in zip(ledgers[0], ledgers[0][1:], strict=False))
    store = folders[0].project().store
    assert list(mirror.mirrored(store).values()) == ledgers[0]
    assert not [name for name in store.model_tags(store.names.model) if "moving" in name]
    assert folders[0].aliases() == folders[1].aliases()
    assert folders[0].aliases()["champion"] == 2 - number % 2
    assert not (folders[0].project().layout.pending).exists()


def both(root: Path) -> list[Folder]:
    return [Folder(root / name) for name in ("ada", "ben")]


def test_of_two_at_once_one_wins_and_the_other_is_told(
    empty_database, monkeypatch, new_folder, sites, tmp_path
):
    shutil.copyfile(empty_database, tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    order = sites()
    folders = both(tmp_path)
    folders[0].register()
    catch_up(folders[1].project().store)
    rounds(order, folders, 10)


@pytest.mark.chaos
def test_two_hundred_rounds_behind_the_server_of_a_team(use, new_folder, sites, tmp_path):
    use("team")
    order = sites()
    folders = both(tmp_path)
    folders[0].register()
    catch_up(folders[1].project().store)
    rounds(order, folders, 200)
