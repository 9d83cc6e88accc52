"""Whatever MLflow loads or shows of a version is compared with it: each listed field, changed in turn."""

from __future__ import annotations

import shutil

import pytest

from canal.registry.audit.full_audit import audit
from tests.faults.database_cells import Change, changed, changes, listed
from tests.pipeline.conftest import Line, move_database

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def copy(learned, tmp_path_factory):
    original, _ = learned
    copy = Line(tmp_path_factory.mktemp("shown") / "project")
    shutil.copytree(original.root, copy.root, symlinks=True)
    move_database(copy.root, original.root)
    return copy


@pytest.fixture
def project(copy):
    return copy.project()


@pytest.fixture(scope="module")
def every(copy):
    """Give a change of each listed field, of an annotator rather than of a backbone."""
    found = {}
    for change in changes(copy.root / "mlflow.db"):
        field = change.table, change.field
        if field not in found or "backbone" in found[field].about:
            found[field] = change
    return found


def told(project):
    """Return what an audit finds and what it notes."""
    report = audit(project.store, project.layout, project.config)
    return {"finding": {*map(str, report.findings)}, "note": {*map(str, report.notes)}}


def test_every_listed_field_can_be_changed_and_none_beside_them(project, every):
    assert set(every) == set(listed())
    assert told(project) == {"finding": set(), "note": set()}


@pytest.mark.parametrize("field", sorted(listed()), ids=".".join)
def test_a_changed_field_is_named(project, every, field, unopened):
    """Some of them turned what is served to another model, and everything held."""
    change = every[field]
    with changed(project.layout.database, change):
        said = told(project)
    assert any(change.named in one for one in said[listed()[field]]), (change, said)


MODEL = "(SELECT substr(source, 9) FROM model_versions WHERE name = 'canal-annotator' AND version = 2)"
RUN = "(SELECT run_id FROM model_versions WHERE name = 'canal-annotator' AND version = 2)"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (f"INSERT INTO logged_model_params VALUES ({MODEL}, 1, 'mine', 'v')", "shows mine"),
        (
            "INSERT INTO logged_model_metrics "
            f"VALUES ({MODEL}, 'mine', 0, 0, 1.0, 1, {RUN}, NULL, NULL, NULL)",
            "shows mine",
        ),
        (
            "UPDATE model_versions SET description = description || ' Mind the B cells.' "
            "WHERE name = 'canal-annotator' AND version = 2",
            "says more than canal wrote: 'Mind the B cells.'",
        ),
    ],
)
def test_what_people_add_beside_canals_own_is_a_note(project, statement, said):
    change = Change("", "", "version 2", ((statement, ()),), "")
    with changed(project.layout.database, change):
        found = told(project)
    assert found["finding"] == set()
    assert any(said in one for one in found["note"])
