"""What a revision's code says of the project in this folder, as JSON; any revision since b42cc87 runs it.

Usage, in a project and with the revision's ``src`` on the path: ``python golden.py SHIPPED_PARAMS``.
"""

import json
import sys
from pathlib import Path

WEIGHTS = "model/weights.safetensors"


def main() -> None:
    """Print digests of requests, keys and weights by stage, and requests of the shipped parameters."""
    from named import module_of  # beside this script

    file_digest = module_of("file_digest").file_digest
    request_digest = module_of("request_digest").request_digest
    project = module_of("Project").Project.open()
    shipped = module_of("load_config").load_config(Path(sys.argv[1]))
    stages = ("backbone", *project.config.stages)
    folders = {stage: project.layout.model(stage) for stage in stages}
    told = {
        "requests": {stage: request_digest(project.config, stage) for stage in stages},
        "keys": {stage: file_digest(folder / "key.json") for stage, folder in folders.items()},
        "weights": {stage: file_digest(folder / WEIGHTS) for stage, folder in folders.items()},
        "shipped": {stage: request_digest(shipped, stage) for stage in ("backbone", *shipped.stages)},
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
