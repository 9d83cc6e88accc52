"""``python script.py canal ...`` runs a console script, so that a warm ``python`` can run it."""

import runpy
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
from tests.support.children import fork_children  # noqa: E402

name = sys.argv[1]
place = shutil.which(name, path=str(Path(sys.executable).parent))
if place is None:
    sys.exit(f"{name} is not installed beside {sys.executable}")
fork_children()
sys.argv = [place, *sys.argv[2:]]
runpy.run_path(place, run_name="__main__")
