"""The pyfunc of a version, asked as MLflow's scoring server asks it: right answers, or 400 and why."""

import ast
import json
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from canal.annotation.columns import columns_of, join_blocks
from canal.annotation.service import TOTALS
from canal.registry.manifest.version_folder import assemble
from canal.runtime.startup import quiet_libraries
from tests.support.cells import gene_names
from tests.support.models import make_annotator
from tests.support.sums import make_exact
from tests.support.warm import REPOSITORY

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"


@pytest.fixture(scope="module")
def annotator():
    return make_annotator().with_ontology({"B": "CL:0000236"})


@pytest.fixture(scope="module")
def version(annotator, tmp_path_factory):
    """Give the folder of a version with its pyfunc."""
    quiet_libraries()
    folder = tmp_path_factory.mktemp("version")
    annotator.save(folder / "learned" / "model")
    (folder / "version").mkdir()
    assemble(folder / "learned", {}, folder / "version", pyfunc=True)
    return folder / "version"


@pytest.fixture(scope="module")
def model(version):
    """Give the pyfunc as MLflow loads it, which puts the code that travels with it first on the path."""
    import mlflow

    path = [*sys.path]
    try:
        return mlflow.pyfunc.load_model(str(version))
    finally:
        sys.path[:] = path


@pytest.fixture(scope="module")
def ask(model):
    """Give what answers a body with (HTTP status, JSON document)."""
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    def asked(body, kind=JSON):
        body = json.dumps(body) if isinstance(body, dict) else body
        try:
            answer = invocations(body, kind, model, model.metadata.get_input_schema())
            return answer.status, json.loads(answer.response)
        except MlflowException as error:
            return error.get_http_status_code(), json.loads(error.serialize_as_json())

    return asked


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import mlflow, numpy, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
genes = model.metadata.get_input_schema().input_names()[:20]
cells = pandas.DataFrame(0.5 * numpy.ones((2, 20)), columns=genes)
print(len(model.predict(cells)))
"""


@pytest.mark.parametrize("method", ["exact", "published"])
def test_a_version_requires_torch_only_where_it_runs_a_network(tmp_path, annotator, method):
    quiet_libraries()
    model, target = tmp_path / "learned" / "model", tmp_path / "version"
    if method == "exact":
        exact = make_exact()
        exact.save(model / "exact")
        for name in ("labels", "genes"):
            (model / f"{name}.json").write_text(json.dumps(list(getattr(exact, name))))
    else:
        annotator.save(model)
    target.mkdir()
    assemble(tmp_path / "learned", {}, target, pyfunc=True)
    required = (target / "requirements.txt").read_text()
    assert ("torch" in required) == (method == "published")
    if method == "exact":
        command = [sys.executable, "-c", WITHOUT_TORCH, str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "2", done.stderr[-2000:]


def test_the_code_of_a_version_hides_no_other_canal(version, model):
    """MLflow put the shipped package first on the path; `canal` is still the installed one, whole."""
    import canal

    assert canal.__file__ == str(REPOSITORY / "src" / "canal" / "__init__.py")
    assert callable(canal.annotate)
    (room,) = [name for name in sys.modules if re.fullmatch(r"canal_[0-9a-f]{12}\.model\.annotator", name)]
    assert Path(sys.modules[room].__file__).is_relative_to(version)
    package = Path(sys.modules[room].__file__).parents[1]
    sources = [*package.rglob("*.py"), package.parents[1] / "flavour.py"]
    assert len(sources) > 20
    for source in sources:
        names = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(source.read_text()))
            for name in imported(node)
        }
        assert "canal" not in names, source


def imported(node):
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0
        return [node.module]
    return [one.name for one in node.names] if isinstance(node, ast.Import) else []


def split(genes, rows, **more):
    return {"dataframe_split": {"columns": list(genes), "data": rows}, **more}


def test_every_form_of_the_same_cells_has_the_same_answer(annotator, ask):
    genes = [*annotator.genes, TOTALS]
    rows = np.random.default_rng(0).integers(0, 5, size=(3, 20)).tolist()
    rows = [[*row, sum(row) + 50] for row in rows]
    table = pd.DataFrame(rows, columns=genes)
    parquet = BytesIO()
    table.astype(np.float32).to_parquet(parquet)
    bodies = (
        (split(genes, rows), JSON),
        ({"dataframe_records": table.to_dict(orient="records")}, JSON),
        ({"inputs": table.to_dict(orient="list")}, JSON),
        (table.to_csv(index=False), CSV),
        (parquet.getvalue(), PARQUET),
    )
    counts = np.array(rows, dtype=np.float64)
    expression = np.log2(1 + counts[:, :20] / counts[:, 20:] * 1e4).astype(np.float32)
    columns = columns_of(annotator.predict(expression), np.zeros(3, dtype=bool), annotator.labels)
    wanted = join_blocks([columns], annotator.ontology)
    for body, kind in bodies:
        status, answer = ask(body, kind)
        assert status == 200
        pd.testing.assert_frame_equal(
            pd.DataFrame(answer["predictions"]),
            wanted,
            check_dtype=False,
            check_categorical=False,
            rtol=0,
            atol=1e-6,
        )


def test_the_signature_names_what_is_taken_and_given(annotator, model, ask):
    inputs, outputs = model.metadata.get_input_schema(), model.metadata.get_output_schema()
    assert inputs.input_names() == [*annotator.genes, TOTALS]
    assert inputs.required_input_names() == []
    _, answer = ask(split(annotator.genes, [[0.5] * 20]))
    given = answer["predictions"][0]
    assert sorted(given) == sorted(outputs.input_names())
    kinds = {str: "string", float: "float", bool: "boolean"}
    types = {name: kinds[type(value)] for name, value in given.items()}
    assert types == {one.name: one.type.name for one in outputs.inputs}


def test_all_probabilities_are_given_where_asked_for(annotator, ask):
    _, answer = ask(split(annotator.genes, [[0.5] * 20], params={"probabilities": True}))
    given = answer["predictions"][0]
    assert sum(given[f"canal_p_{label}"] for label in annotator.labels) == pytest.approx(1, abs=1e-6)
    assert ask(split(annotator.genes, [[0.5] * 20], params={"probabilities": "all"}))[0] == 400


def test_large_requests_are_answered_block_by_block(annotator, ask):
    rows = np.round(np.random.default_rng(1).random((600, 20)), 3).tolist()
    _, whole = ask(split(annotator.genes, rows))
    for i in (0, 255, 256, 599):
        _, alone = ask(split(annotator.genes, [rows[i]]))
        assert alone["predictions"][0] == pytest.approx(whole["predictions"][i], abs=1e-6)


GENES, ROW = gene_names(20), [0.5] * 20
BAD = {
    "unknown columns only": (split(["x", "y"], [[1.0, 2.0]]), "0 of the model's 20 genes"),
    "no columns": (split([], []), "0 of the model's 20 genes"),
    "no records": ({"dataframe_records": []}, "0 of the model's 20 genes"),
    "too few genes": (split(["CD3D", "LYZ", TOTALS], [[1, 2, 9]]), "2 of the model's 20 genes"),
    "no rows": (split(GENES, []), "no rows"),
    "NaN": (split(GENES, [[float("nan"), *ROW[1:]]]), "missing or NaN"),
    "null": (split(GENES, [[None, *ROW[1:]]]), "missing or NaN"),
    "infinite": (split(GENES, [[float("inf"), *ROW[1:]]]), "infinite"),
    "negative": (split(GENES, [[-1, *ROW[1:]]]), "negative"),
    "text": (split(GENES, [["many", *ROW[1:]]]), "'many'"),
    "a list": (split(GENES, [[[1, 2], *ROW[1:]]]), "Failed to convert column"),
    "a huge number": (split(GENES, [[10**400, *ROW[1:]]]), "too large"),
    "counts": (split(GENES, [[3] * 20]), "Add a column canal_total_counts"),
    "totals too small": (split([*GENES, TOTALS], [[*[3] * 20, 10]]), "less than the sum"),
    "totals missing": (split([*GENES, TOTALS], [[*[3] * 20, None]]), "every cell needs its"),
    "rows of other lengths": (split(GENES, [ROW[1:]]), "20 columns"),
    "a column twice": (split([*GENES, "CD3D"], [[*ROW, 0.5]]), "Failed to enforce schema"),
    "nothing": ("", "valid JSON"),
    "half": ('{"dataframe_split": {"columns": [', "valid JSON"),
    "no object": ("[1, 2]", "JSON dictionary"),
    "an empty object": ("{}", "JSON dictionary"),
    "no text": (b"\xff\xfe\x00", "valid JSON"),
}


@pytest.mark.parametrize("why", BAD)
def test_what_cannot_be_answered_is_400_and_says_why(ask, why):
    body, said = BAD[why]
    status, answer = ask(body)
    assert status == 400
    assert said in answer["message"]
