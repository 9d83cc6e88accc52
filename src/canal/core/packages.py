"""Packages beside canal: which extra brings a missing one, and another project's package called canal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from canal.core.errors import CanalError

DISTRIBUTION = "canal-cells"
"""canal's name on package indexes. What is called ``canal`` there is another project."""

EXTRAS = {
    "project": (
        "the packages of a project",
        ("mlflow", "dvc", "great_expectations", "optuna", "psutil", "requests", "sqlalchemy"),
    ),
    "network": ("the network's package, PyTorch", ("torch",)),
    "groups": ("the packages that group cells", ("sknetwork", "sklearn")),
    "leiden": ("the package that computes Leiden clusters", ("igraph",)),
    "report": ("the packages that draw figures and pages", ("matplotlib", "jinja2")),
    "pages": ("the packages of a version's page", ("vl_convert",)),
    "parquet": ("the package that reads and writes Parquet", ("pyarrow",)),
    "dask": ("the packages of Dask", ("distributed",)),
    "compression": ("the package of HDF5's further compressions", ("hdf5plugin",)),
    "serve": ("the packages of a server", ("uvicorn", "h11")),
    "ui": ("the packages of the board", ("starlette",)),
    "published": ("the package of the published choice of genes", ("scanpy",)),
    "postgres": ("PostgreSQL's driver", ("psycopg2",)),
    "auth": ("the package of a server's accounts", ("flask_wtf",)),
    "s3": ("the packages that read and write S3", ("boto3", "s3fs", "fsspec")),
}
"""Extra of pyproject.toml -> what it brings, in words, and the modules that canal imports of it."""


class MissingPackageError(CanalError):
    """A package is not installed that an extra of canal brings; the message names the extra."""


class _Deferred(ModuleType):
    """A module that is imported when something of it is first asked for.

    It does not stand in ``sys.modules``, unlike one of `importlib.util.LazyLoader`: whoever looks through
    these, as the import of PyTorch does, would load it in the middle of another import.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


def lazy_module(name: str) -> ModuleType:
    """Return a module that is imported when something of it is first asked for.

    For a module that few runs need and whose imports take a tenth of a second; types are checked where it is
    imported under ``TYPE_CHECKING``.

    Raises
    ------
    ModuleNotFoundError
        If there is no such module.
    """
    if (loaded := sys.modules.get(name)) is not None:
        return loaded
    if find_spec(name) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _Deferred(name)


def install_hint(extra: str) -> str:
    """Return the command that installs an extra."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


@contextmanager
def named_packages(who: str) -> Iterator[None]:
    """Translate the import of a package that is not installed into the name of the extra that brings it.

    Also a decorator: ``named_packages("canal.annotate")(function)``.

    Parameters
    ----------
    who
        What needs the package: a command or a public function.

    Raises
    ------
    MissingPackageError
        If the package belongs to an extra. Other missing modules are raised as they are.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        lacking = _lacking(module, who)
        if lacking is None:
            raise
        raise lacking from error


def require(module: str, who: str) -> None:
    """Raise unless a module is installed: asked before long work that would need it at its end.

    Raises
    ------
    MissingPackageError
        If it is not.
    """
    if sys.modules.get(module) is None and find_spec(module) is None:
        raise _lacking(module, who) or MissingPackageError(f"{who} needs {module}, which is not installed")


def _lacking(module: str, who: str) -> MissingPackageError | None:
    for extra, (what, modules) in EXTRAS.items():
        if module in modules:
            return MissingPackageError(
                f"{who} needs {what}: {install_hint(extra)} ({module} is not installed)"
            )
    return None


def other_canal(folders: list[str] | None = None) -> str | None:
    """Return a sentence about another project's ``canal`` in this environment; None where there is none.

    Both lie in the folder ``canal``, and whichever is installed, updated or removed last replaces or deletes
    files of the other. Takes a fraction of a millisecond: names in the folders of ``sys.path`` are read.
    """
    for folder in sys.path if folders is None else folders:
        for kind in ("dist-info", "egg-info"):
            for found in Path(folder or ".").glob(f"canal-*.{kind}"):
                return (
                    f"another project's package, {found.stem}, is installed beside {DISTRIBUTION} and shares "
                    "its folder `canal`, so that one overwrites the other: `pip uninstall canal`, then "
                    f"`pip install --force-reinstall --no-deps {DISTRIBUTION}` ({found})"
                )
    return None
