"""examples/server: PostgreSQL, an object store and accounts behind one server, by systemd or compose."""

import os
import re
import subprocess

from ruamel.yaml import YAML

from tests.support.servers import EXAMPLES


def test_systemd_and_compose_start_the_script_that_tests_ran():
    """No container is pulled and no unit started here: what they run is what `make chaos` runs."""
    unit = (EXAMPLES / "canal-mlflow.service").read_text()
    assert re.search(r"(?m)^ExecStart=/opt/canal/examples/server/mlflow\.sh$", unit)
    assert "EnvironmentFile=/etc/canal/server.env" in unit
    compose = YAML(typ="safe").load(EXAMPLES / "compose.yaml")
    services = compose["services"]
    assert 'CMD ["/canal/mlflow.sh"]' in (EXAMPLES / "Dockerfile").read_text()
    published = [port for one in services.values() for port in one.get("ports", [])]
    assert published == ["127.0.0.1:5000:5000"], "nothing but the server is reached from outside, by TLS"
    asked = set(re.findall(r"\$\{(\w+)", (EXAMPLES / "compose.yaml").read_text()))
    named = set(re.findall(r"(?m)^(\w+)=", (EXAMPLES / "server.env").read_text()))
    assert asked <= named
    script = set(re.findall(r"\$\{(\w+):\?", (EXAMPLES / "mlflow.sh").read_text()))
    assert script <= named & set(services["mlflow"]["environment"])
    done = subprocess.run(
        [EXAMPLES / "mlflow.sh"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode != 0
    assert "MLFLOW_BACKEND_STORE_URI: which database?" in done.stderr
