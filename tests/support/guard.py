"""Run a server for as long as a process lives: ``python guard.py PID FOLDER COMMAND...``.

A pytest worker that starts a server may end before the others that use it, or be killed. So no fixture ends
the server but this: when the process PID is gone, the server's process group gets SIGTERM, and FOLDER goes.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time


def main() -> None:
    watched, folder, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    server = subprocess.Popen(command, start_new_session=True)
    while server.poll() is None and _alive(watched):
        time.sleep(0.5)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
            break
    shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
