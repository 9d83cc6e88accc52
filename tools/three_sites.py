"""Make three projects of one stage of the demo each, for the walk of docs/sharing.md: three hospitals.

    python tools/three_sites.py FOLDER

Each is a clone of this repository, in FOLDER/a, b and c, that learns its stage by sums alone.
"""

import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[1]
SITES = {"a": "pbmc3k", "b": "kang-ctrl", "c": "tumour"}


def main(into: Path) -> None:
    """Clone the repository for each site, and leave one stage in its params.yaml."""
    for site, stage in SITES.items():
        root = into / site
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(root)], check=True)
        yaml, path = YAML(), root / "params.yaml"
        document = yaml.load(path)
        entry = {"source": stage, "parent": "backbone"}
        document["sources"] = {stage: document["sources"][stage]}
        document["stages"] = {stage: entry}
        document["panel"]["stage"] = stage
        document["continual"] = {"method": "exact"}
        document["novelty"]["holdouts"] = []
        del document["tuning"]
        yaml.dump(document, path)
        subprocess.run(["git", "commit", "--quiet", "-am", f"A site that has {stage}"], cwd=root, check=True)
        sys.stdout.write(f"{root}: {stage}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
