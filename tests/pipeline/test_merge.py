"""`canal merge` and `canal share`: two lineages on one basis become one version, as if one had learned both."""

import json

import pytest

from canal.app.auditing import audit_project
from canal.app.joining_lineages import Decision, Joining, Overlap, merge
from canal.app.project import Project
from canal.memory.joining import all_sums
from canal.memory.stage_sums import StageSums
from tests.pipeline.conftest import Line, copied, learned_once
from tests.support.methods import empty_database, learn_here, make_line, with_database

pytestmark = pytest.mark.pipeline
ADA = Decision("A. Person", "two hospitals")
EXACT = {"method": "exact"}


def site(tmp_path_factory, stage, basis=None, **changes) -> Line:
    """Return a project that has learned one stage by sums, once for all processes of the suite."""
    empty = empty_database(tmp_path_factory)

    def make(root):
        line = with_database(make_line(root, {stage: {}}, continual=EXACT, **changes), empty)
        if basis is not None:
            line.canal("basis", "adopt", str(basis))
        return line

    def learn(line):
        learn_here(line)
        return ""

    return learned_once(tmp_path_factory, f"site-{stage}", make, learn)[0]


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Three sites, each with one stage, all on the basis of the first."""
    first = site(tmp_path_factory, "first")
    out = tmp_path_factory.mktemp("basis") / "lab.json"
    first.canal("basis", "export", "1", "-o", str(out))
    return {
        name: site(tmp_path_factory, name, None if name == "first" else out)
        for name in ("first", "second", "third")
    }


@pytest.fixture
def line(sites, tmp_path):
    return copied(sites["first"], tmp_path / "project")


def sums_of(project, number):
    version = project.store.version(str(number))
    folder = project.store.artifacts(version)
    key = json.loads((folder / "key.json").read_text())
    return StageSums.load(folder, list(key["sums"])), key


def test_one(line, sites, tmp_path):
    sites["second"].canal("export", "1", "-o", str(tmp_path / "b.zip"))
    line.canal("import", str(tmp_path / "b.zip"))
    print(line.canal("merge", "1", "2", "--by", "A. Person", "--why", "both"))
    project = Project.open(line.root)
    assert project.learned("first").number == 3
    assert [str(one) for one in audit_project(project).findings] == []
    print(line.canal("lineage", "3"))
    print(line.canal("show", "3"))
    print(line.canal("versions"))
    assert learn_here(line) == []
