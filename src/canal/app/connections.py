"""What the servers of canal share: a token in a file, and connections that slow or silent clients lose."""

import asyncio
import os
from functools import cache
from pathlib import Path

from uvicorn.protocols.http.h11_impl import H11Protocol

from canal.core.errors import ConfigError

PATIENCE = "CANAL_PATIENCE"
"""Environment variable that tells a server's processes in how many seconds a request must be complete."""

SHORTEST_TOKEN = 16


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises
    ------
    ConfigError
        If the file cannot be read, or holds no token that is long enough.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token in {path}: {error}") from error
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{path} must hold one token of at least {SHORTEST_TOKEN} letters and digits, such as "
            "`openssl rand -hex 32` prints"
        )
    return token


@cache
def _patience() -> float:
    return float(os.environ[PATIENCE])


class PatientProtocol(H11Protocol):
    """The HTTP protocol of one connection, closed if a request is not complete after some seconds.

    uvicorn itself waits for ever for the first line, and for a body that arrives a byte a minute.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request."""
        super().connection_made(transport)
        self._waiting: asyncio.TimerHandle | None = None
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Process received bytes, and start or stop the timer."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        from h11 import IDLE, SEND_BODY

        if self.conn.their_state not in (IDLE, SEND_BODY):
            self._stop()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(_patience(), self.transport.close)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
