"""What every test shares: a home of its own, and no telemetry."""

import pytest


def pytest_collection_modifyitems(items):
    """Let one process learn the small project while the other runs the short tests; long ones end."""
    long = [item for item in items if "pipeline" in item.keywords]
    short = [item for item in items if "pipeline" not in item.keywords]
    items[:] = [*long[:1], *short, *long[1:]]


@pytest.fixture(autouse=True)
def isolated_home(tmp_path_factory, monkeypatch):
    """Point HOME and friends at an empty folder, so that no test reads or writes the user's settings."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home / name.lower()))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "true")
    return home
