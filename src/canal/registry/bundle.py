"""One folder that holds all of a version: what was learned, what was measured, the pyfunc, the record.

And by what method it answers, as its files say it.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from canal.core.digests import json_digest, tree_digests
from canal.core.errors import RegistryError
from canal.core.files import read_json, write_json
from canal.registry.key import KEY_FILE, Key, key_digest, read_key

RECORD_FILE = "record.json"
RECORD_FORMAT = 1
LOADED_FILE = "registered_model_meta"
"""What MLflow adds to a version's folder, or to a copy of it, when it loads it; no manifest knows it."""

Record = dict[str, Any]

_IMPORT = re.compile(r"^(\s*(?:from|import) )canal(?=[.\s])", re.MULTILINE)

_SHIPPED = (
    *(
        "core/__init__.py",
        "core/errors.py",
        "core/files.py",
        "core/digests.py",
        "model",
        "memory",
        "data/__init__.py",
        "data/expression.py",
        "data/units.py",
    ),
    *("annotation/__init__.py", "annotation/columns.py", "annotation/service.py"),
)
"""What of canal a version needs to read a request and to answer: no training code."""

Document = dict[str, Any]


def assemble(
    model: Path, extras: Mapping[str, Path], target: Path, pyfunc: bool, model_id: str | None = None
) -> None:
    """Gather a version in ``target``: the model folder, extra files and folders, and the pyfunc.

    Parameters
    ----------
    model : Path
        A finished ``models/<stage>``.
    extras : Mapping
        Name in the version -> file or folder; those that do not exist are left out.
    target : Path
        An empty folder.
    pyfunc : bool
        Whether the model answers (an annotator does, a backbone does not).
    model_id : str or None
        What MLflow calls it; MLmodel says so.
    """
    if pyfunc:
        _save_pyfunc(model, target, model_id)
    shutil.copytree(model, target, dirs_exist_ok=True)
    for name, path in extras.items():
        if path.is_dir():
            shutil.copytree(path, target / name, dirs_exist_ok=True)
        elif path.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def write_record(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``record.json``: digests of what key.json does not cover, and how the version came to be."""
    covered = {*read_key(folder)["files"], KEY_FILE, RECORD_FILE}
    files = {path: digest for path, digest in tree_digests(folder).items() if path not in covered}
    record = {"format": RECORD_FORMAT, "key": key_digest(folder), **facts, "files": files}
    write_json(folder / RECORD_FILE, record)


def read_record(folder: Path) -> Record:
    """Return the record of a version's folder.

    Raises
    ------
    RegistryError
        If there is none, it is no JSON, or it is of a format this canal does not know.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        raise RegistryError(f"{path} not found: the folder holds no whole version; run `canal audit`")
    try:
        record = read_json(path)
    except ValueError as error:
        raise RegistryError(f"{path} is no JSON ({error}): run `canal audit`") from error
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise RegistryError(f"{path}: this canal reads record format {RECORD_FORMAT}, found {found!r}")
    return record


def _save_pyfunc(model: Path, target: Path, model_id: str | None) -> None:
    """Write MLflow's files into ``target``, with ``model/`` where the rest of the version has it."""
    import mlflow.pyfunc
    from ruamel.yaml import YAML

    scratch = target.with_name(f"{target.name}-code")
    try:
        code, flavour = _ship(scratch)
        mlflow.pyfunc.save_model(
            path=target,
            python_model=str(flavour),
            artifacts={"model": str(model / "model")},
            code_paths=[str(code)],
            pip_requirements=_requirements(),
            signature=_signature(read_json(model / "model" / "genes.json")),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(target / "artifacts")
    manifest = target / "MLmodel"
    yaml = YAML()
    document = yaml.load(manifest)
    python_function = document["flavors"]["python_function"]
    python_function["artifacts"]["model"] = {"path": "model", "uri": "model"}
    python_function["model_code_path"] = flavour.name  # MLflow notes an absolute path, but looks up the name
    document["model_id"] = model_id
    yaml.dump(document, manifest)


def _ship(scratch: Path) -> tuple[Path, Path]:
    """Put the code of a version into ``scratch``; return its package and the file that MLflow runs.

    The package is called after its content: MLflow puts it first on Python's path, where one called canal
    would hide the installed canal, and that of another version.
    """
    package = Path(__file__).resolve().parents[1]
    shipped = [package / name for name in _SHIPPED]
    sources = [one for path in shipped for one in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    texts = {one.relative_to(package).as_posix(): one.read_text(encoding="utf-8") for one in sources}
    texts["__init__.py"] = '"""What of canal this version needs to answer."""\n'
    flavour = Path(__file__).with_name("flavour.py")
    name = f"canal_{json_digest([texts, flavour.read_text(encoding='utf-8')])[:12]}"
    for path, text in texts.items():
        place = scratch / name / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_renamed(text, name), encoding="utf-8")
    entry = scratch / flavour.name
    entry.write_text(_renamed(flavour.read_text(encoding="utf-8"), name), encoding="utf-8")
    return scratch / name, entry


def _renamed(text: str, name: str) -> str:
    """Return Python code whose imports take canal by another name."""
    return _IMPORT.sub(rf"\1{name}", text)


def _requirements() -> list[str]:
    from importlib.metadata import version

    names = ("mlflow", "numpy", "pandas", "safetensors", "scipy", "torch")
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


def _signature(genes: list[str]) -> Any:
    """Return what the pyfunc takes and gives; no column must be there: it says itself what is missing."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from canal.annotation import columns
    from canal.annotation.service import TOTALS

    answers = {
        "string": (columns.CELL_TYPE, columns.BEST_TYPE, columns.RUNNER_UP, columns.ONTOLOGY_ID),
        "float": (columns.CONFIDENCE, columns.MARGIN, columns.NOVELTY),
        "boolean": (columns.IS_NOVEL, columns.LOW_QUALITY),
    }
    optional = (columns.RUNNER_UP, columns.ONTOLOGY_ID)  # not of a model of one type, or without ids
    return ModelSignature(
        inputs=Schema([ColSpec("double", name, required=False) for name in (*genes, TOTALS)]),
        outputs=Schema(
            [ColSpec(kind, name, name not in optional) for kind, names in answers.items() for name in names]
        ),
        params=ParamSchema(
            [
                ParamSpec("probabilities", "boolean", default=False),
                ParamSpec("effort", "string", default="full"),
            ]
        ),
    )


def method_view(folder: Path, key: Key) -> Document:
    """Return by what method a version answers: its parts, their weight, and the sums that it keeps.

    ``lacking`` names the types of which no cell was added up: only the network knows them.

    Parameters
    ----------
    folder
        Artifacts of a version, or ``models/<stage>``.
    key
        Its key.json.
    """
    from canal.memory.answer import CONFIG
    from canal.model.load import method_of, types_without_sums

    model = folder / "model"
    found: Document = {"name": method_of(model)}
    if found["name"] == "published":
        return found
    exact = read_json(model / "exact" / CONFIG)
    sums = key.get("sums", {})
    parts = list(exact["novelty"]["parts"]) if exact["novelty"] else []
    found["lacking"] = list(types_without_sums(model))
    found |= {"sums": sums, "basis": key.get("basis"), "backfilled": key.get("backfilled")}
    found["novelty"] = parts
    if found["name"] == "combined":
        combination = read_json(model / "combination.json")
        found["network_weight"] = combination["weight"]
        if combination["weight"] or found["lacking"]:
            found["novelty"] = list(combination["novelty"]["parts"]) if combination["novelty"] else []
    return found
