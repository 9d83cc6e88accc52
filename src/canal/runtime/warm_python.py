"""The ``python`` of `canal.runtime.warm`: hands ``python SCRIPT.py ...`` over, leaves the rest to Python.

Started by its path, without site-packages, so that it is there in a few hundredths of a second: the standard
library alone.
"""

import os
import sys

INTERRUPTED = 130
"""As in `canal.runtime.startup`, which is not to be had here."""

try:
    import json
    import signal
    import socket
except KeyboardInterrupt:  # most of the time before a script begins is spent here
    sys.exit(INTERRUPTED)

YES, NO = b"y", b"n"
"""First byte of an answer. Yes: the script runs, its exit code will follow. No: it needs its own Python."""


def hand_over(place: str, command: list[str]) -> int | None:
    """Have the server at a socket run a script, and return its exit code; None where it cannot."""
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the script gets it as well, and ends as it wants to
        return _wait_for_exit_code(server)


def _wait_for_exit_code(server: socket.socket) -> int:
    """Wait for the exit code: 128 and the signal's number where one ended the script, as in a shell."""
    answer = b""
    while part := server.recv(64):
        answer += part
    if not answer:
        sys.stderr.write("canal: the process that ran this script is gone\n")
        return 1
    code = int(answer)
    return code if code >= 0 else 128 - code


def main(place: str, command: list[str]) -> int:
    """Hand a script over and return its exit code, or become the Python that was asked for."""
    try:
        code = hand_over(place, command)
    except KeyboardInterrupt:  # before the script began: the next run makes again what DVC had removed
        return INTERRUPTED
    if code is None:
        os.execv(sys.executable, [sys.executable, *command])  # noqa: S606 - that is what it stands for
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
