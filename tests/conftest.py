"""What every test shares: a home of its own, and no telemetry."""

import gc
import os
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from canal.runtime.startup import begin
from tests.support.children import fork_children
from tests.support.installed import Installed, build_wheel, install
from tests.support.warm import serving

# As a person's shell has it: without compiled files each process that a test starts compiles canal anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
begin()  # as every process of canal: what tests import is a million objects and hardly any garbage
settings.register_profile("canal", deadline=None)  # a slow disk is no error
settings.load_profile("canal")

_STORES = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


def pytest_collection_modifyitems(items):
    """Let one process learn the small project while the other runs short tests; short ones end, too.

    A test that needs that project is a long one: it would wait for it. Short tests at the end let both
    processes end together, which a long one or a group that one process runs would not.
    """
    long, grouped, short = [], [], []
    for item in items:
        if "pipeline" in item.keywords or "learned" in item.fixturenames:
            long.append(item)
        elif item.get_closest_marker("xdist_group"):
            grouped.append(item)
        else:
            short.append(item)
    half = len(short) // 2
    items[:] = [*long[:1], *grouped, *short[:half], *long[1:], *short[half:]]


def pytest_configure(config):
    """Start what all processes share in the first of them."""
    if not hasattr(config, "workerinput"):
        shared = ExitStack()
        shared.enter_context(serving())
        config.add_cleanup(shared.close)
    os.environ.pop("COLUMNS", None)  # xdist's processes have 80; tests quote what a pipe gets
    fork_children()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure():
    """Spare the five rounds of garbage collection that end pytest a million imported objects: seconds."""
    gc.freeze()


@pytest.fixture(scope="session")
def homes(tmp_path_factory):
    """Give homes in a folder of their own: to make one beside others, pytest looks at all of them."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in count())


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Path:
    """Give a folder for the library that draws charts, which takes a second or two to pack."""
    return tmp_path_factory.mktemp("packed")


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Installed:
    """Give canal installed from its wheel without extras, once for all processes of the suite."""
    return installed_once(tmp_path_factory, "core")


@pytest.fixture(scope="session")
def drawing(tmp_path_factory) -> Installed:
    """Give canal installed from its wheel with the packages that draw figures and group cells, once."""
    return installed_once(tmp_path_factory, "drawing", ("report", "groups"))


@pytest.fixture(scope="session")
def own_project(tmp_path_factory) -> Installed:
    """Give canal installed from its wheel with all that a project needs, and pip, once."""
    extras = ("project", "groups", "network", "report")
    made = installed_once(tmp_path_factory, "project", extras)
    link = made.packages / "pip"
    if not link.exists():
        link.symlink_to(Path(find_spec("pip").submodule_search_locations[0]))
    return made


def installed_once(tmp_path_factory, name: str, extras: tuple[str, ...] = ()) -> Installed:
    """Build the wheel once for all processes of the suite, and install it under a name: some five seconds."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "installed"
    with FileLock(f"{shared}.lock"):
        if not (shared / "wheel").exists():
            shared.mkdir(exist_ok=True)
            (shared / "wheel").write_text(str(build_wheel(shared / "build")))
        if not (shared / f"{name}.done").exists():
            install(Path((shared / "wheel").read_text()), shared / name, extras)
            (shared / f"{name}.done").touch()
    return Installed(shared / name)


@pytest.fixture(autouse=True)
def isolated_home(homes, packed):
    """Point HOME and friends at a folder without settings, so that no test reads or writes the user's.

    An opened store names itself in the environment, for the programs that canal starts: the next test's
    fixtures must not find it there.
    """
    home = next(homes)
    (home / "xdg_cache_home").mkdir(parents=True)
    (home / "xdg_cache_home" / "canal").symlink_to(packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
            patch.setenv(name, str(home / name.lower()))
        for name in _STORES:
            patch.delenv(name, raising=False)
        patch.setattr("canal.core.progress._WATCH.is_on", False)  # steps that tests run here turn it on
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("DVC_NO_ANALYTICS", "true")
        yield home
    for name in _STORES:
        os.environ.pop(name, None)
