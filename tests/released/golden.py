"""What a revision's code says of the project in this folder, as JSON; any revision since b42cc87 runs it.

Usage, in a project and with the revision's ``src`` on the path: ``python golden.py SHIPPED_PARAMS``.
"""

import json
import sys
from pathlib import Path

WEIGHTS = "model/weights.safetensors"


def main() -> None:
    """Print digests of requests, keys and weights by stage, and requests of the shipped parameters."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from named import by_name

    file_digest = by_name("file_digest")
    request_digest = by_name("request_digest")
    project = by_name("Project").open()
    shipped = by_name("load_config")(Path(sys.argv[1]))
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
