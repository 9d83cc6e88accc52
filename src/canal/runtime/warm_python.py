"""The ``python`` of `canal.runtime.warm`: sends ``python SCRIPT.py`` to the fork server, or runs real Python.

It is started by its path, without site-packages, and imports the standard library alone, to start within a
few hundredths of a second.
"""

import os
import sys

INTERRUPTED = 130
"""As in `canal.runtime.startup`, which cannot be imported here."""

try:
    import json
    import signal
    import socket
except KeyboardInterrupt:  # most of the start-up time is spent in these imports
    sys.exit(INTERRUPTED)

YES, NO = b"y", b"n"
"""First byte of an answer. Yes: the script runs, its exit code follows. No: it needs its own Python."""


def hand_over(place: str, command: list[str]) -> int | None:
    """Let the server at a socket run a script, and return its exit code; None where the server cannot."""
    if not command or not command[0].endswith(".py"):
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        try:
            server.connect(place)
            socket.send_fds(server, [b"*"], [0, 1, 2])
            order = {
                "command": command,
                "folder": os.getcwd(),  # noqa: PTH109 - pathlib takes longer to import than the rest
                "environment": dict(os.environ),
            }
            server.sendall(json.dumps(order).encode() + b"\n")
            if server.recv(1) != YES:
                return None
        except OSError:
            return None
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the script receives it as well, and exits by itself
        return _wait_for_exit_code(server)


def _wait_for_exit_code(server: socket.socket) -> int:
    """Wait for the exit code: 128 + the signal's number if the script was killed, as in a shell."""
    answer = b""
    while part := server.recv(64):
        answer += part
    if not answer:
        sys.stderr.write("canal: the process that ran this script was killed\n")
        return 1
    code = int(answer)
    return code if code >= 0 else 128 - code


def main(place: str, command: list[str]) -> int:
    """Send a script to the server and return its exit code, or replace this process by real Python."""
    try:
        code = hand_over(place, command)
    except KeyboardInterrupt:  # before the script started: the next run restores outs that DVC removed
        return INTERRUPTED
    if code is None:
        os.execv(sys.executable, [sys.executable, *command])  # noqa: S606 - the purpose of this file
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
