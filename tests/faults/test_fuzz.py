"""A part of `make fuzz`: mutated inputs are answered rightly or refused, and valid ones are answered."""

import json
import subprocess

import numpy as np
import pytest

from tests.faults import mutations
from tests.faults.fuzz import Trial, table
from tests.faults.specimens import KINDS
from tests.support.warm import REPOSITORY, warmly

CODE = """
import json, sys
from dataclasses import astuple
from pathlib import Path
from tests.faults.fuzz import prepare, tried
scratch = Path(sys.argv[1])
annotator = prepare(scratch)
found = [tried(number, annotator, scratch) for number in range(50)]
found += [tried(number, annotator, scratch, mutated=False) for number in range(100, 108)]
print(json.dumps([astuple(one) for one in found]))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Inputs tried in a process that never computed: threads of this one would not survive a fork."""
    folder = tmp_path_factory.mktemp("fuzz")
    script = folder / "trials.py"
    script.write_text(CODE)
    env = warmly(REPOSITORY) | {"PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"}
    command = ["python", str(script), str(folder / "scratch")]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return [Trial(*one) for one in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.chaos
@pytest.mark.xdist_group("fuzz")
def test_mutated_inputs_are_answered_rightly_or_refused(found):
    mutated = [one for one in found if one.number < 100]
    assert [(one.number, one.kind, one.wrong, one.said[-500:]) for one in mutated if one.wrong] == []
    assert {one.kind for one in mutated} == {kind.name for kind in KINDS}
    outcomes = [one.outcome for one in mutated]
    assert min(outcomes.count("answered"), outcomes.count("refused")) >= 10, outcomes


@pytest.mark.chaos
@pytest.mark.xdist_group("fuzz")
def test_valid_inputs_are_answered(found):
    """Else the campaign would see nothing but refusals."""
    valid = [one for one in found if one.number >= 100]
    refused = [one for one in valid if one.outcome != "answered"]
    assert len(valid) == 8
    assert [one for one in refused if "uns holds no annotation record" not in one.said] == []


def test_a_number_decides_what_is_drawn(tmp_path):
    for name in ("one", "two"):
        mutations.text_file(_written(tmp_path / name), np.random.default_rng([19, 5]))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() != b"a\tb\nc\td\n"


def _written(path):
    path.write_bytes(b"a\tb\nc\td\n")
    return path


@pytest.mark.parametrize("wrong", ["", "a traceback"])
def test_the_table_counts_outcomes_by_kind(wrong):
    found = [
        Trial(n, "loom", ("who",), how, "", wrong) for n, how in enumerate(["answered", "refused", "wrong"])
    ]
    lines = table(found).splitlines()
    assert lines[0].split() == ["kind", "tried", "answered", "refused", "wrong"]
    assert next(line.split() for line in lines if line.startswith("loom")) == ["loom", "3", "1", "1", "1"]
    assert lines[-1].split() == ["all", "3", "1", "1", "1"]
