"""A lineage of one's own, from an empty folder to a promoted version, by the example and by docs/own.md."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.pipeline.test_docs import OWN, commands_of
from tests.support.warm import REPOSITORY, environment

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("own")]

EXAMPLE = REPOSITORY / "examples" / "own_lineage.py"


@pytest.fixture(scope="module")
def begun(own_project, tmp_path_factory) -> tuple[Path, str]:
    """Run the example with canal as its wheel installs it; return its folder and what it said."""
    folder = tmp_path_factory.mktemp("own") / "pancreas"
    person = {name: value for name, value in environment(folder).items() if name.startswith(("GIT_", "DVC_"))}
    done = own_project.script(
        EXAMPLE, folder, "--cells", "700", "--stages", "1", cwd=folder.parent, env=person
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    return folder, said


@pytest.mark.chaos
def test_from_an_empty_folder_to_a_promoted_lineage(begun):
    folder, said = begun
    assert "learned  backbone (version 1), islets (version 1)" in said
    assert "everything holds" in said
    assert (folder / "labelled.h5ad").is_file()
    timed = re.findall(r"^ *(\d+\.\d)  (canal \w+)", said, re.MULTILINE)
    assert [command for _, command in timed][:3] == ["canal init", "canal plan", "canal run"]
    entries = [json.loads(line) for line in (folder / "lineage" / "ledger.jsonl").read_text().splitlines()]
    assert [one["version"] for one in entries if one["kind"] == "promote"] == [1]


def test_the_commands_of_the_page_are_those_of_the_example():
    """The page's others have tests of their own: tests/test_creating.py, of streams tests/test_streams.py."""
    example = runpy.run_path(str(EXAMPLE))["commands"](Path("folder"))
    called = [command for _, command in example if command.startswith("canal ")]
    assert len(called) == 9
    again = {"canal plan", "canal upgrade", "canal upgrade --dry-run"}
    assert [one for one in commands_of(OWN) if one not in again and " --stream " not in one] == [
        one for one in called if one not in again
    ]
