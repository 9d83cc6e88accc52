"""Which processes learn a network together, as the environment says; see `canal.continual.processes`."""

import os

from canal.core.errors import ConfigError

PROCESSES = "CANAL_PROCESSES"
"""The environment variable with the number of processes that learn a network. It changes no result, so it is
no part of params.yaml."""

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Environment variables that torchrun gives each process that it starts, beside its run's name."""

_RUN_OF_TORCHRUN = "TORCHELASTIC_RUN_ID"


def processes_asked() -> int | None:
    """Return how many processes are to learn a network; None for those that torchrun has started.

    Raises
    ------
    ConfigError
        If `PROCESSES` is not a number from 1 on, or is given to processes that torchrun has started.
    """
    asked = os.environ.get(PROCESSES, "")
    if started_by_torchrun():
        if asked:
            raise ConfigError(
                f"torchrun has started {os.environ['WORLD_SIZE']} processes, so {PROCESSES} ({asked[:20]}) "
                "says nothing more: unset it, or start the step without torchrun"
            )
        return None
    if asked and not (asked.isascii() and asked.isdecimal() and int(asked[:9])):
        raise ConfigError(f"{PROCESSES} is a number of processes from 1 on, found {asked[:40]!r}")
    return int(asked or 1)


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process as one of several."""
    return (
        all(name in os.environ for name in (_RUN_OF_TORCHRUN, *TORCHRUN)) and os.environ["WORLD_SIZE"] != "1"
    )


def follows() -> bool:
    """Whether this is one of torchrun's processes beside the first, which alone writes and logs."""
    return started_by_torchrun() and os.environ["RANK"] != "0"
