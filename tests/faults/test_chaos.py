"""The short form of `make chaos`: a real registry killed, raced, starved and locked, in its own process."""

import json
import subprocess

import pytest

from tests.warm import REPOSITORY, warmly

pytestmark = pytest.mark.pipeline

CODE = """
import json, sys
from pathlib import Path
from tests.faults.chaos import run
from tests.pipeline.conftest import Line
print(json.dumps(run(Line(Path(sys.argv[1])), Path(sys.argv[2]), kills=(3, 2), seed=0, locked=3.0)))
"""


def test_the_registry_stays_whole(learned, tmp_path):
    line, _ = learned
    env = warmly(line.root) | {"PYTHONPATH": f"{line.root / 'src'}:{REPOSITORY}"}
    script = tmp_path / "short.py"
    script.write_text(CODE)
    done = subprocess.run(
        ["python", str(script), str(line.root), str(tmp_path)],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["promote"]["killed"] == 3
    assert report["learn"]["killed"] == 2
    assert report["race"]["moved"] >= 1
    assert "cannot write" in report["read-only"]["said"]
