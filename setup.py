"""Builds the wheel with the files at the top of the source that `canal init` gives a project."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
TOP = (HERE / "MANIFEST.in").read_text(encoding="utf-8").splitlines()[0].split()[1:]
"""Files of projects beside the pipeline's scripts: those that an sdist names, too."""


class WithProjectFiles(build_py):
    """Copies them beside the templates; in a source tree they are read where they lie."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        if self.editable_mode:
            return
        into = Path(self.build_lib, "canal", "app", "templates", "top")
        for name in (*TOP, *(f"pipelines/{path.name}" for path in HERE.glob("pipelines/*.py"))):
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / name, target)


setup(cmdclass={"build_py": WithProjectFiles})
