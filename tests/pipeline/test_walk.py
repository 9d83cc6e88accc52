"""The walk of docs/registry.md works as it is written there."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline

PAGE = Path(__file__).resolve().parents[2] / "docs" / "registry.md"


@pytest.mark.chaos
def test_the_walk_works_as_written(line):
    walk = PAGE.read_text(encoding="utf-8").split("## A walk")[1]
    blocks = re.findall(r"```bash\n(.*?)```", walk, flags=re.DOTALL)
    assert len(blocks) >= 7
    said = line.run("bash", "-euo", "pipefail", "-c", "\n".join(blocks))
    for words in (
        "refused",
        "is the champion",
        "overridden",
        "labelled.h5ad",
        "is the champion again",
        "the ledger holds: 6 entries",
        "names 6 entries, the last with hash",
    ):
        assert words in said, f"{words!r} not in:\n{said}"
    assert (line.root / "champion.zip").stat().st_size > 10_000
