"""The board in this process, asked as a browser asks: cookies, forms with their secret, jobs waited for."""

from __future__ import annotations

import html
import re
import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from canal.app.board import Board, BoardOptions, application

TOKEN = "0123456789abcdef" * 2
ADDRESS = "http://127.0.0.1:5002"
_PATIENCE_S = 600


class Visit:
    """A browser of one person on a project's board."""

    def __init__(self, root: Path, token_file: Path | None = None, **options: Any) -> None:
        self.app = application(root, BoardOptions(token_file=token_file, **options))
        self.board: Board = self.app.app.state.board
        self.client = TestClient(self.app, ADDRESS, follow_redirects=False, raise_server_exceptions=False)

    def another(self) -> Visit:
        """Return a second browser on the same board."""
        other = object.__new__(Visit)
        other.app, other.board = self.app, self.board
        other.client = TestClient(self.app, ADDRESS, follow_redirects=False, raise_server_exceptions=False)
        return other

    def get(self, path: str, status: int = 200, **headers: str) -> str:
        """Return the text of a page."""
        answer = self.client.get(path, headers=headers)
        assert answer.status_code == status, (path, answer.status_code, answer.text[:2000])
        return answer.text

    @property
    def csrf(self) -> str:
        """The secret of this browser's forms."""
        found = re.search(r'data-csrf="(\w+)"', self.get("/drop"))
        assert found is not None
        return found[1]

    def post(self, path: str, **fields: Any) -> Any:
        """Send a form as the board's pages do."""
        return self.client.post(path, data={"csrf": self.csrf, **fields})

    def log_in(self, name: str = "Ada Lovelace", token: str = TOKEN) -> Any:
        return self.post("/login", name=name, token=token)

    def done(self, answer: Any) -> str:
        """Return the page of a job that a form began, once it has ended."""
        assert answer.status_code in (201, 303), (answer.status_code, words(answer.text))
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            page = self.get(answer.headers["location"])
            if "data-reload" not in page:
                return page
            time.sleep(0.25)  # a page takes as long as a step of what it waits for
        raise AssertionError(f"never done: {words(page)}")

    def drop(self, path: Path, name: str | None = None, model: str = "") -> Any:
        """Send a file as the board's script does."""
        headers = {
            "content-type": "application/octet-stream",
            "x-csrf": self.csrf,
            "x-file-name": path.name if name is None else name,
            "x-model": model,
        }
        return self.client.post("/drop", content=path.read_bytes(), headers=headers)


def words(page: str) -> str:
    """Return the words of a page, without its markup."""
    text = re.sub(r"<(svg|style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
