"""tools/setup.sh: what it needs is said in one line."""

import ast
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
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
    fake.write_text("#!/bin/sh\necho 3.14\n")
    fake.chmod(0o755)
    env = os.environ | {"PYTHON": str(fake)}
    done = subprocess.run(
        ["tools/setup.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("setup: Python 3.11, 3.12 or 3.13 is needed, found")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / ".venv").exists()


def test_every_dependency_is_pinned():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = with_extras(project, *project["optional-dependencies"])
    names = {plain(line) for line in lines_of("constraints.txt")}
    for requirement in wanted:
        assert plain(requirement) in names, f"{requirement} is not in constraints.txt"
    assert "torch==2.13.0" in lines_of("constraints.txt")


def with_extras(project, *extras):
    """The requirements of canal with some extras, in order: one extra may name others."""
    found = [*project["dependencies"]]
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            if requirement.startswith("canal-cells["):
                named = requirement.partition("[")[2].strip("]").split(",")
                found += with_extras(project, *named)
            else:
                found.append(requirement)
    return sorted(set(found))


def test_constraints_are_the_versions_of_the_lock():
    """`python tools/lock.py` writes both; every version of the lock has hashes, and no index is named."""
    spec = importlib.util.spec_from_file_location("lock", REPOSITORY / "tools" / "lock.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert tool.constraints(lock) == (REPOSITORY / "constraints.txt").read_text()
    pins = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)[1:]
    assert len(pins) == len(lines_of("constraints.txt")) > 200
    assert all("--hash=sha256:" in pin for pin in pins)
    assert "://" not in lock


def lines_of(name):
    return (REPOSITORY / name).read_text().splitlines()


def test_a_step_of_the_pipeline_is_at_most_60_lines():
    long = {
        path.name: n
        for path in (REPOSITORY / "pipelines").glob("*.py")
        if (n := len(path.read_text().splitlines())) > 60
    }
    assert long == {}


def test_an_extra_is_named_for_every_module_that_canal_may_lack():
    """A package outside of the core is imported only if `canal.core.packages` says which extra brings it."""
    import tomllib
    from importlib.metadata import packages_distributions

    from canal.core.packages import EXTRAS

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    core = {plain(one) for one in with_extras(project)} | {"zarr"}  # of anndata
    named = {module for _, modules in EXTRAS.values() for module in modules}
    distributions = packages_distributions()
    for module in imported(REPOSITORY / "src" / "canal") - named - set(sys.stdlib_module_names) - {"canal"}:
        brought = {plain(one) for one in distributions.get(module, [module])}
        assert brought & core, f"{module} is neither of the core nor of an extra"
    for extra, (_, modules) in EXTRAS.items():
        brings = {plain(one) for one in with_extras(project, extra)} | {"sqlalchemy", "h11"}  # of others
        for module in modules:
            assert {plain(one) for one in distributions.get(module, [module])} & brings or extra == "s3"


def plain(requirement):
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=\[]", requirement)[0]).lower()


def imported(folder):
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    return found


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
    assert names == with_extras(wanted, "compression", "parquet", "serve")
    assert f">={found.python},<" in wanted["requires-python"]
    for entry_point in project._entry_points.values():
        assert entry_point.command.startswith("PYTHONPATH=src python pipelines/")


def test_a_moved_environment_starts_the_python_beside_it(tmp_path):
    """`make run` after `mv` ended in a traceback: the scripts named an interpreter that was gone."""
    old, new = tmp_path / "old", tmp_path / "new place"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(old / ".venv")], check=True)
    scripts = {
        "dvc": f"#!{old}/.venv/bin/python{sys.version_info[0]}.{sys.version_info[1]}\nprint('dvc runs')\n",
        "mlflow": f"#!/bin/sh\n'''exec' \"{old}/.venv/bin/python\" \"$0\" \"$@\"\n' '''\n"
        "print('mlflow runs')\n",
        "system": "#!/usr/bin/python3\n",
        "other": "#!/usr/bin/env bash\necho other\n",
    }
    for name, text in scripts.items():
        (old / ".venv" / "bin" / name).write_text(text)
        (old / ".venv" / "bin" / name).chmod(0o755)
    packages = next((old / ".venv").glob("lib/python*/site-packages"))
    (packages / "__editable__.canal_cells-0.1.0.pth").write_text(f"{old}/src\n{old}-other/src\n")
    old.rename(new)
    bin_ = new / ".venv" / "bin"
    command = [str(bin_ / "python"), str(REPOSITORY / "tools" / "relocate.py"), str(new / ".venv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 4
    assert (bin_ / "system").read_text() == scripts.pop("system")
    for name in scripts:
        said = subprocess.run([str(bin_ / name)], capture_output=True, text=True, check=True).stdout
        assert said == f"{name} runs\n" if name != "other" else "other\n"
    packages = next((new / ".venv").glob("lib/python*/site-packages"))
    assert (packages / "__editable__.canal_cells-0.1.0.pth").read_text() == f"{new}/src\n{old}-other/src\n"
    assert f"{old}/" not in (bin_ / "activate").read_text()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"


@pytest.mark.parametrize("name", ["a:b", 'a"b', "a$b", "a`b", "a\\b", "a?b", "a%20b"])
def test_a_folder_that_tools_misread_is_one_clear_line(tmp_path, name):
    (tmp_path / name / "tools").mkdir(parents=True)
    shutil.copy(REPOSITORY / "tools" / "setup.sh", tmp_path / name / "tools")
    done = subprocess.run(
        ["tools/setup.sh"], cwd=tmp_path / name, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"setup: the project lies in {tmp_path / name}: its tools misread")
    assert len(done.stderr.splitlines()) == 1


def test_a_set_up_environment_that_was_moved_is_set_up_without_a_network(tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("tools/setup.sh", "tools/relocate.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    venv = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (venv / "bin" / "canal").write_text("#!/gone/.venv/bin/python\n")
    (venv / "bin" / "canal").chmod(0o755)
    content = (tmp_path / "pyproject.toml").read_bytes() + (tmp_path / "constraints.txt").read_bytes()
    digest = hashlib.sha256(content + b"run \n").hexdigest()
    (venv / ".canal-run").write_text(f"{digest}\n/gone\n")
    (venv / ".canal-test").write_text("another\n/gone\n")
    env = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX"}
    done = subprocess.run(
        ["tools/setup.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "came from another folder" in done.stdout
    assert (venv / "bin" / "canal").read_text() == f"#!{venv}/bin/python\n"
    assert (venv / ".canal-test").read_text() == f"another\n{tmp_path}\n"
    again = subprocess.run(["tools/setup.sh"], cwd=tmp_path, env=env, capture_output=True, check=True)
    assert again.stdout == b""
