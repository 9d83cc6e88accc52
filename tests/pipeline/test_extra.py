"""A backbone that is pretrained on a later stage's cells, too: past its gate, and on record."""

import shutil

import pytest

from canal.core.digests import file_digest
from canal.core.files import read_json

pytestmark = pytest.mark.pipeline


@pytest.mark.chaos
def test_extra_stages_pass_their_gate_first_and_stand_in_the_key(line):
    line.edit(lambda document: document["backbone"].update(extra_stages=["second"], branch=2))
    verdict = line.root / "verdicts" / "second"
    shutil.move(verdict, line.root / "kept")
    said = line.run("python", "pipelines/pretrain.py", expect=1)
    assert "verdicts/second/verdict.json: no verdict; run the stage's gate" in said
    shutil.move(line.root / "kept", verdict)
    line.run("dvc", "repro", "--quiet", "pretrain")
    key = read_json(line.root / "models" / "backbone" / "key.json")
    assert key["extra_stages"]["second"] == {
        "prepared_sha256": read_json(line.root / "prepared" / "second" / "prepared.json")["sha256"],
        "split": file_digest(line.root / "splits" / "second.csv"),
        "verdict": file_digest(verdict / "verdict.json"),
    }
