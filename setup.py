"""Builds the wheel with the files at the top of the source that `canal init` gives a project."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TOP = (
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvcignore",
    ".gitattributes",
    ".gitignore",
    "MLproject",
    "data.dvc",
    "dvc.yaml",
    "gate/README.md",
    "params.yaml",
)


class WithProjectFiles(build_py):
    """Copies them beside the templates; in a source tree they are read where they lie."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        if self.editable_mode:
            return
        here, into = Path(__file__).parent, Path(self.build_lib, "canal", "app", "templates", "top")
        for name in (*TOP, *(f"pipelines/{path.name}" for path in here.glob("pipelines/*.py"))):
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(here / name, target)


setup(cmdclass={"build_py": WithProjectFiles})
