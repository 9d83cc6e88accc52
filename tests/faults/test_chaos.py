"""The short form of `make chaos`: a real registry killed, raced, starved and locked, in its own process."""

import json
import subprocess

import pytest

from tests.support.warm import REPOSITORY, warmly

pytestmark = pytest.mark.pipeline

CODE = """
import json, sys
from pathlib import Path
from tests.faults.chaos import run
from tests.faults.crowd import crowd
from tests.faults.kills import kill_commands
from tests.faults.lent import read_where_nothing_may_be_written
from tests.pipeline.conftest import Line
base, scratch, killed = Line(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:]
if killed:
    report = {
        "commands": kill_commands(base, scratch, 1, 0, killed),
        "lent": read_where_nothing_may_be_written(base),
        "crowd": crowd(base, scratch / "crowd", rounds=1, seed=0, each=4),
    }
else:
    report = run(base, scratch, kills=(2, 1), seed=0, locked=3.0)
print(json.dumps(report))
"""
KILLED = ("first command", "import", "unlearn", "share", "ledger merge")
"""Commands that are killed once here; `make chaos` kills every one that writes, a hundred times."""


def reported(line, scratch, *killed):
    """Run the code in a process of its own, and return its report."""
    env = warmly(line.root) | {"PYTHONPATH": f"{line.root / 'src'}:{REPOSITORY}"}
    script = scratch / "short.py"
    script.write_text(CODE)
    done = subprocess.run(
        ["python", str(script), str(line.root), str(scratch), *killed],
        cwd=scratch, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.chaos
def test_the_registry_stays_whole(learned, tmp_path):
    report = reported(learned[0], tmp_path)
    assert report["promote"]["killed"] == 2
    assert report["learn"]["killed"] == 1
    assert report["race"]["moved"] >= 1
    assert "cannot write" in report["read-only"]["said"]


@pytest.mark.chaos
def test_commands_that_are_killed_or_crowded_leave_it_whole(learned, tmp_path):
    report = reported(learned[0], tmp_path, *KILLED)
    assert report["commands"]["tried"] == len(KILLED)
    assert report["commands"]["wrong"] == []
    assert report["crowd"]["answered"] >= 1
    assert all(code == 0 for answers in report["lent"].values() for code in answers.values()), report["lent"]
