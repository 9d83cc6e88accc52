"""The wheel without extras, installed outside of the source tree: what works, what is said of the rest."""

import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

import canal
from canal.core import packages
from tests.support.installed import messages

pytestmark = pytest.mark.xdist_group("installed")

OUTSIDE = ("torch", "mlflow", "dvc", "sklearn", "matplotlib", "igraph", "sknetwork", "pyarrow", "hdf5plugin")


def test_it_is_complete_and_holds_nothing_of_the_extras(installed, tmp_path):
    pip = [sys.executable, "-m", "pip", "--python", str(installed.python), "check"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "No broken requirements found.")
    found = installed.evaluate(
        "from importlib.util import find_spec; import canal; "
        f"print(canal.__file__, [name for name in {OUTSIDE} if find_spec(name)])",
        tmp_path,
    )
    assert found.stderr == ""
    place, left = found.stdout.split(" ", 1)
    assert place.startswith(str(installed.folder))
    assert left.strip() == "[]"


def processor_seconds():
    """Return what the processes that this one started and awaited have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_version_help_and_the_module_answer(installed, tmp_path):
    began = processor_seconds()
    for words in (["--version"], ["--help"], ["annotate", "--help"]):
        done = installed.run(*words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert processor_seconds() - began < 3  # of the wall it takes less, where nothing else runs
    assert installed.run("--version", cwd=tmp_path).stdout == f"canal-cells {canal.__version__}\n"
    module = subprocess.run(
        [str(installed.python), "-m", "canal", "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert module.stdout == f"canal-cells {canal.__version__}\n"


def test_the_public_names_are_there(installed, tmp_path):
    done = installed.evaluate(
        "import canal; print([getattr(canal, name) for name in canal.__all__])", tmp_path
    )
    assert done.stderr == ""


def test_a_shell_completes_commands(installed, tmp_path):
    (tmp_path / "site" / "canal-1.0.dist-info").mkdir(parents=True)  # told of by commands, not while typing
    asked = {"COMP_WORDS": "canal anno", "COMP_CWORD": "1", "_CANAL_COMPLETE": "complete_bash"}
    done = installed.run(cwd=tmp_path, env=asked | {"PYTHONPATH": str(tmp_path / "site")})
    assert (done.stdout.split(), done.stderr) == (["annotate"], "")
    for shell in ("bash", "zsh"):
        code = f"import shellingham; shellingham.detect_shell = lambda: ({shell!r}, {shell!r})\n"
        code += "import sys; sys.argv = ['canal', '--show-completion']; from canal.cli import main; main()"
        assert "_canal_completion" in installed.evaluate(code, tmp_path).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serve",), "`canal serve` needs the packages of a server: "),
        (("tune", "run", "stage"), "`canal tune run` needs the network's package, PyTorch: "),
    ],
)
def test_a_command_that_lacks_a_package_names_the_extra_in_one_line(installed, tmp_path, words, said):
    done = installed.run(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = messages(done.stderr)
    assert line.startswith(f"canal: {said}")
    assert re.search(r'pip install "canal-cells\[\w+\]" \(\w+ is not installed\)$', line)


def test_a_public_function_that_lacks_a_package_names_the_extra(installed, tmp_path):
    code = (
        "import canal.app.annotating as module, canal\n"
        "def annotate(adata): import torch\n"
        "module.annotate = annotate\n"
        "try: canal.annotate(None)\n"
        "except canal.CanalError as error: print(error)\n"
    )
    done = installed.evaluate(code, tmp_path)
    assert done.stderr == ""
    assert done.stdout.startswith("canal.annotate needs the network's package, PyTorch: pip install")


def test_a_missing_package_of_no_extra_stays_what_it_is():
    with pytest.raises(ModuleNotFoundError, match="nobody_has_this"), packages.named_packages("this"):
        import nobody_has_this  # noqa: F401
    with pytest.raises(packages.MissingPackageError, match="this needs nobody_has_this, which is not"):
        packages.require("nobody_has_this", "this")
    packages.require("numpy", "this")


def test_another_project_called_canal_is_told_of(installed, tmp_path):
    (tmp_path / "site" / "canal-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "old" / "canal-0.1-py3.11.egg-info").mkdir(parents=True)
    (tmp_path / "own" / "canal_cells-9.0.dist-info").mkdir(parents=True)
    assert "package, canal-0.1-py3.11, is" in packages.other_canal([str(tmp_path / "old")])
    assert packages.other_canal([str(tmp_path / "own"), str(tmp_path / "not there")]) is None
    for words in (["--version"], ["versions"]):
        done = installed.run(*words, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")})
        assert "another project's package, canal-" in done.stderr
        assert "`pip uninstall canal`, then `pip install --force-reinstall" in done.stderr
        assert done.stderr.count("another project") == 1
    assert installed.run("--version", cwd=tmp_path).stderr == ""


def test_looking_for_the_other_project_takes_next_to_no_time():
    began = time.perf_counter()
    for _ in range(20):
        assert packages.other_canal() is None
    assert (time.perf_counter() - began) / 20 < 0.02


def test_nobody_is_told_to_install_the_other_project():
    root = Path(__file__).resolve().parents[1]
    places = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").rglob("*.md")]
    for path in [*places, *(root / "src").rglob("*.py"), *(root / "src").rglob("*.html")]:
        assert not re.search(r"(pip|uv|pipx) install [\"']?canal(?!-cells)", path.read_text()), path
