"""The folder of a version: key.json, record.json and their schemas, and how the folder is assembled.

key.json identifies a model by digests, without times, paths or ids; keys chain to the backbone. The same
inputs, parameters and code on the same machine give the same key. record.json says how the version was made,
and covers the files that key.json does not.
"""

import re
import shutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from canal.annotation import columns
from canal.annotation.service import TOTALS
from canal.core.digests import file_digest, json_digest, tree_digests
from canal.core.errors import RegistryError, there_are
from canal.core.files import read_json, write_json
from canal.memory.answer import CONFIG
from canal.model.load import method_of, runs_network, types_without_sums

IMPORTED = "imported"
"""The stage in the key and in the tag ``canal.stage`` of an imported backbone."""

IMPORT_KEY = "imported.json"

FORMATS = (1, 2)
"""Formats of key.json: 1 without sums, 2 with sums."""

KEY_FILE = "key.json"

Key = dict[str, Any]

EVALUATION = "metrics/evaluation.json"
"""What a version measured when it was learned."""

RECORD_FILE = "record.json"
RECORD_FORMAT = 1
LOADED_FILE = "registered_model_meta"
"""The file that MLflow adds to a version's folder when it loads it; no manifest lists it."""

Record = dict[str, Any]

_IMPORT = re.compile(r"^(\s*(?:from|import) )canal(?=[.\s])", re.MULTILINE)

_SHIPPED = (
    *(
        "core/__init__.py",
        "core/errors.py",
        "core/progress.py",
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
"""The part of canal that a version needs to read a request and to answer: no training code."""

_REQUIRED = ("mlflow", "numpy", "pandas", "safetensors", "scipy")

Document = dict[str, Any]

Name = Literal["key", "record"]
NAMES: tuple[str, ...] = get_args(Name)

_SHOWN = 160


def write_key(folder: Path, facts: Mapping[str, Any], parent: str | None) -> Key:
    """Write ``folder/key.json`` over all other files in ``folder`` and return it.

    Parameters
    ----------
    folder : Path
        A finished ``models/<stage>``.
    facts : Mapping
        Stage, branch, data, split, panel and verdict digests, request, params, code, lock and seed.
    parent : str or None
        Digest of the parent's key.json; None for the backbone, where the chain ends.
    """
    files = {path: digest for path, digest in tree_digests(folder).items() if path != KEY_FILE}
    key = {"format": 2 if "sums" in facts else 1, **facts, "files": files, "parent": parent}
    if parent is not None:
        key["teacher"] = files.get("teacher/weights.safetensors")
    write_json(folder / KEY_FILE, key)
    return key


def read_key(folder: Path) -> Key:
    """Return the key of a model folder.

    Raises
    ------
    RegistryError
        If there is none, it is no JSON, or it is of a format this canal does not know.
    """
    path = folder / KEY_FILE
    if not path.is_file():
        raise RegistryError(f"{path} not found: the folder holds no finished model; run the pipeline again")
    try:
        key = read_json(path)
    except ValueError as error:
        raise RegistryError(f"{path} is no JSON ({error}): restore it from DVC or the registry") from error
    if not isinstance(key, dict) or key.get("format") not in FORMATS:
        listed = " and ".join(map(str, FORMATS))
        found = key.get("format") if isinstance(key, dict) else type(key).__name__
        raise RegistryError(f"{path}: this canal reads key formats {listed}, found {found!r}")
    return key


def merged_with(key: Mapping[str, Any]) -> str | None:
    """Return the digest of the other parent's key.json, where a version was merged with one, not sums."""
    merged = key.get("merged")
    return None if merged is None or merged["bundle"] else str(merged["other"])


def parent_keys(key: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the digests of the keys of a version's parents: none, one, or two where lineages were merged."""
    return tuple(one for one in (key.get("parent"), merged_with(key)) if one is not None)


def key_digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's key.json: the name under which a model is known everywhere."""
    read_key(folder)
    return file_digest(folder / KEY_FILE)


def cells_requests(key: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the requests for cells in a key: a stage's own, or those of all that a backbone saw."""
    request = key["request"]
    cells = request.get("cells") or {}
    if "declaration" in cells:
        return [cells]
    return [*cells.values(), *(request.get("unlabelled") or {}).values()]


def corpus_tables(key: Mapping[str, Any]) -> dict[str, str]:
    """Return for each unlabelled source that a backbone was pretrained on the file with the cells it saw."""
    return {name: f"corpus/{name}/cells.csv" for name in key.get("unlabelled", {})}


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Compare files with their recorded digests.

    Raises
    ------
    RegistryError
        Naming every file that is missing or holds other bytes.
    """
    wrong = [_complaint(folder / path, digest) for path, digest in sorted(digests.items())]
    complaints = [line for line in wrong if line]
    if complaints:
        raise RegistryError(
            f"{folder} does not hold what its manifest says ({len(complaints)} of {len(digests)} files):\n  "
            + "\n  ".join(complaints)
        )


def _complaint(path: Path, digest: str) -> str:
    if not path.is_file():
        return f"{path.name}: missing ({path})"
    actual = file_digest(path)
    return "" if actual == digest else f"{path}: sha256 {actual[:12]}... instead of {digest[:12]}..."


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
        Whether the model annotates cells: an annotator does, a backbone does not.
    model_id : str or None
        Its id in MLflow, for the file MLmodel.
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
    """Write ``record.json``: how the version was made, and digests of files that key.json does not cover."""
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

    scratch = target.with_name(f"{target.name}-code")
    required = (*_REQUIRED, *(["torch"] if runs_network(model / "model") else []))
    try:
        code, flavour = _ship(scratch)
        mlflow.pyfunc.save_model(
            path=target,
            python_model=str(flavour),
            artifacts={"model": str(model / "model")},
            code_paths=[str(code)],
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in required],
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

    The package is named after its content: MLflow puts it first on Python's path, where a package named canal
    would hide the installed canal and that of another version.
    """
    package = Path(__file__).resolve().parents[2]
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
    """Return Python code with imports of canal renamed."""
    return _IMPORT.sub(rf"\1{name}", text)


def _signature(genes: list[str]) -> Any:
    """Return the signature of the pyfunc; no column is required: the pyfunc names missing ones itself."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

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


def parent_stage(key: Key) -> str:
    """Return the stage of a version's parent; of a merged one that whose branch the other was merged into."""
    if "merged" in key and "unlearned" not in key:
        return str(key["stage"])
    parent = key["request"].get("parent")
    return str(parent["stage"]) if isinstance(parent, Mapping) else ""


def method_view(folder: Path, key: Key) -> Document:
    """Return the method by which a version annotates: its parts, their weight, and its sums.

    ``lacking`` names the cell types without sums, which only the network knows.

    Parameters
    ----------
    folder
        Artifacts of a version, or ``models/<stage>``.
    key
        Its key.json.
    """
    model = folder / "model"
    view: Document = {"name": method_of(model)}
    if view["name"] == "published":
        return view
    exact = read_json(model / "exact" / CONFIG)
    sums = key.get("sums", {})
    parts = list(exact["novelty"]["parts"]) if exact["novelty"] else []
    view["lacking"] = list(types_without_sums(model))
    view |= {"sums": sums, "basis": key.get("basis"), "backfilled": key.get("backfilled")}
    view |= {"merged": merged} if (merged := key.get("merged")) else {}
    view |= {"unlearned": left} if (left := key.get("unlearned")) else {}
    view["novelty"] = parts
    if view["name"] == "combined":
        combination = read_json(model / "combination.json")
        view["network_weight"] = combination["weight"]
        if combination["weight"] or view["lacking"]:
            view["novelty"] = list(combination["novelty"]["parts"]) if combination["novelty"] else []
    return view


def schema(name: str) -> dict[str, Any]:
    """Return the published schema of ``key`` or ``record``.

    Raises
    ------
    RegistryError
        If there is none of that name.
    """
    if name not in NAMES:
        raise RegistryError(f"no schema {name[:80]!r}{there_are(name, NAMES)}")
    return _read(name)


def schema_complaints(name: str, document: Any) -> list[str]:
    """Return one sentence for each field in which a document breaks its schema, in the order of the fields.

    ``name`` is key, record or evaluation.
    """
    errors = Draft202012Validator(_read(name)).iter_errors(document)
    return [_message(error) for error in sorted(errors, key=lambda one: list(map(str, one.absolute_path)))]


@cache
def _read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = read_json(Path(__file__).with_name("schemas") / f"{name}.json")
    return document


def _message(error: Any) -> str:
    place = ".".join(str(part) for part in error.absolute_path) or "the document"
    message = error.message if len(error.message) <= _SHOWN else f"{error.message[:_SHOWN]}..."
    return f"{place}: {message}"
