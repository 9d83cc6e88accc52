import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from canal.continual.novelty_choice import fit_network_centroids
from canal.core.errors import CanalError, ModelError, SumsError
from canal.memory.answer import ExactAnnotator
from canal.memory.prediction import Calibration, unsqueezed
from canal.model import COMBINATION
from canal.model.annotator import Annotator
from canal.model.combined import (
    Combination,
    CombinedAnnotator,
    CombinedRule,
    FastAnnotator,
    read_combination,
)
from canal.model.load import load_model, method_of, sums_alone
from tests.support.models import LABELS, make_annotator, make_combined
from tests.support.sums import make_cells, make_exact, make_sums
from tests.support.warm import REPOSITORY

CELLS, _ = make_cells(("B", "NK", "T", "Mono"), 20, stage="third")
ARRAYS = ("confidence", "novelty", "is_novel", "probabilities", "logits")


def same(one, other):
    return one.labels == other.labels and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS
    )


# Two answers become one


@pytest.fixture
def logits():
    """What a network says of five cells and six types, and the sums, which do not know the last."""
    random = np.random.default_rng(0)
    exact = Calibration().log_probabilities(np.c_[random.normal(0, 3, (5, 5)), np.full(5, -np.inf)])
    return random.normal(0, 3, (5, 6)), exact


@settings(max_examples=60)
@given(st.integers(0, 9999), st.floats(0, 1), st.floats(0.05, 20), st.data())
def test_probabilities_are_shared_out_whatever_each_side_knows(seed, weight, temperature, data):
    random, n = np.random.default_rng(seed), 4
    kinds = data.draw(st.lists(st.sampled_from(["both", "network", "sums"]), min_size=1, max_size=n))
    sides = []
    for other in ("sums", "network"):
        values = random.normal(0, 30, (3, len(kinds)))
        values[:, [kind == other for kind in kinds]] = -np.inf
        sides.append(values)
    if not all(np.isfinite(side).any() for side in sides):
        return
    exact = Calibration().log_probabilities(sides[1])
    found = Combination(weight, temperature).of(sides[0], exact)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0)


def test_without_weight_the_sums_answer_and_with_all_the_network(logits):
    network, exact = (side[:, :5] for side in logits)
    np.testing.assert_allclose(Combination(0.0, 2.0).of(network, exact), exact, atol=1e-12)
    said = Calibration(2.0).log_probabilities(network)
    np.testing.assert_allclose(Combination(1.0, 2.0).of(network, exact), said, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_type_that_one_side_knows_keeps_what_it_says(logits, weight):
    network, exact = logits
    own = Calibration(2.0).log_probabilities(network)[:, 5]
    np.testing.assert_allclose(Combination(weight, 2.0).of(network, exact)[:, 5], own)
    masked = network.copy()
    masked[:, 0] = -np.inf
    found = Combination(weight, 2.0).of(
        masked, Calibration().log_probabilities(exact[:, :5][:, [0, 1, 2, 3, 4, 4]])
    )
    assert np.isfinite(found).all()


def test_unlikely_is_not_unknown():
    """A probability that a float cannot hold is of a type that is known: the network alone may not decide."""
    network = np.array([[5.0, 0.0, 0.0]])
    exact = Calibration().log_probabilities(np.array([[-2000.0, 0.0, -1.0]]))
    assert Calibration().probabilities(np.array([[-2000.0, 0.0, -1.0]]))[0, 0] == 0
    assert Combination(0.25, 1.0).of(network, exact).argmax() == 1
    beside = np.vstack([exact, Calibration().log_probabilities(np.zeros((1, 3)))])
    found = Combination(0.25, 1.0).of(np.vstack([network, network]), beside)
    np.testing.assert_array_equal(found[0], Combination(0.25, 1.0).of(network, exact)[0])


@given(st.floats(0.05, 20), st.sampled_from([0.0, 0.002, 0.04]), st.integers(0, 999))
@settings(max_examples=30)
def test_a_calibration_gives_probabilities_and_their_logarithms(temperature, floor, seed):
    logits = np.random.default_rng(seed).normal(0, 50, (4, 5))
    logits[:, 3] = -np.inf
    made = Calibration(temperature, floor)
    shares = made.probabilities(logits)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert (shares[:, 3] == 0).all()
    assert (shares[:, [0, 1, 2, 4]] >= floor / 4).all()
    np.testing.assert_allclose(np.exp(made.log_probabilities(logits)), shares, atol=1e-12)
    assert (shares.argmax(axis=1) == logits.argmax(axis=1)).all()


@pytest.mark.parametrize(
    "values", [(0.0, 0.0), (-1.0, 0.0), (np.nan, 0.0), (np.inf, 0.0), (1.0, 1.0), (1.0, -0.1)]
)
def test_what_is_no_calibration_is_refused(values):
    with pytest.raises(SumsError, match="temperature above 0"):
        Calibration(*values)


@pytest.mark.parametrize("values", [(-0.1, 1.0), (1.1, 1.0), (0.5, 0.0), (np.nan, 1.0), (True, 1.0)])
def test_what_is_no_combination_is_refused(values):
    with pytest.raises(ModelError, match=r"weight of 0\.\.\.1"):
        Combination(*values)


@pytest.mark.parametrize(
    "values",
    [({}, 0.5), ({"other": (0.0, 1.0)}, 0.5), ({"angle": (0.0, 0.0)}, 0.5), ({"angle": (0.0, 1.0)}, np.nan)],
)
def test_what_is_no_novelty_rule_is_refused(values):
    with pytest.raises(ModelError, match="combined novelty rule"):
        CombinedRule(*values)


def test_unsqueezed_is_the_inverse_of_squeezed():
    values = np.array([-30.0, -1.0, 0.0, 2.0, 30.0])
    np.testing.assert_allclose(unsqueezed(0.5 + 0.5 * np.tanh(values / 4)), values, rtol=1e-3)
    assert np.isfinite(unsqueezed(np.array([0.0, 1.0]))).all()


# The annotator


@pytest.mark.parametrize("gone", [(), ("GENE003",), tuple(f"GENE{i:03d}" for i in range(9))], ids=len)
@pytest.mark.parametrize("fast", [False, True], ids=["full", "fast"])
def test_an_answer_does_not_depend_on_neighbours(fast, gone):
    """But for the last bits of float32, where the network is asked; which cells it is asked about is sure."""
    annotator: CombinedAnnotator | FastAnnotator = make_combined().without(gone)
    if fast:
        annotator = FastAnnotator(annotator)
    whole = annotator.predict(CELLS)
    for size in (1, 7):
        for start in range(0, 21, size):
            rows = slice(start, start + size)
            part = annotator.predict(CELLS[rows])
            assert part.labels == whole.labels[rows]
            np.testing.assert_array_equal(part.is_novel, whole.is_novel[rows])
            if fast:
                np.testing.assert_array_equal(part.by_network, whole.by_network[rows])
            for name in ("confidence", "novelty", "probabilities", "logits"):
                np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[rows], atol=1e-5)
    np.testing.assert_allclose(whole.probabilities.sum(axis=1), 1.0)


def test_network_and_sums_must_be_of_one_lineage():
    combined = make_combined()
    with pytest.raises(ModelError, match="other types or genes"):
        replace(combined, exact=make_exact(make_sums(), LABELS[::-1]))


# Fast


def test_the_network_predicts_unsure_cells_alone(monkeypatch):
    margins = np.sort(make_combined().exact.predict(CELLS).probabilities, axis=1)[:, -2:]
    margin = float(np.quantile(margins[:, 1] - margins[:, 0], 0.3))
    annotator, asked = FastAnnotator(make_combined(fast_margin=margin)), []
    predict = Annotator.predict_beside

    def noted(self, cells, *arguments):
        asked.append(cells)
        return predict(self, cells, *arguments)

    monkeypatch.setattr(Annotator, "predict_beside", noted)
    said, sums = annotator.predict(CELLS), annotator.whole.exact.predict(CELLS)
    top = np.sort(sums.probabilities, axis=1)
    unsure = top[:, -1] - top[:, -2] < margin
    assert 0 < unsure.sum() < len(CELLS)
    np.testing.assert_array_equal(said.by_network, unsure)
    np.testing.assert_array_equal(np.concatenate(asked), CELLS[unsure])
    whole = annotator.whole.predict(CELLS[unsure])
    for row, by_network in enumerate(unsure):
        right, place = (whole, unsure[:row].sum()) if by_network else (sums, row)
        assert said.labels[row] == right.labels[place]
        for name in ("confidence", "novelty", "is_novel", "probabilities"):
            np.testing.assert_array_equal(getattr(said, name)[row], getattr(right, name)[place])
    np.testing.assert_allclose(annotator.probabilities(said.logits), said.probabilities, atol=1e-12)


def test_sure_cells_never_wake_the_network(monkeypatch):
    monkeypatch.setattr(Annotator, "predict", None)
    said = FastAnnotator(make_combined(fast_margin=0.0)).predict(CELLS)
    assert not said.by_network.any()
    assert said.labels == make_combined().exact.predict(CELLS).labels


def test_fast_and_full_have_different_records():
    whole = make_combined()
    assert FastAnnotator(whole).digest() != whole.digest()
    assert FastAnnotator(whole).about()["effort"] == "fast"
    assert "effort" not in whole.about()


# Stored


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("combined") / "model"
    make_combined().save(folder)
    return folder


def test_a_loaded_model_answers_with_the_same_bits(folder):
    assert method_of(folder) == "combined"
    assert same(load_model(folder).predict(CELLS), make_combined().predict(CELLS))
    assert load_model(folder).digest() == make_combined().digest()
    fast = load_model(folder, "fast")
    assert isinstance(fast, FastAnnotator)
    assert same(fast.predict(CELLS), FastAnnotator(make_combined()).predict(CELLS))


NO_TORCH = """
import sys
import numpy as np
from pathlib import Path
from canal.model.load import load_model
for effort in ("full", "fast"):
    load_model(Path(sys.argv[1]), effort).predict(np.ones((2, 20), dtype=np.float32))
print(*sorted({name.split(".")[0] for name in sys.modules} & {"torch", "mlflow", "sklearn", "pandas"}))
"""


@pytest.mark.parametrize("kind", ["without weight", "sums alone"])
def test_where_the_network_has_no_weight_it_is_never_loaded(tmp_path, kind):
    """Its files need not even be there."""
    combined = make_combined(weight=0.0)
    combined.exact.save(tmp_path / "exact")
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    if kind == "without weight":
        document = {"format": 1, **combined.combination.to_json(), "novelty": None}
        (tmp_path / COMBINATION).write_text(json.dumps(document))
    command = [sys.executable, "-c", NO_TORCH, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert isinstance(load_model(tmp_path), ExactAnnotator)


WITHOUT_TORCH = """
import sys
import numpy as np
from pathlib import Path
sys.modules["torch"] = None  # as if it were not installed
from canal.core.errors import ModelError
from canal.memory.answer import ExactAnnotator
from canal.model.load import load_model, sums_alone
folder, cells = Path(sys.argv[1]), np.ones((2, 20), dtype=np.float32)
fast = load_model(folder, "fast")
assert isinstance(fast, ExactAnnotator) and sums_alone(folder, "fast")
assert fast.predict(cells).labels == ExactAnnotator.load(folder / "exact").predict(cells).labels
for effort, model in (("full", folder), ("full", folder / "published")):
    try:
        load_model(model, effort)
    except ModelError as error:
        print(error)
"""


def test_without_torch_the_sums_answer_if_asked_to_and_else_it_is_told(folder, tmp_path):
    make_annotator().save(folder / "published")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    combined, published = done.stdout.splitlines()
    assert "canal-cells[network]" in combined
    assert "--effort fast" in combined
    assert "canal-cells[network]" in published
    assert "--effort" not in published
    assert not sums_alone(folder, "fast")  # torch is installed here


# Where the types lie in the network


def placed(*parts):
    """Return a network and sums whose novelty asks where types lie in the network, too."""
    combined = make_combined()
    cells, types = make_cells(LABELS, 40, stage="third", seed=11)
    scores = combined.network.gene_scores(cells)
    centroids = fit_network_centroids(combined.network.network.head, scores, types).only(parts)
    rule = CombinedRule({"relative": (0.0, 5.0), **dict.fromkeys(parts, (0.5, 500.0))}, 0.5)
    return replace(combined, novelty=rule, centroids=centroids)


@pytest.mark.parametrize("parts", [("manifold",), ("network_angle",), ("network_angle", "manifold")])
def test_centroids_in_the_network_are_kept_with_the_model(tmp_path, parts):
    combined = placed(*parts)
    combined.save(tmp_path / "model")
    loaded = CombinedAnnotator.load(tmp_path / "model")
    assert same(loaded.predict(CELLS), combined.predict(CELLS))
    assert loaded.digest() == combined.digest() != make_combined().digest()
    assert not np.array_equal(combined.predict(CELLS).novelty, make_combined().predict(CELLS).novelty)
    assert read_combination(tmp_path / "model")[1].in_network == parts
    one_by_one = [combined.predict(CELLS[row : row + 1]).novelty[0] for row in range(8)]
    np.testing.assert_allclose(one_by_one, combined.predict(CELLS).novelty[:8], atol=1e-5)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_every_file_of_a_model_may_be_read_by_whom_the_umask_lets(tmp_path, umask):
    before = os.umask(umask)
    try:
        placed("network_angle", "manifold").save(tmp_path / "model")
        replace(make_combined().network, centroids=None).save(tmp_path / "teacher")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"weights.safetensors", "network_places.safetensors"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def test_centroids_in_the_network_differ_with_where_the_types_lie():
    moved = placed("manifold")
    further = replace(moved.centroids.manifold, centres=moved.centroids.manifold.centres + 50)
    other = replace(moved, centroids=replace(moved.centroids, manifold=further))
    assert other.digest() != moved.digest()
    assert (other.predict(CELLS).novelty > moved.predict(CELLS).novelty).all()


def test_the_angle_leaves_out_genes_that_were_never_measured():
    combined = placed("network_angle", "manifold")
    gone = combined.genes[:5]
    without = combined.without(gone)
    assert without.centroids.angle.spread[:5].isinf().all()
    assert without.centroids.manifold is combined.centroids.manifold
    assert np.isfinite(without.predict(CELLS).novelty).all()


@pytest.mark.parametrize("damage", ["gone", "cut", "nan", "half", "more types", "spread"])
def test_damaged_centroids_in_the_network_are_refused(tmp_path, damage):
    folder = tmp_path / "model"
    placed("network_angle", "manifold").save(folder)
    path = folder / "network_places.safetensors"
    tensors = load_file(path)
    if damage == "nan":
        tensors["manifold.centres"][0, 0] = torch.nan
    elif damage == "half":
        del tensors["manifold.whitening"]
    elif damage == "more types":
        tensors["angle.profiles"] = torch.ones(9, 21)
        tensors["manifold.centres"] = torch.ones(9, 128)
    elif damage == "spread":
        tensors["angle.spread"][3] = 0
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        save_file(tensors, path)
    with pytest.raises(ModelError, match="restore the model"):
        CombinedAnnotator.load(folder)


def test_a_published_version_has_no_fast_answer(tmp_path):
    make_combined().network.save(tmp_path / "model")
    assert method_of(tmp_path / "model") == "published"
    assert isinstance(load_model(tmp_path / "model"), Annotator)
    with pytest.raises(ModelError, match=r"leave --effort out, or add sums with `canal sums backfill`"):
        load_model(tmp_path / "model", "fast")


@pytest.mark.parametrize("change", [1, 0x80, 0xFF])
def test_a_damaged_combination_is_refused_or_read(folder, change):
    path = folder / COMBINATION
    whole = path.read_bytes()
    try:
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            try:
                read_combination(folder)
            except CanalError:
                continue
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": 3},
        {"novelty": {"parts": {"manifold": [0.0, 1.0]}, "threshold": 0.5}},
        {"weight": "0.5"},
        {"weight": None},
        {"weight": 2},
        {"temperature": 0},
        {"temperature": "1"},
        {"floor": []},
        {"fast_margin": None},
        {"other": 1},
        {"novelty": {"parts": {}, "threshold": 0.5}},
        {"novelty": {"parts": {"angle": [0.0]}, "threshold": 0.5}},
        {"novelty": {"parts": {"angle": [0.0, 0.0]}, "threshold": 0.5}},
        {"novelty": {"parts": {"angle": [0.0, 1.0]}, "threshold": "x"}},
        {"novelty": []},
    ],
    ids=str,
)
def test_a_combination_of_other_values_is_refused(folder, change):
    path = folder / COMBINATION
    whole = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(whole) | change))
        with pytest.raises(CanalError):
            CombinedAnnotator.load(folder)
        with pytest.raises(CanalError):
            load_model(folder)
    finally:
        path.write_text(whole)
