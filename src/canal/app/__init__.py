"""What canal does for a person: a module a verb, each opens the project and calls the rooms below.

A module is imported when it is first used as ``app.MODULE``: `canal --help` needs none of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from canal.core.progress import doing

if TYPE_CHECKING:
    from canal.app import annotating as annotating
    from canal.app import auditing as auditing
    from canal.app import backfilling as backfilling
    from canal.app import beginning as beginning
    from canal.app import board as board
    from canal.app import choosing as choosing
    from canal.app import creating as creating
    from canal.app import declaring as declaring
    from canal.app import discovering as discovering
    from canal.app import doctor as doctor
    from canal.app import erasing as erasing
    from canal.app import harmonising as harmonising
    from canal.app import impact as impact
    from canal.app import joining_lineages as joining_lineages
    from canal.app import learning as learning
    from canal.app import models as models
    from canal.app import partitioning as partitioning
    from canal.app import pipeline as pipeline
    from canal.app import planning as planning
    from canal.app import project as project
    from canal.app import promoting as promoting
    from canal.app import recorded as recorded
    from canal.app import reviewing as reviewing
    from canal.app import running as running
    from canal.app import serving as serving
    from canal.app import sharing as sharing
    from canal.app import shelf as shelf
    from canal.app import status as status
    from canal.app import streams as streams
    from canal.app import tasks as tasks
    from canal.app import teaching as teaching
    from canal.app import tracing as tracing
    from canal.app import unlearning as unlearning
    from canal.app import upgrading as upgrading
    from canal.app import versions as versions
    from canal.app import watching as watching
    from canal.app import withdrawing as withdrawing

__all__ = [
    "annotating",
    "auditing",
    "backfilling",
    "beginning",
    "board",
    "choosing",
    "creating",
    "declaring",
    "discovering",
    "doctor",
    "erasing",
    "harmonising",
    "impact",
    "joining_lineages",
    "learning",
    "models",
    "partitioning",
    "pipeline",
    "planning",
    "project",
    "promoting",
    "recorded",
    "reviewing",
    "running",
    "serving",
    "sharing",
    "shelf",
    "status",
    "tasks",
    "teaching",
    "tracing",
    "unlearning",
    "upgrading",
    "versions",
    "watching",
    "withdrawing",
]


def __getattr__(name: str) -> Any:
    """Import a module of this room by its name."""
    if name not in __all__:
        raise AttributeError(f"module 'canal.app' has no attribute {name!r}")
    with doing("loading the libraries of this command"):
        return importlib.import_module(f"canal.app.{name}")
