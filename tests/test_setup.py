"""tools/setup.sh: what it needs is said in one line."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.xdist_group("seen")
def test_one_process_runs_a_group_of_tests(request):
    """pytest 9.2 hid groups from pytest-xdist 3.8: servers and projects were made once in each process."""
    assert "PYTEST_XDIST_WORKER" not in os.environ or request.node.nodeid.endswith("@seen")


def test_a_wrong_python_is_one_clear_line(tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("tools/setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    fake = tmp_path / "python9"
    fake.write_text("#!/bin/sh\necho 3.12\n")
    fake.chmod(0o755)
    env = os.environ | {"PYTHON": str(fake)}
    done = subprocess.run(
        ["tools/setup.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("setup: Python 3.11 is needed, found")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / ".venv").exists()


def test_every_dependency_is_pinned():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {line.split("==")[0].lower().replace("_", "-") for line in lines_of("constraints.txt")}
    for requirement in wanted:
        name = requirement.replace("<", "=").replace(">", "=").split("=")[0].lower()
        assert name in names, f"{name} is not in constraints.txt"
    assert "torch==2.13.0" in lines_of("constraints.txt")


def lines_of(name):
    return (REPOSITORY / name).read_text().splitlines()


def test_a_step_of_the_pipeline_is_at_most_60_lines():
    long = {
        path.name: n
        for path in (REPOSITORY / "pipelines").glob("*.py")
        if (n := len(path.read_text().splitlines())) > 60
    }
    assert long == {}


def test_what_mlflow_installs_for_a_project_run_is_what_setup_installs():
    """`mlflow run` without `--env-manager local` makes an environment from python_env.yaml."""
    import tomllib

    from mlflow.projects.utils import load_project
    from mlflow.utils.environment import _PythonEnv

    project = load_project(str(REPOSITORY))
    assert (project.env_type, Path(project.env_config_path)) == ("python_env", REPOSITORY / "python_env.yaml")
    found = _PythonEnv.from_yaml(project.env_config_path)
    pinned, *names = found.dependencies
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert pinned == found.build_dependencies[0] == "-c constraints.txt"
    assert names == wanted["dependencies"]
    assert f">={found.python},<" in wanted["requires-python"]
    for entry_point in project._entry_points.values():
        assert entry_point.command.startswith("PYTHONPATH=src python pipelines/")
